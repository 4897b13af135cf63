//! A service driven to ten times its capacity and back, once bare and once protected.
//!
//! ```text
//! cargo run --release --bin graceful_degradation -- --quick
//! ```
//!
//! The service is an axum server over TCP that answers each request with one query. The capacity
//! is that of the processor: the query scans a table that has no index for it, in a real embedded
//! SQLite database (or, with `--postgres`, digests rows in a real Postgres), for some milliseconds
//! of one core. Nothing sleeps, so with more requests than cores there is only more waiting.
//!
//! The load is open-loop: requests start at random moments of a fixed schedule, whether or not
//! earlier ones were answered, and their latency counts from the moment they should have started.
//!
//! What the service can do is measured before, between and after the two runs, on the machine as it is
//! then. Exit code 0: every check is met; 1: one is not; 3: this machine was too busy to measure; 2: it could
//! not run.

mod app;
mod busy;
mod chart;
mod cli;
mod database;
mod live;
mod load;
mod measure;
mod page;
mod report;
mod run;

use std::process::ExitCode;

use crate::measure::Outcome;

fn main() -> ExitCode {
    match cli::parse().and_then(|options| run::run(&options)) {
        Ok(Outcome::Met) => ExitCode::SUCCESS,
        Ok(Outcome::NotMet) => ExitCode::FAILURE,
        Ok(Outcome::NotMeasurable) => ExitCode::from(3),
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::from(2)
        }
    }
}
