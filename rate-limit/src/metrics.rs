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

/// Requests by `policy` and `outcome`.
pub const REQUESTS_TOTAL: &str = "rate_limit_requests_total";
/// 1, with the `version` of the crate.
pub const INFO: &str = "rate_limit_info";
/// Keys that the table remembers, with or without debt. It never falls, and stops at about twice
/// [`max_keys`](crate::LimiterBuilder::max_keys): it shows how many there were, not the load.
pub const KEYS: &str = "rate_limit_keys";
/// Keys that were forgotten while they were in debt: if it moves, raise
/// [`max_keys`](crate::LimiterBuilder::max_keys).
pub const LIVE_EVICTIONS_TOTAL: &str = "rate_limit_live_evictions_total";

/// Decisions of a fleet's limiter by `source`.
pub const FLEET_DECISIONS_TOTAL: &str = "rate_limit_fleet_decisions_total";
/// Calls to Redis by `outcome`, each for as many keys and requests as there were at the time.
pub const FLEET_CALLS_TOTAL: &str = "rate_limit_fleet_calls_total";
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
pub(crate) const GAUGES: [(&str, &str); 5] = [
    (INFO, "1, with the version"),
    (KEYS, "keys that the limiter remembers"),
    (FLEET_LEASED_REQUESTS, "requests leased and not made"),
    (FLEET_NODES, "nodes of the fleet"),
    (FLEET_OPEN, "servers that are not asked"),
];

/// What the counters count.
#[cfg(any(feature = "metrics", feature = "otel"))]
pub(crate) const COUNTERS: [(&str, &str); 4] = [
    (REQUESTS_TOTAL, "requests, by policy and outcome"),
    (
        LIVE_EVICTIONS_TOTAL,
        "keys forgotten while they were in debt",
    ),
    (
        FLEET_DECISIONS_TOTAL,
        "decisions of a fleet's limiter, by source",
    ),
    (FLEET_CALLS_TOTAL, "calls to Redis, by outcome"),
];

/// Describes every metric to the installed recorder, with its unit, and returns the buckets that
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
    use metrics::{Unit, describe_counter, describe_gauge};
    for (name, description) in GAUGES {
        describe_gauge!(name, Unit::Count, description);
    }
    for (name, description) in COUNTERS {
        describe_counter!(name, Unit::Count, description);
    }
    metrics::describe_histogram!(
        FLEET_CALL_SECONDS,
        Unit::Seconds,
        "how long calls to Redis take"
    );
    [(FLEET_CALL_SECONDS, &FLEET_CALL_BUCKETS)]
}

/// What became of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    Allowed,
    Limited,
    Shadow,
    NoKey,
    Bypassed,
    Denied,
}

/// The outcomes as labels, in the order of [`Outcome`].
#[cfg(any(feature = "metrics", feature = "otel"))]
pub(crate) const OUTCOMES: [&str; 6] = [
    "allowed", "limited", "shadow", "no_key", "bypassed", "denied",
];

/// The counters of one policy. The recorder is looked up at each event, so it may be installed
/// after the layer was built; the names are put together once, so an event allocates nothing.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    /// In the order of [`OUTCOMES`].
    #[cfg(feature = "otel")]
    counts: std::sync::Arc<Counts<{ OUTCOMES.len() }>>,
    #[cfg(feature = "metrics")]
    keys: std::sync::Arc<imp::Keys>,
}

impl Meter {
    #[inline]
    pub(crate) fn count(&self, outcome: Outcome) {
        #[cfg(feature = "otel")]
        self.counts.add(outcome as usize);
        self.record(outcome);
    }

    /// Decisions since the limiter was built, in the order of [`OUTCOMES`].
    #[cfg(feature = "otel")]
    pub(crate) fn counts(&self) -> [u64; OUTCOMES.len()] {
        self.counts.read()
    }
}

/// Counters for those that read them later.
#[cfg(feature = "otel")]
#[derive(Debug)]
pub(crate) struct Counts<const N: usize>([std::sync::atomic::AtomicU64; N]);

#[cfg(feature = "otel")]
impl<const N: usize> Default for Counts<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| 0.into()))
    }
}

#[cfg(feature = "otel")]
impl<const N: usize> Counts<N> {
    fn add(&self, index: usize) {
        self.0[index].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> [u64; N] {
        std::array::from_fn(|index| self.0[index].load(std::sync::atomic::Ordering::Relaxed))
    }
}

#[cfg(not(feature = "metrics"))]
impl Meter {
    pub(crate) fn new(_policy: &str) -> Self {
        Self {
            #[cfg(feature = "otel")]
            counts: Default::default(),
        }
    }

    fn record(&self, _outcome: Outcome) {}

    #[cfg(feature = "redis")]
    pub(crate) fn show(&self) {}

    pub(crate) fn resident(&self, _keys: usize) {}

    pub(crate) fn live_eviction(&self) {}
}

#[cfg(feature = "metrics")]
mod imp {
    use metrics::{Key, Label, Level, Metadata, with_recorder};

    use super::{INFO, KEYS, LIVE_EVICTIONS_TOTAL, Meter, OUTCOMES, Outcome, REQUESTS_TOTAL};

    #[derive(Debug)]
    pub(crate) struct Keys {
        outcomes: [Key; OUTCOMES.len()],
        info: Key,
        resident: Key,
        live_evictions: Key,
    }

    static METADATA: Metadata<'static> = Metadata::new("rate_limit", Level::INFO, None);

    impl Meter {
        pub(crate) fn new(policy: &str) -> Self {
            let policy = Label::new("policy", policy.to_owned());
            let outcomes = OUTCOMES.map(|outcome| {
                let labels = vec![policy.clone(), Label::from_static_parts("outcome", outcome)];
                Key::from_parts(REQUESTS_TOTAL, labels)
            });
            let version = Label::from_static_parts("version", env!("CARGO_PKG_VERSION"));
            let keys = Keys {
                outcomes,
                info: Key::from_parts(INFO, vec![policy.clone(), version]),
                resident: Key::from_parts(KEYS, vec![policy.clone()]),
                live_evictions: Key::from_parts(LIVE_EVICTIONS_TOTAL, vec![policy]),
            };
            Self {
                #[cfg(feature = "otel")]
                counts: Default::default(),
                keys: keys.into(),
            }
        }

        /// Shows every counter, also those at zero: one that is not there hides its first event from
        /// a look at its increase. To be called now and then, as the recorder may be new.
        pub(crate) fn show(&self) {
            with_recorder(|recorder| {
                let info = recorder.register_gauge(&self.keys.info, &METADATA);
                info.set(1.0);
                let counters = self.keys.outcomes.iter().chain([&self.keys.live_evictions]);
                counters.for_each(|key| recorder.register_counter(key, &METADATA).increment(0));
            });
        }

        pub(super) fn record(&self, outcome: Outcome) {
            let key = &self.keys.outcomes[outcome as usize];
            with_recorder(|recorder| recorder.register_counter(key, &METADATA).increment(1));
        }

        pub(crate) fn resident(&self, keys: usize) {
            with_recorder(|recorder| {
                let resident = recorder.register_gauge(&self.keys.resident, &METADATA);
                resident.set(keys as f64);
            });
            if keys.is_power_of_two() {
                self.show();
            }
        }

        pub(crate) fn live_eviction(&self) {
            with_recorder(|recorder| {
                recorder
                    .register_counter(&self.keys.live_evictions, &METADATA)
                    .increment(1);
            });
        }
    }
}

/// Where a decision of a fleet's limiter came from.
#[cfg(feature = "redis")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    Lease,
    Memory,
    Redis,
    Outage,
}

/// What a call to Redis came to.
#[cfg(feature = "redis")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Call {
    Answered,
    Timeout,
    Error,
}

/// The sources as labels, in the order of [`Source`].
#[cfg(all(feature = "redis", any(feature = "metrics", feature = "otel")))]
pub(crate) const SOURCES: [&str; 4] = ["lease", "memory", "redis", "outage"];

/// The outcomes of calls as labels, in the order of [`Call`].
#[cfg(all(feature = "redis", any(feature = "metrics", feature = "otel")))]
pub(crate) const CALLS: [&str; 3] = ["answered", "timeout", "error"];

/// The counters of a fleet's limiter.
#[cfg(feature = "redis")]
#[derive(Debug)]
pub(crate) struct FleetMeter {
    /// Counted in any case, for [`FleetLimiter::calls`](crate::fleet::FleetLimiter::calls).
    calls: std::sync::atomic::AtomicU64,
    /// In the order of [`SOURCES`], and of [`CALLS`].
    #[cfg(feature = "otel")]
    pub(crate) decided: Counts<{ SOURCES.len() }>,
    #[cfg(feature = "otel")]
    pub(crate) called: Counts<{ CALLS.len() }>,
    #[cfg(feature = "metrics")]
    keys: fleet::Keys,
}

#[cfg(feature = "redis")]
impl FleetMeter {
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(crate) fn called(&self, call: Call, took: std::time::Duration) {
        self.calls
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        #[cfg(feature = "otel")]
        self.called.add(call as usize);
        self.observe_call(call, took);
    }

    pub(crate) fn decided(&self, source: Source) {
        #[cfg(feature = "otel")]
        self.decided.add(source as usize);
        self.observe_decision(source);
    }
}

#[cfg(all(feature = "redis", not(feature = "metrics")))]
impl FleetMeter {
    pub(crate) fn new(_policy: &str) -> Self {
        Self {
            calls: 0.into(),
            #[cfg(feature = "otel")]
            decided: Counts::default(),
            #[cfg(feature = "otel")]
            called: Counts::default(),
        }
    }

    fn observe_decision(&self, _source: Source) {}

    fn observe_call(&self, _call: Call, _took: std::time::Duration) {}

    pub(crate) fn leased(&self, _requests: u64) {}

    pub(crate) fn nodes(&self, _nodes: u64) {}

    pub(crate) fn open(&self, _servers: usize) {}
}

#[cfg(all(feature = "redis", feature = "metrics"))]
mod fleet {
    use std::time::Duration;

    use metrics::{Key, Label, Level, Metadata, with_recorder};

    use super::{
        CALLS, Call, FLEET_CALL_SECONDS, FLEET_CALLS_TOTAL, FLEET_DECISIONS_TOTAL,
        FLEET_LEASED_REQUESTS, FLEET_NODES, FLEET_OPEN, FleetMeter, SOURCES, Source,
    };

    #[derive(Debug)]
    pub(super) struct Keys {
        decisions: [Key; SOURCES.len()],
        calls: [Key; CALLS.len()],
        seconds: Key,
        leased: Key,
        nodes: Key,
        open: Key,
    }

    static METADATA: Metadata<'static> = Metadata::new("rate_limit", Level::INFO, None);

    impl FleetMeter {
        pub(crate) fn new(policy: &str) -> Self {
            let policy = Label::new("policy", policy.to_owned());
            let key = |name| Key::from_parts(name, vec![policy.clone()]);
            let by = |name, label, value| {
                let labels = vec![policy.clone(), Label::from_static_parts(label, value)];
                Key::from_parts(name, labels)
            };
            let keys = Keys {
                decisions: SOURCES.map(|source| by(FLEET_DECISIONS_TOTAL, "source", source)),
                calls: CALLS.map(|outcome| by(FLEET_CALLS_TOTAL, "outcome", outcome)),
                seconds: key(FLEET_CALL_SECONDS),
                leased: key(FLEET_LEASED_REQUESTS),
                nodes: key(FLEET_NODES),
                open: key(FLEET_OPEN),
            };
            Self {
                calls: 0.into(),
                #[cfg(feature = "otel")]
                decided: super::Counts::default(),
                #[cfg(feature = "otel")]
                called: super::Counts::default(),
                keys,
            }
        }

        pub(super) fn observe_decision(&self, source: Source) {
            count(&self.keys.decisions[source as usize]);
        }

        pub(super) fn observe_call(&self, call: Call, took: Duration) {
            count(&self.keys.calls[call as usize]);
            with_recorder(|recorder| {
                recorder
                    .register_histogram(&self.keys.seconds, &METADATA)
                    .record(took.as_secs_f64());
            });
        }

        pub(crate) fn leased(&self, requests: u64) {
            set(&self.keys.leased, requests as f64);
        }

        /// Once a second.
        pub(crate) fn nodes(&self, nodes: u64) {
            set(&self.keys.nodes, nodes as f64);
            // As in `Meter::show`.
            with_recorder(|recorder| {
                let counters = self.keys.decisions.iter().chain(&self.keys.calls);
                counters.for_each(|key| recorder.register_counter(key, &METADATA).increment(0));
            });
        }

        pub(crate) fn open(&self, servers: usize) {
            set(&self.keys.open, servers as f64);
        }
    }

    fn count(key: &Key) {
        with_recorder(|recorder| recorder.register_counter(key, &METADATA).increment(1));
    }

    fn set(key: &Key, value: f64) {
        with_recorder(|recorder| recorder.register_gauge(key, &METADATA).set(value));
    }
}
