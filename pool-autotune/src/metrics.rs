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

use crate::Bounds;

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
pub(crate) const GAUGES: [(&str, &str); 10] = [
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
pub(crate) const COUNTERS: [(&str, &str); 3] = [
    (TIMEOUTS, "checkouts that waited for as long as they may"),
    (RESIZES, "changes of the target size"),
    (UNSERVED, "checkouts that got no connection, by reason"),
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
    for (name, description) in GAUGES {
        describe_gauge!(name, Unit::Count, description);
    }
    for (name, description) in COUNTERS {
        describe_counter!(name, Unit::Count, description);
    }
    describe_histogram!(CREATE_TIME, Unit::Seconds, "time to open a connection");
    describe_histogram!(
        WAIT_TIME,
        Unit::Seconds,
        "time a checkout waited in the queue, whether it was served or not"
    );
    describe_histogram!(
        USE_TIME,
        Unit::Seconds,
        "time between a checkout and its return"
    );
    [
        (CREATE_TIME, &BUCKETS),
        (WAIT_TIME, &BUCKETS),
        (USE_TIME, &BUCKETS),
    ]
}

/// Why a checkout got no connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unserved {
    Timeout,
    Shed,
    Cancelled,
    Closed,
    Failed,
}

impl Unserved {
    pub(crate) const ALL: [Self; 5] = [
        Self::Timeout,
        Self::Shed,
        Self::Cancelled,
        Self::Closed,
        Self::Failed,
    ];

    #[cfg(any(feature = "metrics", feature = "otel"))]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Shed => "shed",
            Self::Cancelled => "cancelled",
            Self::Closed => "closed",
            Self::Failed => "failed",
        }
    }
}

/// What is read every 250 ms.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    not(feature = "metrics"),
    expect(dead_code, reason = "read by what records them")
)]
pub(crate) struct Levels {
    pub(crate) bounds: Bounds,
    pub(crate) verdict: &'static str,
    pub(crate) size: usize,
    pub(crate) in_use: usize,
    pub(crate) pending: usize,
    pub(crate) limit: usize,
    pub(crate) target: usize,
    pub(crate) held: usize,
    pub(crate) demand_ratio: f64,
}

#[cfg(feature = "metrics")]
pub(crate) use self::on::Recorder;

#[cfg(feature = "metrics")]
mod on {
    use std::fmt;
    use std::sync::{Arc, OnceLock};
    use std::time::Duration;

    use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

    use super::*;
    use crate::Mode;
    use crate::tuner::{Decision, Verdict};

    /// The metrics of one pool.
    pub(crate) struct Recorder {
        pool: Arc<str>,
        mode: Mode,
        handles: OnceLock<Handles>,
    }

    struct Handles {
        idle: Gauge,
        used: Gauge,
        max: Gauge,
        pending: Gauge,
        timeouts: Counter,
        create_time: Histogram,
        wait_time: Histogram,
        use_time: Histogram,
        target: Gauge,
        min_size: Gauge,
        max_size: Gauge,
        verdicts: [(&'static str, Gauge); Verdict::NAMES.len()],
        held: Gauge,
        demand_ratio: Gauge,
        /// In the order of [`Unserved::ALL`].
        unserved: [Counter; Unserved::ALL.len()],
    }

    impl Recorder {
        pub(crate) fn new(pool: &Arc<str>, mode: Mode) -> Self {
            Self {
                pool: Arc::clone(pool),
                mode,
                handles: OnceLock::new(),
            }
        }

        fn handles(&self) -> &Handles {
            self.handles.get_or_init(|| {
                describe_and_buckets();
                let name = || Arc::clone(&self.pool);
                let (mode, version) = (self.mode.as_str(), env!("CARGO_PKG_VERSION"));
                gauge!(INFO, POOL_NAME => name(), "mode" => mode, "version" => version).set(1.0);
                Handles {
                    idle: gauge!(COUNT, POOL_NAME => name(), STATE => "idle"),
                    used: gauge!(COUNT, POOL_NAME => name(), STATE => "used"),
                    max: gauge!(MAX, POOL_NAME => name()),
                    pending: gauge!(PENDING_REQUESTS, POOL_NAME => name()),
                    timeouts: counter!(TIMEOUTS, POOL_NAME => name()),
                    create_time: histogram!(CREATE_TIME, POOL_NAME => name()),
                    wait_time: histogram!(WAIT_TIME, POOL_NAME => name()),
                    use_time: histogram!(USE_TIME, POOL_NAME => name()),
                    target: gauge!(TARGET_SIZE, POOL_NAME => name()),
                    min_size: gauge!(MIN_SIZE, POOL_NAME => name()),
                    max_size: gauge!(MAX_SIZE, POOL_NAME => name()),
                    verdicts: Verdict::NAMES.map(|verdict| {
                        let gauge = gauge!(VERDICT, POOL_NAME => name(), "verdict" => verdict);
                        (verdict, gauge)
                    }),
                    held: gauge!(HELD, POOL_NAME => name()),
                    demand_ratio: gauge!(DEMAND_RATIO, POOL_NAME => name()),
                    unserved: Unserved::ALL.map(|reason| {
                        let reason = reason.as_str();
                        counter!(UNSERVED, POOL_NAME => name(), "reason" => reason)
                    }),
                }
            })
        }

        pub(crate) fn waited(&self, wait: Duration) {
            self.handles().wait_time.record(wait.as_secs_f64());
        }

        pub(crate) fn opened(&self, took: Duration) {
            self.handles().create_time.record(took.as_secs_f64());
        }

        pub(crate) fn used(&self, used: Duration) {
            self.handles().use_time.record(used.as_secs_f64());
        }

        pub(crate) fn unserved(&self, reason: Unserved) {
            let handles = self.handles();
            if reason == Unserved::Timeout {
                handles.timeouts.increment(1);
            }
            handles.unserved[reason as usize].increment(1);
        }

        /// Before the first checkout the recorder may not be installed yet.
        pub(crate) fn levels(&self, levels: impl FnOnce() -> Levels) {
            let Some(handles) = self.handles.get() else {
                return;
            };
            let levels = levels();
            handles.used.set(levels.in_use as f64);
            handles
                .idle
                .set(levels.size.saturating_sub(levels.in_use) as f64);
            handles.pending.set(levels.pending as f64);
            handles.max.set(levels.limit as f64);
            handles.target.set(levels.target as f64);
            handles.held.set(levels.held as f64);
            handles.demand_ratio.set(levels.demand_ratio);
            handles.min_size.set(levels.bounds.min() as f64);
            handles.max_size.set(levels.bounds.max() as f64);
            for (verdict, gauge) in &handles.verdicts {
                gauge.set(f64::from(u8::from(*verdict == levels.verdict)));
            }
        }

        pub(crate) fn resized(&self, decision: &Decision) {
            counter!(
                RESIZES,
                POOL_NAME => Arc::clone(&self.pool),
                "direction" => decision.direction(),
                "reason" => decision.reason().as_str(),
            )
            .increment(1);
        }
    }

    impl fmt::Debug for Recorder {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Recorder")
                .field("pool", &self.pool)
                .finish_non_exhaustive()
        }
    }
}

#[cfg(not(feature = "metrics"))]
pub(crate) use self::off::Recorder;

#[cfg(not(feature = "metrics"))]
mod off {
    use std::sync::Arc;
    use std::time::Duration;

    use super::{Levels, Unserved};
    use crate::Mode;
    use crate::tuner::Decision;

    /// Records nothing.
    #[derive(Debug)]
    pub(crate) struct Recorder;

    impl Recorder {
        pub(crate) fn new(_pool: &Arc<str>, _mode: Mode) -> Self {
            Self
        }

        pub(crate) fn waited(&self, _wait: Duration) {}

        pub(crate) fn opened(&self, _took: Duration) {}

        pub(crate) fn used(&self, _used: Duration) {}

        pub(crate) fn unserved(&self, _reason: Unserved) {}

        pub(crate) fn levels(&self, _levels: impl FnOnce() -> Levels) {}

        pub(crate) fn resized(&self, _decision: &Decision) {}
    }
}
