//! Controlled delay: when a queue has stopped absorbing bursts and started to store overload.

use std::time::Duration;

use tokio::time::Instant;

/// Bounds of a healthy wait.
///
/// A burst makes some waits long; an overload makes *all* of them long. So a queue is judged by the
/// least wait within an interval (CoDel, Nichols & Jacobson 2012; RFC 8289). From the first interval
/// in which that exceeds the target to the first in which no waiter has to be shed, waiters that have
/// waited for twice the target are shed, and the newest is served first: under overload the oldest
/// have the least chance of a response in time (adaptive LIFO and the rule of twice the target:
/// "Fail at Scale", Maurer 2015, and folly's `Codel`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codel {
    target: Duration,
    interval: Duration,
}

impl Codel {
    /// For requests: a target of 10 ms within 100 ms, until the service time is known. A limiter that is
    /// built with this value then follows the service time: a quarter of the typical one within eight.
    ///
    /// RFC 8289 recommends a target of 5 to 10 % of the interval, and folly has 5 ms within
    /// 100 ms. Of targets of 3, 5, 10 and 20 ms with this one most responses are in time in the simulator, at
    /// the lowest P99 (`benches/RESULTS.md`).
    pub const REQUESTS: Self = Self::new(Duration::from_millis(10), Duration::from_millis(100));

    /// For checkouts from a connection pool: a target of 50 ms (Elixir's `DBConnection`) within
    /// 500 ms.
    pub const POOLS: Self = Self::new(Duration::from_millis(50), Duration::from_millis(500));

    /// Sets both bounds.
    #[must_use]
    pub const fn new(target: Duration, interval: Duration) -> Self {
        Self { target, interval }
    }

    /// The least wait of an interval that is still healthy.
    #[must_use]
    pub const fn target(&self) -> Duration {
        self.target
    }

    /// How long the least wait is looked for.
    #[must_use]
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// The longest wait while the queue is overloaded.
    pub(super) const fn patience(&self) -> Duration {
        self.target.saturating_mul(2)
    }
}

/// The judgement on one queue.
///
/// Overload begins with an interval in which every wait was above the target. It is over once a whole
/// interval has passed without a waiter that had to be shed: while the newest is served first, short
/// waits say nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Judgement {
    interval_ends: Option<Instant>,
    least_wait: Duration,
    overloaded_until: Option<Instant>,
}

impl Judgement {
    /// Notes how long the oldest waiter has waited when a permit came free, or zero if there was no
    /// waiter; returns whether the queue is overloaded.
    pub(super) fn observe(&mut self, codel: &Codel, now: Instant, wait: Duration) -> bool {
        match self.interval_ends {
            Some(end) if now < end => self.least_wait = self.least_wait.min(wait),
            ended => {
                // An interval in which nothing was observed ended long ago: the queue was empty.
                let fresh = ended.is_some_and(|end| now < after(end, codel.interval));
                if fresh && self.least_wait > codel.target {
                    self.overloaded_until = Some(after(now, codel.interval));
                }
                self.interval_ends = Some(after(now, codel.interval));
                self.least_wait = wait;
            }
        }
        self.overloaded_until.is_some_and(|until| now < until)
    }

    /// Notes that a waiter was shed: the overload is not over.
    pub(super) fn shed(&mut self, codel: &Codel, now: Instant) {
        self.overloaded_until = Some(after(now, codel.interval));
    }
}

/// `wait` after `at`, or thirty years if that cannot be told.
fn after(at: Instant, wait: Duration) -> Instant {
    const LONG: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    at + wait.min(LONG)
}

#[cfg(test)]
#[path = "../../tests/inside/codel.rs"]
mod tests;
