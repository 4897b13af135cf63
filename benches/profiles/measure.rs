//! From records and counts to numbers.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;

use crate::load::{Fate, Record};
use crate::pod::stats::{Counted, quantile};

/// One second of a level.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Second {
    pub(crate) offered: u64,
    pub(crate) served: u64,
    pub(crate) good: u64,
    pub(crate) shed: u64,
    pub(crate) limited: u64,
    /// Neither served nor over quota.
    pub(crate) failed: u64,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p95_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    /// The most at once, by the count of the server that has most.
    pub(crate) connections: usize,
    pub(crate) connections_pct: f64,
    pub(crate) pool_in_use: usize,
    pub(crate) pool_waiting: usize,
    pub(crate) limit: Option<usize>,
    pub(crate) inflight: usize,
    pub(crate) hit_pct: Option<f64>,
    pub(crate) sockets: usize,
    pub(crate) memory_mib: f64,
}

/// A level.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Measured {
    pub(crate) level: String,
    pub(crate) offered_per_s: f64,
    pub(crate) served_per_s: f64,
    pub(crate) good_per_s: f64,
    pub(crate) shed_pct: f64,
    pub(crate) error_pct: Option<f64>,
    pub(crate) timeout_pct: Option<f64>,
    pub(crate) limited_pct: Option<f64>,
    pub(crate) lost: u64,
    pub(crate) mean_ms: Option<f64>,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p95_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) goodput_pct: Option<f64>,
    pub(crate) connections: usize,
    pub(crate) connections_pct: f64,
    pub(crate) connections_refused: u64,
    pub(crate) query_p95_ms: Option<f64>,
    pub(crate) slow_queries: u64,
    pub(crate) hit_pct: Option<f64>,
    pub(crate) memory_mib: f64,
    pub(crate) memory_growth_pct: Option<f64>,
    pub(crate) sockets: usize,
    pub(crate) outbound_refused: Option<u64>,
    pub(crate) outbound_per_minute: Option<f64>,
    pub(crate) probes_failed: u64,
    /// How late the generator sent, at P99.
    pub(crate) generator_late_ms: f64,
    pub(crate) seconds: Vec<Second>,
}

/// What is left out at the beginning of a level, for its load to settle.
pub(crate) const SETTLE: f64 = 3.0;

fn percent(part: u64, of: u64) -> Option<f64> {
    (of > 0).then(|| 100.0 * part as f64 / of as f64)
}

/// The value below which `share` of the sorted values are.
fn of_sorted(sorted: &[f64], share: f64) -> Option<f64> {
    let at = ((share * sorted.len() as f64).ceil() as usize).max(1) - 1;
    sorted.get(at).copied()
}

fn times(records: &[&Record]) -> Vec<f64> {
    let served = records.iter().filter(|record| record.fate == Fate::Served);
    let mut times: Vec<f64> = served.map(|record| record.ms).collect();
    times.sort_by(f64::total_cmp);
    times
}

/// Adds to `seconds`, which have what was sampled, what became of the requests.
pub(crate) fn fill(seconds: &mut [Second], records: &[Record], objective_ms: f64) {
    let mut by_second: BTreeMap<usize, Vec<&Record>> = BTreeMap::new();
    for record in records {
        by_second
            .entry(record.at as usize)
            .or_default()
            .push(record);
    }
    for (at, second) in seconds.iter_mut().enumerate() {
        let empty = Vec::new();
        let records = by_second.get(&at).unwrap_or(&empty);
        let count = |fate| records.iter().filter(|record| record.fate == fate).count() as u64;
        second.offered = records.len() as u64;
        second.served = count(Fate::Served);
        second.shed = count(Fate::Shed);
        second.limited = count(Fate::Limited);
        second.failed = second.offered - second.served - second.limited;
        let times = times(records);
        second.good = times.iter().filter(|&&ms| ms <= objective_ms).count() as u64;
        second.p50_ms = of_sorted(&times, 0.5);
        second.p95_ms = of_sorted(&times, 0.95);
        second.p99_ms = of_sorted(&times, 0.99);
    }
}

/// Summarises the requests that were due between `SETTLE` and `end`.
pub(crate) fn summarise(level: &str, records: &[Record], end: f64, objective_ms: f64) -> Measured {
    let counts = |record: &&Record| (SETTLE..end).contains(&record.at);
    let records: Vec<&Record> = records.iter().filter(counts).collect();
    let lasted = (end - SETTLE).max(0.1);
    let offered = records.len() as u64;
    let count = |fate| records.iter().filter(|record| record.fate == fate).count() as u64;
    let (served, limited) = (count(Fate::Served), count(Fate::Limited));
    let times = times(&records);
    let good = times.iter().filter(|&&ms| ms <= objective_ms).count();
    let mut late: Vec<f64> = records.iter().map(|record| record.late_ms).collect();
    late.sort_by(f64::total_cmp);
    Measured {
        level: level.to_owned(),
        offered_per_s: offered as f64 / lasted,
        served_per_s: served as f64 / lasted,
        good_per_s: good as f64 / lasted,
        shed_pct: percent(count(Fate::Shed), offered).unwrap_or(0.0),
        error_pct: percent(offered - served - limited, offered),
        timeout_pct: percent(count(Fate::TimedOut), offered),
        limited_pct: percent(limited, offered),
        lost: offered - served - limited,
        mean_ms: (!times.is_empty()).then(|| times.iter().sum::<f64>() / times.len() as f64),
        p50_ms: of_sorted(&times, 0.5),
        p95_ms: of_sorted(&times, 0.95),
        p99_ms: of_sorted(&times, 0.99),
        generator_late_ms: of_sorted(&late, 0.99).unwrap_or(0.0),
        ..Measured::default()
    }
}

/// What the pods counted between two readings. A pod that is new counts from zero.
pub(crate) fn difference(
    before: &[(SocketAddr, Counted)],
    after: &[(SocketAddr, Counted)],
) -> Counted {
    let before: BTreeMap<_, _> = before.iter().map(|(pod, counted)| (pod, counted)).collect();
    let mut sum = Counted::default();
    for (pod, counted) in after {
        let zero = Counted::default();
        let from = before.get(pod).copied().unwrap_or(&zero);
        sum.hits += counted.hits - from.hits;
        sum.misses += counted.misses - from.misses;
        sum.refused += counted.refused - from.refused;
        sum.slow += counted.slow - from.slow;
        sum.queries.resize(counted.queries.len(), 0);
        for (at, count) in counted.queries.iter().enumerate() {
            sum.queries[at] += count - from.queries.get(at).copied().unwrap_or(0);
        }
        sum.sockets += counted.sockets;
        sum.inflight += counted.inflight;
        sum.limit = sum
            .limit
            .map_or(counted.limit, |limit| Some(limit + counted.limit?));
        for (sum, size) in sum.pool.iter_mut().zip(counted.pool) {
            *sum += size;
        }
    }
    sum
}

impl Measured {
    /// Adds what the pods counted, and what was sampled each second.
    pub(crate) fn add(&mut self, counted: &Counted, seconds: Vec<Second>) {
        self.connections_refused = counted.refused;
        self.query_p95_ms = quantile(&counted.queries, 0.95);
        self.slow_queries = counted.slow;
        self.hit_pct = percent(counted.hits, counted.hits + counted.misses);
        let most = seconds.iter().max_by_key(|second| second.connections);
        if let Some(most) = most {
            self.connections = most.connections;
            self.connections_pct = most.connections_pct;
        }
        let third = seconds.len() / 3;
        let mean = |part: &[Second]| {
            part.iter().map(|second| second.memory_mib).sum::<f64>() / part.len() as f64
        };
        if third > 0 {
            let (first, last) = (
                mean(&seconds[third..2 * third]),
                mean(&seconds[2 * third..]),
            );
            self.memory_growth_pct = Some(100.0 * (last / first - 1.0));
            self.memory_mib = last;
        }
        self.sockets = seconds.last().map_or(0, |second| second.sockets);
        self.seconds = seconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(at: f64, ms: f64, fate: Fate) -> Record {
        Record {
            at,
            ms,
            fate,
            late_ms: 0.0,
        }
    }

    #[test]
    fn refusals_by_quota_are_no_errors_and_late_responses_no_goodput() {
        let mut records = vec![record(1.0, 1.0, Fate::Failed)];
        for at in 0..10 {
            let at = SETTLE + 0.1 * f64::from(at);
            records.push(record(at, 100.0, Fate::Served));
            records.push(record(at, 900.0, Fate::Served));
            records.push(record(at, 1.0, Fate::Limited));
            records.push(record(at, 1.0, Fate::Shed));
        }
        let seen = summarise("x", &records, SETTLE + 1.0, 500.0);
        assert_eq!(seen.error_pct, Some(25.0));
        assert_eq!(seen.lost, 10);
        assert!((seen.good_per_s - 10.0).abs() < 1e-6);
        assert_eq!((seen.p50_ms, seen.p99_ms), (Some(100.0), Some(900.0)));
    }

    #[test]
    fn a_pod_that_is_new_counts_from_zero() {
        let pod = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let hits = |hits| Counted {
            hits,
            ..Counted::default()
        };
        let before = [(pod(1), hits(10))];
        let after = [(pod(1), hits(15)), (pod(2), hits(7))];
        assert_eq!(difference(&before, &after).hits, 12);
    }
}
