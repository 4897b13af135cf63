//! Queue estimation from the least service time.

use tokio::time::Instant;

use super::{Explanation, Limit, Window};

/// Estimates the queue from the least service time seen, and keeps it between two thresholds.
///
/// TCP Vegas (Brakmo & Peterson 1995) as Netflix concurrency-limits adapted it (`VegasLimit`), with
/// that project's constants and *u* = max(1, ⌊log10 L⌋), once a window instead of once a request:
///
/// ```text
/// q = ⌈L · (1 − least / w)⌉
/// q ≤ u: L += 6u     q < 3u: L += u     q > 6u or a drop: L −= u
/// ```
///
/// The least service time is forgotten every 30 L requests. It is there to compare with: a least
/// service time says little where service times vary, and a reset under load takes the overload for
/// the baseline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vegas {
    limit: f64,
    least: Option<f64>,
    /// Requests since the least service time was last forgotten.
    requests: f64,
    reason: &'static str,
}

impl Vegas {
    /// Limit before the first window (`VegasLimit`).
    const INITIAL: f64 = 20.0;
    /// Requests per unit of the limit after which the least is forgotten (same source).
    const FORGET_AFTER: f64 = 30.0;

    /// Creates the law. Starts at 20.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            limit: Self::INITIAL,
            least: None,
            requests: 0.0,
            reason: "hold",
        }
    }

    fn change(&self, window: &Window, queue: f64) -> (&'static str, f64) {
        let unit = self.limit.log10().floor().max(1.0);
        if window.drops > 0 {
            ("drop", -unit)
        } else if window.mean_inflight * 2.0 < self.limit {
            ("hold", 0.0)
        } else if queue <= unit {
            ("no_queue", 6.0 * unit)
        } else if queue < 3.0 * unit {
            ("short_queue", unit)
        } else if queue > 6.0 * unit {
            ("queueing", -unit)
        } else {
            ("hold", 0.0)
        }
    }
}

impl Default for Vegas {
    fn default() -> Self {
        Self::new()
    }
}

impl Limit for Vegas {
    fn initial(&self) -> usize {
        self.limit as usize
    }

    fn on_window(&mut self, _now: Instant, window: &Window) -> usize {
        let measured = window
            .service_time
            .filter(|time| time.is_finite() && *time > 0.0);
        if let Some(service_time) = measured {
            self.requests += window.samples as f64;
            if self.requests >= Self::FORGET_AFTER * self.limit {
                self.requests = 0.0;
                self.least = None;
            }
            let least = self.least.map_or(service_time, |l| l.min(service_time));
            self.least = Some(least);
            let queue = (self.limit * (1.0 - least / service_time)).ceil();
            let change;
            (self.reason, change) = self.change(window, queue);
            self.limit += change;
        }
        self.limit = self
            .limit
            .clamp(window.min_limit as f64, window.max_limit as f64);
        self.limit as usize
    }

    fn name(&self) -> &'static str {
        "vegas"
    }

    fn explain(&self) -> Explanation {
        Explanation {
            baseline: self.least,
            ..Explanation::new(self.reason)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn window(service_time: f64, drops: u64) -> Window {
        Window {
            completions: 100,
            samples: 100,
            drops,
            limited: true,
            mean_inflight: 20.0,
            service_time: Some(service_time),
            ..Window::new(Duration::from_millis(100), 20)
        }
    }

    #[test]
    fn without_a_queue_the_limit_grows_fast() {
        let mut law = Vegas::new();
        assert_eq!(law.on_window(Instant::now(), &window(0.010, 0)), 26);
    }

    #[test]
    fn a_long_queue_or_a_drop_lowers_the_limit() {
        let mut law = Vegas::new();
        let now = Instant::now();
        law.on_window(now, &window(0.010, 0));
        assert_eq!(law.on_window(now, &window(0.020, 0)), 25);
        assert_eq!(law.explain().reason, "queueing");
        assert_eq!(law.on_window(now, &window(0.010, 1)), 24);
        assert_eq!(law.explain().reason, "drop");
    }

    #[test]
    fn the_least_service_time_is_forgotten() {
        let mut law = Vegas::new();
        let now = Instant::now();
        law.on_window(now, &window(0.010, 0));
        for _ in 0..12 {
            law.on_window(now, &window(0.020, 0));
        }
        assert_eq!(law.explain().baseline, Some(0.020));
    }
}
