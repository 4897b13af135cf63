//! What operators see: counters by policy, never by key.
//!
//! | name | type | labels |
//! |---|---|---|
//! | `rate_limit_requests_total` | counter | `policy`, `outcome` |
//! | `rate_limit_keys` | gauge | `policy` |
//! | `rate_limit_live_evictions_total` | counter | `policy` |
//!
//! `outcome` is `allowed`, `limited`, `shadow` (over quota, let through), `no_key`, `bypassed`
//! (including the allow list) or `denied` (by the deny list).
//! What concerns a limiter as a whole carries the name of its first policy.
//!
//! Nothing here does anything without the `metrics` feature.

/// Requests by `policy` and `outcome`.
pub const REQUESTS_TOTAL: &str = "rate_limit_requests_total";
/// Keys that the table remembers.
pub const KEYS: &str = "rate_limit_keys";
/// Keys that were forgotten while they were in debt: if it moves, raise
/// [`max_keys`](crate::LimiterBuilder::max_keys).
pub const LIVE_EVICTIONS_TOTAL: &str = "rate_limit_live_evictions_total";

/// Describes every metric to the installed recorder, with its unit. Call it once, after the
/// recorder is installed.
#[cfg(feature = "metrics")]
#[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
pub fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge};
    describe_counter!(
        REQUESTS_TOTAL,
        Unit::Count,
        "requests, by policy and outcome"
    );
    describe_gauge!(KEYS, Unit::Count, "keys that the limiter remembers");
    describe_counter!(
        LIVE_EVICTIONS_TOTAL,
        Unit::Count,
        "keys forgotten while they were in debt"
    );
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

/// The counters of one policy. The recorder is looked up at each event, so it may be installed
/// after the layer was built; the names are put together once, so an event allocates nothing.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    #[cfg(feature = "metrics")]
    keys: std::sync::Arc<imp::Keys>,
}

#[cfg(not(feature = "metrics"))]
impl Meter {
    pub(crate) fn new(_policy: &str) -> Self {
        Self {}
    }

    pub(crate) fn count(&self, _outcome: Outcome) {}

    pub(crate) fn resident(&self, _keys: usize) {}

    pub(crate) fn live_eviction(&self) {}
}

#[cfg(feature = "metrics")]
mod imp {
    use metrics::{Key, Label, Level, Metadata, with_recorder};

    use super::{KEYS, LIVE_EVICTIONS_TOTAL, Meter, Outcome, REQUESTS_TOTAL};

    #[derive(Debug)]
    pub(crate) struct Keys {
        outcomes: [Key; 6],
        resident: Key,
        live_evictions: Key,
    }

    static METADATA: Metadata<'static> = Metadata::new("rate_limit", Level::INFO, None);

    impl Meter {
        pub(crate) fn new(policy: &str) -> Self {
            let policy = Label::new("policy", policy.to_owned());
            let outcomes = [
                "allowed", "limited", "shadow", "no_key", "bypassed", "denied",
            ]
            .map(|outcome| {
                let labels = vec![policy.clone(), Label::from_static_parts("outcome", outcome)];
                Key::from_parts(REQUESTS_TOTAL, labels)
            });
            let keys = Keys {
                outcomes,
                resident: Key::from_parts(KEYS, vec![policy.clone()]),
                live_evictions: Key::from_parts(LIVE_EVICTIONS_TOTAL, vec![policy]),
            };
            Self { keys: keys.into() }
        }

        pub(crate) fn count(&self, outcome: Outcome) {
            let key = &self.keys.outcomes[outcome as usize];
            with_recorder(|recorder| recorder.register_counter(key, &METADATA).increment(1));
        }

        pub(crate) fn resident(&self, keys: usize) {
            with_recorder(|recorder| {
                recorder
                    .register_gauge(&self.keys.resident, &METADATA)
                    .set(keys as f64);
            });
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
