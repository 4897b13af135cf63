//! The open window of a limiter, and the law that reads it once it is closed.

use std::{
    collections::VecDeque,
    ops::RangeInclusive,
    sync::{
        Mutex, MutexGuard, TryLockError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    accounting::{Accounting, Totals},
    change::LimitChange,
    gate::{Codel, GateSnapshot},
    limit::{Explanation, Limit, Window},
    snapshot::LimiterSnapshot,
    sync::lock,
};

/// A window lasts at least this long, and at least 2.5 service times: a limit takes one service
/// time to show in throughput, and one and a half more to be measured.
pub(crate) const MIN_WINDOW: Duration = Duration::from_millis(50);
pub(crate) const SERVICE_TIMES: f64 = 2.5;
/// A window this old closes if few requests ended, and one of ten service times, or of ten seconds
/// at most, if none did.
pub(crate) const OLD_WINDOW: Duration = Duration::from_secs(1);
pub(crate) const FEW: u64 = 8;
pub(crate) const STALE_WINDOW: Duration = Duration::from_secs(10);
pub(crate) const STALE_SERVICE_TIMES: f64 = 10.0;
/// The same before any request has ended.
pub(crate) const HELD_FIRST: Duration = Duration::from_millis(1500);

/// The open window of a limiter, and what decides when it closes.
#[derive(Debug)]
pub(crate) struct Windows {
    /// The window may close from then on, in ns since the limiter was built.
    pub(crate) closes_at: AtomicU64,
    /// The window is worthless from then on.
    pub(crate) stale_at: AtomicU64,
    /// The next mark that tells held requests apart is due from then on.
    pub(crate) mark_at: AtomicU64,
    /// Shedding may be over from then on; `u64::MAX` if there is none.
    pub(crate) calm_at: AtomicU64,
    /// Completions per second in the last window, as the bits of an `f64`.
    pub(crate) throughput: AtomicU64,
    /// The share of the requests of the last window that was refused, likewise.
    pub(crate) refused: AtomicU64,
    /// Held requests that the gate admits beside the limit.
    pub(crate) held: AtomicUsize,
    pub(crate) control: Mutex<Control>,
}

#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) law: Box<dyn Limit>,
    pub(crate) bounds: RangeInclusive<usize>,
    /// The limit goes no higher, whatever the law says; the bounds go first.
    pub(crate) ceiling: usize,
    /// The limit in force, and the held requests that the gate admits beside it.
    pub(crate) limit: usize,
    pub(crate) held: usize,
    /// CoDel follows the service time.
    pub(crate) relative_codel: bool,
    /// The queue that a limiter without experience has, until its first window closes.
    pub(crate) first_queue: Option<Duration>,
    /// Logarithm of the typical time from entering to leaving, in ns: one that follows at once, and
    /// one that rises slowly.
    pub(crate) log_lifetime: Option<[f64; 2]>,
    /// When the next mark is due among the running and among the completed.
    pub(crate) marks_at: [u64; 2],
    pub(crate) opened: Totals,
    /// How long the open window is to last, by the service time of the last.
    pub(crate) lasts: Duration,
    pub(crate) last: Option<Window>,
    pub(crate) history: VecDeque<LimitChange>,
    /// When shedding began, and how many refusals there were when one was last seen.
    pub(crate) shedding_since: Option<Instant>,
    pub(crate) refusals: u64,
    pub(crate) last_refusal: u64,
}

impl Control {
    /// The highest limit allowed now.
    pub(crate) fn highest(&self) -> usize {
        self.ceiling.clamp(*self.bounds.start(), *self.bounds.end())
    }
}

impl Windows {
    pub(crate) fn new(
        law: Box<dyn Limit>,
        bounds: RangeInclusive<usize>,
        codel: Option<Codel>,
        first_queue: Option<Duration>,
        limit: usize,
        accounting: &Accounting,
    ) -> Self {
        Self {
            closes_at: AtomicU64::new(MIN_WINDOW.as_nanos() as u64),
            stale_at: AtomicU64::new(STALE_WINDOW.as_nanos() as u64),
            mark_at: AtomicU64::new(if law.counts_held() {
                u64::MAX
            } else {
                HELD_FIRST.as_nanos() as u64
            }),
            calm_at: AtomicU64::new(u64::MAX),
            throughput: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            held: AtomicUsize::new(0),
            control: Mutex::new(Control {
                law,
                bounds,
                ceiling: usize::MAX,
                limit,
                held: 0,
                relative_codel: codel == Some(Codel::REQUESTS),
                first_queue,
                log_lifetime: None,
                marks_at: [nanos(HELD_FIRST); 2],
                opened: accounting.totals(0, true),
                lasts: MIN_WINDOW,
                last: None,
                history: VecDeque::new(),
                shedding_since: None,
                refusals: 0,
                last_refusal: 0,
            }),
        }
    }

    /// Completions per second in the last window, each as often as it costs; zero before it.
    #[inline]
    pub(crate) fn throughput(&self) -> f64 {
        f64::from_bits(self.throughput.load(Relaxed))
    }

    /// The share of the requests of the last window that was refused; zero before it.
    pub(crate) fn refused(&self) -> f64 {
        f64::from_bits(self.refused.load(Relaxed))
    }

    pub(crate) fn limit(&self) -> usize {
        lock(&self.control).limit
    }

    /// Held requests that the gate admits beside the limit.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// CoDel has been set from outside: it follows the service time or stays as it is.
    pub(crate) fn follow_codel(&self, codel: Option<Codel>) {
        lock(&self.control).relative_codel = codel == Some(Codel::REQUESTS);
    }

    /// The queue has been set from outside.
    pub(crate) fn forget_first_queue(&self) {
        lock(&self.control).first_queue = None;
    }

    pub(crate) fn explain(&self) -> Explanation {
        lock(&self.control).law.explain()
    }

    pub(crate) fn history(&self) -> Vec<LimitChange> {
        lock(&self.control).history.iter().cloned().collect()
    }

    pub(crate) fn snapshot(&self, gate: GateSnapshot, totals: Totals) -> LimiterSnapshot {
        let control = lock(&self.control);
        LimiterSnapshot {
            gate,
            limit: control.limit,
            held: control.held,
            law: control.law.name(),
            explanation: control.law.explain(),
            bounds: control.bounds.clone(),
            window: control.last,
            totals,
        }
    }

    /// Whether the entry of a request is the moment to look: the first after a long silence, a mark
    /// that is due, or the end of shedding.
    #[inline]
    pub(crate) fn is_due_on_entry(&self, now: u64, is_alone: bool) -> bool {
        now >= self.mark_at.load(Relaxed)
            || now >= self.calm_at.load(Relaxed)
            || is_alone && now >= self.stale_at.load(Relaxed)
    }

    /// `None` if another thread decides; it will count what this one has seen.
    pub(crate) fn try_control(&self) -> Option<MutexGuard<'_, Control>> {
        match self.control.try_lock() {
            Ok(control) => Some(control),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

pub(crate) const fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
