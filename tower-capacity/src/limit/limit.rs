//! What a control law is asked.

use std::{fmt, time::Duration};

use tokio::time::Instant;

use super::{Explanation, Window};

/// Decides how many requests may be inside, once a window.
///
/// # Contract
///
/// [`on_window`](Self::on_window) is called once for each closed window, in order, from one caller
/// at a time. The limiter clamps what is returned to its bounds, which the window carries, so a law may
/// return any number; it must not assume that this was the limit in force during the next
/// window, and reads [`Window::limit`] instead.
///
/// A window in which the caller was not limited ([`Window::limited`] is false) says nothing about
/// capacity: a law that raises or lowers its limit on such a window drifts with demand.
pub trait Limit: fmt::Debug + Send {
    /// Returns the limit before the first window.
    fn initial(&self) -> usize;

    /// Reads what happened during one window. Returns the next limit.
    fn on_window(&mut self, now: Instant, window: &Window) -> usize;

    /// Whether requests that are inside for many times the usual service time (streams, long polls)
    /// count against the limit like any other. Defaults to false: the limiter admits as many more.
    fn counts_held(&self) -> bool {
        false
    }

    /// The service time above which a request is late; `None` if the law does not care.
    ///
    /// Read once, when the limiter is built. [`Window::late`] counts by it.
    fn objective(&self) -> Option<Duration> {
        None
    }

    /// Returns how many completions the next window should have to mean something, unless their
    /// times differ little or they take too long to come. Defaults to 128: the mean of exponential
    /// times then has a standard error below a tenth.
    fn evidence(&self) -> u64 {
        128
    }

    /// Names the law in [`LimitChange`](crate::LimitChange), snapshots and errors.
    fn name(&self) -> &'static str;

    /// Says why the last decision was taken.
    fn explain(&self) -> Explanation {
        Explanation::default()
    }
}
