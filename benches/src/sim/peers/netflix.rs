//! Netflix concurrency-limits: `VegasLimit`, `Gradient2Limit` and `AIMDLimit`, with the defaults of
//! their builders (github.com/Netflix/concurrency-limits, README and Javadoc).

use super::{Ended, Peer};

/// Per request: the queue is estimated from the least service time seen, which is forgotten every
/// 30 L requests or so. Starts at 20, 1,000 at most.
#[derive(Debug)]
pub struct Vegas {
    limit: f64,
    least: f64,
    samples: u32,
}

impl Default for Vegas {
    fn default() -> Self {
        Self {
            limit: 20.0,
            least: 0.0,
            samples: 0,
        }
    }
}

impl Peer for Vegas {
    fn initial(&self) -> usize {
        20
    }

    fn on_end(&mut self, ended: Ended) -> usize {
        self.samples += 1;
        // The project draws the factor from 0.5..1; its mean is used here.
        if f64::from(self.samples) >= 0.75 * 30.0 * self.limit || self.least == 0.0 {
            self.samples = 0;
            self.least = ended.took;
        } else if ended.took < self.least {
            self.least = ended.took;
        } else {
            let unit = self.limit.log10().max(1.0).floor();
            let queue = (self.limit * (1.0 - self.least / ended.took)).ceil();
            if !ended.success {
                self.limit -= unit;
            } else if (ended.inflight * 2) as f64 >= self.limit {
                if queue <= unit {
                    self.limit += 6.0 * unit;
                } else if queue < 3.0 * unit {
                    self.limit += unit;
                } else if queue > 6.0 * unit {
                    self.limit -= unit;
                }
            }
            self.limit = self.limit.clamp(1.0, 1000.0);
        }
        self.limit as usize
    }

    fn on_tick(&mut self, _now: f64, _cpu: f64) -> usize {
        self.limit as usize
    }
}

/// In windows of a second (`WindowedLimit`): the mean service time against its average over 600
/// windows, with a tolerance of 1.5. Starts at 20, between 20 and 200.
#[derive(Debug)]
pub struct Gradient2 {
    limit: f64,
    long: f64,
    warm_up: u32,
    window_ends: f64,
    sum: f64,
    samples: u32,
    peak: usize,
}

impl Default for Gradient2 {
    fn default() -> Self {
        Self {
            limit: 20.0,
            long: 0.0,
            warm_up: 0,
            window_ends: 1.0,
            sum: 0.0,
            samples: 0,
            peak: 0,
        }
    }
}

impl Gradient2 {
    fn on_window(&mut self, short: f64) {
        if self.warm_up < 10 {
            self.warm_up += 1;
            self.long += (short - self.long) / f64::from(self.warm_up);
        } else {
            self.long += (short - self.long) * 2.0 / 601.0;
        }
        if self.long / short > 2.0 {
            self.long *= 0.95;
        }
        if (self.peak as f64) < self.limit / 2.0 {
            return;
        }
        let gradient = (1.5 * self.long / short).clamp(0.5, 1.0);
        let next = gradient * self.limit + 4.0;
        self.limit = (0.8 * self.limit + 0.2 * next).clamp(20.0, 200.0);
    }
}

impl Peer for Gradient2 {
    fn initial(&self) -> usize {
        20
    }

    fn on_end(&mut self, ended: Ended) -> usize {
        if ended.success {
            self.sum += ended.took;
            self.samples += 1;
        }
        self.peak = self.peak.max(ended.inflight);
        if ended.now >= self.window_ends && self.samples >= 10 {
            self.on_window(self.sum / f64::from(self.samples));
            self.window_ends = ended.now + 1.0;
            (self.sum, self.samples, self.peak) = (0.0, 0, 0);
        }
        self.limit as usize
    }

    fn on_tick(&mut self, _now: f64, _cpu: f64) -> usize {
        self.limit as usize
    }
}

/// Per request: a tenth less for each one that failed, one more for each success at more than half
/// the limit. Starts at 20, between 20 and 200.
#[derive(Debug)]
pub struct Aimd {
    limit: f64,
}

impl Default for Aimd {
    fn default() -> Self {
        Self { limit: 20.0 }
    }
}

impl Peer for Aimd {
    fn initial(&self) -> usize {
        20
    }

    fn on_end(&mut self, ended: Ended) -> usize {
        if !ended.success || ended.took > 5.0 {
            self.limit *= 0.9;
        } else if (ended.inflight * 2) as f64 >= self.limit {
            self.limit += 1.0;
        }
        self.limit = self.limit.floor().clamp(20.0, 200.0);
        self.limit as usize
    }

    fn on_tick(&mut self, _now: f64, _cpu: f64) -> usize {
        self.limit as usize
    }
}
