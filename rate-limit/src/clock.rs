//! The time that quotas are measured against.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// A clock that stands still until it is moved, for tests of code that uses a limiter.
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
#[derive(Debug)]
pub(crate) enum Clock {
    Tokio(Instant),
    Manual(ManualClock),
    #[cfg(feature = "quanta")]
    Counter(Counter),
}

impl Clock {
    pub(crate) fn new(kind: ClockKind) -> Self {
        match kind {
            ClockKind::Tokio => Self::Tokio(Instant::now()),
            ClockKind::Manual(clock) => Self::Manual(clock),
            #[cfg(feature = "quanta")]
            ClockKind::Counter => Self::Counter(Counter::new()),
        }
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        match self {
            // 584 years of uptime fit.
            Self::Tokio(epoch) => epoch.elapsed().as_nanos() as u64,
            Self::Manual(clock) => clock.0.load(Ordering::Acquire),
            #[cfg(feature = "quanta")]
            Self::Counter(counter) => counter.now(),
        }
    }
}

/// Which clock a limiter is to have.
#[derive(Clone, Debug, Default)]
pub(crate) enum ClockKind {
    #[default]
    Tokio,
    Manual(ManualClock),
    #[cfg(feature = "quanta")]
    Counter,
}

/// The processor's time stamp counter, or what quanta has in its place.
#[cfg(feature = "quanta")]
#[derive(Debug)]
pub(crate) struct Counter {
    clock: quanta::Clock,
    epoch: u64,
    latest: Latest,
}

#[cfg(feature = "quanta")]
impl Counter {
    fn new() -> Self {
        let clock = quanta::Clock::new();
        Self {
            epoch: clock.raw(),
            clock,
            latest: Latest::default(),
        }
    }

    #[inline]
    fn now(&self) -> u64 {
        let elapsed = self.clock.delta_as_nanos(self.epoch, self.clock.raw());
        self.latest.or(elapsed)
    }
}

/// The latest time that was read, to within [`STEP`], for a clock that may run backward where the
/// cores' counters differ. Written that seldom, it is a line that all cores can keep.
#[cfg(feature = "quanta")]
#[derive(Debug, Default)]
struct Latest(AtomicU64);

#[cfg(feature = "quanta")]
impl Latest {
    /// `now`, unless a later time is known.
    #[inline]
    fn or(&self, now: u64) -> u64 {
        let latest = self.0.load(Ordering::Relaxed);
        if now < latest {
            return latest;
        }
        if now - latest > STEP {
            self.0.fetch_max(now, Ordering::Relaxed);
        }
        now
    }
}

/// By how much a counter can run backward, in nanoseconds.
#[cfg(feature = "quanta")]
const STEP: u64 = 10_000;

#[cfg(all(test, feature = "quanta"))]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_runs_backward_stands_still_after_ten_microseconds() {
        let latest = Latest::default();
        assert_eq!(latest.or(1_000_000), 1_000_000);
        assert_eq!(latest.or(1_005_000), 1_005_000);
        assert_eq!(latest.or(1_001_000), 1_001_000);
        assert_eq!(latest.or(3), 1_000_000);
        assert_eq!(latest.or(1_010_001), 1_010_001);
        assert_eq!(latest.or(1_009_000), 1_010_001);
    }

    #[test]
    fn a_counter_keeps_the_pace_of_the_system_clock() {
        let counter = Clock::new(ClockKind::Counter);
        let before = Instant::now();
        let start = counter.now();
        let inside = Instant::now();
        while inside.elapsed() < Duration::from_millis(50) {}
        let least = inside.elapsed();
        let elapsed = Duration::from_nanos(counter.now() - start);
        let most = before.elapsed();
        assert!(elapsed > least.mul_f64(0.99), "{elapsed:?} of {least:?}");
        assert!(elapsed < most.mul_f64(1.01), "{elapsed:?} of {most:?}");
    }
}
