use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// How often the canary wants to run.
const EVERY: Duration = Duration::from_millis(10);
/// Timers of the runtime are rounded up to a millisecond.
const ROUNDING: Duration = Duration::from_millis(1);

/// A task that does nothing but run on time, if the runtime lets it.
#[derive(Debug)]
pub(super) struct Canary {
    task: JoinHandle<()>,
    /// How late it was, in all, in ns.
    late: Arc<AtomicU64>,
}

impl Canary {
    pub(super) fn start() -> Self {
        let late = Arc::<AtomicU64>::default();
        let told = Arc::clone(&late);
        let task = tokio::spawn(async move {
            loop {
                let due = Instant::now() + EVERY;
                sleep_until(due).await;
                let lag = due.elapsed().saturating_sub(ROUNDING);
                told.fetch_add(lag.as_nanos() as u64, Relaxed);
            }
        });
        Self { task, late }
    }

    /// The share of `elapsed`, which ends now, in which it was due and did not run.
    pub(super) fn share(&self, elapsed: Duration) -> f64 {
        let late = Duration::from_nanos(self.late.swap(0, Relaxed));
        (late.as_secs_f64() / elapsed.as_secs_f64().max(1e-6)).min(1.0)
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.task.abort();
    }
}
