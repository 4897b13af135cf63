//! What operators see: counters by policy, never by key.
//!
//! | name | type | labels |
//! |---|---|---|
//! | `rate_limit_requests_total` | counter | `policy`, `outcome` |
//! | `rate_limit_info` | gauge | `policy`, `version` |
//! | `rate_limit_keys` | gauge | `policy` |
//! | `rate_limit_live_evictions_total` | counter | `policy` |
//!
//! `outcome` is `allowed`, `limited`, `shadow` (over quota, let through), `no_key`, `bypassed`
//! (including the allow list and limits that are switched off) or `denied` (by the deny list).
//! What concerns a limiter as a whole carries the name of its first policy.
//!
//! These are decisions of policies rather than requests: an admitted request counts as `allowed`
//! for each policy, a refused one as `limited` for those it violates, and one without a key that is
//! charged to the shared quota as `no_key` and by its decision. So divide by policy:
//! `limited{policy="x"} / (allowed + limited){policy="x"}`.
//!
//! With the `redis` feature, for a [limiter of a fleet](crate::fleet):
//!
//! | name | type | labels |
//! |---|---|---|
//! | `rate_limit_fleet_decisions_total` | counter | `policy`, `source` |
//! | `rate_limit_fleet_calls_total` | counter | `policy`, `outcome` |
//! | `rate_limit_fleet_call_seconds` | histogram | `policy` |
//! | `rate_limit_fleet_leased_requests` | gauge | `policy` |
//! | `rate_limit_fleet_nodes` | gauge | `policy` |
//! | `rate_limit_fleet_open` | gauge | `policy` |
//!
//! `source` is `lease`, `memory` (refused as it was a moment ago), `redis` or `outage`; the
//! `outcome` of a call is `answered`, `timeout` or `error`.
//!
//! Nothing here does anything without the `metrics` feature. For an OpenTelemetry meter there is the
//! feature `otel`, with the same names.

#[cfg(feature = "redis")]
mod fleet;
mod policy;

#[cfg(all(feature = "redis", feature = "otel"))]
pub(crate) use self::fleet::{CALLS, SOURCES};
#[cfg(feature = "redis")]
pub(crate) use self::fleet::{Call, FleetMetrics, Source};
#[cfg(feature = "otel")]
pub(crate) use self::policy::OUTCOMES;
pub(crate) use self::policy::{Metrics, Outcome};

/// Requests by `policy` and `outcome`.
pub const REQUESTS: &str = "rate_limit_requests_total";
/// 1, with the `version` of the crate.
pub const INFO: &str = "rate_limit_info";
/// Keys that the table remembers, with or without debt. It never falls, and stops at about twice
/// [`max_keys`](crate::LimiterBuilder::max_keys): it shows how many there were, not the load.
pub const KEYS: &str = "rate_limit_keys";
/// Keys that were forgotten while they were in debt: if it moves, raise
/// [`max_keys`](crate::LimiterBuilder::max_keys).
pub const LIVE_EVICTIONS: &str = "rate_limit_live_evictions_total";

/// Decisions of a fleet's limiter by `source`.
pub const FLEET_DECISIONS: &str = "rate_limit_fleet_decisions_total";
/// Calls to Redis by `outcome`, each for as many keys and requests as there were at the time.
pub const FLEET_CALLS: &str = "rate_limit_fleet_calls_total";
/// How long calls to Redis take, with a reply or without.
pub const FLEET_CALL_SECONDS: &str = "rate_limit_fleet_call_seconds";
/// Requests that this node has leased and not made, four times a second.
pub const FLEET_LEASED_REQUESTS: &str = "rate_limit_fleet_leased_requests";
/// Nodes of the fleet that were heard of within five seconds.
pub const FLEET_NODES: &str = "rate_limit_fleet_nodes";
/// Servers that are not asked at the moment because they do not reply.
pub const FLEET_OPEN: &str = "rate_limit_fleet_open";

/// Upper bounds of the buckets for [`FLEET_CALL_SECONDS`], in seconds: from a tenth of a millisecond
/// to a second, three to a factor of ten.
pub const FLEET_CALL_BUCKETS: [f64; 13] = [
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0,
];

/// What the gauges show.
#[cfg(any(feature = "metrics", feature = "otel"))]
pub(crate) const GAUGES: &[(&str, &str)] = &[
    (INFO, "1, with the version"),
    (KEYS, "keys that the limiter remembers"),
    (FLEET_LEASED_REQUESTS, "requests leased and not made"),
    (FLEET_NODES, "nodes of the fleet"),
    (FLEET_OPEN, "servers that are not asked"),
];

/// What the counters count.
#[cfg(any(feature = "metrics", feature = "otel"))]
pub(crate) const COUNTERS: &[(&str, &str)] = &[
    (REQUESTS, "requests, by policy and outcome"),
    (LIVE_EVICTIONS, "keys forgotten while they were in debt"),
    (FLEET_DECISIONS, "decisions of a fleet's limiter, by source"),
    (FLEET_CALLS, "calls to Redis, by outcome"),
];

/// What the histograms show, and their buckets.
#[cfg(feature = "metrics")]
const HISTOGRAMS: [(&str, &str, &[f64]); 1] = [(
    FLEET_CALL_SECONDS,
    "how long calls to Redis take",
    &FLEET_CALL_BUCKETS,
)];

/// Describes the metrics to the installed recorder, with their units, and returns the buckets that
/// suit each histogram.
///
/// Call it once after the recorder is installed. A recorder that wants the buckets before, such as
/// that of Prometheus, takes [`FLEET_CALL_BUCKETS`].
#[cfg(feature = "metrics")]
#[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
#[expect(
    clippy::must_use_candidate,
    reason = "called for the descriptions where the buckets are known"
)]
pub fn describe_and_buckets() -> [(&'static str, &'static [f64]); 1] {
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
