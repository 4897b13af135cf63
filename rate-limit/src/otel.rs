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

mod observed;

use std::sync::Arc;

use opentelemetry::{KeyValue, metrics::Meter};

use self::observed::{Observed, Reading};
#[cfg(feature = "redis")]
use crate::metrics::{
    CALLS, FLEET_CALLS, FLEET_DECISIONS, FLEET_LEASED_REQUESTS, FLEET_NODES, FLEET_OPEN, SOURCES,
};
use crate::{
    AnyLimiter,
    metrics::{INFO, KEYS, LIVE_EVICTIONS, OUTCOMES, REQUESTS},
};

/// Registers the instruments of a limiter with `meter`.
///
/// To be called once for each limiter: callbacks of a meter cannot be taken back. They keep nothing
/// alive, and a limiter without a handle is no longer observed. Of a policy that
/// [`set_policies`](crate::Limiter::set_policies) has taken out, nothing is shown any more.
pub fn observe<L: AnyLimiter>(meter: &Meter, limiter: &L) {
    let observed = Observed {
        handle: limiter.readings(),
        attributes: vec![],
    };
    let gauge = |name| meter.f64_observable_gauge(name);
    let counter = |name| meter.u64_observable_counter(name);
    observed
        .by(counter(REQUESTS), "{request}", requests)
        .build();
    observed.by(gauge(INFO), "1", info).build();
    observed
        .by(gauge(KEYS), "{key}", |readings| {
            readings.one(readings.keys.map(|(resident, _)| resident as f64))
        })
        .build();
    observed
        .by(counter(LIVE_EVICTIONS), "{key}", |readings| {
            readings.one(readings.keys.map(|(_, evicted)| evicted))
        })
        .build();
    #[cfg(feature = "redis")]
    {
        for (name, unit, read) in LEVELS {
            observed
                .by(gauge(name), unit, move |readings| {
                    readings.one(readings.fleet.as_ref().map(|fleet| read(fleet) as f64))
                })
                .build();
        }
        observed
            .by(counter(FLEET_DECISIONS), "{request}", |readings| {
                readings.each("source", SOURCES, |fleet| fleet.decided)
            })
            .build();
        observed
            .by(counter(FLEET_CALLS), "{call}", |readings| {
                readings.each("outcome", CALLS, |fleet| fleet.called)
            })
            .build();
    }
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
    /// What concerns the limiter as a whole, if it has that.
    fn one<V>(&self, value: Option<V>) -> Vec<Reading<V>> {
        value
            .map(|value| (value, vec![self.first()]))
            .into_iter()
            .collect()
    }

    /// What a node of a fleet has counted, by label.
    #[cfg(feature = "redis")]
    fn each<const N: usize>(
        &self,
        label: &'static str,
        values: [&'static str; N],
        read: fn(&FleetReadings) -> [u64; N],
    ) -> Vec<Reading<u64>> {
        let fleet = self.fleet.iter();
        let counts = fleet.flat_map(|fleet| values.into_iter().zip(read(fleet)));
        let labels = |value| vec![self.first(), KeyValue::new(label, value)];
        counts
            .map(|(value, count)| (count, labels(value)))
            .collect()
    }

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

#[cfg(feature = "redis")]
type Level = (&'static str, &'static str, fn(&FleetReadings) -> u64);

#[cfg(feature = "redis")]
const LEVELS: [Level; 3] = [
    (FLEET_LEASED_REQUESTS, "{request}", |fleet| fleet.leased),
    (FLEET_NODES, "{node}", |fleet| fleet.nodes),
    (FLEET_OPEN, "{server}", |fleet| fleet.open as u64),
];

fn requests(readings: &Readings) -> Vec<Reading<u64>> {
    let policies = readings.policies.iter();
    let each = |(policy, counts): &(Arc<str>, [u64; OUTCOMES.len()])| {
        let label = |outcome| vec![by(policy), KeyValue::new("outcome", outcome)];
        let counts = OUTCOMES.into_iter().zip(*counts);
        let counts = counts.map(|(outcome, count)| (count, label(outcome)));
        counts.collect::<Vec<_>>()
    };
    policies.flat_map(each).collect()
}

fn info(readings: &Readings) -> Vec<Reading<f64>> {
    let version = || KeyValue::new("version", env!("CARGO_PKG_VERSION"));
    let policies = readings.policies.iter();
    policies
        .map(|(policy, _)| (1.0, vec![by(policy), version()]))
        .collect()
}

fn by(policy: &Arc<str>) -> KeyValue {
    KeyValue::new("policy", Arc::clone(policy))
}
