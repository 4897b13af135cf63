//! Control laws: how many requests may be inside.
//!
//! A law is a pure value. It reads no clock, takes no lock and knows nothing of HTTP: what
//! happened arrives as a [`Window`], the time of the decision arrives as an argument, and the
//! answer is the new limit. The same value therefore runs in a server, in a simulator and in a
//! unit test.
//!
//! | law | reads | for |
//! |---|---|---|
//! | [`VerifiedGradient`] | service time against a baseline that moves only on evidence | the default |
//! | [`Aimd`] | drops, and optionally a threshold on the service time | a known latency threshold |
//! | [`Fixed`] | nothing | a limit that somebody measured |
//!
//! Write your own by implementing [`Limit`]:
//!
//! ```
//! use tokio::time::Instant;
//! use tower_capacity::limit::{Limit, Window};
//!
//! /// Follows demand from above: never queues, never protects.
//! #[derive(Debug)]
//! struct Generous;
//!
//! impl Limit for Generous {
//!     fn initial(&self) -> usize {
//!         64
//!     }
//!
//!     fn on_window(&mut self, _now: Instant, window: &Window) -> usize {
//!         (2.0 * window.mean_inflight).ceil() as usize
//!     }
//!
//!     fn name(&self) -> &'static str {
//!         "generous"
//!     }
//! }
//! ```

mod aimd;
mod fixed;
mod verified_gradient;
mod window;

use std::fmt;

use tokio::time::Instant;

pub use self::{
    aimd::Aimd,
    fixed::Fixed,
    verified_gradient::{VerifiedGradient, VerifiedGradientConfig},
    window::Window,
};

/// Decides how many requests may be inside, once a window.
///
/// # Contract
///
/// [`on_window`](Self::on_window) is called once for each closed window, in order, from one caller
/// at a time. The limiter clamps the answer to its bounds, which the window carries, so a law may
/// answer any number; it must not assume that its answer was the limit in force during the next
/// window, and reads [`Window::limit`] instead.
///
/// A window in which the caller was not limited ([`Window::limited`] is false) says nothing about
/// capacity: a law that raises or lowers its limit on such a window drifts with demand.
pub trait Limit: fmt::Debug + Send {
    /// Answers the limit before the first window.
    fn initial(&self) -> usize;

    /// Reads what happened during one window and answers the next limit.
    fn on_window(&mut self, now: Instant, window: &Window) -> usize;

    /// Names the law in metrics, events and reports.
    fn name(&self) -> &'static str;

    /// Says why the last decision was taken.
    fn explain(&self) -> Explanation {
        Explanation::default()
    }
}

/// Why a law took its last decision, for events and reports.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Explanation {
    /// Name of the rule that decided.
    pub reason: &'static str,
    /// The service time without queueing that the law compares with, in seconds, for laws that
    /// keep one.
    pub baseline: Option<f64>,
    /// The elasticity of throughput to concurrency, for laws that measure it.
    pub elasticity: Option<f64>,
}

impl Explanation {
    /// Creates an explanation that names only the rule.
    #[must_use]
    pub const fn new(reason: &'static str) -> Self {
        Self {
            reason,
            baseline: None,
            elasticity: None,
        }
    }
}

impl Default for Explanation {
    /// The rule `hold`: nothing moved.
    fn default() -> Self {
        Self::new("hold")
    }
}
