//! Drives a server that was written elsewhere past its capacity, as it was published and with the layers of
//! this workspace, and judges the second. `examples/foreign/run` builds both and runs this.
//!
//! ```text
//! overload-foreign BARE PROTECTED
//! ```
//!
//! Each of the two programs gets a private Postgres of its own, twenty users, and the same load: clients that
//! store twenty records in a transaction, and as many that read twenty. A closed loop measures what
//! this machine can do; then three times as much is offered for fifteen seconds by an open loop, and its users
//! go after two seconds; then half of it.
//!
//! The clients share the processors with the server. In the overload there are three times as many, and each
//! refusal costs a little, so that no limit can serve all that the machine can do without them.
//!
//! Exits with 0 if all promises are kept, 1 if one is not, 2 if it could not run, and 3 if the machine was too
//! busy with something else to measure.

mod load;
mod server;

use std::{env, process::ExitCode, time::Duration};

use crate::{
    load::{Client, Tally},
    server::Server,
};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// How much is offered, in multiples of what the machine can do.
const OVERLOAD: f64 = 3.0;

/// The pool of the published server.
const CONNECTIONS: i64 = 100;

/// How many times as much as bare has to be useful in the overload.
const TIMES_BARE: f64 = 10.0;

/// Seconds after the overload within which refusals have to end.
const RECOVERS: f64 = 5.0;

/// The machine is steady if it can do at most this many times as much at one time as at the other.
const STEADY: f64 = 1.25;

/// What was seen of one program.
struct Run {
    /// Requests a second in the closed loop, before the overload.
    can: f64,
    overload: Tally,
    calm: Tally,
    /// Health checks in the overload, and those that failed or took longer than a second.
    checks: (usize, usize),
    connections: i64,
}

impl Run {
    fn goodput(&self) -> f64 {
        self.overload.good_a_second()
    }
}

async fn play(name: &str, program: &str) -> Result<Run, Error> {
    println!("{name}: starting it and its Postgres");
    let server = Server::start(program).await?;
    let client = Client::register(server.address(), 20).await?;
    load::closed(&client, 16, Duration::from_secs(3)).await;
    let can = load::closed(&client, 16, Duration::from_secs(5)).await;
    println!("{name}: {can:.0} requests a second; now {OVERLOAD} times as many");
    let watch = server.watch();
    let overload = load::open(&client, OVERLOAD * can, Duration::from_secs(15)).await;
    let (checks, connections) = watch.finish().await?;
    println!("{name}: and half of it");
    let calm = load::open(&client, 0.5 * can, Duration::from_secs(20)).await;
    Ok(Run {
        can,
        overload,
        calm,
        checks,
        connections,
    })
}

fn table(runs: [(&str, &Run); 2]) {
    println!(
        "\n{:<11}{:>9}{:>11}{:>10}{:>8}{:>8}{:>9}{:>10}{:>9}{:>14}{:>13}",
        "",
        "can do/s",
        "offered/s",
        "in time/s",
        "late/s",
        "503/s",
        "other/s",
        "gone/s",
        "P99, ms",
        "health checks",
        "connections"
    );
    for (name, run) in runs {
        let load = &run.overload;
        println!(
            "{name:<11}{:>9.0}{:>11.0}{:>10.0}{:>8.0}{:>8.0}{:>9.0}{:>10.0}{:>9.0}{:>8} of {:>3}{:>13}",
            run.can,
            load.a_second(load.offered()),
            run.goodput(),
            load.a_second(load.late),
            load.a_second(load.shed),
            load.a_second(load.failed),
            load.a_second(load.gone),
            load.p99().as_secs_f64() * 1e3,
            run.checks.0 - run.checks.1,
            run.checks.0,
            run.connections,
        );
    }
    println!();
}

/// What the run shows.
enum Verdict {
    Kept,
    NotKept,
    NotMeasurable,
}

/// Each promise, and whether it is kept.
fn judge(bare: &Run, protected: &Run) -> Verdict {
    let share = |run: &Run| 100.0 * run.goodput() / run.can;
    let promises = [
        (
            format!(
                "at least {TIMES_BARE} times as much as bare is useful: {:.0} % of what the machine can do, bare {:.0} %",
                share(protected),
                share(bare)
            ),
            protected.goodput() >= TIMES_BARE * bare.goodput(),
        ),
        (
            format!(
                "every health check passes within a second: {} did not",
                protected.checks.1
            ),
            protected.checks.0 > 0 && protected.checks.1 == 0,
        ),
        (
            format!(
                "at most {CONNECTIONS} connections: {}",
                protected.connections
            ),
            protected.connections <= CONNECTIONS,
        ),
        (
            format!(
                "each refusal is a 503 that says when to come back: {} were not",
                protected.overload.failed
            ),
            protected.overload.shed > 0 && protected.overload.failed == 0,
        ),
        (
            format!(
                "under half of the load refusals end within {RECOVERS} s: after {:.0} s, {} of {} requests (bare served \
                 {} of {})",
                protected.calm.last_shed,
                protected.calm.shed,
                protected.calm.offered(),
                bare.calm.good,
                bare.calm.offered()
            ),
            protected.calm.last_shed <= RECOVERS,
        ),
    ];
    for (promise, is_kept) in &promises {
        println!(
            "{}  {promise}",
            if *is_kept { "kept    " } else { "NOT KEPT" }
        );
    }
    match promises.iter().all(|(_, is_kept)| *is_kept) {
        true => Verdict::Kept,
        false => Verdict::NotKept,
    }
}

async fn compare() -> Result<Verdict, Error> {
    let mut programs = env::args().skip(1);
    let (Some(bare), Some(protected)) = (programs.next(), programs.next()) else {
        return Err("expected two programs: the server as published, and the protected one".into());
    };
    let bare = play("bare", &bare).await?;
    let protected = play("protected", &protected).await?;
    table([("bare", &bare), ("protected", &protected)]);
    if bare.can.max(protected.can) > STEADY * bare.can.min(protected.can) {
        println!(
            "this machine is busy: it could do {:.0} requests a second, and then {:.0}",
            bare.can, protected.can
        );
        return Ok(Verdict::NotMeasurable);
    }
    Ok(judge(&bare, &protected))
}

#[tokio::main]
async fn main() -> ExitCode {
    match compare().await {
        Ok(Verdict::Kept) => ExitCode::SUCCESS,
        Ok(Verdict::NotKept) => ExitCode::FAILURE,
        Ok(Verdict::NotMeasurable) => ExitCode::from(3),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
