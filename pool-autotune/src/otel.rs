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

mod observed;

use std::sync::Arc;

use opentelemetry::{KeyValue, metrics::Meter};
use tokio::time::Instant;

use self::observed::{Observed, Reading};
use crate::Autotuned;
use crate::adapter::Adapter;
use crate::metrics::{
    COUNT, DEMAND_RATIO, HELD, INFO, MAX, MAX_SIZE, MIN_SIZE, PENDING_REQUESTS, POOL_NAME, RESIZES,
    STATE, TARGET_SIZE, TIMEOUTS, UNSERVED, Unserved, VERDICT,
};
use crate::tuner::Verdict;

/// Registers the instruments of a pool with `meter`.
///
/// To be called once for each pool: callbacks of a meter cannot be taken back. They keep nothing
/// alive, and a pool without a handle is no longer observed.
pub fn observe<P: Adapter>(meter: &Meter, pool: &Autotuned<P>) {
    let shared = pool.downgrade();
    let observed = Observed {
        handle: move || shared.upgrade(),
        attributes: vec![KeyValue::new(POOL_NAME, Arc::clone(&pool.shared().name))],
    };
    let gauge = |name| meter.f64_observable_gauge(name);
    let counter = |name| meter.u64_observable_counter(name);
    let up_down = |name| meter.i64_observable_up_down_counter(name);
    observed
        .by(up_down(COUNT), "{connection}", |pool| {
            let snapshot = pool.snapshot();
            let used = snapshot.in_use().min(snapshot.size());
            let connections =
                |count: usize, state| (count as i64, vec![KeyValue::new(STATE, state)]);
            let idle = snapshot.size() - used;
            vec![connections(idle, "idle"), connections(used, "used")]
        })
        .build();
    observed
        .by(up_down(MAX), "{connection}", |pool| {
            one(pool.snapshot().limit() as i64)
        })
        .build();
    observed
        .by(up_down(PENDING_REQUESTS), "{request}", |pool| {
            one(pool.snapshot().pending() as i64)
        })
        .build();
    observed
        .by(counter(TIMEOUTS), "{timeout}", |pool| {
            one(pool.stats.all_unserved()[Unserved::Timeout as usize])
        })
        .build();
    observed
        .by(gauge(TARGET_SIZE), "{connection}", |pool| {
            one(pool.snapshot().target() as f64)
        })
        .build();
    observed
        .by(gauge(MIN_SIZE), "{connection}", |pool| {
            one(pool.control().tuner.bounds().min() as f64)
        })
        .build();
    observed
        .by(gauge(MAX_SIZE), "{connection}", |pool| {
            one(pool.control().tuner.bounds().max() as f64)
        })
        .build();
    observed
        .by(gauge(HELD), "{connection}", |pool| {
            one(pool.control().held.count as f64)
        })
        .build();
    observed
        .by(gauge(DEMAND_RATIO), "1", |pool| {
            one(pool.pressure().demand_ratio())
        })
        .build();
    observed
        .by(gauge(VERDICT), "1", |pool| {
            let current = pool.verdict(Instant::now());
            let in_force = |verdict| f64::from(u8::from(verdict == current.as_str()));
            let label = |verdict| vec![KeyValue::new("verdict", verdict)];
            Verdict::NAMES
                .map(|verdict| (in_force(verdict), label(verdict)))
                .into()
        })
        .build();
    observed
        .by(gauge(INFO), "1", |pool| {
            let mode = KeyValue::new("mode", pool.mode.as_str());
            let version = KeyValue::new("version", env!("CARGO_PKG_VERSION"));
            vec![(1.0, vec![mode, version])]
        })
        .build();
    observed
        .by(counter(RESIZES), "{resize}", |pool| {
            let control = pool.control();
            let label = |&(direction, reason): &(&'static str, &'static str)| {
                vec![
                    KeyValue::new("direction", direction),
                    KeyValue::new("reason", reason),
                ]
            };
            control
                .resizes
                .iter()
                .map(|(change, count)| (*count, label(change)))
                .collect()
        })
        .build();
    observed
        .by(counter(UNSERVED), "{request}", |pool| {
            let counts = pool.stats.all_unserved();
            let label = |reason: Unserved| vec![KeyValue::new("reason", reason.as_str())];
            Unserved::ALL
                .map(|reason| (counts[reason as usize], label(reason)))
                .into()
        })
        .build();
}

/// A reading without attributes of its own.
fn one<V>(value: V) -> Vec<Reading<V>> {
    vec![(value, vec![])]
}
