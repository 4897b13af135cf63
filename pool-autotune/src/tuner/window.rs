use std::time::Duration;

/// What happened to a pool between two looks at it.
///
/// Everything is a sum or a time integral, so that windows can be [merged](Self::merge); means and
/// rates are computed from them. Starts out empty ([`Default`]); fields are public so that a
/// simulator can fill them in.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
#[cfg_attr(feature = "json", derive(serde::Deserialize, serde::Serialize))]
pub struct PoolWindow {
    /// How long the window is.
    pub duration: Duration,
    /// Checkouts asked for, whatever became of them.
    pub arrivals: u64,
    /// Checkouts returned.
    pub completions: u64,
    /// Checkouts that gave up waiting.
    pub timeouts: u64,
    /// Checkouts that found the waiting room full.
    pub shed: u64,
    /// Checkouts that were dropped while they waited.
    pub cancelled: u64,
    /// Checkouts that waited longer than [`TunerConfig::slow_wait`](super::TunerConfig), including
    /// those that timed out or were cancelled after waiting that long.
    pub slow_waits: u64,
    /// Checkouts that stopped waiting: served, refused or cancelled.
    #[cfg_attr(feature = "json", serde(default))]
    pub waits: u64,
    /// Sum of their wait times. A cancelled wait counts with the time it had waited (it is censored: it
    /// would have waited longer).
    pub wait_time: Duration,
    /// Sum of use times of the [`completions`](Self::completions).
    pub use_time: Duration,
    /// Sum of squared use times, in square seconds.
    pub use_time_squared: f64,
    /// Connections opened.
    pub dials: u64,
    /// Sum of the times it took to open them.
    pub dial_time: Duration,
    /// Checkouts that gave up while a connection was being opened for them.
    #[cfg_attr(feature = "json", serde(default))]
    pub late_dials: u64,
    /// Time integral of connections in use: 3 connections held for 2 s are 6 s.
    pub busy: Duration,
    /// Time integral of waiting checkouts.
    pub queueing: Duration,
    /// Time integral of the limit in force, in connection seconds.
    pub capacity: Duration,
    /// Connections allowed out at the end of the window.
    pub limit: usize,
    /// Checkouts waiting at the end of the window.
    pub queued: usize,
    /// Connections that are open beyond those allowed out, at the end of the window.
    #[cfg_attr(feature = "json", serde(default))]
    pub spare: usize,
    /// Sum of the times that these checkouts have waited by then.
    #[cfg_attr(feature = "json", serde(default))]
    pub queued_for: Duration,
    /// Connections held, at the end of the window, for far longer than usual. They are no part of
    /// the other numbers.
    #[cfg_attr(feature = "json", serde(default))]
    pub held: usize,
    /// How long the workers of the application's tokio runtime were busy, on average over them.
    #[cfg_attr(feature = "json", serde(default))]
    pub app_busy: Duration,
}

impl PoolWindow {
    /// Appends a later window to this one.
    pub fn merge(&mut self, later: &Self) {
        self.duration = self.duration.saturating_add(later.duration);
        self.arrivals += later.arrivals;
        self.completions += later.completions;
        self.timeouts += later.timeouts;
        self.shed += later.shed;
        self.cancelled += later.cancelled;
        self.slow_waits += later.slow_waits;
        self.waits += later.waits;
        self.wait_time = self.wait_time.saturating_add(later.wait_time);
        self.use_time = self.use_time.saturating_add(later.use_time);
        self.use_time_squared += later.use_time_squared;
        self.dials += later.dials;
        self.dial_time = self.dial_time.saturating_add(later.dial_time);
        self.late_dials += later.late_dials;
        self.busy = self.busy.saturating_add(later.busy);
        self.queueing = self.queueing.saturating_add(later.queueing);
        self.capacity = self.capacity.saturating_add(later.capacity);
        self.limit = later.limit;
        self.queued = later.queued;
        self.spare = later.spare;
        self.queued_for = later.queued_for;
        self.held = later.held;
        self.app_busy = self.app_busy.saturating_add(later.app_busy);
    }

    /// λ: checkouts asked for per second. Zero for an empty window.
    #[must_use]
    pub fn arrival_rate(&self) -> f64 {
        per(self.arrivals as f64, self.duration)
    }

    /// X: checkouts returned per second. Zero for an empty window.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        per(self.completions as f64, self.duration)
    }

    /// S: mean use time in seconds, if any checkout was returned.
    #[must_use]
    pub fn mean_use_time(&self) -> Option<f64> {
        (self.completions > 0).then(|| self.use_time.as_secs_f64() / self.completions as f64)
    }

    /// Mean time to open a connection in seconds, if any was opened.
    #[must_use]
    pub fn mean_dial_time(&self) -> Option<f64> {
        (self.dials > 0).then(|| self.dial_time.as_secs_f64() / self.dials as f64)
    }

    /// W: mean wait time in seconds over all arrivals, zero without any; where more checkouts
    /// stopped waiting than arrived, over those.
    #[must_use]
    pub fn mean_wait_time(&self) -> f64 {
        let checkouts = self.arrivals.max(self.waits).max(1);
        self.wait_time.as_secs_f64() / checkouts as f64
    }

    /// c²: squared coefficient of variation of use times, between 0 and 16; 1 (as for exponential
    /// times) when there are too few to say.
    #[must_use]
    pub fn use_time_variation(&self) -> f64 {
        let n = self.completions as f64;
        match self.mean_use_time() {
            Some(mean) if self.completions >= 10 && mean > 0.0 => {
                ((self.use_time_squared / n) / (mean * mean) - 1.0).clamp(0.0, 16.0)
            }
            _ => 1.0,
        }
    }

    /// U: fraction of the limit in force that was in use, 0 to 1. A debt counts as full.
    #[must_use]
    pub fn utilisation(&self) -> f64 {
        per(self.busy.as_secs_f64(), self.capacity).min(1.0)
    }

    /// Fraction of the application's workers that were busy, 0 to 1.
    #[must_use]
    pub fn app_utilisation(&self) -> f64 {
        per(self.app_busy.as_secs_f64(), self.duration).min(1.0)
    }

    /// How long the checkouts that wait at the end of the window have waited, on average.
    #[must_use]
    pub fn mean_age(&self) -> Duration {
        self.queued_for / self.queued.clamp(1, u32::MAX as usize) as u32
    }

    /// Q: mean number of waiting checkouts.
    #[must_use]
    pub fn mean_queue(&self) -> f64 {
        per(self.queueing.as_secs_f64(), self.duration)
    }
}

fn per(amount: f64, time: Duration) -> f64 {
    if time.is_zero() {
        0.0
    } else {
        amount / time.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(completions: u64, use_time: f64) -> PoolWindow {
        PoolWindow {
            duration: Duration::from_secs(1),
            arrivals: completions,
            completions,
            use_time: Duration::from_secs_f64(use_time * completions as f64),
            use_time_squared: use_time * use_time * completions as f64,
            busy: Duration::from_secs_f64(use_time * completions as f64),
            capacity: Duration::from_secs(4),
            limit: 4,
            ..PoolWindow::default()
        }
    }

    #[test]
    fn an_empty_window_has_no_rates_and_no_use_time() {
        let empty = PoolWindow::default();
        assert_eq!(empty.arrival_rate(), 0.0);
        assert_eq!(empty.utilisation(), 0.0);
        assert_eq!(empty.mean_use_time(), None);
        assert_eq!(empty.use_time_variation(), 1.0);
    }

    #[test]
    fn merging_weighs_each_window_by_what_it_holds() {
        let mut merged = window(300, 0.001);
        merged.merge(&window(100, 0.005));
        assert_eq!(merged.duration, Duration::from_secs(2));
        assert!((merged.throughput() - 200.0).abs() < 1e-9);
        assert!((merged.mean_use_time().expect("completions") - 0.002).abs() < 1e-9);
        assert!((merged.utilisation() - 0.1).abs() < 1e-9);
        // Three quarters at 1 ms and one quarter at 5 ms: E[S²]/E[S]² − 1 = 7/4 − 1.
        assert!((merged.use_time_variation() - 0.75).abs() < 1e-9);
    }
}
