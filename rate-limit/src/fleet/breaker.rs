//! When to stop asking a server that does not reply, and when to ask again.

use std::time::Duration;

/// Counts what calls come to, and says when it is enough. Pure: time comes in as nanoseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Breaker {
    /// Failures since the last success.
    in_a_row: u32,
    /// Calls and failures since `since`.
    calls: u32,
    failures: u32,
    since: u64,
}

impl Breaker {
    /// Notes that a call got a reply.
    pub(crate) fn success(&mut self, now: u64) {
        self.turn(now);
        self.in_a_row = 0;
        self.calls += 1;
    }

    /// Notes that a call failed; `true` when it is time to open.
    pub(crate) fn failure(&mut self, now: u64) -> bool {
        self.turn(now);
        self.in_a_row += 1;
        self.calls += 1;
        self.failures += 1;
        self.in_a_row >= IN_A_ROW || (self.calls >= ENOUGH_CALLS && 2 * self.failures > self.calls)
    }

    fn turn(&mut self, now: u64) {
        if now.saturating_sub(self.since) > WINDOW {
            (self.calls, self.failures, self.since) = (0, 0, now);
        }
    }
}

/// How long to leave the server alone before each probe: 100 ms, then twice as long each time up
/// to 1 s, each cut by up to half at random so that the nodes of a fleet do not come back at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backoff {
    failed: u32,
}

impl Backoff {
    /// The pause before the next probe; `random` is uniform in 0..1.
    pub(crate) fn next(&mut self, random: f64) -> Duration {
        let pause = (FIRST_PAUSE * 2u32.pow(self.failed.min(16))).min(LONGEST_PAUSE);
        self.failed += 1;
        pause.mul_f64(1.0 - 0.5 * random)
    }

    /// The server replies again.
    pub(crate) fn reset(&mut self) {
        self.failed = 0;
    }
}

/// Failures in a row that open. Five, as in Envoy's `consecutive_5xx` outlier detection.
const IN_A_ROW: u32 = 5;

/// Calls within a window before the share of failures means anything.
const ENOUGH_CALLS: u32 = 20;

/// The span over which more failures than successes open, in nanoseconds.
const WINDOW: u64 = 1_000_000_000;

const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// While some nodes are back and others are not, both the quota and the shares are in use, so this
/// is short; and with the time to connect and to get a reply well within the 5 s that recovery may
/// take.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn five_failures_in_a_row_open_and_a_success_starts_over() {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            assert!((0..4).all(|now| !breaker.failure(now)));
            breaker.success(5);
        }
        assert!((0..4).all(|now| !breaker.failure(now)));
        assert!(breaker.failure(5));
    }

    #[test]
    fn more_failures_than_successes_in_a_second_open() {
        let mut breaker = Breaker::default();
        let mut opened = false;
        for step in 0..12 {
            breaker.success(step * MS);
            opened |= breaker.failure(step * MS) | breaker.failure(step * MS);
        }
        assert!(opened);
    }

    #[test]
    fn failures_of_a_minute_ago_do_not_count() {
        let mut breaker = Breaker::default();
        for step in 0..9 {
            breaker.success(step);
            assert!(!breaker.failure(step) && !breaker.failure(step) || step >= 6);
        }
        let later = 60_000 * MS;
        breaker.success(later);
        assert!(!breaker.failure(later));
    }

    #[test]
    fn pauses_double_to_a_second_and_start_over() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..7).map(|_| backoff.next(0.0).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000, 1000]);
        assert_eq!(backoff.next(1.0).as_millis(), 500);
        backoff.reset();
        assert_eq!(backoff.next(0.0).as_millis(), 100);
    }
}
