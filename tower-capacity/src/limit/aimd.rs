//! Additive increase, multiplicative decrease.

use std::time::Duration;

use tokio::time::Instant;

use super::{Explanation, Limit, Window};

/// Raises the limit by one a window while requests succeed, and lowers it by a tenth when they
/// time out or fail.
///
/// The law of TCP Reno (Chiu & Jain 1989), with the constants of Netflix concurrency-limits'
/// `AIMDLimit`: start at 20, back off to 0.9. It needs no baseline and so cannot drift, but it
/// learns of overload only from requests that have already failed: use it where the service time
/// says nothing, or with [`service_time_threshold`](Self::service_time_threshold) where an
/// objective is known.
///
/// A window in which the limit held no request back leaves it where it is, unless something dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aimd {
    limit: f64,
    backoff: f64,
    threshold: Option<Duration>,
    reason: &'static str,
}

impl Aimd {
    /// Limit before the first window (Netflix concurrency-limits, `AIMDLimit`).
    const INITIAL: f64 = 20.0;
    /// What a drop leaves of the limit (same source).
    const BACKOFF: f64 = 0.9;

    /// Creates the law. Starts at 20.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            limit: Self::INITIAL,
            backoff: Self::BACKOFF,
            threshold: None,
            reason: "hold",
        }
    }

    /// Sets the limit before the first window. Defaults to 20.
    #[must_use]
    pub const fn initial_limit(mut self, limit: usize) -> Self {
        self.limit = limit as f64;
        self
    }

    /// Takes a window for a drop if its typical (geometric mean) service time exceeds `threshold`.
    ///
    /// Defaults to none: only requests that time out or fail lower the limit.
    #[must_use]
    pub const fn service_time_threshold(mut self, threshold: Duration) -> Self {
        self.threshold = Some(threshold);
        self
    }

    fn is_over_threshold(&self, window: &Window) -> bool {
        match (self.threshold, window.service_time) {
            (Some(threshold), Some(service_time)) => service_time > threshold.as_secs_f64(),
            _ => false,
        }
    }
}

impl Default for Aimd {
    fn default() -> Self {
        Self::new()
    }
}

impl Limit for Aimd {
    fn initial(&self) -> usize {
        self.limit as usize
    }

    fn on_window(&mut self, _now: Instant, window: &Window) -> usize {
        let next;
        (next, self.reason) = if window.drops > 0 {
            (self.limit * self.backoff, "drop")
        } else if self.is_over_threshold(window) {
            (self.limit * self.backoff, "threshold")
        } else if window.limited && window.completions > 0 {
            (self.limit + 1.0, "increase")
        } else {
            (self.limit, "hold")
        };
        self.limit = next.clamp(window.min_limit as f64, window.max_limit as f64);
        self.limit as usize
    }

    fn name(&self) -> &'static str {
        "aimd"
    }

    fn explain(&self) -> Explanation {
        Explanation::new(self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(limited: bool, drops: u64) -> Window {
        Window {
            completions: 100,
            drops,
            limited,
            service_time: Some(0.020),
            ..Window::new(Duration::from_millis(100), 20)
        }
    }

    #[test]
    fn a_limited_window_raises_the_limit_by_one() {
        let mut law = Aimd::new();
        assert_eq!(law.on_window(Instant::now(), &window(true, 0)), 21);
        assert_eq!(law.explain().reason, "increase");
    }

    #[test]
    fn a_window_that_was_not_limited_holds() {
        let mut law = Aimd::new();
        assert_eq!(law.on_window(Instant::now(), &window(false, 0)), 20);
    }

    #[test]
    fn a_drop_takes_a_tenth_even_when_not_limited() {
        let mut law = Aimd::new();
        assert_eq!(law.on_window(Instant::now(), &window(false, 1)), 18);
    }

    #[test]
    fn a_service_time_over_the_threshold_counts_as_a_drop() {
        let mut law = Aimd::new().service_time_threshold(Duration::from_millis(10));
        assert_eq!(law.on_window(Instant::now(), &window(true, 0)), 18);
        assert_eq!(law.explain().reason, "threshold");
    }
}
