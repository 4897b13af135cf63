use std::collections::VecDeque;
use std::error::Error as StdError;
use std::fmt;
use std::future::{Future, poll_fn};
use std::iter;
use std::ops::{Deref, DerefMut, RangeInclusive};
use std::panic::Location;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};
use tower_capacity::Pressure;
use tower_capacity::gate::{Acquire, Ask, Codel, Gate, Permit, Priority, Refused, RefusedReason};

use crate::adapter::{Adapter, Checked, PutBack};
use crate::driver::Control;
use crate::holders::{Holders, Slot};
use crate::metrics::{Recorder, Unserved};
use crate::stats::{Stats, WaitEnd};
use crate::tuner::{Decision, Recording, Verdict};
use crate::{
    Bounds, BoundsError, BuildError, Builder, Error, Mode, PoolSnapshot, Report, sqlstate,
};

/// A connection pool that sizes itself.
///
/// Checkouts line up at one gate, first come first served, and hold a permit for as long as they
/// hold the connection; how many permits there are is decided by a [`Tuner`](crate::tuner::Tuner).
/// The pool behind is built at its hard maximum and is never resized: connections above the limit
/// are closed as they come back.
///
/// Cloning is cheap and gives another handle to the same pool.
///
/// Differs from `bb8::Pool` and `deadpool::managed::Pool` in that the number of connections follows
/// demand, in that the line is fair and bounded, and in that wait and use times are measured
/// exactly: a checkout that is cancelled while it waits is counted, not lost.
pub struct Autotuned<P: Adapter> {
    shared: Arc<Shared<P>>,
}

impl<P: Adapter> Autotuned<P> {
    /// Tunes a pool with the defaults of the [`Builder`].
    ///
    /// # Errors
    ///
    /// Fails outside of a tokio runtime, if the pool was built for no connections at all, if its own
    /// wait timeout is zero, or if its settings work against the tuner
    /// ([`Adapter::check`](crate::adapter::Adapter::check)).
    pub fn new(pool: P) -> Result<Self, BuildError> {
        Self::builder(pool).build()
    }

    /// Sets bounds, mode, name and times before tuning a pool.
    #[must_use = "nothing is tuned until `build` is called"]
    pub fn builder(pool: P) -> Builder<P> {
        Builder::new(pool)
    }

    pub(crate) fn from_shared(shared: Arc<Shared<P>>) -> Self {
        Self { shared }
    }

    /// Checks a connection out: an idle one, or a new one while the limit allows, waiting in line
    /// for at most the wait timeout.
    ///
    /// The connection goes back when the [`Checkout`] is dropped.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives its place in line, its permit or its connection back. A wait that
    /// ends so counts as cancelled.
    #[track_caller]
    pub fn get(
        &self,
    ) -> impl Future<Output = Result<Checkout<P>, Error<P::Error>>> + Send + use<'_, P> {
        let call_site = Location::caller();
        async move {
            Arc::clone(&self.shared)
                .checkout(call_site, Ask::new())
                .await
        }
    }

    /// Checks a connection out for something that matters more or less than the rest, or that has
    /// less time. Otherwise as [`get`](Self::get).
    ///
    /// A checkout that would have to wait is refused at once, with [`Error::Shed`], if its turn is
    /// expected to come after the time it has left.
    ///
    /// ```
    /// use std::time::Duration;
    /// use pool_autotune::{Ask, Priority};
    /// # use pool_autotune::{Autotuned, adapter::Adapter};
    ///
    /// # async fn check<P: Adapter>(pool: Autotuned<P>) -> Result<(), Box<dyn std::error::Error>> {
    /// // A health check, which also may use what `Builder::reserved` keeps.
    /// let connection = pool.get_with(Ask::new().priority(Priority::Critical)).await?;
    /// // A request whose caller gives up in 80 ms.
    /// let connection = pool.get_with(Ask::new().time_left(Duration::from_millis(80))).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`Error`].
    ///
    /// # Cancel safety
    ///
    /// As [`get`](Self::get).
    #[track_caller]
    pub fn get_with(
        &self,
        ask: Ask,
    ) -> impl Future<Output = Result<Checkout<P>, Error<P::Error>>> + Send + use<'_, P> {
        let call_site = Location::caller();
        async move { Arc::clone(&self.shared).checkout(call_site, ask).await }
    }

    /// Like [`get`](Self::get), except that the future owns the pool and can be spawned.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    ///
    /// # Cancel safety
    ///
    /// Like [`get`](Self::get).
    #[track_caller]
    pub fn get_owned(
        &self,
    ) -> impl Future<Output = Result<Checkout<P>, Error<P::Error>>> + Send + use<P> {
        let shared = Arc::clone(&self.shared);
        shared.checkout(Location::caller(), Ask::new())
    }

    /// Opens connections in advance, within the dial budget, until there are as many or as many as the
    /// target; returns when all are open.
    ///
    /// Meant for a service that reports ready only then.
    ///
    /// # Errors
    ///
    /// See [`Error`]: the first that one of them failed with. Those that opened stay open.
    ///
    /// # Cancel safety
    ///
    /// What was begun goes on.
    pub async fn prewarm(&self, connections: usize) -> Result<(), Error<P::Error>> {
        let target = self.shared.target.load(Ordering::Relaxed);
        let opening: Vec<_> = (0..connections.min(target))
            .map(|_| {
                let shared = Arc::clone(&self.shared);
                tokio::spawn(async move {
                    let ask = Ask::new();
                    let mut entry = pin!(shared.gate.acquire_with(ask));
                    let permit = shared.enter(entry.as_mut()).await;
                    let permit = permit.map_err(|refused| Error::refused(&refused))?;
                    shared.dial(permit, Instant::now(), ask, false).await
                })
            })
            .collect();
        // All are kept until the last is open: one that goes back would be the next to be found.
        let mut open = Vec::new();
        for opening in opening {
            if let Ok(opened) = opening.await {
                open.push(opened?);
            }
        }
        Ok(())
    }

    /// The state of the pool now.
    #[must_use]
    pub fn snapshot(&self) -> PoolSnapshot {
        self.shared.snapshot()
    }

    /// The last 256 decisions worth telling, oldest first: every resize, and every change of the
    /// reason not to.
    #[must_use]
    pub fn decisions(&self) -> Vec<Decision> {
        self.shared.control().decisions.iter().cloned().collect()
    }

    /// What the tuner was given in the last ten minutes, from which its decisions can be made again.
    #[must_use]
    pub fn recording(&self) -> Recording {
        self.shared.control().recording.clone()
    }

    /// One paragraph for an operator: the size the pool should have, why, and what it would take.
    /// Meant for [`Mode::Recommend`], true in both.
    #[must_use]
    pub fn report(&self) -> Report {
        Report::new(&self.snapshot(), &self.verdict(), self.shared.peak_demand())
    }

    /// What is the matter with the pool, if anything.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.shared.verdict(Instant::now())
    }

    /// How hard the pool is pressed: ½ when all connections are in use, 1 when as many checkouts
    /// wait as connections are allowed, so that the next waits for about one use time.
    ///
    /// On the scale of `tower_capacity::Limiter::pressure`.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        let gate = self.shared.gate.snapshot();
        // After a shrink more may be out than are allowed.
        let in_use = gate.inflight().min(gate.limit());
        Pressure::of(in_use, gate.queued(), gate.limit())
    }

    /// Changes the bounds. The target moves into them at once; connections above it are closed as
    /// they come back.
    ///
    /// # Errors
    ///
    /// Bounds that cannot be, or in [`Mode::Enforce`] a maximum above that of the pool behind.
    /// Nothing is changed then.
    pub fn set_bounds(&self, bounds: RangeInclusive<usize>) -> Result<(), BoundsError> {
        let mut bounds = Bounds::new(bounds)?;
        if self.shared.mode == Mode::Enforce {
            bounds = bounds.within(self.shared.adapter.max_size())?;
        }
        self.shared.set_bounds(bounds);
        Ok(())
    }

    /// Closes every connection opened until now, the idle ones at once and those in use as they come
    /// back. In [`Mode::Recommend`] none is closed.
    ///
    /// To be called when the server has changed under connections that look alive: a primary that
    /// became read-only (SQLSTATE 25006), an address that now leads elsewhere. Connections that
    /// *are* dead need no call: the pool behind finds them out. New ones are opened within the dial
    /// budget, and the tuner forgets what it learned.
    pub fn failover(&self) {
        self.shared.failover();
    }

    /// Says what a query failed with, so that the pool can tell a server that has changed from one
    /// that is merely slow.
    ///
    /// Looks for a SQLSTATE in the error and its sources (feature `postgres` or `sqlx`), and acts as
    /// [`note_sqlstate`](Self::note_sqlstate). Errors of opening connections are looked at anyway.
    pub fn note_error(&self, error: &(dyn StdError + 'static)) {
        self.shared.note_error(error);
    }

    /// Says which SQLSTATE a query failed with.
    ///
    /// - `25006` (read-only transaction), `57P02`, `57P03` (crash, starting up): the server under the
    ///   connections has changed, so [`failover`](Self::failover), once in ten seconds at most.
    /// - `57P01` (ended by an operator or by a shutdown), `08000`, `08001`, `08003`, `08006`, `08007`
    ///   (connection lost): a failover too, if it is told twice within a second. Once is that
    ///   connection's affair.
    /// - `53300` (too many connections): no more are opened for a while, as after any failed dial.
    ///
    /// Others say nothing about the pool, nor does `08P01` (protocol violation), which `PgBouncer`
    /// sends when it has no place for another client.
    pub fn note_sqlstate(&self, code: &str) {
        self.shared.note_sqlstate(code);
    }

    /// Refuses every checkout from now on. Those that wait and those checked out are not affected.
    /// See [`drain`](Self::drain) to wait for them.
    pub fn close(&self) {
        self.shared.gate.close();
    }

    /// Closes the pool, waits until every checkout is back, for at most `within`, and closes the idle
    /// connections. Returns whether all of them came back.
    ///
    /// # Cancel safety
    ///
    /// The pool stays closed; the idle connections may still be open.
    pub async fn drain(&self, within: Duration) -> bool {
        self.close();
        let end = deadline(Instant::now(), within);
        let is_empty = timeout_at(end, self.shared.gate.emptied()).await.is_ok();
        if let PutBack::Later(closing) = self.shared.adapter.close_idle(usize::MAX) {
            let _ = timeout(DONE_WITHIN, closing).await;
        }
        is_empty
    }

    /// Whether checkouts are refused because the pool was closed: not ready any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.gate.is_closed() || self.shared.adapter.is_closed()
    }

    /// The pool behind. A checkout made there is invisible to the gate.
    #[must_use]
    pub fn inner(&self) -> &P {
        &self.shared.adapter
    }
}

impl<P: Adapter> Clone for Autotuned<P> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<P: Adapter> fmt::Debug for Autotuned<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Autotuned")
            .field("snapshot", &self.snapshot())
            .finish_non_exhaustive()
    }
}

/// A connection checked out of an [`Autotuned`] pool; derefs to what the pool behind hands out.
///
/// Dropping it puts the connection back and lets the next in line have it.
#[must_use = "dropping a checkout puts the connection back"]
pub struct Checkout<P: Adapter> {
    /// Taken only by `drop`.
    connection: Option<P::Connection>,
    /// Taken only by `drop`.
    permit: Option<Permit>,
    since: Instant,
    /// The same, as the statistics have it.
    since_us: u64,
    call_site: &'static Location<'static>,
    slot: Slot,
    generation: usize,
    shared: Arc<Shared<P>>,
}

impl<P: Adapter> Checkout<P> {
    /// Where [`Autotuned::get`] was called.
    #[must_use]
    pub fn call_site(&self) -> &'static Location<'static> {
        self.call_site
    }

    /// Since when the connection is in use.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Takes the connection out for good, to listen on it or to keep a lock for as long as the process
    /// runs.
    ///
    /// It is counted as held at once, so it takes nothing from the target, and it is no leak; of the
    /// maximum it takes one for as long as the [`Place`] lives. Drop that after the connection.
    ///
    /// ```
    /// # use pool_autotune::{Autotuned, adapter::Adapter};
    /// # async fn listen<P: Adapter>(pool: Autotuned<P>) -> Result<(), Box<dyn std::error::Error>> {
    /// let (connection, place) = pool.get().await?.detach();
    /// // `LISTEN orders`, and wait for notifications.
    /// drop(connection);
    /// drop(place);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "the connection goes back when it is dropped"]
    pub fn detach(mut self) -> (P::Connection, Place<P>) {
        let connection = self.connection.take();
        let place = Place {
            permit: self.permit.take(),
            slot: self.slot.take(),
            since_us: self.since_us,
            shared: Arc::clone(&self.shared),
        };
        place.shared.holders.keep(place.slot);
        // Only `drop` and this take it.
        let connection = connection.expect("a checkout has its connection until it is dropped");
        (connection, place)
    }
}

/// The place in the pool of a connection that was [detached](Checkout::detach).
pub struct Place<P: Adapter> {
    permit: Option<Permit>,
    slot: Slot,
    since_us: u64,
    shared: Arc<Shared<P>>,
}

impl<P: Adapter> Drop for Place<P> {
    fn drop(&mut self) {
        self.shared.holders.leave(self.slot);
        self.shared.stats.left(self.since_us, Instant::now());
        drop(self.permit.take());
    }
}

impl<P: Adapter> fmt::Debug for Place<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").finish_non_exhaustive()
    }
}

impl<P: Adapter> Deref for Checkout<P> {
    type Target = P::Connection;

    fn deref(&self) -> &P::Connection {
        // Only `drop` takes it.
        self.connection
            .as_ref()
            .expect("a checkout has its connection until it is dropped")
    }
}

impl<P: Adapter> DerefMut for Checkout<P> {
    fn deref_mut(&mut self) -> &mut P::Connection {
        // Only `drop` takes it.
        self.connection
            .as_mut()
            .expect("a checkout has its connection until it is dropped")
    }
}

impl<P: Adapter> Drop for Checkout<P> {
    fn drop(&mut self) {
        // Both are there until now, and `drop` comes once.
        let (Some(connection), Some(permit)) = (self.connection.take(), self.permit.take()) else {
            return;
        };
        let used = Instant::now().saturating_duration_since(self.since);
        self.shared.recorder.used(used);
        self.shared.holders.leave(self.slot);
        let usage = Usage {
            since: self.since,
            since_us: self.since_us,
            used,
        };
        self.shared
            .take_back(connection, permit, self.generation, Some(usage));
    }
}

/// How long a connection was in use.
#[derive(Clone, Copy)]
struct Usage {
    since: Instant,
    since_us: u64,
    used: Duration,
}

/// A connection on its way back. It is back when this is dropped, by the end of the runtime, too.
struct Returning<P: Adapter> {
    shared: Arc<Shared<P>>,
    permit: Option<Permit>,
    allowed: usize,
    usage: Option<Usage>,
}

impl<P: Adapter> Drop for Returning<P> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            let usage = self.usage.map(|usage| Usage {
                used: usage.since.elapsed(),
                ..usage
            });
            self.shared.put_back(permit, self.allowed, usage);
        }
    }
}

impl<P: Adapter> fmt::Debug for Checkout<P>
where
    P::Connection: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkout")
            .field("connection", &self.connection)
            .field("call_site", &format_args!("{}", self.call_site))
            .finish_non_exhaustive()
    }
}

/// What all handles and checkouts of one pool share.
pub(crate) struct Shared<P> {
    pub(crate) adapter: P,
    pub(crate) gate: Gate,
    pub(crate) stats: Stats,
    pub(crate) holders: Holders,
    pub(crate) recorder: Recorder,
    pub(crate) mode: Mode,
    pub(crate) name: Arc<str>,
    pub(crate) open_timeout: Duration,
    /// Whether connections are kept for critical checkouts.
    pub(crate) reserves: bool,
    /// How the queue is shed from at the knee.
    pub(crate) codel: Option<Codel>,
    /// What the tuner wants; the limit in force may be on its way there.
    pub(crate) target: AtomicUsize,
    /// The target, and as many more as are held for far longer than usual.
    pub(crate) allowed: AtomicUsize,
    /// How many connections may exist. The limit of the gate, or more while the tuner tries with an
    /// open pool whether fewer would do.
    pub(crate) ceiling: AtomicUsize,
    /// Checkouts that are to open a connection.
    pub(crate) opening: AtomicUsize,
    /// Connections that exist, when last looked at.
    pub(crate) size_seen: AtomicUsize,
    /// Dials that may run at the same time.
    pub(crate) dials: Arc<Semaphore>,
    /// Counts failovers.
    pub(crate) generation: AtomicUsize,
    /// Wakes the task that drives the tuner.
    pub(crate) news: Arc<Notify>,
    pub(crate) control: Mutex<Control>,
}

impl<P: Adapter> Shared<P> {
    async fn checkout(
        self: Arc<Self>,
        call_site: &'static Location<'static>,
        ask: Ask,
    ) -> Result<Checkout<P>, Error<P::Error>> {
        let start = Instant::now();
        self.stats.arrived();
        let (permit, admitted) = match self.gate.try_acquire_with(ask) {
            Ok(permit) => {
                self.recorder.waited(Duration::ZERO);
                (permit, start)
            }
            Err(refused) => {
                if self.comes_too_late(&refused, ask) {
                    self.stats.turned_away();
                    self.recorder.unserved(Unserved::Shed);
                    return Err(Error::refused(&refused));
                }
                (self.wait(start, call_site, ask).await?, Instant::now())
            }
        };

        // Read before: a connection opened while the server changes counts as one from before.
        let generation = self.generation.load(Ordering::Acquire);
        let (connection, permit, since) = if self.expects_idle() {
            let mut opening = pin!(self.adapter.checkout());
            // Most are there at once, and need no timer.
            let opened = match poll_once(opening.as_mut()).await {
                Poll::Ready(opened) => Ok(opened),
                Poll::Pending => self.open(admitted, opening).await,
            };
            match opened {
                Ok(Ok(Checked::Reused(connection))) => (connection, permit, admitted),
                Ok(Ok(Checked::Opened(connection))) => (connection, permit, self.opened(admitted)),
                Ok(Err(error)) => {
                    self.recorder.unserved(Unserved::Failed);
                    return Err(self.not_opened(error));
                }
                Err(_) => {
                    self.recorder.unserved(Unserved::Failed);
                    self.dial_failed();
                    return Err(Error::OpenTimeout(self.open_timeout));
                }
            }
        } else {
            let dialled = self.dial(permit, admitted, ask, false).await;
            let mut unused = dialled.inspect_err(|_| self.recorder.unserved(Unserved::Failed))?;
            match (unused.connection.take(), unused.permit.take()) {
                (Some(connection), Some(permit)) => (connection, permit, Instant::now()),
                // It was made with both.
                _ => return Err(Error::OpenTimeout(self.open_timeout)),
            }
        };
        let since_us = self.stats.at(since);
        self.stats.taken(since_us);
        let slot = self.holders.enter(call_site, since_us);
        let (connection, permit) = (Some(connection), Some(permit));
        Ok(Checkout {
            connection,
            permit,
            since,
            since_us,
            call_site,
            slot,
            generation,
            shared: self,
        })
    }

    /// Whether a checkout that was admitted will find an idle connection, as far as is known.
    pub(crate) fn expects_idle(&self) -> bool {
        self.mode == Mode::Recommend || self.holding() <= self.size_seen.load(Ordering::Relaxed)
    }

    /// Checkouts that hold a connection, or are about to take an idle one.
    fn holding(&self) -> usize {
        let opening = self.opening.load(Ordering::Relaxed);
        self.gate.inflight().saturating_sub(opening)
    }

    /// Looks how many connections exist that did not bypass the gate.
    pub(crate) fn count_connections(&self) -> usize {
        let size = self.adapter.size();
        // A checkout that found its connection dead holds none until it has opened another.
        let count = match self.adapter.idle() {
            Some(idle) => size.min(idle + self.holding()),
            None => size,
        };
        self.size_seen.store(count, Ordering::Relaxed);
        count
    }

    /// Opens a connection in a task of its own.
    ///
    /// A caller that gives up so does not take the dial with it, and a dial that hangs does not keep
    /// its caller from another connection, opened or returned; `again`: this is the other.
    pub(crate) fn dial(
        self: &Arc<Self>,
        permit: Permit,
        admitted: Instant,
        ask: Ask,
        again: bool,
    ) -> Dial<P> {
        let shared = Arc::clone(self);
        let opening = Opening::begin(self);
        Box::pin(async move {
            let too_late = || Error::OpenTimeout(shared.open_timeout);
            let end = deadline(admitted, shared.open_timeout);
            let slot = timeout_at(end, Arc::clone(&shared.dials).acquire_owned()).await;
            let Ok(slot) = slot.map_err(|_| too_late())? else {
                return Err(Error::Closed);
            };
            let (done, dialled) = oneshot::channel();
            let dial = dial(opening, permit, slot, done);
            tokio::spawn(dial);
            let mut dialled = pin!(dialled);
            let hangs = end.min(Instant::now() + HANGS);
            if let Ok(dialled) = timeout_at(hangs, dialled.as_mut()).await {
                let dialled = dialled.unwrap_or_else(|_| Err(too_late()));
                // A server that takes no more serves those that it has.
                return match dialled {
                    Err(Error::Backend(_)) if !again && shared.stats.in_hand() > 0 => {
                        shared.another(ask).await.map_or(dialled, Ok)
                    }
                    dialled => dialled,
                };
            }
            // Whichever comes first; if there is no other, the dial may come yet.
            let mut another = pin!(shared.another(ask));
            let mut is_alone = false;
            poll_fn(|cx| {
                if let Poll::Ready(dialled) = dialled.as_mut().poll(cx) {
                    return Poll::Ready(dialled.unwrap_or_else(|_| Err(too_late())));
                }
                if !is_alone && let Poll::Ready(another) = another.as_mut().poll(cx) {
                    match another {
                        Some(another) => return Poll::Ready(Ok(another)),
                        None => is_alone = true,
                    }
                }
                Poll::Pending
            })
            .await
        })
    }

    /// Another connection for a checkout whose dial hangs.
    async fn another(self: &Arc<Self>, ask: Ask) -> Option<Unused<P>> {
        let entry = pin!(self.gate.acquire_with(ask));
        let permit = self.enter(entry).await.ok()?;
        self.dial(permit, Instant::now(), ask, true).await.ok()
    }

    /// Waits in the queue, where it is demand that a limit below its target is raised for.
    async fn enter(&self, mut entry: Pin<&mut Acquire>) -> Result<Permit, Refused> {
        let mut is_queued = false;
        poll_fn(|cx| {
            let polled = entry.as_mut().poll(cx);
            if polled.is_pending() && !std::mem::replace(&mut is_queued, true) {
                if self.gate.queued() <= 1 {
                    // The driver is to look earlier than it would otherwise.
                    self.news.notify_one();
                }
                self.tell_if_below_target();
            }
            polled
        })
        .await
    }

    /// What a checkout fails with whose connection did not open.
    fn not_opened(&self, error: P::Error) -> Error<P::Error> {
        if self.note_error(&error) != Some(sqlstate::Meaning::TooManyConnections) {
            self.dial_failed();
        }
        if self.adapter.is_closed() {
            return Error::Closed;
        }
        Error::Backend(error)
    }

    /// Waits for a connection that is being opened or checked.
    async fn open<F: Future>(
        &self,
        admitted: Instant,
        mut opening: Pin<&mut F>,
    ) -> Result<F::Output, Elapsed> {
        let deadline = deadline(admitted, self.open_timeout);
        if self.mode == Mode::Enforce {
            // Where an idle connection was found dead, the others may be, and are replaced within
            // the dial budget.
            if self.count_connections() < self.ceiling() {
                self.apply(&mut self.control(), Instant::now());
            }
            let hangs = deadline.min(admitted + HANGS);
            if let Ok(opened) = timeout_at(hangs, opening.as_mut()).await {
                return Ok(opened);
            }
        }
        let _hanging = Hanging::begin(self);
        timeout_at(deadline, opening).await
    }

    /// Whether the turn of a checkout is expected after the time it has left: those ahead of it and
    /// itself, at the pace of the last seconds.
    fn comes_too_late(&self, refused: &Refused, ask: Ask) -> bool {
        let Some(left) = ask.left() else {
            return false;
        };
        let throughput = self.control().recent_throughput();
        let ahead = refused.queued() as f64 + 1.0;
        throughput > 0.0 && ahead / throughput > left.as_secs_f64()
    }

    async fn wait(
        self: &Arc<Self>,
        start: Instant,
        call_site: &'static Location<'static>,
        ask: Ask,
    ) -> Result<Permit, Error<P::Error>> {
        self.revive_driver(start);
        let mut waiting = Waiting {
            shared: self,
            since: start,
            end: WaitEnd::Cancelled,
        };
        self.stats.queued(start);
        // The first in the queue may wait for what this one holds. (Not where connections are reserved:
        // they are for what the application calls critical.)
        let ask = if self.mode == Mode::Enforce && !self.reserves && self.holders.is_nested() {
            ask.priority(Priority::Critical)
        } else {
            ask
        };
        let entry = pin!(self.gate.acquire_with(ask));
        let nested = self.holders.wait(call_site, self.gate.limit());
        if let Some((_, Some(deadlock))) = &nested {
            self.control().suspect(*deadlock, self.stats.completed());
        }
        let result = self.enter(entry).await;
        waiting.end = match result.as_ref().map_err(Refused::reason) {
            Ok(_) => WaitEnd::Admitted,
            Err(RefusedReason::WaitTimeout) => WaitEnd::TimedOut,
            Err(RefusedReason::Closed) => WaitEnd::Closed,
            Err(_) => WaitEnd::Shed,
        };
        drop(waiting);
        result.map_err(|refused| Error::refused(&refused))
    }

    /// A connection was opened; returns when.
    fn opened(&self, admitted: Instant) -> Instant {
        let now = Instant::now();
        self.recorder.opened(now - admitted);
        self.stats.opened(now - admitted);
        self.count_connections();
        self.control().dial.succeeded();
        self.tell_if_below_target();
        now
    }

    fn note_error(&self, error: &(dyn StdError + 'static)) -> Option<sqlstate::Meaning> {
        self.note_sqlstate(&sqlstate::of(error)?)
    }

    fn note_sqlstate(&self, code: &str) -> Option<sqlstate::Meaning> {
        let meaning = sqlstate::meaning(code);
        match meaning {
            Some(sqlstate::Meaning::ServerChanged) => self.server_changed(),
            Some(sqlstate::Meaning::ConnectionLost) => self.connection_lost(),
            Some(sqlstate::Meaning::TooManyConnections) => self.dial_failed(),
            None => {}
        }
        meaning
    }

    fn tell_if_below_target(&self) {
        if self.ceiling() < self.allowed.load(Ordering::Relaxed) {
            self.news.notify_one();
        }
    }

    /// Puts a connection back, or closes one that is from before the last failover.
    fn take_back(
        self: &Arc<Self>,
        connection: P::Connection,
        permit: Permit,
        generation: usize,
        usage: Option<Usage>,
    ) {
        let allowed = self.allowed.load(Ordering::Acquire);
        let back = if generation == self.generation.load(Ordering::Acquire) {
            self.adapter.put_back(connection)
        } else {
            let since = self.control().generation_since;
            self.adapter.discard(connection, since)
        };
        match back {
            PutBack::Done => self.put_back(permit, allowed, usage),
            PutBack::Later(back) => {
                let returning = Returning {
                    shared: Arc::clone(self),
                    permit: Some(permit),
                    allowed,
                    usage,
                };
                until_done(PutBack::Later(back), returning);
            }
        }
    }

    /// A connection is back; `allowed`: how many were, when it began to go back.
    ///
    /// It comes back before its permit, so that the next in line finds it idle. While more are
    /// inside than are allowed it is one too many, and one is closed while it is still paid for.
    fn put_back(&self, permit: Permit, allowed: usize, usage: Option<Usage>) {
        if let Some(usage) = usage {
            self.stats.returned(usage.since_us, usage.used);
        }
        let enforce = self.mode == Mode::Enforce;
        let still_allowed = || self.allowed.load(Ordering::Acquire);
        if enforce && self.gate.inflight() > still_allowed() {
            self.close_idle(1, vec![permit]);
        } else {
            drop(permit);
        }
        // Fewer are allowed since that look: what was closed then was counted with this permit still
        // out, so one is left that nothing else will close.
        if enforce && still_allowed() < allowed {
            self.close_surplus(1);
        }
    }

    /// Lowers ceiling and limit, and closes the idle connections that are too many then.
    ///
    /// Their permits are taken before and returned after, so that at no moment there are more
    /// connections than the limit in force and the debt allow, not even on their way out. Those
    /// that are in use come back to a debt, and are closed then. What is within the target stays, even
    /// if the dial budget allows no more at the moment.
    pub(crate) fn lower_limit(&self, from: usize, to: usize) {
        let free = iter::from_fn(|| self.gate.try_acquire().ok());
        let cover: Vec<Permit> = free.take(from.saturating_sub(to)).collect();
        // Checkouts inside that are not known to hold a connection may be opening one. Read in this
        // order, one that is no longer counted here is already counted by the pool.
        let inside = self.gate.inflight().saturating_sub(cover.len());
        let all = match self.adapter.idle() {
            Some(idle) => idle + inside,
            None => self.adapter.size() + inside.saturating_sub(self.stats.in_hand()),
        };
        let allowed = self.allowed.load(Ordering::Acquire);
        let surplus = all.saturating_sub(to.max(allowed));
        self.ceiling.store(to, Ordering::Release);
        let closing = self.adapter.close_idle(surplus.min(cover.len()));
        self.gate.set_limit(to);
        until_done(closing, cover);
    }

    pub(crate) fn ceiling(&self) -> usize {
        self.ceiling.load(Ordering::Acquire)
    }

    /// Closes the idle connections whose permits are free.
    pub(crate) fn close_all_idle(&self) {
        let cover: Vec<Permit> = iter::from_fn(|| self.gate.try_acquire().ok()).collect();
        self.close_idle(cover.len(), cover);
    }

    /// Closes idle connections above the limit, as far as there are any.
    pub(crate) fn close_surplus(&self, count: usize) {
        let cover: Vec<Permit> = (0..count).map(|_| self.gate.acquire_anyway().0).collect();
        self.close_idle(count, cover);
    }

    /// Closes idle connections, and returns their permits once they are gone.
    fn close_idle(&self, count: usize, cover: Vec<Permit>) {
        until_done(self.adapter.close_idle(count), cover);
    }

    pub(crate) fn control(&self) -> MutexGuard<'_, Control> {
        // A panic elsewhere leaves numbers behind that are at worst one window old.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P> Drop for Shared<P> {
    fn drop(&mut self) {
        // The driver finds nothing to drive, and ends.
        self.news.notify_one();
    }
}

/// What takes longer to open hangs, as far as other checkouts are concerned.
const HANGS: Duration = Duration::from_millis(500);

/// A checkout that is to open a connection, and has none.
struct Opening<P: Adapter>(Arc<Shared<P>>);

impl<P: Adapter> Opening<P> {
    fn begin(shared: &Arc<Shared<P>>) -> Self {
        shared.opening.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl<P: Adapter> Drop for Opening<P> {
    fn drop(&mut self) {
        self.0.opening.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Opens a connection, whether its caller still waits for it or not.
async fn dial<P: Adapter>(
    opening: Opening<P>,
    permit: Permit,
    slot: OwnedSemaphorePermit,
    done: oneshot::Sender<Result<Unused<P>, Error<P::Error>>>,
) {
    let shared = Arc::clone(&opening.0);
    let generation = shared.generation.load(Ordering::Acquire);
    let start = Instant::now();
    let end = deadline(start, shared.open_timeout);
    let opened = {
        let mut checkout = pin!(shared.adapter.checkout());
        match timeout_at(end.min(start + HANGS), checkout.as_mut()).await {
            Ok(opened) => {
                drop((opening, slot));
                Ok(opened)
            }
            Err(_) => {
                drop(slot);
                let hanging = Hanging::begin(&shared);
                let opened = timeout_at(end, checkout).await;
                // In this order, or there would be one connection too many for a moment.
                drop(opening);
                drop(hanging);
                opened
            }
        }
    };
    let connection = match opened {
        Ok(Ok(Checked::Reused(connection))) => Ok(connection),
        Ok(Ok(Checked::Opened(connection))) => {
            shared.opened(start);
            Ok(connection)
        }
        Ok(Err(error)) => Err(shared.not_opened(error)),
        Err(_) => {
            shared.dial_failed();
            Err(Error::OpenTimeout(shared.open_timeout))
        }
    };
    let unused = connection.map(|connection| Unused {
        connection: Some(connection),
        permit: Some(permit),
        generation,
        shared,
    });
    // Without a caller it goes back, and to the next in the queue.
    let _ = done.send(unused);
}

/// A dial as its caller sees it.
pub(crate) type Dial<P> =
    Pin<Box<dyn Future<Output = Result<Unused<P>, Error<<P as Adapter>::Error>>> + Send>>;

/// A connection that is open and not in use. Goes back when it is dropped.
pub(crate) struct Unused<P: Adapter> {
    connection: Option<P::Connection>,
    permit: Option<Permit>,
    generation: usize,
    shared: Arc<Shared<P>>,
}

impl<P: Adapter> Drop for Unused<P> {
    fn drop(&mut self) {
        if let (Some(connection), Some(permit)) = (self.connection.take(), self.permit.take()) {
            self.shared
                .take_back(connection, permit, self.generation, None);
        }
    }
}

/// A checkout whose connection does not open.
struct Hanging<'a, P: Adapter>(&'a Shared<P>);

impl<'a, P: Adapter> Hanging<'a, P> {
    fn begin(shared: &'a Shared<P>) -> Self {
        let mut control = shared.control();
        control.hanging += 1;
        shared.apply(&mut control, Instant::now());
        drop(control);
        shared.news.notify_one();
        Self(shared)
    }
}

impl<P: Adapter> Drop for Hanging<'_, P> {
    fn drop(&mut self) {
        let mut control = self.0.control();
        control.hanging -= 1;
        self.0.apply(&mut control, Instant::now());
    }
}

/// A checkout in line. Recorded when it leaves, whichever way.
struct Waiting<'a, P: Adapter> {
    shared: &'a Shared<P>,
    since: Instant,
    end: WaitEnd,
}

impl<P: Adapter> Drop for Waiting<'_, P> {
    fn drop(&mut self) {
        let Shared {
            stats, recorder, ..
        } = self.shared;
        let now = Instant::now();
        stats.waited(self.since, now, self.end);
        recorder.waited(now - self.since);
        match self.end {
            WaitEnd::Admitted => {}
            WaitEnd::TimedOut => recorder.unserved(Unserved::Timeout),
            WaitEnd::Shed => recorder.unserved(Unserved::Shed),
            WaitEnd::Cancelled => recorder.unserved(Unserved::Cancelled),
            WaitEnd::Closed => recorder.unserved(Unserved::Closed),
        }
    }
}

/// A connection that is not back or gone by then is dropped, and its permit returned.
const DONE_WITHIN: Duration = Duration::from_secs(5);

/// Drops `then` when connections are back or gone.
fn until_done(back: PutBack, then: impl Send + 'static) {
    let PutBack::Later(back) = back else {
        return;
    };
    let back = async move {
        let _ = timeout(DONE_WITHIN, back).await;
        drop(then);
    };
    // Without a runtime, dropping it closes the connections and returns the permits.
    if let Ok(runtime) = Handle::try_current() {
        drop(runtime.spawn(back));
    }
}

/// Polls a future once, and returns its output if it is ready.
async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// `start + timeout`, or the far future if that is beyond what an [`Instant`] can hold.
fn deadline(start: Instant, timeout: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
    start.checked_add(timeout).unwrap_or(start + FAR)
}

/// How many decisions are kept.
pub(crate) const DECISIONS_KEPT: usize = 256;

pub(crate) fn keep_decision(decisions: &mut VecDeque<Decision>, decision: Decision) {
    if decisions.len() == DECISIONS_KEPT {
        decisions.pop_front();
    }
    decisions.push_back(decision);
}
