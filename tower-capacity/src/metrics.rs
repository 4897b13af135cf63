//! What a limiter publishes, behind the feature `metrics`.
//!
//! The metrics of a limiter have the label `limiter` (the name given to it). They are registered with the
//! recorder that is installed when the first request comes. Without the feature nothing is recorded. For an
//! OpenTelemetry meter there is the feature `otel`, with the same names.

#[cfg(feature = "client")]
mod client;
mod limiter;

#[cfg(feature = "client")]
pub(crate) use self::client::{BudgetMetrics, ThrottleMetrics};
pub(crate) use self::limiter::{Metrics, Setup};
#[cfg(doc)]
use crate::Pressure;

/// Gauge: requests allowed inside.
pub const LIMIT: &str = "tower_capacity_limit";
/// Gauge: the fewest requests that may be allowed inside.
pub const LIMIT_MIN: &str = "tower_capacity_limit_min";
/// Gauge: the most requests that may be allowed inside.
pub const LIMIT_MAX: &str = "tower_capacity_limit_max";
/// Gauge: 1 for the `mode` (`enforce`, `shadow`, `off`) in force, 0 for the others.
pub const MODE: &str = "tower_capacity_mode";
/// Gauge: 1, with the `version` of the crate.
pub const INFO: &str = "tower_capacity_info";
/// Gauge: requests inside, each as often as it [costs](crate::gate::Ask::cost).
pub const INFLIGHT: &str = "tower_capacity_inflight";
/// Gauge: requests inside for so long that they no longer count against the limit, each as often
/// as it costs.
pub const HELD: &str = "tower_capacity_held";
/// Gauge: requests that wait, each as often as it costs.
pub const QUEUED: &str = "tower_capacity_queued";
/// Gauge: requests wanted inside as a multiple of the limit: those inside and waiting, and as many
/// more as were refused in the last [window](crate::limit::Window). Above 1 while requests wait or
/// are refused, and not clamped: see [`Pressure::demand_ratio`]. Set with each window, and to 0
/// when the last request leaves.
pub const DEMAND_RATIO: &str = "tower_capacity_demand_ratio";
/// Gauge: the service time without queueing that the control law compares with, in seconds;
/// absent for laws that keep none.
pub const BASELINE: &str = "tower_capacity_baseline_seconds";
/// Counter of requests, by `decision` (`admitted`, `shed`) and `reason` (`none`, or a
/// [`RefusedReason`](crate::gate::RefusedReason) in snake case). In
/// [`Mode::Shadow`](crate::Mode), what would have been decided.
pub const REQUESTS: &str = "tower_capacity_requests_total";
/// Counter of requests that left, by `outcome`: `success`, `ignored` and `dropped` are those of
/// [`Outcome`](crate::Outcome); `cancelled` are those that ended before they had one, as when the
/// client gave up.
pub const OUTCOMES: &str = "tower_capacity_outcomes_total";
/// Histogram: how long requests waited, in seconds, of those that had to.
pub const WAIT: &str = "tower_capacity_wait_seconds";
/// Counter of a client's requests, by `throttle` (the name given to the throttler) and
/// `decision` (`sent`, `shed`).
#[cfg(feature = "client")]
pub const THROTTLE_REQUESTS: &str = "tower_capacity_throttle_requests_total";
/// Counter of what became of requests that a client sent, by `throttle` and `answer`
/// (`accepted`, `rejected`, `limited`, `none`).
#[cfg(feature = "client")]
pub const THROTTLE_ANSWERS: &str = "tower_capacity_throttle_answers_total";
/// Counter of retries that were asked of a budget, by `budget` (its name) and `decision`
/// (`allowed`, `denied`).
#[cfg(feature = "client")]
pub const THROTTLE_RETRIES: &str = "tower_capacity_throttle_retries_total";

/// Upper bounds of the buckets for [`WAIT`], in seconds: from half a millisecond to the
/// longest wait by default, about two to a doubling.
pub const WAIT_BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.002, 0.005, 0.007, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0,
];

/// What the gauges show.
#[cfg(any(feature = "metrics", feature = "otel"))]
pub(crate) const GAUGES: &[(&str, &str)] = &[
    (LIMIT, "Requests allowed inside"),
    (LIMIT_MIN, "The fewest requests that may be allowed inside"),
    (LIMIT_MAX, "The most requests that may be allowed inside"),
    (MODE, "1 for the mode in force"),
    (INFO, "1, with the version"),
    (INFLIGHT, "Requests inside"),
    (
        HELD,
        "Requests inside for so long that they no longer count against the limit",
    ),
    (QUEUED, "Requests that wait"),
    (
        DEMAND_RATIO,
        "Requests wanted inside, refused ones included, as a multiple of the limit",
    ),
    (
        BASELINE,
        "Service time without queueing, as the control law sees it",
    ),
];

/// What the counters count.
#[cfg(any(feature = "metrics", feature = "otel"))]
pub(crate) const COUNTERS: &[(&str, &str)] = &[
    (REQUESTS, "Requests by decision and reason"),
    (OUTCOMES, "Requests that left, by outcome"),
    #[cfg(feature = "client")]
    (THROTTLE_REQUESTS, "Requests of a client by decision"),
    #[cfg(feature = "client")]
    (
        THROTTLE_ANSWERS,
        "What became of requests that a client sent",
    ),
    #[cfg(feature = "client")]
    (THROTTLE_RETRIES, "Retries asked of a budget by decision"),
];

/// What the histograms show, and their buckets.
#[cfg(feature = "metrics")]
const HISTOGRAMS: [(&str, &str, &[f64]); 1] = [(
    WAIT,
    "Wait for a permit, of requests that had to",
    &WAIT_BUCKETS,
)];

/// Describes the metrics to the installed recorder, with their units, and returns the buckets that
/// suit each histogram.
///
/// Call it once after the recorder is installed. A recorder that wants the buckets before, such as
/// that of Prometheus, takes [`WAIT_BUCKETS`]:
///
/// ```
/// use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
/// use tower_capacity::metrics::{WAIT, WAIT_BUCKETS, describe_and_buckets};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let wait = Matcher::Full(WAIT.to_owned());
/// let recorder = PrometheusBuilder::new()
///     .set_buckets_for_metric(wait, &WAIT_BUCKETS)?
///     .build_recorder();
/// metrics::with_local_recorder(&recorder, describe_and_buckets);
/// # Ok(())
/// # }
/// ```
#[cfg(feature = "metrics")]
#[expect(
    clippy::must_use_candidate,
    reason = "called for the descriptions where the buckets are known"
)]
pub fn describe_and_buckets() -> [(&'static str, &'static [f64]); 1] {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    for &(name, description) in GAUGES {
        let unit = match name {
            BASELINE => Unit::Seconds,
            _ => Unit::Count,
        };
        describe_gauge!(name, unit, description);
    }
    for &(name, description) in COUNTERS {
        describe_counter!(name, Unit::Count, description);
    }
    HISTOGRAMS.map(|(name, description, buckets)| {
        describe_histogram!(name, Unit::Seconds, description);
        (name, buckets)
    })
}
