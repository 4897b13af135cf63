//! How the policies of a plan charge an entry of the table.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use governor::{RateLimiter, middleware::NoOpMiddleware};

use crate::{
    BuildError, MAX_POLICIES,
    gcra::Excess,
    plans::Plan,
    rules::{Charge, Rule, Ruleset, Ruling},
    store::{Probe, Scale, Slot, Store, Table, Tick, ToldClock},
};

/// What the table needs to know of a plan.
pub(crate) struct Terms {
    /// How accounts name the quota of each rule.
    scales: Box<[Scale]>,
    governor: Option<Governor>,
}

type Governor = RateLimiter<Probe, Store, ToldClock, NoOpMiddleware<Tick>>;

impl Terms {
    pub(crate) fn new(rules: &Ruleset, table: &Arc<Table>) -> Result<Self, BuildError> {
        let scale = |rule: &Rule| {
            let scale = table.scale(rule.column, rule.gcra);
            scale.ok_or_else(|| BuildError::TooManyQuotas(rule.policy.shared_name()))
        };
        let scales: Box<[Scale]> = rules.rules().iter().map(scale).collect::<Result<_, _>>()?;
        let governor = match rules.rules() {
            [rule] if table.columns() == 1 && scales[0].is_first() => {
                rule.gcra.to_governor().map(|quota| {
                    ToldClock::tell(0);
                    RateLimiter::new(quota, Store(Arc::clone(table)), ToldClock)
                })
            }
            _ => None,
        };
        Ok(Self { scales, governor })
    }
}

impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms")
            .field("on_governor", &self.governor.is_some())
            .finish_non_exhaustive()
    }
}

impl Plan<Terms> {
    /// How accounts name the quota that decides in the place of the rule at `index`.
    #[inline]
    pub(crate) fn scale(&self, table: &Table, charge: &Charge, index: usize) -> Scale {
        let rule = &self.rules.rules()[index];
        let own = charge.own(index);
        own.and_then(|own| table.scale(rule.column, own.gcra))
            .unwrap_or(self.terms.scales[index])
    }

    /// Charges every rule at the time of `ruling`, or none if one is exceeded.
    ///
    /// One cell of one quota is governor's to decide. The rest (several cells, several policies or
    /// quotas, rates that governor would round) is decided here, on the same entries.
    #[inline]
    pub(crate) fn charge(&self, table: &Table, slot: Slot, charge: &Charge, ruling: &mut Ruling) {
        if !table.is_plain() {
            return self.charge_accounts(table, slot, charge, ruling);
        }
        match &self.terms.governor {
            Some(governor) if charge.cells(0) == 1 => self.charge_governor(governor, slot, ruling),
            _ if table.columns() == 1 => self.charge_one(table, slot, charge, ruling),
            _ => self.charge_all(table, slot, charge, ruling),
        }
    }

    #[inline]
    fn charge_governor(&self, governor: &Governor, slot: Slot, ruling: &mut Ruling) {
        let probe = Probe::new(slot);
        ToldClock::tell(ruling.now());
        let outcome = governor.check_key(&probe);
        ruling.tats[0] = probe.tat();
        if let Err(not_until) = outcome {
            let Tick(earliest) = not_until.earliest_possible();
            let wait = Excess::Wait(earliest - ruling.now());
            ruling.exceed(0, &self.rules.rules()[0], wait);
        }
    }

    #[inline]
    fn charge_one(&self, table: &Table, slot: Slot, charge: &Charge, ruling: &mut Ruling) {
        let rule = &self.rules.rules()[0];
        let word = table.tat(slot, rule.column);
        let mut tat = word.load(Ordering::Acquire);
        loop {
            ruling.tats[0] = tat;
            let next = match rule.gcra.charge(tat, ruling.now(), charge.cells(0)) {
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
        let guard = table.lock(slot);
        if !table.is_plain() {
            drop(guard);
            return self.charge_accounts(table, slot, charge, ruling);
        }
        for (index, rule) in self.rules.rules().iter().enumerate() {
            let tat = table.tat(slot, rule.column).load(Ordering::Acquire);
            ruling.tats[index] = tat;
            match rule.gcra.charge(tat, ruling.now(), charge.cells(index)) {
                Ok(tat) => next[index] = Some(tat),
                Err(excess) => ruling.exceed(index, rule, excess),
            }
        }
        if ruling.admits() {
            for (index, rule) in self.rules.rules().iter().enumerate() {
                if let Some(tat) = next[index] {
                    table.tat(slot, rule.column).store(tat, Ordering::Release);
                    ruling.tats[index] = tat;
                }
            }
        }
    }

    /// The same where keys have accounts of several quotas.
    fn charge_accounts(&self, table: &Table, slot: Slot, charge: &Charge, ruling: &mut Ruling) {
        let now = ruling.now();
        let rules = || self.rules.rules().iter().enumerate();
        let (mut fits, mut has) = ([false; MAX_POLICIES], [false; MAX_POLICIES]);
        let _guard = table.lock(slot);
        for (index, rule) in rules() {
            let scale = self.scale(table, charge, index);
            let debts = table.debts(slot, rule.column);
            let tat = debts.seen_by(&scale, now);
            ruling.tats[index] = tat;
            has[index] = debts.has(&scale);
            match scale.gcra.charge(tat, now, charge.cells(index)) {
                Ok(_) => fits[index] = true,
                Err(excess) => ruling.exceed(index, rule, excess),
            }
        }
        if ruling.excess == Some(Excess::Never) {
            // Whatever is owed, so it says nothing of the key.
            return;
        }
        for (index, rule) in rules().filter(|(index, _)| charge.cells(*index) > 0) {
            let scale = self.scale(table, charge, index);
            let admitted = ruling.admits() && fits[index];
            if !admitted && has[index] {
                continue;
            }
            let debts = table.change(slot, rule.column, |debts| {
                if admitted {
                    debts.charge(&scale, now, charge.cells(index));
                } else {
                    // From now on what it is refused for comes back at the pace of this quota.
                    debts.open(&scale, now);
                }
            });
            ruling.tats[index] = debts.seen_by(&scale, now);
        }
    }
}
