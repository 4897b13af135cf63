//! What happened lately.

use std::time::Duration;

use tokio::time::Instant;

/// Two counts over a sliding window, in buckets: a reading covers the window less at most one
/// bucket. Adding and reading cost the same however many buckets there are.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    buckets: [[u64; 2]; BUCKETS],
    totals: [u64; 2],
    bucket: Duration,
    /// When the first bucket began; `None` before the first call.
    origin: Option<Instant>,
    /// Buckets begun since.
    current: u64,
}

/// So many that the window moves in steps of a thirtieth.
const BUCKETS: usize = 30;

impl Counts {
    pub(super) const fn new(window: Duration) -> Self {
        Self {
            buckets: [[0; 2]; BUCKETS],
            totals: [0; 2],
            bucket: Duration::from_nanos(window.as_nanos() as u64 / BUCKETS as u64),
            origin: None,
            current: 0,
        }
    }

    pub(super) fn totals(&mut self, now: Instant) -> [u64; 2] {
        self.advance(now);
        self.totals
    }

    pub(super) fn add(&mut self, now: Instant, counts: [u64; 2]) {
        self.advance(now);
        let bucket = &mut self.buckets[self.current as usize % BUCKETS];
        for (i, count) in counts.into_iter().enumerate() {
            bucket[i] += count;
            self.totals[i] += count;
        }
    }

    /// Forgets the buckets that have left the window. A time before the last one counts as it.
    fn advance(&mut self, now: Instant) {
        let origin = *self.origin.get_or_insert(now);
        let elapsed = now.saturating_duration_since(origin).as_nanos();
        let begun = (elapsed / self.bucket.as_nanos()) as u64;
        // No bucket has to be emptied twice.
        self.current = self.current.max(begun.saturating_sub(BUCKETS as u64));
        while self.current < begun {
            self.current += 1;
            let bucket = &mut self.buckets[self.current as usize % BUCKETS];
            for (total, count) in self.totals.iter_mut().zip(bucket) {
                *total -= std::mem::take(count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_count_stays_for_the_window_less_a_bucket_and_then_goes() {
        let start = Instant::now();
        let mut counts = Counts::new(30 * SECOND);
        counts.add(start, [1, 0]);
        counts.add(start + 10 * SECOND, [1, 1]);
        assert_eq!(counts.totals(start + 29 * SECOND), [2, 1]);
        assert_eq!(counts.totals(start + 30 * SECOND), [1, 1]);
        assert_eq!(counts.totals(start + 40 * SECOND), [0, 0]);
    }

    #[test]
    fn a_long_silence_forgets_everything() {
        let start = Instant::now();
        let mut counts = Counts::new(30 * SECOND);
        for second in 0..30 {
            counts.add(start + second * SECOND, [1, 1]);
        }
        assert_eq!(counts.totals(start + 100_000 * SECOND), [0, 0]);
    }

    #[test]
    fn a_clock_that_steps_back_loses_nothing() {
        let start = Instant::now();
        let mut counts = Counts::new(30 * SECOND);
        counts.add(start + 20 * SECOND, [1, 0]);
        counts.add(start, [1, 0]);
        assert_eq!(counts.totals(start + 20 * SECOND), [2, 0]);
    }
}
