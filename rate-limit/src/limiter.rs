//! The handle: one limiter, however many layers, services and clones share it.

use std::{
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    sync::Arc,
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};

use crate::{
    BuildError, ManualClock, OnFull, Policy, Quota,
    clock::Clock,
    gcra::Excess,
    metrics::Outcome,
    policy::{MAX_KEYS, Ruleset, Ruling, compile},
    store::Table,
};

/// Decides, per key, whether another request is within its quotas.
///
/// A cheap handle: clones share one state. [`RateLimitLayer`](crate::RateLimitLayer) holds one;
/// it can also be used on its own, for work that does not arrive as HTTP.
///
/// ```
/// use rate_limit::{Limiter, Quota, SECOND};
///
/// let limiter = Limiter::new(Quota::count(2).per(SECOND))?;
/// assert!(limiter.check("alice").is_ok());
/// assert_eq!(limiter.check("alice")?.remaining(), 0);
/// let limited = limiter.check("alice").unwrap_err();
/// assert!(limited.retry_after().is_some());
/// assert!(limiter.check("bob").is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Decisions never wait and take no lock for a single quota.
#[derive(Clone)]
pub struct Limiter {
    inner: Arc<Inner>,
}

struct Inner {
    table: Arc<Table>,
    clock: Clock,
    seed: RandomState,
    rules: ArcSwap<Ruleset>,
    #[cfg(feature = "tracing")]
    denials: crate::events::Sampler,
}

impl Limiter {
    /// A limiter with one quota per key, and everything else at its default.
    ///
    /// # Errors
    ///
    /// Fails when the quota means nothing or cannot be kept, see [`Quota::validate`].
    pub fn new(quota: Quota) -> Result<Self, BuildError> {
        Self::builder().quota(quota).build()
    }

    /// Starts a limiter with several quotas or settings of its own.
    pub fn builder() -> LimiterBuilder {
        LimiterBuilder {
            policies: Vec::new(),
            max_keys: DEFAULT_MAX_KEYS,
            on_full: OnFull::default(),
            clock: None,
        }
    }

    /// Charges one cell of every policy to `key`.
    ///
    /// # Errors
    ///
    /// Fails, charging nothing, when a policy that is not in shadow mode is exceeded.
    pub fn check(&self, key: impl Hash) -> Result<Decision, LimitError> {
        self.check_n(key, 1)
    }

    /// Charges `cells` cells of every policy to `key`, all or none.
    ///
    /// # Errors
    ///
    /// Fails, charging nothing, when a policy that is not in shadow mode is exceeded. When `cells`
    /// is more than a burst there is no use in retrying, and
    /// [`LimitError::retry_after`] is `None`.
    pub fn check_n(&self, key: impl Hash, cells: u64) -> Result<Decision, LimitError> {
        let rules = self.rules();
        match self.charge(&rules, self.fingerprint(key), cells) {
            Some(ruling) if ruling.admits() => {
                let now = self.inner.clock.now();
                Ok(Decision {
                    remaining: rules.remaining(|column| ruling.tats[column], now),
                })
            }
            Some(ruling) => {
                let violated = rules.rules().iter().enumerate();
                let policy = violated
                    .filter(|(index, _)| ruling.violated.contains(*index))
                    .map(|(_, rule)| rule.policy.shared_name())
                    .next();
                Err(LimitError {
                    policy,
                    retry_after: retry_after(ruling.excess),
                })
            }
            None => Err(LimitError {
                policy: None,
                retry_after: Some(TABLE_FULL_RETRY),
            }),
        }
    }

    /// How many cells `key` could use right now under the tightest policy, charging nothing.
    #[must_use]
    pub fn peek(&self, key: impl Hash) -> u64 {
        let rules = self.rules();
        let Inner { table, clock, .. } = &*self.inner;
        let slot = table.find(self.fingerprint(key));
        rules.remaining(
            |column| slot.map_or(0, |slot| table.read(slot, column)),
            clock.now(),
        )
    }

    /// Gives `cells` cells of every policy back to `key`, for example because the work was not
    /// done after all. Nobody is credited beyond a full burst.
    pub fn refund(&self, key: impl Hash, cells: u64) {
        let rules = self.rules();
        let Inner { table, clock, .. } = &*self.inner;
        if let Some(slot) = table.find(self.fingerprint(key)) {
            let now = clock.now();
            rules.adjust(table, slot, |gcra, tat| gcra.refund(tat, now, cells));
        }
    }

    /// Charges `cells` cells of every policy to `key` whether they conform or not, for costs that
    /// are known only afterwards. The debt stops at twice the burst.
    pub fn penalize(&self, key: impl Hash, cells: u64) {
        let rules = self.rules();
        let Inner { table, clock, .. } = &*self.inner;
        let now = clock.now();
        let slot = table.claim(self.fingerprint(key), |slot| rules.debt(table, slot, now));
        if let Some(slot) = slot {
            rules.adjust(table, slot, |gcra, tat| gcra.charge_anyway(tat, now, cells));
        }
    }

    /// How many keys are remembered now. Keys without debt are remembered until their place is
    /// needed.
    #[must_use]
    pub fn resident_keys(&self) -> usize {
        self.inner.table.resident()
    }

    /// How many keys can be remembered: about twice what
    /// [`max_keys`](LimiterBuilder::max_keys) asked for.
    #[must_use]
    pub fn key_capacity(&self) -> usize {
        self.inner.table.capacity()
    }

    /// How many keys were forgotten while they were in debt. If it moves, there are more keys at
    /// once than [`max_keys`](LimiterBuilder::max_keys) allows for.
    #[must_use]
    pub fn live_evictions(&self) -> u64 {
        self.inner.table.live_evictions()
    }

    /// Whether `other` is a handle to the same limiter.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    pub(crate) fn rules(&self) -> Guard<Arc<Ruleset>> {
        self.inner.rules.load()
    }

    /// The secret that keys are hashed with.
    pub(crate) fn seed(&self) -> &RandomState {
        &self.inner.seed
    }

    fn fingerprint(&self, key: impl Hash) -> u64 {
        fingerprint(self.seed().hash_one(key))
    }

    /// Charges every rule, or none; `None` when a new key is refused for lack of room.
    pub(crate) fn charge(&self, rules: &Ruleset, fingerprint: u64, cells: u64) -> Option<Ruling> {
        let Inner { table, clock, .. } = &*self.inner;
        let slot = table.claim(fingerprint, |slot| rules.debt(table, slot, clock.now()));
        let Some(slot) = slot else {
            rules.rules()[0].meter.count(Outcome::Limited);
            return None;
        };
        let ruling = rules.charge(table, slot, clock, cells);
        self.report(rules, fingerprint, &ruling);
        Some(ruling)
    }

    fn report(&self, rules: &Ruleset, fingerprint: u64, ruling: &Ruling) {
        for (index, rule) in rules.rules().iter().enumerate() {
            if ruling.violated.contains(index) {
                rule.meter.count(Outcome::Limited);
            } else if ruling.shadowed.contains(index) {
                rule.meter.count(Outcome::Shadow);
            } else if ruling.admits() {
                rule.meter.count(Outcome::Allowed);
            }
        }
        #[cfg(feature = "tracing")]
        self.inner.denials.decided(rules, fingerprint, ruling);
        #[cfg(not(feature = "tracing"))]
        let _ = fingerprint;
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter")
            .field("rules", &*self.inner.rules.load())
            .field("table", &self.inner.table)
            .finish_non_exhaustive()
    }
}

/// Builds a [`Limiter`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct LimiterBuilder {
    policies: Vec<Policy>,
    max_keys: usize,
    on_full: OnFull,
    clock: Option<ManualClock>,
}

impl LimiterBuilder {
    /// Adds `quota` as a policy named `default`.
    pub fn quota(self, quota: Quota) -> Self {
        self.policy(Policy::new("default", quota))
    }

    /// Adds a policy. A request must be within all of them, and one that is not is charged to
    /// none.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policies.push(policy);
        self
    }

    /// Sets how many keys may be in use at once. The memory for them, 32 bytes a key for one
    /// policy and 16 more for each further one, is taken now and never grows.
    ///
    /// Defaults to 65 536.
    pub fn max_keys(mut self, keys: usize) -> Self {
        self.max_keys = keys;
        self
    }

    /// Sets what happens to a new key when there is no room.
    ///
    /// Defaults to [`OnFull::EvictLeastIndebted`].
    pub fn on_full(mut self, on_full: OnFull) -> Self {
        self.on_full = on_full;
        self
    }

    /// Measures time by `clock`.
    ///
    /// Defaults to `tokio::time::Instant`, which follows `tokio::time::pause` in tests.
    pub fn clock(mut self, clock: ManualClock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Builds the limiter.
    ///
    /// # Errors
    ///
    /// Fails when there is no policy or more than [`MAX_POLICIES`](crate::MAX_POLICIES), when a
    /// name or a quota is invalid, or when `max_keys` is zero or absurd.
    pub fn build(self) -> Result<Limiter, BuildError> {
        let Self {
            policies,
            max_keys,
            on_full,
            clock,
        } = self;
        let rules = compile(&policies)?;
        if max_keys == 0 || max_keys > MAX_KEYS {
            return Err(BuildError::InvalidMaxKeys(max_keys));
        }
        let clock = clock.map_or_else(Clock::tokio, Clock::Manual);
        let meter = rules[0].meter.clone();
        let table = Arc::new(Table::new(max_keys, rules.len(), on_full, meter));
        let rules = Ruleset::new(rules, &table, &clock);
        Ok(Limiter {
            inner: Arc::new(Inner {
                table,
                clock,
                seed: RandomState::new(),
                rules: ArcSwap::from_pointee(rules),
                #[cfg(feature = "tracing")]
                denials: crate::events::Sampler::default(),
            }),
        })
    }
}

/// A request within its quotas.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Decision {
    remaining: u64,
}

impl Decision {
    /// How many more cells the key could use right now, under the tightest policy.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.remaining
    }
}

/// A request over a quota.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LimitError {
    policy: Option<Arc<str>>,
    retry_after: Option<Duration>,
}

impl LimitError {
    /// The first policy that was exceeded; `None` when there was no room for a new key.
    #[must_use]
    pub fn policy(&self) -> Option<&str> {
        self.policy.as_deref()
    }

    /// After how long the same request would conform, if nothing else is charged until then;
    /// `None` when it never will, because it asks for more than a burst.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.policy {
            Some(policy) => write!(f, "over the quota of policy {policy:?}")?,
            None => f.write_str("no room for another key")?,
        }
        match self.retry_after {
            Some(wait) => write!(f, ", retry after {wait:?}"),
            None => f.write_str(", and larger than its burst"),
        }
    }
}

impl std::error::Error for LimitError {}

pub(crate) fn retry_after(excess: Option<Excess>) -> Option<Duration> {
    match excess {
        Some(Excess::Wait(nanos)) => Some(Duration::from_nanos(nanos)),
        _ => None,
    }
}

/// The name of a key in the table: its hash, which must not look like an empty place.
pub(crate) fn fingerprint(hash: u64) -> u64 {
    hash.max(1)
}

const DEFAULT_MAX_KEYS: usize = 65_536;

/// When the table is full there is no telling which of eight debts is paid first.
pub(crate) const TABLE_FULL_RETRY: Duration = Duration::from_secs(1);
