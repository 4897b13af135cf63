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

mod app;
mod chart;
mod cli;
mod database;
mod live;
mod load;
mod measure;
mod report;
mod run;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::parse().and_then(|options| run::run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::from(2)
        }
    }
}
