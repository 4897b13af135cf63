//! The clock by which waits and uses are measured.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// Nanoseconds since the pool was built.
#[derive(Debug)]
pub(crate) struct Clock {
    epoch: Instant,
    /// Whether tokio's clock goes with the system's. Tests pause it.
    is_real: AtomicBool,
    #[cfg(feature = "quanta")]
    counter: Option<Counter>,
}

impl Clock {
    pub(crate) fn tokio() -> Self {
        let clock = Self {
            epoch: Instant::now(),
            is_real: AtomicBool::new(false),
            #[cfg(feature = "quanta")]
            counter: None,
        };
        clock.compare();
        clock
    }

    #[cfg(feature = "quanta")]
    pub(crate) fn counter() -> Self {
        Self {
            counter: Some(Counter::start()),
            ..Self::tokio()
        }
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        #[cfg(feature = "quanta")]
        if let Some(counter) = &self.counter {
            return counter.now();
        }
        self.nanos(Instant::now())
    }

    /// The time at which the pool behind has read the clock, if it has, or else now.
    ///
    /// Another library reads the system's clock, which tells nothing where tokio's is paused.
    #[inline]
    pub(crate) fn now_or(&self, read: Option<Instant>) -> u64 {
        #[cfg(feature = "quanta")]
        if let Some(counter) = &self.counter {
            return counter.now();
        }
        match read {
            Some(at) if self.is_real.load(Relaxed) => self.nanos(at),
            _ => self.nanos(Instant::now()),
        }
    }

    /// Looks whether tokio's clock is the system's. One that is paused stands still between two reads,
    /// and one that was paused is apart.
    #[expect(
        clippy::disallowed_types,
        reason = "asks whether tokio's clock is the system's"
    )]
    pub(crate) fn compare(&self) {
        let before = Instant::now().into_std();
        let system = std::time::Instant::now();
        let after = Instant::now().into_std();
        let is_real = before < after && (before..=after).contains(&system);
        self.is_real.store(is_real, Relaxed);
    }

    /// What tokio's clock read at that time.
    pub(crate) fn instant(&self, nanos: u64) -> Instant {
        #[cfg(feature = "quanta")]
        if let Some(counter) = &self.counter {
            let age = Duration::from_nanos(counter.now().saturating_sub(nanos));
            let now = Instant::now();
            return now.checked_sub(age).unwrap_or(now);
        }
        self.epoch + Duration::from_nanos(nanos)
    }

    #[inline]
    fn nanos(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.epoch);
        since.as_secs() * 1_000_000_000 + u64::from(since.subsec_nanos())
    }
}

/// The processor's time stamp counter, or what quanta has in its place.
#[cfg(feature = "quanta")]
#[derive(Debug)]
pub(crate) struct Counter {
    clock: quanta::Clock,
    start: u64,
}

#[cfg(feature = "quanta")]
impl Counter {
    fn start() -> Self {
        let clock = quanta::Clock::new();
        Self {
            start: clock.raw(),
            clock,
        }
    }

    /// Where the counters of two cores differ, time may go back by microseconds: differences of two
    /// times saturate.
    #[inline]
    fn now(&self) -> u64 {
        self.clock.delta_as_nanos(self.start, self.clock.raw())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, pause, resume};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_paused_clock_is_never_mixed_with_that_of_the_system() {
        let clock = Clock::tokio();
        let system = || Instant::now() + Duration::from_secs(7);
        assert_eq!(clock.now_or(Some(system())), 0);
        advance(Duration::from_secs(60)).await;
        clock.compare();
        assert_eq!(clock.now_or(Some(system())), 60_000_000_000);
        resume();
        clock.compare();
        assert!(clock.now_or(Some(system())) < 61_000_000_000, "it is apart");
    }

    #[tokio::test]
    async fn what_the_pool_behind_has_read_is_taken_until_the_clock_is_paused() {
        let clock = Clock::tokio();
        let read = Instant::now() + Duration::from_secs(7);
        assert!(clock.now_or(Some(read)) >= 7_000_000_000);
        assert!(clock.now_or(None) < 1_000_000_000);
        pause();
        clock.compare();
        assert!(clock.now_or(Some(read)) < 1_000_000_000);
    }

    #[cfg(feature = "quanta")]
    #[test]
    fn a_counter_keeps_the_pace_of_the_system_clock() {
        let clock = Clock::counter();
        let before = Instant::now();
        let start = clock.now();
        let inside = Instant::now();
        while inside.elapsed() < Duration::from_millis(50) {}
        let least = inside.elapsed();
        let elapsed = Duration::from_nanos(clock.now() - start);
        let most = before.elapsed();
        assert!(elapsed > least.mul_f64(0.99), "{elapsed:?} of {least:?}");
        assert!(elapsed < most.mul_f64(1.01), "{elapsed:?} of {most:?}");
        let age = clock.instant(start).elapsed();
        assert!(age >= least.mul_f64(0.99), "{age:?} of {least:?}");
    }
}
