//! A connection checked out: how it is got, and how it comes back.

use std::fmt;
use std::future::{Future, poll_fn};
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::error::Elapsed;
use tower_capacity::gate::{Acquire, Ask, Permit, Priority, Refused, RefusedReason};

use crate::adapter::{Adapter, Checked, PutBack};
use crate::holders::{Arrival, Slot, Used};
use crate::metrics::Unserved;
use crate::shared::{Inside, Shared, until_done};
use crate::stats::WaitEnd;
use crate::{Error, Mode};

/// A connection checked out of an [`Autotuned`](crate::Autotuned) pool; derefs to what the pool behind hands out.
///
/// Dropping it puts the connection back and lets the next in line have it.
#[must_use = "dropping a checkout puts the connection back"]
pub struct Checkout<P: Adapter> {
    /// Taken only by `drop`.
    connection: Option<P::Connection>,
    /// Taken only by `drop`.
    inside: Option<Inside<P>>,
    /// As the clock of the pool has it.
    since: u64,
    call_site: &'static Location<'static>,
    slot: Slot,
    generation: usize,
}

impl<P: Adapter> Checkout<P> {
    /// Where [`Autotuned::get`](crate::Autotuned::get) was called.
    #[must_use]
    pub fn call_site(&self) -> &'static Location<'static> {
        self.call_site
    }

    /// Since when the connection is in use.
    #[must_use]
    pub fn since(&self) -> Instant {
        // Only `drop` takes it.
        let inside = self.inside.as_ref();
        let inside = inside.expect("a checkout has its permit until it is dropped");
        inside.shared.stats.clock().instant(self.since)
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
        let (connection, inside) = (self.connection.take(), self.inside.take());
        // Only `drop` and this take them.
        let connection = connection.expect("a checkout has its connection until it is dropped");
        let inside = inside.expect("a checkout has its permit until it is dropped");
        inside.shared.holders.keep(self.slot);
        let place = Place {
            inside,
            slot: self.slot,
            since: self.since,
        };
        (connection, place)
    }
}

/// The place in the pool of a connection that was [detached](Checkout::detach).
pub struct Place<P: Adapter> {
    inside: Inside<P>,
    slot: Slot,
    since: u64,
}

impl<P: Adapter> Drop for Place<P> {
    fn drop(&mut self) {
        let Shared { holders, stats, .. } = &*self.inside.shared;
        let used = Used {
            since: self.since,
            ns: stats.now().saturating_sub(self.since),
            // A use of its own kind.
            counts: false,
        };
        holders.leave(self.slot, used);
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
        // It is there unless the connection was detached.
        let Some(inside) = self.inside.take() else {
            return;
        };
        let Shared { stats, metrics, .. } = &*inside.shared;
        let ns = stats.now().saturating_sub(self.since);
        metrics.used(Duration::from_nanos(ns));
        let used = Used {
            since: self.since,
            ns,
            counts: stats.is_usual(ns),
        };
        inside.take_back(
            &mut self.connection,
            self.generation,
            Some((self.slot, used)),
        );
    }
}

/// A connection on its way back. It is back when this is dropped, by the end of the runtime, too.
struct Returning<P: Adapter> {
    inside: Option<Inside<P>>,
    kept: usize,
    /// When it was taken, if it was in use.
    since: Option<u64>,
}

impl<P: Adapter> Drop for Returning<P> {
    fn drop(&mut self) {
        if let Some(inside) = self.inside.take() {
            let Shared { holders, stats, .. } = &*inside.shared;
            if let Some(since) = self.since {
                let ns = stats.now().saturating_sub(since);
                let counts = stats.is_usual(ns);
                holders.returned(Used { since, ns, counts });
            }
            inside.put_back(self.kept);
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

impl<P: Adapter> Shared<P> {
    /// `ask` is called and not given: moving what it returns costs more than making it.
    pub(crate) async fn checkout(
        self: &Arc<Self>,
        call_site: &'static Location<'static>,
        ask: impl Fn() -> Ask + Send,
    ) -> Result<Checkout<P>, Error<P::Error>> {
        let Some(entered) = self.gate.try_enter(ask()) else {
            return Box::pin(self.wait_and_open(call_site, ask())).await;
        };
        let inside = Inside::new(Arc::clone(self), entered);
        self.metrics.waited(Duration::ZERO);
        if !self.finds_idle() || self.rights.is_bound() {
            self.holders.arrived();
            return Box::pin(self.checkout_slowly(inside, call_site, ask())).await;
        }
        // Read before: a connection opened while the server changes counts as one from before.
        let generation = self.generation.load(Ordering::Acquire);
        let mut opening = pin!(self.adapter.checkout());
        // Most are there at once, and need no timer.
        let polled = PollOnce(opening.as_mut()).await;
        if let Poll::Ready(Ok(Checked {
            connection,
            is_new: false,
        })) = polled
        {
            // Here and not below, which saves moving it once more.
            let since = self.stats.clock().now_or(P::handed_out(&connection));
            let slot = self.holders.enter(call_site, since, Arrival::Now);
            return Ok(Checkout {
                connection: Some(connection),
                inside: Some(inside),
                since,
                call_site,
                slot,
                generation,
            });
        }
        self.holders.arrived();
        let checked = Box::pin(self.check(Instant::now(), polled, opening));
        let (connection, since) = checked.await?;
        Ok(inside.hand_out(connection, since, call_site, generation))
    }

    /// A checkout that has to wait.
    async fn wait_and_open(
        self: &Arc<Self>,
        call_site: &'static Location<'static>,
        ask: Ask,
    ) -> Result<Checkout<P>, Error<P::Error>> {
        self.holders.arrived();
        let permit = match self.gate.try_acquire_with(ask) {
            // One came free since.
            Ok(permit) => {
                self.metrics.waited(Duration::ZERO);
                permit
            }
            Err(refused) if self.comes_too_late(&refused, ask) => {
                self.stats.turned_away();
                self.unserved(Unserved::Shed);
                return Err(Error::refused(&refused));
            }
            Err(_) => self.wait(call_site, ask).await?,
        };
        let inside = Inside::new(Arc::clone(self), permit.into_entered());
        self.checkout_slowly(inside, call_site, ask).await
    }

    /// A checkout that is admitted, and may have to open a connection.
    async fn checkout_slowly(
        self: &Arc<Self>,
        inside: Inside<P>,
        call_site: &'static Location<'static>,
        ask: Ask,
    ) -> Result<Checkout<P>, Error<P::Error>> {
        let admitted = Instant::now();
        let generation = self.generation.load(Ordering::Acquire);
        let idle = match self.rights.is_bound() && self.expects_idle() {
            true => self.checkout_idle(admitted).await?,
            false => None,
        };
        let (connection, since) = if let Some(idle) = idle {
            idle
        } else if self.expects_idle() && !self.rights.is_bound() {
            let mut opening = pin!(self.adapter.checkout());
            let polled = PollOnce(opening.as_mut()).await;
            self.check(admitted, polled, opening).await?
        } else {
            let gives_up = GivesUp(self);
            let dialled = self.dial(inside, admitted, ask, false).await;
            std::mem::forget(gives_up);
            let mut unused = dialled.inspect_err(|_| self.unserved(Unserved::Failed))?;
            let (Some(connection), Some(inside)) = (unused.connection.take(), unused.inside.take())
            else {
                // It was made with both.
                return Err(Error::OpenTimeout(self.open_timeout));
            };
            // The dial may have begun after this checkout was admitted, and the server changed between.
            let generation = unused.generation;
            return Ok(inside.hand_out(connection, self.stats.now(), call_site, generation));
        };
        Ok(inside.hand_out(connection, since, call_site, generation))
    }

    /// Takes an idle connection where none may be opened without a right, if there is a good one. Returns
    /// since when it is in use.
    async fn checkout_idle(
        &self,
        admitted: Instant,
    ) -> Result<Option<(P::Connection, u64)>, Error<P::Error>> {
        let since = self.stats.now();
        let taking = pin!(self.adapter.checkout_idle());
        let taken = self.open(admitted, taking).await;
        let checked = self.checked(taken)?;
        if checked.as_ref().is_some_and(|checked| checked.is_new) {
            self.rights.opened_unasked();
        }
        Ok(checked.map(|checked| self.in_use(admitted, since, checked)))
    }

    /// Waits for a connection that was not there at once, if it is not there yet. Returns since when it
    /// is in use.
    async fn check<F>(
        &self,
        admitted: Instant,
        polled: Poll<F::Output>,
        opening: Pin<&mut F>,
    ) -> Result<(P::Connection, u64), Error<P::Error>>
    where
        F: Future<Output = Result<Checked<P::Connection>, P::Error>>,
    {
        let since = self.stats.now();
        let opened = match polled {
            Poll::Ready(opened) => Ok(opened),
            Poll::Pending => self.open(admitted, opening).await,
        };
        let checked = self.checked(opened)?;
        Ok(self.in_use(admitted, since, checked))
    }

    /// Counts a connection that was not to be had.
    fn checked<C>(
        &self,
        opened: Result<Result<C, P::Error>, Elapsed>,
    ) -> Result<C, Error<P::Error>> {
        let error = match opened {
            Ok(Ok(checked)) => return Ok(checked),
            Ok(Err(error)) => self.not_opened(error),
            Err(_) => {
                self.dial_failed();
                Error::OpenTimeout(self.open_timeout)
            }
        };
        self.unserved(Unserved::Failed);
        Err(error)
    }

    /// A connection, and since when it is in use: a new one not while it was being opened.
    fn in_use(
        &self,
        admitted: Instant,
        since: u64,
        checked: Checked<P::Connection>,
    ) -> (P::Connection, u64) {
        if !checked.is_new {
            return (checked.connection, since);
        }
        self.opened(admitted);
        (checked.connection, self.stats.now())
    }

    /// Waits in the queue, where it is demand that a limit below its target is raised for.
    pub(crate) async fn enter(&self, mut entry: Pin<&mut Acquire>) -> Result<Permit, Refused> {
        let mut is_queued = false;
        poll_fn(|cx| {
            let polled = entry.as_mut().poll(cx);
            if polled.is_pending() && !std::mem::replace(&mut is_queued, true) {
                if self.gate.queued() <= 1 || self.urgent.load(Ordering::Relaxed) {
                    // The driver is to look earlier than it would otherwise.
                    self.news.notify_one();
                }
                self.tell_if_below_target();
            }
            polled
        })
        .await
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
        call_site: &'static Location<'static>,
        ask: Ask,
    ) -> Result<Permit, Error<P::Error>> {
        self.revive_driver(Instant::now());
        let since = self.stats.now();
        let mut waiting = Waiting {
            shared: self,
            since,
            end: WaitEnd::Cancelled,
        };
        self.stats.queued(since);
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
            self.control()
                .suspect(*deadlock, self.holders.completions());
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
}

impl<P: Adapter> Inside<P> {
    /// A checkout that was counted when it arrived has its connection.
    fn hand_out(
        self,
        connection: P::Connection,
        since: u64,
        call_site: &'static Location<'static>,
        generation: usize,
    ) -> Checkout<P> {
        let slot = self.shared.holders.enter(call_site, since, Arrival::Before);
        Checkout {
            connection: Some(connection),
            inside: Some(self),
            since,
            call_site,
            slot,
            generation,
        }
    }

    /// Puts a connection back, or closes one that is from before the last failover.
    #[inline]
    pub(crate) fn take_back(
        self,
        connection: &mut Option<P::Connection>,
        generation: usize,
        used: Option<(Slot, Used)>,
    ) {
        let shared = &*self.shared;
        let kept = shared.kept.load(Ordering::Acquire);
        let is_current = generation == shared.generation.load(Ordering::Acquire);
        let back = match connection.take_if(|_| !is_current) {
            None => shared.adapter.put_back(connection),
            Some(connection) => {
                let since = shared.control().generation_since;
                shared.adapter.discard(connection, since)
            }
        };
        let PutBack::Later(back) = back else {
            if let Some((slot, used)) = used {
                shared.holders.leave(slot, used);
            }
            return self.put_back(kept);
        };
        // The task that gives it back holds it no longer.
        if let Some((slot, _)) = used {
            shared.holders.part(slot);
        }
        let returning = Returning {
            inside: Some(self),
            kept,
            since: used.map(|(_, used)| used.since),
        };
        until_done(PutBack::Later(back), returning);
    }
}

/// A checkout that a connection is being opened for. Dropped, it has given up.
struct GivesUp<'a, P: Adapter>(&'a Shared<P>);

impl<P: Adapter> Drop for GivesUp<'_, P> {
    fn drop(&mut self) {
        self.0.stats.came_late();
    }
}

/// A checkout in line. Recorded when it leaves, whichever way.
struct Waiting<'a, P: Adapter> {
    shared: &'a Shared<P>,
    since: u64,
    end: WaitEnd,
}

impl<P: Adapter> Drop for Waiting<'_, P> {
    fn drop(&mut self) {
        let Shared { stats, metrics, .. } = self.shared;
        let now = stats.now();
        stats.waited(self.since, now, self.end);
        metrics.waited(Duration::from_nanos(now.saturating_sub(self.since)));
        match self.end {
            WaitEnd::Admitted => {}
            WaitEnd::TimedOut => self.shared.unserved(Unserved::Timeout),
            WaitEnd::Shed => self.shared.unserved(Unserved::Shed),
            WaitEnd::Cancelled => self.shared.unserved(Unserved::Cancelled),
            WaitEnd::Closed => self.shared.unserved(Unserved::Closed),
        }
    }
}

/// Polls a future once, and returns what it returned.
struct PollOnce<'a, F>(Pin<&'a mut F>);

impl<F: Future> Future for PollOnce<'_, F> {
    type Output = Poll<F::Output>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Poll<F::Output>> {
        Poll::Ready(self.0.as_mut().poll(cx))
    }
}
