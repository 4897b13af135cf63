//! Compares limiters in the simulator.
//!
//! ```text
//! cargo run --release -p overload-benches --bin sim                      # the named scenarios
//! cargo run --release -p overload-benches --bin sim -- --scenario bimodal --law ours --explain
//! cargo run --release -p overload-benches --bin sim -- --random 200 --seed 1
//! cargo run --release -p overload-benches --bin sim -- --half-hour
//! cargo run --release -p overload-benches --bin sim -- --mixes
//! cargo run --release -p overload-benches --bin sim -- --law ours --law no-codel --law no-room
//! ```

use std::{error::Error, fs, path::PathBuf, process::ExitCode, time::SystemTime};

use clap::Parser;
use overload_benches::{
    cli::{Output, check, ended},
    sim::{Contender, Oracle, Report, Scenario, Score, in_parallel, run, scenarios, svg},
};

/// Compares limiters in a deterministic simulation of a service.
#[derive(Debug, Parser)]
struct Options {
    /// Only scenarios with this in the name; may be given again.
    #[arg(long)]
    scenario: Vec<String>,
    /// Runs N random scenarios instead of the named ones.
    #[arg(long, value_name = "N", group = "world", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    random: Option<u64>,
    /// Runs N random scenarios of the wider world instead of the named ones.
    #[arg(long, value_name = "N", group = "world", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    wide: Option<u64>,
    /// Runs N scenarios of the wider world with a first seed from the clock, which is printed: a
    /// test on situations that no constant was tuned on.
    #[arg(long, value_name = "N", group = "world", value_parser = clap::value_parser!(u64).range(1..=1_000_000), conflicts_with = "seed")]
    exam: Option<u64>,
    /// Seed of the first random scenario; each next one has the next.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(..=LAST_SEED))]
    seed: u64,
    /// Half an hour at 1.3 times the capacity instead.
    #[arg(long, group = "world")]
    half_hour: bool,
    /// Scenarios with classes of requests or several instances instead.
    #[arg(long, group = "world")]
    mixes: bool,
    /// Only these contenders; may be given again. Defaults to all.
    #[arg(long)]
    law: Vec<Contender>,
    /// Gives every peer the waiting room that ours has.
    #[arg(long)]
    room: bool,
    /// Writes all numbers as JSON.
    #[arg(long, value_name = "PATH")]
    json: Option<Output>,
    /// Draws each run.
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
    /// Prints phases and the explained changes of the limit.
    #[arg(long)]
    explain: bool,
    /// Where sweeps of fixed limits are kept.
    #[arg(long, value_name = "PATH", default_value = "target/sim-oracle.txt")]
    cache: PathBuf,
}

/// Leaves room for the scenarios after the first.
const LAST_SEED: u64 = u64::MAX >> 1;

fn main() -> ExitCode {
    ended(compare(Options::parse()))
}

fn compare(mut options: Options) -> Result<(), Box<dyn Error>> {
    if options.exam.is_some() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        options.seed = 1_000_000 + now.as_millis() as u64 % 1_000_000_000;
        options.wide = options.exam;
    }
    let contenders = if options.law.is_empty() {
        Contender::ALL.to_vec()
    } else {
        options.law.clone()
    };
    let scenarios = chosen(&options)?;
    if let Some(parent) = options.cache.parent() {
        fs::create_dir_all(parent)?;
    }
    let oracle = Oracle::in_file(&options.cache)?;
    if let Some(dir) = &options.svg {
        fs::create_dir_all(dir)?;
    }
    let table = in_parallel(&scenarios, |scenario| {
        let best = oracle.best(scenario);
        let row: Vec<Score> = contenders
            .iter()
            .map(|contender| {
                let report = run(scenario, || contender.guard(scenario, options.room));
                let score = Score::of(scenario, &report, &best);
                if options.mixes && !scenario.classes.is_empty() {
                    print!("{}", by_class(scenario, *contender, &report));
                }
                if options.explain {
                    print!("{}", explain(scenario, *contender, &report, &best));
                }
                if let Some(dir) = &options.svg {
                    let name = format!("{}-{}.svg", scenario.name, contender.name());
                    let drawn = svg(scenario, contender.name(), &report);
                    if let Err(error) = fs::write(dir.join(&name), drawn) {
                        eprintln!("{name}: {error}");
                    }
                }
                score
            })
            .collect();
        row
    });
    if let Some(count) = options.random.or(options.wide) {
        let last = options.seed + count - 1;
        println!("random scenarios, seeds {} to {last}", options.seed);
    }
    print_tables(&scenarios, &contenders, &table);
    if let Some(file) = &options.json {
        file.write(json(&scenarios, &contenders, &table))?;
    }
    Ok(())
}

fn chosen(options: &Options) -> Result<Vec<Scenario>, String> {
    let seeds = |count| options.seed..options.seed + count;
    let all = if let Some(count) = options.random {
        seeds(count).map(scenarios::random).collect()
    } else if let Some(count) = options.wide {
        seeds(count).map(scenarios::wide).collect()
    } else if options.half_hour {
        vec![scenarios::half_hour()]
    } else if options.mixes {
        scenarios::mixes()
    } else {
        scenarios::named()
    };
    let names: Vec<_> = all.iter().map(|scenario| scenario.name.clone()).collect();
    let is = |part: &str, name: &str| name.contains(part);
    check("--scenario", &options.scenario, &names, is)?;
    let is_wanted = |scenario: &Scenario| {
        let mut parts = options.scenario.iter();
        options.scenario.is_empty() || parts.any(|part| is(part, &scenario.name))
    };
    Ok(all.into_iter().filter(is_wanted).collect())
}

/// What a row is called, and how it is computed.
type Row<T> = (&'static str, fn(&T) -> f64);

fn print_tables(scenarios: &[Scenario], contenders: &[Contender], table: &[Vec<Score>]) {
    println!("\ngoodput in % of the best fixed limit of each phase");
    header(contenders);
    for (scenario, row) in scenarios.iter().zip(table) {
        print!("{:<20}", scenario.name);
        for score in row {
            print!("{:>10.1}", 100.0 * score.share);
        }
        println!();
    }
    let column = |index: usize| -> Vec<f64> {
        let mut shares: Vec<f64> = table.iter().map(|row| 100.0 * row[index].share).collect();
        shares.sort_by(f64::total_cmp);
        shares
    };
    let statistics: [Row<[f64]>; 4] = [
        ("mean", |shares| {
            shares.iter().sum::<f64>() / shares.len() as f64
        }),
        ("median", |shares| shares[shares.len() / 2]),
        ("10th percentile", |shares| shares[shares.len() / 10]),
        ("worst", |shares| shares[0]),
    ];
    for (name, of) in statistics {
        print!("{name:<20}");
        for index in 0..contenders.len() {
            print!("{:>10.1}", of(&column(index)));
        }
        println!();
    }
    if scenarios.len() > 60 {
        return;
    }
    let details: [Row<Score>; 3] = [
        ("P99 of the answered in the slowest phase, ms", |score| {
            1e3 * score.p99
        }),
        (
            "seconds to 90 % of the best goodput in the slowest overloaded phase",
            |score| score.convergence,
        ),
        ("% refused in phases below 70 % of the capacity", |score| {
            100.0 * score.refused_below_capacity
        }),
    ];
    for (title, of) in details {
        println!("\n{title}");
        header(contenders);
        for (scenario, row) in scenarios.iter().zip(table) {
            print!("{:<20}", scenario.name);
            for score in row {
                print!("{:>10.1}", of(score));
            }
            println!();
        }
    }
}

fn header(contenders: &[Contender]) {
    print!("{:<20}", "");
    for contender in contenders {
        print!("{:>10}", contender.name());
    }
    println!();
}

/// What share of each class was served in time, phase by phase.
fn by_class(scenario: &Scenario, contender: Contender, report: &Report) -> String {
    let mut text = format!(
        "{} / {}, % answered in time\n",
        scenario.name,
        contender.name()
    );
    for (index, class) in scenario.classes.iter().enumerate() {
        text += &format!("  {:<12}", class.name);
        for phase in &report.phases {
            let class = phase.classes[index];
            text += &format!(
                "{:>8.1}",
                100.0 * class.good as f64 / class.offered.max(1) as f64
            );
        }
        text += "\n";
    }
    text
}

fn explain(scenario: &Scenario, contender: Contender, report: &Report, best: &[f64]) -> String {
    let mut text = format!("{} / {}\n", scenario.name, contender.name());
    for ((phase, result), best) in scenario.phases.iter().zip(&report.phases).zip(best) {
        text += &format!(
            "  {:5.1} % of {best:.0}/s: offered {} good {} late {} refused {} abandoned {} \
             p50 {:.1} ms p99 {:.1} ms limit {:.0} ({:?}, {:?})\n",
            100.0 * result.goodput() / best,
            result.offered,
            result.good,
            result.late,
            result.refused,
            result.abandoned,
            1e3 * result.quantile(0.5),
            1e3 * result.quantile(0.99),
            result.settled_limit(),
            phase.load,
            phase.server,
        );
    }
    for change in &report.changes {
        text += &format!("    {change}\n");
    }
    text
}

fn json(
    scenarios: &[Scenario],
    contenders: &[Contender],
    table: &[Vec<Score>],
) -> serde_json::Value {
    let rows = scenarios.iter().zip(table).map(|(scenario, row)| {
        let scores = contenders.iter().zip(row).map(|(contender, score)| {
            let score = serde_json::json!({
                "share": score.share,
                "phases": score.phases,
                "p99_seconds": score.p99,
                "convergence_seconds": score.convergence,
                "refused_below_capacity": score.refused_below_capacity,
            });
            (contender.name().to_owned(), score)
        });
        let scores: serde_json::Map<_, _> = scores.collect();
        serde_json::json!({"scenario": scenario.name, "seed": scenario.seed, "scores": scores})
    });
    rows.collect()
}
