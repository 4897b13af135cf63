//! A service with the capacity of the cores of this machine, alone or beside a neighbour: the default
//! law against fixed limits in the same gate.

use std::{sync::Arc, time::Duration};

use tokio::runtime::Runtime;
use tower::Layer;
use tower_capacity::{Limiter, PlainCapacityLayer, limit::Fixed};

use crate::{
    backend::{self, Backend, Work},
    contenders::sent,
    load::{self, Tally},
    neighbour::Neighbour,
    scenarios,
    sqlite::Sqlite,
};

pub(crate) const LIMITS: [usize; 8] = [2, 3, 4, 6, 8, 12, 16, 32];
const LOADS: [f64; 3] = [1.5, 3.0, 10.0];

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    pub(crate) lasts: Duration,
    pub(crate) neighbour: bool,
    pub(crate) seed: u64,
    /// The fixed limits.
    pub(crate) limits: Vec<usize>,
    /// Prints what the default law did and why.
    pub(crate) explain: bool,
}

/// One contender: a fixed limit, or the default law.
struct Row {
    limit: Option<usize>,
    /// By load, goodput a second in each round.
    goodput: [Vec<f64>; LOADS.len()],
    /// Requests that were given up, of those offered, and the highest limit at the end of a run.
    given_up: [u64; LOADS.len()],
    offered: [u64; LOADS.len()],
    last_limit: usize,
}

impl Row {
    fn new(limit: Option<usize>) -> Self {
        Self {
            limit,
            goodput: Default::default(),
            given_up: Default::default(),
            offered: Default::default(),
            last_limit: 0,
        }
    }

    fn limiter(&self) -> Limiter {
        let builder = Limiter::builder();
        let builder = match self.limit {
            Some(limit) => builder.law(Fixed::new(limit)),
            None => builder,
        };
        builder.build().expect("valid bounds")
    }

    fn mean(&self, load: usize) -> f64 {
        self.goodput[load].iter().sum::<f64>() / self.goodput[load].len() as f64
    }
}

/// Runs all contenders in turn at each load, in each round, and prints a table.
pub(crate) fn run(plan: &Plan, workers: &Runtime) {
    // Connections are closed on the runtime's threads.
    let _runtime = workers.enter();
    let sqlite = Sqlite::create();
    workers.block_on(sqlite.open_all());
    let work = Work::Sqlite(sqlite.clone());
    let capacity = backend::measure(&work, workers);
    let fixed = plan.limits.iter();
    let mut rows: Vec<_> = fixed.map(|limit| Row::new(Some(*limit))).collect();
    rows.push(Row::new(None));
    let seconds = (plan.lasts.as_secs_f64() + 4.0) * (LOADS.len() * rows.len()) as f64;
    println!(
        "## SQLite{}: capacity {capacity:.0}/s, seed {}, {} rounds of about {seconds:.0} s",
        if plan.neighbour {
            " beside a neighbour"
        } else {
            ""
        },
        plan.seed,
        plan.rounds
    );
    for round in 0..plan.rounds {
        for (load, times) in LOADS.into_iter().enumerate() {
            let seed = plan.seed + u64::from(round) * 100 + load as u64;
            for row in &mut rows {
                // Each meets the same arrivals and the same neighbour.
                let neighbour = plan.neighbour.then(|| Neighbour::new(seed));
                let (tally, last_limit) = play(plan, &work, times, capacity, seed, row, workers);
                drop(neighbour);
                // What callers left running is no load of the next contender.
                workers.block_on(sqlite.open_all());
                row.goodput[load].push(tally.good as f64 / plan.lasts.as_secs_f64());
                row.given_up[load] += tally.given_up;
                row.offered[load] += tally.offered;
                row.last_limit = row.last_limit.max(last_limit);
            }
        }
        println!("round {} of {} done", round + 1, plan.rounds);
    }
    print(&rows);
}

fn play(
    plan: &Plan,
    work: &Work,
    times: f64,
    capacity: f64,
    seed: u64,
    row: &Row,
    workers: &Runtime,
) -> (Tally, usize) {
    let scenario = scenarios::overload(times, plan.lasts);
    let backend = Backend::new(work.clone(), &scenario, seed);
    let limiter = row.limiter();
    // The generator has a thread of its own, so that a busy backend does not delay it.
    let generator = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let call = sent(PlainCapacityLayer::new(limiter.clone()).layer(backend.clone()));
    let handle = workers.handle();
    let tally = generator.block_on(load::run(
        &scenario,
        capacity,
        seed,
        &backend,
        Arc::clone(&call),
        handle,
    ));
    if plan.explain && row.limit.is_none() {
        println!("{times}x: {}, P99 {:.0?}", tally.good, tally.p99());
        for change in limiter.history() {
            println!("  {change}");
        }
    }
    (tally, limiter.snapshot().limit())
}

fn print(rows: &[Row]) {
    println!(
        "\ngoodput a second: mean of the rounds, % of the best fixed limit, and of the worst round"
    );
    print!("{:<22}", "");
    for times in LOADS {
        print!(" {:>23}", format!("{times}x"));
    }
    println!("  given up %  highest limit at an end");
    let fixed = || rows.iter().filter(|row| row.limit.is_some());
    for row in rows {
        let name = match row.limit {
            Some(limit) => format!("fixed limit {limit}"),
            None => "tower-capacity".to_owned(),
        };
        print!("{name:<22}");
        for load in 0..LOADS.len() {
            let best = |of: &dyn Fn(&Row) -> f64| fixed().map(of).fold(f64::MIN_POSITIVE, f64::max);
            let share = 100.0 * row.mean(load) / best(&|row| row.mean(load));
            let rounds = row.goodput[load].iter().enumerate();
            let worst =
                rounds.map(|(round, good)| 100.0 * good / best(&|row| row.goodput[load][round]));
            let worst = worst.fold(f64::INFINITY, f64::min);
            print!(" {:>9.1} {share:>6.1} {worst:>6.1}", row.mean(load));
        }
        let given_up: u64 = row.given_up.iter().sum();
        let offered: u64 = row.offered.iter().sum();
        let given_up = 100.0 * given_up as f64 / offered.max(1) as f64;
        println!("  {given_up:>10.1}  {:>10}", row.last_limit);
    }
}
