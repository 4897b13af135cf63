//! A pool as instruments of an OpenTelemetry meter, behind the feature `otel`.
//!
//! ```
//! use deadpool_sqlite::{Config, Runtime};
//! use opentelemetry::metrics::MeterProvider;
//! use opentelemetry_sdk::metrics::SdkMeterProvider;
//! use pool_autotune::Autotuned;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // As the service builds it, with a reader for its exporter.
//! let provider = SdkMeterProvider::builder().build();
//!
//! let sqlite = Config::new(":memory:").builder(Runtime::Tokio1)?.build()?;
//! let pool = Autotuned::builder(sqlite).name("orders").build()?;
//! pool_autotune::otel::observe(&provider.meter("shop"), &pool);
//! # Ok(())
//! # }
//! ```
//!
//! The pool is read when the meter's reader collects, and not at checkouts. Names, kinds and units of
//! `db.client.connection.*` are those of OpenTelemetry's conventions, the others those of
//! [`metrics`](crate::metrics); every instrument has the attribute `db.client.connection.pool.name`.
//!
//! | instrument | kind | unit | attributes |
//! |---|---|---|---|
//! | `db.client.connection.count` | up-down counter | `{connection}` | `db.client.connection.state` |
//! | `db.client.connection.max` | up-down counter | `{connection}` | |
//! | `db.client.connection.pending_requests` | up-down counter | `{request}` | |
//! | `db.client.connection.timeouts` | counter | `{timeout}` | |
//! | `pool_autotune_target_size`, `pool_autotune_min_size`, `pool_autotune_max_size` | gauge | `{connection}` | |
//! | `pool_autotune_held` | gauge | `{connection}` | |
//! | `pool_autotune_demand_ratio` | gauge | `1` | |
//! | `pool_autotune_verdict` | gauge | `1` | `verdict` |
//! | `pool_autotune_info` | gauge | `1` | `mode`, `version` |
//! | `pool_autotune_resizes_total`, from the first on | counter | `{resize}` | `direction`, `reason` |
//! | `pool_autotune_unserved_total` | counter | `{request}` | `reason` |
//!
//! The three histograms (`db.client.connection.create_time`, `wait_time` and `use_time`) and the
//! metrics of a fleet's budget are not in a snapshot: with the feature `metrics` they reach a meter
//! through a recorder such as that of `metrics-exporter-otel`.

use std::sync::Arc;

use opentelemetry::{KeyValue, metrics::Meter};
use tokio::time::Instant;

use crate::Autotuned;
use crate::adapter::Adapter;
use crate::metrics::{
    COUNT, COUNTERS, DEMAND_RATIO, GAUGES, HELD, INFO, MAX, MAX_SIZE, MIN_SIZE, PENDING_REQUESTS,
    POOL_NAME, RESIZES, STATE, TARGET_SIZE, TIMEOUTS, UNSERVED, Unserved, VERDICT,
};
use crate::tuner::Verdict;

/// Registers the instruments of a pool with `meter`.
///
/// To be called once for each pool: callbacks of a meter cannot be taken back. They keep nothing
/// alive, and a pool without a handle is no longer observed.
pub fn observe<P: Adapter>(meter: &Meter, pool: &Autotuned<P>) {
    let shared = pool.downgrade();
    let instruments = Instruments {
        meter,
        handle: move || shared.upgrade(),
        name: KeyValue::new(POOL_NAME, Arc::clone(&pool.shared().name)),
    };
    instruments.up_down(COUNT, "{connection}", |pool| {
        let snapshot = pool.snapshot();
        let used = snapshot.in_use().min(snapshot.size());
        let connections = |count: usize, state| (count as i64, vec![(STATE, state)]);
        let idle = snapshot.size() - used;
        vec![connections(idle, "idle"), connections(used, "used")]
    });
    instruments.up_down(MAX, "{connection}", |pool| {
        vec![(pool.snapshot().limit() as i64, vec![])]
    });
    instruments.up_down(PENDING_REQUESTS, "{request}", |pool| {
        vec![(pool.snapshot().pending() as i64, vec![])]
    });
    instruments.counter(TIMEOUTS, "{timeout}", |pool| {
        vec![(
            pool.stats.all_unserved()[Unserved::Timeout as usize],
            vec![],
        )]
    });
    instruments.gauge(TARGET_SIZE, "{connection}", |pool| {
        vec![(pool.snapshot().target() as f64, vec![])]
    });
    instruments.gauge(MIN_SIZE, "{connection}", |pool| {
        vec![(pool.control().tuner.bounds().min() as f64, vec![])]
    });
    instruments.gauge(MAX_SIZE, "{connection}", |pool| {
        vec![(pool.control().tuner.bounds().max() as f64, vec![])]
    });
    instruments.gauge(HELD, "{connection}", |pool| {
        vec![(pool.control().held.count as f64, vec![])]
    });
    instruments.gauge(DEMAND_RATIO, "1", |pool| {
        vec![(pool.pressure().demand_ratio(), vec![])]
    });
    instruments.gauge(VERDICT, "1", |pool| {
        let current = pool.verdict(Instant::now());
        let in_force = |verdict| f64::from(u8::from(verdict == current.as_str()));
        let verdicts =
            Verdict::NAMES.map(|verdict| (in_force(verdict), vec![("verdict", verdict)]));
        verdicts.into()
    });
    instruments.gauge(INFO, "1", |pool| {
        let version = ("version", env!("CARGO_PKG_VERSION"));
        vec![(1.0, vec![("mode", pool.mode.as_str()), version])]
    });
    instruments.counter(RESIZES, "{resize}", |pool| {
        let control = pool.control();
        let resizes = control.resizes.iter();
        resizes
            .map(|((direction, reason), count)| {
                (*count, vec![("direction", *direction), ("reason", *reason)])
            })
            .collect()
    });
    instruments.counter(UNSERVED, "{request}", |pool| {
        let counts = pool.stats.all_unserved();
        let reasons = Unserved::ALL
            .map(|reason| (counts[reason as usize], vec![("reason", reason.as_str())]));
        reasons.into()
    });
}

fn description(name: &str) -> &'static str {
    let mut all = GAUGES.into_iter().chain(COUNTERS);
    let found = all.find(|(described, _)| *described == name);
    found.map_or("", |(_, description)| description)
}

/// A value, and its attributes beside the name.
type Reading<V> = (V, Vec<(&'static str, &'static str)>);

/// Registers instruments that read a handle, for as long as there is one.
struct Instruments<'a, F> {
    meter: &'a Meter,
    handle: F,
    name: KeyValue,
}

impl<H, F: Fn() -> Option<H> + Clone + Send + Sync + 'static> Instruments<'_, F> {
    fn gauge(
        &self,
        name: &'static str,
        unit: &'static str,
        read: impl Fn(&H) -> Vec<Reading<f64>> + Send + Sync + 'static,
    ) {
        let readings = self.readings(read);
        let gauge = self.meter.f64_observable_gauge(name).with_unit(unit);
        let gauge = gauge.with_description(description(name));
        let gauge = gauge.with_callback(move |observer| {
            for (value, attributes) in readings() {
                observer.observe(value, &attributes);
            }
        });
        gauge.build();
    }

    fn counter(
        &self,
        name: &'static str,
        unit: &'static str,
        read: impl Fn(&H) -> Vec<Reading<u64>> + Send + Sync + 'static,
    ) {
        let readings = self.readings(read);
        let counter = self.meter.u64_observable_counter(name).with_unit(unit);
        let counter = counter.with_description(description(name));
        let counter = counter.with_callback(move |observer| {
            for (value, attributes) in readings() {
                observer.observe(value, &attributes);
            }
        });
        counter.build();
    }

    fn up_down(
        &self,
        name: &'static str,
        unit: &'static str,
        read: impl Fn(&H) -> Vec<Reading<i64>> + Send + Sync + 'static,
    ) {
        let readings = self.readings(read);
        let counter = self.meter.i64_observable_up_down_counter(name);
        let counter = counter.with_unit(unit).with_description(description(name));
        let counter = counter.with_callback(move |observer| {
            for (value, attributes) in readings() {
                observer.observe(value, &attributes);
            }
        });
        counter.build();
    }

    /// Reads the handle, and completes the attributes.
    fn readings<V>(
        &self,
        read: impl Fn(&H) -> Vec<Reading<V>> + Send + Sync + 'static,
    ) -> impl Fn() -> Vec<(V, Vec<KeyValue>)> + Send + Sync + 'static {
        let (handle, name) = (self.handle.clone(), self.name.clone());
        move || {
            let readings = handle().map(|handle| read(&handle));
            let complete = |(value, labels): Reading<V>| {
                let labels = labels.into_iter();
                let labels = labels.map(|(key, value)| KeyValue::new(key, value));
                (value, [name.clone()].into_iter().chain(labels).collect())
            };
            readings.into_iter().flatten().map(complete).collect()
        }
    }
}
