//! little-loadshedder (docs.rs/little-loadshedder): Little's law for the queue, hill climbing by
//! one for the concurrency.

use super::{Ended, Peer};

/// Needs a target for the mean of the sojourn time; the moving average keeps 99 % a request, as in
/// its example. Starts at 1.
#[derive(Debug)]
pub struct Little {
    target: f64,
    limit: usize,
    average: f64,
    average_at_limit: f64,
    changed: f64,
    before: (f64, usize),
}

const KEEP: f64 = 0.01;

impl Little {
    /// Creates the law with its target, in seconds.
    #[must_use]
    pub const fn new(target: f64) -> Self {
        Self {
            target,
            limit: 1,
            average: target,
            average_at_limit: target,
            changed: 0.0,
            before: (0.0, 0),
        }
    }

    fn climb(&mut self, now: f64, inflight: usize) {
        let throughput = inflight as f64 / self.average;
        let worse = (throughput > self.before.0) != (inflight > self.before.1);
        let old = self.limit;
        if worse || self.average > self.target {
            self.limit = (self.limit - 1).max(1);
        } else {
            self.limit += 1;
        }
        let factor = self.limit as f64 / old as f64;
        self.average *= factor;
        self.average_at_limit *= factor;
        self.before = (throughput, inflight);
        self.changed = now;
    }
}

impl Peer for Little {
    fn initial(&self) -> usize {
        1
    }

    fn on_end(&mut self, ended: Ended) -> usize {
        // A request that its client gave up leaves no sample.
        if !ended.success {
            return self.limit;
        }
        self.average += KEEP * (ended.took - self.average);
        let inflight = (ended.inflight_now + 1).min(self.limit);
        let at_limit = self.limit - inflight <= (self.limit / 10).max(1);
        if at_limit && ended.now - self.changed > self.average / KEEP / 10.0 {
            self.climb(ended.now, inflight);
        }
        if at_limit {
            self.average_at_limit += KEEP * (ended.took - self.average_at_limit);
        }
        self.limit
    }

    fn on_tick(&mut self, _now: f64, _cpu: f64) -> usize {
        self.limit
    }

    fn queue(&self) -> usize {
        let queue = self.limit as f64 * (self.target / self.average_at_limit - 1.0);
        queue.max(1.0) as usize
    }
}
