//! The limiters of this process by number, for what has to be given back.
//!
//! Every admitted request may turn out not to have been served, so its future has to know which
//! limiter to give its cells back to. A handle would cost each request two locked operations, a
//! tenth of what admitting it takes; a number costs nothing until it is used.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    MAX_POLICIES,
    rules::{Charge, Columns, Mask, Ruleset, Ruling},
};

/// What was charged for a request, made of what is at hand without a loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Charged {
    key: u64,
    #[cfg_attr(
        not(feature = "redis"),
        expect(dead_code, reason = "names fleet accounts")
    )]
    plan: u32,
    uncharged: Mask,
    columns: Columns,
    cells: [u64; MAX_POLICIES],
}

impl Charged {
    #[inline]
    pub(crate) fn new(plan: usize, rules: &Ruleset, charge: &Charge, ruling: &Ruling) -> Self {
        Self {
            key: ruling.key,
            plan: plan as u32,
            uncharged: ruling.shadowed,
            columns: rules.columns(),
            cells: charge.all_cells(),
        }
    }

    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    /// The number of the plan.
    #[cfg(feature = "redis")]
    pub(crate) fn plan(&self) -> usize {
        self.plan as usize
    }

    /// How many cells by the names that debts are kept for, whatever the policies are by now.
    pub(crate) fn by_column(&self) -> [u64; MAX_POLICIES] {
        let mut by_column = [0; MAX_POLICIES];
        for (index, &column) in self.columns.iter().enumerate() {
            if !self.uncharged.contains(index)
                && let Some(cells) = by_column.get_mut(usize::from(column))
            {
                *cells = self.cells[index];
            }
        }
        by_column
    }
}

/// Gives back what was charged; must not keep the limiter alive.
pub(crate) type GiveBack = dyn Fn(&Charged) + Send + Sync;

/// The place of a limiter among those of the process, until it is dropped.
pub(crate) struct Numbered(u64);

impl Numbered {
    pub(crate) fn new(give_back: impl Fn(&Charged) + Send + Sync + 'static) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut limiters = LIMITERS.write().unwrap_or_else(PoisonError::into_inner);
        limiters.insert(number, Arc::new(give_back));
        Self(number)
    }

    #[inline]
    pub(crate) fn number(&self) -> u64 {
        self.0
    }
}

impl Drop for Numbered {
    fn drop(&mut self) {
        let mut limiters = LIMITERS.write().unwrap_or_else(PoisonError::into_inner);
        limiters.remove(&self.0);
    }
}

impl fmt::Debug for Numbered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Numbered({})", self.0)
    }
}

/// Gives `charged` back to the limiter with this number, if there still is one.
pub(crate) fn give_back(number: u64, charged: &Charged) {
    let limiters = LIMITERS.read().unwrap_or_else(PoisonError::into_inner);
    let give_back = limiters.get(&number).cloned();
    // It may be the last to hold the limiter, which then leaves the map.
    drop(limiters);
    if let Some(give_back) = give_back {
        give_back(charged);
    }
}

static LIMITERS: RwLock<BTreeMap<u64, Arc<GiveBack>>> = RwLock::new(BTreeMap::new());
