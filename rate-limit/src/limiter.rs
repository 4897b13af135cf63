//! The handle: one limiter, however many layers, services and clones share it.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    hash::Hash,
    panic::Location,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};

use crate::{
    BuildError, Inflight, MAX_POLICIES, ManualClock, OnFull, Policy, Quota,
    answer::Reason,
    clock::{Clock, ClockKind},
    gcra::Excess,
    inflight::InflightCounts,
    key::Seed,
    metrics::{Meter, Outcome},
    policy::{MAX_KEYS, Name, ResponseHead, check_name},
    rules::{Charge, Ruleset, Ruling},
    store::Table,
    warning::{Warning, WarningHook, Watch, built_too_often_at},
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
/// A key here is the key of a layer's [`key::header`](crate::key::header) when it is the same
/// bytes (`b"alice".as_slice()`), and of [`key::extension`](crate::key::extension) when it is the
/// same value.
///
/// Decisions never wait, and take no lock for a single quota.
#[derive(Clone)]
pub struct Limiter {
    inner: Arc<Inner>,
    plan: usize,
}

struct Inner {
    table: Arc<Table>,
    clock: Clock,
    seed: Seed,
    /// The names that entries have a TAT for.
    columns: Box<[Arc<str>]>,
    /// Where in `sets` the plans are; the first has no name.
    plans: HashMap<Arc<str>, usize>,
    /// What was built. Reading it costs a load, so it is what counts until policies change.
    first: Sets,
    changed: AtomicBool,
    sets: ArcSwap<Sets>,
    /// Held while the policies change.
    changing: Mutex<()>,
    inflight: Option<Arc<InflightCounts>>,
    watch: Watch,
    #[cfg(feature = "tracing")]
    denials: crate::events::Sampler,
}

/// What each plan enforces.
#[derive(Clone, Debug)]
pub(crate) struct Sets(Box<[Arc<Ruleset>]>);

impl Limiter {
    /// A limiter with one quota per key, and everything else at its default.
    ///
    /// # Errors
    ///
    /// Fails when the quota means nothing or cannot be kept, see [`Quota::validate`].
    #[track_caller]
    pub fn new(quota: Quota) -> Result<Self, BuildError> {
        Self::builder().quota(quota).build()
    }

    /// Starts a limiter with several quotas or settings of its own.
    pub fn builder() -> LimiterBuilder {
        LimiterBuilder {
            plans: vec![(Arc::from(""), Vec::new())],
            max_keys: DEFAULT_MAX_KEYS,
            on_full: OnFull::default(),
            max_inflight: None,
            clock: ClockKind::Tokio,
            on_warning: None,
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
        let fingerprint = self.fingerprint(key);
        let mut ruling = Ruling::at(self.now());
        self.admit(&rules, fingerprint, &Charge::each(cells), &mut ruling)?;
        Ok(Decision {
            remaining: rules.left_by(&ruling),
        })
    }

    #[inline]
    fn admit(
        &self,
        rules: &Ruleset,
        fingerprint: u64,
        charge: &Charge,
        ruling: &mut Ruling,
    ) -> Result<(), LimitError> {
        match self.charge(rules, fingerprint, charge, ruling) {
            Ok(()) if ruling.admits() => Ok(()),
            Ok(()) => Err(LimitError::quota(rules, ruling)),
            Err(NoRoom) => Err(LimitError::without_policy(Reason::NoRoom)),
        }
    }

    /// Charges `cells` cells of every policy to `key` for work whose cost is not known yet. The
    /// [`Reservation`] charges the difference when it is settled, and gives everything back when
    /// it is dropped before that.
    ///
    /// # Errors
    ///
    /// As [`check_n`](Self::check_n).
    ///
    /// ```
    /// use rate_limit::{Limiter, MINUTE, Quota};
    ///
    /// let limiter = Limiter::new(Quota::count(1_000).per(MINUTE))?;
    /// let reservation = limiter.reserve("alice", 400)?;
    /// // ... the work turns out to be smaller ...
    /// reservation.settle(150);
    /// assert_eq!(limiter.peek("alice"), 850);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reserve(&self, key: impl Hash, cells: u64) -> Result<Reservation, LimitError> {
        let rules = self.rules();
        let fingerprint = self.fingerprint(key);
        let charge = Charge::each(cells);
        let mut ruling = Ruling::at(self.now());
        self.admit(&rules, fingerprint, &charge, &mut ruling)?;
        let charge = charge.waive(ruling.shadowed);
        let receipt = Receipt::new(self, &rules, fingerprint, charge, Settle::Everything);
        Ok(Reservation { receipt, cells })
    }

    /// How many cells `key` could use right now under the tightest policy, charging nothing.
    #[must_use]
    pub fn peek(&self, key: impl Hash) -> u64 {
        let Inner { table, clock, .. } = &*self.inner;
        self.rules()
            .remaining(table, table.find(self.fingerprint(key)), clock.now())
    }

    /// Gives `cells` cells of every policy back to `key`, for example because the work was not
    /// done after all. Nobody is credited beyond a full burst.
    pub fn refund(&self, key: impl Hash, cells: u64) {
        let rules = self.rules();
        let Inner { table, clock, .. } = &*self.inner;
        if let Some(slot) = table.find(self.fingerprint(key)) {
            let now = clock.now();
            rules.adjust(table, slot, |_, rule, tat| {
                rule.gcra.refund(tat, now, cells)
            });
        }
    }

    /// Charges `cells` cells of every policy to `key` whether they conform or not, for costs that
    /// are known only afterwards. The debt stops at twice the burst.
    pub fn penalize(&self, key: impl Hash, cells: u64) {
        let rules = self.rules();
        let Inner { table, clock, .. } = &*self.inner;
        let now = clock.now();
        let debt = |slot| rules.debt(table, slot, now);
        let slot = table.claim(self.fingerprint(key), debt);
        if let Some(slot) = slot {
            rules.adjust(table, slot, |_, rule, tat| {
                rule.gcra.charge_anyway(tat, now, cells)
            });
        }
    }

    /// Counts one more request of `key` in flight until the result is dropped. Always succeeds
    /// when the limiter has no [`max_inflight`](LimiterBuilder::max_inflight).
    ///
    /// # Errors
    ///
    /// Fails when the key is at its limit.
    pub fn enter(&self, key: impl Hash) -> Result<Option<Inflight>, LimitError> {
        match &self.inner.inflight {
            None => Ok(None),
            Some(counts) => match counts.enter(self.fingerprint(key)) {
                Some(inflight) => Ok(Some(inflight)),
                None => Err(LimitError::without_policy(Reason::Inflight)),
            },
        }
    }

    /// How many requests of `key` are in flight; 0 when they are not counted.
    #[must_use]
    pub fn inflight(&self, key: impl Hash) -> u32 {
        self.inner
            .inflight
            .as_ref()
            .map_or(0, |counts| counts.inflight(self.fingerprint(key)))
    }

    /// A handle that decides by the plan `name`; `None` when there is no such plan.
    #[must_use]
    pub fn plan(&self, name: &str) -> Option<Self> {
        let plan = self.plan_index(name)?;
        Some(Self {
            inner: Arc::clone(&self.inner),
            plan,
        })
    }

    /// Replaces the policies of this handle's plan, for every holder of the limiter. Every
    /// request is decided by the old ones or the new ones, none in between.
    ///
    /// Debts are kept, as a number of cells, and cut to the new burst: who had used 7 of 10 has
    /// used 7 of the new 20. Converting them takes about 10 ms for a million keys, in which a
    /// decision may find a debt too large, and be charged by the old scale. Debts of other plans
    /// under the same name are converted with them.
    ///
    /// # Errors
    ///
    /// Fails, changing nothing, when a policy is invalid or has a name that the limiter was not
    /// built with.
    pub fn set_policies(
        &self,
        policies: impl IntoIterator<Item = Policy>,
    ) -> Result<(), BuildError> {
        let policies: Vec<_> = policies.into_iter().collect();
        self.replace(&policies, &|_| Ok(()))
    }

    /// Replaces the policies of this handle's plan by those that `prepare` has had its way with.
    pub(crate) fn replace(
        &self,
        policies: &[Policy],
        prepare: &Prepare<'_>,
    ) -> Result<(), BuildError> {
        let Inner {
            table,
            clock,
            columns,
            sets,
            changed,
            changing,
            ..
        } = &*self.inner;
        let mut rules = Ruleset::new(policies, columns, table)?;
        prepare(&mut rules)?;
        let rules = Arc::new(rules);
        let _one_at_a_time = changing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = sets.load_full();
        let old = &current.0[self.plan];
        let mut new = current.0.clone();
        new[self.plan] = Arc::clone(&rules);
        rules.take_over(old, table, clock.now(), true);
        sets.store(Arc::new(Sets(new)));
        changed.store(true, Ordering::Release);
        rules.take_over(old, table, clock.now(), false);
        Ok(())
    }

    /// The policies of this handle's plan.
    #[must_use]
    pub fn policies(&self) -> Vec<Policy> {
        self.rules()
            .rules()
            .iter()
            .map(|rule| rule.policy.clone())
            .collect()
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

    /// The mistakes in the setup that traffic has shown so far, each once.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        self.inner.watch.raised()
    }

    /// Whether `other` is a handle to the same limiter.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// What this handle's plan enforces.
    #[inline]
    pub(crate) fn rules(&self) -> Rules<'_> {
        self.rules_at(self.plan)
    }

    /// The number of the plan `name`; of this handle's plan when there is no such plan.
    #[inline]
    pub(crate) fn plan_number(&self, name: Option<&str>) -> usize {
        let plan = name.and_then(|name| self.plan_index(name));
        plan.unwrap_or(self.plan)
    }

    /// What a plan enforces, by its number.
    #[inline]
    pub(crate) fn rules_at(&self, plan: usize) -> Rules<'_> {
        let Inner {
            first,
            changed,
            sets,
            ..
        } = &*self.inner;
        if changed.load(Ordering::Acquire) {
            Rules::Current(sets.load(), plan)
        } else {
            Rules::First(&first.0[plan])
        }
    }

    /// The secret that keys are hashed with.
    #[inline]
    pub(crate) fn seed(&self) -> &Seed {
        &self.inner.seed
    }

    #[inline]
    pub(crate) fn watch(&self) -> &Watch {
        &self.inner.watch
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.inner.clock.now()
    }

    #[inline]
    pub(crate) fn inflight_counts(&self) -> Option<&Arc<InflightCounts>> {
        self.inner.inflight.as_ref()
    }

    /// Charges every rule at the time of `ruling`, or none. One reading of the clock serves for
    /// all of it: should a new key wait for the lock of its set, an earlier time admits less.
    #[inline]
    pub(crate) fn charge(
        &self,
        rules: &Ruleset,
        fingerprint: u64,
        charge: &Charge,
        ruling: &mut Ruling,
    ) -> Result<(), NoRoom> {
        let table = &*self.inner.table;
        let debt = |slot| rules.debt(table, slot, ruling.now());
        let Some(slot) = table.claim(fingerprint, debt) else {
            rules.meter().count(Outcome::Limited);
            return Err(NoRoom);
        };
        rules.charge(table, slot, charge, ruling);
        self.report(rules, fingerprint, ruling);
        Ok(())
    }

    #[inline]
    pub(crate) fn report(&self, rules: &Ruleset, fingerprint: u64, ruling: &Ruling) {
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

    #[inline]
    pub(crate) fn fingerprint(&self, key: impl Hash) -> u64 {
        fingerprint(self.seed().hash_one(key))
    }

    fn plan_index(&self, name: &str) -> Option<usize> {
        self.inner.plans.get(name).copied()
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter")
            .field("rules", &*self.rules())
            .field("table", &self.inner.table)
            .field("inflight", &self.inner.inflight)
            .finish_non_exhaustive()
    }
}

/// A new key is refused for lack of room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoRoom;

/// What else is done to rules before they are enforced.
pub(crate) type Prepare<'a> = dyn Fn(&mut Ruleset) -> Result<(), BuildError> + 'a;

/// The rules of one plan, as they were when they were looked up.
pub(crate) enum Rules<'a> {
    First(&'a Arc<Ruleset>),
    Current(Guard<Arc<Sets>>, usize),
}

impl Rules<'_> {
    pub(crate) fn keep(&self) -> Arc<Ruleset> {
        match self {
            Self::First(rules) => Arc::clone(rules),
            Self::Current(sets, plan) => Arc::clone(&sets.0[*plan]),
        }
    }
}

impl std::ops::Deref for Rules<'_> {
    type Target = Ruleset;

    #[inline]
    fn deref(&self) -> &Ruleset {
        match self {
            Self::First(rules) => rules,
            Self::Current(sets, plan) => &sets.0[*plan],
        }
    }
}

/// Builds a [`Limiter`].
#[derive(Clone)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct LimiterBuilder {
    plans: Vec<(Arc<str>, Vec<Policy>)>,
    max_keys: usize,
    on_full: OnFull,
    max_inflight: Option<u32>,
    clock: ClockKind,
    on_warning: Option<WarningHook>,
}

impl LimiterBuilder {
    /// Adds `quota` as a policy named `default`.
    pub fn quota(self, quota: Quota) -> Self {
        self.policy(Policy::new("default", quota))
    }

    /// Adds a policy. A request must be within all of them, and one that is not is charged to
    /// none.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.plans[0].1.push(policy);
        self
    }

    /// Adds a plan: policies that apply instead of the others to the requests that
    /// [`RateLimitLayer::plan`](crate::RateLimitLayer::plan) gives `name`, for example those of a
    /// paying customer or of an expensive route.
    ///
    /// A policy of the same name in another plan is the same account with other limits, so a
    /// customer who changes plans keeps the debt. A policy of another name is another account.
    ///
    /// ```
    /// use rate_limit::{Limiter, MINUTE, Policy, Quota};
    ///
    /// let limiter = Limiter::builder()
    ///     .policy(Policy::new("api", Quota::count(60).per(MINUTE)))
    ///     .plan("pro", [Policy::new("api", Quota::count(6_000).per(MINUTE))])
    ///     .build()?;
    /// assert_eq!(limiter.plan("pro").unwrap().peek("alice"), 6_000);
    /// # Ok::<(), rate_limit::BuildError>(())
    /// ```
    pub fn plan(
        mut self,
        name: impl Into<Arc<str>>,
        policies: impl IntoIterator<Item = Policy>,
    ) -> Self {
        self.plans
            .push((name.into(), policies.into_iter().collect()));
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

    /// Limits how many requests of a key run at once, from their arrival to the end of the
    /// response body: "20 in flight per tenant". Those over it are refused, not queued.
    ///
    /// Defaults to no limit.
    pub fn max_inflight(mut self, requests: u32) -> Self {
        self.max_inflight = Some(requests);
        self
    }

    /// Measures time by `clock`.
    ///
    /// Defaults to `tokio::time::Instant`, which follows `tokio::time::pause` in tests.
    pub fn clock(mut self, clock: ManualClock) -> Self {
        self.clock = ClockKind::Manual(clock);
        self
    }

    /// Measures time by the processor's time stamp counter, which is read in 10 ns instead of 25.
    ///
    /// It does not follow `tokio::time::pause`, nor the pace at which the system corrects its own
    /// clock (by up to 0.05 %). Where the counters of two cores differ, time goes back by 10 µs at
    /// most and then stands still, so that keys get less, not more. The first limiter of a process
    /// that is so built takes up to 0.2 s to calibrate it. On a processor without a counter of
    /// constant pace this is the monotonic clock of the system.
    ///
    /// Defaults to `tokio::time::Instant`.
    #[cfg(feature = "quanta")]
    #[cfg_attr(docsrs, doc(cfg(feature = "quanta")))]
    pub fn counter_clock(mut self) -> Self {
        self.clock = ClockKind::Counter;
        self
    }

    /// Calls `hook` when traffic shows a mistake in the setup, once for each kind. With the
    /// `tracing` feature they are logged at `warn` in any case.
    ///
    /// Defaults to none.
    pub fn on_warning(mut self, hook: impl Fn(Warning) + Send + Sync + 'static) -> Self {
        self.on_warning = Some(Arc::new(hook));
        self
    }

    /// Builds the limiter.
    ///
    /// # Errors
    ///
    /// Fails when there is no policy or more than [`MAX_POLICIES`], when a name or a quota is
    /// invalid, when `max_keys` is zero or absurd, or when `max_inflight` is zero.
    #[track_caller]
    pub fn build(self) -> Result<Limiter, BuildError> {
        self.assemble(Seed::random(), &|_| Ok(()))
    }

    /// How many keys are to be known.
    #[cfg(feature = "redis")]
    pub(crate) fn known_keys(&self) -> usize {
        self.max_keys
    }

    #[track_caller]
    pub(crate) fn assemble(self, seed: Seed, prepare: &Prepare<'_>) -> Result<Limiter, BuildError> {
        let watch = Watch::new(self.on_warning.clone());
        if built_too_often_at(Location::caller()) {
            watch.raise(Warning::BuiltRepeatedly);
        }
        let Self {
            plans,
            max_keys,
            on_full,
            max_inflight,
            clock,
            ..
        } = self;
        let mut columns: Vec<Arc<str>> = Vec::new();
        for policy in plans.iter().flat_map(|(_, policies)| policies) {
            if !columns.iter().any(|column| **column == *policy.name()) {
                columns.push(policy.shared_name());
            }
        }
        let Some(first) = columns.first() else {
            return Err(BuildError::NoPolicy);
        };
        if columns.len() > MAX_POLICIES {
            return Err(BuildError::TooManyPolicies {
                count: columns.len(),
            });
        }
        let mut names = HashSet::new();
        for (name, _) in plans.iter().skip(1) {
            check_name(name)?;
            if !names.insert(name) {
                return Err(BuildError::DuplicateName(Arc::clone(name)));
            }
        }
        if max_keys == 0 || max_keys > MAX_KEYS {
            return Err(BuildError::InvalidMaxKeys(max_keys));
        }
        if max_inflight == Some(0) {
            return Err(BuildError::ZeroMaxInflight);
        }

        // Whether the policies are valid is known before the table takes its memory.
        let compile = |table: &Arc<Table>| {
            let sets = plans.iter().map(|(_, policies)| {
                let mut rules = Ruleset::new(policies, &columns, table)?;
                prepare(&mut rules)?;
                Ok(Arc::new(rules))
            });
            sets.collect::<Result<Box<[_]>, _>>()
        };
        compile(&Arc::new(Table::new(
            1,
            columns.len(),
            on_full,
            Meter::new(first),
        )))?;
        let table = Arc::new(Table::new(
            max_keys,
            columns.len(),
            on_full,
            Meter::new(first),
        ));
        let sets = compile(&table)?;
        Ok(Limiter {
            inner: Arc::new(Inner {
                table,
                clock: Clock::new(clock),
                seed,
                sets: ArcSwap::from_pointee(Sets(sets.clone())),
                first: Sets(sets),
                changed: AtomicBool::new(false),
                plans: plans
                    .into_iter()
                    .zip(0..)
                    .skip(1)
                    .map(|((name, _), at)| (name, at))
                    .collect(),
                columns: columns.into(),
                changing: Mutex::new(()),
                inflight: max_inflight.map(InflightCounts::new),
                watch,
                #[cfg(feature = "tracing")]
                denials: crate::events::Sampler::default(),
            }),
            plan: 0,
        })
    }
}

impl fmt::Debug for LimiterBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimiterBuilder")
            .field("plans", &self.plans)
            .field("max_keys", &self.max_keys)
            .field("on_full", &self.on_full)
            .field("max_inflight", &self.max_inflight)
            .field("clock", &self.clock)
            .field("on_warning", &self.on_warning.is_some())
            .finish()
    }
}

/// A request within its quotas.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Decision {
    remaining: u64,
}

impl Decision {
    #[cfg(feature = "redis")]
    pub(crate) fn new(remaining: u64) -> Self {
        Self { remaining }
    }

    /// How many more cells the key could use right now, under the tightest policy.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.remaining
    }
}

/// Cells charged for work whose cost is not known yet, made by [`Limiter::reserve`].
///
/// Dropping it gives everything back, so a future that is cancelled while it holds one costs its
/// caller nothing.
#[derive(Debug)]
#[must_use = "dropping a reservation gives its cells back"]
pub struct Reservation {
    receipt: Receipt,
    cells: u64,
}

impl Reservation {
    /// How many cells were charged.
    #[must_use]
    pub fn cells(&self) -> u64 {
        self.cells
    }

    /// Charges or gives back the difference to the `actual` cost. The debt stops at twice the
    /// burst, and nobody is credited beyond a full one.
    pub fn settle(self, actual: u64) {
        self.receipt.settle_by(|_| Some(actual));
    }

    /// Keeps what was charged.
    pub fn keep(self) {
        let cells = self.cells;
        self.settle(cells);
    }
}

/// What was charged and may be settled; gives it back when dropped before that.
pub(crate) struct Receipt {
    limiter: Limiter,
    rules: Arc<Ruleset>,
    fingerprint: u64,
    charge: Charge,
    which: Settle,
    open: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Settle {
    /// Every rule.
    Everything,
    /// The rules that learn their cost from the response.
    ByResponse,
}

impl Receipt {
    /// A receipt for what `rules` have charged.
    pub(crate) fn new(
        limiter: &Limiter,
        rules: &Rules<'_>,
        fingerprint: u64,
        charge: Charge,
        which: Settle,
    ) -> Self {
        let rules = rules.keep();
        Self {
            limiter: limiter.clone(),
            rules,
            fingerprint,
            charge,
            which,
            open: true,
        }
    }

    /// Settles by what the policies make of the response.
    pub(crate) fn settle(self, response: &ResponseHead<'_>) {
        let rules = Arc::clone(&self.rules);
        self.settle_by(|index| rules.rules()[index].policy.settlement()?(response));
    }

    fn settle_by(mut self, actual: impl Fn(usize) -> Option<u64>) {
        self.open = false;
        self.adjust(actual);
    }

    fn adjust(&self, actual: impl Fn(usize) -> Option<u64>) {
        let Inner { table, clock, .. } = &*self.limiter.inner;
        let Some(slot) = table.find(self.fingerprint) else {
            return;
        };
        let now = clock.now();
        // Asked once for each, not once for each attempt to write.
        let actual: [_; MAX_POLICIES] = std::array::from_fn(|index| {
            (index < self.rules.rules().len())
                .then(|| actual(index))
                .flatten()
        });
        self.rules.adjust(table, slot, |index, rule, tat| {
            let gcra = self.charge.gcra(index, rule);
            let charged = self.charge.cells(index);
            match actual[index] {
                Some(actual) if actual > charged => gcra.charge_anyway(tat, now, actual - charged),
                Some(actual) => gcra.refund(tat, now, charged - actual),
                None => tat,
            }
        });
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if self.open {
            let returns = |index: usize| {
                self.which == Settle::Everything
                    || self.rules.rules()[index].policy.settlement().is_some()
            };
            self.adjust(|index| returns(index).then_some(0));
        }
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt")
            .field("charge", &self.charge)
            .finish_non_exhaustive()
    }
}

/// A request over a limit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LimitError {
    reason: Reason,
    policy: Option<Name>,
    retry_after: Option<Duration>,
}

impl LimitError {
    pub(crate) fn quota(rules: &Ruleset, ruling: &Ruling) -> Self {
        let first = ruling.violated.first();
        Self {
            reason: Reason::Quota,
            policy: first.map(|index| rules.rules()[index].name),
            retry_after: retry_after(ruling.excess),
        }
    }

    pub(crate) fn without_policy(reason: Reason) -> Self {
        Self {
            reason,
            policy: None,
            retry_after: Some(SOON),
        }
    }

    /// The kind of limit.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The first policy that was exceeded, if a quota was.
    #[must_use]
    pub fn policy(&self) -> Option<&str> {
        self.policy.as_ref().map(Name::as_str)
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
            None => write!(f, "{}", self.reason)?,
        }
        match self.retry_after {
            Some(wait) => write!(f, ", retry after {wait:?}"),
            None => f.write_str(", and larger than its burst"),
        }
    }
}

impl std::error::Error for LimitError {}

/// The name of a key in the table: its hash, which must not look like an empty place.
#[inline]
pub(crate) fn fingerprint(hash: u64) -> u64 {
    hash.max(1)
}

pub(crate) fn retry_after(excess: Option<Excess>) -> Option<Duration> {
    match excess {
        Some(Excess::Wait(nanos)) => Some(Duration::from_nanos(nanos)),
        _ => None,
    }
}

const DEFAULT_MAX_KEYS: usize = 65_536;

/// The wait to name when nobody can know it: which of eight debts is paid first, or when one of
/// the key's own requests ends.
pub(crate) const SOON: Duration = Duration::from_secs(1);
