use std::{fmt, hash::Hash, sync::Arc};

use super::{
    account::{AccountId, Verdict},
    backend::FleetBackend,
    compile::{compile, held_back},
    level::Level,
    node::{Asked, Node, with_costs},
    question::{Question, Waiting, ruling},
    script::{Action, Terms},
};
use crate::{
    AnyLimiter, BuildError, Decision, Inflight, LimitError, LimiterBuilder, MAX_POLICIES, Mode,
    Policy, Quota, Reserved, Warning,
    answer::Reason,
    charged::Numbered,
    gcra::Gcra,
    metrics::Outcome,
    plans::{Plan, Plans},
    receipt::{Ledger, Receipt, Settle},
    rules::{Charge, Own, Ruling},
};

/// A [`Limiter`](crate::Limiter) with quotas that hold for a fleet of processes together, made by
/// [`LimiterBuilder::build_on`].
///
/// A cheap handle: clones share one state. When the last one goes, leases are given back if the
/// runtime still runs; [`shutdown`](Self::shutdown) waits for that.
///
/// Decisions wait for Redis at most for the [deadline](FleetBackend::deadline), and take no
/// blocking lock that is held over I/O.
#[derive(Clone)]
pub struct FleetLimiter {
    plans: Arc<Plans<Terms>>,
    plan: usize,
    pub(super) node: Arc<Node>,
}

impl LimiterBuilder {
    /// Builds the limiter on a Redis or Valkey that it shares with other processes. This is the
    /// only line that differs from [`build`](Self::build), for one process.
    ///
    /// [`max_keys`](Self::max_keys) bounds what this process knows of keys, about 600 bytes each,
    /// taken as they come; what it forgets, Redis still knows, except
    /// [in an outage](super#when-redis-is-slow-or-gone). [`max_inflight`](Self::max_inflight) is
    /// counted by each process for itself, and [`clock`](Self::clock) means nothing: the time is
    /// Redis's.
    ///
    /// Connects in the background. A Redis that is not there is no error, but an outage.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build); and outside of a tokio runtime, if this process has a limiter of
    /// the same name with other policies, or if a quota is so large and fine that a Redis script
    /// could not count it exactly: `period / gcd` in microseconds times twice the burst must be
    /// below 2^53.
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    #[track_caller]
    pub fn build_on(self, backend: FleetBackend) -> Result<FleetLimiter, BuildError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(BuildError::NoRuntime);
        }
        let settings = backend.into_settings();
        let watch = self.watch();
        let (columns, rulesets) = self.check()?;
        let names = self.names(&columns);
        let first = Arc::clone(&columns[0]);
        let plans = Plans::new(
            &self.plans,
            (columns, names),
            rulesets,
            &|rules, all| compile(rules, all, &settings),
            settings.seed.clone(),
            self.inflight_limits()?,
            watch,
        )?;
        let signature = self.plans.iter().flat_map(|(name, policies)| {
            let quotas = policies
                .iter()
                .map(|p| format!("{}: {}", p.name(), p.quota()));
            quotas.map(move |quota| format!("{name}: {quota}"))
        });
        let signature = signature.collect::<Vec<_>>().join("; ");
        let plans = Arc::new(plans);
        let node = Node::start(settings, self.max_keys, &first, signature, &plans)?;
        Ok(FleetLimiter {
            plans,
            plan: 0,
            node,
        })
    }
}

impl FleetLimiter {
    /// Charges one cell of every policy to `key`.
    ///
    /// # Errors
    ///
    /// Fails, charging nothing, if a policy that is not in shadow mode is exceeded; and while
    /// Redis does not reply, if a policy is to [fail closed](super::OnOutage::FailClosed).
    ///
    /// # Cancel safety
    ///
    /// What is charged stays charged if the future is dropped.
    pub async fn check(&self, key: impl Hash) -> Result<Decision, LimitError> {
        self.check_n(key, 1).await
    }

    /// Charges `cells` cells of every policy to `key`, all or none.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check). If `cells` is more than a burst there is no use in retrying,
    /// and [`LimitError::retry_after`] is `None`.
    ///
    /// # Cancel safety
    ///
    /// As [`check`](Self::check).
    pub async fn check_n(&self, key: impl Hash, cells: u64) -> Result<Decision, LimitError> {
        let (question, ruling) = self.admit(key, cells).await?;
        let remaining = question.plan.rules.left_by(&question.charge, &ruling);
        Ok(Decision::new(remaining))
    }

    /// Charges `cells` cells of every policy to `key` for work of a cost that is not known yet. The
    /// [`FleetReservation`] charges the difference when it is settled, and gives everything back when
    /// it is dropped before that.
    ///
    /// # Errors
    ///
    /// As [`check_n`](Self::check_n).
    ///
    /// # Cancel safety
    ///
    /// As [`check`](Self::check).
    pub async fn reserve(
        &self,
        key: impl Hash,
        cells: u64,
    ) -> Result<FleetReservation, LimitError> {
        let (question, ruling) = self.admit(key, cells).await?;
        let charge = question.charge.waive(ruling.uncharged());
        let receipt = Receipt::new(self, question.plan, ruling.key, charge, Settle::Everything);
        Ok(Reserved::new(receipt, cells))
    }

    /// How many cells `key` could use right now under the tightest policy, as Redis knows it:
    /// leases are used up. `None` if Redis does not reply.
    ///
    /// # Cancel safety
    ///
    /// Changes nothing.
    pub async fn peek(&self, key: impl Hash) -> Option<u64> {
        let terms = Arc::clone(&self.plans.at(self.plan).terms);
        let told = self.node.peek(self.plans.hash(key), &terms);
        let reply = tokio::time::timeout(self.node.settings().deadline, told);
        let reply = reply.await.ok()?.ok()??;
        let remaining = terms.iter().zip(reply.levels);
        remaining
            .map(|(term, level)| term.level.remaining(level))
            .min()
    }

    /// Gives `cells` cells of every policy back to `key`, in the background. No key is credited
    /// beyond a full burst. Nodes that have refused the key ask again within a second.
    pub fn refund(&self, key: impl Hash, cells: u64) {
        self.correct(key, 0, cells);
    }

    /// Charges `cells` cells of every policy to `key` whether they conform or not, in the
    /// background, for costs that are known only afterwards. The debt stops at twice the burst.
    pub fn penalize(&self, key: impl Hash, cells: u64) {
        self.correct(key, cells, 0);
    }

    /// As [`Limiter::enter`](crate::Limiter::enter): counted by this process for itself.
    ///
    /// # Errors
    ///
    /// Fails if the key is at its limit.
    pub fn enter(&self, key: impl Hash) -> Result<Option<Inflight>, LimitError> {
        self.plans.enter(self.plan, self.plans.hash(key))
    }

    /// As [`Limiter::inflight`](crate::Limiter::inflight): counted by this process for itself.
    #[must_use]
    pub fn inflight(&self, key: impl Hash) -> u32 {
        self.plans.inflight(self.plans.hash(key))
    }

    /// A handle that decides by the plan `name`; `None` if there is no such plan.
    #[must_use]
    pub fn plan(&self, name: &str) -> Option<Self> {
        Some(Self {
            plan: self.plans.number(name)?,
            ..self.clone()
        })
    }

    /// Replaces the policies of this handle's plan, for every holder of the limiter in this
    /// process. What becomes of debts is as in [`Limiter::set_policies`](crate::Limiter::set_policies),
    /// and nodes with the old policies and the new ones can go on side by side.
    ///
    /// # Errors
    ///
    /// As [`Limiter::set_policies`](crate::Limiter::set_policies).
    pub fn set_policies(
        &self,
        policies: impl IntoIterator<Item = Policy>,
    ) -> Result<(), BuildError> {
        let policies: Vec<_> = policies.into_iter().collect();
        let settings = self.node.settings();
        self.plans.replace(self.plan, &policies, &|rules, all| {
            compile(rules, all, settings)
        })
    }

    /// As [`Limiter::set_mode`](crate::Limiter::set_mode), for this process.
    pub fn set_mode(&self, mode: Mode) {
        self.plans.set_mode(mode);
    }

    /// What is done with requests over their quota.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.plans.mode()
    }

    /// The policies of this handle's plan.
    #[must_use]
    pub fn policies(&self) -> Vec<Policy> {
        self.plans.at(self.plan).policies()
    }

    /// Whether a server is not asked at the moment because it does not reply.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.node.is_open()
    }

    /// How many nodes the quotas are divided by when they have to be: those that were heard of
    /// within five seconds, or those [planned](FleetBackend::nodes) if these are more.
    #[must_use]
    pub fn nodes(&self) -> u64 {
        self.node.nodes()
    }

    /// Requests that this process has leased and not made, as counted four times a second.
    #[must_use]
    pub fn leased(&self) -> u64 {
        self.node.leased()
    }

    /// Calls to Redis so far. A call may be for many keys and requests.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.node.calls()
    }

    /// Requests that this process has admitted without Redis so far, since it did not reply
    /// within the [deadline](FleetBackend::deadline) or was not asked. They are charged to it when
    /// it replies again.
    #[must_use]
    pub fn admitted_without_redis(&self) -> u64 {
        self.node.admitted_alone()
    }

    /// The mistakes in the setup that traffic has shown so far, each once.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        self.plans.watch().raised()
    }

    /// Whether `other` is a handle to the same limiter.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.node, &other.node)
    }

    /// Gives all leases back, and waits until Redis has taken them, at most for the
    /// [deadline](FleetBackend::deadline). For when no more requests come: those that still do
    /// draw new leases.
    ///
    /// # Cancel safety
    ///
    /// Leases are given back all the same.
    pub async fn shutdown(&self) {
        let deadline = self.node.settings().deadline;
        // What is not back by then is lost to the fleet, and nothing else.
        let _ = tokio::time::timeout(deadline, self.node.give_all_up()).await;
    }

    /// All there is to know about a request that is to be decided.
    pub(crate) fn question(&self, plan: Arc<Plan<Terms>>, key: u64, charge: Charge) -> Question {
        let terms = self.terms(&plan, &charge);
        Question {
            id: AccountId {
                key,
                plan: plan.number,
            },
            cost: charge.of_first(terms.len()),
            terms,
            plan,
            charge,
        }
    }

    /// The terms of a plan, with a quota of a request's own in place of the first.
    fn terms(&self, plan: &Plan<Terms>, charge: &Charge) -> Terms {
        let own = charge.own(0).and_then(|own| {
            let level = Level::new(&own.quota).ok()?;
            let mut terms = plan.terms.to_vec();
            let first = terms.first_mut()?;
            let settings = self.node.settings();
            first.level = held_back(level, first.reserved, settings);
            first.leasable = first.leasable.min(own.quota.burst_size() / 2);
            first.burst = own.quota.burst_size();
            Some(terms.into())
        });
        own.unwrap_or_else(|| Arc::clone(&plan.terms))
    }

    /// This process as a part of the fleet.
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// Starts to decide. Give the verdict to [`rule`](Self::rule).
    pub(crate) fn ask(&self, question: &Question) -> Asked {
        self.node.ask(question.id, &question.terms, &question.cost)
    }

    /// Makes a ruling of a verdict, and reports it; `None` if a policy admits nothing without
    /// Redis.
    pub(crate) fn rule(
        &self,
        question: &Question,
        verdict: Verdict,
        shadow: bool,
    ) -> Option<Ruling> {
        let (levels, outcome) = match &verdict {
            Verdict::Admitted { levels, uncharged } => (levels, Ok(&uncharged[..])),
            Verdict::Refused { levels, excess } => (levels, Err(*excess)),
            Verdict::Closed => {
                question.plan.rules.metrics().count(match shadow {
                    true => Outcome::Shadow,
                    false => Outcome::Limited,
                });
                return None;
            }
        };
        let ruling = ruling(question, self.now(), levels, outcome);
        self.plans.report(&question.plan.rules, &ruling, shadow);
        Some(ruling)
    }

    async fn admit(&self, key: impl Hash, cells: u64) -> Result<(Question, Ruling), LimitError> {
        let plan = self.plans.at(self.plan).keep();
        let question = self.question(plan, self.plans.hash(key), Charge::each(cells));
        let mode = self.plans.mode();
        let mut unasked = Ruling::at(self.now(), question.id.key);
        unasked.waive_all();
        if mode == Mode::Off {
            return Ok((question, unasked));
        }
        let verdict = match self.ask(&question) {
            Asked::Decided(verdict) => verdict,
            Asked::Waits(told) => {
                Waiting::new(&self.node, told)
                    .verdict(&self.node, &question)
                    .await
            }
        };
        let shadow = mode == Mode::Shadow;
        match self.rule(&question, verdict, shadow) {
            None if shadow => Ok((question, unasked)),
            None => Err(LimitError::other(Reason::Unavailable)),
            Some(ruling) if ruling.admits() || shadow => Ok((question, ruling)),
            Some(ruling) => Err(LimitError::quota(&question.plan.rules, &ruling)),
        }
    }

    fn correct(&self, key: impl Hash, more: u64, less: u64) {
        let plan = self.plans.at(self.plan);
        let (more, less) = ([more; MAX_POLICIES], [less; MAX_POLICIES]);
        // A correction is none of this request: it costs nothing by itself.
        self.adjust(&plan, self.plans.hash(key), &Charge::each(0), &more, &less);
    }
}

impl AnyLimiter for FleetLimiter {}

impl Ledger for FleetLimiter {
    type Terms = Terms;

    fn plans(&self) -> &Plans<Terms> {
        &self.plans
    }

    fn plan_number(&self) -> usize {
        self.plan
    }

    fn now(&self) -> u64 {
        self.node.now()
    }

    fn own(&self, _: &Plan<Terms>, quota: &Quota) -> Option<Own> {
        Level::new(quota).ok()?;
        Some(Own {
            quota: *quota,
            gcra: Gcra::new(quota).ok()?,
        })
    }

    #[cfg(feature = "otel")]
    fn readings(
        &self,
    ) -> impl Fn() -> Option<crate::otel::Readings> + Clone + Send + Sync + 'static {
        let node = Arc::downgrade(&self.node);
        let plans = Arc::downgrade(&self.plans);
        move || {
            Some(crate::otel::Readings {
                policies: plans.upgrade()?.counts(),
                keys: None,
                fleet: Some(node.upgrade()?.readings()),
            })
        }
    }

    fn numbered(&self) -> &Numbered {
        self.node.numbered()
    }

    fn adjust(
        &self,
        plan: &Plan<Terms>,
        key: u64,
        charge: &Charge,
        more: &[u64; MAX_POLICIES],
        less: &[u64; MAX_POLICIES],
    ) {
        let id = AccountId {
            key,
            plan: plan.number,
        };
        let terms = self.terms(plan, charge);
        let cost = charge.of_first(terms.len());
        if cost != [0; MAX_POLICIES] && (0..terms.len()).all(|index| less[index] == cost[index]) {
            self.node.refund_whole(id, &terms, &cost);
        } else {
            self.node.tell(id, Action::Refund, with_costs(&terms, less));
        }
        self.node.tell(id, Action::Charge, with_costs(&terms, more));
    }
}

impl fmt::Debug for FleetLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetLimiter")
            .field("plan", &self.plans.at(self.plan).rules)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// A [`Reserved`] of a fleet's limiter, which settles in the background.
pub type FleetReservation = Reserved<FleetLimiter>;
