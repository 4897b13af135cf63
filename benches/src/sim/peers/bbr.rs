//! BBR as in kratos (aegis `ratelimit/bbr`) and, with other constants, go-zero and Sentinel.

use std::collections::VecDeque;

use super::{Ended, Peer};

/// While the CPU average (0.95 kept each 500 ms) is above 80 %, or within a second of a refusal:
/// no more inside than the greatest throughput times the least mean service time among the last
/// hundred buckets of 100 ms.
#[derive(Debug, Default)]
pub struct Bbr {
    cpu: f64,
    recent_cpu: f64,
    ticks: u32,
    buckets: VecDeque<(u32, f64)>,
    passed: u32,
    took: f64,
    engaged_until: f64,
}

impl Bbr {
    fn limit(&self) -> usize {
        let most = self.buckets.iter().map(|bucket| bucket.0).max();
        let least = self
            .buckets
            .iter()
            .filter(|bucket| bucket.0 > 0)
            .map(|bucket| (bucket.1 * 1e3 / f64::from(bucket.0)).ceil())
            .min_by(f64::total_cmp);
        match (most, least) {
            (Some(passed), Some(ms)) => (f64::from(passed) * ms * 10.0 / 1e3 + 0.5) as usize,
            _ => 16_384,
        }
    }
}

impl Peer for Bbr {
    fn initial(&self) -> usize {
        16_384
    }

    fn on_end(&mut self, ended: Ended) -> usize {
        if ended.success {
            self.passed += 1;
            self.took += ended.took;
        }
        if ended.now < self.engaged_until {
            self.limit()
        } else {
            16_384
        }
    }

    fn on_tick(&mut self, now: f64, cpu: f64) -> usize {
        self.recent_cpu += cpu / 5.0;
        self.ticks += 1;
        if self.ticks == 5 {
            self.cpu = 0.95 * self.cpu + 0.05 * self.recent_cpu;
            (self.recent_cpu, self.ticks) = (0.0, 0);
        }
        self.buckets.push_back((self.passed, self.took));
        (self.passed, self.took) = (0, 0.0);
        if self.buckets.len() > 100 {
            self.buckets.pop_front();
        }
        if self.cpu > 0.8 {
            self.engaged_until = now + 1.0;
        }
        if now < self.engaged_until {
            self.limit()
        } else {
            16_384
        }
    }
}
