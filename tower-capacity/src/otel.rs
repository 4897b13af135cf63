//! A limiter as instruments of an OpenTelemetry meter, behind the feature `otel`.
//!
//! ```
//! use opentelemetry::metrics::MeterProvider;
//! use opentelemetry_sdk::metrics::SdkMeterProvider;
//! use tower_capacity::Limiter;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // As the service builds it, with a reader for its exporter.
//! let provider = SdkMeterProvider::builder().build();
//!
//! let limiter = Limiter::builder().name("api").build()?;
//! tower_capacity::otel::observe(&provider.meter("shop"), &limiter);
//! # Ok(())
//! # }
//! ```
//!
//! The limiter is read when the meter's reader collects, and not at requests. Names and labels are those
//! of [`metrics`](crate::metrics); every instrument has the attribute `limiter`, the name of the
//! limiter.
//!
//! | instrument | kind | unit | attributes |
//! |---|---|---|---|
//! | `tower_capacity_limit` | gauge | `{request}` | |
//! | `tower_capacity_limit_min`, `tower_capacity_limit_max` | gauge | `{request}` | |
//! | `tower_capacity_inflight`, `tower_capacity_held`, `tower_capacity_queued` | gauge | `{request}` | |
//! | `tower_capacity_demand_ratio` | gauge | `1` | |
//! | `tower_capacity_baseline_seconds`, if the law keeps one | gauge | `s` | |
//! | `tower_capacity_mode` | gauge | `1` | `mode` |
//! | `tower_capacity_info` | gauge | `1` | `version` |
//! | `tower_capacity_requests_total` | counter | `{request}` | `decision`, `reason` |
//! | `tower_capacity_outcomes_total` | counter | `{request}` | `outcome` |
//!
//! An admitted request is counted here when it leaves. Waits (`tower_capacity_wait_seconds`) and the
//! throttles of clients are not in a snapshot: with the feature `metrics` they reach a meter through a
//! recorder such as that of `metrics-exporter-otel`.

use std::sync::Arc;

use opentelemetry::{KeyValue, metrics::Meter};

use crate::{
    Limiter, LimiterSnapshot, Mode,
    accounting::Progress,
    gate::RefusedReason,
    metrics::{BASELINE_DESCRIPTION, COUNTERS, GAUGES, names},
};

/// Registers the instruments of a limiter with `meter`.
///
/// To be called once for each limiter: callbacks of a meter cannot be taken back. They keep nothing
/// alive, and a limiter without a handle is no longer observed.
pub fn observe(meter: &Meter, limiter: &Limiter) {
    let shared = Arc::downgrade(&limiter.shared);
    let instruments = Instruments {
        meter,
        handle: move || shared.upgrade().map(|shared| Limiter { shared }),
        name: KeyValue::new("limiter", limiter.name().to_owned()),
    };
    for (name, read) in LEVELS {
        instruments.gauge(name, "{request}", move |limiter| {
            vec![(read(&limiter.snapshot()) as f64, vec![])]
        });
    }
    instruments.gauge(names::DEMAND, "1", |limiter| {
        vec![(limiter.pressure().demand_ratio(), vec![])]
    });
    instruments.gauge(names::BASELINE, "s", |limiter| {
        let baseline = limiter.snapshot().explanation().baseline;
        baseline
            .map(|seconds| (seconds, vec![]))
            .into_iter()
            .collect()
    });
    instruments.gauge(names::MODE, "1", |limiter| {
        let in_force = |mode| f64::from(u8::from(mode == limiter.mode()));
        let modes = Mode::ALL.map(|mode| (in_force(mode), vec![("mode", mode.as_str())]));
        modes.into()
    });
    instruments.gauge(names::INFO, "1", |_| {
        vec![(1.0, vec![("version", env!("CARGO_PKG_VERSION"))])]
    });
    instruments.counter(names::REQUESTS, "{request}", requests);
    instruments.counter(names::OUTCOMES, "{request}", |limiter| {
        let snapshot = limiter.snapshot();
        let left = |progress: Progress| {
            (
                left(&snapshot, progress),
                vec![("outcome", progress.outcome())],
            )
        };
        Progress::ALL.map(left).into()
    });
}

type Level = (&'static str, fn(&LimiterSnapshot) -> usize);

const LEVELS: [Level; 6] = [
    (names::LIMIT, LimiterSnapshot::limit),
    (names::LIMIT_MIN, |snapshot| *snapshot.bounds().start()),
    (names::LIMIT_MAX, |snapshot| *snapshot.bounds().end()),
    (names::INFLIGHT, LimiterSnapshot::inflight),
    (names::HELD, LimiterSnapshot::held),
    (names::QUEUED, LimiterSnapshot::queued),
];

fn requests(limiter: &Limiter) -> Vec<Reading<u64>> {
    let snapshot = limiter.snapshot();
    let labels = |decision, reason| vec![("decision", decision), ("reason", reason)];
    let admitted = Progress::ALL.map(|progress| left(&snapshot, progress));
    let mut readings = vec![(admitted.iter().sum(), labels("admitted", "none"))];
    readings.extend(RefusedReason::ALL.map(|reason| {
        (
            snapshot.refusals_for(reason),
            labels("shed", reason.as_str()),
        )
    }));
    readings
}

/// Requests that left with this progress.
const fn left(snapshot: &LimiterSnapshot, progress: Progress) -> u64 {
    match progress {
        Progress::Running => snapshot.cancelled(),
        Progress::Succeeded => snapshot.completions(),
        Progress::Ignored => snapshot.ignored(),
        Progress::Dropped => snapshot.drops(),
    }
}

fn description(name: &str) -> &'static str {
    let all = [(names::BASELINE, BASELINE_DESCRIPTION)]
        .into_iter()
        .chain(GAUGES)
        .chain(COUNTERS);
    let mut found = all.filter(|(described, _)| *described == name);
    found.next().map_or("", |(_, description)| description)
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
