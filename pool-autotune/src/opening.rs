//! Connections that are being opened, with or without a checkout that waits for them.

use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};
use tower_capacity::gate::Ask;

use crate::adapter::Adapter;
use crate::rights::Right;
use crate::shared::{Inside, Shared};
use crate::{Error, Mode, events, sqlstate};
impl<P: Adapter> Shared<P> {
    /// Whether a checkout that was admitted will find an idle connection, as far as is known.
    pub(crate) fn expects_idle(&self) -> bool {
        // A pool may count those that are being opened, so there is none if none is idle.
        let finds_idle = || self.finds_idle() && self.adapter.idle() != Some(0);
        self.mode == Mode::Recommend || finds_idle()
    }

    /// Whether there are as many connections as checkouts that hold one or are to have one.
    #[inline]
    pub(crate) fn finds_idle(&self) -> bool {
        self.holding() <= self.size_seen.load(Ordering::Relaxed)
    }

    /// Checkouts that hold a connection, or are about to take an idle one.
    #[inline]
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
        inside: Inside<P>,
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
            let dial = dial(opening, inside, slot, done);
            tokio::spawn(dial);
            let mut dialled = pin!(dialled);
            // One without a right to it waits for a beat.
            let hangs = if shared.rights.may_dial() > 0 {
                end.min(Instant::now() + HANGS)
            } else {
                Instant::now()
            };
            if let Ok(dialled) = timeout_at(hangs, dialled.as_mut()).await {
                let dialled = dialled.unwrap_or_else(|_| Err(too_late()));
                // A server that takes no more serves those that it has.
                return match dialled {
                    Err(Error::Backend(_)) if !again && shared.holders.in_hand() > 0 => {
                        shared.another(ask).await.map_or(dialled, Ok)
                    }
                    dialled => dialled,
                };
            }
            // Whichever comes first; if there is no other, the dial may come yet. If it fails, another may
            // come back as long as there is one.
            let mut another = pin!(shared.another(ask));
            let mut is_alone = false;
            let mut failed = None;
            poll_fn(|cx| {
                if failed.is_none()
                    && let Poll::Ready(dialled) = dialled.as_mut().poll(cx)
                {
                    match dialled.unwrap_or_else(|_| Err(too_late())) {
                        Err(error @ Error::Backend(_)) if shared.holders.in_hand() > 0 => {
                            failed = Some(error);
                        }
                        dialled => return Poll::Ready(dialled),
                    }
                }
                if !is_alone && let Poll::Ready(another) = another.as_mut().poll(cx) {
                    match another {
                        Some(another) => return Poll::Ready(Ok(another)),
                        None => is_alone = true,
                    }
                }
                match failed.take_if(|_| is_alone) {
                    Some(error) => Poll::Ready(Err(error)),
                    None => Poll::Pending,
                }
            })
            .await
        })
    }

    /// Another connection for a checkout while its dial hangs.
    async fn another(self: &Arc<Self>, ask: Ask) -> Option<Unused<P>> {
        let entry = pin!(self.gate.acquire_with(ask));
        let permit = self.enter(entry).await.ok()?;
        let inside = Inside::new(Arc::clone(self), permit.into_entered());
        self.dial(inside, Instant::now(), ask, true).await.ok()
    }

    /// Waits for the right to a dial, where there has to be one. Meanwhile others may use what is idle.
    async fn right(&self) -> Option<Option<Right>> {
        if let Some(right) = self.rights.try_take() {
            return Some(right);
        }
        let _hanging = Hanging::begin(self);
        let end = deadline(Instant::now(), self.open_timeout);
        timeout_at(end, self.rights.take()).await.ok()
    }

    /// What a checkout fails with when its connection did not open.
    pub(crate) fn not_opened(&self, error: P::Error) -> Error<P::Error> {
        self.remember_why(&error);
        if self.note_error(&error) != Some(sqlstate::Meaning::TooManyConnections) {
            self.dial_failed();
        }
        if self.adapter.is_closed() {
            return Error::Closed;
        }
        Error::Backend(error)
    }

    fn remember_why(&self, error: &P::Error) {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            // Some print their source themselves.
            let own = error.to_string();
            if !text.ends_with(&own) {
                text = format!("{text}: {own}");
            }
            source = error.source();
        }
        let mut control = self.control();
        let is_news = control.dial_error.as_deref() != Some(&text);
        control.dial_error = Some(text.as_str().into());
        drop(control);
        if is_news {
            events::dial_failed(&self.name, &text);
        }
    }

    /// Waits for a connection that is being opened or checked.
    pub(crate) async fn open<F, C>(
        &self,
        admitted: Instant,
        mut opening: Pin<&mut F>,
    ) -> Result<F::Output, Elapsed>
    where
        F: Future<Output = Result<C, P::Error>>,
    {
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
        self.hang(deadline, opening).await
    }

    /// Waits on for a connection that does not open, and asks why.
    async fn hang<F, C>(&self, end: Instant, mut opening: Pin<&mut F>) -> Result<F::Output, Elapsed>
    where
        F: Future<Output = Result<C, P::Error>>,
    {
        let mut why_not = pin!(self.why_not());
        let mut has_asked = false;
        let opened = poll_fn(|cx| {
            if let Poll::Ready(opened) = opening.as_mut().poll(cx) {
                return Poll::Ready(opened);
            }
            if !has_asked && let Poll::Ready(cause) = why_not.as_mut().poll(cx) {
                has_asked = true;
                if let Some(cause) = cause {
                    return Poll::Ready(Err(cause));
                }
            }
            Poll::Pending
        });
        timeout_at(end, opened).await
    }

    /// Asks as one of the dials that may run at the same time, and no longer than one may hang.
    async fn why_not(&self) -> Option<P::Error> {
        if self.mode == Mode::Recommend {
            return None;
        }
        let _slot = self.dials.acquire().await.ok()?;
        let _right = self.rights.try_take()?;
        timeout(HANGS, self.adapter.why_not()).await.ok()?
    }

    /// A connection was opened.
    pub(crate) fn opened(&self, admitted: Instant) {
        let took = admitted.elapsed();
        self.metrics.opened(took);
        self.stats.opened(took);
        self.count_connections();
        let mut control = self.control();
        control.dial.succeeded();
        control.dial_error = None;
        drop(control);
        self.tell_if_below_target();
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
    inside: Inside<P>,
    slot: OwnedSemaphorePermit,
    done: oneshot::Sender<Result<Unused<P>, Error<P::Error>>>,
) {
    let shared = Arc::clone(&opening.0);
    let generation = shared.generation.load(Ordering::Acquire);
    let (start, opened) = {
        let Some(_right) = shared.right().await else {
            let _ = done.send(Err(Error::OpenTimeout(shared.open_timeout)));
            return;
        };
        let start = Instant::now();
        let end = deadline(start, shared.open_timeout.min(shared.rights.dial_for()));
        let mut checkout = pin!(shared.adapter.checkout());
        let opened = match timeout_at(end.min(start + HANGS), checkout.as_mut()).await {
            Ok(opened) => {
                drop((opening, slot));
                Ok(opened)
            }
            Err(_) => {
                drop(slot);
                let hanging = Hanging::begin(&shared);
                let opened = shared.hang(end, checkout).await;
                // In this order, or there would be one connection too many for a moment.
                drop(opening);
                drop(hanging);
                opened
            }
        };
        (start, opened)
    };
    let connection = match opened {
        Ok(Ok(checked)) => {
            if checked.is_new {
                shared.opened(start);
            }
            Ok(checked.connection)
        }
        Ok(Err(error)) => Err(shared.not_opened(error)),
        Err(_) => {
            shared.dial_failed();
            Err(Error::OpenTimeout(shared.open_timeout))
        }
    };
    let unused = connection.map(|connection| Unused {
        connection: Some(connection),
        inside: Some(inside),
        generation,
    });
    // Without a caller it goes back, and to the next in the queue.
    let _ = done.send(unused);
}

/// A dial as its caller sees it.
pub(crate) type Dial<P> =
    Pin<Box<dyn Future<Output = Result<Unused<P>, Error<<P as Adapter>::Error>>> + Send>>;

/// A connection that is open and not in use. Goes back when it is dropped.
pub(crate) struct Unused<P: Adapter> {
    pub(crate) connection: Option<P::Connection>,
    pub(crate) inside: Option<Inside<P>>,
    pub(crate) generation: usize,
}

impl<P: Adapter> Drop for Unused<P> {
    fn drop(&mut self) {
        if let Some(inside) = self.inside.take() {
            inside.take_back(&mut self.connection, self.generation, None);
        }
    }
}

/// A checkout that no connection opens for.
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

/// `start + timeout`, or the far future if that is beyond what an [`Instant`] can hold.
pub(crate) fn deadline(start: Instant, timeout: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
    start.checked_add(timeout).unwrap_or(start + FAR)
}
