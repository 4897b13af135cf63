//! A capacity document as data. Numbers are the document's own; [`Scale`] says what the machine gets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::target::{Kind, Metric, Target, Trigger};

/// One document.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    pub(crate) name: String,
    pub(crate) title: String,
    /// What the document calls too slow for any user, in ms: later responses are no goodput.
    pub(crate) objective_ms: f64,
    /// When users give up, in ms.
    pub(crate) patience_ms: f64,
    #[serde(default)]
    pub(crate) scale: Scale,
    pub(crate) servers: Servers,
    #[serde(rename = "static")]
    pub(crate) documented: Documented,
    #[serde(rename = "endpoint")]
    pub(crate) endpoints: Vec<Endpoint>,
    #[serde(default)]
    pub(crate) cache: Option<Cache>,
    #[serde(default)]
    pub(crate) quota: Option<QuotaOf>,
    #[serde(default)]
    pub(crate) outbound: Option<Outbound>,
    #[serde(rename = "level")]
    pub(crate) levels: Vec<Level>,
    #[serde(rename = "target")]
    pub(crate) targets: Vec<Target>,
    #[serde(rename = "trigger", default)]
    pub(crate) triggers: Vec<Trigger>,
    #[serde(default)]
    pub(crate) sweep: Option<Sweep>,
    #[serde(default)]
    pub(crate) search: Option<Search>,
    #[serde(default)]
    pub(crate) growth: Option<Growth>,
    /// What the documented run cannot show here, and why.
    #[serde(default)]
    pub(crate) notes: Vec<String>,
}

/// Factors between the document and the run.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Scale {
    /// Rates, users, pools, quotas and server limits are multiplied by this.
    pub(crate) load: f64,
    /// Service times, think times and targets in ms are multiplied by this, and rates divided.
    pub(crate) time: f64,
    /// Documented durations (soaks, windows of triggers) are multiplied by this.
    pub(crate) clock: f64,
}

impl Default for Scale {
    fn default() -> Self {
        Self {
            load: 1.0,
            time: 1.0,
            clock: 1.0,
        }
    }
}

impl Scale {
    pub(crate) fn rate(&self, rate: f64) -> f64 {
        rate * self.load / self.time
    }

    pub(crate) fn ms(&self, ms: f64) -> f64 {
        ms * self.time
    }

    /// A count of connections, users or requests, at least 1.
    pub(crate) fn count(&self, count: usize) -> usize {
        ((count as f64 * self.load).round() as usize).max(1)
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "load × {}, times × {}, clock × {}",
            self.load, self.time, self.clock
        )
    }
}

/// The real servers.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Servers {
    /// `max_connections` of the primary, and of each replica.
    pub(crate) max_connections: usize,
    #[serde(default)]
    pub(crate) replicas: usize,
    /// A `PgBouncer` between the static pods and the primary.
    #[serde(default)]
    pub(crate) bouncer: Option<Bouncer>,
    /// What the database can work on at once; more wait inside. Without it, it has no such limit.
    #[serde(default)]
    pub(crate) database_slots: Option<usize>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bouncer {
    pub(crate) pool: usize,
    pub(crate) reserve: usize,
    pub(crate) clients: usize,
}

/// The numbers that the document tells its readers to copy. [`Level::pool`] has those of the pools.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Documented {
    /// How long a request waits for a connection.
    pub(crate) pool_timeout_ms: f64,
    /// Requests at once in each pod; more are refused.
    #[serde(default)]
    pub(crate) concurrency: Option<usize>,
    /// Connections to Redis, of all pods.
    #[serde(default = "Documented::redis_pool")]
    pub(crate) redis_pool: usize,
}

impl Documented {
    const fn redis_pool() -> usize {
        50
    }
}

/// A kind of request.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Endpoint {
    pub(crate) name: String,
    pub(crate) weight: f64,
    /// Queries, one after the other, on one checkout.
    pub(crate) queries: u32,
    /// Time of a query in the database.
    pub(crate) query_ms: f64,
    /// Rows that each query reads, which is work for a processor.
    #[serde(default = "Endpoint::rows")]
    pub(crate) rows: u32,
    /// Time beside the database, without a connection.
    #[serde(default)]
    pub(crate) work_ms: f64,
    /// Reads from the cache first.
    #[serde(default)]
    pub(crate) cached: bool,
    /// Writes, and removes what is cached of it.
    #[serde(default)]
    pub(crate) writes: bool,
}

impl Endpoint {
    const fn rows() -> u32 {
        20
    }
}

/// What is cached: keys are asked for with a frequency of 1 / rank^skew.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cache {
    pub(crate) keys: u32,
    pub(crate) skew: f64,
    pub(crate) ttl_s: u32,
}

/// A quota of the service for each user, or for all.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QuotaOf {
    pub(crate) count: u64,
    pub(crate) per_s: f64,
    pub(crate) burst: u64,
    /// For each user, which is not scaled; otherwise for each pod.
    #[serde(default)]
    pub(crate) per_user: bool,
}

/// An API of another service that is called beside the requests.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Outbound {
    pub(crate) per_minute: u64,
    pub(crate) at_once: usize,
    pub(crate) call_ms: f64,
    /// Calls that the service would make.
    pub(crate) wanted_per_minute: f64,
}

/// Some time at one load.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Level {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) kind: Kind,
    pub(crate) pods: usize,
    /// The documented pool, of all pods together, as `size + overflow`.
    pub(crate) pool: usize,
    /// Requests a second, open loop.
    #[serde(default)]
    pub(crate) rate: Option<f64>,
    /// Users that ask, think and ask again.
    #[serde(default)]
    pub(crate) users: Option<usize>,
    #[serde(default)]
    pub(crate) think_ms: Option<[f64; 2]>,
    /// Users that start each second; all at once by default.
    #[serde(default)]
    pub(crate) spawn_per_s: Option<f64>,
    /// Open `WebSockets`, not scaled.
    #[serde(default)]
    pub(crate) sockets: usize,
    /// How long it lasts here.
    pub(crate) seconds: f64,
    /// The documented length, where that is longer.
    #[serde(default)]
    pub(crate) documented_seconds: Option<f64>,
    /// Weights of endpoints in place of their own; those not named are not asked for.
    #[serde(default)]
    pub(crate) mix: Option<BTreeMap<String, f64>>,
    /// The rate is not scaled.
    #[serde(default)]
    pub(crate) unscaled: bool,
    /// All pods are replaced, one after the other, in the middle of it.
    #[serde(default)]
    pub(crate) deploys: bool,
}

/// The search for the best static numbers: each limit of requests at once, at one level.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sweep {
    /// The level whose load is offered.
    pub(crate) level: String,
    /// Requests at once in each pod.
    pub(crate) concurrency: Vec<usize>,
    pub(crate) seconds: f64,
}

/// The search for the comfortable capacity and for the breaking point.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Search {
    pub(crate) from: f64,
    pub(crate) factor: f64,
    pub(crate) steps: usize,
    pub(crate) seconds: f64,
    /// The band that is comfortable, and the one that is broken: P95 in ms and errors in percent.
    pub(crate) comfortable_p95_ms: f64,
    pub(crate) comfortable_error_pct: f64,
    pub(crate) broken_p95_ms: f64,
    pub(crate) broken_error_pct: f64,
}

/// A projection: the load grows by a part each month.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Growth {
    pub(crate) rate: f64,
    pub(crate) monthly_pct: f64,
    pub(crate) months: u32,
    /// What the document says that an instance can do.
    pub(crate) per_instance: f64,
    /// The part of it that is to be kept free, in percent.
    pub(crate) headroom_pct: f64,
    pub(crate) max_instances: usize,
}

/// Why a profile is refused: what is wrong, where, and what was expected.
#[derive(Debug)]
pub(crate) struct ProfileError(String);

impl fmt::Display for ProfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ProfileError {}

fn refused<T>(
    what: impl fmt::Display,
    value: impl fmt::Debug,
    expected: &str,
) -> Result<T, ProfileError> {
    Err(ProfileError(format!(
        "{what} is {value:?}; expected {expected}"
    )))
}

fn positive(what: impl fmt::Display, value: f64) -> Result<(), ProfileError> {
    match value.is_finite() && value > 0.0 {
        true => Ok(()),
        false => refused(what, value, "a number above 0"),
    }
}

impl Profile {
    pub(crate) fn parse(text: &str) -> Result<Self, ProfileError> {
        let profile: Self =
            toml::from_str(text).map_err(|error| ProfileError(error.to_string()))?;
        profile.check()?;
        Ok(profile)
    }

    pub(crate) fn level(&self, name: &str) -> Option<&Level> {
        self.levels.iter().find(|level| level.name == name)
    }

    /// Whether a Redis is needed.
    pub(crate) fn has_redis(&self) -> bool {
        self.cache.is_some() || self.quota.is_some() || self.outbound.is_some()
    }

    pub(crate) fn most_pods(&self) -> usize {
        self.levels
            .iter()
            .map(|level| level.pods)
            .max()
            .unwrap_or(1)
    }

    fn check(&self) -> Result<(), ProfileError> {
        if self.name.is_empty() || !self.name.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return refused("`name`", &self.name, "letters and digits");
        }
        for (name, value) in [
            ("`objective_ms`", self.objective_ms),
            ("`patience_ms`", self.patience_ms),
            ("`scale.load`", self.scale.load),
            ("`scale.time`", self.scale.time),
            ("`scale.clock`", self.scale.clock),
            ("`static.pool_timeout_ms`", self.documented.pool_timeout_ms),
        ] {
            positive(name, value)?;
        }
        if self.scale.count(self.servers.max_connections) < 8 {
            let value = self.servers.max_connections;
            return refused(
                "`servers.max_connections`",
                value,
                "at least 8 after scaling",
            );
        }
        self.check_endpoints()?;
        self.check_levels()?;
        self.check_names()
    }

    fn check_endpoints(&self) -> Result<(), ProfileError> {
        if self.endpoints.is_empty() {
            return refused("`endpoint`", "none", "at least one");
        }
        for endpoint in &self.endpoints {
            let name = &endpoint.name;
            positive(
                format!("`weight` of endpoint `{name}`"),
                endpoint.weight + 1e-9,
            )?;
            if endpoint.query_ms < 0.0 || endpoint.work_ms < 0.0 {
                let value = endpoint.query_ms.min(endpoint.work_ms);
                return refused(format!("a time of endpoint `{name}`"), value, "at least 0");
            }
            if (endpoint.cached || endpoint.writes) && self.cache.is_none() {
                return refused(
                    format!("`cache`, which endpoint `{name}` uses,"),
                    "missing",
                    "a table",
                );
            }
        }
        Ok(())
    }

    fn check_levels(&self) -> Result<(), ProfileError> {
        if self.levels.is_empty() {
            return refused("`level`", "none", "at least one");
        }
        for level in &self.levels {
            let name = &level.name;
            if !(1..=32).contains(&level.pods) {
                return refused(format!("`pods` of level `{name}`"), level.pods, "1 to 32");
            }
            if !(3.0..=600.0).contains(&level.seconds) {
                return refused(
                    format!("`seconds` of level `{name}`"),
                    level.seconds,
                    "3 to 600",
                );
            }
            if level.pool == 0 {
                return refused(format!("`pool` of level `{name}`"), 0, "at least 1");
            }
            match (level.rate, level.users) {
                (Some(rate), None) => positive(format!("`rate` of level `{name}`"), rate)?,
                (None, Some(users)) if users > 0 => {}
                (rate, users) => {
                    let what = format!("`rate` or `users` of level `{name}`");
                    return refused(what, (rate, users), "one of the two, above 0");
                }
            }
            if let Some([least, most]) = level.think_ms
                && !(0.0 <= least && least <= most)
            {
                let what = format!("`think_ms` of level `{name}`");
                return refused(what, [least, most], "from least to most");
            }
            for endpoint in level.mix.iter().flat_map(BTreeMap::keys) {
                if !self.endpoints.iter().any(|known| known.name == *endpoint) {
                    let what = format!("an endpoint in `mix` of level `{name}`");
                    return refused(what, endpoint, "the name of an endpoint");
                }
            }
        }
        Ok(())
    }

    fn check_names(&self) -> Result<(), ProfileError> {
        let names: BTreeSet<_> = self.levels.iter().map(|level| &level.name).collect();
        if names.len() < self.levels.len() {
            return refused("a `name` of a level", "used twice", "names that differ");
        }
        let known = |name: &String| names.contains(name);
        for target in &self.targets {
            if let Some(name) = target.levels.iter().find(|name| !known(name)) {
                let what = format!("a level of the target \"{}\"", target.says);
                return refused(what, name, "the name of a level");
            }
            if target.max.is_some() == target.min.is_some() {
                let what = format!("the bound of the target \"{}\"", target.says);
                return refused(what, (target.min, target.max), "one of `min` and `max`");
            }
            if target.metric == Metric::GoodputPct && self.sweep.is_none() {
                return refused("`sweep`, which `goodput_pct` needs,", "missing", "a table");
            }
        }
        if let Some(sweep) = &self.sweep
            && !known(&sweep.level)
        {
            return refused("`sweep.level`", &sweep.level, "the name of a level");
        }
        if let Some(sweep) = &self.sweep
            && sweep.concurrency.contains(&0)
        {
            return refused("a limit in `sweep.concurrency`", 0, "at least 1");
        }
        if let Some(search) = &self.search
            && !(1.01..=4.0).contains(&search.factor)
        {
            return refused("`search.factor`", search.factor, "1.01 to 4");
        }
        Ok(())
    }
}
