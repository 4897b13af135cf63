//! One process: requests at fixed moments to one key.

use std::{
    fmt::{self, Write as _},
    future::Future,
    str::FromStr,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use rate_limit::{
    Limiter, Quota, SECOND,
    fleet::{FleetBackend, FleetLimiter, Lease},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::Error;

/// How a process knows whether it may.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Scheme {
    /// Redis is asked for every request.
    Exact,
    /// Cells are drawn ahead.
    Lease,
    /// Cells are charged every so many milliseconds, after they were used.
    PostPaid(u64),
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("exact"),
            Self::Lease => f.write_str("lease"),
            Self::PostPaid(millis) => write!(f, "post-paid-{millis}"),
        }
    }
}

impl FromStr for Scheme {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("post-paid-").map(str::parse) {
            Some(Ok(millis)) => Ok(Self::PostPaid(millis)),
            None if text == "exact" => Ok(Self::Exact),
            None if text == "lease" => Ok(Self::Lease),
            _ => Err("expected exact, lease or post-paid-MILLIS".to_owned()),
        }
    }
}

/// What a process is to do.
#[derive(Args, Clone, Debug)]
pub(crate) struct Task {
    #[arg(long)]
    pub(crate) redis: String,
    #[arg(long)]
    pub(crate) scheme: Scheme,
    /// Of the fleet, a second.
    #[arg(long)]
    pub(crate) quota: u64,
    #[arg(long)]
    pub(crate) burst: u64,
    #[arg(long)]
    pub(crate) nodes: u32,
    /// Of this process, a second.
    #[arg(long)]
    pub(crate) offered: u64,
    #[arg(long)]
    pub(crate) seconds: u64,
    /// When to start, in milliseconds since 1970.
    #[arg(long)]
    pub(crate) start: u64,
}

/// What it has seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Admitted, by 10 ms since the start.
    pub(crate) bins: Vec<u64>,
    pub(crate) offered: u64,
    pub(crate) calls: u64,
    /// Added by each decision, in nanoseconds.
    pub(crate) added: Vec<u64>,
}

pub(crate) const BIN: u64 = 10;

impl Seen {
    fn note(&mut self, start: u64, took: Duration, admitted: bool) {
        self.offered += 1;
        self.added.push(took.as_nanos() as u64);
        if admitted {
            let bin = (now_millis().saturating_sub(start) / BIN) as usize;
            if self.bins.len() <= bin {
                self.bins.resize(bin + 1, 0);
            }
            self.bins[bin] += 1;
        }
    }

    /// A line for each of its parts, as [`parse`](Self::parse) reads them.
    fn print(&self) {
        let list = |numbers: &[u64]| {
            numbers.iter().fold(String::new(), |mut text, number| {
                let _ = write!(text, "{number} ");
                text
            })
        };
        println!("{}\n{}", self.offered, self.calls);
        println!("{}\n{}", list(&self.bins), list(&self.added));
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let list = |line: &str| {
            let numbers = line.split_whitespace().map(str::parse);
            numbers.collect::<Result<Vec<u64>, _>>().ok()
        };
        let mut lines = text.lines();
        Some(Self {
            offered: lines.next()?.parse().ok()?,
            calls: lines.next()?.parse().ok()?,
            bins: list(lines.next()?)?,
            added: list(lines.next()?)?,
        })
    }
}

pub(crate) fn run(task: &Task) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let lease = match task.scheme {
            Scheme::Lease => Lease::adaptive(),
            Scheme::Exact | Scheme::PostPaid(_) => Lease::none(),
        };
        // Patient: this is about what is admitted, on a machine that may be busy.
        let backend = FleetBackend::new(&task.redis, "bench")?
            .lease(lease)
            .nodes(task.nodes)
            .deadline(Duration::from_secs(1));
        let quota = Quota::count(task.quota).per(SECOND).burst(task.burst);
        let limiter = Limiter::builder().quota(quota).build_on(backend)?;
        limiter.peek("warm").await;
        let calls = limiter.calls();
        let wait = task.start.saturating_sub(now_millis());
        sleep(Duration::from_millis(wait)).await;
        if let Scheme::PostPaid(millis) = task.scheme {
            post_paid(task, millis).await?.print();
            return Ok(());
        }
        let mut seen = asked(task, &limiter).await?;
        seen.calls = limiter.calls() - calls;
        seen.print();
        limiter.shutdown().await;
        Ok(())
    })
}

/// Every request asks the limiter.
async fn asked(task: &Task, limiter: &FleetLimiter) -> Result<Seen, Error> {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let start = task.start;
    let ask = |sent: Instant| {
        let limiter = limiter.clone();
        let mut check = Box::pin(async move { limiter.check("key").await.is_ok() });
        // Most are decided at once.
        if let Poll::Ready(admitted) = check.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        {
            if let Ok(mut seen) = seen.lock() {
                seen.note(start, sent.elapsed(), admitted);
            }
            return;
        }
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            let admitted = check.await;
            if let Ok(mut seen) = seen.lock() {
                seen.note(start, sent.elapsed(), admitted);
            }
        });
    };
    send(task, ask).await;
    // What is on its way is decided within the deadline.
    sleep(Duration::from_millis(100)).await;
    let seen = seen.lock().map_err(|_| "a request panicked")?;
    Ok(seen.clone())
}

/// What gateways do that count locally: between two syncs a process admits what was left at the
/// last one and what comes back since, and charges what it has used at the next. The charge is never
/// refused, and never forgotten either.
async fn post_paid(task: &Task, millis: u64) -> Result<Seen, Error> {
    struct View {
        left: f64,
        at: Instant,
        used: u64,
        calls: u64,
        seen: Seen,
    }
    let view = Arc::new(Mutex::new(View {
        left: task.burst as f64,
        at: Instant::now(),
        used: 0,
        calls: 0,
        seen: Seen::default(),
    }));
    let client = redis::Client::open(task.redis.as_str())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    let (quota, burst) = (task.quota, task.burst as f64);
    let sync = {
        let view = Arc::clone(&view);
        async move {
            let mut tick = interval(Duration::from_millis(millis));
            loop {
                tick.tick().await;
                let used = view
                    .lock()
                    .map_or(0, |mut view| std::mem::take(&mut view.used));
                let mut charge = redis::cmd("EVAL");
                charge
                    .arg(CHARGE)
                    .arg(1)
                    .arg("post-paid")
                    .arg(quota)
                    .arg(used);
                let Ok(level) = charge.query_async::<f64>(&mut redis).await else {
                    continue;
                };
                if let Ok(mut view) = view.lock() {
                    view.left = burst - level - view.used as f64;
                    (view.at, view.calls) = (Instant::now(), view.calls + 1);
                }
            }
        }
    };
    let sync = tokio::spawn(sync);
    send(task, |sent: Instant| {
        let Ok(mut view) = view.lock() else {
            return;
        };
        let left = view.left + quota as f64 * view.at.elapsed().as_secs_f64();
        let admitted = left.min(burst) >= 1.0;
        if admitted {
            (view.left, view.used) = (view.left - 1.0, view.used + 1);
        }
        view.seen.note(task.start, sent.elapsed(), admitted);
    })
    .await;
    sync.abort();
    let view = view.lock().map_err(|_| "a request panicked")?;
    Ok(Seen {
        calls: view.calls,
        ..view.seen.clone()
    })
}

/// Sends requests at their moments, whether or not earlier ones are decided.
async fn send(task: &Task, mut ask: impl FnMut(Instant)) {
    let start = Instant::now();
    let end = Duration::from_secs(task.seconds);
    let mut tick = interval(Duration::from_millis(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut sent = 0;
    while start.elapsed() < end {
        tick.tick().await;
        let due = (start.elapsed().as_secs_f64() * task.offered as f64) as u64;
        while sent < due {
            ask(Instant::now());
            sent += 1;
        }
    }
}

/// Charges what was used to a level that drains by so many a second, and returns it.
const CHARGE: &str = "
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local old = redis.call('HMGET', KEYS[1], 'level', 'at')
local level = math.max(0, (old[1] or 0) + ARGV[2] - (now - (old[2] or now)) * ARGV[1])
redis.call('HSET', KEYS[1], 'level', string.format('%.6f', level), 'at', string.format('%.6f', now))
return string.format('%.6f', level)";

fn now_millis() -> u64 {
    // One clock for all processes. It does not step while a bench runs.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// A little later than now, for all processes to start at.
pub(crate) fn soon() -> u64 {
    now_millis() + 1_500
}
