//! What a pod counts of itself.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Times of queries by powers of 2^(1/4), from 0.1 ms on.
const BUCKETS: usize = 80;

#[derive(Debug)]
pub(super) struct Stats {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    /// Connections that the server refused.
    pub(super) refused: AtomicU64,
    slow: AtomicU64,
    slow_from: Duration,
    queries: Mutex<Vec<u64>>,
}

/// The same as numbers, since the pod started.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Counted {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) refused: u64,
    pub(crate) slow: u64,
    pub(crate) queries: Vec<u64>,
    /// Connections that exist, are in use, and checkouts that wait.
    pub(crate) pool: [usize; 3],
    pub(crate) granted: Option<usize>,
    /// Requests allowed inside, and inside.
    pub(crate) limit: Option<usize>,
    pub(crate) inflight: usize,
    pub(crate) sockets: usize,
}

impl Stats {
    pub(super) fn new(slow_from: Duration) -> Self {
        Self {
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            slow: AtomicU64::new(0),
            slow_from,
            queries: Mutex::new(vec![0; BUCKETS]),
        }
    }

    pub(super) fn query(&self, took: Duration) {
        if took >= self.slow_from {
            self.slow.fetch_add(1, Relaxed);
        }
        let mut queries = self.queries.lock().unwrap_or_else(PoisonError::into_inner);
        queries[bucket(took)] += 1;
    }

    pub(super) fn counted(&self) -> Counted {
        let queries = self.queries.lock().unwrap_or_else(PoisonError::into_inner);
        Counted {
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            refused: self.refused.load(Relaxed),
            slow: self.slow.load(Relaxed),
            queries: queries.clone(),
            ..Counted::default()
        }
    }
}

fn bucket(took: Duration) -> usize {
    let steps = (took.as_secs_f64() / 1e-4).max(1.0).log2() * 4.0;
    (steps as usize).min(BUCKETS - 1)
}

/// The upper end of the bucket below which `share` of the counts are, in ms.
pub(crate) fn quantile(counts: &[u64], share: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    let needed = (share * total as f64).ceil() as u64;
    let mut sum = 0;
    let at = counts.iter().position(|count| {
        sum += count;
        sum >= needed && sum > 0
    });
    at.map(|at| 0.1 * 2_f64.powf((at + 1) as f64 / 4.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_of_query_times_is_at_most_a_fifth_too_high() {
        let stats = Stats::new(Duration::from_millis(90));
        for ms in 1..=100 {
            stats.query(Duration::from_millis(ms));
        }
        let counted = stats.counted();
        let p95 = quantile(&counted.queries, 0.95).expect("there are queries");
        assert!((95.0..=114.0).contains(&p95), "{p95}");
        assert_eq!(counted.slow, 11);
        assert_eq!(quantile(&[0, 0], 0.95), None);
    }
}
