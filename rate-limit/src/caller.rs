//! The caller of the request that a handler serves.

use std::{fmt, sync::Arc};

use crate::{
    AnyLimiter, Limiter, MAX_POLICIES,
    plans::Plan,
    rules::{Charge, Ruling},
};

/// The account that a request was charged to, in the request's extensions for handlers and
/// middleware further in, see [`RateLimitLayer::tell_caller`](crate::RateLimitLayer::tell_caller).
///
/// Whatever the key is made of, this is the account of "the caller of this request".
///
/// ```
/// use axum::{Extension, Router, routing::post};
/// use rate_limit::{Caller, HOUR, Quota, RateLimitLayer};
///
/// // A wrong password costs ten more.
/// async fn login(Extension(caller): Extension<Caller>, password: String) -> &'static str {
///     if password != "correct horse" {
///         caller.penalize(10);
///         return "no";
///     }
///     "welcome"
/// }
///
/// let limit = RateLimitLayer::new(Quota::count(100).per(HOUR))?.tell_caller(true);
/// let app: Router = Router::new().route("/login", post(login)).layer(limit);
/// # Ok::<(), rate_limit::BuildError>(())
/// ```
pub struct Caller<L: AnyLimiter = Limiter> {
    limiter: L,
    plan: Arc<Plan<L::Terms>>,
    key: u64,
    charge: Charge,
    remaining: u64,
}

impl<L: AnyLimiter> Caller<L> {
    #[cold]
    pub(crate) fn new(
        limiter: &L,
        plan: Arc<Plan<L::Terms>>,
        charge: &Charge,
        ruling: &Ruling,
    ) -> Self {
        Self {
            limiter: limiter.clone(),
            remaining: plan.rules.left_by(charge, ruling),
            plan,
            key: ruling.key,
            charge: charge.waive(ruling.shadowed),
        }
    }

    /// How many more cells the caller could use when this request was admitted, under the tightest
    /// policy.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Gives `cells` cells of every policy back.
    pub fn refund(&self, cells: u64) {
        self.adjust(0, cells);
    }

    /// Charges `cells` more cells of every policy, whether they conform or not. The debt stops at
    /// twice the burst.
    pub fn penalize(&self, cells: u64) {
        self.adjust(cells, 0);
    }

    /// Charges or gives back the difference between what `policy` has charged this request and
    /// what it turned out to cost, for costs that are known when a streamed body ends. Call it
    /// once. A name that is no policy of the caller's plan changes nothing.
    pub fn settle(&self, policy: &str, actual: u64) {
        let (mut more, mut less) = ([0; MAX_POLICIES], [0; MAX_POLICIES]);
        let rules = self.plan.rules.rules().iter().enumerate();
        for (index, _) in rules.filter(|(_, rule)| rule.policy.name() == policy) {
            let charged = self.charge.cells(index);
            more[index] = actual.saturating_sub(charged);
            less[index] = charged.saturating_sub(actual);
        }
        self.limiter
            .adjust(&self.plan, self.key, &self.charge, &more, &less);
    }

    fn adjust(&self, more: u64, less: u64) {
        let (more, less) = ([more; MAX_POLICIES], [less; MAX_POLICIES]);
        self.limiter
            .adjust(&self.plan, self.key, &self.charge, &more, &less);
    }
}

impl Caller {
    /// How many cells the caller could use right now under the tightest policy.
    #[must_use]
    pub fn peek(&self) -> u64 {
        self.limiter.peek_at(&self.plan, &self.charge, self.key)
    }
}

impl<L: AnyLimiter> Clone for Caller<L> {
    fn clone(&self) -> Self {
        Self {
            limiter: self.limiter.clone(),
            plan: Arc::clone(&self.plan),
            ..*self
        }
    }
}

impl<L: AnyLimiter> fmt::Debug for Caller<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller")
            .field("remaining", &self.remaining)
            .finish_non_exhaustive()
    }
}
