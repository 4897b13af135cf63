//! The metrics of a fleet's limiter.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

#[cfg(feature = "metrics")]
use metrics::{Key, Label, with_recorder};

#[cfg(feature = "otel")]
use super::policy::Counts;
#[cfg(feature = "metrics")]
use super::{
    FLEET_CALL_SECONDS, FLEET_CALLS, FLEET_DECISIONS, FLEET_LEASED_REQUESTS, FLEET_NODES,
    FLEET_OPEN,
    policy::{METADATA, count, set},
};

/// Records what one limiter of a fleet does.
#[derive(Debug)]
pub(crate) struct FleetMetrics {
    /// Counted in any case, for [`FleetLimiter::calls`](crate::fleet::FleetLimiter::calls).
    calls: AtomicU64,
    /// In the order of [`SOURCES`], and of [`CALLS`].
    #[cfg(feature = "otel")]
    pub(crate) decided: Counts<{ SOURCES.len() }>,
    #[cfg(feature = "otel")]
    pub(crate) called: Counts<{ CALLS.len() }>,
    #[cfg(feature = "metrics")]
    keys: Keys,
}

#[cfg_attr(
    not(feature = "metrics"),
    expect(unused_variables, reason = "nothing is recorded")
)]
impl FleetMetrics {
    pub(crate) fn new(policy: &str) -> Self {
        Self {
            calls: 0.into(),
            #[cfg(feature = "otel")]
            decided: Counts::default(),
            #[cfg(feature = "otel")]
            called: Counts::default(),
            #[cfg(feature = "metrics")]
            keys: Keys::new(policy),
        }
    }

    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    pub(crate) fn called(&self, call: Call, took: Duration) {
        self.calls.fetch_add(1, Relaxed);
        #[cfg(feature = "otel")]
        self.called.add(call as usize);
        #[cfg(feature = "metrics")]
        {
            count(&self.keys.calls[call as usize], 1);
            with_recorder(|recorder| {
                let seconds = recorder.register_histogram(&self.keys.seconds, &METADATA);
                seconds.record(took.as_secs_f64());
            });
        }
    }

    pub(crate) fn decided(&self, source: Source) {
        #[cfg(feature = "otel")]
        self.decided.add(source as usize);
        #[cfg(feature = "metrics")]
        count(&self.keys.decisions[source as usize], 1);
    }

    pub(crate) fn leased(&self, requests: u64) {
        #[cfg(feature = "metrics")]
        set(&self.keys.leased, requests as f64);
    }

    /// Once a second.
    pub(crate) fn nodes(&self, nodes: u64) {
        #[cfg(feature = "metrics")]
        {
            set(&self.keys.nodes, nodes as f64);
            // As in `Metrics::show`.
            let counters = self.keys.decisions.iter().chain(&self.keys.calls);
            counters.for_each(|key| count(key, 0));
        }
    }

    pub(crate) fn open(&self, servers: usize) {
        #[cfg(feature = "metrics")]
        set(&self.keys.open, servers as f64);
    }
}

#[cfg(feature = "metrics")]
#[derive(Debug)]
struct Keys {
    decisions: [Key; SOURCES.len()],
    calls: [Key; CALLS.len()],
    seconds: Key,
    leased: Key,
    nodes: Key,
    open: Key,
}

#[cfg(feature = "metrics")]
impl Keys {
    fn new(policy: &str) -> Self {
        let policy = Label::new("policy", policy.to_owned());
        let key = |name| Key::from_parts(name, vec![policy.clone()]);
        let by = |name, label, value| {
            let labels = vec![policy.clone(), Label::from_static_parts(label, value)];
            Key::from_parts(name, labels)
        };
        Self {
            decisions: SOURCES.map(|source| by(FLEET_DECISIONS, "source", source)),
            calls: CALLS.map(|outcome| by(FLEET_CALLS, "outcome", outcome)),
            seconds: key(FLEET_CALL_SECONDS),
            leased: key(FLEET_LEASED_REQUESTS),
            nodes: key(FLEET_NODES),
            open: key(FLEET_OPEN),
        }
    }
}

/// Where a decision of a fleet's limiter came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    Lease,
    Memory,
    Redis,
    Outage,
}

/// What a call to Redis came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Call {
    Answered,
    Timeout,
    Error,
}

/// The sources as labels, in the order of [`Source`].
#[cfg(any(feature = "metrics", feature = "otel"))]
pub(crate) const SOURCES: [&str; 4] = ["lease", "memory", "redis", "outage"];

/// The outcomes of calls as labels, in the order of [`Call`].
#[cfg(any(feature = "metrics", feature = "otel"))]
pub(crate) const CALLS: [&str; 3] = ["answered", "timeout", "error"];
