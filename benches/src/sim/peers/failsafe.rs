//! failsafe-go's adaptive limiter (failsafe-go.dev/adaptive-limiter).

use std::collections::VecDeque;

use super::{Ended, Peer, quantile::quantile};

/// In windows of a second or more with fifty samples: the 90th percentile, smoothed, against its
/// own slower average; Vegas-like thresholds, and correlations of throughput and service time with
/// the requests inside over fifty windows. Steps of log10 L. Starts at 20, between 1 and 200, and
/// at most five times the requests inside.
#[derive(Debug)]
pub struct Failsafe {
    limit: f64,
    samples: Vec<f64>,
    peak: usize,
    window_ends: f64,
    median: VecDeque<f64>,
    recent: Average,
    baseline: Average,
    history: VecDeque<[f64; 3]>,
}

/// Mean of the first ten, then exponential.
#[derive(Debug)]
struct Average {
    age: f64,
    count: f64,
    value: f64,
}

impl Average {
    const fn new(age: f64) -> Self {
        Self {
            age,
            count: 0.0,
            value: 0.0,
        }
    }

    fn add(&mut self, value: f64) -> f64 {
        self.count += 1.0;
        let share = if self.count <= 10.0 {
            1.0 / self.count
        } else {
            2.0 / (self.age + 1.0)
        };
        self.value += share * (value - self.value);
        self.value
    }
}

impl Default for Failsafe {
    fn default() -> Self {
        Self {
            limit: 20.0,
            samples: Vec::new(),
            peak: 0,
            window_ends: 1.0,
            median: VecDeque::new(),
            recent: Average::new(5.0),
            baseline: Average::new(10.0),
            history: VecDeque::new(),
        }
    }
}

impl Failsafe {
    fn on_window(&mut self, inflight: usize) {
        self.median.push_back(quantile(&mut self.samples, 0.9));
        if self.median.len() > 5 {
            self.median.pop_front();
        }
        let mut last: Vec<f64> = self.median.iter().copied().collect();
        let recent = self.recent.add(quantile(&mut last, 0.5));
        let baseline = self.baseline.add(recent);
        let inflight_now = inflight as f64;
        self.history
            .push_back([inflight_now, recent, inflight_now / recent]);
        if self.history.len() > 50 {
            self.history.pop_front();
        }
        let (with_time, with_throughput, variation) = self.correlations();
        let unit = self.limit.log10().max(1.0);
        let queue = (self.limit * (1.0 - baseline / recent)).ceil();
        let full = self.peak as f64 >= self.limit;
        let overloaded = full
            && (with_throughput < 0.0
                || (with_throughput < 0.3 && with_time > 0.5)
                || (variation < 0.2 && with_time > 0.5));
        if queue > 6.0 * unit || overloaded {
            self.limit -= unit;
        } else if queue < 3.0 * unit {
            self.limit += unit;
        }
        let most = (5.0 * self.peak as f64).clamp(1.0, 200.0);
        self.limit = self.limit.clamp(1.0, most);
    }

    /// Of inflight with the service time and with the throughput, and the latter's variation.
    fn correlations(&self) -> (f64, f64, f64) {
        let count = self.history.len() as f64;
        if count < 10.0 {
            return (0.0, 0.0, 1.0);
        }
        let mean = |i: usize| self.history.iter().map(|x| x[i]).sum::<f64>() / count;
        let means = [mean(0), mean(1), mean(2)];
        let covariance = |i: usize, j: usize| {
            self.history
                .iter()
                .map(|x| (x[i] - means[i]) * (x[j] - means[j]))
                .sum::<f64>()
                / count
        };
        let deviation = |i: usize| covariance(i, i).sqrt().max(1e-12);
        let correlation = |j: usize| covariance(0, j) / (deviation(0) * deviation(j));
        (
            correlation(1),
            correlation(2),
            deviation(2) / means[2].max(1e-12),
        )
    }
}

impl Peer for Failsafe {
    fn initial(&self) -> usize {
        20
    }

    fn on_end(&mut self, ended: Ended) -> usize {
        // A dropped permit records nothing.
        if ended.success {
            self.samples.push(ended.took);
            self.peak = self.peak.max(ended.inflight);
        }
        if ended.now >= self.window_ends && self.samples.len() >= 50 {
            self.on_window(ended.inflight_now);
            self.samples.clear();
            self.peak = 0;
            self.window_ends = ended.now + 1.0;
        }
        self.limit as usize
    }

    fn on_tick(&mut self, _now: f64, _cpu: f64) -> usize {
        self.limit as usize
    }
}
