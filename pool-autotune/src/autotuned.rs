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
use tokio::sync::Notify;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};
use tower_capacity::gate::{Ask, Codel, Gate, Permit, Refused, RefusedReason};

use crate::adapter::{Adapter, Checked, PutBack};
use crate::driver::Control;
use crate::holders::{Holders, Slot};
use crate::metrics::Recorder;
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

    /// How hard the pool is pressed, from 0 to 1.
    ///
    /// Up to ½ it is half the part of the limit that is in use. Above ½ everything is in use and
    /// checkouts wait; at 1 as many wait as connections are allowed, so a newcomer waits about one
    /// use time.
    #[must_use]
    pub fn pressure(&self) -> f64 {
        let gate = self.shared.gate.snapshot();
        let limit = gate.limit().max(1) as f64;
        let used = (gate.inflight() as f64 / limit).min(1.0);
        let waiting = (gate.queued() as f64 / limit).min(1.0);
        (used + waiting) / 2.0
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
        self.shared.adapter.close_idle(usize::MAX);
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
        /// A connection that is not back by then is closed, and its permit handed on.
        const BACK_WITHIN: Duration = Duration::from_secs(5);
        // Both are there until now, and `drop` comes once.
        let (Some(connection), Some(permit)) = (self.connection.take(), self.permit.take()) else {
            return;
        };
        let used = Instant::now().saturating_duration_since(self.since);
        self.shared.recorder.used(used);
        self.shared.holders.leave(self.slot);
        let ceiling = self.shared.ceiling();
        let back = if self.generation == self.shared.generation.load(Ordering::Acquire) {
            self.shared.adapter.put_back(connection)
        } else {
            let since = self.shared.control().generation_since;
            self.shared.adapter.discard(connection, since)
        };
        match back {
            PutBack::Done => self.shared.put_back(permit, ceiling, self.since_us, used),
            PutBack::Later(back) => {
                let returning = Returning {
                    shared: Arc::clone(&self.shared),
                    permit: Some(permit),
                    ceiling,
                    since: self.since,
                    since_us: self.since_us,
                };
                let back = async move {
                    // Done or given up: either way it is not out any more.
                    let _ = timeout(BACK_WITHIN, back).await;
                    drop(returning);
                };
                // Without a runtime, dropping it closes the connection and returns the permit.
                if let Ok(runtime) = Handle::try_current() {
                    drop(runtime.spawn(back));
                }
            }
        }
    }
}

/// A connection on its way back. It is back when this is dropped, by the end of the runtime, too.
struct Returning<P: Adapter> {
    shared: Arc<Shared<P>>,
    permit: Option<Permit>,
    ceiling: usize,
    since: Instant,
    since_us: u64,
}

impl<P: Adapter> Drop for Returning<P> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            let used = self.since.elapsed();
            self.shared
                .put_back(permit, self.ceiling, self.since_us, used);
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
    /// How the queue is shed from at the knee.
    pub(crate) codel: Option<Codel>,
    /// What the tuner wants; the limit in force may be on its way there.
    pub(crate) target: AtomicUsize,
    /// The target, and as many more as are held for far longer than usual.
    pub(crate) allowed: AtomicUsize,
    /// How many connections may exist. The limit of the gate, or more while the tuner tries with an
    /// open pool whether fewer would do.
    pub(crate) ceiling: AtomicUsize,
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
            Ok(permit) => (permit, start),
            Err(refused) => {
                if self.comes_too_late(&refused, ask) {
                    self.stats.turned_away();
                    return Err(Error::refused(&refused));
                }
                (self.wait(start, call_site, ask).await?, Instant::now())
            }
        };
        self.recorder.waited(admitted - start);

        // Read before: a connection opened while the server changes counts as one from before.
        let generation = self.generation.load(Ordering::Acquire);
        let opened = {
            let mut opening = pin!(self.adapter.checkout());
            // Most are there at once, and need no timer.
            match poll_once(opening.as_mut()).await {
                Poll::Ready(opened) => Ok(opened),
                Poll::Pending => self.open(admitted, opening).await,
            }
        };
        let (connection, since) = match opened {
            Ok(Ok(Checked::Reused(connection))) => (connection, admitted),
            Ok(Ok(Checked::Opened(connection))) => (connection, self.opened(admitted)),
            Ok(Err(error)) => {
                if self.note_error(&error) != Some(sqlstate::Meaning::TooManyConnections) {
                    self.dial_failed();
                }
                if self.adapter.is_closed() {
                    return Err(Error::Closed);
                }
                return Err(Error::Backend(error));
            }
            Err(_) => {
                self.dial_failed();
                return Err(Error::OpenTimeout(self.open_timeout));
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

    /// Waits for a connection that is being opened or checked.
    async fn open<F: Future>(
        &self,
        admitted: Instant,
        mut opening: Pin<&mut F>,
    ) -> Result<F::Output, Elapsed> {
        /// What takes longer hangs, as far as the others are concerned.
        const HANGS: Duration = Duration::from_millis(500);
        let deadline = deadline(admitted, self.open_timeout);
        if self.mode == Mode::Enforce {
            // Where an idle connection was found dead, those that wait for their turn to find the
            // next are too many.
            if self.adapter.size() < self.ceiling() {
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
        let mut entry = pin!(self.gate.acquire_with(ask));
        let nested = self.holders.wait(call_site, self.gate.limit());
        if let Some((_, Some(deadlock))) = &nested {
            self.control().suspect(*deadlock, self.stats.completed());
        }
        let mut told = false;
        let entered = poll_fn(|cx| {
            let polled = entry.as_mut().poll(cx);
            // Once in line, this is demand that a limit below its target can be raised for.
            if polled.is_pending() && !std::mem::replace(&mut told, true) {
                if self.gate.queued() <= 1 {
                    // The driver is to look earlier than it would otherwise.
                    self.news.notify_one();
                }
                self.tell_if_below_target();
            }
            polled
        });
        let result = entered.await;
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

    /// A connection that was taken at `since_us` is back after as long; `ceiling`: when it began to
    /// go back.
    ///
    /// It comes back before its permit, so that the next in line finds it idle. While more are
    /// inside than may exist it is one too many, and one is closed while it is still paid for.
    fn put_back(&self, permit: Permit, ceiling: usize, since_us: u64, used: Duration) {
        self.stats.returned(since_us, used);
        let enforce = self.mode == Mode::Enforce;
        if enforce && self.gate.inflight() > self.ceiling() {
            self.adapter.close_idle(1);
        }
        drop(permit);
        // The ceiling was lowered after that look: what was closed then was counted with this
        // permit still out, so one is left that nobody else will close.
        if enforce && self.ceiling() < ceiling {
            self.close_surplus(1);
        }
    }

    /// Lowers ceiling and limit, and closes the idle connections that are too many then.
    ///
    /// Their permits are taken before and returned after, so that at no moment there are more
    /// connections than the limit in force and the debt allow, not even on their way out. Those
    /// that are in use come back to a debt, and are closed then.
    pub(crate) fn lower_limit(&self, from: usize, to: usize) {
        let free = iter::from_fn(|| self.gate.try_acquire().ok());
        let cover: Vec<Permit> = free.take(from.saturating_sub(to)).collect();
        // Checkouts inside that are not known to hold a connection may be opening one. Read in this
        // order, one that is no longer counted here is already counted by the pool.
        let inside = self.gate.inflight().saturating_sub(cover.len());
        let opening = inside.saturating_sub(self.stats.in_hand());
        let surplus = (self.adapter.size() + opening).saturating_sub(to);
        self.adapter.close_idle(surplus.min(cover.len()));
        self.ceiling.store(to, Ordering::Release);
        self.gate.set_limit(to);
        drop(cover);
    }

    pub(crate) fn ceiling(&self) -> usize {
        self.ceiling.load(Ordering::Acquire)
    }

    /// Closes the idle connections whose permits are free.
    pub(crate) fn close_all_idle(&self) {
        let cover: Vec<Permit> = iter::from_fn(|| self.gate.try_acquire().ok()).collect();
        self.adapter.close_idle(cover.len());
        drop(cover);
    }

    /// Closes idle connections above the limit, as far as there are any.
    pub(crate) fn close_surplus(&self, count: usize) {
        let cover: Vec<Permit> = (0..count).map(|_| self.gate.acquire_anyway().0).collect();
        self.adapter.close_idle(count);
        drop(cover);
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
        self.shared
            .stats
            .waited(self.since, Instant::now(), self.end);
        if matches!(self.end, WaitEnd::TimedOut) {
            self.shared.recorder.timed_out();
        }
    }
}

/// Polls a future, and hands out what it answered.
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
