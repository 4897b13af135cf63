//! What a control law reads.

use std::time::Duration;

/// What happened between two decisions.
///
/// The limiter makes these; build one by hand, from [`Window::new`], to drive a law in a test or a
/// simulator.
///
/// A window closes once it has lasted 2.5 service times of the last one (50 ms at least, 10 s at most), or
/// ten of its own, and holds what the law [asks for](super::Limit::evidence) (128 completions; the default law
/// is content with eight for each request of its limit, and at least 16), or 32 with service times that differ
/// little (a standard error of 5 %); or if it has lasted 2.5 service times, is a second old and saw 8 requests
/// end in any way. Only thin traffic keeps one open for longer, ten seconds at most.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Window {
    /// How long the window lasted.
    pub duration: Duration,
    /// Requests that ended well inside the window, each as often as it [costs](crate::gate::Ask::cost):
    /// the work that the law is paid for.
    pub completions: u64,
    /// Requests that ended in a way that signals overload: a timeout, a 5xx.
    pub drops: u64,
    /// Requests that their callers gave up before they ended.
    pub cancelled: u64,
    /// Dropped and cancelled requests that had been inside for longer than a successful one usually
    /// takes, each as often as it costs: work that was done in vain.
    pub died: u64,
    /// Requests refused admission.
    pub refusals: u64,
    /// Time average of the requests inside, each as often as it costs.
    pub mean_inflight: f64,
    /// Geometric mean of the service time of the timed requests, in seconds.
    ///
    /// `None` where nothing was timed. The geometric mean needs no histogram and is robust to
    /// bimodal mixes, where the arithmetic one follows the rare slow class.
    pub service_time: Option<f64>,
    /// Relative standard error of the service time; zero where nothing was timed.
    pub service_time_error: f64,
    /// How many requests were timed, each once whatever it costs.
    pub samples: u64,
    /// How many of them took longer than the [objective](super::Limit::objective) of the law.
    pub late: u64,
    /// Longest time between two timed completions, the edges of the window included.
    pub longest_gap: Duration,
    /// The limit in force during the window.
    pub limit: usize,
    /// Least limit that the limiter allows.
    pub min_limit: usize,
    /// Greatest limit that the limiter allows.
    pub max_limit: usize,
    /// Whether the limit held requests back: one was refused, one had to wait, or inflight came
    /// within 5 % of the limit. When false the caller was not limited ("app-limited"), and the
    /// window says nothing about capacity.
    pub limited: bool,
}

impl Window {
    /// Creates a window of `duration` under `limit` in which nothing happened.
    #[must_use]
    pub const fn new(duration: Duration, limit: usize) -> Self {
        Self {
            duration,
            completions: 0,
            drops: 0,
            cancelled: 0,
            died: 0,
            refusals: 0,
            mean_inflight: 0.0,
            service_time: None,
            service_time_error: 0.0,
            samples: 0,
            late: 0,
            longest_gap: duration,
            limit,
            min_limit: 1,
            max_limit: usize::MAX,
            limited: false,
        }
    }

    /// Completions per second.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        self.completions as f64 / self.duration.as_secs_f64().max(1e-9)
    }
}
