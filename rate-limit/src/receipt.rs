//! What was charged and may turn out to cost something else.

use std::{fmt, sync::Arc};

use crate::{
    MAX_POLICIES, Quota,
    charged::Numbered,
    plans::{Plan, Plans},
    policy::ResponseHead,
    rules::{Charge, Own},
};

/// What a layer can ask: a [`Limiter`](crate::Limiter), for one process, or with the `redis` feature a
/// [`FleetLimiter`](crate::fleet::FleetLimiter), for several.
///
/// It cannot be implemented elsewhere.
#[expect(private_bounds, reason = "so that it cannot be implemented elsewhere")]
pub trait AnyLimiter: Ledger {}

/// Where the debts are kept, and the plans they are run up under.
pub(crate) trait Ledger: Clone + Send + Sync + 'static {
    /// What the policies of a plan are compiled to.
    type Terms: fmt::Debug + Send + Sync;

    fn plans(&self) -> &Plans<Self::Terms>;

    /// The number of the plan that this handle decides by.
    fn plan_number(&self) -> usize;

    fn now(&self) -> u64;

    /// A quota of a request's own, if it can be kept in the place of the first policy of `plan`.
    fn own(&self, plan: &Plan<Self::Terms>, quota: &Quota) -> Option<Own>;

    /// Charges `more` and gives back `less` cells for each policy, whether they conform or not.
    fn adjust(
        &self,
        plan: &Plan<Self::Terms>,
        key: u64,
        charge: &Charge,
        more: &[u64; MAX_POLICIES],
        less: &[u64; MAX_POLICIES],
    );

    /// The place of the limiter among those of the process, by which it is
    /// [given back to](crate::charged::give_back).
    fn numbered(&self) -> &Numbered;

    /// Reads what a meter is given, while a handle is left.
    #[cfg(feature = "otel")]
    fn readings(
        &self,
    ) -> impl Fn() -> Option<crate::otel::Readings> + Clone + Send + Sync + 'static;

    /// The number of the plan `name`; of this handle's plan when there is no such plan.
    #[inline]
    fn plan_named(&self, name: Option<&str>) -> usize {
        let plan = name.and_then(|name| self.plans().number(name));
        plan.unwrap_or_else(|| self.plan_number())
    }
}

/// Cells charged for work of a cost that is not known yet, made by
/// [`Limiter::reserve`](crate::Limiter::reserve) and
/// [`FleetLimiter::reserve`](crate::fleet::FleetLimiter::reserve).
///
/// Dropping it gives everything back, so a future that is cancelled while it holds one costs its
/// caller nothing. It settles by the quota that it was charged by, whatever the policies are by
/// then.
#[must_use = "dropping a reservation gives its cells back"]
pub struct Reserved<L: AnyLimiter> {
    receipt: Receipt<L>,
    cells: u64,
}

impl<L: AnyLimiter> Reserved<L> {
    pub(crate) fn new(receipt: Receipt<L>, cells: u64) -> Self {
        Self { receipt, cells }
    }

    /// How many cells were charged.
    #[must_use]
    pub fn cells(&self) -> u64 {
        self.cells
    }

    /// Charges or gives back the difference to the `actual` cost; in a fleet, in the background.
    /// The debt stops at twice the burst, and no key is credited beyond a full one.
    pub fn settle(self, actual: u64) {
        self.receipt.settle_by(|_| Some(actual));
    }

    /// Keeps what was charged.
    pub fn keep(self) {
        let cells = self.cells;
        self.settle(cells);
    }
}

impl<L: AnyLimiter> fmt::Debug for Reserved<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reserved")
            .field("cells", &self.cells)
            .finish_non_exhaustive()
    }
}

/// What was charged and may be settled; gives it back when dropped before that.
pub(crate) struct Receipt<L: Ledger> {
    ledger: L,
    plan: Arc<Plan<L::Terms>>,
    key: u64,
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

impl<L: Ledger> Receipt<L> {
    /// A receipt for what was charged to `key` by `plan`.
    pub(crate) fn new(
        ledger: &L,
        plan: Arc<Plan<L::Terms>>,
        key: u64,
        charge: Charge,
        which: Settle,
    ) -> Self {
        Self {
            ledger: ledger.clone(),
            plan,
            key,
            charge,
            which,
            open: true,
        }
    }

    /// Settles by what the policies make of the response.
    pub(crate) fn settle(self, response: &ResponseHead<'_>) {
        let plan = Arc::clone(&self.plan);
        self.settle_by(|index| plan.rules.rules()[index].policy.settlement()?(response));
    }

    pub(crate) fn settle_by(mut self, actual: impl Fn(usize) -> Option<u64>) {
        self.open = false;
        self.adjust(actual);
    }

    fn adjust(&self, actual: impl Fn(usize) -> Option<u64>) {
        let (mut more, mut less) = ([0; MAX_POLICIES], [0; MAX_POLICIES]);
        for index in 0..self.plan.rules.rules().len() {
            let charged = self.charge.cells(index);
            let actual = actual(index).unwrap_or(charged);
            more[index] = actual.saturating_sub(charged);
            less[index] = charged.saturating_sub(actual);
        }
        self.ledger
            .adjust(&self.plan, self.key, &self.charge, &more, &less);
    }
}

impl<L: Ledger> Drop for Receipt<L> {
    fn drop(&mut self) {
        if self.open {
            let returns = |index: usize| {
                self.which == Settle::Everything
                    || self.plan.rules.rules()[index].policy.settlement().is_some()
            };
            self.adjust(|index| returns(index).then_some(0));
        }
    }
}

impl<L: Ledger> fmt::Debug for Receipt<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt")
            .field("charge", &self.charge)
            .finish_non_exhaustive()
    }
}
