//! The metrics of a pool, behind the feature `metrics`.
//!
//! Names follow OpenTelemetry's conventions for [database connection
//! pools](https://opentelemetry.io/docs/specs/semconv/database/database-metrics/), whose every
//! metric carries `db.client.connection.pool.name`; a Prometheus exporter shows dots as
//! underscores. Levels are updated every 250 ms, the rest as it happens. Install the exporter
//! before building the pool: the metrics are registered then.
//!
//! | metric | kind | unit |
//! |---|---|---|
//! | `db.client.connection.count` (`db.client.connection.state` = `idle`, `used`) | gauge | connections |
//! | `db.client.connection.max`: the target, or in recommend mode the size it was built with | gauge | connections |
//! | `db.client.connection.pending_requests` | gauge | checkouts |
//! | `db.client.connection.timeouts` | counter | timeouts |
//! | `db.client.connection.create_time` | histogram | seconds |
//! | `db.client.connection.wait_time` | histogram | seconds |
//! | `db.client.connection.use_time` | histogram | seconds |
//! | `pool_autotune_target_size` (`pool`) | gauge | connections |
//! | `pool_autotune_resizes_total` (`pool`, `direction` = `up`, `down`, `reason`) | counter | resizes |
//!
//! `db.client.connection.idle.max` and `idle.min` are not reported: there are no such settings.

/// Connections that exist, by state.
pub const COUNT: &str = "db.client.connection.count";
/// Connections allowed out.
pub const MAX: &str = "db.client.connection.max";
/// Checkouts that wait.
pub const PENDING_REQUESTS: &str = "db.client.connection.pending_requests";
/// Checkouts that gave up waiting.
pub const TIMEOUTS: &str = "db.client.connection.timeouts";
/// Time to open a connection.
pub const CREATE_TIME: &str = "db.client.connection.create_time";
/// Time a checkout waited in line.
pub const WAIT_TIME: &str = "db.client.connection.wait_time";
/// Time between a checkout and its return.
pub const USE_TIME: &str = "db.client.connection.use_time";
/// Connections that the tuner wants there to be.
pub const TARGET_SIZE: &str = "pool_autotune_target_size";
/// Changes of the target.
pub const RESIZES: &str = "pool_autotune_resizes_total";

#[cfg(feature = "metrics")]
pub(crate) use self::on::Recorder;

#[cfg(feature = "metrics")]
mod on {
    use std::fmt;
    use std::sync::Arc;
    use std::time::Duration;

    use metrics::{
        Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge,
        describe_histogram, gauge, histogram,
    };

    use super::*;
    use crate::tuner::Decision;

    const POOL_NAME: &str = "db.client.connection.pool.name";
    const STATE: &str = "db.client.connection.state";

    /// The metrics of one pool, registered once.
    pub(crate) struct Recorder {
        pool: Arc<str>,
        idle: Gauge,
        used: Gauge,
        max: Gauge,
        pending: Gauge,
        timeouts: Counter,
        create_time: Histogram,
        wait_time: Histogram,
        use_time: Histogram,
        target: Gauge,
    }

    impl Recorder {
        pub(crate) fn new(pool: &Arc<str>, target: usize) -> Self {
            describe();
            let name = || Arc::clone(pool);
            let recorder = Self {
                pool: name(),
                idle: gauge!(COUNT, POOL_NAME => name(), STATE => "idle"),
                used: gauge!(COUNT, POOL_NAME => name(), STATE => "used"),
                max: gauge!(MAX, POOL_NAME => name()),
                pending: gauge!(PENDING_REQUESTS, POOL_NAME => name()),
                timeouts: counter!(TIMEOUTS, POOL_NAME => name()),
                create_time: histogram!(CREATE_TIME, POOL_NAME => name()),
                wait_time: histogram!(WAIT_TIME, POOL_NAME => name()),
                use_time: histogram!(USE_TIME, POOL_NAME => name()),
                target: gauge!(TARGET_SIZE, "pool" => name()),
            };
            recorder.target.set(target as f64);
            recorder
        }

        pub(crate) fn waited(&self, wait: Duration) {
            self.wait_time.record(wait.as_secs_f64());
        }

        pub(crate) fn opened(&self, took: Duration) {
            self.create_time.record(took.as_secs_f64());
        }

        pub(crate) fn used(&self, used: Duration) {
            self.use_time.record(used.as_secs_f64());
        }

        pub(crate) fn timed_out(&self) {
            self.timeouts.increment(1);
        }

        pub(crate) fn levels(&self, size: usize, in_use: usize, pending: usize, max: usize) {
            self.used.set(in_use as f64);
            self.idle.set(size.saturating_sub(in_use) as f64);
            self.pending.set(pending as f64);
            self.max.set(max as f64);
        }

        pub(crate) fn resized(&self, decision: &Decision) {
            self.target.set(decision.to() as f64);
            let direction = if decision.to() > decision.from() {
                "up"
            } else {
                "down"
            };
            counter!(
                RESIZES,
                "pool" => Arc::clone(&self.pool),
                "direction" => direction,
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

    fn describe() {
        describe_gauge!(COUNT, Unit::Count, "connections that exist, by state");
        describe_gauge!(MAX, Unit::Count, "connections that the tuner wants");
        describe_gauge!(PENDING_REQUESTS, Unit::Count, "checkouts that wait");
        describe_counter!(TIMEOUTS, Unit::Count, "checkouts that gave up waiting");
        describe_histogram!(CREATE_TIME, Unit::Seconds, "time to open a connection");
        describe_histogram!(WAIT_TIME, Unit::Seconds, "time a checkout waited in line");
        describe_histogram!(
            USE_TIME,
            Unit::Seconds,
            "time between a checkout and its return"
        );
        describe_gauge!(
            TARGET_SIZE,
            Unit::Count,
            "connections that the tuner wants there to be"
        );
        describe_counter!(RESIZES, Unit::Count, "changes of the target size");
    }
}

#[cfg(not(feature = "metrics"))]
pub(crate) use self::off::Recorder;

#[cfg(not(feature = "metrics"))]
mod off {
    use std::sync::Arc;
    use std::time::Duration;

    use crate::tuner::Decision;

    /// Records nothing.
    #[derive(Debug)]
    pub(crate) struct Recorder;

    impl Recorder {
        pub(crate) fn new(_pool: &Arc<str>, _target: usize) -> Self {
            Self
        }

        pub(crate) fn waited(&self, _wait: Duration) {}

        pub(crate) fn opened(&self, _took: Duration) {}

        pub(crate) fn used(&self, _used: Duration) {}

        pub(crate) fn timed_out(&self) {}

        pub(crate) fn levels(&self, _size: usize, _in_use: usize, _pending: usize, _max: usize) {}

        pub(crate) fn resized(&self, _decision: &Decision) {}
    }
}
