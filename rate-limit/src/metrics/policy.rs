//! The metrics of one policy.

#[cfg(any(feature = "metrics", feature = "otel"))]
use std::sync::Arc;
#[cfg(feature = "otel")]
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[cfg(feature = "metrics")]
use metrics::{Key, Label, Level, Metadata, with_recorder};

#[cfg(feature = "metrics")]
use super::{INFO, KEYS, LIVE_EVICTIONS, REQUESTS};

/// Records the decisions of one policy.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// In the order of [`OUTCOMES`].
    #[cfg(feature = "otel")]
    counts: Arc<Counts<{ OUTCOMES.len() }>>,
    #[cfg(feature = "metrics")]
    keys: Arc<Keys>,
}

#[cfg_attr(
    not(feature = "metrics"),
    expect(unused_variables, reason = "nothing is recorded")
)]
impl Metrics {
    pub(crate) fn new(policy: &str) -> Self {
        Self {
            #[cfg(feature = "otel")]
            counts: Arc::default(),
            #[cfg(feature = "metrics")]
            keys: Arc::new(Keys::new(policy)),
        }
    }

    #[inline]
    pub(crate) fn count(&self, outcome: Outcome) {
        #[cfg(feature = "otel")]
        self.counts.add(outcome as usize);
        #[cfg(feature = "metrics")]
        count(&self.keys.outcomes[outcome as usize], 1);
    }

    /// Decisions since the limiter was built, in the order of [`OUTCOMES`].
    #[cfg(feature = "otel")]
    pub(crate) fn counts(&self) -> [u64; OUTCOMES.len()] {
        self.counts.read()
    }

    /// Shows every counter, also those at zero: one that is not there hides its first event from
    /// a look at its increase. To be called now and then, as the recorder may be new.
    #[cfg(any(feature = "metrics", feature = "redis"))]
    pub(crate) fn show(&self) {
        #[cfg(feature = "metrics")]
        {
            set(&self.keys.info, 1.0);
            let counters = self.keys.outcomes.iter().chain([&self.keys.live_evictions]);
            counters.for_each(|key| count(key, 0));
        }
    }

    pub(crate) fn resident(&self, keys: usize) {
        #[cfg(feature = "metrics")]
        {
            set(&self.keys.resident, keys as f64);
            if keys.is_power_of_two() {
                self.show();
            }
        }
    }

    pub(crate) fn live_eviction(&self) {
        #[cfg(feature = "metrics")]
        count(&self.keys.live_evictions, 1);
    }
}

/// Names and labels, put together once, so that an event allocates nothing. The recorder is looked up at
/// each event: it may be installed after the layer was built.
#[cfg(feature = "metrics")]
#[derive(Debug)]
struct Keys {
    outcomes: [Key; OUTCOMES.len()],
    info: Key,
    resident: Key,
    live_evictions: Key,
}

#[cfg(feature = "metrics")]
impl Keys {
    fn new(policy: &str) -> Self {
        let policy = Label::new("policy", policy.to_owned());
        let version = Label::from_static_parts("version", env!("CARGO_PKG_VERSION"));
        Self {
            outcomes: OUTCOMES.map(|outcome| {
                let labels = vec![policy.clone(), Label::from_static_parts("outcome", outcome)];
                Key::from_parts(REQUESTS, labels)
            }),
            info: Key::from_parts(INFO, vec![policy.clone(), version]),
            resident: Key::from_parts(KEYS, vec![policy.clone()]),
            live_evictions: Key::from_parts(LIVE_EVICTIONS, vec![policy]),
        }
    }
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

/// Counters that are read later.
#[cfg(feature = "otel")]
#[derive(Debug)]
pub(crate) struct Counts<const N: usize>([AtomicU64; N]);

#[cfg(feature = "otel")]
impl<const N: usize> Default for Counts<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| 0.into()))
    }
}

#[cfg(feature = "otel")]
impl<const N: usize> Counts<N> {
    pub(super) fn add(&self, index: usize) {
        self.0[index].fetch_add(1, Relaxed);
    }

    pub(crate) fn read(&self) -> [u64; N] {
        std::array::from_fn(|index| self.0[index].load(Relaxed))
    }
}

#[cfg(feature = "metrics")]
pub(super) static METADATA: Metadata<'static> = Metadata::new("rate_limit", Level::INFO, None);

#[cfg(feature = "metrics")]
pub(super) fn count(key: &Key, events: u64) {
    with_recorder(|recorder| recorder.register_counter(key, &METADATA).increment(events));
}

#[cfg(feature = "metrics")]
pub(super) fn set(key: &Key, value: f64) {
    with_recorder(|recorder| recorder.register_gauge(key, &METADATA).set(value));
}
