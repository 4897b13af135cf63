//! The main job: two runs of the ramp, and what they say.

use std::{
    env,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::Router;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    app::{self, Protected, Server},
    cli::{Options, Problem},
    database::{Database, Pool},
    live,
    load::{Generator, OBJECTIVE, PATIENCE, Step, ramp},
    measure::{Explained, RampStep, Report, Run, State, judge},
    report,
};

/// Sockets at the peak: patience times ten times the capacity, at both ends of each connection.
const FILES: u64 = 16_384;

/// Runs what was asked for; answers whether every check was met.
pub(crate) fn run(options: &Options) -> Result<bool, Problem> {
    rlimit::increase_nofile_limit(FILES)
        .map_err(|error| Problem::new(format_args!("cannot open {FILES} sockets: {error}")))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Problem::new(format_args!("cannot start the runtime: {error}")))?;
    runtime.block_on(async {
        let database = if options.postgres {
            Database::postgres().await?
        } else {
            Database::sqlite()?
        };
        if options.serve {
            live::serve(&database, options).await?;
            return Ok(true);
        }
        let report = compare(&database, options).await?;
        publish(&report, options)?;
        Ok(report.checks.iter().all(|check| check.pass))
    })
}

fn publish(report: &Report, options: &Options) -> Result<(), Problem> {
    report::print(report).map_err(Problem::new)?;
    if let Some(path) = &options.json {
        report::write_json(path, report)?;
        println!("\nnumbers: {}", path.display());
    }
    if let Some(path) = &options.svg {
        report::write_svg(path, report)?;
        println!("\nchart: {}", path.display());
    }
    let path = options.html.clone().unwrap_or_else(report::default_html);
    report::write_html(&path, report)?;
    println!("\nreport: {}", path.display());
    Ok(())
}

async fn compare(database: &Database, options: &Options) -> Result<Report, Problem> {
    // What cannot be built is said before the first run, not after it.
    drop(app::protected(database, options)?);
    let started = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let port = options.port.unwrap_or(0);
    let cores = report::cores();
    let (users, lasting) = (2 * cores, Duration::from_secs(3));
    let capacity = {
        let (app, _pool) = app::bare(database)?;
        let server = Server::start(app, port).await?;
        app::capacity(server.address, users, lasting).await
    };
    let capacity = capacity.ok_or_else(|| Problem::new("the service answered nothing"))?;
    println!(
        "{} on {cores} cores answers {capacity:.0} requests a second; \
         the ramp goes from 0.5 to 10 times that and back, twice",
        database.name()
    );
    let steps = ramp(capacity, options.run_seconds());

    let (app, pool) = app::bare(database)?;
    let bare = drive("bare", app, port, &steps, options.seed, Watched::Bare(pool)).await?;
    let (app, parts) = app::protected(database, options)?;
    let watched = Watched::Protected(parts);
    let protected = drive("protected", app, port, &steps, options.seed, watched).await?;

    let (verdict, checks) = judge(&bare, &protected, &steps);
    Ok(Report {
        title: "graceful degradation",
        command: command(),
        version: env!("CARGO_PKG_VERSION"),
        started_unix_s: started.as_secs(),
        machine: report::machine(),
        backend: database.name(),
        objective_ms: 1e3 * OBJECTIVE.as_secs_f64(),
        patience_ms: 1e3 * PATIENCE.as_secs_f64(),
        capacity_rps: capacity,
        capacity_measured: format!(
            "{users} users with one request after the other for {} s, on the bare service",
            lasting.as_secs()
        ),
        seed: options.seed,
        quick: options.quick,
        ramp: steps.iter().map(RampStep::from).collect(),
        runs: vec![bare, protected],
        verdict,
        checks,
    })
}

/// What to type to see it again.
fn command() -> String {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let start = "cargo run --release --bin graceful_degradation";
    if arguments.is_empty() {
        start.to_owned()
    } else {
        format!("{start} -- {}", arguments.join(" "))
    }
}

/// What a run can see of its server from inside.
enum Watched {
    Bare(Pool),
    Protected(Protected),
}

impl Watched {
    fn state(&self, at: f64, outstanding: usize) -> State {
        match self {
            Self::Bare(pool) => {
                let pool = pool.state();
                State {
                    at,
                    inflight: Some(outstanding),
                    pool_size: Some(pool.size),
                    pool_pending: Some(pool.pending),
                    ..State::default()
                }
            }
            Self::Protected(parts) => {
                let (limiter, pool) = (parts.limiter.snapshot(), parts.pool.state());
                State {
                    at,
                    inflight: Some(limiter.inflight()),
                    limit: Some(limiter.limit()),
                    queued: Some(limiter.queued()),
                    pool_size: Some(pool.size),
                    pool_target: pool.target,
                    pool_pending: Some(pool.pending),
                    pool_wait_p95_ms: pool.wait_p95_ms,
                }
            }
        }
    }

    fn decisions(&self, start: Instant) -> Vec<Explained> {
        match self {
            Self::Bare(_) => Vec::new(),
            Self::Protected(parts) => decisions(parts, start),
        }
    }
}

/// Everything that limiter and pool decided, in order, in seconds since `start`.
pub(crate) fn decisions(parts: &Protected, start: Instant) -> Vec<Explained> {
    let t = |at: Instant| at.saturating_duration_since(start).as_secs_f64();
    let limits = parts.limiter.history().into_iter().map(|change| Explained {
        t: t(change.at),
        source: "limit",
        text: change.to_string(),
    });
    let resizes = parts
        .pool
        .decisions()
        .into_iter()
        .map(|decision| Explained {
            t: t(decision.at()),
            source: "pool",
            text: decision.to_string(),
        });
    let mut all: Vec<_> = limits.chain(resizes).collect();
    all.sort_by(|a, b| a.t.total_cmp(&b.t));
    all
}

async fn drive(
    name: &'static str,
    app: Router,
    port: u16,
    steps: &[Step],
    seed: u64,
    watched: Watched,
) -> Result<Run, Problem> {
    let server = Server::start(app, port).await?;
    let lasts = steps.last().map_or(0.0, |step| step.start + step.lasts);
    let start = Instant::now();
    let generator = Generator::start(server.address, steps.to_vec(), seed);
    let bar = progress(name, lasts);
    let mut states = Vec::new();
    let mut ticks = interval(Duration::from_millis(250));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let now = start.elapsed().as_secs_f64();
        if now >= lasts {
            break;
        }
        let state = watched.state(now, generator.outstanding());
        bar.set_position(now as u64);
        bar.set_message(describe(&state, steps, now));
        states.push(state);
    }
    bar.finish_and_clear();
    let records = generator.finish().await;
    let decisions = watched.decisions(start);
    Ok(Run::new(name, steps, &records, &states, decisions))
}

fn progress(name: &'static str, lasts: f64) -> ProgressBar {
    let bar = ProgressBar::new(lasts.ceil() as u64);
    let style = ProgressStyle::with_template("{prefix:>9} {wide_bar} {pos:>2}/{len} s  {msg}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.set_prefix(name);
    bar
}

fn describe(state: &State, steps: &[Step], now: f64) -> String {
    let load = steps
        .iter()
        .rev()
        .find(|step| step.start <= now)
        .map_or(0.0, |s| s.multiplier);
    let inflight = state.inflight.unwrap_or_default();
    match state.limit {
        Some(limit) => format!("{load:>4}x, inflight {inflight:>4} of {limit}"),
        None => format!("{load:>4}x, inflight {inflight:>4}"),
    }
}
