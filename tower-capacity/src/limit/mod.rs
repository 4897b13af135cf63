//! Control laws: how many requests may be inside.
//!
//! A law is a pure value. It reads no clock, takes no lock and knows nothing of HTTP: what
//! happened arrives as a [`Window`], the time of the decision arrives as an argument, and the
//! return value is the new limit. The same value therefore runs in a server, in a simulator and in a
//! unit test.
//!
//! | law | reads | for |
//! |---|---|---|
//! | [`Knee`] | service time and throughput, with probes | the default |
//! | [`Aimd`] | drops, and optionally a threshold on the service time | a known latency threshold |
//! | [`Vegas`] | service time against the least one seen | comparison |
//! | [`Gradient2`] | service time against a long average | comparison |
//! | [`Fixed`] | nothing | a limit that was measured |
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
mod gradient2;
mod knee;
mod vegas;
mod window;

use std::{fmt, time::Duration};

use tokio::time::Instant;

pub use self::{
    aimd::Aimd, fixed::Fixed, gradient2::Gradient2, knee::Knee, vegas::Vegas, window::Window,
};

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_window() -> impl Strategy<Value = Window> {
        let counts = (0..100_000_u64, 0..100_u64, 0..100_u64, 0..100_000_u64);
        let times = (
            0..60_000_u64,
            0..60_000_u64,
            proptest::option::of(prop_oneof![
                0.0..1e4_f64,
                Just(0.0),
                Just(f64::MIN_POSITIVE),
                Just(f64::INFINITY),
                Just(f64::NAN),
            ]),
        );
        let inflight = prop_oneof![0.0..1e5_f64, Just(0.0), Just(f64::NAN)];
        (
            counts,
            times,
            inflight,
            1..50_usize,
            1..20_000_usize,
            any::<bool>(),
        )
            .prop_map(
                |(
                    counts,
                    (lasted, gap, service_time),
                    mean_inflight,
                    min_limit,
                    width,
                    limited,
                )| {
                    let (completions, drops, cancelled, refusals) = counts;
                    Window {
                        completions,
                        drops,
                        cancelled,
                        refusals,
                        mean_inflight,
                        service_time,
                        samples: completions,
                        longest_gap: Duration::from_millis(gap),
                        min_limit,
                        max_limit: min_limit + width,
                        limited,
                        ..Window::new(Duration::from_millis(lasted), 20)
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn every_law_stays_within_the_bounds_whatever_it_reads(
            windows in proptest::collection::vec(any_window(), 1..60)
        ) {
            let laws: [Box<dyn Limit>; 4] = [
                Box::new(Aimd::new()),
                Box::new(Vegas::new()),
                Box::new(Gradient2::new()),
                Box::new(Knee::new()),
            ];
            for mut law in laws {
                let mut now = Instant::now();
                for window in &windows {
                    now += window.duration;
                    let limit = law.on_window(now, window);
                    prop_assert!(
                        (window.min_limit..=window.max_limit).contains(&limit),
                        "{law:?} answered {limit} to {window:?}"
                    );
                    let why = law.explain();
                    prop_assert!(why.baseline.is_none_or(f64::is_finite), "{law:?}");
                    prop_assert!(why.elasticity.is_none_or(f64::is_finite), "{law:?}");
                }
            }
        }

        #[test]
        fn no_law_moves_in_a_window_without_evidence(
            windows in proptest::collection::vec(any_window(), 1..30)
        ) {
            let laws: [Box<dyn Limit>; 2] =
                [Box::new(Aimd::new()), Box::new(Knee::new())];
            for mut law in laws {
                let initial = law.initial();
                for window in &windows {
                    let idle = Window {
                        min_limit: 1,
                        max_limit: 1000,
                        drops: 0,
                        limited: false,
                        ..*window
                    };
                    prop_assert_eq!(law.on_window(Instant::now(), &idle), initial);
                }
            }
        }
    }
}
