//! The gate: which request enters now.
//!
//! A [`Gate`] is a counter of requests inside, with a limit that can be moved at any time and one
//! bounded waiting room in front of it. It knows no control law, no HTTP and no pool; the limiter
//! of this crate and the pools of `pool-autotune` both stand behind one.
//!
//! ```
//! use std::time::Duration;
//! use tower_capacity::gate::{Gate, GateConfig};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let gate = Gate::new(GateConfig::new(2).max_queue(8).max_wait(Duration::from_millis(50)));
//!
//! let first = gate.acquire().await?;
//! let second = gate.acquire().await?;
//! assert!(gate.try_acquire().is_err(), "two are inside, no other enters");
//!
//! gate.set_limit(1);
//! assert_eq!(gate.debt(), 1, "a permit is never revoked: the gate is owed one");
//! drop(first);
//! assert_eq!((gate.inflight(), gate.debt()), (1, 0));
//! # drop(second);
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! - **Fast path.** Entering and leaving an uncontended gate is one compare-and-swap and one
//!   subtraction on a single atomic word: no lock, no allocation.
//! - **Order.** Waiters of a [class](Priority) and [partition](Partition) are admitted in order of
//!   arrival, those of a higher class first, and a new request never overtakes its own class: while
//!   one of it waits, [`try_acquire`](Gate::try_acquire) refuses and [`acquire`](Gate::acquire)
//!   waits in line.
//!   Only a line that is [overloaded](Codel) is served from its end.
//! - **Resize.** A limit lowered below the requests inside leaves a *debt*: the next permits that
//!   return are not handed on until it is paid. So inflight ≤ limit + debt, always.
//! - **Cost.** A request that [costs](Ask::cost) more than one permit counts as that many, inside
//!   and in line. It enters when all of them are free; what comes free meanwhile is kept for it. One
//!   that costs more than the limit enters an empty gate.
//! - **Cancel safety.** A waiter dropped at any point gives back its place, or the permit that it
//!   was just handed.
//!
//! How it differs from `tokio::sync::Semaphore`: the limit can be lowered while permits are out
//! and waiters queue (`forget_permits` cannot take back a permit that a release has already given
//! to a waiter), and the line is bounded in length and in time.

mod acquire;
mod claim;
mod codel;
mod partition;
mod permit;
mod priority;
mod queue;
mod word;

use std::{
    fmt,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    task::Waker,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

#[cfg(not(loom))]
pub(crate) use self::acquire::Enter;
pub(crate) use self::claim::Claim;
pub(crate) use self::word::MAX;
pub use self::{
    acquire::Acquire,
    codel::Codel,
    partition::Partition,
    permit::{Entered, Permit},
    priority::Priority,
};

use self::{
    partition::Partitions,
    queue::Queue,
    word::{AtomicWord, Need, Word},
};
use crate::sync::{Arc, Mutex, lock};

/// A counter of requests inside, with a movable limit and a bounded waiting room.
///
/// Cloning is cheap and gives another handle to the same gate. See the [module docs](self).
#[derive(Clone)]
pub struct Gate {
    shared: Arc<Shared>,
}

struct Shared {
    word: AtomicWord,
    /// How many may wait; [`AS_THE_LIMIT`] follows the limit in force. Outside the lock, for
    /// requests that are refused.
    max_queue: AtomicUsize,
    /// Permits for the highest class alone.
    reserved: usize,
    /// Permits of the limit that are out for good, so that no request can wait for them.
    held: AtomicUsize,
    partitions: Partitions,
    /// Locked only by waiters, and by a permit that is returned while one waits.
    room: Mutex<Room>,
    /// Notified when a closed gate is empty or opens again.
    emptied: Notify,
}

/// Instead of a number of waiters.
const AS_THE_LIMIT: usize = usize::MAX;
/// Places of a queue that follows the limit, at least. Chance alone fills a short one: at seven tenths of
/// the capacity an M/M/1 with one place refuses 22 %, one with eight 2 % (Erlang). With 16 more are
/// served too late (model).
const LEAST_QUEUE: usize = 8;

struct Room {
    queue: Queue,
    max_wait: Duration,
    codel: Option<Codel>,
}

/// How a [`Gate`] starts out.
#[derive(Clone, Debug)]
#[must_use]
pub struct GateConfig {
    limit: usize,
    max_queue: Option<usize>,
    max_wait: Duration,
    codel: Option<Codel>,
    shares: Vec<f64>,
    reserved: usize,
}

impl GateConfig {
    /// The longest wait by default: one second.
    pub const DEFAULT_MAX_WAIT: Duration = Duration::from_secs(1);

    /// Starts with `limit` permits, at most 2,097,151.
    pub const fn new(limit: usize) -> Self {
        Self {
            limit,
            max_queue: None,
            max_wait: Self::DEFAULT_MAX_WAIT,
            codel: None,
            shares: Vec::new(),
            reserved: 0,
        }
    }

    /// Sets how many may wait, each as often as it [costs](Ask::cost): a request finds a place as
    /// long as they are fewer. Zero refuses at once a request that finds no permit.
    ///
    /// Defaults to the limit in force, so that by Little's law a full room costs its last waiter
    /// about one service time: enough to absorb a burst, too little to store an overload. Below a limit
    /// of eight it stays at eight, since chance alone fills fewer.
    pub const fn max_queue(mut self, waiters: usize) -> Self {
        self.max_queue = Some(waiters);
        self
    }

    /// Sets how long a request waits. [`Duration::MAX`] waits without bound.
    ///
    /// Defaults to [`DEFAULT_MAX_WAIT`](Self::DEFAULT_MAX_WAIT).
    pub const fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = wait;
        self
    }

    /// Sheds from a line that has stopped absorbing bursts, and serves its newest first.
    ///
    /// Defaults to none: in order of arrival, as long as `max_wait` allows.
    pub const fn codel(mut self, codel: Codel) -> Self {
        self.codel = Some(codel);
        self
    }

    /// Reserves permits of the limit for [`Priority::Critical`], such as health checks: no other
    /// class may fill them. One permit is for every class, however small the limit.
    ///
    /// Defaults to none.
    pub const fn reserved(mut self, permits: usize) -> Self {
        self.reserved = permits;
        self
    }

    /// Guarantees shares of the limit, from 0 to 1, to the [partitions](Partition) from 1 on.
    ///
    /// Shares beyond a sum of 1 are still served in proportion, but cannot all be held at once.
    /// Defaults to none: then all partitions in use are guaranteed the same.
    pub fn shares(mut self, shares: impl IntoIterator<Item = f64>) -> Self {
        self.shares = shares.into_iter().take(Partition::MAX).collect();
        self
    }
}

/// What one request asks of a gate.
///
/// ```
/// use std::time::Duration;
/// use tower_capacity::gate::{Ask, Gate, GateConfig, Priority};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let gate = Gate::new(GateConfig::new(4));
/// let ask = Ask::new().priority(Priority::Critical).max_wait(Duration::from_millis(20));
/// let permit = gate.acquire_with(ask).await?;
/// # drop(permit);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Ask {
    claim: Claim,
    max_wait: Option<Duration>,
    time_left: Option<Duration>,
}

impl Default for Ask {
    fn default() -> Self {
        Self::new()
    }
}

impl Ask {
    /// The most that one request can cost: 64 permits.
    pub const MAX_COST: u32 = 64;

    /// Asks as [`Gate::acquire`] does.
    pub const fn new() -> Self {
        Self {
            claim: Claim::ONE,
            max_wait: None,
            time_left: None,
        }
    }

    /// Sets how much the request matters. Defaults to [`Priority::Default`].
    pub const fn priority(mut self, priority: Priority) -> Self {
        self.claim = self.claim.with_priority(priority);
        self
    }

    /// Sets the partition that the request belongs to. Defaults to [`Partition::NONE`].
    pub const fn partition(mut self, partition: Partition) -> Self {
        self.claim = self.claim.with_partition(partition);
        self
    }

    /// Sets how many permits the request takes, for one that uses as much of what is limited as
    /// that many others. Zero counts as one, and more than [`MAX_COST`](Self::MAX_COST) as that.
    ///
    /// It enters when all of them are free, or all that its class may fill if it costs more. Where
    /// requests may wait, the permits that come free are kept for the one that is next until it has
    /// enough, so that cheaper requests never starve it; without a queue they may. Defaults to 1.
    ///
    /// ```
    /// use tower_capacity::gate::{Ask, Gate, GateConfig};
    ///
    /// let gate = Gate::new(GateConfig::new(10));
    /// let export = gate.try_acquire_with(Ask::new().cost(8))?;
    /// assert_eq!(gate.inflight(), 8);
    /// drop(export);
    /// let larger_than_the_limit = gate.try_acquire_with(Ask::new().cost(12))?;
    /// assert_eq!((gate.inflight(), gate.debt()), (12, 2));
    /// # drop(larger_than_the_limit);
    /// # Ok::<(), tower_capacity::gate::Refused>(())
    /// ```
    pub const fn cost(mut self, permits: u32) -> Self {
        let permits = if permits == 0 { 1 } else { permits };
        self.claim = self.claim.with_cost(permits);
        self
    }

    /// Sets how long it waits at most. Defaults to the gate's own `max_wait`.
    pub const fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = Some(wait);
        self
    }

    /// Says how long a response is still worth anything: the request waits no longer than that,
    /// and a [`Limiter`](crate::Limiter) refuses it at once if its turn would come too late.
    /// Defaults to forever.
    pub const fn time_left(mut self, left: Duration) -> Self {
        self.time_left = Some(left);
        self
    }

    /// How long a response is still worth anything; `None` for forever.
    #[must_use]
    pub const fn left(&self) -> Option<Duration> {
        self.time_left
    }
}

impl Ask {
    #[inline]
    pub(crate) const fn claim(&self) -> Claim {
        self.claim
    }
}

impl Gate {
    /// Largest limit that a gate can hold: 2,097,151. Larger ones are lowered to it.
    pub const MAX_LIMIT: usize = MAX;

    /// Creates a gate.
    #[must_use]
    pub fn new(config: GateConfig) -> Self {
        Self {
            shared: Arc::new(Shared {
                word: AtomicWord::new(config.limit.min(MAX)),
                max_queue: AtomicUsize::new(waiters(config.max_queue)),
                reserved: config.reserved,
                held: AtomicUsize::new(0),
                partitions: Partitions::new(&config.shares),
                room: Mutex::new(Room {
                    queue: Queue::default(),
                    max_wait: config.max_wait,
                    codel: config.codel,
                }),
                emptied: Notify::new(),
            }),
        }
    }

    /// Enters now or not at all.
    ///
    /// # Errors
    ///
    /// [`RefusedReason::Full`] if no permit is free or others wait for one,
    /// [`RefusedReason::Closed`] if the gate is closed.
    pub fn try_acquire(&self) -> Result<Permit, Refused> {
        self.acquire_now(Claim::ONE)
    }

    /// Enters now or not at all, past waiters that matter less. Otherwise as
    /// [`try_acquire`](Self::try_acquire).
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire).
    pub fn try_acquire_as(&self, priority: Priority) -> Result<Permit, Refused> {
        self.try_acquire_with(Ask::new().priority(priority))
    }

    /// Enters now or not at all, as `ask` says; how long it might wait is not looked at. Otherwise
    /// as [`try_acquire_as`](Self::try_acquire_as).
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire).
    pub fn try_acquire_with(&self, ask: Ask) -> Result<Permit, Refused> {
        self.acquire_now(ask.claim())
    }

    #[inline(always)]
    fn acquire_now(&self, claim: Claim) -> Result<Permit, Refused> {
        match self.shared.try_enter(claim) {
            Ok(word) => Ok(Permit::new(self.clone(), GateSnapshot(word), claim)),
            Err(word) => Err(Refused::now(word, RefusedReason::Full)),
        }
    }

    /// Enters now or not at all, for a caller that holds the gate itself and returns what it got to
    /// [`exit`](Self::exit). `None` where [`try_acquire_with`](Self::try_acquire_with) would have refused.
    #[inline]
    #[must_use = "dropping it leaves the request inside: return it with `exit`"]
    pub fn try_enter(&self, ask: Ask) -> Option<Entered> {
        let claim = ask.claim();
        let entered = self.shared.try_enter(claim).ok()?;
        Some(Entered::new(GateSnapshot(entered), claim))
    }

    /// Returns a permit without a handle.
    #[inline]
    pub fn exit(&self, entered: Entered) {
        let cost = entered.cost();
        if cost > 0 {
            self.shared.leave(entered.partition(), cost);
        }
    }

    /// Enters, waiting in line for at most the gate's own `max_wait`.
    ///
    /// # Errors
    ///
    /// The future returns [`RefusedReason::QueueFull`], [`RefusedReason::WaitTimeout`] or
    /// [`RefusedReason::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives back the place in line, or the permit that was on its way.
    ///
    /// # Panics
    ///
    /// Waiting with a bound needs tokio's timer: polling the future outside a tokio runtime
    /// panics when it has to wait.
    pub fn acquire(&self) -> Acquire {
        self.acquire_with(Ask::new())
    }

    /// Enters, waiting in line for at most `max_wait`. Otherwise as [`acquire`](Self::acquire).
    pub fn acquire_within(&self, max_wait: Duration) -> Acquire {
        self.acquire_with(Ask::new().max_wait(max_wait))
    }

    /// Enters as `ask` says. Otherwise as [`acquire`](Self::acquire), but that a waiter may also be
    /// told [`RefusedReason::Overloaded`] or [`RefusedReason::Displaced`].
    pub fn acquire_with(&self, ask: Ask) -> Acquire {
        Acquire::new(self.clone(), ask)
    }

    /// Enters whatever the limit says, and returns what [`try_acquire`](Self::try_acquire) would
    /// have returned too.
    ///
    /// For work that must never be refused but has to be counted. The surplus is a debt like that
    /// of a lowered limit. Beyond [`MAX_LIMIT`](Self::MAX_LIMIT) requests inside, the permit is not
    /// counted.
    pub fn acquire_anyway(&self) -> (Permit, Result<(), Refused>) {
        let refusing = match self.shared.try_enter(Claim::ONE) {
            Ok(word) => {
                let permit = Permit::new(self.clone(), GateSnapshot(word), Claim::ONE);
                return (permit, Ok(()));
            }
            Err(word) => word,
        };
        let permit = match self.shared.word.enter() {
            Ok(word) => Permit::new(self.clone(), GateSnapshot(word), Claim::ONE),
            Err(word) => Permit::uncounted(self.clone(), GateSnapshot(word)),
        };
        (permit, Err(Refused::now(refusing, RefusedReason::Full)))
    }

    /// Enters like [`try_acquire_with`](Self::try_acquire_with), for an owner of the gate that returns
    /// the permit itself with [`leave`](Self::leave) and so needs no handle for each.
    #[cfg(not(loom))]
    #[inline]
    pub(crate) fn enter(&self, claim: Claim) -> Result<GateSnapshot, Refused> {
        let entered = self.shared.try_enter(claim);
        let entered = entered.map(GateSnapshot);
        entered.map_err(|word| Refused::now(word, RefusedReason::Full))
    }

    /// As [`acquire_with`](Self::acquire_with), for an owner that returns the permit itself.
    #[cfg(not(loom))]
    pub(crate) fn enter_with(&self, ask: Ask) -> Enter {
        Enter::new(self.clone(), ask)
    }

    /// Refuses a request that found no permit and may not wait for one either.
    #[cfg(all(feature = "layer", not(loom)))]
    pub(crate) fn turn_away(&self, claim: Claim) -> Option<Refused> {
        let word = self.shared.word.load();
        let longest = self.shared.longest(word);
        let is_full = || {
            let room = lock(&self.shared.room);
            room.queue.len() >= longest && !room.queue.may_displace(claim.line())
        };
        let no_place = longest == 0 || word.queued() >= longest && is_full();
        (no_place || word.is_closed()).then(|| Refused::now(word, RefusedReason::QueueFull))
    }

    /// How many permits the waiters want that a request would wait behind; `None` if it would not
    /// have to wait.
    #[cfg(not(loom))]
    pub(crate) fn ahead_of(&self, claim: Claim) -> Option<usize> {
        let shared = &self.shared;
        let word = shared.word.load();
        let has_room = word.has_room(shared.need(claim));
        if word.queued() == 0 {
            return (!has_room).then_some(0);
        }
        let room = lock(&shared.room);
        let first = room.queue.first_class();
        if has_room && first.is_none_or(|first| first < claim.priority()) {
            return None;
        }
        Some(room.queue.ahead_of(claim.line(), word, &shared.partitions))
    }

    /// Returns what [`enter`](Self::enter) and its kin gave.
    #[cfg(not(loom))]
    #[inline]
    pub(crate) fn leave(&self, partition: Partition, cost: usize) {
        self.shared.leave(partition, cost);
    }

    /// Moves the limit, at most to [`MAX_LIMIT`](Self::MAX_LIMIT).
    ///
    /// A higher limit admits waiters at once, in order. A lower one revokes nothing: see
    /// [`debt`](Self::debt). Zero admits none until it is raised again.
    pub fn set_limit(&self, limit: usize) {
        self.set_limit_beside(limit, 0);
    }

    /// Moves the limit, of which `held` permits are out for good: a request that costs more than
    /// the rest waits for the rest, not for those.
    pub(crate) fn set_limit_beside(&self, limit: usize, held: usize) {
        // Before the limit, so that the waiters that it admits are judged by both.
        self.shared.held.store(held, Relaxed);
        let before = self.shared.word.set_limit(limit.min(MAX));
        if before.queued() > 0 {
            self.shared.admit_waiters();
        }
    }

    /// Changes how many may wait (`None`: as many as the limit in force, and eight at least) and for how long.
    ///
    /// Applies to requests that come from now on; no waiter is sent away.
    pub fn set_waiting(&self, max_queue: Option<usize>, max_wait: Duration) {
        self.shared.max_queue.store(waiters(max_queue), Relaxed);
        lock(&self.shared.room).max_wait = max_wait;
    }

    /// Changes the bounds of a healthy wait, see [`GateConfig::codel`].
    pub fn set_codel(&self, codel: Option<Codel>) {
        lock(&self.shared.room).codel = codel;
    }

    /// Refuses every request that comes from now on. Waiters keep their place.
    pub fn close(&self) {
        let before = self.shared.word.close();
        if before.is_idle() {
            self.shared.emptied.notify_waiters();
        }
    }

    /// Admits again after [`close`](Self::close).
    pub fn reopen(&self) {
        self.shared.word.reopen();
        self.shared.emptied.notify_waiters();
    }

    /// Whether the gate was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.word.load().is_closed()
    }

    /// Waits until the gate is closed, no request is inside and none waits.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect on the gate.
    pub async fn emptied(&self) {
        self.settled(|word| (word.is_closed() && word.is_idle()).then_some(()))
            .await;
    }

    /// Waits until a closed gate is empty, or is open again: `false`.
    #[cfg(not(loom))]
    pub(crate) async fn drained(&self) -> bool {
        self.settled(|word| match word.is_closed() {
            true => word.is_idle().then_some(true),
            false => Some(false),
        })
        .await
    }

    /// Waits for what changes when a gate closes, opens or empties.
    async fn settled<T>(&self, read: impl Fn(Word) -> Option<T>) -> T {
        loop {
            let changed = self.shared.emptied.notified();
            tokio::pin!(changed);
            // Registered before the load, so that no change falls between the two.
            changed.as_mut().enable();
            if let Some(read) = read(self.shared.word.load()) {
                return read;
            }
            changed.await;
        }
    }

    /// Requests allowed inside.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.snapshot().limit()
    }

    /// Requests inside, each as often as it costs.
    #[must_use]
    pub fn inflight(&self) -> usize {
        self.snapshot().inflight()
    }

    /// Requests of a partition inside, each as often as it costs.
    #[must_use]
    pub fn inflight_of(&self, partition: Partition) -> usize {
        self.shared
            .partitions
            .inflight(partition, self.shared.word.load())
    }

    /// Requests that wait, each as often as it costs.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.snapshot().queued()
    }

    /// Requests inside above the limit; zero unless the limit was lowered below them, or one costs
    /// more than the limit.
    #[must_use]
    pub fn debt(&self) -> usize {
        self.snapshot().debt()
    }

    /// Reads limit, inflight and queue in one moment.
    #[must_use]
    #[inline]
    pub fn snapshot(&self) -> GateSnapshot {
        GateSnapshot(self.shared.word.load())
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot().fields(&mut f.debug_struct("Gate"))
    }
}

/// As an atomic holds it.
fn waiters(max_queue: Option<usize>) -> usize {
    max_queue.map_or(AS_THE_LIMIT, |waiters| waiters.min(MAX))
}

impl Shared {
    #[inline(always)]
    fn need(&self, claim: Claim) -> Need {
        self.need_of(claim.priority(), claim.cost())
    }

    #[inline(always)]
    fn need_of(&self, priority: Priority, cost: usize) -> Need {
        Need {
            priority,
            reserved: self.reserved,
            cost,
            held: match cost {
                1 => 0,
                _ => self.held.load(Relaxed),
            },
        }
    }

    /// How many may wait now.
    fn longest(&self, word: Word) -> usize {
        match self.max_queue.load(Relaxed) {
            AS_THE_LIMIT => word.limit().max(LEAST_QUEUE),
            waiters => waiters,
        }
    }

    /// Returns permits: to the next in line, unless there is a debt to pay first.
    #[inline]
    fn leave(&self, partition: Partition, cost: usize) {
        // First, so that the next to be admitted is chosen by what is true then.
        self.partitions.leave(partition, cost);
        let word = self.word.leave(cost);
        if word.queued() > 0 || word.is_closed() {
            self.left(word);
        }
    }

    /// What follows when a request has left for which others may have waited.
    #[cold]
    fn left(&self, word: Word) {
        if word.queued() > 0 {
            self.admit_waiters();
        } else {
            self.tell_if_emptied(word);
        }
    }

    /// Enters as a new request. Returns the word as it then was, or the word that refused.
    #[inline(always)]
    fn try_enter(&self, claim: Claim) -> Result<Word, Word> {
        let need = self.need(claim);
        let entered = match self.word.try_enter(need) {
            Err(word) if word.queued() > 0 && word.has_room(need) => self.try_overtake(need, word),
            entered => entered,
        };
        if entered.is_ok() {
            self.partitions.enter(claim.partition(), need.cost);
        }
        entered
    }

    /// Enters past waiters for their part of the limit, if all of them matter less: theirs is no
    /// line for this class.
    #[cold]
    fn try_overtake(&self, need: Need, word: Word) -> Result<Word, Word> {
        let room = lock(&self.room);
        match room.queue.first_class() {
            Some(first) if first >= need.priority => Err(word),
            _ => self.word.try_overtake(need),
        }
    }

    /// Admits waiters, those that are entitled and those that matter more first, for as long as
    /// permits are free.
    ///
    /// What frees a permit, raises the limit or joins the line calls this *after* the word says
    /// so; since the word has one modification order, one of the callers sees both the free permit
    /// and the waiter.
    fn admit_waiters(&self) {
        loop {
            let told = self.admit_one(&mut lock(&self.room));
            let Some(waker) = told else {
                return;
            };
            // Waking may run the waiter at once: never under the lock.
            waker.wake();
            self.tell_if_emptied(self.word.load());
        }
    }

    /// Admits one waiter or sheds one. Returns its waker.
    ///
    /// Where the next costs more than is free, what is free is kept for it, unless a waiter of a
    /// higher class can use it.
    fn admit_one(&self, room: &mut Room) -> Option<Waker> {
        loop {
            let word = self.word.load();
            let line = room.queue.next(word, &self.partitions, self.reserved)?;
            let mut overloaded = false;
            if let Some(codel) = &room.codel {
                let now = Instant::now();
                overloaded = room.queue.judge(line, codel, now);
                if overloaded && let Some((stale, cost)) = room.queue.shed_stale(line, codel, now) {
                    self.word.unqueue(cost);
                    return Some(stale);
                }
            }
            let (waiter, cost) = room.queue.next_of(line, overloaded)?;
            let need = self.need_of(line.priority, cost);
            if self.word.admit_waiter(need).is_ok() {
                self.partitions.enter(line.partition, cost);
                return room.queue.admit(waiter);
            }
            if cost == 1 || !room.queue.gather_for(waiter) {
                return None;
            }
        }
    }

    fn tell_if_emptied(&self, word: Word) {
        if word.is_closed() && word.is_idle() {
            self.emptied.notify_waiters();
        }
    }
}

/// The state of a gate at one moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct GateSnapshot(Word);

impl GateSnapshot {
    /// Requests allowed inside.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.0.limit()
    }

    /// Requests inside, each as often as it costs.
    #[must_use]
    pub const fn inflight(&self) -> usize {
        self.0.inflight()
    }

    /// Requests that wait, each as often as it costs.
    #[must_use]
    pub const fn queued(&self) -> usize {
        self.0.queued()
    }

    /// Requests inside above the limit.
    #[must_use]
    pub const fn debt(&self) -> usize {
        self.0.inflight().saturating_sub(self.0.limit())
    }

    /// Whether the gate refuses every request.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    fn fields(self, f: &mut fmt::DebugStruct<'_, '_>) -> fmt::Result {
        f.field("limit", &self.limit())
            .field("inflight", &self.inflight())
            .field("queued", &self.queued())
            .field("closed", &self.is_closed())
            .finish()
    }
}

impl fmt::Debug for GateSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fields(&mut f.debug_struct("GateSnapshot"))
    }
}

/// Why a gate refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusedReason {
    /// No permit was free, and the caller did not want to wait.
    Full,
    /// No permit was free and the waiting room was full.
    QueueFull,
    /// No permit came free in time.
    WaitTimeout,
    /// The line had stopped absorbing bursts, see [`Codel`].
    Overloaded,
    /// The waiting room was full, and a request came that matters more.
    Displaced,
    /// The wait would have lasted beyond the request's own deadline.
    Deadline,
    /// Something that the request depends on has no room for it, see
    /// [`LimiterBuilder::downstream`](crate::LimiterBuilder::downstream).
    Downstream,
    /// The gate is closed.
    Closed,
}

impl RefusedReason {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 8] = [
        Self::Full,
        Self::QueueFull,
        Self::WaitTimeout,
        Self::Overloaded,
        Self::Displaced,
        Self::Deadline,
        Self::Downstream,
        Self::Closed,
    ];

    /// The reason as it stands in metrics and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::QueueFull => "queue_full",
            Self::WaitTimeout => "wait_timeout",
            Self::Overloaded => "overloaded",
            Self::Displaced => "displaced",
            Self::Deadline => "deadline",
            Self::Downstream => "downstream",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for RefusedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A gate refused.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    word: Word,
    /// In microseconds, at most 71 minutes: refusals are returned by the million and kept small.
    waited: u32,
    /// What a limiter adds for its layers: when to come back.
    retry_after_millis: u16,
    reason: RefusedReason,
}

impl Refused {
    const fn new(reason: RefusedReason, word: Word) -> Self {
        Self {
            word,
            waited: 0,
            retry_after_millis: 0,
            reason,
        }
    }

    /// Refused without having waited: because the gate is closed, or else for `reason`.
    const fn now(word: Word, reason: RefusedReason) -> Self {
        let reason = if word.is_closed() {
            RefusedReason::Closed
        } else {
            reason
        };
        Self::new(reason, word)
    }

    fn after(since: Instant, word: Word, reason: RefusedReason) -> Self {
        let waited = u32::try_from(since.elapsed().as_micros());
        Self {
            waited: waited.unwrap_or(u32::MAX),
            ..Self::new(reason, word)
        }
    }

    /// Refused for a reason that the gate knows nothing of.
    #[cfg(not(loom))]
    pub(crate) const fn for_reason(reason: RefusedReason, gate: GateSnapshot) -> Self {
        Self::new(reason, gate.0)
    }

    #[cfg(all(feature = "layer", not(loom)))]
    pub(crate) const fn set_retry_after_millis(&mut self, millis: u16) {
        self.retry_after_millis = millis;
    }

    #[cfg(all(feature = "layer", not(loom)))]
    pub(crate) const fn retry_after_millis(&self) -> u16 {
        self.retry_after_millis
    }

    /// Why.
    #[must_use]
    pub const fn reason(&self) -> RefusedReason {
        self.reason
    }

    /// Requests that were allowed inside.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.word.limit()
    }

    /// Requests that were inside, each as often as it costs.
    #[must_use]
    pub const fn inflight(&self) -> usize {
        self.word.inflight()
    }

    /// Requests that waited, each as often as it costs.
    #[must_use]
    pub const fn queued(&self) -> usize {
        self.word.queued()
    }

    /// How long the caller stood in line, in whole microseconds, at most 71 minutes.
    #[must_use]
    pub const fn waited(&self) -> Duration {
        Duration::from_micros(self.waited as u64)
    }
}

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        GateSnapshot(self.word).fields(
            f.debug_struct("Refused")
                .field("reason", &self.reason)
                .field("waited", &self.waited()),
        )
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            RefusedReason::Closed => f.write_str("the gate is closed"),
            RefusedReason::Full | RefusedReason::QueueFull | RefusedReason::Deadline => write!(
                f,
                "{} of {} permits are out and {} wait",
                self.inflight(),
                self.limit(),
                self.queued()
            ),
            RefusedReason::Downstream => f.write_str("what it depends on has no room for it"),
            RefusedReason::Displaced => {
                write!(
                    f,
                    "displaced by a request that matters more after {:?}",
                    self.waited()
                )
            }
            RefusedReason::WaitTimeout | RefusedReason::Overloaded => {
                write!(
                    f,
                    "no permit of {} came free in {:?}",
                    self.limit(),
                    self.waited()
                )
            }
        }
    }
}

impl std::error::Error for Refused {}
