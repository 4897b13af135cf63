//! A gradient against a long average.

use tokio::time::Instant;

use super::{Explanation, Limit, Window};

/// Compares the service time of a window with its average over the last 600.
///
/// Netflix concurrency-limits' `Gradient2Limit` with that project's constants:
///
/// ```text
/// long ← average over 600 windows of w;  long × 0.95 while long / w > 2
/// g    = clamp(1.5 · long / w, 0.5, 1)
/// L    ← 0.8 L + 0.2 (g·L + 4)        unless N < L/2
/// ```
///
/// It is there to compare with. The average follows a lasting overload until the overload looks
/// normal, so the limit drifts to its maximum; like the original it takes no notice of drops. The
/// original stays between 20 and 200: set these bounds on the limiter for the same behaviour.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gradient2 {
    limit: f64,
    long: f64,
    windows: u32,
    reason: &'static str,
}

impl Gradient2 {
    /// Constants of `Gradient2Limit`.
    const INITIAL: f64 = 20.0;
    const LONG_WINDOW: u32 = 600;
    const WARM_UP: u32 = 10;
    const TOLERANCE: f64 = 1.5;
    const SMOOTHING: f64 = 0.2;
    const QUEUE: f64 = 4.0;

    /// Creates the law. Starts at 20.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            limit: Self::INITIAL,
            long: 0.0,
            windows: 0,
            reason: "hold",
        }
    }

    fn average(&mut self, short: f64) {
        let share = if self.windows < Self::WARM_UP {
            self.windows += 1;
            1.0 / f64::from(self.windows)
        } else {
            2.0 / f64::from(Self::LONG_WINDOW + 1)
        };
        self.long += share * (short - self.long);
        if self.long / short > 2.0 {
            self.long *= 0.95;
        }
    }
}

impl Default for Gradient2 {
    fn default() -> Self {
        Self::new()
    }
}

impl Limit for Gradient2 {
    fn initial(&self) -> usize {
        self.limit as usize
    }

    fn on_window(&mut self, _now: Instant, window: &Window) -> usize {
        let measured = window
            .service_time
            .filter(|time| time.is_finite() && *time > 0.0);
        self.reason = "hold";
        if let Some(short) = measured {
            self.average(short);
            if window.mean_inflight >= 0.5 * self.limit {
                let gradient = (Self::TOLERANCE * self.long / short).clamp(0.5, 1.0);
                let next = gradient * self.limit + Self::QUEUE;
                self.reason = if next < self.limit {
                    "queueing"
                } else {
                    "headroom"
                };
                self.limit += Self::SMOOTHING * (next - self.limit);
            }
        }
        self.limit = self
            .limit
            .clamp(window.min_limit as f64, window.max_limit as f64);
        self.limit as usize
    }

    fn name(&self) -> &'static str {
        "gradient2"
    }

    fn explain(&self) -> Explanation {
        Explanation {
            baseline: (self.windows > 0).then_some(self.long),
            ..Explanation::new(self.reason)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn window(service_time: f64, inflight: f64) -> Window {
        Window {
            completions: 100,
            samples: 100,
            limited: true,
            mean_inflight: inflight,
            service_time: Some(service_time),
            ..Window::new(Duration::from_millis(100), 20)
        }
    }

    #[test]
    fn a_steady_service_time_raises_the_limit_by_less_than_one() {
        let mut law = Gradient2::new();
        law.on_window(Instant::now(), &window(0.010, 20.0));
        assert!((law.limit - 20.8).abs() < 1e-9, "{law:?}");
    }

    #[test]
    fn a_jump_of_the_service_time_lowers_the_limit() {
        let mut law = Gradient2::new();
        for _ in 0..20 {
            law.on_window(Instant::now(), &window(0.010, 100.0));
        }
        let before = law.limit;
        law.on_window(Instant::now(), &window(0.100, 100.0));
        assert!(law.limit < before);
        assert_eq!(law.explain().reason, "queueing");
    }

    #[test]
    fn less_than_half_the_limit_in_use_holds_it() {
        let mut law = Gradient2::new();
        assert_eq!(law.on_window(Instant::now(), &window(0.010, 5.0)), 20);
        assert_eq!(law.explain().reason, "hold");
    }

    #[test]
    fn a_lasting_overload_becomes_normal() {
        // The drift that the documentation warns of, so that it is not repaired: it is the published law.
        let mut law = Gradient2::new();
        let now = Instant::now();
        for _ in 0..20 {
            law.on_window(now, &window(0.010, 1e9));
        }
        for _ in 0..600 {
            law.on_window(now, &window(0.100, 1e9));
        }
        assert!(law.limit > 200.0, "{law:?}");
    }
}
