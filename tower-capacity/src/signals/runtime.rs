use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    runtime::{Handle, RuntimeMetrics},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::brake::Brake;

/// How often the canary wants to run.
const EVERY: Duration = Duration::from_millis(10);
/// Timers of the runtime are rounded up to a millisecond.
const ROUNDING: Duration = Duration::from_millis(1);

/// What a runtime says of its load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Lag,
    Queue,
    Busy,
}

impl What {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Lag => "runtime lag",
            Self::Queue => "runtime queue",
            Self::Busy => "runtime busy",
        }
    }
}

/// What the runtime that it was started on says, and the brakes that listen to it.
#[derive(Debug)]
pub(super) struct Runtime {
    metrics: RuntimeMetrics,
    canary: Canary,
    /// How long the workers had been busy in all, when last read.
    busy: Duration,
    brakes: Vec<(What, Brake)>,
}

impl Runtime {
    pub(super) fn start(whats: &[What]) -> Self {
        let metrics = Handle::current().metrics();
        Self {
            busy: busy(&metrics),
            canary: Canary::start(),
            brakes: whats
                .iter()
                .map(|&what| (what, Brake::new(0.8, 0.6)))
                .collect(),
            metrics,
        }
    }

    /// The ceilings of the limit after `elapsed`, which ends now, and what they come from.
    pub(super) fn ceilings(
        &mut self,
        elapsed: Duration,
        limit: usize,
    ) -> impl Iterator<Item = (usize, &'static str)> + '_ {
        let seconds = elapsed.as_secs_f64().max(1e-6);
        let counts = &self.canary.counts;
        let late = Duration::from_nanos(counts.late.swap(0, Relaxed));
        let runs = counts.runs.swap(0, Relaxed).max(1);
        let queue = counts.queued.swap(0, Relaxed) as f64 / runs as f64;
        let before = std::mem::replace(&mut self.busy, busy(&self.metrics));
        let worked = self.busy.saturating_sub(before).as_secs_f64();
        let workers = self.metrics.num_workers().max(1) as f64;
        self.brakes.iter_mut().map(move |(what, brake)| {
            let share = match what {
                What::Lag => late.as_secs_f64() / seconds,
                What::Queue => queue,
                What::Busy => worked / seconds / workers,
            };
            (brake.on_interval(share.min(1.0), limit), what.name())
        })
    }
}

fn busy(metrics: &RuntimeMetrics) -> Duration {
    let workers = 0..metrics.num_workers();
    workers
        .map(|worker| metrics.worker_total_busy_duration(worker))
        .sum()
}

/// A task that does nothing but run on time, if the runtime lets it.
#[derive(Debug)]
struct Canary {
    task: JoinHandle<()>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// How late the canary was, in all, in ns.
    late: AtomicU64,
    runs: AtomicU64,
    /// Runs that found more tasks in the queue of the runtime than it has workers.
    queued: AtomicU64,
}

impl Canary {
    fn start() -> Self {
        let counts = Arc::<Counts>::default();
        let found = Arc::clone(&counts);
        let task = tokio::spawn(async move {
            let runtime = Handle::current().metrics();
            loop {
                let due = Instant::now() + EVERY;
                sleep_until(due).await;
                let lag = due.elapsed().saturating_sub(ROUNDING);
                found.late.fetch_add(lag.as_nanos() as u64, Relaxed);
                found.runs.fetch_add(1, Relaxed);
                let is_deep = runtime.global_queue_depth() > runtime.num_workers();
                found.queued.fetch_add(u64::from(is_deep), Relaxed);
            }
        });
        Self { task, counts }
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.task.abort();
    }
}
