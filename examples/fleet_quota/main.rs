//! Four server processes and a Redis that is killed in the middle: one quota throughout.
//!
//! ```text
//! cargo run --release --bin fleet_quota
//! ```
//!
//! Each process is an axum server over TCP with the rate limit as its layer; the only difference
//! to one that counts for itself is `build_on` in place of `build`, see `node.rs`. The load is
//! open-loop, five times what the quota allows, and goes to the servers in turn. The Redis is a
//! private one, started from the program found on this machine and removed afterwards.

mod cli;
mod load;
mod node;
mod run;

use std::process::ExitCode;

fn main() -> ExitCode {
    let done = cli::parse().and_then(|options| match &options.node {
        Some(redis) => node::serve(&options, redis).map(|()| true),
        None => run::run(&options),
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::from(2)
        }
    }
}
