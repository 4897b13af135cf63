//! Which pool size serves the most, and which policy finds it, on a real Postgres and a real Redis?
//!
//! ```text
//! cargo run --release -p overload-benches --bin pool_strategies -- --json strategies.json
//! cargo run --release -p overload-benches --bin pool_strategies -- --quick
//! cargo run --release -p overload-benches --bin pool_strategies -- --scenario P8 --explain
//! cargo run --release -p overload-benches --bin pool_strategies -- --scenario closed --policy all
//! ```
//!
//! Private servers, and callers that come at random moments (Poisson, from a seed, the same for
//! every contender) whatever becomes of those before them. They stand in one line for a second at
//! most. Goodput is callers that were served, times are counted from when they were to come. Every
//! contender runs behind the same gate on the same deadpool, so only the policy differs, but for
//! one on a deadpool without a gate.
//!
//! The oracle is the best of the static sizes in each phase: the smallest that serves within 2 % of
//! the best and, where it can serve all, within a quarter of the best P99. Static sizes
//! have a second to connect before they are judged; policies that move have ten seconds to learn
//! where nothing happens, and one where something does.
//!
//! What drives is on the same processors as what serves. Callers that come more than 10 ms late are
//! counted, and a run with more than one in a hundred of them says so: its times are the machine's.

mod database;
mod play;
mod policy;
mod redis;
mod scenarios;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use overload_benches::cli::{Output, check, ended};
use overload_benches::pools::{Contender, Oracle, Report, Score, oracle};
use private_servers::Redis;
use serde_json::{Value, json};

use crate::database::Database;
use crate::play::{Played, Times};
use crate::policy::Policy;
use crate::scenarios::{Rate, Scenario};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Compares policies for the size of a connection pool on private servers.
#[derive(Debug, Parser)]
struct Options {
    /// Only scenarios with this in the name; may be given again. `closed` are those in a closed
    /// loop, which are not played otherwise.
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Only policies with this in the name, or `all`; may be given again. Static sizes are always
    /// played, for the oracle. Defaults to ours and FlexyPool.
    #[arg(long, value_name = "NAME")]
    policy: Vec<String>,
    /// Seed of the callers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds that a phase lasts.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Ours only, and phases of two seconds.
    #[arg(long)]
    quick: bool,
    /// Prints what the tuner decided.
    #[arg(long)]
    explain: bool,
    /// Writes all numbers as JSON.
    #[arg(long, value_name = "PATH")]
    json: Option<Output>,
}

impl Options {
    fn times(&self) -> Times {
        Times {
            unit: if self.quick { 2.0 } else { self.seconds },
            learning: if self.quick { 8.0 } else { 10.0 },
            connecting: 1.0,
        }
    }

    fn policies(&self) -> Result<Vec<Policy>, Error> {
        let defaults = [Contender::Ours, Contender::FlexyPool];
        if self.quick && self.policy.is_empty() {
            return Ok(vec![Policy::OURS]);
        }
        if self.policy.is_empty() {
            return Ok(defaults.map(Policy::Contender).to_vec());
        }
        let all: Vec<Policy> = Policy::all().collect();
        let names: Vec<String> = all.iter().map(|policy| policy.name()).collect();
        let is = |part: &str, name: &str| part == "all" || name.contains(part);
        check("--policy", &self.policy, &names, is)?;
        let wanted = |policy: &Policy| self.policy.iter().any(|part| is(part, &policy.name()));
        Ok(all.into_iter().filter(wanted).collect())
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.scenario.is_empty()
            || self
                .scenario
                .iter()
                .any(|part| name.contains(part.as_str()))
    }

    fn scenarios(&self) -> Result<(Vec<Scenario>, Vec<redis::Workload>), Error> {
        let postgres = scenarios::ALL.iter().chain(scenarios::CLOSED);
        let names = postgres.clone().map(|scenario| scenario.name);
        let names = names.chain(redis::ALL.iter().map(|workload| workload.name));
        let names: Vec<String> = names.map(str::to_owned).collect();
        check("--scenario", &self.scenario, &names, |part, name| {
            name.contains(part)
        })?;
        let closed = usize::from(!self.scenario.is_empty()) * scenarios::CLOSED.len();
        let postgres = postgres.take(scenarios::ALL.len() + closed);
        let postgres = postgres
            .filter(|scenario| self.is_wanted(scenario.name))
            .copied();
        let redis = redis::ALL
            .iter()
            .filter(|workload| self.is_wanted(workload.name));
        Ok((postgres.collect(), redis.copied().collect()))
    }
}

fn main() -> ExitCode {
    ended(compare(Options::parse()))
}

fn compare(options: Options) -> Result<(), Error> {
    if !(0.5..=600.0).contains(&options.seconds) {
        let seconds = options.seconds;
        return Err(format!("--seconds is {seconds}: expected 0.5 to 600").into());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(options))
}

/// A scenario with the run of each contender.
struct Row {
    scenario: Scenario,
    oracle: Vec<Oracle>,
    played: Vec<(Played, Score)>,
}

async fn run(options: Options) -> Result<(), Error> {
    let policies = options.policies()?;
    let times = options.times();
    let (postgres, redis) = options.scenarios()?;
    let seconds: f64 = postgres
        .iter()
        .map(|row| takes(row, &policies, times))
        .sum();
    let minutes = (seconds + redis.len() as f64 * redis::takes(times)) / 60.0;
    println!(
        "{} rows, about {minutes:.0} minutes\n",
        postgres.len() + redis.len()
    );

    let mut rows = Vec::new();
    let mut json = Vec::new();
    if !postgres.is_empty() {
        let mut database = Database::start().await?;
        for scenario in postgres {
            let row = play_all(&mut database, scenario, &policies, times, options.seed).await?;
            print(&row, options.explain);
            json.push(as_json(&row));
            rows.push(row);
        }
    }
    if !redis.is_empty() {
        let server = Redis::start().await?;
        for workload in &redis {
            json.push(redis::play(&server, workload, times, options.explain).await?);
        }
    }
    tables(&rows);
    if let Some(file) = &options.json {
        file.write(json!({ "seed": options.seed, "seconds": times.unit, "rows": json }))?;
    }
    Ok(())
}

/// Seconds that a row takes, roughly.
fn takes(scenario: &Scenario, policies: &[Policy], times: Times) -> f64 {
    let judged: f64 = scenario
        .phases
        .iter()
        .map(|phase| phase.lasts * times.unit)
        .sum();
    let fixed = judged + times.connecting;
    let moving = |policy: &Policy| match policy.fixed() {
        None if !scenario.is_eventful() => judged + times.learning,
        _ => fixed,
    };
    let all = scenario.sizes.len() as f64 * fixed + policies.iter().map(moving).sum::<f64>();
    // Until the last callers are served or refused.
    all + 0.5 * (scenario.sizes.len() + policies.len()) as f64
}

async fn play_all(
    database: &mut Database,
    scenario: Scenario,
    policies: &[Policy],
    times: Times,
    seed: u64,
) -> Result<Row, Error> {
    let needs_capacity = |phase: &&scenarios::Phase| matches!(phase.rate, Rate::OfCapacity(_));
    let capacity = match scenario.phases.iter().find(needs_capacity) {
        Some(phase) => {
            play::capacity(database, &scenario, phase.mix, Duration::from_secs(1)).await?
        }
        None => 0.0,
    };
    if capacity > 0.0 {
        println!("{}: this machine does {capacity:.0}/s", scenario.name);
    }
    let fixed = scenario.sizes.iter().map(|&size| Policy::Static(size));
    let mut played = Vec::new();
    for policy in fixed.chain(policies.iter().copied()) {
        played.push(play::play(database, &scenario, policy, times, capacity, seed).await?);
    }
    let runs: Vec<(usize, Report)> = played
        .iter()
        .filter_map(|run| match run.policy {
            Policy::Static(size) => Some((size, run.report.clone())),
            _ => None,
        })
        .collect();
    let oracle = oracle(&runs);
    let played = played.into_iter().map(|run| {
        let score = Score::of(&run.report, &oracle);
        (run, score)
    });
    Ok(Row {
        scenario,
        played: played.collect(),
        oracle,
    })
}

fn print(row: &Row, explain: bool) {
    let sizes: Vec<String> = row.oracle.iter().map(|o| o.size.to_string()).collect();
    println!("{} (oracle: {})", row.scenario.name, sizes.join(", "));
    println!(
        "  {:<20}{:>9}{:>8}{:>9}{:>13}{:>7}{:>18}{:>9}",
        "", "goodput", "", "worst", "connections", "moves", "P99 (oracle)", "settles"
    );
    for (run, score) in &row.played {
        let good: u64 = run.report.phases.iter().map(|phase| phase.good).sum();
        let seconds: f64 = run.report.phases.iter().map(|phase| phase.seconds).sum();
        println!(
            "  {:<20}{:>7.0}/s{:>6.0} %{:>7.0} %{:>7.1} {:>4.2}x{:>7}{:>9.0} ({:>4.0}) ms{:>7.1} s",
            run.policy.name(),
            good as f64 / seconds,
            100.0 * score.goodput,
            100.0 * score.worst_phase,
            score.connections,
            score.connections_ratio(),
            run.report.resizes,
            1e3 * score.p99,
            1e3 * score.oracle_p99,
            score.settles,
        );
        if run.late > 0.01 {
            println!(
                "    {:.0} % of the callers came more than 10 ms late",
                100.0 * run.late
            );
        }
        if let Some(error) = &run.first_error {
            println!("    {} errors, the first: {error}", run.errors);
        }
        if score.over_limit > 0 {
            println!("    more connections than allowed: {}", run.report.peak);
        }
        for line in run.said.iter().filter(|_| explain) {
            println!("      {line}");
        }
    }
    println!();
}

/// The tables of `RESULTS.md`.
fn tables(rows: &[Row]) {
    let Some(first) = rows.first() else {
        return;
    };
    let moving = |row: &'_ Row| -> Vec<usize> {
        let is_moving = |&index: &usize| !matches!(row.played[index].0.policy, Policy::Static(_));
        (0..row.played.len()).filter(is_moving).collect()
    };
    let head = || {
        print!("{:<22}{:>12}", "", "oracle");
        for index in moving(first) {
            print!("{:>21}", first.played[index].0.policy.name());
        }
        println!();
    };
    println!("Goodput in % of the oracle, over all phases (and in the worst):\n");
    head();
    for row in rows {
        let sizes: Vec<String> = row.oracle.iter().map(|o| o.size.to_string()).collect();
        print!("{:<22}{:>12}", row.scenario.name, sizes.join(", "));
        for index in moving(row) {
            let score = &row.played[index].1;
            let (all, worst) = (100.0 * score.goodput, 100.0 * score.worst_phase);
            print!("{:>13.1} ({worst:>5.1})", all);
        }
        println!();
    }
    println!("\nMean connections (and moves of the target):\n");
    head();
    for row in rows {
        let oracle = row
            .played
            .first()
            .map_or(0.0, |(_, score)| score.oracle_connections);
        print!("{:<22}{oracle:>12.1}", row.scenario.name);
        for index in moving(row) {
            let (run, score) = &row.played[index];
            print!("{:>14.1} ({:>4})", score.connections, run.report.resizes);
        }
        println!();
    }
    println!("\nOurs: P99 where it is the most times the oracle's, and seconds to settle:\n");
    println!(
        "{:<22}{:>10}{:>12}{:>12}",
        "", "P99, ms", "oracle, ms", "settles, s"
    );
    for row in rows {
        let ours = row
            .played
            .iter()
            .find(|(run, _)| run.policy == Policy::OURS);
        let Some((_, score)) = ours else { continue };
        // Where the oracle turns callers away, too, every line is full.
        let ms = |seconds: f64| match seconds > 0.0 {
            true => format!("{:.0}", 1e3 * seconds),
            false => "-".to_owned(),
        };
        let settles = match score.settles.is_finite() {
            true => format!("{:.1}", score.settles),
            false => "-".to_owned(),
        };
        println!(
            "{:<22}{:>10}{:>12}{settles:>12}",
            row.scenario.name,
            ms(score.p99),
            ms(score.oracle_p99)
        );
    }
}

fn as_json(row: &Row) -> Value {
    let sizes: Vec<usize> = row.oracle.iter().map(|oracle| oracle.size).collect();
    let results = row.played.iter().map(|(run, score)| {
        json!({
            "policy": run.policy.name(),
            "offered": run.report.phases.iter().map(|phase| phase.offered).sum::<u64>(),
            "good": run.report.phases.iter().map(|phase| phase.good).sum::<u64>(),
            "goodput_of_oracle": score.goodput,
            "worst_phase_of_oracle": score.worst_phase,
            "mean_connections": score.connections,
            "connections_of_oracle": score.connections_ratio(),
            "peak_connections": run.report.peak,
            "dials": run.report.dials,
            "moves": run.report.resizes,
            "p99_seconds": score.p99,
            "oracle_p99_seconds": score.oracle_p99,
            // None where it never does.
            "settles_seconds": Some(score.settles).filter(|seconds| seconds.is_finite()),
            "errors": run.errors,
            "late": run.late,
            "said": run.said,
        })
    });
    json!({
        "scenario": row.scenario.name,
        "oracle_sizes": sizes,
        "results": results.collect::<Vec<_>>(),
    })
}
