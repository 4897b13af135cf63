//! The main job: two runs of the ramp, and the verdict.

use std::{
    env,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::Router;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    app::{self, Protected, Server},
    busy::CpuTime,
    cli::{Options, Problem},
    database::{Database, Pool},
    live,
    load::{Generator, OBJECTIVE, PATIENCE, Step, ramp},
    measure::{Conditions, Explained, Outcome, RampStep, Report, Run, State, judge},
    report,
};

/// The most sockets that a run asks for.
const FILES: u64 = 16_384;

/// How long the service is saturated, to see what it can do.
const SATURATED: Duration = Duration::from_secs(3);

/// Runs what the command line selects.
pub(crate) fn run(options: &Options) -> Result<Outcome, Problem> {
    let files = rlimit::increase_nofile_limit(FILES)
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
            return Ok(Outcome::Met);
        }
        let html = options.html.clone().unwrap_or_else(report::default_html);
        for path in [Some(&html), options.json.as_ref(), options.svg.as_ref()] {
            path.map_or(Ok(()), |path| report::check_writable(path))?;
        }
        let report = compare(&database, options, files).await?;
        publish(&report, options, &html)?;
        Ok(report.outcome())
    })
}

fn publish(report: &Report, options: &Options, html: &Path) -> Result<(), Problem> {
    report::print(report).map_err(Problem::new)?;
    if let Some(path) = &options.json {
        report::write_json(path, report)?;
        println!("\nnumbers: {}", path.display());
    }
    if let Some(path) = &options.svg {
        report::write_svg(path, report)?;
        println!("\nchart: {}", path.display());
    }
    report::write_html(html, report)?;
    println!("\nreport: {}", html.display());
    Ok(())
}

async fn compare(database: &Database, options: &Options, files: u64) -> Result<Report, Problem> {
    // What cannot be built is reported before the first run, not after it.
    drop(app::protected(database, options)?);
    let started = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let port = options.port.unwrap_or(0);
    let cores = report::cores();
    let whole = 2.0 * options.run_seconds() + 3.0 * SATURATED.as_secs_f64();
    println!(
        "{whole:.0} s in all, from now: {} s to see what the service can do, the ramp bare, again, the ramp \
         protected, again",
        SATURATED.as_secs()
    );
    let before = saturated(database, port).await?;
    check_files(before, files)?;
    println!(
        "{} on {cores} cores answers {before:.0} requests a second; \
         the ramp goes from 0.5 to 10 times that and back, twice",
        database.name()
    );
    let steps = ramp(before, options.run_seconds());
    let spent = database.is_embedded().then(CpuTime::now).flatten();

    let (app, pool) = app::bare(database)?;
    let bare = drive("bare", app, port, &steps, options.seed, Watched::Bare(pool)).await?;
    let between = saturated(database, port).await?;
    let (app, parts) = app::protected(database, options)?;
    let watched = Watched::Protected(parts);
    let protected = drive("protected", app, port, &steps, options.seed, watched).await?;
    let after = saturated(database, port).await?;

    let others = spent.and_then(|spent| Some(spent.others_until(CpuTime::now()?)));
    let conditions = Conditions::new([before, between, after], others, [&bare, &protected]);
    let (verdict, checks) = judge(&bare, &protected, &steps, &conditions);
    Ok(Report {
        title: "graceful degradation",
        command: command(),
        version: env!("CARGO_PKG_VERSION"),
        started_unix_s: started.as_secs(),
        machine: report::machine(),
        backend: database.name(),
        objective_ms: 1e3 * OBJECTIVE.as_secs_f64(),
        patience_ms: 1e3 * PATIENCE.as_secs_f64(),
        capacity_rps: before,
        capacity_measured: format!(
            "{} users with one request after the other for {} s, on the bare service",
            users(),
            SATURATED.as_secs()
        ),
        conditions,
        seed: options.seed,
        quick: options.quick,
        ramp: steps.iter().map(RampStep::from).collect(),
        runs: vec![bare, protected],
        verdict,
        checks,
    })
}

/// Enough to keep every core busy, too few to make a queue that matters.
fn users() -> usize {
    2 * report::cores()
}

/// What the bare service can do on this machine now.
async fn saturated(database: &Database, port: u16) -> Result<f64, Problem> {
    let (app, _pool) = app::bare(database)?;
    let server = Server::start(app, port).await?;
    app::capacity(server.address, users(), SATURATED)
        .await
        .ok_or_else(|| Problem::new("the service answered nothing"))
}

/// Users at the peak stay for as long as they have patience, with a socket at both ends.
fn check_files(capacity: f64, files: u64) -> Result<(), Problem> {
    let sockets = 2.0 * 10.0 * capacity * PATIENCE.as_secs_f64();
    let needed = (sockets.ceil() as u64 + 100).min(FILES);
    if files >= needed {
        return Ok(());
    }
    Err(Problem::new(format_args!(
        "this process may open {files} files, and the peak takes {needed}: raise the limit with \
         `ulimit -n {needed}`"
    )))
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
