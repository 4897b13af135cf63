use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::BudgetError;
use super::knee::REPORTED;
use super::pod::Pod;
use super::shares::{Claim, shares};
use super::snapshot::{BudgetSnapshot, Counts};
use super::trial::{Gauge, Trial};
use crate::Mode;
use crate::tuner::{PoolWindow, Verdict};

/// What this process may have of the connections of one server. See the [module docs](super).
///
/// Cloning is cheap and gives another handle to the same budget.
#[derive(Clone)]
pub struct Budget {
    inner: Arc<Inner>,
}

/// How rights come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// From a store, lease by lease. The budget itself has `own` connections of what is divided.
    Leased { own: usize },
    /// For ever, without a store.
    Fixed,
}

pub(super) struct Inner {
    pub(super) id: i64,
    tag: String,
    kind: Kind,
    enforces: AtomicBool,
    extra: usize,
    floor: usize,
    state: Mutex<State>,
    /// Wakes the task that beats.
    pub(super) hurry: Notify,
    /// Wakes dials that wait for rights.
    freed: Notify,
    /// Wakes those that wait for the first beat.
    beaten: Notify,
}

pub(super) struct State {
    pub(super) pod: Pod,
    pools: Vec<Weak<Pool>>,
    /// Whether the budget's own connection, of those that are divided, is open.
    pub(super) beats: bool,
    /// Extra connections that are open.
    extra_open: u32,
    /// Where no server counts.
    #[cfg(feature = "fleet-redis")]
    own_counts: std::collections::VecDeque<OwnCount>,
    pub(super) counts: Counts,
    pub(super) error: Option<BudgetError>,
    /// Beats that were replied to or failed.
    pub(super) tried: u64,
    /// A dial waits for rights.
    starves: bool,
    pub(super) leaving: bool,
    /// The store knows that it has left, and the server shows no connection of its pools any more.
    pub(super) has_left: bool,
    /// The server had no place although this process was below its cap: until when it asks for no more
    /// than it has.
    refused_until: Option<Instant>,
    pub(super) trial: Option<Trial>,
    gauge: Gauge,
}

/// What this process had at one moment.
#[cfg(feature = "fleet-redis")]
#[derive(Clone, Copy, Debug)]
struct OwnCount {
    at: Instant,
    open: u32,
    /// Dials begun until then.
    begun: u64,
}

/// A pool that is bound by a budget.
#[derive(Debug)]
struct Pool {
    need: AtomicUsize,
    want: AtomicUsize,
    open: AtomicUsize,
    share: AtomicUsize,
    /// Dials of this pool that have a right.
    dialing: AtomicUsize,
    /// Whether a beat has asked for its share, and a reply come since. Before, it is not known.
    asked: AtomicU8,
    news: Arc<Notify>,
}

/// See [`Pool::asked`].
const SENT: u8 = 1;
const REPLIED: u8 = 2;

impl Budget {
    /// Divides a total evenly, without a store: `total / processes` for each process, for ever.
    ///
    /// For a fleet of a size that is known and does not change. A process that is started beyond that number
    /// exceeds the total.
    ///
    /// # Errors
    ///
    /// A share of less than one connection.
    pub fn fixed(total: usize, processes: usize) -> Result<Self, BudgetError> {
        let share = total.checked_div(processes).unwrap_or(0);
        if share == 0 {
            return Err(BudgetError::Setting(format!(
                "{total} connections among {processes} processes leave less than one for each"
            )));
        }
        super::events::fixed(total, processes, share);
        let terms = super::pod::Terms {
            ttl: Duration::from_secs(1),
            dial_for: Duration::MAX,
            dials: u32::MAX,
        };
        let inner = Inner::new(0, Kind::Fixed, Pod::new(terms), Mode::Enforce, 0, 0);
        {
            let counts = &mut inner.state().counts;
            counts.total = total;
            counts.members = processes;
            counts.granted = share;
        }
        Ok(Self::from_inner(Arc::new(inner)))
    }

    pub(super) fn from_inner(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// Tags the connections that will be opened with `config` as this process's, so that the server's count
    /// of them is told from others, and lets the server notice within a second that the process is gone.
    ///
    /// For pools that take no [`tokio_postgres::Config`], set [`application_name`](Self::application_name)
    /// and [`session_settings`](Self::session_settings).
    pub fn tag(&self, config: &mut tokio_postgres::Config) {
        let mut options = config.get_options().unwrap_or_default().to_owned();
        for (name, value) in Self::session_settings() {
            options += &format!(" -c {name}={value}");
        }
        config
            .application_name(self.application_name())
            .options(options.trim())
            .keepalives_idle(Duration::from_secs(15))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(15));
    }

    /// The `application_name` that every connection of this process has to have: `pa1:` and a number.
    #[must_use]
    pub fn application_name(&self) -> &str {
        &self.inner.tag
    }

    /// Settings of a session that let the server notice that its client is gone: while it works on a query
    /// within half a second, otherwise within half a minute.
    ///
    /// `PgOptions::options` of sqlx takes them as they are.
    #[must_use]
    pub fn session_settings() -> [(&'static str, &'static str); 4] {
        [
            ("client_connection_check_interval", "500"),
            ("tcp_keepalives_idle", "15"),
            ("tcp_keepalives_interval", "5"),
            ("tcp_keepalives_count", "3"),
        ]
    }

    /// Sets whether the budget acts or only reports.
    ///
    /// In [`Mode::Recommend`] it beats and is counted, and pools open connections as if there were no
    /// budget: the switch to turn at run time when something is wrong with it.
    pub fn set_mode(&self, mode: Mode) {
        self.inner.enforces.store(mode == Mode::Enforce, Relaxed);
        self.inner.divide();
        self.inner.freed.notify_waiters();
        self.inner.hurry.notify_one();
    }

    /// Whether it acts or only reports.
    #[must_use]
    pub fn mode(&self) -> Mode {
        match self.inner.enforces() {
            true => Mode::Enforce,
            false => Mode::Recommend,
        }
    }

    /// The state of the budget now.
    #[must_use]
    pub fn snapshot(&self) -> BudgetSnapshot {
        self.inner.snapshot()
    }

    /// Waits until one more connection may be opened outside of the pools, for a `LISTEN` or a leader's
    /// lock. Open it, [tagged](Self::tag), while the [`Place`] is held, and drop that after it.
    ///
    /// Declare such connections with [`Config::extra`](super::Config::extra).
    ///
    /// # Cancel safety
    ///
    /// Nothing is taken until it returns.
    pub async fn place(&self) -> Place {
        let mut right = Arc::clone(&self.inner).take().await;
        // The place ends the dial.
        let inner = right.inner.take();
        self.inner.state().extra_open += 1;
        Place {
            inner,
            is_open: false,
        }
    }

    /// Gives up all rights for good: the pools that use the budget are to be drained before. Returns whether the
    /// store has been told that nothing of this process is left, within the time `within`. Others get its
    /// connections then within a second; otherwise when its lease has ended.
    ///
    /// # Cancel safety
    ///
    /// It goes on leaving when this is dropped.
    pub async fn leave(&self, within: Duration) -> bool {
        if self.inner.kind == Kind::Fixed {
            return true;
        }
        self.inner.state().leaving = true;
        self.inner.hurry.notify_one();
        let has_left = self.inner.beaten_until(|state| state.has_left);
        timeout(within, has_left).await.is_ok()
    }

    pub(super) async fn first_beat(&self) -> Result<(), BudgetError> {
        self.inner.beaten_until(|state| state.tried > 0).await;
        let state = self.inner.state();
        match &state.error {
            // Others may leave.
            Some(BudgetError::TooSmall { .. }) | None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    pub(crate) fn join(&self, news: Arc<Notify>) -> Member {
        let share = AtomicUsize::new(usize::MAX);
        let pool = Arc::new(Pool {
            need: AtomicUsize::new(0),
            want: AtomicUsize::new(1),
            open: AtomicUsize::new(0),
            share,
            dialing: AtomicUsize::new(0),
            asked: AtomicU8::new(0),
            news,
        });
        self.inner.state().pools.push(Arc::downgrade(&pool));
        self.inner.divide();
        self.inner.hurry.notify_one();
        let inner = Arc::clone(&self.inner);
        Member { inner, pool }
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget")
            .field("snapshot", &self.snapshot())
            .finish_non_exhaustive()
    }
}

/// What this process asks for, beside its rights.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Demand {
    pub(super) floor: usize,
    pub(super) need: usize,
    pub(super) want: usize,
    /// Connections that are open here.
    pub(super) open: usize,
    /// The process has fewer than it could use, or more than it may have.
    pub(super) is_hungry: bool,
}

impl Inner {
    pub(super) fn new(
        id: i64,
        kind: Kind,
        pod: Pod,
        mode: Mode,
        extra: usize,
        floor: usize,
    ) -> Self {
        Self {
            id,
            tag: format!("pa1:{id}"),
            kind,
            enforces: AtomicBool::new(mode == Mode::Enforce),
            extra,
            floor,
            state: Mutex::new(State {
                pod,
                pools: Vec::new(),
                beats: false,
                extra_open: 0,
                #[cfg(feature = "fleet-redis")]
                own_counts: std::collections::VecDeque::new(),
                counts: Counts::default(),
                error: None,
                tried: 0,
                starves: false,
                leaving: false,
                has_left: false,
                refused_until: None,
                trial: None,
                gauge: Gauge::default(),
            }),
            hurry: Notify::new(),
            freed: Notify::new(),
            beaten: Notify::new(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves numbers behind that the next beat sets right.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tag(&self) -> &str {
        &self.tag
    }

    /// Connections of the budget itself, of those that are divided.
    pub(super) fn own(&self) -> usize {
        match self.kind {
            Kind::Leased { own } => own,
            Kind::Fixed => 0,
        }
    }

    pub(super) fn enforces(&self) -> bool {
        self.enforces.load(Relaxed)
    }

    async fn beaten_until(&self, is_done: impl Fn(&State) -> bool) {
        loop {
            let beaten = self.beaten.notified();
            if is_done(&self.state()) {
                return;
            }
            beaten.await;
        }
    }

    /// A beat was replied to, or failed: rights may have changed.
    pub(super) fn beaten(&self) {
        {
            let mut state = self.state();
            state.tried += 1;
            // Also where no beat is sent, because the store cannot be connected to.
            state.pod.lapse(Instant::now());
        }
        self.divide();
        self.freed.notify_waiters();
        self.beaten.notify_waiters();
    }

    pub(super) fn demand(&self, now: Instant) -> Demand {
        let mut state = self.state();
        let pools = state.pools();
        let sum = |part: fn(&Pool) -> usize| -> usize { pools.iter().map(|pool| part(pool)).sum() };
        let own = self.own() + self.extra;
        let open = sum(|pool| pool.open.load(Relaxed));
        /// What a pool begins with, so that the first does not have to wait for a second beat.
        const START: usize = 4;
        let need = sum(|pool| pool.need.load(Relaxed));
        let want = match pools.is_empty() {
            true => START,
            false => sum(|pool| pool.want.load(Relaxed)),
        };
        let floor = self.own() + self.floor.max(pools.len() + self.extra);
        let (floor, mut need, mut want) = match state.leaving {
            true => (0, 0, 0),
            false => (floor, (own + need).max(floor), (own + want).max(floor)),
        };
        let all = open + state.extra_open as usize + usize::from(state.beats);
        state.refused_until = state.refused_until.filter(|&until| now < until);
        if state.refused_until.is_some() {
            want = want.min(all.max(floor));
            need = need.min(want);
        }
        let (cap, bound) = (state.pod.cap() as usize, state.pod.bound() as usize);
        Demand {
            floor,
            need,
            want,
            open: all,
            is_hungry: state.starves || bound > cap || need > cap || (bound >= cap && bound > all),
        }
    }

    /// The most sessions that the server may show, by this process' own count: those that were open a while
    /// ago, and those dialled since. What was closed before that is taken for gone.
    #[cfg(feature = "fleet-redis")]
    pub(super) fn own_count(&self, now: Instant) -> u32 {
        let open = self.demand(now).open as u32;
        let mut state = self.state();
        let begun = state.pod.begun();
        let gone_within = state.pod.dial_for();
        let open = open + state.pod.dialing();
        let bound = state.pod.bound();
        let counts = &mut state.own_counts;
        counts.push_back(OwnCount {
            at: now,
            open,
            begun,
        });
        // The latest that is old enough, and one before it: pools report what they have open a little late.
        while counts.len() > 2 && counts[2].at + gone_within <= now {
            counts.pop_front();
        }
        match (counts.front(), counts.get(1)) {
            (Some(before), Some(old)) if old.at + gone_within <= now => {
                old.open + (begun - before.begun) as u32
            }
            _ => bound,
        }
    }

    /// Gives up what is no longer needed, where others are likely to wait for it: the fleet has no more, and
    /// this process needs less than half of what it did. Its next beat but one asks for room again.
    pub(super) fn yields(&self, before: usize) -> bool {
        let need = self.demand(Instant::now()).need;
        let mut state = self.state();
        let counts = &state.counts;
        let all = counts.total.saturating_sub(counts.reserve);
        let all = counts.knee.map_or(all, |knee| knee.min(all));
        let is_full = counts.counted + counts.members >= all;
        let yields = self.enforces() && is_full && need * 2 < before;
        let yields = yields && (need as u32) < state.pod.cap();
        if yields {
            state.pod.shrink(need as u32);
            drop(state);
            self.divide();
        }
        yields
    }

    /// What the pools did since the last beat, and in the last experiment of the fleet.
    pub(super) fn report(&self, now: Instant) -> [i64; REPORTED] {
        let mut state = self.state();
        let pools = state.pools().len();
        let State { gauge, trial, .. } = &mut *state;
        gauge.report(now, pools, self.own() + self.extra, trial.as_ref())
    }

    /// A beat asks for the pools there are, or was replied to.
    pub(super) fn asked(&self, replied: bool) {
        let (from, to) = match replied {
            false => (0, SENT),
            true => (SENT, REPLIED),
        };
        for pool in self.state().pools() {
            // A failure is one that is further on.
            let _ = pool.asked.compare_exchange(from, to, Relaxed, Relaxed);
        }
    }

    /// Divides what this process may have among its pools.
    fn divide(&self) {
        let mut state = self.state();
        let pools = state.pools();
        let Some(most) = self.for_pools(&state) else {
            return;
        };
        let claims: Vec<Claim> = pools
            .iter()
            .map(|pool| Claim {
                weight: 1000,
                floor: 1,
                need: pool.need.load(Relaxed) as u32,
                want: pool.want.load(Relaxed).max(1) as u32,
                held: pool.open.load(Relaxed) as u32,
            })
            .collect();
        drop(state);
        let mut given = shares(most, &claims);
        // What none of them asks for is theirs, too.
        let sum: u32 = given.iter().sum();
        let spare = most.saturating_sub(sum) / given.len().max(1) as u32;
        given.iter_mut().for_each(|share| *share += spare);
        for (pool, share) in pools.iter().zip(given) {
            let is_known = self.kind == Kind::Fixed || pool.asked.load(Relaxed) == REPLIED;
            let share = match self.enforces() && is_known {
                true => share as usize,
                false => usize::MAX,
            };
            if pool.share.swap(share, Relaxed) != share {
                pool.news.notify_one();
            }
        }
    }

    /// What the pools may have together, unless nothing was granted yet or any more: then they keep what
    /// they have.
    fn for_pools(&self, state: &State) -> Option<u32> {
        if !self.enforces() {
            return Some(u32::MAX / 2);
        }
        match self.kind {
            Kind::Fixed => Some(state.counts.granted as u32),
            Kind::Leased { .. } if state.pod.lease_end().is_none() => None,
            Kind::Leased { own } => {
                let own = (own + self.extra) as u32;
                Some(state.pod.cap().saturating_sub(own))
            }
        }
    }

    fn may_dial(&self, state: &State, now: Instant) -> usize {
        if !self.enforces() {
            return usize::MAX;
        }
        match self.kind {
            Kind::Leased { .. } => state.pod.may_dial(now) as usize,
            Kind::Fixed => state
                .counts
                .granted
                .saturating_sub(state.pod.bound() as usize),
        }
    }

    fn try_take(self: &Arc<Self>) -> Option<Right> {
        let now = Instant::now();
        let mut state = self.state();
        if self.may_dial(&state, now) == 0 {
            state.counts.denied += 1;
            return None;
        }
        // Where nothing is enforced, it is counted nevertheless.
        state.pod.join();
        drop(state);
        let inner = Some(Arc::clone(self));
        Some(Right { inner, pool: None })
    }

    fn dial_ended(&self) {
        self.state().pod.dial_ended();
        self.freed.notify_waiters();
    }

    async fn take(self: Arc<Self>) -> Right {
        loop {
            let freed = self.freed.notified();
            if let Some(right) = self.try_take() {
                return right;
            }
            self.state().starves = true;
            self.hurry.notify_one();
            freed.await;
        }
    }

    /// The server had no place for a connection that was within the rights.
    fn refused(&self, now: Instant) {
        /// Up to twice as long.
        const FOR: Duration = Duration::from_secs(10);
        let mut state = self.state();
        let open: usize = state.pools().iter().map(|p| p.open.load(Relaxed)).sum();
        let open = open + state.extra_open as usize + usize::from(state.beats);
        state.pod.shrink(open as u32);
        state.refused_until = Some(now + FOR.mul_f64(1.0 + super::jitter::jitter()));
        drop(state);
        self.divide();
        self.hurry.notify_one();
    }

    fn snapshot(&self) -> BudgetSnapshot {
        let now = Instant::now();
        let demand = self.demand(now);
        let state = self.state();
        BudgetSnapshot {
            mode: match self.enforces() {
                true => Mode::Enforce,
                false => Mode::Recommend,
            },
            counts: state.counts,
            granted: match self.kind {
                Kind::Leased { .. } => state.pod.cap() as usize,
                Kind::Fixed => state.counts.granted,
            },
            bound: state.pod.bound() as usize,
            open: demand.open,
            need: demand.need,
            want: demand.want,
            lease_left: (state.pod.lease_end()).map(|end| end.saturating_duration_since(now)),
            error: state.error.clone(),
        }
    }
}

impl State {
    fn pools(&mut self) -> Vec<Arc<Pool>> {
        self.pools.retain(|pool| pool.strong_count() > 0);
        self.pools.iter().filter_map(Weak::upgrade).collect()
    }

    /// Takes note that a beat is being sent: those that starve say so again.
    pub(super) fn fed(&mut self) {
        self.starves = false;
    }
}

/// The right to one dial. Dropped when the dial has ended.
#[must_use]
pub(crate) struct Right {
    inner: Option<Arc<Inner>>,
    pool: Option<Arc<Pool>>,
}

impl Right {
    fn of(mut self, pool: &Arc<Pool>) -> Self {
        pool.dialing.fetch_add(1, Relaxed);
        self.pool = Some(Arc::clone(pool));
        self
    }
}

impl Drop for Right {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            pool.dialing.fetch_sub(1, Relaxed);
        }
        if let Some(inner) = &self.inner {
            inner.dial_ended();
        }
    }
}

/// A connection of this process outside of its pools. Drop it after the connection.
#[must_use = "dropped, it is free for another connection"]
pub struct Place {
    inner: Option<Arc<Inner>>,
    is_open: bool,
}

impl Place {
    /// Reports that the connection is open, so that other dials may begin.
    pub fn opened(&mut self) {
        if let Some(inner) = self.inner.as_ref().filter(|_| !self.is_open) {
            inner.dial_ended();
        }
        self.is_open = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.opened();
        if let Some(inner) = &self.inner {
            inner.state().extra_open -= 1;
            inner.hurry.notify_one();
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").finish_non_exhaustive()
    }
}

/// A pool's part in a budget.
pub(crate) struct Member {
    inner: Arc<Inner>,
    pool: Arc<Pool>,
}

impl Member {
    /// Reports what the pool could use and has, and returns what it may have.
    ///
    /// `open` is called while no dial can end: one is counted as open or as being dialled.
    pub(crate) fn follow(&self, need: usize, want: usize, open: impl FnOnce() -> usize) -> usize {
        let pool = &*self.pool;
        let before = pool.need.swap(need, Relaxed);
        let wanted = pool.want.swap(want, Relaxed);
        let (open, had) = {
            let mut state = self.inner.state();
            let open = open();
            let had = pool.open.swap(open, Relaxed);
            if self.inner.kind == Kind::Fixed {
                let pools = state.pools();
                let open: usize = pools.iter().map(|pool| pool.open.load(Relaxed)).sum();
                let open = open as u32 + state.extra_open;
                state.pod.confirm(open);
            }
            (open, had)
        };
        let share = pool.share.load(Relaxed);
        // What is no longer needed is given to others soon, and what is needed asked for.
        let is_less = need < before && need * 4 < before * 3;
        let is_short = want > wanted && want > share;
        if is_less || is_short || open < had {
            self.inner.divide();
            self.inner.hurry.notify_one();
        }
        pool.share.load(Relaxed)
    }

    /// Takes in what the pool did until now. Returns whether an experiment of the fleet runs.
    /// `acts`: whether the pool does what it is told.
    pub(crate) fn saw(&self, now: Instant, window: &PoolWindow, is_full: bool, acts: bool) -> bool {
        let mut state = self.inner.state();
        state.gauge.saw(window, is_full);
        let Some(trial) = &mut state.trial else {
            return false;
        };
        if !acts || !self.inner.enforces() {
            trial.spoil();
        }
        trial.saw(now, window);
        trial.runs(now)
    }

    /// How many of `limit` connections are let out: fewer for a part of an experiment of the fleet.
    pub(crate) fn admits(&self, now: Instant, limit: usize) -> usize {
        let state = self.inner.state();
        let trial = state.trial.filter(|_| self.inner.enforces());
        trial.map_or(limit, |trial| trial.admits(now, limit))
    }

    /// When that changes next, in an experiment.
    pub(crate) fn admits_until(&self, now: Instant) -> Option<Instant> {
        self.inner.state().trial?.next(now)
    }

    pub(crate) fn may_dial(&self) -> usize {
        let state = self.inner.state();
        self.inner.may_dial(&state, Instant::now())
    }

    pub(crate) fn dialing(&self) -> usize {
        self.pool.dialing.load(Relaxed)
    }

    pub(crate) fn try_take(&self) -> Option<Right> {
        Some(self.inner.try_take()?.of(&self.pool))
    }

    pub(crate) async fn take(&self) -> Right {
        Arc::clone(&self.inner).take().await.of(&self.pool)
    }

    /// A connection was opened by a pool that cannot be kept from it.
    pub(crate) fn opened_unasked(&self) {
        let mut state = self.inner.state();
        state.pod.join();
        state.pod.dial_ended();
        drop(state);
        self.inner.hurry.notify_one();
    }

    pub(crate) fn refused(&self) {
        self.inner.refused(Instant::now());
    }

    /// How long a dial may take.
    pub(crate) fn dial_for(&self) -> Duration {
        self.inner.state().pod.dial_for()
    }

    pub(crate) fn snapshot(&self) -> BudgetSnapshot {
        self.inner.snapshot()
    }

    /// Whether the fleet knows how many connections the database makes use of.
    pub(crate) fn is_at_knee(&self) -> bool {
        self.inner.state().counts.knee.is_some()
    }

    /// What keeps the process from its rights, if anything does.
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        let state = self.inner.state();
        let has_none = self.inner.enforces()
            && self.inner.kind != Kind::Fixed
            && state.pod.lease_end().is_none();
        match &state.error {
            Some(BudgetError::TooSmall {
                members,
                floors,
                total,
            }) => Some(Verdict::BudgetTooSmall {
                members: *members,
                floors: *floors,
                total: *total,
            }),
            Some(error @ BudgetError::Untagged { .. }) => {
                Some(Verdict::BudgetLost(error.to_string().into()))
            }
            // A blip is none: the grant still holds.
            Some(error) if has_none => Some(Verdict::BudgetLost(error.to_string().into())),
            None if has_none && state.counts.is_settling => Some(Verdict::BudgetLost(
                "the server or its table is new, and grants nothing for one lease".into(),
            )),
            None if has_none && state.tried > 0 => Some(Verdict::BudgetLost(
                "other processes have all connections, and give some up at their next beats".into(),
            )),
            _ => None,
        }
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pool.fmt(f)
    }
}
