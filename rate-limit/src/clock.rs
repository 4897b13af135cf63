//! The time that quotas are measured against.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// A clock that stands still until it is told to move, for tests of code that uses a limiter.
///
/// Inside a tokio runtime with paused time nothing special is needed: limiters follow
/// `tokio::time`. This one is for tests without a runtime.
///
/// ```
/// use std::time::Duration;
/// use rate_limit::{Limiter, ManualClock, Quota, SECOND};
///
/// let clock = ManualClock::new();
/// let limiter = Limiter::builder()
///     .quota(Quota::count(1).per(SECOND))
///     .clock(clock.clone())
///     .build()?;
///
/// assert!(limiter.check("alice").is_ok());
/// assert!(limiter.check("alice").is_err());
/// clock.advance(Duration::from_secs(1));
/// assert!(limiter.check("alice").is_ok());
/// # Ok::<(), rate_limit::BuildError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// A clock that reads zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves the clock forward, by all of it even when several threads do; it stops at 292 years.
    pub fn advance(&self, by: Duration) {
        let by = to_nanos(by);
        let advanced = |now: u64| Some(now.saturating_add(by).min(LATEST));
        // Never fails: the closure always returns a time.
        let _ = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, advanced);
    }

    /// Sets the time since the clock was made, forward or backward; it stops at 292 years.
    pub fn set(&self, elapsed: Duration) {
        self.0.store(to_nanos(elapsed), Ordering::Release);
    }

    /// The time that the clock shows.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Acquire))
    }
}

fn to_nanos(duration: Duration) -> u64 {
    duration.as_nanos().min(LATEST.into()) as u64
}

/// Leaves room for the longest debt.
const LATEST: u64 = 1 << 63;

/// Nanoseconds since the limiter was built.
///
/// `tokio::time::Instant` rather than governor's default (quanta), for three reasons: it follows
/// paused time in tests, it never runs backward (boinkor-net/governor#299), and reading it never
/// calibrates anything (building a quanta clock anew costs 17 µs on a virtual machine).
#[derive(Clone, Debug)]
pub(crate) enum Clock {
    Tokio(Instant),
    Manual(ManualClock),
}

impl Clock {
    pub(crate) fn tokio() -> Self {
        Self::Tokio(Instant::now())
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        match self {
            // 584 years of uptime fit.
            Self::Tokio(epoch) => epoch.elapsed().as_nanos() as u64,
            Self::Manual(clock) => clock.0.load(Ordering::Acquire),
        }
    }
}
