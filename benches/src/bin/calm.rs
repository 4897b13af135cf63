//! What limiters refuse where there is nothing to refuse: services below 65 % of what they can do, with hiccups.
//!
//! ```text
//! cargo run --release -p overload-benches --bin calm -- --count 300 --seed 1
//! ```

use clap::Parser;
use overload_benches::sim::{Contender, in_parallel, run, scenarios};

/// Counts what limiters refuse of light loads, beside the same service without a limit.
#[derive(Debug, Parser)]
struct Options {
    /// How many services.
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    count: u64,
    /// Seed of the first; each next one has the next.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(..=u64::MAX >> 1))]
    seed: u64,
    /// Only these contenders; may be given again. Defaults to ours, the prototype and Envoy's.
    #[arg(long)]
    law: Vec<Contender>,
    /// Prints each service of which the first contender refuses more than this, in percent.
    #[arg(long, value_name = "PERCENT")]
    above: Option<f64>,
}

/// A service without a limit that serves less than this share in time has collapsed by itself.
const HEALTHY: f64 = 0.95;

fn main() {
    let options = Options::parse();
    let contenders = match options.law.as_slice() {
        [] => vec![Contender::Ours, Contender::Prototype, Contender::Envoy],
        some => some.to_vec(),
    };
    let seeds = options.seed..options.seed + options.count;
    let services: Vec<_> = seeds.map(scenarios::calm).collect();
    let rows = in_parallel(&services, |scenario| {
        let of = |contender: Contender| {
            let mut report = run(scenario, || contender.guard(scenario, false));
            report.phases.swap_remove(0)
        };
        let bare = of(Contender::Unlimited);
        let guarded: Vec<_> = contenders.iter().copied().map(of).collect();
        (bare, guarded)
    });
    if let Some(above) = options.above {
        for (scenario, (bare, guarded)) in services.iter().zip(&rows) {
            let refused = 100.0 * guarded[0].refused_share();
            if refused > above {
                let [good, bare] = [&guarded[0], bare].map(|phase| 100.0 * phase.good_share());
                println!(
                    "{refused:.2} % refused, {good:.1} % in time, {bare:.1} without: {scenario:?}"
                );
            }
        }
    }
    let (healthy, collapsed): (Vec<_>, Vec<_>) = rows
        .iter()
        .partition(|(bare, _)| bare.good_share() >= HEALTHY);
    println!(
        "{} of {} services do well without a limit, {} collapse\n",
        healthy.len(),
        rows.len(),
        collapsed.len()
    );
    println!("              of those that do well                    of those that collapse");
    println!("              refuse none  refused %  worst %  lost %   in time %  without %");
    for (index, contender) in contenders.iter().enumerate() {
        let mean =
            |shares: Vec<f64>| 100.0 * shares.iter().sum::<f64>() / shares.len().max(1) as f64;
        let each: Vec<f64> = healthy
            .iter()
            .map(|(_, g)| g[index].refused_share())
            .collect();
        let none = each.iter().filter(|share| **share == 0.0).count();
        let worst = 100.0 * each.iter().copied().fold(0.0, f64::max);
        let lost = healthy
            .iter()
            .map(|(b, g)| b.good_share() - g[index].good_share());
        let lost = mean(lost.collect());
        let served = mean(
            collapsed
                .iter()
                .map(|(_, g)| g[index].good_share())
                .collect(),
        );
        let bare = mean(collapsed.iter().map(|(b, _)| b.good_share()).collect());
        println!(
            "{:<14}{none:>11}{:>11.3}{worst:>9.1}{lost:>8.3}{served:>12.1}{bare:>11.1}",
            contender.name(),
            mean(each),
        );
    }
}
