//! This process's part in the fleet: the accounts it keeps, and the servers it asks.

use std::{
    collections::HashMap,
    fmt,
    hash::BuildHasherDefault,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    account::{Account, AccountId, Ask, Cells, Next, Sizing, Tell, Verdict},
    backend::Settings,
    job::{Job, ReplyTo, Reports, random},
    router::Router,
    script::{Action, Reply, Term, Terms},
};
use crate::{
    BuildError, Warning,
    charged::{Charged, Numbered},
    inflight::Identity,
    metrics::{FleetMetrics, Source},
    plans::Plans,
    sync::lock,
};

type Waiter = oneshot::Sender<Verdict>;
/// In boxes: a hash table has up to twice the room that it needs.
type Shard = HashMap<AccountId, Box<Account<Waiter>>, BuildHasherDefault<Identity>>;

pub(crate) struct Node {
    pub(super) settings: Settings,
    /// The name of this node among the nodes.
    pub(super) id: String,
    pub(super) epoch: Instant,
    pub(super) shards: Box<[Mutex<Shard>]>,
    pub(super) per_shard: usize,
    pub(super) router: Router,
    /// Whether the runtime that the tasks ran in has ended.
    pub(super) ended: AtomicBool,
    pub(super) plans: Arc<Plans<Terms>>,
    /// How many nodes there are, and when as many were last seen.
    pub(super) nodes: AtomicU64,
    pub(super) nodes_at: AtomicU64,
    /// Whether it was reported that there are more nodes than planned.
    pub(super) crowded: AtomicBool,
    pub(super) leased: AtomicU64,
    pub(super) admitted_alone: AtomicU64,
    /// Notified when a reply has arrived, or will not.
    pub(super) moved: Notify,
    pub(super) metrics: FleetMetrics,
    pub(super) numbered: Numbered,
}

/// What a request gets.
pub(crate) enum Asked {
    Decided(Verdict),
    /// The decision is on its way.
    Waits(oneshot::Receiver<Verdict>),
}

impl Tell for Waiter {
    fn tell(self, verdict: Verdict) -> bool {
        self.send(verdict).is_ok()
    }
}

impl Node {
    /// Starts the tasks that connect to the servers and look after the accounts.
    ///
    /// Fails if the process has a limiter of this name with other policies (`signature`): a name is
    /// one limiter, and the two would charge each other's accounts.
    pub(crate) fn start(
        settings: Settings,
        max_keys: usize,
        policy: &str,
        signature: String,
        plans: &Arc<Plans<Terms>>,
    ) -> Result<Arc<Self>, BuildError> {
        static NAMES: Mutex<Vec<(String, String, Weak<Node>)>> = Mutex::new(Vec::new());
        let place = settings.place();
        let mut names = lock(&NAMES);
        names.retain(|(_, _, node)| node.strong_count() > 0);
        let other = |(at, policies, _): &&(String, String, Weak<Self>)| {
            *at == place && *policies != signature
        };
        if names.iter().any(|name| other(&name)) {
            return Err(BuildError::NameInUse(Arc::clone(&settings.name)));
        }
        let node = Arc::new_cyclic(|node: &Weak<Self>| Self {
            numbered: Numbered::new({
                let node = Weak::clone(node);
                move |charged: &Charged| {
                    if let Some(node) = node.upgrade() {
                        node.give_back(charged);
                    }
                }
            }),
            router: Router::new(&settings),
            id: format!("{:016x}", (random() * u64::MAX as f64) as u64),
            epoch: Instant::now(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            per_shard: max_keys.div_ceil(SHARDS).max(8),
            ended: AtomicBool::new(false),
            plans: Arc::clone(plans),
            nodes: AtomicU64::new(settings.planned),
            nodes_at: AtomicU64::new(0),
            crowded: AtomicBool::new(false),
            leased: AtomicU64::new(0),
            admitted_alone: AtomicU64::new(0),
            moved: Notify::new(),
            metrics: FleetMetrics::new(policy),
            settings,
        });
        names.push((place, signature, Arc::downgrade(&node)));
        drop(names);
        let reports: Arc<dyn Reports> = Arc::clone(&node) as _;
        node.router.start(&reports);
        tokio::spawn(look_after(Arc::downgrade(&node)));
        Ok(node)
    }

    /// Charges a request, by what is known here if that is enough.
    pub(crate) fn ask(&self, id: AccountId, terms: &Arc<[Term]>, cost: &Cells) -> Asked {
        let now = self.now();
        let sizing = self.sizing();
        let mut shard = self.shard(id);
        let account = self.account(&mut shard, id, terms, now);
        if let Some(verdict) = account.decide(now, cost) {
            let ask = match verdict {
                Verdict::Admitted { .. } => account.top_up(now, &sizing),
                _ => None,
            };
            let source = match verdict {
                Verdict::Admitted { .. } => Source::Lease,
                _ => Source::Memory,
            };
            let job = ask.map(|ask| self.job(id, account, ask));
            drop(shard);
            self.metrics.decided(source);
            // While Redis is not asked, topping a lease up fails like any other job.
            job.into_iter().for_each(|job| self.send(job));
            return Asked::Decided(verdict);
        }
        if self.router.link(id.key).is_none_or(|link| link.is_open()) {
            return Asked::Decided(self.decide_alone(account, now, cost, &sizing));
        }
        let (tell, told) = oneshot::channel();
        let ask = account.wait(now, cost, tell, &sizing);
        let job = ask.map(|ask| self.job(id, account, ask));
        drop(shard);
        job.into_iter().for_each(|job| self.send(job));
        Asked::Waits(told)
    }

    /// Decides on a request that has waited beyond its deadline.
    pub(crate) fn decide_overdue(
        &self,
        id: AccountId,
        terms: &Arc<[Term]>,
        cost: &Cells,
    ) -> Verdict {
        let now = self.now();
        let mut shard = self.shard(id);
        let account = self.account(&mut shard, id, terms, now);
        match account.spend(now, cost) {
            Some(verdict) => {
                self.metrics.decided(Source::Lease);
                verdict
            }
            None => self.decide_alone(account, now, cost, &self.sizing()),
        }
    }

    /// Decides without Redis.
    fn decide_alone(
        &self,
        account: &mut Account<Waiter>,
        now: u64,
        cost: &Cells,
        sizing: &Sizing,
    ) -> Verdict {
        self.metrics.decided(Source::Outage);
        let verdict = account.without_redis(now, cost, sizing);
        if let Verdict::Admitted { .. } = verdict {
            self.admitted_alone.fetch_add(1, Ordering::Relaxed);
        }
        verdict
    }

    /// Refunds a request that was charged `cost`.
    pub(crate) fn refund_whole(&self, id: AccountId, terms: &Arc<[Term]>, cost: &Cells) {
        let mut shard = self.shard(id);
        let now = self.now();
        if self
            .account(&mut shard, id, terms, now)
            .keep(now, cost, &self.sizing())
        {
            return;
        }
        drop(shard);
        self.tell(id, Action::Refund, with_costs(terms, cost));
    }

    /// Sends Redis a change to an account.
    pub(crate) fn tell(&self, id: AccountId, action: Action, terms: Box<[Term]>) {
        if terms.iter().all(|term| term.cells == 0) {
            return;
        }
        if action == Action::Refund {
            // Plans share the policies, and so what is given back.
            for plan in 0..self.plans.count() {
                let id = AccountId { plan, ..id };
                if let Some(account) = self.shard(id).get_mut(&id) {
                    account.forget_refusal();
                }
            }
        }
        self.send(self.forget(id.key, action, terms));
    }

    /// The place of the limiter among those of the process.
    pub(crate) fn numbered(&self) -> &Numbered {
        &self.numbered
    }

    /// Gives back what was charged, as far as the plan still has its policies.
    fn give_back(&self, charged: &Charged) {
        let id = AccountId {
            key: charged.key(),
            plan: charged.plan(),
        };
        let plan = self.plans.at(id.plan);
        let cells = charged.by_column();
        let terms = plan.terms.iter().zip(plan.rules.rules());
        let less = terms.map(|(term, rule)| Term {
            cells: cells[rule.column],
            ..*term
        });
        self.tell(id, Action::Refund, less.collect());
    }

    /// The levels of an account in Redis; `None` if it does not reply.
    pub(crate) fn peek(&self, key: u64, terms: &Arc<[Term]>) -> oneshot::Receiver<Option<Reply>> {
        let (tell, told) = oneshot::channel();
        let terms = with_costs(terms, &Cells::default());
        self.send(Job {
            then: ReplyTo::Peek(tell),
            ..self.forget(key, Action::Peek, terms)
        });
        told
    }

    pub(super) fn take_in(&self, job: Job, reply: Reply) {
        match job.then {
            ReplyTo::Account(id, ask) => {
                let now = self.now();
                let sizing = self.sizing();
                let mut shard = self.shard(id);
                let Some(account) = shard.get_mut(&id) else {
                    return;
                };
                let next = account.answered(now, &ask, &reply, &sizing, random());
                let Next { refund, owes, ask } = next;
                let ask = ask.map(|ask| self.job(id, account, ask));
                drop(shard);
                let refund = refund.map(|terms| self.forget(id.key, Action::Refund, terms));
                let owes = owes.map(|terms| self.forget(id.key, Action::Owe, terms));
                for job in [owes, refund, ask].into_iter().flatten() {
                    self.send(job);
                }
            }
            // The receiver may be gone.
            ReplyTo::Peek(tell) => drop(tell.send(Some(reply))),
            ReplyTo::Forget => {}
        }
    }

    /// Gives all leases back, and those that are on their way when they arrive, until there are
    /// none and Redis has taken them all.
    pub(crate) async fn give_all_up(&self) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            // From now on it misses nothing.
            moved.as_mut().enable();
            let is_asking = self
                .shards
                .iter()
                .any(|shard| lock(shard).values().any(|account| !account.is_idle()));
            let returns = self.give_up();
            if returns.is_empty() && !is_asking {
                return;
            }
            for told in returns {
                // What cannot be given back is lost to the fleet, and nothing else.
                let _ = told.await;
            }
            if is_asking {
                moved.await;
            }
        }
    }

    /// Gives all leases back. Redis has taken them when all receivers have resolved.
    fn give_up(&self) -> Vec<oneshot::Receiver<Option<Reply>>> {
        let mut returns = Vec::new();
        for shard in &self.shards {
            let left = lock(shard)
                .iter_mut()
                .filter_map(|(id, account)| Some((id.key, account.give_up()?)))
                .collect::<Vec<_>>();
            for (key, terms) in left {
                let (tell, told) = oneshot::channel();
                self.send(Job {
                    then: ReplyTo::Peek(tell),
                    ..self.forget(key, Action::Refund, terms)
                });
                returns.push(told);
            }
        }
        returns
    }

    /// Counts a decision by a reply that was waited for.
    pub(crate) fn told(&self) {
        self.metrics.decided(Source::Redis);
    }

    /// How many nodes there are, as far as is known.
    pub(crate) fn nodes(&self) -> u64 {
        self.nodes
            .load(Ordering::Relaxed)
            .max(self.settings.planned)
    }

    /// Requests that are leased and not made, when last counted.
    pub(crate) fn leased(&self) -> u64 {
        self.leased.load(Ordering::Relaxed)
    }

    pub(crate) fn admitted_alone(&self) -> u64 {
        self.admitted_alone.load(Ordering::Relaxed)
    }

    /// Calls to Redis so far.
    pub(crate) fn calls(&self) -> u64 {
        self.metrics.calls()
    }

    #[cfg(feature = "otel")]
    pub(crate) fn readings(&self) -> crate::otel::FleetReadings {
        crate::otel::FleetReadings {
            decided: self.metrics.decided.read(),
            called: self.metrics.called.read(),
            leased: self.leased(),
            nodes: self.nodes.load(Ordering::Relaxed),
            open: self.router.open(),
        }
    }

    /// Whether any server is not asked at the moment.
    pub(crate) fn is_open(&self) -> bool {
        self.router.open() > 0 || self.ended.load(Ordering::Relaxed)
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        // 584 years of uptime fit.
        self.epoch.elapsed().as_nanos() as u64
    }

    pub(super) fn sizing(&self) -> Sizing {
        Sizing {
            most: self.settings.lease.most(),
            planned: self.settings.planned,
            nodes: self.nodes(),
        }
    }

    pub(super) fn shard(&self, id: AccountId) -> MutexGuard<'_, Shard> {
        lock(&self.shards[id.key as usize % SHARDS])
    }

    fn account<'a>(
        &self,
        shard: &'a mut Shard,
        id: AccountId,
        terms: &Arc<[Term]>,
        now: u64,
    ) -> &'a mut Account<Waiter> {
        if shard.len() >= self.per_shard && !shard.contains_key(&id) {
            self.make_room(shard, now);
        }
        let account = shard
            .entry(id)
            .or_insert_with(|| Box::new(Account::new(terms, now)));
        if let Some(left) = account.adopt(terms, now) {
            self.send(self.forget(id.key, Action::Refund, left));
        }
        account
    }

    /// Forgets the half of a full shard that owes least, except accounts with waiters.
    #[cold]
    fn make_room(&self, shard: &mut Shard, now: u64) {
        let mut debts: Vec<_> = shard.values().map(|account| account.debt(now)).collect();
        let middle = debts.len() / 2;
        let (_, &mut median, _) = debts.select_nth_unstable(middle);
        shard.retain(|id, account| {
            if !account.is_idle() || account.debt(now) > median {
                return true;
            }
            if let Some(left) = account.give_up() {
                self.send(self.forget(id.key, Action::Refund, left));
            }
            false
        });
    }

    /// Gives back leases that lie idle, and forgets accounts that mean nothing any more.
    fn tidy(&self) {
        let now = self.now();
        let mut leased = 0;
        for shard in &self.shards {
            lock(shard).retain(|id, account| {
                if account.is_unused(now, IDLE)
                    && let Some(left) = account.give_up()
                {
                    self.send(self.forget(id.key, Action::Refund, left));
                }
                leased += account.leased();
                !account.is_blank(now)
            });
        }
        self.leased.store(leased, Ordering::Relaxed);
        self.metrics.leased(leased);
    }

    fn job(&self, id: AccountId, account: &Account<Waiter>, ask: Ask) -> Job {
        let Ask { n, least, cost } = ask;
        Job {
            then: ReplyTo::Account(id, ask),
            ..self.forget(id.key, Action::Take { n, least }, account.terms(&cost))
        }
    }

    pub(super) fn forget(&self, key: u64, action: Action, terms: Box<[Term]>) -> Job {
        Job {
            key,
            action,
            terms,
            then: ReplyTo::Forget,
            hops: 0,
            asking: false,
        }
    }

    /// Sends a job to the server that holds the key, unless that is not asked at the moment.
    pub(super) fn send(&self, job: Job) {
        match self.router.link(job.key) {
            Some(link) if !link.is_open() => {
                if let Err(job) = link.send(job) {
                    self.ended.store(true, Ordering::Relaxed);
                    self.plans.watch().raise(Warning::RuntimeEnded);
                    self.failed(job);
                }
            }
            _ => self.failed(job),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Sent by the tasks before they end, without waiting for replies.
        drop(self.give_up());
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("settings", &self.settings)
            .field("nodes", &self.nodes())
            .field("open", &self.is_open())
            .finish_non_exhaustive()
    }
}

/// The terms with these costs.
pub(crate) fn with_costs(terms: &[Term], cost: &Cells) -> Box<[Term]> {
    let lines = terms.iter().zip(cost);
    lines
        .map(|(term, &cells)| Term { cells, ..*term })
        .collect()
}

/// Tidies up now and then, as long as the node is there.
async fn look_after(node: Weak<Node>) {
    let mut tick = interval(TIDY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match node.upgrade() {
            Some(node) => node.tidy(),
            None => return,
        }
    }
}

const SHARDS: usize = 64;

/// A lease that was not used for so long, in nanoseconds, is given back.
const IDLE: u64 = 500_000_000;

const TIDY: Duration = Duration::from_millis(250);
