//! Ten processes that would take 600 connections, in front of a Postgres that has 100.
//!
//! ```text
//! cargo run --release --bin fleet_pool
//! ```
//!
//! The same ten processes run three times: each with a pool of 60 (*bare*), each with its tenth of what the
//! server has (*static*), and each with a tuned pool that shares one budget with the others (*ours*; the
//! difference is one line, see `node.rs`). Three of them are busy, the other seven nearly idle; in the
//! middle of the run the load moves to three others, and later one busy process is killed (SIGKILL).
//!
//! The table has a line a second: connections by the server's own count (the most of that second),
//! queries done, and errors. The Postgres is a private one, started from the program found on this
//! machine and removed afterwards. A picture of the runs is written to `fleet_pool.svg`.

mod chart;
mod node;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// Runs ten processes on one small Postgres: bare, with a static share each, and with a common budget.
#[derive(Clone, Debug, Parser)]
#[command(name = "fleet_pool")]
pub(crate) struct Options {
    /// Length of each run in seconds.
    #[arg(long, value_name = "N", default_value_t = 60,
          value_parser = clap::value_parser!(u16).range(15..=600))]
    pub(crate) seconds: u16,

    /// Run only this way.
    #[arg(long, value_name = "WAY")]
    pub(crate) only: Option<Way>,

    /// Where the picture is written.
    #[arg(long, value_name = "PATH", default_value = "fleet_pool.svg")]
    pub(crate) svg: PathBuf,

    /// Be one of the processes: its number.
    #[arg(long, hide = true, requires_all = ["url", "only"])]
    pub(crate) node: Option<usize>,

    /// The database of the processes.
    #[arg(long, hide = true)]
    pub(crate) url: Option<String>,
}

/// How the processes share the server.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Way {
    /// A pool of 60 each.
    Bare,
    /// A tenth each.
    Static,
    /// One budget.
    Ours,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Bare, Self::Static, Self::Ours];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Static => "static",
            Self::Ours => "ours",
        }
    }
}

/// Processes.
pub(crate) const PROCESSES: usize = 10;

/// The most connections a process would take.
pub(crate) const WANTED: usize = 60;

/// What the server has, three of them for superusers.
pub(crate) const MAX_CONNECTIONS: usize = 100;

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match (options.node, &options.url, options.only) {
        (Some(number), Some(url), Some(way)) => node::serve(number, url, way, options.seconds),
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
