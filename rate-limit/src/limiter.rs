//! The handle: one limiter, however many layers, services and clones share it.

use std::{
    fmt,
    hash::Hash,
    sync::{Arc, Weak},
};

use crate::{
    AnyLimiter, BuildError, Inflight, LimitError, MAX_POLICIES, Mode, OnFull, Policy, Quota,
    Reserved, Warning,
    answer::Reason,
    charged::{Charged, Numbered},
    charging::Terms,
    clock::Clock,
    key::Seed,
    metrics::{Metrics, Outcome},
    plans::{Checked, Current, NamedPlans, Plan, Plans},
    receipt::{Ledger, Receipt, Settle},
    rules::{Charge, Own, Ruleset, Ruling},
    store::Table,
    warning::Watch,
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
/// Decisions wait for nothing but a lock that is held for a few memory accesses, and take none for
/// a known key with a single quota.
#[derive(Clone)]
pub struct Limiter {
    inner: Arc<Inner>,
    plan: usize,
}

#[derive(Debug)]
struct Inner {
    plans: Plans<Terms>,
    table: Arc<Table>,
    clock: Clock,
    numbered: Numbered,
}

impl Inner {
    fn give_back(&self, charged: &Charged) {
        let table = &*self.table;
        let now = self.clock.now();
        let Some(slot) = table.find_or_shared(charged.key(), now) else {
            return;
        };
        let _guard = table.lock_if_needed(slot);
        let cells = charged.by_column().into_iter().enumerate();
        for (column, cells) in cells.filter(|(_, cells)| *cells > 0) {
            table.change(slot, column, |debts| debts.refund(now, cells));
        }
    }
}

impl Limiter {
    pub(crate) fn assemble(
        named: &NamedPlans,
        (columns, rulesets): Checked,
        (keys, names, on_full): (usize, usize, OnFull),
        max_inflight: Option<Box<[u32]>>,
        clock: Clock,
        watch: Watch,
    ) -> Result<Self, BuildError> {
        let first_of = |column: usize| {
            let mut rules = rulesets.iter().flat_map(Ruleset::rules);
            rules.find(|rule| rule.column == column)
        };
        // Every column is that of some rule, or spare: then any quota stands for what has none yet.
        let quotas = (0..names).filter_map(|column| {
            let rule = first_of(column).or_else(|| first_of(0))?;
            Some(rule.gcra)
        });
        let table = Arc::new(Table::new(
            keys,
            quotas.collect(),
            on_full,
            Metrics::new(&columns[0]),
        ));
        let plans = Plans::new(
            named,
            (columns, names),
            rulesets,
            &|rules, _| Terms::new(rules, &table),
            Seed::random(),
            max_inflight,
            watch,
        )?;
        Ok(Self {
            inner: Arc::new_cyclic(|inner: &Weak<Inner>| {
                let inner = Weak::clone(inner);
                let give_back = move |charged: &Charged| {
                    if let Some(inner) = inner.upgrade() {
                        inner.give_back(charged);
                    }
                };
                Inner {
                    plans,
                    table,
                    clock,
                    numbered: Numbered::new(give_back),
                }
            }),
            plan: 0,
        })
    }

    /// Charges one cell of every policy to `key`.
    ///
    /// # Errors
    ///
    /// Fails, charging nothing, if a policy that is not in shadow mode is exceeded.
    pub fn check(&self, key: impl Hash) -> Result<Decision, LimitError> {
        self.check_n(key, 1)
    }

    /// Charges `cells` cells of every policy to `key`, all or none.
    ///
    /// # Errors
    ///
    /// Fails, charging nothing, if a policy that is not in shadow mode is exceeded. If `cells` is
    /// more than a burst there is no use in retrying, and [`LimitError::retry_after`] is `None`.
    pub fn check_n(&self, key: impl Hash, cells: u64) -> Result<Decision, LimitError> {
        let plan = self.current();
        let charge = Charge::each(cells);
        let mut ruling = Ruling::at(self.now(), self.plans().hash(key));
        self.admit(&plan, &charge, &mut ruling)?;
        Ok(Decision {
            remaining: plan.rules.left_by(&charge, &ruling),
        })
    }

    #[inline]
    fn admit(
        &self,
        plan: &Plan<Terms>,
        charge: &Charge,
        ruling: &mut Ruling,
    ) -> Result<(), LimitError> {
        let mode = self.plans().mode();
        if mode == Mode::Off {
            self.look(plan, charge, ruling);
            ruling.waive_all();
            return Ok(());
        }
        let shadow = mode == Mode::Shadow;
        match self.charge(plan, charge, ruling, shadow) {
            Ok(()) if ruling.admits() || shadow => Ok(()),
            Ok(()) => Err(LimitError::quota(&plan.rules, ruling)),
            Err(NoRoom) if shadow => {
                ruling.waive_all();
                Ok(())
            }
            Err(NoRoom) => Err(LimitError::other(Reason::NoRoom)),
        }
    }

    /// Charges `cells` cells of every policy to `key` for work of a cost that is not known yet. The
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
        let plan = self.current();
        let charge = Charge::each(cells);
        let mut ruling = Ruling::at(self.now(), self.plans().hash(key));
        self.admit(&plan, &charge, &mut ruling)?;
        let charge = charge.waive(ruling.uncharged());
        let receipt = Receipt::new(self, plan.keep(), ruling.key, charge, Settle::Everything);
        Ok(Reserved::new(receipt, cells))
    }

    /// How many cells `key` could use right now under the tightest policy, charging nothing.
    #[must_use]
    pub fn peek(&self, key: impl Hash) -> u64 {
        let key = self.plans().hash(key);
        self.peek_at(&self.current(), &Charge::each(0), key)
    }

    pub(crate) fn peek_at(&self, plan: &Plan<Terms>, charge: &Charge, key: u64) -> u64 {
        let mut ruling = Ruling::at(self.now(), key);
        self.look(plan, charge, &mut ruling);
        plan.rules.left_by(charge, &ruling)
    }

    /// Gives `cells` cells of every policy back to `key`, for example because the work was not
    /// done after all. No key is credited beyond a full burst.
    pub fn refund(&self, key: impl Hash, cells: u64) {
        self.correct(self.plans().hash(key), 0, cells);
    }

    /// Charges `cells` cells of every policy to `key` whether they conform or not, for costs that
    /// are known only afterwards. The debt stops at twice the burst.
    pub fn penalize(&self, key: impl Hash, cells: u64) {
        self.correct(self.plans().hash(key), cells, 0);
    }

    /// Counts one more request of `key` in flight until the result is dropped. Always succeeds
    /// if the limiter has no [`max_inflight`](crate::LimiterBuilder::max_inflight).
    ///
    /// # Errors
    ///
    /// Fails if the key is at its limit.
    pub fn enter(&self, key: impl Hash) -> Result<Option<Inflight>, LimitError> {
        self.plans().enter(self.plan, self.plans().hash(key))
    }

    /// How many requests of `key` are in flight; 0 if they are not counted.
    #[must_use]
    pub fn inflight(&self, key: impl Hash) -> u32 {
        self.plans().inflight(self.plans().hash(key))
    }

    /// A handle that decides by the plan `name`; `None` if there is no such plan.
    #[must_use]
    pub fn plan(&self, name: &str) -> Option<Self> {
        Some(Self {
            plan: self.plans().number(name)?,
            ..self.clone()
        })
    }

    /// Replaces the policies of this handle's plan, for every holder of the limiter. Every
    /// request is decided by the old ones or the new ones, none in between.
    ///
    /// Debts are kept, as a number of cells: a key that had used 7 of 10 has used 7 of the new 20.
    /// A key that owes more than the new burst is refused until a cell of that is back, no longer.
    /// Keys on other plans are not touched, and requests under way settle by what they were charged
    /// by. See [`Policy`] for the rule behind all of this. Once a name has had two quotas, decisions
    /// take a lock and some 40 ns more, and a new key at a full table half a microsecond.
    ///
    /// # Errors
    ///
    /// Fails, changing nothing, if a policy is invalid, or has a name that the limiter was not
    /// built with and for which there is [no room](crate::LimiterBuilder::spare_policies).
    pub fn set_policies(
        &self,
        policies: impl IntoIterator<Item = Policy>,
    ) -> Result<(), BuildError> {
        let policies: Vec<_> = policies.into_iter().collect();
        let table = &self.inner.table;
        let compile = |rules: &Ruleset, _: &[Ruleset]| Terms::new(rules, table);
        self.plans().replace(self.plan, &policies, &compile)
    }

    /// Switches the limits off, to shadow mode, or on again, for every holder of the limiter.
    ///
    /// Off, nothing is charged, so callers have their whole quota when they are switched on.
    pub fn set_mode(&self, mode: Mode) {
        self.plans().set_mode(mode);
    }

    /// What is done with requests over their quota.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.plans().mode()
    }

    /// The policies of this handle's plan.
    #[must_use]
    pub fn policies(&self) -> Vec<Policy> {
        self.current().policies()
    }

    /// How many keys are remembered now. Keys without debt are remembered until their place is
    /// needed.
    #[must_use]
    pub fn resident_keys(&self) -> usize {
        self.inner.table.resident()
    }

    /// How many keys can be remembered: about twice what
    /// [`max_keys`](crate::LimiterBuilder::max_keys) asked for.
    #[must_use]
    pub fn key_capacity(&self) -> usize {
        self.inner.table.capacity()
    }

    /// How many keys were forgotten while they were in debt. If it moves, there are more keys at
    /// once than [`max_keys`](crate::LimiterBuilder::max_keys) allows for.
    #[must_use]
    pub fn live_evictions(&self) -> u64 {
        self.inner.table.live_evictions()
    }

    /// The mistakes in the setup that traffic has shown so far, each once.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        self.plans().watch().raised()
    }

    /// Whether `other` is a handle to the same limiter.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// What this handle's plan enforces.
    #[inline]
    fn current(&self) -> Current<'_, Terms> {
        self.plans().at(self.plan)
    }

    /// Charges every rule at the time of `ruling`, or none. One reading of the clock serves for
    /// all of it: should a new key wait for the lock of its set, an earlier time admits less.
    #[inline]
    pub(crate) fn charge(
        &self,
        plan: &Plan<Terms>,
        charge: &Charge,
        ruling: &mut Ruling,
        shadow: bool,
    ) -> Result<(), NoRoom> {
        let table = &*self.inner.table;
        let Some(slot) = table.claim(ruling.key, ruling.now()) else {
            plan.rules.metrics().count(match shadow {
                true => Outcome::Shadow,
                false => Outcome::Limited,
            });
            return Err(NoRoom);
        };
        plan.charge(table, slot, charge, ruling);
        self.plans().report(&plan.rules, ruling, shadow);
        if table.is_shared(slot) {
            ruling.key = Table::SHARED;
        }
        Ok(())
    }

    /// Fills in what the key of `ruling` owes.
    fn look(&self, plan: &Plan<Terms>, charge: &Charge, ruling: &mut Ruling) {
        let table = &*self.inner.table;
        let now = ruling.now();
        let slot = table.find_or_shared(ruling.key, now);
        for (index, rule) in plan.rules.rules().iter().enumerate() {
            let scale = plan.scale(table, charge, index);
            ruling.tats[index] = slot.map_or(0, |slot| {
                table.debts(slot, rule.column).seen_by(&scale, now)
            });
        }
    }

    /// Charges or gives back cells of every policy.
    fn correct(&self, key: u64, more: u64, less: u64) {
        let (more, less) = ([more; MAX_POLICIES], [less; MAX_POLICIES]);
        self.adjust(&self.current(), key, &Charge::each(0), &more, &less);
    }
}

impl AnyLimiter for Limiter {}

impl Ledger for Limiter {
    type Terms = Terms;

    #[inline]
    fn plans(&self) -> &Plans<Terms> {
        &self.inner.plans
    }

    #[inline]
    fn plan_number(&self) -> usize {
        self.plan
    }

    #[inline]
    fn now(&self) -> u64 {
        self.inner.clock.now()
    }

    fn own(&self, plan: &Plan<Terms>, quota: &Quota) -> Option<Own> {
        let gcra = crate::gcra::Gcra::new(quota).ok()?;
        let own = Own {
            quota: *quota,
            gcra,
        };
        let column = plan.rules.rules().first()?.column;
        self.inner.table.scale(column, gcra).map(|_| own)
    }

    #[cfg(feature = "otel")]
    fn readings(
        &self,
    ) -> impl Fn() -> Option<crate::otel::Readings> + Clone + Send + Sync + 'static {
        let inner = Arc::downgrade(&self.inner);
        move || {
            let inner = inner.upgrade()?;
            Some(crate::otel::Readings {
                policies: inner.plans.counts(),
                keys: Some((inner.table.resident(), inner.table.live_evictions())),
                #[cfg(feature = "redis")]
                fleet: None,
            })
        }
    }

    #[inline]
    fn numbered(&self) -> &Numbered {
        &self.inner.numbered
    }

    fn adjust(
        &self,
        plan: &Plan<Terms>,
        key: u64,
        charge: &Charge,
        more: &[u64; MAX_POLICIES],
        less: &[u64; MAX_POLICIES],
    ) {
        let table = &*self.inner.table;
        let now = self.now();
        // A key that was forgotten meanwhile owes nothing to give back, but may owe more.
        let slot = if key != Table::SHARED && more.iter().any(|&cells| cells > 0) {
            table.claim(key, now)
        } else {
            table.find_or_shared(key, now)
        };
        let Some(slot) = slot else {
            return;
        };
        let _guard = table.lock_if_needed(slot);
        for (index, rule) in plan.rules.rules().iter().enumerate() {
            let scale = plan.scale(table, charge, index);
            let (more, less) = (more[index], less[index]);
            table.change(slot, rule.column, |debts| {
                if more > 0 {
                    debts.charge(&scale, now, more);
                }
                if less > 0 {
                    debts.refund(now, less);
                }
            });
        }
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter")
            .field("plan", &self.current().rules)
            .field("table", &self.inner.table)
            .finish_non_exhaustive()
    }
}

/// A [`Reserved`] of a limiter in one process.
pub type Reservation = Reserved<Limiter>;

/// A new key is refused for lack of room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoRoom;

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
