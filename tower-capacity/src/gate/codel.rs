//! Controlled delay: when a line has stopped absorbing bursts and started to store overload.

use std::time::Duration;

use tokio::time::Instant;

/// Bounds of a healthy wait.
///
/// A burst makes some wait long; an overload makes *everybody* wait long. So the line is judged by
/// the least wait within an interval (CoDel, Nichols & Jacobson 2012; RFC 8289). While that exceeds
/// the target, whoever has waited for twice the target is shed, and the newest is served first:
/// under overload the oldest have the least chance to be answered in time (adaptive LIFO and the
/// rule of twice the target: "Fail at Scale", Maurer 2015, and folly's `Codel`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codel {
    target: Duration,
    interval: Duration,
}

impl Codel {
    /// For requests: a target of 10 ms within 100 ms.
    ///
    /// RFC 8289 recommends a target of 5 to 10 % of the interval, and folly has 5 ms within
    /// 100 ms. Of targets of 3, 5, 10 and 20 ms this one answers most in time in the simulator, at
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

    /// How long anybody waits while the line is overloaded.
    pub(super) const fn patience(&self) -> Duration {
        self.target.saturating_mul(2)
    }
}

/// The judgement on one line.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Judgement {
    interval_ends: Option<Instant>,
    least_wait: Duration,
    overloaded: bool,
}

impl Judgement {
    /// Notes how long the first in line has waited when a permit came free, or that there was no
    /// line at all; answers whether the line is overloaded.
    pub(super) fn observe(&mut self, codel: &Codel, now: Instant, wait: Duration) -> bool {
        match self.interval_ends {
            Some(end) if now < end => self.least_wait = self.least_wait.min(wait),
            ended => {
                // An interval in which nothing was observed ended long ago: nobody stood in line.
                let fresh = ended.is_some_and(|end| now < end + codel.interval);
                self.overloaded = fresh && self.least_wait > codel.target;
                self.interval_ends = Some(now + codel.interval);
                self.least_wait = wait;
            }
        }
        if wait <= codel.target {
            self.overloaded = false;
        }
        self.overloaded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Observes a wait each 10 ms; answers the judgement after each.
    fn judge(waits: &[u32]) -> Vec<bool> {
        let start = Instant::now();
        let mut judgement = Judgement::default();
        let observe = |(at, wait): (usize, &u32)| {
            judgement.observe(&Codel::REQUESTS, start + 10 * MS * at as u32, *wait * MS)
        };
        waits.iter().enumerate().map(observe).collect()
    }

    #[test]
    fn a_burst_that_drains_within_the_interval_is_healthy() {
        let waits: Vec<_> = (0..30)
            .map(|i| 40_u32.saturating_sub(5 * (i % 10)))
            .collect();
        assert!(judge(&waits).iter().all(|overloaded| !overloaded));
    }

    #[test]
    fn a_line_that_never_gets_short_is_overloaded_after_an_interval() {
        let judged = judge(&[20; 30]);
        assert!(judged[..10].iter().all(|overloaded| !overloaded));
        assert!(judged[10..].iter().all(|&overloaded| overloaded));
    }

    #[test]
    fn one_short_wait_ends_the_overload_at_once() {
        let mut waits = [20; 30];
        waits[15] = 5;
        let judged = judge(&waits);
        assert!(judged[14] && !judged[15]);
    }

    #[test]
    fn a_line_that_nobody_stood_in_is_forgotten() {
        let start = Instant::now();
        let mut judgement = Judgement::default();
        assert!(!judgement.observe(&Codel::REQUESTS, start, 20 * MS));
        let later = start + Duration::from_secs(60);
        assert!(!judgement.observe(&Codel::REQUESTS, later, 20 * MS));
    }
}
