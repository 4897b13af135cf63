//! The metrics of a pool, behind the feature `metrics`.
//!
//! Names follow OpenTelemetry's conventions for [database connection
//! pools](https://opentelemetry.io/docs/specs/semconv/database/database-metrics/). Every metric
//! carries the pool's name as `db.client.connection.pool.name`; a Prometheus exporter shows dots as
//! underscores. Levels are updated every 250 ms, the rest as it happens. The metrics are registered
//! with the recorder that is installed when the first checkout is made.
//!
//! | metric | kind | unit |
//! |---|---|---|
//! | `db.client.connection.count` (`db.client.connection.state` = `idle`, `used`) | gauge | connections |
//! | `db.client.connection.max`: the limit in force | gauge | connections |
//! | `db.client.connection.pending_requests` | gauge | checkouts |
//! | `db.client.connection.timeouts` | counter | timeouts |
//! | `db.client.connection.create_time` | histogram | seconds |
//! | `db.client.connection.wait_time`, however the wait ended | histogram | seconds |
//! | `db.client.connection.use_time` | histogram | seconds |
//! | `pool_autotune_target_size` | gauge | connections |
//! | `pool_autotune_min_size`, `pool_autotune_max_size`: the bounds | gauge | connections |
//! | `pool_autotune_verdict` (`verdict`): 1 for the one in force, 0 for the others | gauge | |
//! | `pool_autotune_info` (`mode`, `version`): 1 | gauge | |
//! | `pool_autotune_demand_ratio`: what is wanted, as a multiple of the limit in force | gauge | |
//! | `pool_autotune_held`: out for far longer than usual | gauge | connections |
//! | `pool_autotune_resizes_total` (`direction` = `up`, `down`, `reason`) | counter | resizes |
//! | `pool_autotune_unserved_total` (`reason` = `timeout`, `shed`, `cancelled`, `closed`, `failed`) | counter | checkouts |
//!
//! `db.client.connection.idle.max` and `idle.min` are not reported: there are no such settings.

mod pool;

pub(crate) use self::pool::{Levels, Metrics, Unserved};

/// Connections that exist, by state.
pub const COUNT: &str = "db.client.connection.count";
/// Connections allowed out now: the limit in force.
pub const MAX: &str = "db.client.connection.max";
/// Checkouts that wait.
pub const PENDING_REQUESTS: &str = "db.client.connection.pending_requests";
/// Checkouts that waited for as long as they may.
pub const TIMEOUTS: &str = "db.client.connection.timeouts";
/// Time to open a connection.
pub const CREATE_TIME: &str = "db.client.connection.create_time";
/// Time a checkout waited in the queue, whether it was served or not.
pub const WAIT_TIME: &str = "db.client.connection.wait_time";
/// Time between a checkout and its return.
pub const USE_TIME: &str = "db.client.connection.use_time";
/// Connections that the tuner wants there to be.
pub const TARGET_SIZE: &str = "pool_autotune_target_size";
/// Connections that there may be at least.
pub const MIN_SIZE: &str = "pool_autotune_min_size";
/// Connections that there may be at most.
pub const MAX_SIZE: &str = "pool_autotune_max_size";
/// 1 for the [`Verdict`](crate::tuner::Verdict) in force, by its
/// [name](crate::tuner::Verdict::as_str), and 0 for the others.
pub const VERDICT: &str = "pool_autotune_verdict";
/// 1, with the mode of the pool and the version of the crate.
pub const INFO: &str = "pool_autotune_info";
/// Connections that are out for far longer than usual.
pub const HELD: &str = "pool_autotune_held";
/// Connections wanted as a multiple of the limit in force: those in use, the checkouts that wait unless the
/// pool grows for them, and as many more as were refused or timed out in the last five to ten
/// seconds. Above 1 while checkouts wait or are refused, and not clamped: see
/// [`Pressure::demand_ratio`](crate::Pressure::demand_ratio).
pub const DEMAND_RATIO: &str = "pool_autotune_demand_ratio";
/// Changes of the target.
pub const RESIZES: &str = "pool_autotune_resizes_total";
/// Checkouts that got no connection, by reason.
pub const UNSERVED: &str = "pool_autotune_unserved_total";

/// The labels that OpenTelemetry names.
#[cfg(any(feature = "metrics", feature = "otel"))]
pub(crate) const POOL_NAME: &str = "db.client.connection.pool.name";
#[cfg(any(feature = "metrics", feature = "otel"))]
pub(crate) const STATE: &str = "db.client.connection.state";

/// Upper bounds of the buckets for [`CREATE_TIME`], [`WAIT_TIME`] and [`USE_TIME`], in seconds: from
/// a tenth of a millisecond to ten seconds, about three to a factor of ten.
pub const BUCKETS: [f64; 16] = [
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0,
];

/// What the gauges show.
#[cfg(any(feature = "metrics", feature = "otel"))]
pub(crate) const GAUGES: &[(&str, &str)] = &[
    (COUNT, "connections that exist, by state"),
    (MAX, "connections allowed out now: the limit in force"),
    (PENDING_REQUESTS, "checkouts that wait"),
    (TARGET_SIZE, "connections that the tuner wants there to be"),
    (MIN_SIZE, "connections that there may be at least"),
    (MAX_SIZE, "connections that there may be at most"),
    (VERDICT, "1 for the verdict in force"),
    (INFO, "1, with mode and version"),
    (HELD, "connections that are out for far longer than usual"),
    (
        DEMAND_RATIO,
        "connections wanted, refused checkouts included, as a multiple of the limit in force",
    ),
];

/// What the counters count.
#[cfg(any(feature = "metrics", feature = "otel"))]
pub(crate) const COUNTERS: &[(&str, &str)] = &[
    (TIMEOUTS, "checkouts that waited for as long as they may"),
    (RESIZES, "changes of the target size"),
    (UNSERVED, "checkouts that got no connection, by reason"),
];

/// What the histograms show, and their buckets.
#[cfg(feature = "metrics")]
const HISTOGRAMS: [(&str, &str, &[f64]); 3] = [
    (CREATE_TIME, "time to open a connection", &BUCKETS),
    (
        WAIT_TIME,
        "time a checkout waited in the queue, whether it was served or not",
        &BUCKETS,
    ),
    (USE_TIME, "time between a checkout and its return", &BUCKETS),
];

/// Describes the metrics to the installed recorder, with their units, and returns the buckets that
/// suit each histogram.
///
/// Call it once after the recorder is installed. A recorder that wants the buckets before, such as
/// that of Prometheus, takes [`BUCKETS`].
#[cfg(feature = "metrics")]
#[expect(
    clippy::must_use_candidate,
    reason = "called for the descriptions where the buckets are known"
)]
pub fn describe_and_buckets() -> [(&'static str, &'static [f64]); 3] {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    for &(name, description) in GAUGES {
        describe_gauge!(name, Unit::Count, description);
    }
    for &(name, description) in COUNTERS {
        describe_counter!(name, Unit::Count, description);
    }
    HISTOGRAMS.map(|(name, description, buckets)| {
        describe_histogram!(name, Unit::Seconds, description);
        (name, buckets)
    })
}
