//! Control laws: how many requests may be inside.
//!
//! A law is a pure value. It reads no clock, takes no lock and knows nothing of HTTP: what
//! happened arrives as a [`Window`], the time of the decision arrives as an argument, and the
//! answer is the new limit. The same value therefore runs in a server, in a simulator and in a
//! unit test.

use std::{fmt, time::Duration};

use tokio::time::Instant;

/// Decides how many requests may be inside, once a window.
///
/// # Contract
///
/// [`on_window`](Self::on_window) is called once for each closed window, in order, from one caller
/// at a time. Its result is clamped to the bounds of the limiter that runs it, so a law may answer
/// any number; it must not assume that the limit in force during the next window is the one that
/// it asked for, and reads [`Window::limit`] instead.
pub trait Limit: fmt::Debug + Send {
    /// Reads what happened during one window and answers the next limit.
    fn on_window(&mut self, now: Instant, window: &Window) -> usize;

    /// Answers the limit before the first window.
    fn initial(&self) -> usize;

    /// Names the law in metrics, events and reports.
    fn name(&self) -> &'static str;

    /// Says why the last decision was taken.
    fn explain(&self) -> Explanation {
        Explanation::default()
    }

    /// Says how long the next window should last and how many completions it needs.
    fn next_window(&self) -> WindowSpec {
        WindowSpec::default()
    }
}

/// What happened between two decisions.
///
/// Constructed by the limiter; build one by hand with [`Window::new`] to drive a law in a test or
/// a simulator.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Window {
    /// How long the window lasted.
    pub duration: Duration,
    /// Requests that ended well inside the window: the work that the law is paid for.
    pub completions: u64,
    /// Requests that ended in a way that signals overload (timeout, 5xx).
    pub drops: u64,
    /// Requests that were cancelled by their caller before they ended.
    pub cancelled: u64,
    /// Requests refused admission.
    pub refusals: u64,
    /// Time average of the requests inside.
    pub mean_inflight: f64,
    /// Geometric mean of the service time, in seconds, over the completions that were timed.
    ///
    /// `None` where nothing was timed. The geometric mean needs no histogram and is robust to
    /// bimodal mixes, where the arithmetic one follows the rare slow class.
    pub service_time: Option<f64>,
    /// How many completions were timed.
    pub samples: u64,
    /// Longest time between two timed completions, the edges of the window included.
    pub longest_gap: Duration,
    /// The limit in force during the window.
    pub limit: usize,
    /// Whether the limit was what held requests back: one was refused, one had to wait, or
    /// inflight came within 5 % of the limit. When it is false the caller was not limited
    /// ("app-limited") and the window says nothing about capacity.
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
            refusals: 0,
            mean_inflight: 0.0,
            service_time: None,
            samples: 0,
            longest_gap: duration,
            limit,
            limited: false,
        }
    }

    /// Completions per second.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        self.completions as f64 / self.duration.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// When the next window should close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WindowSpec {
    /// The window lasts at least this long.
    pub min_duration: Duration,
    /// The window closes at this age even with fewer completions, unless it has fewer than 8 and
    /// is younger than ten times this age (thin traffic).
    pub max_duration: Duration,
    /// Completions after which a window that has reached its minimum duration closes.
    pub completions: u64,
}

impl Default for WindowSpec {
    fn default() -> Self {
        Self {
            min_duration: Duration::from_millis(50),
            max_duration: Duration::from_secs(1),
            completions: 128,
        }
    }
}

/// Why a law took its last decision, for events and reports.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Explanation {
    /// Name of the rule that decided, `hold` where nothing moved.
    pub reason: &'static str,
    /// The baseline the service time was compared with, in seconds, for laws that keep one.
    pub baseline: Option<f64>,
    /// The elasticity of throughput to concurrency, for laws that measure it.
    pub elasticity: Option<f64>,
}
