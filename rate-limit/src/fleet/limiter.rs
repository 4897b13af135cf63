use std::{
    fmt,
    hash::Hash,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{
    sync::oneshot,
    time::{Instant, Sleep, sleep_until},
};

use super::{
    account::{Cells, Sizing, Verdict},
    backend::{FleetBackend, Settings},
    level::Level,
    node::{AccountId, Asked, Node, with},
    script::{Action, Term},
};
use crate::{
    BuildError, Decision, Inflight, LimitError, Limiter, LimiterBuilder, MAX_POLICIES, Policy,
    Quota, Warning,
    answer::Reason,
    key::Seed,
    limiter::Rules,
    metrics::Outcome,
    policy::ResponseHead,
    rules::{Charge, Ruleset, Ruling},
};

/// A [`Limiter`] whose quotas hold for a fleet of processes together, made by
/// [`LimiterBuilder::build_on`].
///
/// A cheap handle: clones share one state. When the last one goes, leases are given back if the
/// runtime still runs; [`shutdown`](Self::shutdown) waits for that.
///
/// Decisions wait for Redis at most for the [deadline](FleetBackend::deadline), and take no
/// blocking lock that is held over I/O.
#[derive(Clone)]
pub struct FleetLimiter {
    /// Knows the policies, plans and keys. What it counts is never asked.
    local: Limiter,
    node: Arc<Node>,
}

impl LimiterBuilder {
    /// Builds the limiter on a Redis or Valkey that it shares with other processes. This is the
    /// only line that differs from [`build`](Self::build), for one process.
    ///
    /// [`max_keys`](Self::max_keys) bounds what this process knows of keys, about 500 bytes each;
    /// what it forgets, Redis still knows. [`max_inflight`](Self::max_inflight) is counted by each
    /// process for itself, and [`clock`](Self::clock) means nothing: the time is Redis's.
    ///
    /// Connects in the background. A Redis that is not there is no error, but an outage.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build); and outside of a tokio runtime, or when a quota is so large and
    /// fine that a Redis script could not count it exactly: `period / gcd` in microseconds times
    /// twice the burst must be below 2^53.
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    #[track_caller]
    pub fn build_on(self, backend: FleetBackend) -> Result<FleetLimiter, BuildError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(BuildError::NoRuntime);
        }
        let settings = backend.into_settings();
        let max_keys = self.known_keys();
        let prepare = |rules: &mut Ruleset| prepare(rules, &settings);
        // Its policies are asked for, its table never is.
        let room = if max_keys == 0 { 0 } else { 1 };
        let local = self
            .max_keys(room)
            .assemble(settings.seed.clone(), &prepare)?;
        let version = settings.version;
        let policy = local.policies().first().map(|policy| policy.shared_name());
        let node = Node::start(settings, max_keys, version, policy.as_deref().unwrap_or(""));
        Ok(FleetLimiter { local, node })
    }
}

impl FleetLimiter {
    /// Charges one cell of every policy to `key`.
    ///
    /// # Errors
    ///
    /// Fails, charging nothing, when a policy that is not in shadow mode is exceeded; and while
    /// Redis does not answer, when a policy is to [fail closed](super::OnOutage::FailClosed).
    ///
    /// # Cancel safety
    ///
    /// What is charged stays charged when the future is dropped.
    pub async fn check(&self, key: impl Hash) -> Result<Decision, LimitError> {
        self.check_n(key, 1).await
    }

    /// Charges `cells` cells of every policy to `key`, all or none.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check). When `cells` is more than a burst there is no use in retrying,
    /// and [`LimitError::retry_after`] is `None`.
    ///
    /// # Cancel safety
    ///
    /// As [`check`](Self::check).
    pub async fn check_n(&self, key: impl Hash, cells: u64) -> Result<Decision, LimitError> {
        let rules = self.local.rules().keep();
        let question = self.question(
            rules,
            self.local.plan_number(None),
            self.local.fingerprint(key),
            Charge::each(cells),
        );
        let (_, decision) = self.admit(question).await?;
        Ok(decision)
    }

    /// Charges `cells` cells of every policy to `key` for work whose cost is not known yet. The
    /// [`FleetReservation`] charges the difference when it is settled, and gives everything back
    /// when it is dropped before that.
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
        let rules = self.local.rules().keep();
        let charge = Charge::each(cells);
        let question = self.question(
            rules,
            self.local.plan_number(None),
            self.local.fingerprint(key),
            charge,
        );
        let (question, _) = self.admit(question).await?;
        let receipt = FleetReceipt::new(self, question, true);
        Ok(FleetReservation { receipt, cells })
    }

    /// How many cells `key` could use right now under the tightest policy, as Redis knows it:
    /// leases are used up. `None` when Redis does not answer.
    ///
    /// # Cancel safety
    ///
    /// Changes nothing.
    pub async fn peek(&self, key: impl Hash) -> Option<u64> {
        let rules = self.local.rules().keep();
        let told = self.node.peek(self.local.fingerprint(key), rules.terms());
        let reply = tokio::time::timeout(self.node.settings().deadline, told);
        let reply = reply.await.ok()?.ok()??;
        let remaining = rules.terms().iter().zip(reply.levels);
        remaining
            .map(|(term, level)| term.level.remaining(level))
            .min()
    }

    /// Gives `cells` cells of every policy back to `key`, in the background. Nobody is credited
    /// beyond a full burst.
    pub fn refund(&self, key: impl Hash, cells: u64) {
        self.tell(key, cells, Action::Refund);
    }

    /// Charges `cells` cells of every policy to `key` whether they conform or not, in the
    /// background, for costs that are known only afterwards. The debt stops at twice the burst.
    pub fn penalize(&self, key: impl Hash, cells: u64) {
        self.tell(key, cells, Action::Charge);
    }

    /// As [`Limiter::enter`]: counted by this process for itself.
    ///
    /// # Errors
    ///
    /// Fails when the key is at its limit.
    pub fn enter(&self, key: impl Hash) -> Result<Option<Inflight>, LimitError> {
        self.local.enter(key)
    }

    /// As [`Limiter::inflight`]: counted by this process for itself.
    #[must_use]
    pub fn inflight(&self, key: impl Hash) -> u32 {
        self.local.inflight(key)
    }

    /// A handle that decides by the plan `name`; `None` when there is no such plan.
    #[must_use]
    pub fn plan(&self, name: &str) -> Option<Self> {
        Some(Self {
            local: self.local.plan(name)?,
            node: Arc::clone(&self.node),
        })
    }

    /// Replaces the policies of this handle's plan, for every holder of the limiter in this
    /// process. Debts are kept as a number of cells. A `version` larger than before cuts them to
    /// the new burst, once for each key, see [`FleetBackend::version`].
    ///
    /// # Errors
    ///
    /// Fails, changing nothing, when a policy is invalid or has a name that the limiter was not
    /// built with.
    pub fn set_policies(
        &self,
        version: u64,
        policies: impl IntoIterator<Item = Policy>,
    ) -> Result<(), BuildError> {
        let policies: Vec<_> = policies.into_iter().collect();
        let settings = self.node.settings();
        self.local
            .replace(&policies, &|rules| prepare(rules, settings))?;
        self.node.version().fetch_max(version, Ordering::Relaxed);
        Ok(())
    }

    /// The policies of this handle's plan.
    #[must_use]
    pub fn policies(&self) -> Vec<Policy> {
        self.local.policies()
    }

    /// Whether a server is not asked at the moment because it does not answer.
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

    /// Requests that this process has admitted without Redis so far, since it did not answer
    /// within the [deadline](FleetBackend::deadline) or was not asked. They are charged to it when
    /// it answers again.
    #[must_use]
    pub fn admitted_without_redis(&self) -> u64 {
        self.node.admitted_alone()
    }

    /// The mistakes in the setup that traffic has shown so far, each once.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        self.local.warnings()
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

    pub(crate) fn local(&self) -> &Limiter {
        &self.local
    }

    /// All there is to know about a request that is to be decided.
    pub(crate) fn question(
        &self,
        rules: Arc<Ruleset>,
        plan: usize,
        key: u64,
        charge: Charge,
    ) -> Question {
        let cost = charge.of_first(rules.terms().len());
        Question {
            id: AccountId { key, plan },
            terms: Arc::clone(rules.terms()),
            rules,
            charge,
            cost,
        }
    }

    /// Starts to decide. The answer is to be given to [`rule`](Self::rule).
    pub(crate) fn ask(&self, question: &Question) -> Asked {
        self.node.ask(question.id, &question.terms, &question.cost)
    }

    /// Makes a ruling of a verdict, and reports it; `None` when a policy admits nothing without
    /// Redis.
    pub(crate) fn rule(&self, question: &Question, verdict: Verdict) -> Option<Ruling> {
        let Question {
            rules,
            terms,
            charge,
            ..
        } = question;
        let (levels, outcome) = match &verdict {
            Verdict::Admitted { levels, uncharged } => (levels, Ok(&uncharged[..])),
            Verdict::Refused { levels, excess } => (levels, Err(*excess)),
            Verdict::Closed => {
                rules.meter().count(Outcome::Limited);
                return None;
            }
        };
        let now = self.local.now();
        let ruling = Ruling::of_fleet(rules, terms, charge, now, levels, outcome);
        self.local.report(rules, question.id.key, &ruling);
        Some(ruling)
    }

    async fn admit(&self, question: Question) -> Result<(Question, Decision), LimitError> {
        let verdict = match self.ask(&question) {
            Asked::Decided(verdict) => verdict,
            Asked::Waits(told) => Waiting::new(self, told).verdict(self, &question).await,
        };
        match self.rule(&question, verdict) {
            None => Err(LimitError::without_policy(Reason::Unavailable)),
            Some(ruling) if ruling.admits() => {
                let decision = Decision::new(question.rules.left_by(&ruling));
                Ok((question.waive(&ruling), decision))
            }
            Some(ruling) => Err(LimitError::quota(&question.rules, &ruling)),
        }
    }

    fn tell(&self, key: impl Hash, cells: u64, action: Action) {
        let rules: Rules<'_> = self.local.rules();
        let id = AccountId {
            key: self.local.fingerprint(key),
            plan: self.local.plan_number(None),
        };
        self.node
            .tell(id, action, with(rules.terms(), &[cells; MAX_POLICIES]));
    }
}

impl fmt::Debug for FleetLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetLimiter")
            .field("rules", &*self.local.rules())
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// A request that is to be decided.
#[derive(Debug)]
pub(crate) struct Question {
    id: AccountId,
    pub(crate) rules: Arc<Ruleset>,
    terms: Arc<[Term]>,
    pub(crate) charge: Charge,
    cost: Cells,
}

impl Question {
    /// Decides by a quota of this request's own in place of the first policy's.
    pub(crate) fn own_quota(&mut self, quota: &Quota, limiter: &FleetLimiter) {
        let settings = limiter.node.settings();
        // One that cannot be kept does not replace the policy's.
        let Ok(level) = Level::new(quota) else {
            return;
        };
        let mut terms: Vec<_> = self.terms.to_vec();
        if let Some(first) = terms.first_mut() {
            (first.level, first.burst) = (held_back(level, quota, settings), quota.burst_size());
        }
        self.terms = terms.into();
    }

    /// The key.
    pub(crate) fn key(&self) -> u64 {
        self.id.key
    }

    /// The same without the policies that let it through uncharged.
    pub(crate) fn waive(mut self, ruling: &Ruling) -> Self {
        self.charge = self.charge.waive(ruling.shadowed);
        self.cost = self.charge.of_first(self.terms.len());
        self
    }
}

pin_project! {
    /// Waits for the answer of Redis, for no longer than the deadline.
    #[derive(Debug)]
    pub(crate) struct Waiting {
        told: oneshot::Receiver<Verdict>,
        #[pin]
        overdue: Sleep,
    }
}

impl Waiting {
    pub(crate) fn new(limiter: &FleetLimiter, told: oneshot::Receiver<Verdict>) -> Self {
        // A timer is rounded up to a millisecond, and so is the sleep of the thread that minds it.
        let deadline = limiter.node.settings().deadline - LATE;
        Self {
            told,
            overdue: sleep_until(Instant::now() + deadline),
        }
    }

    pub(crate) fn poll_verdict(
        self: Pin<&mut Self>,
        limiter: &FleetLimiter,
        question: &Question,
        cx: &mut Context<'_>,
    ) -> Poll<Verdict> {
        let this = self.project();
        let told = match Pin::new(&mut *this.told).poll(cx) {
            Poll::Ready(told) => told.ok(),
            Poll::Pending if this.overdue.poll(cx).is_pending() => return Poll::Pending,
            Poll::Pending => {
                // Either it was told in this moment, or it never will be.
                this.told.close();
                this.told.try_recv().ok()
            }
        };
        let limiter = &limiter.node;
        Poll::Ready(match told {
            Some(verdict) => {
                limiter.told();
                verdict
            }
            None => limiter.overdue(question.id, &question.terms, &question.cost),
        })
    }

    async fn verdict(self, limiter: &FleetLimiter, question: &Question) -> Verdict {
        let mut this = std::pin::pin!(self);
        std::future::poll_fn(|cx| this.as_mut().poll_verdict(limiter, question, cx)).await
    }
}

/// Cells charged for work whose cost is not known yet, made by [`FleetLimiter::reserve`].
///
/// Dropping it gives everything back, so a future that is cancelled while it holds one costs its
/// caller nothing.
#[derive(Debug)]
#[must_use = "dropping a reservation gives its cells back"]
pub struct FleetReservation {
    receipt: FleetReceipt,
    cells: u64,
}

impl FleetReservation {
    /// How many cells were charged.
    #[must_use]
    pub fn cells(&self) -> u64 {
        self.cells
    }

    /// Charges or gives back the difference to the `actual` cost, in the background. The debt
    /// stops at twice the burst, and nobody is credited beyond a full one.
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
#[derive(Debug)]
pub(crate) struct FleetReceipt {
    limiter: FleetLimiter,
    question: Question,
    /// Whether all policies are settled, or only those that learn their cost from the response.
    everything: bool,
    open: bool,
}

impl FleetReceipt {
    pub(crate) fn new(limiter: &FleetLimiter, question: Question, everything: bool) -> Self {
        Self {
            limiter: limiter.clone(),
            question,
            everything,
            open: true,
        }
    }

    /// Settles by what the policies make of the response.
    pub(crate) fn settle(self, response: &ResponseHead<'_>) {
        let rules = Arc::clone(&self.question.rules);
        self.settle_by(|index| rules.rules()[index].policy.settlement()?(response));
    }

    fn settle_by(mut self, actual: impl Fn(usize) -> Option<u64>) {
        self.open = false;
        self.adjust(actual);
    }

    fn adjust(&self, actual: impl Fn(usize) -> Option<u64>) {
        let Question {
            id, terms, cost, ..
        } = &self.question;
        let (mut more, mut less) = ([0; MAX_POLICIES], [0; MAX_POLICIES]);
        for index in 0..terms.len() {
            let actual = actual(index).unwrap_or(cost[index]);
            more[index] = actual.saturating_sub(cost[index]);
            less[index] = cost[index].saturating_sub(actual);
        }
        let node = &self.limiter.node;
        if less == *cost {
            node.unmake(*id, terms, cost);
        } else {
            node.tell(*id, Action::Refund, with(terms, &less));
        }
        node.tell(*id, Action::Charge, with(terms, &more));
    }
}

impl Drop for FleetReceipt {
    fn drop(&mut self) {
        if self.open {
            let rules = Arc::clone(&self.question.rules);
            let everything = self.everything;
            self.adjust(|index| {
                let returns = everything || rules.rules()[index].policy.settlement().is_some();
                returns.then_some(0)
            });
        }
    }
}

/// Compiles the policies for Redis.
fn prepare(rules: &mut Ruleset, settings: &Settings) -> Result<(), BuildError> {
    let mut terms: Vec<Term> = Vec::with_capacity(rules.rules().len());
    for rule in rules.rules() {
        let policy = &rule.policy;
        let quota = policy.quota();
        let level = Level::new(&quota).map_err(|error| BuildError::Quota {
            policy: policy.shared_name(),
            error,
        })?;
        // The same on all nodes, of any build.
        let id = Seed::Fleet(0, 0).hash_one(policy.name()) as u32;
        if terms.iter().any(|term| term.id == id) {
            return Err(BuildError::DuplicateName(policy.shared_name()));
        }
        terms.push(Term {
            id,
            level: held_back(level, &quota, settings),
            burst: quota.burst_size(),
            cells: 0,
            shadow: policy.is_shadow(),
            on_outage: policy.outage(),
        });
    }
    rules.set_terms(terms.into());
    Ok(())
}

/// The quota as Redis enforces it, less what the fleet may lease if windows are strict.
fn held_back(level: Level, quota: &Quota, settings: &Settings) -> Level {
    if !settings.strict_windows {
        return level;
    }
    let sizing = Sizing {
        most: settings.lease.most(),
        planned: settings.planned,
        nodes: settings.planned,
    };
    level.reserving(sizing.of_fleet(quota.burst_size()))
}

const LATE: Duration = Duration::from_millis(2);
