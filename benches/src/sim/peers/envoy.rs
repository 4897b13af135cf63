//! Envoy's adaptive concurrency filter (gradient controller; envoyproxy.io, "Adaptive Concurrency").

use super::{Ended, Peer, quantile::quantile};

/// Every 100 ms the median service time against one measured once a minute at a concurrency of 3,
/// with a buffer of 25 % and √L of headroom; 1,000 at most. The values are those of its
/// documentation; the jitter of the minute is left out.
#[derive(Debug)]
pub struct Envoy {
    limit: f64,
    before: f64,
    /// `None` while it is measured.
    baseline: Option<f64>,
    probe_at: f64,
    update_at: f64,
    at_least: u32,
    samples: Vec<f64>,
}

const LEAST: f64 = 3.0;

impl Default for Envoy {
    fn default() -> Self {
        Self {
            limit: LEAST,
            before: LEAST,
            baseline: None,
            probe_at: 0.0,
            update_at: 0.0,
            at_least: 0,
            samples: Vec::new(),
        }
    }
}

impl Envoy {
    fn probe(&mut self) {
        self.before = self.limit;
        self.limit = LEAST;
        self.baseline = None;
        self.at_least = 0;
        self.samples.clear();
    }

    fn update(&mut self, now: f64) {
        let Some(baseline) = self.baseline else {
            if self.samples.len() >= 50 {
                self.baseline = Some(quantile(&mut self.samples, 0.5));
                self.samples.clear();
                self.limit = self.before;
                self.probe_at = now + 60.0;
                self.update_at = now + 0.1;
            }
            return;
        };
        if now >= self.probe_at {
            return self.probe();
        }
        if now < self.update_at || self.samples.is_empty() {
            return;
        }
        let gradient = (baseline * 1.25 / quantile(&mut self.samples, 0.5)).clamp(0.5, 2.0);
        self.samples.clear();
        self.update_at = now + 0.1;
        let next = gradient * self.limit;
        self.limit = (next + next.sqrt()).clamp(LEAST, 1000.0).floor();
        if self.limit > LEAST {
            self.at_least = 0;
        } else {
            self.at_least += 1;
            if self.at_least >= 5 {
                self.probe();
            }
        }
    }
}

impl Peer for Envoy {
    fn initial(&self) -> usize {
        LEAST as usize
    }

    fn on_end(&mut self, ended: Ended) -> usize {
        if ended.success {
            self.samples.push(ended.took);
        }
        self.update(ended.now);
        self.limit as usize
    }

    fn on_tick(&mut self, now: f64, _cpu: f64) -> usize {
        self.update(now);
        self.limit as usize
    }
}
