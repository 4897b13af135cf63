//! Plays a scenario on the real servers, with one policy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use deadpool::managed::{Object, PoolError, Timeouts};
use overload_benches::pools::{PhaseReport, Report};
use pool_autotune::{Autotuned, Checkout, Mode};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, Exp, Zipf};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_postgres::Client;

use crate::Error;
use crate::database::{Database, Dialer, Pool, ROWS};
use crate::policy::{Policy, START, Seeing, default_size, follow, still};
use crate::scenarios::{Class, MAX, Phase, Rate, Scenario, Trouble};

/// How long a caller stands in line.
const PATIENCE: Duration = Duration::from_secs(1);
/// A query that takes as long is given up, and its connection put back.
const QUERY: Duration = Duration::from_secs(3);
/// A longer wait is slow, as in the shipped configuration.
const SLOW: Duration = Duration::from_millis(20);
/// Later than this, a caller comes too late.
const LATE: Duration = Duration::from_millis(10);
/// Goodput is counted in slots of as many seconds, to see when it settles.
const SLOT: f64 = 0.5;
const BLACK_HOLE: Duration = Duration::from_secs(1);
const RESTART: Duration = Duration::from_secs(2);

/// How long things last, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// The unit of a phase.
    pub(crate) unit: f64,
    /// Before a steady phase is judged, for policies that move.
    pub(crate) learning: f64,
    /// Before any phase is judged, for connections to open.
    pub(crate) connecting: f64,
}

/// A run.
pub(crate) struct Played {
    pub(crate) policy: Policy,
    pub(crate) report: Report,
    /// Errors that callers saw, other than having waited for too long.
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    /// Callers that came more than 10 ms late, from 0 to 1: the machine could not drive the load.
    pub(crate) late: f64,
    /// Decisions, or the report, of the tuner.
    pub(crate) said: Vec<String>,
}

/// One caller.
#[derive(Clone, Debug)]
struct Call {
    /// Seconds after the start.
    at: f64,
    phase: usize,
    judged: bool,
    class: Class,
    row: usize,
    /// When it gives up, if it does.
    cancels_after: Option<Duration>,
}

/// What became of a caller.
struct Answer {
    call: Call,
    /// Seconds from when it was to come; none if it was not served.
    took: Option<f64>,
    late: bool,
    error: Option<String>,
}

/// The same callers for every policy, however long it learns before it is judged.
fn calls(scenario: &Scenario, lengths: &[(f64, f64)], capacity: f64, seed: u64) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut start = 0.0;
    for (index, phase) in scenario.phases.iter().enumerate() {
        let (warm_up, lasts) = lengths[index];
        let (begins, ends) = (start + warm_up, start + lasts);
        let Some(rate) = per_second(phase.rate, capacity) else {
            continue;
        };
        let mut come = |from: f64, until: f64, at_once: usize, seed: u64| {
            let mut random = SmallRng::seed_from_u64(seed);
            let gaps = Exp::new(rate).expect("a positive rate");
            let times = std::iter::repeat_n(from, at_once);
            let mut at = from;
            let others = std::iter::repeat_with(|| gaps.sample(&mut random));
            let others = others.map(|gap| {
                at += gap;
                at
            });
            let times: Vec<f64> = times.chain(others.take_while(|&at| at < until)).collect();
            let rows = rows();
            calls.extend(times.into_iter().map(|at| {
                let class = choose(phase.mix, &mut random);
                let cancels = random.random::<f64>() < class.cancels;
                let patience = Duration::from_micros(random.random_range(0..20_000));
                Call {
                    at,
                    phase: index,
                    judged: from == begins && !cancels,
                    class,
                    row: rows.sample(&mut random) as usize,
                    cancels_after: cancels.then_some(patience),
                }
            }));
        };
        let seed = seed.wrapping_mul(1_000) + 2 * index as u64;
        if warm_up > 0.0 {
            come(start, begins, 0, seed + 1);
        }
        come(begins, ends, phase.at_once, seed);
        start = ends;
    }
    calls
}

fn rows() -> Zipf<f64> {
    Zipf::new(ROWS as f64, 1.1).expect("a hundred rows")
}

/// None where callers come back when they are served, and not before.
fn per_second(rate: Rate, capacity: f64) -> Option<f64> {
    match rate {
        Rate::Of(rate) => Some(rate),
        Rate::OfCapacity(part) => Some(part * capacity),
        Rate::Closed(_) => None,
    }
}

fn choose(mix: &[Class], random: &mut SmallRng) -> Class {
    let total: f64 = mix.iter().map(|class| class.weight).sum();
    let mut pick = random.random::<f64>() * total;
    for class in mix {
        pick -= class.weight;
        if pick < 0.0 {
            return *class;
        }
    }
    mix[0]
}

/// Where callers get their connections.
#[derive(Clone)]
enum Source {
    Gated(Autotuned<Pool>),
    Raw(Pool),
}

enum Taken {
    Gated(Checkout<Pool>),
    Raw(Object<Dialer>),
}

impl Taken {
    fn client(&self) -> &Client {
        match self {
            Self::Gated(checkout) => checkout,
            Self::Raw(object) => object,
        }
    }
}

enum Failure {
    /// It stood in line for too long.
    GaveUp,
    Error(String),
}

impl Source {
    fn new(
        database: &Database,
        scenario: &Scenario,
        policy: Policy,
    ) -> Result<(Self, Arc<AtomicU64>), Error> {
        let dialer = database.dialer(scenario.dial)?;
        let dials = Arc::clone(&dialer.dials);
        let keeps_default = matches!(policy, Policy::Recommend | Policy::Raw);
        let max_size = if keeps_default { default_size() } else { MAX };
        let inner = Pool::builder(dialer)
            .max_size(max_size)
            .runtime(deadpool::Runtime::Tokio1)
            .build()?;
        let gated = |inner| Autotuned::builder(inner).wait_timeout(PATIENCE);
        let source = match (policy, policy.rule()) {
            (Policy::Raw, _) => Self::Raw(inner),
            (Policy::Recommend, _) => Self::Gated(gated(inner).mode(Mode::Recommend).build()?),
            (_, None) => Self::Gated(gated(inner).bounds(2..=MAX).build()?),
            (_, Some(_)) => {
                let start = policy.fixed().unwrap_or(START);
                Self::Gated(gated(inner).bounds(start..=start).tuner(still()).build()?)
            }
        };
        Ok((source, dials))
    }

    async fn take(&self) -> Result<Taken, Failure> {
        match self {
            Self::Gated(pool) => match pool.get().await {
                Ok(checkout) => Ok(Taken::Gated(checkout)),
                Err(error) if error.is_overload() => Err(Failure::GaveUp),
                Err(error) => Err(Failure::Error(told(&error))),
            },
            Self::Raw(pool) => {
                let timeouts = Timeouts {
                    wait: Some(PATIENCE),
                    ..Timeouts::new()
                };
                match pool.timeout_get(&timeouts).await {
                    Ok(object) => Ok(Taken::Raw(object)),
                    Err(PoolError::Timeout(_)) => Err(Failure::GaveUp),
                    Err(error) => Err(Failure::Error(told(&error))),
                }
            }
        }
    }

    /// As an application does that was told to.
    fn note(&self, error: &tokio_postgres::Error) {
        if let Self::Gated(pool) = self {
            pool.note_error(error);
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Gated(pool) => pool.snapshot().size(),
            Self::Raw(pool) => pool.status().size,
        }
    }
}

/// An error with what caused it.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

async fn serve(source: &Source, call: &Call, seeing: &Seeing) -> Result<(), Failure> {
    let mut taken = Vec::with_capacity(call.class.takes);
    for _ in 0..call.class.takes {
        let asked = Instant::now();
        let got = source.take().await;
        if asked.elapsed() > SLOW {
            seeing.slow_waits.fetch_add(1, Relaxed);
        }
        if matches!(got, Err(Failure::GaveUp)) {
            seeing.timeouts.fetch_add(1, Relaxed);
        }
        taken.push(got?);
    }
    // With all in hand, as a transaction that needs a second one does.
    let last = &taken[taken.len() - 1];
    let statements = call.class.statements;
    let executed = if statements.contains("$ROW") {
        let statements = statements.replace("$ROW", &call.row.to_string());
        timeout(QUERY, last.client().batch_execute(&statements)).await
    } else {
        timeout(QUERY, last.client().batch_execute(statements)).await
    };
    match executed {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            source.note(&error);
            return Err(Failure::Error(told(&error)));
        }
        Err(_) => return Err(Failure::Error(format!("no answer within {QUERY:?}"))),
    }
    if call.class.holds_ms > 0 {
        sleep(Duration::from_millis(call.class.holds_ms)).await;
    }
    seeing.done.fetch_add(1, Relaxed);
    Ok(())
}

async fn answer(source: Source, call: Call, start: Instant, seeing: Arc<Seeing>) -> Answer {
    let intended = start + Duration::from_secs_f64(call.at);
    let late = intended.elapsed() > LATE;
    let served = match call.cancels_after {
        Some(patience) => timeout_at(intended + patience, serve(&source, &call, &seeing))
            .await
            .unwrap_or(Err(Failure::GaveUp)),
        None => serve(&source, &call, &seeing).await,
    };
    let took = served.is_ok().then(|| intended.elapsed().as_secs_f64());
    let error = match served {
        Err(Failure::Error(error)) => Some(error),
        _ => None,
    };
    Answer {
        call,
        took,
        late,
        error,
    }
}

/// Plays `scenario` with `policy`.
pub(crate) async fn play(
    database: &mut Database,
    scenario: &Scenario,
    policy: Policy,
    times: Times,
    capacity: f64,
    seed: u64,
) -> Result<Played, Error> {
    if scenario
        .phases
        .iter()
        .any(|phase| phase.trouble == Trouble::Failover)
    {
        database.prepare_failover().await?;
    }
    database.reset().await?;
    let lengths: Vec<(f64, f64)> = scenario
        .phases
        .iter()
        .enumerate()
        .map(|(index, phase)| {
            let warm_up = match policy.fixed() {
                _ if index > 0 => 0.0,
                None if !scenario.is_eventful() => times.learning,
                // As full a line as those have that learned for longer.
                Some(_) if matches!(phase.rate, Rate::OfCapacity(part) if part > 1.0) => {
                    times.connecting + 4.0 * PATIENCE.as_secs_f64()
                }
                _ => times.connecting,
            };
            (warm_up, warm_up + phase.lasts * times.unit)
        })
        .collect();
    let calls = calls(scenario, &lengths, capacity, seed);
    let (source, dials) = Source::new(database, scenario, policy)?;
    let seeing = Arc::new(Seeing::default());
    let follower = match (&source, policy.rule()) {
        (Source::Gated(pool), Some(rule)) if policy.fixed().is_none() => {
            let pool = pool.clone();
            Some(tokio::spawn(follow(rule, pool, MAX, Arc::clone(&seeing))))
        }
        _ => None,
    };

    let start = Instant::now();
    let mut phases = new_reports(scenario, &lengths);
    let watch = tokio::spawn(watch(source.clone(), start, lengths.clone()));
    let driver = match scenario.phases[0].rate {
        Rate::Closed(tasks) => {
            let phase = (tasks, scenario.phases[0].mix, lengths[0]);
            tokio::spawn(drive_in_a_loop(
                source.clone(),
                phase,
                start,
                Arc::clone(&seeing),
                seed,
            ))
        }
        _ => tokio::spawn(drive(source.clone(), calls, start, Arc::clone(&seeing))),
    };
    let mut begins = start;
    let mut kept = Vec::new();
    for (phase, &(_, lasts)) in scenario.phases.iter().zip(&lengths) {
        let ends = begins + Duration::from_secs_f64(lasts);
        sleep_until(begins).await;
        trouble(database, phase, &source, policy, ends, &mut kept).await?;
        sleep_until(ends).await;
        begins = ends;
    }
    let (connections, peak) = watch.await?;
    let moves = match (&source, policy) {
        (Source::Gated(pool), Policy::OURS) => pool
            .decisions()
            .iter()
            .filter(|decision| decision.is_resize())
            .count(),
        _ => seeing.moves.load(Relaxed) as usize,
    };
    // While there is traffic to report on.
    let said = match (&source, policy) {
        (Source::Gated(pool), Policy::Recommend) => vec![pool.report().to_string()],
        (Source::Gated(pool), Policy::OURS) => pool
            .decisions()
            .iter()
            .map(|decision| {
                format!(
                    "{:>6.2} s  {decision}",
                    (decision.at() - start).as_secs_f64()
                )
            })
            .collect(),
        _ => Vec::new(),
    };
    let answers = driver.await?;
    if let Some(follower) = follower {
        follower.abort();
    }
    drop(kept);

    let (mut errors, mut first_error, mut late) = (0, None, 0);
    let all = answers.len();
    for answer in answers {
        late += usize::from(answer.late);
        if let Some(error) = answer.error {
            errors += 1;
            first_error.get_or_insert(error);
        }
        count(&mut phases, &lengths, &answer.call, answer.took);
    }
    for (phase, connections) in phases.iter_mut().zip(connections) {
        phase.connection_seconds = connections * phase.seconds;
    }
    Ok(Played {
        policy,
        report: Report {
            phases,
            resizes: moves,
            dials: dials.load(Relaxed),
            over_limit: u64::from(peak > policy.fixed().unwrap_or(MAX)),
            peak,
            decisions: Vec::new(),
        },
        errors,
        first_error,
        late: late as f64 / all.max(1) as f64,
        said,
    })
}

fn new_reports(scenario: &Scenario, lengths: &[(f64, f64)]) -> Vec<PhaseReport> {
    let report = |(_, &(warm_up, lasts)): (&Phase, &(f64, f64))| PhaseReport {
        seconds: lasts - warm_up,
        by_slot: vec![0; ((lasts - warm_up) / SLOT).ceil() as usize],
        slot: SLOT,
        ..PhaseReport::default()
    };
    scenario.phases.iter().zip(lengths).map(report).collect()
}

/// Counts a caller where it came.
fn count(phases: &mut [PhaseReport], lengths: &[(f64, f64)], call: &Call, took: Option<f64>) {
    if !call.judged {
        return;
    }
    let before: f64 = lengths[..call.phase].iter().map(|(_, lasts)| lasts).sum();
    let phase = &mut phases[call.phase];
    phase.offered += 1;
    phase
        .times
        .push(took.unwrap_or(PATIENCE.as_secs_f64()) as f32);
    if took.is_some() {
        phase.good += 1;
        let slot = (call.at - before - lengths[call.phase].0) / SLOT;
        if let Some(count) = phase.by_slot.get_mut(slot as usize) {
            *count += 1;
        }
    }
}

/// Lets the callers come when they come, whatever becomes of those before them.
async fn drive(
    source: Source,
    calls: Vec<Call>,
    start: Instant,
    seeing: Arc<Seeing>,
) -> Vec<Answer> {
    let mut under_way = JoinSet::new();
    let mut answers = Vec::with_capacity(calls.len());
    for call in calls {
        sleep_until(start + Duration::from_secs_f64(call.at)).await;
        under_way.spawn(answer(source.clone(), call, start, Arc::clone(&seeing)));
        while let Some(Ok(answer)) = under_way.try_join_next() {
            answers.push(answer);
        }
    }
    while let Some(joined) = under_way.join_next().await {
        answers.extend(joined);
    }
    answers
}

/// As many callers, each of which comes back when it is served.
async fn drive_in_a_loop(
    source: Source,
    (tasks, mix, (warm_up, lasts)): (usize, &'static [Class], (f64, f64)),
    start: Instant,
    seeing: Arc<Seeing>,
    seed: u64,
) -> Vec<Answer> {
    let mut under_way = JoinSet::new();
    for task in 0..tasks {
        let (source, seeing) = (source.clone(), Arc::clone(&seeing));
        under_way.spawn(async move {
            let mut random = SmallRng::seed_from_u64(seed.wrapping_mul(1_000) + task as u64);
            let rows = rows();
            let mut answers = Vec::new();
            loop {
                let at = start.elapsed().as_secs_f64();
                if at >= lasts {
                    return answers;
                }
                let call = Call {
                    at,
                    phase: 0,
                    judged: at >= warm_up,
                    class: choose(mix, &mut random),
                    row: rows.sample(&mut random) as usize,
                    cancels_after: None,
                };
                answers.push(answer(source.clone(), call, start, Arc::clone(&seeing)).await);
            }
        });
    }
    under_way.join_all().await.into_iter().flatten().collect()
}

/// Mean connections of each phase while it is judged, and the most at any look.
async fn watch(source: Source, start: Instant, lengths: Vec<(f64, f64)>) -> (Vec<f64>, usize) {
    let mut means = Vec::new();
    let mut peak = 0;
    let mut begins = start;
    for (warm_up, lasts) in lengths {
        sleep_until(begins + Duration::from_secs_f64(warm_up)).await;
        begins += Duration::from_secs_f64(lasts);
        let (mut sum, mut looks) = (0, 0);
        while Instant::now() < begins {
            let size = source.size();
            (sum, looks, peak) = (sum + size, looks + 1, peak.max(size));
            sleep(Duration::from_millis(25)).await;
        }
        means.push(sum as f64 / f64::from(looks.max(1)));
    }
    (means, peak)
}

/// Makes go wrong what does in this phase. What it takes to the end is left in `kept`.
async fn trouble(
    database: &mut Database,
    phase: &Phase,
    source: &Source,
    policy: Policy,
    ends: Instant,
    kept: &mut Vec<Taken>,
) -> Result<(), Error> {
    match phase.trouble {
        Trouble::Nothing => {}
        Trouble::Hog(sessions) => {
            database.hog(sessions, ends - Instant::now()).await?;
        }
        Trouble::Restart => database.restart(RESTART).await?,
        Trouble::Failover => database.fail_over().await?,
        Trouble::BlackHole => database.proxy().black_hole(BLACK_HOLE).await,
        Trouble::Leak => kept.extend(source.take().await.ok()),
        Trouble::Resizes => {
            let Source::Gated(pool) = source else {
                return Ok(());
            };
            // The others keep the size that they are.
            if policy != Policy::OURS {
                return Ok(());
            }
            for size in [32, 4].into_iter().cycle() {
                pool.set_bounds(size..=size)?;
                sleep(Duration::from_millis(50)).await;
                if Instant::now() >= ends {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Transactions a second that this machine can do of a mix, at the best of three sizes.
pub(crate) async fn capacity(
    database: &mut Database,
    scenario: &Scenario,
    mix: &'static [Class],
    each: Duration,
) -> Result<f64, Error> {
    let mut most = 0.0_f64;
    for size in [2, 8, 32] {
        database.reset().await?;
        let (source, _) = Source::new(database, scenario, Policy::Static(size))?;
        let seeing = Arc::new(Seeing::default());
        let mut tasks = JoinSet::new();
        let warm = Instant::now() + each / 2;
        let end = warm + each;
        for task in 0..size {
            let (source, seeing) = (source.clone(), Arc::clone(&seeing));
            tasks.spawn(async move {
                let mut random = SmallRng::seed_from_u64(task as u64);
                let rows = rows();
                while Instant::now() < end {
                    let call = Call {
                        at: 0.0,
                        phase: 0,
                        judged: false,
                        class: choose(mix, &mut random),
                        row: rows.sample(&mut random) as usize,
                        cancels_after: None,
                    };
                    if let Err(Failure::Error(error)) = serve(&source, &call, &seeing).await {
                        return Err(error);
                    }
                }
                Ok(())
            });
        }
        sleep_until(warm).await;
        let before = seeing.done.load(Relaxed);
        while let Some(joined) = tasks.join_next().await {
            joined??;
        }
        let done = seeing.done.load(Relaxed) - before;
        most = most.max(done as f64 / each.as_secs_f64());
    }
    Ok(most)
}
