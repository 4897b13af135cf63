//! What does one quota for several processes cost, and is it kept?
//!
//! ```text
//! cargo run --release -p overload-benches --bin fleet -- accuracy [--seconds N]
//! cargo run --release -p overload-benches --bin fleet -- reach [--seconds N]
//! cargo run --release -p overload-benches --bin fleet -- outage
//! ```
//!
//! `accuracy`: 1, 4 and 10 processes with one key on a private Redis, open loop at five times the
//! quota and at 0.8 times, by schemes: every request asked for, leased ahead, and paid afterwards
//! with a sync every 50 ms or 1 s. What was admitted is put into bins of 10 ms by one clock, and
//! every window of 0.1, 1 and 10 s is held against `burst + rate × window`.
//!
//! `reach`: four processes and 50 000 requests a second offered.
//!
//! `outage`: what one process adds to requests while Redis is paused, silent or slow.

mod accuracy;
mod node;
mod outage;
mod proxy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use overload_benches::cli::ended;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Over-admission, calls and added latency by scheme and number of processes.
    Accuracy {
        /// Length of each run.
        #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(2..=120))]
        seconds: u64,
    },
    /// Four processes at 50 000 requests a second.
    Reach {
        /// Length of each run.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=120))]
        seconds: u64,
    },
    /// Added latency while Redis is paused, silent or slow.
    Outage,
    /// One of the processes.
    #[command(hide = true)]
    Node(node::Task),
}

fn main() -> ExitCode {
    let done = match Options::parse().what {
        What::Accuracy { seconds } => accuracy::run(seconds),
        What::Reach { seconds } => accuracy::reach(seconds),
        What::Outage => outage::run(),
        What::Node(task) => node::run(&task),
    };
    ended(done)
}
