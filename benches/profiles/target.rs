//! What a document promises.

use serde::{Deserialize, Serialize};

/// What can be measured of a level.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Sojourn times of served requests.
    P50Ms,
    P95Ms,
    P99Ms,
    MeanMs,
    /// Requests that were neither served nor over quota.
    ErrorPct,
    /// Requests given up by their users.
    TimeoutPct,
    /// Requests over quota (429).
    LimitedPct,
    /// Requests that failed in any way, as a count.
    Lost,
    /// Served a second.
    ServedPerS,
    /// Goodput, of the best that any static numbers reached.
    GoodputPct,
    /// The most connections, by the server's count, of its limit.
    ConnectionsPct,
    /// Connections that the server refused for lack of a place.
    ConnectionsRefused,
    /// The time of a query, from its checkout's end.
    QueryP95Ms,
    /// Queries longer than a second (times the factor of times).
    SlowQueries,
    /// Reads found in the cache.
    HitPct,
    /// Growth of the pods' memory between the thirds of the level.
    MemoryGrowthPct,
    /// Open `WebSockets` at the end.
    Sockets,
    /// Calls that the API refused (429) after its first minute.
    OutboundRefused,
    /// Calls that the API served a minute.
    OutboundPerMinute,
    /// Probes of health that failed.
    ProbesFailed,
}

/// A promise of a document.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Target {
    pub(crate) says: String,
    pub(crate) metric: Metric,
    #[serde(default)]
    pub(crate) min: Option<f64>,
    #[serde(default)]
    pub(crate) max: Option<f64>,
    /// Where it holds; by default, at all levels of `kind`.
    #[serde(default)]
    pub(crate) levels: Vec<String>,
    #[serde(default)]
    pub(crate) kind: Kind,
}

/// A rule for operators: a metric beyond a bound for some time.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Trigger {
    pub(crate) says: String,
    pub(crate) metric: Metric,
    #[serde(default)]
    pub(crate) above: Option<f64>,
    #[serde(default)]
    pub(crate) below: Option<f64>,
    pub(crate) for_s: f64,
}

/// What is expected of a level.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Within the plan.
    #[default]
    Plan,
    /// Beyond it.
    Beyond,
}
