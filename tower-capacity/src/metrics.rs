//! What a limiter publishes, under the names of [`names`].

#[cfg(feature = "metrics")]
use std::sync::OnceLock;
use std::time::Duration;

use crate::gate::RefusedReason;

/// The names of the metrics, each with the label `limiter` (the name given to the limiter).
pub mod names {
    /// Gauge: requests allowed inside.
    pub const LIMIT: &str = "tower_capacity_limit";
    /// Gauge: requests inside.
    pub const INFLIGHT: &str = "tower_capacity_inflight";
    /// Counter of requests, by `decision` (`admitted`, `shed`) and `reason` (`none`, or a
    /// [`RefusedReason`](crate::gate::RefusedReason) in snake case).
    pub const REQUESTS: &str = "tower_capacity_requests_total";
    /// Histogram: how long requests waited, in seconds, of those that had to.
    pub const WAIT: &str = "tower_capacity_wait_seconds";
}

/// Describes the metrics to the installed recorder, with their units.
///
/// Call it once, after the recorder is installed.
#[cfg(feature = "metrics")]
pub fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_gauge!(names::LIMIT, Unit::Count, "Requests allowed inside");
    describe_gauge!(names::INFLIGHT, Unit::Count, "Requests inside");
    describe_counter!(
        names::REQUESTS,
        Unit::Count,
        "Requests by decision and reason"
    );
    describe_histogram!(
        names::WAIT,
        Unit::Seconds,
        "Wait for a permit, of requests that had to"
    );
}

/// The handles of one limiter, registered with the recorder that is installed when the first
/// request comes. Without the feature `metrics` it does nothing.
#[derive(Debug)]
pub(crate) struct Metrics {
    #[cfg(feature = "metrics")]
    limiter: String,
    #[cfg(feature = "metrics")]
    initial_limit: usize,
    #[cfg(feature = "metrics")]
    handles: OnceLock<Handles>,
}

#[cfg(feature = "metrics")]
struct Handles {
    limit: metrics::Gauge,
    inflight: metrics::Gauge,
    admitted: metrics::Counter,
    /// In the order of [`RefusedReason::ALL`].
    shed: [metrics::Counter; RefusedReason::ALL.len()],
    wait: metrics::Histogram,
}

#[cfg(feature = "metrics")]
impl std::fmt::Debug for Handles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handles").finish_non_exhaustive()
    }
}

#[cfg(feature = "metrics")]
impl Metrics {
    pub(crate) fn new(limiter: &str, initial_limit: usize) -> Self {
        Self {
            limiter: limiter.to_owned(),
            initial_limit,
            handles: OnceLock::new(),
        }
    }

    fn handles(&self) -> &Handles {
        self.handles.get_or_init(|| {
            let limiter = &self.limiter;
            let requests = |decision: &'static str, reason: &'static str| {
                metrics::counter!(
                    names::REQUESTS,
                    "limiter" => limiter.clone(), "decision" => decision, "reason" => reason
                )
            };
            let limit = metrics::gauge!(names::LIMIT, "limiter" => limiter.clone());
            limit.set(self.initial_limit as f64);
            Handles {
                limit,
                inflight: metrics::gauge!(names::INFLIGHT, "limiter" => limiter.clone()),
                admitted: requests("admitted", "none"),
                shed: RefusedReason::ALL.map(|reason| requests("shed", reason.as_str())),
                wait: metrics::histogram!(names::WAIT, "limiter" => limiter.clone()),
            }
        })
    }

    pub(crate) fn admitted(&self) {
        let handles = self.handles();
        handles.admitted.increment(1);
        handles.inflight.increment(1.0);
    }

    pub(crate) fn left(&self) {
        self.handles().inflight.decrement(1.0);
    }

    pub(crate) fn shed(&self, reason: RefusedReason) {
        let handles = self.handles().shed.iter();
        let counter = RefusedReason::ALL
            .iter()
            .zip(handles)
            .find(|(known, _)| **known == reason);
        if let Some((_, counter)) = counter {
            counter.increment(1);
        }
    }

    pub(crate) fn waited(&self, wait: Duration) {
        self.handles().wait.record(wait.as_secs_f64());
    }

    pub(crate) fn limit(&self, limit: usize) {
        self.handles().limit.set(limit as f64);
    }
}

#[cfg(not(feature = "metrics"))]
#[expect(
    clippy::unused_self,
    reason = "the same calls, with nothing behind them"
)]
impl Metrics {
    pub(crate) const fn new(_limiter: &str, _initial_limit: usize) -> Self {
        Self {}
    }

    pub(crate) const fn admitted(&self) {}

    pub(crate) const fn left(&self) {}

    pub(crate) const fn shed(&self, _reason: RefusedReason) {}

    pub(crate) const fn waited(&self, _wait: Duration) {}

    pub(crate) const fn limit(&self, _limit: usize) {}
}
