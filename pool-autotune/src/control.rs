//! What the driver of the tuner changes, and snapshots read.

#[cfg(feature = "otel")]
use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::Bounds;
use crate::ages::AgingState;
#[cfg(feature = "json")]
use crate::events;
use crate::holders::Held;
use crate::stats::{Waits, WindowReader};
use crate::tuner::{Decision, DialBudget, NestedAcquire, PoolWindow, Reason, Recording, Tuner};
#[cfg(feature = "json")]
use crate::tuner::{Given, LogWriter};

/// How often a window is closed: the fast path acts within this time.
pub(crate) const TICK: Duration = Duration::from_millis(250);

/// What the driver of the tuner changes, and snapshots read.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) tuner: Tuner,
    pub(crate) dial: DialBudget,
    pub(crate) decisions: VecDeque<Decision>,
    pub(crate) recording: Recording,
    pub(crate) reader: WindowReader,
    pub(crate) next_window: Instant,
    /// Time integral of the limit since the last window.
    pub(crate) capacity: Duration,
    pub(crate) limit_since: Instant,
    pub(crate) recent: Recent,
    /// The last time that all connections were held by tasks waiting for another, and none came
    /// back.
    pub(crate) nested: Option<(Instant, NestedAcquire)>,
    /// All were held by such tasks, when so many had come back. One task that checks out several at
    /// once looks like that, too, until one of them is returned.
    pub(crate) suspected: Option<(NestedAcquire, u64)>,
    /// Connections opened before are from before the last failover.
    pub(crate) generation_since: Instant,
    pub(crate) failed_over: Option<Instant>,
    /// When the last connection was told to be lost.
    pub(crate) lost: Option<Instant>,
    /// The task that drives the pool, which of several it is, and when it last did.
    pub(crate) driver: Option<AbortHandle>,
    pub(crate) turn: u64,
    pub(crate) stepped: Instant,
    /// Since when checkouts wait for connections that are allowed and do not open.
    pub(crate) opening_since: Option<Instant>,
    pub(crate) app: AppClock,
    /// Whether the line is shed from, because more connections would not serve it faster.
    pub(crate) sheds: bool,
    /// The last usual use time that was seen.
    pub(crate) usual: Option<Duration>,
    pub(crate) held_after: Duration,
    /// Checkouts without a connection: it did not open.
    pub(crate) hanging: usize,
    /// Connections held for far longer, at the last look.
    pub(crate) held: Held,
    pub(crate) aging: AgingState,
    /// Connections that stay open above the target, since they were needed lately.
    pub(crate) kept: usize,
    /// What was set, whatever part of it the budget of a fleet allows.
    pub(crate) bounds: Bounds,
    /// An experiment of the fleet runs.
    pub(crate) on_trial: bool,
    /// The most that was needed at once lately, and in the time before.
    pub(crate) needed: (usize, usize),
    pub(crate) needed_since: Instant,
    /// What the last dial failed with, until one succeeds.
    pub(crate) dial_error: Option<Arc<str>>,
    /// What had come back when the last dial failed.
    pub(crate) completed_then: u64,
    /// Connections to open although no checkout waits: those that would have had no patience for it.
    pub(crate) ahead: usize,
    /// Changes of the target since the start, by direction and reason.
    #[cfg(feature = "otel")]
    pub(crate) resizes: BTreeMap<(&'static str, &'static str), u64>,
    #[cfg(feature = "json")]
    log: Option<LogWriter>,
}

impl Control {
    pub(crate) fn new(tuner: Tuner, dial: DialBudget, reader: WindowReader, now: Instant) -> Self {
        Self {
            recording: Recording::new(tuner.clone()),
            bounds: tuner.bounds(),
            on_trial: false,
            needed: (0, 0),
            needed_since: now,
            tuner,
            dial,
            decisions: VecDeque::new(),
            reader,
            next_window: now + TICK,
            capacity: Duration::ZERO,
            limit_since: now,
            recent: Recent::default(),
            nested: None,
            suspected: None,
            generation_since: now,
            failed_over: None,
            lost: None,
            driver: None,
            turn: 0,
            stepped: now,
            opening_since: None,
            app: AppClock::start(),
            sheds: false,
            usual: None,
            held_after: Duration::MAX,
            hanging: 0,
            held: Held::default(),
            aging: AgingState::new(now),
            kept: 0,
            dial_error: None,
            completed_then: 0,
            ahead: 0,
            #[cfg(feature = "otel")]
            resizes: BTreeMap::new(),
            #[cfg(feature = "json")]
            log: None,
        }
    }

    pub(crate) fn suspect(&mut self, nested: NestedAcquire, completed: u64) {
        match self.suspected {
            Some((_, before)) if before == completed => {}
            _ => self.suspected = Some((nested, completed)),
        }
    }

    /// Whether nothing came back since all connections were held by tasks that wait for another.
    pub(crate) fn confirm(&self, completed: u64) -> Option<NestedAcquire> {
        self.suspected
            .and_then(|(nested, before)| (before == completed).then_some(nested))
    }

    /// Connections given back per second, in the last five to ten seconds.
    pub(crate) fn recent_throughput(&self) -> f64 {
        let Recent { earlier, current } = &self.recent;
        let seconds = (earlier.0.duration + current.0.duration).as_secs_f64();
        let completions = earlier.0.completions + current.0.completions;
        if seconds > 0.0 {
            completions as f64 / seconds
        } else {
            0.0
        }
    }

    pub(crate) fn count_capacity(&mut self, now: Instant, limit: usize) {
        let for_how_long = now.saturating_duration_since(self.limit_since);
        let limit = limit.try_into().unwrap_or(u32::MAX);
        self.capacity = self
            .capacity
            .saturating_add(for_how_long.saturating_mul(limit));
        self.limit_since = now;
    }

    #[cfg(feature = "json")]
    pub(crate) fn with_log(self, log: Option<LogWriter>) -> Self {
        Self { log, ..self }
    }

    /// Writes a step down; a log that cannot be written ends.
    #[cfg(feature = "json")]
    pub(crate) fn log(&mut self, decision: &Decision, given: impl FnOnce() -> Given) {
        if let Some(log) = &mut self.log
            && let Err(error) = log.step(given(), decision)
        {
            self.log = None;
            events::log_failed(&error);
        }
    }

    /// Whether a decision says something that the last one did not.
    pub(crate) fn is_news(&self, decision: &Decision) -> bool {
        if decision.is_resize() {
            return true;
        }
        let last = self.decisions.back().map(Decision::reason);
        // Between two resizes `Settling` and `Gathering` come and go, and mean nothing to a reader.
        !matches!(decision.reason(), Reason::Gathering | Reason::Settling)
            && last != Some(decision.reason())
    }
}

/// How long the workers of this runtime have been busy.
#[derive(Debug)]
pub(crate) struct AppClock {
    total: Duration,
}

impl AppClock {
    fn start() -> Self {
        Self {
            total: Self::total(),
        }
    }

    /// On average over them, since the last call.
    pub(crate) fn busy(&mut self) -> Duration {
        let last = std::mem::replace(&mut self.total, Self::total());
        self.total.saturating_sub(last)
    }

    #[cfg(target_has_atomic = "64")]
    fn total() -> Duration {
        let Ok(runtime) = Handle::try_current() else {
            return Duration::ZERO;
        };
        let runtime = runtime.metrics();
        let workers = runtime.num_workers();
        let total: Duration = (0..workers)
            .map(|worker| runtime.worker_total_busy_duration(worker))
            .sum();
        total / workers.max(1) as u32
    }

    /// Not told by tokio there: an application that never looks busy.
    #[cfg(not(target_has_atomic = "64"))]
    const fn total() -> Duration {
        Duration::ZERO
    }
}

/// Windows of the last five to ten seconds, for snapshots.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    earlier: (PoolWindow, Waits),
    current: (PoolWindow, Waits),
}

impl Recent {
    const SPAN: Duration = Duration::from_secs(5);

    pub(crate) fn push(&mut self, window: &PoolWindow, waits: &Waits) {
        if self.current.0.duration >= Self::SPAN {
            self.earlier = std::mem::take(&mut self.current);
        }
        self.current.0.merge(window);
        self.current.1.merge(waits);
    }

    /// The share of the checkouts that was refused or timed out.
    pub(crate) fn refused(&self) -> f64 {
        let windows = [&self.earlier.0, &self.current.0];
        let arrivals: u64 = windows.iter().map(|window| window.arrivals).sum();
        let refused: u64 = windows
            .iter()
            .map(|window| window.shed + window.timeouts)
            .sum();
        refused as f64 / arrivals.max(1) as f64
    }

    pub(crate) fn merged(&self) -> (PoolWindow, Waits) {
        let (mut window, mut waits) = self.earlier.clone();
        window.merge(&self.current.0);
        waits.merge(&self.current.1);
        (window, waits)
    }
}

/// How many decisions are kept.
pub(crate) const DECISIONS_KEPT: usize = 256;

pub(crate) fn keep_decision(decisions: &mut VecDeque<Decision>, decision: Decision) {
    if decisions.len() == DECISIONS_KEPT {
        decisions.pop_front();
    }
    decisions.push_back(decision);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_of_the_runtime_is_counted_once() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut clock = AppClock::start();
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(100) {
                std::hint::spin_loop();
            }
            // It counts when it looks for something else to do.
            tokio::task::yield_now().await;
            let busy = clock.busy();
            assert!(busy >= Duration::from_millis(90), "{busy:?}");
            assert_eq!(clock.busy(), Duration::ZERO);
        });
    }
}
