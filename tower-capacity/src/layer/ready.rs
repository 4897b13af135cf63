//! The variant that signals its limit through readiness.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use tokio::task::AbortHandle;
use tower_layer::Layer;
use tower_service::Service;

use super::{CapacityBody, CapacityFuture, CapacityLayer, held::Held, layer::Config, nesting};
use crate::{
    Admission, Admit, Limiter, LimiterBuilder, Mode,
    accessors::inner_service_accessors,
    gate::{Ask, Claim, Refused, RefusedReason},
    reject::{DefaultReject, Reject},
    sync::lock,
};

/// Layer that applies [`ReadyCapacity`]: a limit with backpressure that shows in readiness, for clients.
///
/// [`CapacityLayer`] waits in its future and is always as ready as the inner service, which is
/// right for servers. A client that picks work from a queue, or a balancer that picks a backend,
/// wants to know *before* it has a request whether it could send it: this layer admits in
/// `poll_ready`, and holds the permit until `call`.
///
/// Only for stacks in which a handle that is ready is called: one that is put aside keeps a permit
/// from the others, until it is dropped or its [`idle_timeout`](Self::idle_timeout) has passed; one
/// that is put aside while it waits keeps its place in the queue. Never under a server, which polls
/// a clone for each connection.
///
/// A waiting handle has the default priority and no deadline, since there is no request yet.
///
/// ```
/// use std::time::Duration;
/// use tower_capacity::ReadyCapacityLayer;
///
/// let layer = ReadyCapacityLayer::adaptive().idle_timeout(Duration::from_secs(1));
/// // tower::ServiceBuilder::new().layer(layer).service(channel)
/// # let _service = tower::Layer::layer(&layer, ());
/// ```
///
/// How it differs from `tower::limit::ConcurrencyLimit`: the limit adapts, is shared by all
/// services of the layer, and counts a response until its body ends.
#[derive(Clone, Debug)]
#[must_use]
pub struct ReadyCapacityLayer<R = DefaultReject> {
    layer: CapacityLayer<R>,
    idle_timeout: Option<Duration>,
}

impl ReadyCapacityLayer {
    /// Creates a layer that needs no numbers: an adaptive limit for which every call waits as long
    /// as it takes, and none is refused.
    pub fn adaptive() -> Self {
        Self::waiting(Limiter::builder())
    }

    /// Like [`adaptive`](Self::adaptive), with a name for metrics and events.
    pub fn named(name: &str) -> Self {
        Self::waiting(Limiter::builder().name(name))
    }

    fn waiting(builder: LimiterBuilder) -> Self {
        let limiter = builder
            .max_queue(usize::MAX)
            .max_wait(Duration::MAX)
            .codel(None)
            .build()
            .expect("the default bounds are valid");
        Self::new(limiter)
    }

    /// Creates a layer around a limiter; `poll_ready` waits in its waiting room.
    ///
    /// If the room is full, the wait is over or the limiter drains, the service is ready all the
    /// same, and its next call is refused, unless readiness is polled again before and a permit is
    /// free by then. For a wait without bound set
    /// [`max_queue`](LimiterBuilder::max_queue) to `usize::MAX`,
    /// [`max_wait`](LimiterBuilder::max_wait) to `Duration::MAX` and
    /// [`codel`](LimiterBuilder::codel) to `None`.
    ///
    /// In [`Mode::Shadow`](crate::Mode) readiness does not wait, and only refusals are counted.
    pub fn new(limiter: Limiter) -> Self {
        Self::from_layer(CapacityLayer::new(limiter))
    }
}

impl<R> ReadyCapacityLayer<R> {
    /// Takes over a layer with all its settings.
    ///
    /// A request that its [`bypass`](CapacityLayer::bypass) lets past gives its permit back
    /// unused, but has waited for it. Its [`upgrades`](CapacityLayer::upgrades) are not looked at.
    pub const fn from_layer(layer: CapacityLayer<R>) -> Self {
        Self {
            layer,
            idle_timeout: None,
        }
    }

    /// The limiter: keep a clone to watch it, to change its bounds and to drain it.
    pub const fn limiter(&self) -> &Limiter {
        self.layer.limiter()
    }

    /// Returns the permit of a service that has been ready for `timeout` and was not called.
    ///
    /// The call that comes later needs a permit after all: it waits for one in its future. Needs a
    /// tokio runtime, and spawns a task for each permit. Defaults to none.
    pub const fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = Some(timeout);
        self
    }
}

impl<S, R: Clone> Layer<S> for ReadyCapacityLayer<R> {
    type Service = ReadyCapacity<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        ReadyCapacity {
            inner,
            config: Arc::new(self.layer.config.shared()),
            idle_timeout: self.idle_timeout,
            readiness: Readiness::Idle,
            admit: None,
        }
    }
}

/// Service that is ready when its limit has room for the next request.
///
/// Made by [`ReadyCapacityLayer`].
pub struct ReadyCapacity<S, R = DefaultReject> {
    inner: S,
    config: Arc<Config<R>>,
    idle_timeout: Option<Duration>,
    readiness: Readiness,
    /// The wait for a permit; the allocation is kept for the next one.
    admit: Option<Pin<Box<Option<Admit>>>>,
}

#[derive(Debug)]
enum Readiness {
    Idle,
    Waiting,
    Admitted(Admission),
    /// Like `Admitted`, until the time is up.
    Lent(Lent),
    /// Served by a mode that does not enforce, or counted by a layer further out.
    Passed(Held),
    /// Until readiness is polled again.
    Refused(Refused),
}

/// A permit that returns by itself if no call uses it in time.
#[derive(Debug)]
struct Lent {
    admission: Arc<Mutex<Option<Admission>>>,
    timeout: AbortHandle,
}

impl Lent {
    fn new(admission: Admission, idle_timeout: Duration) -> Self {
        let admission = Arc::new(Mutex::new(Some(admission)));
        let lent = Arc::downgrade(&admission);
        let timeout = tokio::spawn(async move {
            tokio::time::sleep(idle_timeout).await;
            drop(Weak::upgrade(&lent).and_then(|lent| lock(&lent).take()));
        });
        Self {
            admission,
            timeout: timeout.abort_handle(),
        }
    }

    fn take(&self) -> Option<Admission> {
        lock(&self.admission).take()
    }

    fn is_back(&self) -> bool {
        lock(&self.admission).is_none()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.timeout.abort();
    }
}

impl<S, R> ReadyCapacity<S, R> {
    inner_service_accessors!();

    fn poll_admission(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let ask_again = match &self.readiness {
            Readiness::Lent(lent) => lent.is_back(),
            Readiness::Idle | Readiness::Refused(_) => true,
            Readiness::Waiting | Readiness::Admitted(_) | Readiness::Passed(_) => false,
        };
        if ask_again {
            self.readiness = self.ask();
        }
        if matches!(self.readiness, Readiness::Waiting)
            && let Some(slot) = &mut self.admit
            && let Some(admit) = slot.as_mut().as_pin_mut()
        {
            let result = ready!(admit.poll(cx));
            slot.set(None);
            self.readiness = match result {
                Ok(admission) => self.admitted(admission),
                Err(refused) => Readiness::Refused(refused),
            };
        }
        Poll::Ready(())
    }

    fn ask(&mut self) -> Readiness {
        let limiter = &self.config.limiter;
        if nesting::is_counted_by(limiter.id()) {
            return Readiness::Passed(Held::NOTHING);
        }
        let passed = match limiter.mode() {
            Mode::Enforce => None,
            Mode::Shadow => Some(self.pass_in_shadow()),
            Mode::Off => Some(Held::uncounted(limiter)),
        };
        match passed {
            Some(Ok(held)) => return Readiness::Passed(held),
            Some(Err(refused)) => return Readiness::Refused(refused),
            None => {}
        }
        if let Some(admission) = limiter.try_enter(Claim::ONE) {
            return self.admitted(admission);
        }
        if let Some(refused) = limiter.turn_away(Claim::ONE) {
            return Readiness::Refused(refused);
        }
        let admit = limiter.admit();
        match &mut self.admit {
            Some(slot) => slot.set(Some(admit)),
            None => self.admit = Some(Box::pin(Some(admit))),
        }
        Readiness::Waiting
    }

    fn pass_in_shadow(&self) -> Result<Held, Refused> {
        let limiter = &self.config.limiter;
        if let Some(admission) = limiter.try_enter(Claim::ONE) {
            return Ok(Held::Alone(admission));
        }
        match limiter.turn_away(Claim::ONE) {
            Some(refused) if refused.reason() == RefusedReason::Closed => Err(refused),
            _ => Held::uncounted(limiter),
        }
    }

    fn admitted(&self, admission: Admission) -> Readiness {
        match self.idle_timeout {
            Some(timeout) => Readiness::Lent(Lent::new(admission, timeout)),
            None => Readiness::Admitted(admission),
        }
    }
}

/// A clone is not ready, whatever the original is.
impl<S: Clone, R> Clone for ReadyCapacity<S, R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            config: Arc::clone(&self.config),
            idle_timeout: self.idle_timeout,
            readiness: Readiness::Idle,
            admit: None,
        }
    }
}

impl<S, R, ReqBody, ResBody> Service<Request<ReqBody>> for ReadyCapacity<S, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    ResBody: Body,
    R: Reject<ResBody>,
{
    type Response = Response<CapacityBody<ResBody>>;
    type Error = S::Error;
    type Future = CapacityFuture<S, R, ReqBody, ResBody>;

    /// Is ready when the inner service is and a permit is held. The permit comes last, so that a
    /// client that still connects holds none.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        ready!(self.inner.poll_ready(cx))?;
        self.poll_admission(cx).map(Ok)
    }

    /// # Panics
    ///
    /// If `poll_ready` has not returned that the service is ready.
    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let config = &self.config;
        let (parts, body) = request.into_parts();
        let bypasses = config.request.bypasses(&parts);
        let held = match mem::replace(&mut self.readiness, Readiness::Idle) {
            Readiness::Idle | Readiness::Waiting => {
                panic!("`ReadyCapacity` called without `poll_ready` having been ready")
            }
            _ if bypasses => Some(Held::NOTHING),
            Readiness::Refused(refused) => {
                return CapacityFuture::refused(config.refuse(refused, parts));
            }
            Readiness::Admitted(admission) => Some(Held::Alone(admission)),
            Readiness::Passed(held) => Some(held),
            Readiness::Lent(lent) => lent.take().map(Held::Alone),
        };
        let request = Request::from_parts(parts, body);
        if let Some(held) = held {
            return CapacityFuture::admitted(&mut self.inner, request, held, None, config);
        }
        // The instance that was polled ready goes into the future, not a clone of it.
        let clone = self.inner.clone();
        let ready = mem::replace(&mut self.inner, clone);
        let admit = config.limiter.admit_with(Ask::new());
        CapacityFuture::waiting(ready, request, admit, None, Arc::clone(config))
    }
}

impl<S: fmt::Debug, R: fmt::Debug> fmt::Debug for ReadyCapacity<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadyCapacity")
            .field("inner", &self.inner)
            .field("config", &self.config)
            .field("readiness", &self.readiness)
            .finish_non_exhaustive()
    }
}
