//! A limiter as instruments of an OpenTelemetry meter, behind the feature `otel`.
//!
//! ```
//! use opentelemetry::metrics::MeterProvider;
//! use opentelemetry_sdk::metrics::SdkMeterProvider;
//! use rate_limit::{Limiter, Policy, Quota, SECOND};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // As the service builds it, with a reader for its exporter.
//! let provider = SdkMeterProvider::builder().build();
//!
//! let policy = Policy::new("callers", Quota::count(50).per(SECOND));
//! let limiter = Limiter::builder().policy(policy).build()?;
//! rate_limit::otel::observe(&provider.meter("shop"), &limiter);
//! # Ok(())
//! # }
//! ```
//!
//! The limiter is read when the meter's reader collects, and not at requests. Names and labels are those
//! of [`metrics`](crate::metrics); what concerns a limiter as a whole carries the name of its first
//! policy.
//!
//! | instrument | kind | unit | attributes |
//! |---|---|---|---|
//! | `rate_limit_requests_total` | counter | `{request}` | `policy`, `outcome` |
//! | `rate_limit_info` | gauge | `1` | `policy`, `version` |
//! | `rate_limit_keys` | gauge | `{key}` | `policy` |
//! | `rate_limit_live_evictions_total` | counter | `{key}` | `policy` |
//!
//! The last two not for a limiter of a fleet, which has these instead (feature `redis`):
//!
//! | instrument | kind | unit | attributes |
//! |---|---|---|---|
//! | `rate_limit_fleet_decisions_total` | counter | `{request}` | `policy`, `source` |
//! | `rate_limit_fleet_calls_total` | counter | `{call}` | `policy`, `outcome` |
//! | `rate_limit_fleet_leased_requests` | gauge | `{request}` | `policy` |
//! | `rate_limit_fleet_nodes` | gauge | `{node}` | `policy` |
//! | `rate_limit_fleet_open` | gauge | `{server}` | `policy` |
//!
//! How long calls to Redis take (`rate_limit_fleet_call_seconds`) is in no snapshot: with the feature
//! `metrics` it reaches a meter through a recorder such as that of `metrics-exporter-otel`.

use std::sync::Arc;

use opentelemetry::{KeyValue, metrics::Meter};

#[cfg(feature = "redis")]
use crate::metrics::{
    CALLS, FLEET_CALLS_TOTAL, FLEET_DECISIONS_TOTAL, FLEET_LEASED_REQUESTS, FLEET_NODES,
    FLEET_OPEN, SOURCES,
};
use crate::{
    AnyLimiter,
    metrics::{COUNTERS, GAUGES, INFO, KEYS, LIVE_EVICTIONS_TOTAL, OUTCOMES, REQUESTS_TOTAL},
};

/// Registers the instruments of a limiter with `meter`.
///
/// To be called once for each limiter: callbacks of a meter cannot be taken back. They keep nothing
/// alive, and a limiter without a handle is no longer observed. Of a policy that
/// [`set_policies`](crate::Limiter::set_policies) has taken out, nothing is shown any more.
pub fn observe<L: AnyLimiter>(meter: &Meter, limiter: &L) {
    let instruments = Instruments {
        meter,
        handle: limiter.readings(),
    };
    instruments.counter(REQUESTS_TOTAL, "{request}", |readings| {
        let policies = readings.policies.iter();
        policies
            .flat_map(|(policy, counts)| {
                let counts = OUTCOMES.into_iter().zip(*counts);
                counts.map(|(outcome, count)| {
                    (count, vec![by(policy), KeyValue::new("outcome", outcome)])
                })
            })
            .collect()
    });
    instruments.gauge(INFO, "1", |readings| {
        let version = || KeyValue::new("version", env!("CARGO_PKG_VERSION"));
        let policies = readings.policies.iter();
        policies
            .map(|(policy, _)| (1.0, vec![by(policy), version()]))
            .collect()
    });
    instruments.gauge(KEYS, "{key}", |readings| {
        let resident = readings.keys.map(|(resident, _)| resident as f64);
        resident
            .map(|keys| (keys, vec![readings.first()]))
            .into_iter()
            .collect()
    });
    instruments.counter(LIVE_EVICTIONS_TOTAL, "{key}", |readings| {
        let evicted = readings.keys.map(|(_, evicted)| evicted);
        evicted
            .map(|keys| (keys, vec![readings.first()]))
            .into_iter()
            .collect()
    });
    #[cfg(feature = "redis")]
    instruments.fleet();
}

/// What is read of a limiter.
#[derive(Debug)]
pub(crate) struct Readings {
    /// The policies and their decisions, in the order of [`OUTCOMES`].
    pub(crate) policies: Vec<(Arc<str>, [u64; OUTCOMES.len()])>,
    /// The keys in the table, and those that were evicted in debt, where there is a table.
    pub(crate) keys: Option<(usize, u64)>,
    #[cfg(feature = "redis")]
    pub(crate) fleet: Option<FleetReadings>,
}

impl Readings {
    /// The attribute of what concerns the limiter as a whole.
    fn first(&self) -> KeyValue {
        let first = self.policies.first();
        first.map_or_else(|| KeyValue::new("policy", ""), |(policy, _)| by(policy))
    }
}

/// What is read of a node of a fleet.
#[cfg(feature = "redis")]
#[derive(Debug)]
pub(crate) struct FleetReadings {
    /// In the order of [`SOURCES`].
    pub(crate) decided: [u64; SOURCES.len()],
    /// In the order of [`CALLS`].
    pub(crate) called: [u64; CALLS.len()],
    pub(crate) leased: u64,
    pub(crate) nodes: u64,
    pub(crate) open: usize,
}

fn by(policy: &Arc<str>) -> KeyValue {
    KeyValue::new("policy", Arc::clone(policy))
}

fn description(name: &str) -> &'static str {
    let mut all = GAUGES.into_iter().chain(COUNTERS);
    let found = all.find(|(described, _)| *described == name);
    found.map_or("", |(_, description)| description)
}

/// A value and its attributes.
type Reading<V> = (V, Vec<KeyValue>);

/// Registers instruments that read a limiter, for as long as there is one.
struct Instruments<'a, F> {
    meter: &'a Meter,
    handle: F,
}

impl<F: Fn() -> Option<Readings> + Clone + Send + Sync + 'static> Instruments<'_, F> {
    #[cfg(feature = "redis")]
    fn fleet(&self) {
        type Level = (&'static str, &'static str, fn(&FleetReadings) -> u64);
        const LEVELS: [Level; 3] = [
            (FLEET_LEASED_REQUESTS, "{request}", |fleet| fleet.leased),
            (FLEET_NODES, "{node}", |fleet| fleet.nodes),
            (FLEET_OPEN, "{server}", |fleet| fleet.open as u64),
        ];
        for (name, unit, read) in LEVELS {
            self.gauge(name, unit, move |readings| {
                let level = readings.fleet.as_ref().map(read);
                level
                    .map(|level| (level as f64, vec![readings.first()]))
                    .into_iter()
                    .collect()
            });
        }
        let each = |readings: &Readings, label: &'static str, counts: Vec<(&'static str, u64)>| {
            let counts = counts.into_iter();
            counts
                .map(|(value, count)| (count, vec![readings.first(), KeyValue::new(label, value)]))
                .collect()
        };
        self.counter(FLEET_DECISIONS_TOTAL, "{request}", move |readings| {
            let fleet = readings.fleet.iter();
            let counts = fleet.flat_map(|fleet| SOURCES.into_iter().zip(fleet.decided));
            each(readings, "source", counts.collect())
        });
        self.counter(FLEET_CALLS_TOTAL, "{call}", move |readings| {
            let fleet = readings.fleet.iter();
            let counts = fleet.flat_map(|fleet| CALLS.into_iter().zip(fleet.called));
            each(readings, "outcome", counts.collect())
        });
    }

    fn gauge(
        &self,
        name: &'static str,
        unit: &'static str,
        read: impl Fn(&Readings) -> Vec<Reading<f64>> + Send + Sync + 'static,
    ) {
        let handle = self.handle.clone();
        let gauge = self.meter.f64_observable_gauge(name).with_unit(unit);
        let gauge = gauge.with_description(description(name));
        let gauge = gauge.with_callback(move |observer| {
            for (value, attributes) in handle().iter().flat_map(&read) {
                observer.observe(value, &attributes);
            }
        });
        gauge.build();
    }

    fn counter(
        &self,
        name: &'static str,
        unit: &'static str,
        read: impl Fn(&Readings) -> Vec<Reading<u64>> + Send + Sync + 'static,
    ) {
        let handle = self.handle.clone();
        let counter = self.meter.u64_observable_counter(name).with_unit(unit);
        let counter = counter.with_description(description(name));
        let counter = counter.with_callback(move |observer| {
            for (value, attributes) in handle().iter().flat_map(&read) {
                observer.observe(value, &attributes);
            }
        });
        counter.build();
    }
}
