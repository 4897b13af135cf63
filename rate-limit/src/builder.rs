//! Puts a limiter together.

use std::{fmt, panic::Location, sync::Arc};

use crate::{
    BuildError, Limiter, MAX_POLICIES, ManualClock, OnFull, Policy, Quota,
    clock::{Clock, ClockKind},
    plans::{Checked, NamedPlans, columns_of, rulesets},
    policy::MAX_KEYS,
    warning::{Warning, WarningHook, Watch, built_too_often_at},
};

impl Limiter {
    /// A limiter with one quota per key, and everything else at its default.
    ///
    /// # Errors
    ///
    /// Fails if the quota means nothing or cannot be kept, see [`Quota::validate`].
    #[track_caller]
    pub fn new(quota: Quota) -> Result<Self, BuildError> {
        Self::builder().quota(quota).build()
    }

    /// Starts a limiter with several quotas or settings of its own.
    pub fn builder() -> LimiterBuilder {
        LimiterBuilder::new()
    }
}

/// Builds a [`Limiter`].
#[derive(Clone)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct LimiterBuilder {
    pub(crate) plans: NamedPlans,
    pub(crate) max_keys: usize,
    pub(crate) on_full: OnFull,
    spare_policies: usize,
    max_inflight: Option<u32>,
    plan_inflight: Vec<(Arc<str>, u32)>,
    pub(crate) clock: ClockKind,
    on_warning: Option<WarningHook>,
}

impl LimiterBuilder {
    pub(crate) fn new() -> Self {
        Self {
            plans: vec![(Arc::from(""), Vec::new())],
            max_keys: DEFAULT_MAX_KEYS,
            on_full: OnFull::default(),
            spare_policies: 0,
            max_inflight: None,
            plan_inflight: Vec::new(),
            clock: ClockKind::Tokio,
            on_warning: None,
        }
    }

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
    /// Policies of the same name share what a key has used: a customer that has used 50 of the 60
    /// cells of one plan has used 50 of the 6000 of the next, and has not lost the 50 on the way
    /// back, see [`Policy`]. A policy of another name is another account.
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

    /// Sets how many keys may be in use at once. The memory for them is taken now and does not grow
    /// with the keys: 32 bytes a key for one policy and 16 more for each further one, and once 80
    /// more for each policy when a second quota comes up for any of them, in another plan, as a
    /// quota of a request's own or by a reload.
    ///
    /// Defaults to 65 536.
    pub fn max_keys(mut self, keys: usize) -> Self {
        self.max_keys = keys;
        self
    }

    /// Leaves room for policies of other names than the limiter is built with, so that
    /// [`Limiter::set_policies`] can add them while it runs: 16 bytes a key for each, and a lock in
    /// every decision, as with several policies. On Redis it costs nothing. Without
    /// it a new name is an error, since it may be a misspelt one.
    ///
    /// Defaults to 0.
    pub fn spare_policies(mut self, names: usize) -> Self {
        self.spare_policies = names;
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

    /// Sets [`max_inflight`](Self::max_inflight) for the requests of one plan: "5 at once for
    /// free customers, 100 for the others". The plans share the counts of a key, as
    /// they share its debts.
    ///
    /// Defaults to what holds for all plans.
    pub fn plan_max_inflight(mut self, plan: impl Into<Arc<str>>, requests: u32) -> Self {
        self.plan_inflight.push((plan.into(), requests));
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
    /// `tracing` feature they are logged at `warn` in any case; where there is neither a hook nor
    /// ever was a subscriber of `tracing`, they go to stderr.
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
    /// Fails if there is no policy or more than [`MAX_POLICIES`](crate::MAX_POLICIES), if a name or
    /// a quota is invalid, if `max_keys` is zero or more than a billion, if `max_inflight` is zero,
    /// or if there is no plan of a name that one is set for.
    #[track_caller]
    pub fn build(self) -> Result<Limiter, BuildError> {
        let watch = self.watch();
        let checked = self.check()?;
        let names = self.names(&checked.0);
        let room = (self.max_keys, names, self.on_full);
        let max_inflight = self.inflight_limits()?;
        let clock = Clock::new(self.clock);
        Limiter::assemble(&self.plans, checked, room, max_inflight, clock, watch)
    }

    /// How many names there may be.
    pub(crate) fn names(&self, columns: &[Arc<str>]) -> usize {
        columns.len().saturating_add(self.spare_policies)
    }

    /// Watches for mistakes in the setup; the first is to build too many limiters.
    #[track_caller]
    pub(crate) fn watch(&self) -> Watch {
        let watch = Watch::new(self.on_warning.clone());
        if built_too_often_at(Location::caller()) {
            watch.raise(Warning::BuiltRepeatedly);
        }
        watch
    }

    /// How many requests of a key may run at once, by the number of the plan; `None` if they are not
    /// counted.
    pub(crate) fn inflight_limits(&self) -> Result<Option<Box<[u32]>>, BuildError> {
        if self.max_inflight.is_none() && self.plan_inflight.is_empty() {
            return Ok(None);
        }
        let mut limits = vec![self.max_inflight.unwrap_or(u32::MAX); self.plans.len()];
        for (name, requests) in &self.plan_inflight {
            let mut named = self.plans.iter().skip(1);
            let number = named.position(|(plan, _)| plan == name);
            let number = number.ok_or_else(|| BuildError::UnknownName(Arc::clone(name)))?;
            limits[number + 1] = *requests;
        }
        if limits.contains(&0) {
            return Err(BuildError::ZeroMaxInflight);
        }
        Ok(Some(limits.into()))
    }

    /// Checks everything, before anything takes memory.
    pub(crate) fn check(&self) -> Result<Checked, BuildError> {
        let columns = columns_of(&self.plans)?;
        let count = self.names(&columns);
        if count > MAX_POLICIES {
            return Err(BuildError::TooManyPolicies { count });
        }
        if self.max_keys == 0 || self.max_keys > MAX_KEYS {
            return Err(BuildError::InvalidMaxKeys(self.max_keys));
        }
        self.inflight_limits()?;
        let policies = self.plans.iter().map(|(_, policies)| &policies[..]);
        let rulesets = rulesets(policies, &columns)?;
        Ok((columns, rulesets))
    }
}

impl fmt::Debug for LimiterBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimiterBuilder")
            .field("plans", &self.plans)
            .field("max_keys", &self.max_keys)
            .field("on_full", &self.on_full)
            .field("spare_policies", &self.spare_policies)
            .field("max_inflight", &self.max_inflight)
            .field("plan_max_inflight", &self.plan_inflight)
            .field("clock", &self.clock)
            .field("on_warning", &self.on_warning.is_some())
            .finish()
    }
}

const DEFAULT_MAX_KEYS: usize = 65_536;
