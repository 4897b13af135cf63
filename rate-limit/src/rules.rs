//! Policies, compiled: what decides.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use governor::{RateLimiter, middleware::NoOpMiddleware};
use http::HeaderValue;

#[cfg(feature = "redis")]
use crate::fleet::script::Term;
use crate::{
    BuildError, MAX_POLICIES, Policy, Quota, answer,
    gcra::{Excess, Gcra},
    key::RequestHead,
    metrics::Meter,
    policy::{Name, check_name},
    store::{Probe, Slot, Store, Table, Tick, ToldClock},
};

/// A policy, ready to decide.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) policy: Policy,
    pub(crate) name: Name,
    pub(crate) gcra: Gcra,
    /// Where in an entry the TAT is. Policies of the same name share it over all plans.
    column: usize,
    /// The problem document that names this policy alone.
    pub(crate) problem: Bytes,
    /// The same as a `google.rpc.QuotaFailure.Violation`.
    pub(crate) violation: Bytes,
    pub(crate) meter: Meter,
}

/// The policies of a plan, decided together, all or nothing.
pub(crate) struct Ruleset {
    rules: Box<[Rule]>,
    governor: Option<Governor>,
    /// The `ratelimit-policy` field value.
    pub(crate) policy_field: HeaderValue,
    settles: bool,
    /// The policies as Redis is told of them.
    #[cfg(feature = "redis")]
    terms: Arc<[Term]>,
}

type Governor = RateLimiter<Probe, Store, ToldClock, NoOpMiddleware<Tick>>;

/// What to charge for one request; made where it stays, as a [`Ruling`] is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Charge {
    cells: [u64; MAX_POLICIES],
    /// A quota of this key's own, in place of the first rule's.
    own: Option<Gcra>,
}

impl Charge {
    /// The same number of cells for every rule.
    #[inline]
    pub(crate) fn each(cells: u64) -> Self {
        Self {
            cells: [cells; MAX_POLICIES],
            own: None,
        }
    }

    /// Charges what `rules` say that `request` costs.
    #[inline]
    pub(crate) fn price(&mut self, rules: &Ruleset, request: &RequestHead<'_>) {
        for (cells, rule) in self.cells.iter_mut().zip(&rules.rules) {
            *cells = rule.policy.cost_of(request);
        }
    }

    /// Puts a quota of the key's own in place of the first rule's, unless it cannot be kept.
    pub(crate) fn put_own(&mut self, quota: &Quota) {
        self.own = Gcra::new(quota).ok();
    }

    /// The same without the rules that let the request through without charging it.
    pub(crate) fn waive(mut self, waived: Mask) -> Self {
        for (index, cells) in self.cells.iter_mut().enumerate() {
            if waived.contains(index) {
                *cells = 0;
            }
        }
        self
    }

    #[inline]
    pub(crate) fn gcra<'a>(&'a self, index: usize, rule: &'a Rule) -> &'a Gcra {
        match &self.own {
            Some(own) if index == 0 => own,
            _ => &rule.gcra,
        }
    }

    #[inline]
    pub(crate) fn cells(&self, index: usize) -> u64 {
        self.cells[index]
    }

    /// The cells for the first `policies`, and none for the rest.
    #[cfg(feature = "redis")]
    pub(crate) fn of_first(&self, policies: usize) -> [u64; MAX_POLICIES] {
        std::array::from_fn(|index| {
            if index < policies {
                self.cells[index]
            } else {
                0
            }
        })
    }
}

/// What a ruleset decided, and the state it left behind.
///
/// It is written where it stays: moving it would cost more than deciding.
#[derive(Debug)]
pub(crate) struct Ruling {
    /// The TAT of each rule after the decision.
    pub(crate) tats: [u64; MAX_POLICIES],
    /// The rules that limit the request.
    pub(crate) violated: Mask,
    /// The rules that would, but are in shadow mode.
    pub(crate) shadowed: Mask,
    /// How long until `violated` would be empty.
    pub(crate) excess: Option<Excess>,
    /// When it was made.
    now: u64,
}

impl Ruling {
    /// One that admits, until it is decided otherwise.
    #[inline]
    pub(crate) fn at(now: u64) -> Self {
        Self {
            now,
            tats: [0; MAX_POLICIES],
            violated: Mask::default(),
            shadowed: Mask::default(),
            excess: None,
        }
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    #[inline]
    pub(crate) fn admits(&self) -> bool {
        self.violated.is_empty()
    }

    /// What Redis, or those who stand in for it, decided: `levels` are what is owed after it,
    /// `uncharged` the policies in shadow mode that would have refused an admitted request.
    #[cfg(feature = "redis")]
    pub(crate) fn of_fleet(
        rules: &Ruleset,
        terms: &[Term],
        charge: &Charge,
        now: u64,
        levels: &[u64],
        outcome: Result<&[bool], Excess>,
    ) -> Self {
        let mut ruling = Self::at(now);
        let mut tightest = None;
        for (index, (rule, term)) in rules.rules.iter().zip(terms).enumerate() {
            let Term { level, burst, .. } = term;
            // What is held back from the burst is as good as owed.
            let held_back = (burst * level.price).saturating_sub(level.capacity);
            let owed = level.nanos(levels[index] + held_back);
            ruling.tats[index] = charge.gcra(index, rule).owing(now, owed);
            let cells = charge.cells(index);
            let would_not = match outcome {
                Ok(uncharged) => uncharged[index] && rule.policy.is_shadow(),
                Err(_) => level.excess(levels[index], cells).is_some(),
            };
            if would_not && rule.policy.is_shadow() {
                ruling.shadowed.insert(index);
            } else if would_not {
                ruling.violated.insert(index);
            }
            let fill = levels[index] as f64 / level.capacity as f64;
            if cells > 0 && !rule.policy.is_shadow() && tightest.is_none_or(|(_, f)| fill > f) {
                tightest = Some((index, fill));
            }
        }
        if let Err(excess) = outcome {
            ruling.excess = Some(excess);
            // It would fit by what is known here, but not a whole lease would, or others took it.
            if ruling.violated.is_empty()
                && let Some((index, _)) = tightest
            {
                ruling.violated.insert(index);
            }
        }
        ruling
    }

    fn exceed(&mut self, index: usize, rule: &Rule, excess: Excess) {
        if rule.policy.is_shadow() {
            self.shadowed.insert(index);
            return;
        }
        self.violated.insert(index);
        self.excess = match (self.excess, excess) {
            (Some(Excess::Never), _) | (_, Excess::Never) => Some(Excess::Never),
            (Some(Excess::Wait(a)), Excess::Wait(b)) => Some(Excess::Wait(a.max(b))),
            (None, wait) => Some(wait),
        };
    }
}

/// A set of rules, by index.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Mask(u8);

impl Mask {
    #[inline]
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[inline]
    pub(crate) fn contains(self, index: usize) -> bool {
        self.0 & (1 << index) != 0
    }

    /// The first rule in the set.
    #[inline]
    pub(crate) fn first(self) -> Option<usize> {
        (!self.is_empty()).then(|| self.0.trailing_zeros() as usize)
    }

    fn insert(&mut self, index: usize) {
        self.0 |= 1 << index;
    }
}

impl Ruleset {
    /// Compiles `policies`; `columns` are the names that a table has room for, in order.
    pub(crate) fn new(
        policies: &[Policy],
        columns: &[Arc<str>],
        table: &Arc<Table>,
    ) -> Result<Self, BuildError> {
        if policies.is_empty() {
            return Err(BuildError::NoPolicy);
        }
        let rules: Box<[Rule]> = policies
            .iter()
            .map(|policy| compile(policy, columns))
            .collect::<Result<_, _>>()?;
        for (index, rule) in rules.iter().enumerate() {
            if rules[..index]
                .iter()
                .any(|earlier| earlier.column == rule.column)
            {
                return Err(BuildError::DuplicateName(rule.policy.shared_name()));
            }
        }
        let governor = match &rules[..] {
            [rule] if columns.len() == 1 => rule.gcra.to_governor().map(|quota| {
                ToldClock::tell(0);
                RateLimiter::new(quota, Store(Arc::clone(table)), ToldClock)
            }),
            _ => None,
        };
        let policy_field = answer::policy_field(&rules, None);
        let settles = rules.iter().any(|rule| rule.policy.settlement().is_some());
        Ok(Self {
            rules,
            governor,
            policy_field,
            settles,
            #[cfg(feature = "redis")]
            terms: Arc::new([]),
        })
    }

    #[inline]
    pub(crate) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether any rule learns its cost from the response.
    #[inline]
    pub(crate) fn settles(&self) -> bool {
        self.settles
    }

    /// The policies as Redis is told of them; none before [`set_terms`](Self::set_terms).
    #[cfg(feature = "redis")]
    #[inline]
    pub(crate) fn terms(&self) -> &Arc<[Term]> {
        &self.terms
    }

    #[cfg(feature = "redis")]
    pub(crate) fn set_terms(&mut self, terms: Arc<[Term]>) {
        self.terms = terms;
    }

    /// The counters for what concerns no policy in particular.
    #[inline]
    pub(crate) fn meter(&self) -> &Meter {
        // There is at least one rule, see `new`.
        &self.rules[0].meter
    }

    /// What the entry at `slot` owes, in nanoseconds, under the rule where it owes most.
    pub(crate) fn debt(&self, table: &Table, slot: Slot, now: u64) -> u64 {
        let debt = |rule: &Rule| rule.gcra.debt_nanos(table.read(slot, rule.column), now);
        self.rules.iter().map(debt).max().unwrap_or(0)
    }

    /// How many cells `slot` could use at `now` under the tightest rule.
    pub(crate) fn remaining(&self, table: &Table, slot: Option<Slot>, now: u64) -> u64 {
        let remaining = |rule: &Rule| {
            rule.gcra
                .remaining(slot.map_or(0, |slot| table.read(slot, rule.column)), now)
        };
        self.rules.iter().map(remaining).min().unwrap_or(0)
    }

    /// How many cells `ruling` has left under the tightest rule.
    #[inline]
    pub(crate) fn left_by(&self, ruling: &Ruling) -> u64 {
        let rules = self.rules.iter().zip(&ruling.tats);
        rules
            .map(|(rule, tat)| rule.gcra.remaining(*tat, ruling.now))
            .min()
            .unwrap_or(0)
    }

    /// Replaces the TAT of every rule by what `next` makes of it.
    pub(crate) fn adjust(
        &self,
        table: &Table,
        slot: Slot,
        next: impl Fn(usize, &Rule, u64) -> u64,
    ) {
        let _guard = (table.columns() > 1).then(|| table.lock(slot));
        for (index, rule) in self.rules.iter().enumerate() {
            let word = table.tat(slot, rule.column);
            let mut tat = word.load(Ordering::Acquire);
            while let Err(now) = word.compare_exchange_weak(
                tat,
                next(index, rule, tat),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                tat = now;
            }
        }
    }

    /// Turns the debts that were run up under `old` into debts under these rules: those that get
    /// larger `before` these rules decide, the others after. Read in the wrong scale meanwhile, a
    /// debt is too large rather than too small.
    pub(crate) fn take_over(&self, old: &Self, table: &Table, now: u64, before: bool) {
        let predecessor = |rule: &Rule| {
            let old = old.rules.iter().find(|old| old.column == rule.column)?;
            let grows = rule.gcra.nanos_for(1) > old.gcra.nanos_for(1);
            (old.gcra != rule.gcra && grows == before).then_some(old.gcra)
        };
        let old: Vec<_> = self.rules.iter().map(predecessor).collect();
        if old.iter().all(Option::is_none) {
            return;
        }
        table.for_each(|slot| {
            self.adjust(table, slot, |index, rule, tat| match &old[index] {
                Some(old) => rule.gcra.convert(old, tat, now),
                None => tat,
            });
        });
    }

    /// Charges every rule at the time of `ruling`, or none if one is exceeded.
    ///
    /// One cell of one quota is governor's to decide. The rest (several cells, several quotas,
    /// quotas of a key's own, rates that governor would round) is decided here, on the same
    /// entries.
    #[inline]
    pub(crate) fn charge(&self, table: &Table, slot: Slot, charge: &Charge, ruling: &mut Ruling) {
        match &self.governor {
            Some(governor) if charge.cells[0] == 1 && charge.own.is_none() => {
                self.charge_governor(governor, slot, ruling);
            }
            _ if table.columns() == 1 => self.charge_one(table, slot, charge, ruling),
            _ => self.charge_all(table, slot, charge, ruling),
        }
    }

    #[inline]
    fn charge_governor(&self, governor: &Governor, slot: Slot, ruling: &mut Ruling) {
        let probe = Probe::new(slot);
        ToldClock::tell(ruling.now);
        let outcome = governor.check_key(&probe);
        ruling.tats[0] = probe.tat();
        if let Err(not_until) = outcome {
            let Tick(earliest) = not_until.earliest_possible();
            ruling.exceed(0, &self.rules[0], Excess::Wait(earliest - ruling.now));
        }
    }

    #[inline]
    fn charge_one(&self, table: &Table, slot: Slot, charge: &Charge, ruling: &mut Ruling) {
        let rule = &self.rules[0];
        let gcra = charge.gcra(0, rule);
        let word = table.tat(slot, rule.column);
        let mut tat = word.load(Ordering::Acquire);
        loop {
            ruling.tats[0] = tat;
            let next = match gcra.charge(tat, ruling.now, charge.cells[0]) {
                Ok(next) => next,
                Err(excess) => {
                    ruling.exceed(0, rule, excess);
                    return;
                }
            };
            match word.compare_exchange_weak(tat, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    ruling.tats[0] = next;
                    return;
                }
                Err(now) => tat = now,
            }
        }
    }

    fn charge_all(&self, table: &Table, slot: Slot, charge: &Charge, ruling: &mut Ruling) {
        let mut next = [None; MAX_POLICIES];
        let _guard = table.lock(slot);
        for (index, rule) in self.rules.iter().enumerate() {
            let tat = table.read(slot, rule.column);
            ruling.tats[index] = tat;
            match charge
                .gcra(index, rule)
                .charge(tat, ruling.now, charge.cells[index])
            {
                Ok(tat) => next[index] = Some(tat),
                Err(excess) => ruling.exceed(index, rule, excess),
            }
        }
        if ruling.admits() {
            for (index, rule) in self.rules.iter().enumerate() {
                if let Some(tat) = next[index] {
                    table.tat(slot, rule.column).store(tat, Ordering::Release);
                    ruling.tats[index] = tat;
                }
            }
        }
    }
}

impl fmt::Debug for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ruleset")
            .field("rules", &self.rules)
            .field("on_governor", &self.governor.is_some())
            .finish_non_exhaustive()
    }
}

fn compile(policy: &Policy, columns: &[Arc<str>]) -> Result<Rule, BuildError> {
    let name = policy.name();
    check_name(name)?;
    check_name(policy.quota().cell_unit().as_str())?;
    let Some(column) = columns.iter().position(|column| **column == *name) else {
        return Err(BuildError::UnknownName(policy.shared_name()));
    };
    let gcra = Gcra::new(&policy.quota()).map_err(|error| BuildError::Quota {
        policy: policy.shared_name(),
        error,
    })?;
    Ok(Rule {
        policy: policy.clone(),
        name: Name::new(name),
        gcra,
        column,
        problem: answer::problem(name),
        violation: answer::violation(policy),
        meter: Meter::new(name),
    })
}
