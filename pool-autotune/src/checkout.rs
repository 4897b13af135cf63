//! A connection checked out: how it is got, and how it comes back.

use std::fmt;
use std::future::{Future, poll_fn};
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;
use tower_capacity::gate::{Acquire, Ask, Permit, Priority, Refused, RefusedReason};

use crate::adapter::{Adapter, Checked, PutBack};
use crate::holders::Slot;
use crate::metrics::Unserved;
use crate::shared::{Shared, until_done};
use crate::stats::WaitEnd;
use crate::{Error, Mode};
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
pub(crate) struct Usage {
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

impl<P: Adapter> Shared<P> {
    pub(crate) async fn checkout(
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

    /// Waits in the queue, where it is demand that a limit below its target is raised for.
    pub(crate) async fn enter(&self, mut entry: Pin<&mut Acquire>) -> Result<Permit, Refused> {
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

    /// Puts a connection back, or closes one that is from before the last failover.
    pub(crate) fn take_back(
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

/// Polls a future once, and returns its output if it is ready.
async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}
