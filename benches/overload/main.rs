//! Which limiter keeps a real service answering, in real time, when load or capacity changes?
//!
//! `cargo bench -p overload-benches --bench overload` runs all of it, in about fifty minutes;
//! `-- --backend sleep --scenario surge` a part, `-- --help` says which.
//!
//! An open loop of Poisson arrivals meets a backend of known capacity behind one limiter. Goodput
//! counts answers within the objective, from the moment that a request was due. Each contender is
//! compared with the best static limit of a sweep in the same scenario and run.
//!
//! `-- --backend sqlite --neighbour` is another one: a service on shared cores, see `--help`.

mod backend;
mod contenders;
mod http;
mod load;
mod neighbour;
mod scenarios;
mod shared_cores;
mod sqlite;

use std::{sync::Arc, time::Duration};

use clap::{Parser, ValueEnum};

use crate::{
    backend::{Backend, Work},
    contenders::{Contender, STATIC_LIMITS},
    load::Tally,
    scenarios::Scenario,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Eight workers that sleep; all contenders run side by side.
    Sleep,
    /// Work on the cores of this machine; one contender after the other.
    Cpu,
    /// The sleeping workers behind real HTTP; one contender after the other.
    Http,
    /// Queries of embedded SQLite, the service of the example `graceful_degradation`, against fixed
    /// limits from 2 to 32, at 1.5, 3 and 10 times the capacity; all in turn, in each round. Only
    /// when it is asked for.
    Sqlite,
}

#[derive(Debug, Parser)]
#[command(about = "Compares limiters in real time")]
struct Args {
    /// Only this backend.
    #[arg(long)]
    backend: Option<Kind>,
    /// Only scenarios with one of these in the name, separated by commas.
    #[arg(long, value_delimiter = ',')]
    scenario: Vec<String>,
    /// Only contenders with one of these in the name, separated by commas; and the static
    /// limits.
    #[arg(long, value_delimiter = ',')]
    contender: Vec<String>,
    /// Rounds of the SQLite backend.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds that each contender of the SQLite backend is measured for at each load.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Beside the SQLite backend, threads use the cores that come and go at random.
    #[arg(long)]
    neighbour: bool,
    /// Fixed limits that the SQLite backend is swept over, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = shared_cores::LIMITS)]
    limits: Vec<usize>,
    /// With the SQLite backend: prints each change of the limit of the default law, and why.
    #[arg(long)]
    explain: bool,
    /// Seed of arrivals, service times and the neighbour.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    fn wants(&self, contender: Contender) -> bool {
        let name = contender.name();
        let named = || self.contender.iter().any(|part| name.contains(part));
        self.contender.is_empty() || contender.is_static() || named()
    }
}

/// Name of the threads that limiters and backends run on.
const WORKER: &str = "worker";

fn main() {
    let args = Args::parse();
    // A limiter that panics is counted, not quoted a thousand times.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() != Some(WORKER) {
            report(panic);
        }
    }));
    let workers = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(WORKER)
        .enable_all()
        .build()
        .expect("a runtime");
    if args.backend == Some(Kind::Sqlite) {
        let plan = shared_cores::Plan {
            rounds: args.rounds,
            lasts: Duration::from_secs(args.seconds),
            neighbour: args.neighbour,
            seed: args.seed,
            limits: args.limits,
            explain: args.explain,
        };
        return shared_cores::run(&plan, &workers);
    }
    let kinds = [Kind::Sleep, Kind::Cpu, Kind::Http];
    for kind in kinds {
        if args.backend.is_some_and(|only| only != kind) {
            continue;
        }
        let capacity = match kind {
            Kind::Cpu => backend::measure(&Work::Cpu, &workers),
            _ => backend::SLEEP_CAPACITY,
        };
        println!(
            "\n## {kind:?}: capacity {capacity:.0}/s, seed {}",
            args.seed
        );
        let mut table = Table::default();
        for scenario in scenarios::all() {
            let named = || {
                args.scenario
                    .iter()
                    .any(|part| scenario.name.contains(part))
            };
            if !args.scenario.is_empty() && !named() {
                continue;
            }
            if kind == Kind::Http && !scenario.over_http {
                continue;
            }
            let scenario = Arc::new(scenario);
            let run = Run {
                kind,
                capacity,
                seed: args.seed,
                workers: workers.handle().clone(),
                contenders: contenders::all()
                    .into_iter()
                    .filter(|contender| args.wants(*contender))
                    .collect(),
            };
            table.add(&scenario, run.all(&scenario));
        }
        table.print();
    }
}

struct Run {
    kind: Kind,
    capacity: f64,
    seed: u64,
    workers: tokio::runtime::Handle,
    contenders: Vec<Contender>,
}

impl Run {
    /// Contenders and their tallies, in order.
    fn all(&self, scenario: &Arc<Scenario>) -> Vec<(Contender, Tally)> {
        let contenders = self.contenders.iter().copied();
        if self.kind != Kind::Sleep {
            let one = |contender: Contender| (contender, self.one(scenario, contender));
            return contenders.map(one).collect();
        }
        std::thread::scope(|scope| {
            let running: Vec<_> = contenders
                .map(|contender| {
                    let thread = scope.spawn(move || self.one(scenario, contender));
                    (contender, thread)
                })
                .collect();
            let join = |(contender, thread): (Contender, std::thread::ScopedJoinHandle<'_, _>)| {
                (contender, thread.join().expect("no panic"))
            };
            running.into_iter().map(join).collect()
        })
    }

    fn one(&self, scenario: &Arc<Scenario>, contender: Contender) -> Tally {
        let work = match self.kind {
            Kind::Cpu => Work::Cpu,
            _ => Work::Sleep,
        };
        let backend = Backend::new(work, scenario, self.seed);
        // The generator has a thread of its own, so that a busy backend does not delay it.
        let generator = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let workers = self.workers.clone();
        generator.block_on(async {
            let call = if self.kind == Kind::Http {
                http::serve(contender, &backend, &workers).await
            } else {
                let _runtime = workers.enter();
                contender.wrap(backend.clone())
            };
            load::run(scenario, self.capacity, self.seed, &backend, call, &workers).await
        })
    }
}

/// Goodput of all contenders by scenario.
#[derive(Default)]
struct Table {
    columns: Vec<&'static str>,
    rows: Vec<(Contender, Vec<Tally>)>,
}

impl Table {
    fn add(&mut self, scenario: &Scenario, results: Vec<(Contender, Tally)>) {
        self.columns.push(scenario.name);
        for (contender, tally) in results {
            match self
                .rows
                .iter_mut()
                .find(|(row, _)| row.name() == contender.name())
            {
                Some((_, tallies)) => tallies.push(tally),
                None => self.rows.push((contender, vec![tally])),
            }
        }
    }

    /// The most that a static limit of the sweep got in a scenario.
    fn ideal(&self, column: usize) -> f64 {
        let statics = self.rows.iter().filter(|(row, _)| row.is_static());
        let good = statics.map(|(_, tallies)| tallies[column].good);
        good.max().unwrap_or(0).max(1) as f64
    }

    fn print(&self) {
        if self.columns.is_empty() {
            return;
        }
        println!("\ngoodput, % of the best static limit of {STATIC_LIMITS:?}");
        print!("{:<30}", "");
        for column in &self.columns {
            print!(" {column:>15}");
        }
        println!(" {:>7} {:>7}", "mean", "worst");
        for (contender, tallies) in &self.rows {
            let shares: Vec<f64> = (0..self.columns.len())
                .map(|column| 100.0 * tallies[column].good as f64 / self.ideal(column))
                .collect();
            print!("{:<30}", contender.name());
            for share in &shares {
                print!(" {share:>15.1}");
            }
            let mean = shares.iter().sum::<f64>() / shares.len() as f64;
            let worst = shares.iter().copied().fold(f64::INFINITY, f64::min);
            println!(" {mean:>7.1} {worst:>7.1}");
        }
        println!("\nP99 of those answered, ms | refused % | given up %");
        for (contender, tallies) in &self.rows {
            print!("{:<30}", contender.name());
            for tally in tallies {
                print!(
                    " {:>5.0}|{:>4.0}|{:>4.0}",
                    tally.p99().as_secs_f64() * 1e3,
                    tally.share(tally.refused),
                    tally.share(tally.given_up)
                );
            }
            let panicked: u64 = tallies.iter().map(|tally| tally.panicked).sum();
            if panicked > 0 {
                print!("  panicked in {panicked} requests");
            }
            println!();
        }
        let late = self.rows.iter().flat_map(|(_, tallies)| tallies);
        let late = late.map(|tally| tally.latest_start).max();
        let late = late.unwrap_or(Duration::ZERO);
        println!("latest start of a request after it was due: {late:.1?}");
    }
}
