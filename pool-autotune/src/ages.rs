//! What a pool and its driver know of the ages of the connections.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug)]
pub(crate) struct Aging {
    pub(crate) lifetime: Option<Lifetime>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) keep_open: usize,
    /// The most checkouts inside at once since the last look.
    pub(crate) peak: AtomicUsize,
    /// Before, no connection is closed for its age; as the clock of the pool has it.
    pub(crate) next: AtomicU64,
    /// Returns that pass without a look.
    pub(crate) skip: AtomicUsize,
    looks: AtomicUsize,
    pub(crate) is_warming: AtomicBool,
}

/// Connections that were opened together are not closed together: from a point in their last
/// third on, which differs from pool to pool, one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lifetime {
    most: Duration,
    /// The age from which a connection is closed when that costs nothing.
    pub(crate) due: Duration,
    /// The age from which it is closed in any case.
    pub(crate) overdue: Duration,
}

impl Lifetime {
    fn new(most: Duration) -> Self {
        let random = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
        Self {
            most,
            due: most.mul_f64(0.7 + 0.05 * random),
            overdue: most.mul_f64(0.85),
        }
    }

    /// The time from one closing to the next, so that all are closed within an eighth of a lifetime.
    pub(crate) fn spacing(&self, connections: usize) -> Duration {
        /// The pace at which the dial budget replaces them.
        const LEAST: Duration = Duration::from_millis(20);
        let all: u32 = connections.clamp(1, 1 << 20) as u32;
        LEAST.max(self.most / 8 / all)
    }
}

/// What the driver keeps about ages.
#[derive(Debug)]
pub(crate) struct AgingState {
    /// One more may be opened, to take the place of one that is due.
    pub(crate) is_replacing: bool,
    /// The most that were inside in the half of the idle timeout before this.
    pub(crate) needed: usize,
    pub(crate) needed_since: Instant,
}

impl AgingState {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            is_replacing: false,
            needed: usize::MAX,
            needed_since: now,
        }
    }
}

impl Aging {
    pub(crate) fn new(
        max_lifetime: Option<Duration>,
        idle_timeout: Option<Duration>,
        keep_open: usize,
    ) -> Self {
        Self {
            lifetime: max_lifetime.map(Lifetime::new),
            idle_timeout,
            keep_open,
            peak: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            skip: AtomicUsize::new(0),
            looks: AtomicUsize::new(0),
            is_warming: AtomicBool::new(false),
        }
    }

    #[inline]
    pub(crate) fn entered(&self, inflight: usize) {
        if inflight > self.peak.load(Relaxed) {
            self.peak.fetch_max(inflight, Relaxed);
        }
    }

    /// A look at many connections is paid for by as many returns, at random: callers that work in step
    /// would otherwise have the same one passed over each time.
    pub(crate) fn skip_some(&self, seen: usize) {
        let mut random = self.looks.fetch_add(1, Relaxed) as u64;
        random = (random ^ random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        random = (random ^ random >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let most = 2 * seen.max(1) - 1;
        self.skip.store((random >> 33) as usize % most, Relaxed);
    }

    #[inline]
    pub(crate) fn has_lifetime(&self) -> bool {
        self.lifetime.is_some()
    }
}
