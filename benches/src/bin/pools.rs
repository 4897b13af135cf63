//! Compares policies for the size of a connection pool, in a model.
//!
//! ```text
//! cargo run --release -p overload-benches --bin pools                        # all scenarios
//! cargo run --release -p overload-benches --bin pools -- --scenario P8 --explain
//! cargo run --release -p overload-benches --bin pools -- --seed 7 --json pools.json
//! ```

use std::process::ExitCode;

use clap::Parser;
use overload_benches::{
    cli::{Output, check, ended},
    pools::{Contender, Oracle, Report, Scenario, Score, run, scenarios, sweep},
    sim::in_parallel,
};
use serde_json::json;

/// Compares policies for the size of a connection pool in a deterministic model of a database.
#[derive(Debug, Parser)]
struct Options {
    /// Only scenarios with this in the name; may be given again.
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Seed of callers and of their work.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes all numbers as JSON.
    #[arg(long, value_name = "PATH")]
    json: Option<Output>,
    /// Prints phases, and each time ours moves its target.
    #[arg(long)]
    explain: bool,
    /// Plays ours only.
    #[arg(long)]
    ours: bool,
}

struct Row {
    oracle: Vec<Oracle>,
    results: Vec<(Contender, Report, Score)>,
}

fn main() -> ExitCode {
    ended(compare(&Options::parse()))
}

fn compare(options: &Options) -> Result<(), String> {
    let scenarios = chosen(&options.scenario)?;
    let contenders = if options.ours {
        &Contender::ALL[..1]
    } else {
        &Contender::ALL
    };
    let rows = in_parallel(&scenarios, |scenario| {
        let oracle = sweep(scenario, options.seed);
        let results = contenders
            .iter()
            .map(|&contender| {
                let report = run(scenario, contender, options.seed);
                let score = Score::of(&report, &oracle);
                (contender, report, score)
            })
            .collect();
        Row { oracle, results }
    });
    for (scenario, row) in scenarios.iter().zip(&rows) {
        print(scenario, row, options.explain);
    }
    if let Some(file) = &options.json {
        file.write(as_json(&scenarios, &rows, options.seed))?;
    }
    Ok(())
}

fn chosen(parts: &[String]) -> Result<Vec<Scenario>, String> {
    let all = scenarios::all();
    let names: Vec<String> = all
        .iter()
        .map(|scenario| scenario.name.to_owned())
        .collect();
    check("--scenario", parts, &names, |part, name| {
        name.contains(part)
    })?;
    let wanted = |scenario: &Scenario| {
        parts.is_empty() || parts.iter().any(|part| scenario.name.contains(part))
    };
    Ok(all.into_iter().filter(wanted).collect())
}

fn print(scenario: &Scenario, row: &Row, explain: bool) {
    let sizes: Vec<String> = row.oracle.iter().map(|o| o.size.to_string()).collect();
    println!("{} (oracle: {})", scenario.name, sizes.join(", "));
    println!(
        "  {:<12}{:>9}{:>8}{:>13}{:>9}{:>16}{:>9}",
        "", "goodput", "worst", "connections", "resizes", "P99 (oracle)", "settles"
    );
    for (contender, report, score) in &row.results {
        println!(
            "  {contender:<12}{:>7.1} %{:>6.0} %{:>7.1} {:>4.2}x{:>9}{:>7.0} ({:>3.0}) ms{:>7.0} s",
            100.0 * score.goodput,
            100.0 * score.worst_phase,
            score.connections,
            score.connections_ratio(),
            score.resizes,
            1e3 * score.p99,
            1e3 * score.oracle_p99,
            score.settles,
        );
        if score.over_limit > 0 {
            println!(
                "    more connections than allowed, {} times",
                score.over_limit
            );
        }
        if explain && *contender == Contender::Ours {
            for (phase, oracle) in report.phases.iter().zip(&row.oracle) {
                println!(
                    "    {:.0}/s of {:.0}/s, {:.1} connections to {}, P99 {:.0} to {:.0} ms",
                    phase.goodput(),
                    oracle.goodput,
                    phase.connection_seconds / phase.seconds,
                    oracle.size,
                    1e3 * phase.p99(),
                    1e3 * oracle.p99,
                );
            }
            for (at, decision) in &report.decisions {
                println!("    {at:>7.2} s  {decision}");
            }
        }
    }
}

fn as_json(scenarios: &[Scenario], rows: &[Row], seed: u64) -> serde_json::Value {
    let rows = scenarios.iter().zip(rows).map(|(scenario, row)| {
        let sizes: Vec<usize> = row.oracle.iter().map(|oracle| oracle.size).collect();
        let results: Vec<_> = row
            .results
            .iter()
            .map(|(contender, report, score)| {
                json!({
                    "contender": contender.name(),
                    "goodput_of_oracle": score.goodput,
                    "worst_phase_of_oracle": score.worst_phase,
                    "mean_connections": score.connections,
                    "connections_of_oracle": score.connections_ratio(),
                    "resizes": score.resizes,
                    "p99_seconds": score.p99,
                    "oracle_p99_seconds": score.oracle_p99,
                    // None where it never does.
                    "settles_seconds": Some(score.settles).filter(|seconds| seconds.is_finite()),
                    "over_limit": score.over_limit,
                    "dials": report.dials,
                    "peak_connections": report.peak,
                })
            })
            .collect();
        json!({ "scenario": scenario.name, "oracle_sizes": sizes, "results": results })
    });
    json!({ "seed": seed, "rows": rows.collect::<Vec<_>>() })
}
