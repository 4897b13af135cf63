//! Which way of sharing one Postgres among processes serves most, and never takes too many connections?
//!
//! ```text
//! cargo run --release -p overload-benches --bin bench_fleet_pool -- --quick
//! cargo run --release -p overload-benches --bin bench_fleet_pool -- --quick --scenario failover
//! ```
//!
//! Real processes, each with a pool and its users, in front of a Postgres with `max_connections = 100`.
//! A third of them is busy; after a third of a run the load moves to others, then a quarter more processes
//! start, as in a rollout, and at last a tenth of the processes is killed (SIGKILL). What is counted is
//! what users get, and the sessions that the server shows, every 10 ms.
//!
//! The other scenarios have a load that stays where it is, and a store that stands still, a server that is
//! lost with the table, one that is restarted with fewer connections, or queries that a server with two
//! cores can do two of at a time, or that make each other slower.

mod bare;
mod faults;
mod node;
mod processes;
mod rules;
mod run;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// Compares ways to share one small Postgres among processes.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench_fleet_pool")]
pub(crate) struct Options {
    /// Runs of ten processes, for 12 s under a load that moves and 30 s otherwise: about two minutes in all.
    #[arg(long)]
    quick: bool,

    /// Length of each run in seconds.
    #[arg(long, value_name = "N", default_value_t = 60,
          value_parser = clap::value_parser!(u16).range(9..=600))]
    pub(crate) seconds: u16,

    /// Processes at the start.
    #[arg(long, value_name = "N", default_value_t = 20,
          value_parser = clap::value_parser!(u16).range(4..=80))]
    pub(crate) processes: u16,

    /// What happens in a run.
    #[arg(long, value_name = "WHAT", default_value = "load")]
    pub(crate) scenario: Scenario,

    /// Run only this contender.
    #[arg(long, value_name = "WAY")]
    pub(crate) only: Option<Way>,

    /// Be one of the processes: its number.
    #[arg(long, hide = true, requires_all = ["url", "only"])]
    pub(crate) node: Option<u16>,

    /// Seconds of the run that had passed when this process was started.
    #[arg(long, hide = true, default_value_t = 0.0)]
    pub(crate) late: f64,

    /// The database of the processes.
    #[arg(long, hide = true)]
    pub(crate) url: Option<String>,

    /// The Redis of the budget.
    #[arg(long, hide = true, default_value = "")]
    pub(crate) redis: String,
}

/// What happens in a run.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Scenario {
    /// The load moves, a rollout begins, and processes are killed.
    Load,
    /// The store stands still, for 60 s or half of the run.
    Pause,
    /// The server is killed, and comes back without the table; what a Redis kept is lost with it.
    Failover,
    /// The server is restarted with 60 connections, and later with 100.
    Resize,
    /// All processes are busy, with queries that use the processor.
    Knee,
    /// All processes are busy, with queries that make each other slower and use no processor: the server does
    /// most with eight at a time.
    Contention,
}

impl Scenario {
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// How the processes share the server.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Way {
    /// A tuned pool of up to 60 each, without a budget.
    Uncoordinated,
    /// The total divided by the number of processes at the start and of a rollout.
    Static,
    /// Equal shares by live count, as userver has it.
    Userver,
    /// Equal shares by live count, with a new pool for each, as control-layer has it.
    ControlLayer,
    /// A pool of 60 each, and `PgBouncer` between them and the server.
    Pgbouncer,
    /// One budget, kept in the Postgres.
    Postgres,
    /// The same, without the experiments that look for the knee.
    PostgresNoKnee,
    /// One budget, kept in a Redis.
    Redis,
}

impl Way {
    pub(crate) const ALL: [Self; 7] = [
        Self::Uncoordinated,
        Self::Static,
        Self::Userver,
        Self::ControlLayer,
        Self::Pgbouncer,
        Self::Postgres,
        Self::Redis,
    ];

    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// What the server has, three of them for superusers.
pub(crate) const MAX_CONNECTIONS: usize = 100;

/// What is to be shared: what the server has less what is kept, and a twentieth.
pub(crate) const TOTAL: usize = 92;

/// The most connections a process would take.
pub(crate) const WANTED: usize = 60;

/// Users of a busy process, and of one that is not.
pub(crate) const BUSY: usize = 60;
pub(crate) const IDLE: usize = 2;

/// Parts of a run: until the load moves, the rollout, the kill, and the end.
pub(crate) const MOVES_AT: f64 = 0.35;
pub(crate) const ROLLS_OUT_AT: f64 = 0.6;
pub(crate) const KILLS_AT: f64 = 0.75;

fn main() -> ExitCode {
    let mut options = Options::parse();
    if options.quick {
        options.seconds = match options.scenario {
            Scenario::Load => 12,
            _ => 30,
        };
        options.processes = 10;
    }
    let done = match (options.node, &options.url, options.only) {
        (Some(number), Some(url), Some(way)) => node::serve(&options, number, url, way),
        _ => run::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::from(2)
        }
    }
}
