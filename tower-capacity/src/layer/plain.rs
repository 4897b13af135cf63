//! The variant for services that do not speak HTTP.

use std::{
    error, fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    held::Held,
    nesting::{self, Inside},
    service::shed_by,
};
use crate::accessors::inner_service_accessors;
use crate::{Admit, Limiter, Mode, Outcome, gate::Ask, reject::Shed};

/// Layer that applies [`PlainCapacity`]: the limit for services of any request and response.
///
/// [`CapacityLayer`](crate::CapacityLayer) refuses requests in HTTP or gRPC. A service that
/// speaks neither, such as a client of a database or of a message broker, has no response to
/// refuse with: here a refusal is the error [`CapacityError::Shed`]. The permit returns when the
/// inner future is done.
///
/// ```
/// use std::convert::Infallible;
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_capacity::PlainCapacityLayer;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let double = service_fn(async |number: u32| Ok::<_, Infallible>(2 * number));
/// let limited = PlainCapacityLayer::adaptive().layer(double);
/// assert_eq!(limited.oneshot(21).await?, 42);
/// # Ok(())
/// # }
/// ```
///
/// How it differs from `tower::limit::ConcurrencyLimit` under `tower::load_shed`: the limit adapts,
/// is shared by all services of the layer, and is asked in `call`, so that an idle clone that was
/// polled ready holds no permit.
#[derive(Clone, Debug)]
#[must_use]
pub struct PlainCapacityLayer<C = ByResult, A = Alike> {
    limiter: Limiter,
    classify: C,
    asks: A,
}

impl PlainCapacityLayer {
    /// Creates a layer that needs no numbers, around [`Limiter::adaptive`].
    pub fn adaptive() -> Self {
        Self::new(Limiter::adaptive())
    }

    /// Like [`adaptive`](Self::adaptive), with a name for metrics and events.
    pub fn named(name: &str) -> Self {
        Self::new(Limiter::named(name))
    }

    /// Creates a layer around a limiter. Layers around clones of one limiter share its limit.
    pub const fn new(limiter: Limiter) -> Self {
        Self {
            limiter,
            classify: ByResult,
            asks: Alike,
        }
    }
}

impl<C, A> PlainCapacityLayer<C, A> {
    /// The limiter: keep a clone to watch it, to change its bounds and to drain it.
    pub const fn limiter(&self) -> &Limiter {
        &self.limiter
    }

    /// Says what a result means for the limit. Defaults to [`ByResult`].
    ///
    /// ```
    /// use tower_capacity::{Outcome, PlainCapacityLayer};
    ///
    /// let layer = PlainCapacityLayer::adaptive().classify(|result: &Result<u32, std::io::Error>| {
    ///     match result {
    ///         Ok(_) => Outcome::Success,
    ///         Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Outcome::Dropped,
    ///         Err(_) => Outcome::Ignored,
    ///     }
    /// });
    /// # let _ = layer;
    /// ```
    pub fn classify<T, E, F>(self, classify: F) -> PlainCapacityLayer<F, A>
    where
        F: Fn(&Result<T, E>) -> Outcome + Clone,
    {
        PlainCapacityLayer {
            limiter: self.limiter,
            classify,
            asks: self.asks,
        }
    }

    /// Says what a request asks of the limiter: how much it matters, what it costs, its key, how long
    /// it has.
    /// Defaults to [`Alike`].
    ///
    /// ```
    /// use tower_capacity::{PlainCapacityLayer, Priority, gate::Ask};
    ///
    /// struct Job {
    ///     nightly: bool,
    /// }
    ///
    /// let layer = PlainCapacityLayer::adaptive().ask(|job: &Job| {
    ///     let priority = if job.nightly { Priority::Background } else { Priority::Default };
    ///     Ask::new().priority(priority)
    /// });
    /// # let _ = layer;
    /// ```
    pub fn ask<Request, F>(self, ask: F) -> PlainCapacityLayer<C, F>
    where
        F: Fn(&Request) -> Ask + Clone,
    {
        PlainCapacityLayer {
            limiter: self.limiter,
            classify: self.classify,
            asks: ask,
        }
    }
}

impl<S, C: Clone, A: Clone> Layer<S> for PlainCapacityLayer<C, A> {
    type Service = PlainCapacity<S, C, A>;

    fn layer(&self, inner: S) -> Self::Service {
        PlainCapacity {
            inner,
            limiter: self.limiter.clone(),
            classify: self.classify.clone(),
            asks: self.asks.clone(),
        }
    }
}

/// Says what a request asks of the limiter.
pub trait AskOf<Request> {
    /// What this one asks.
    fn ask(&self, request: &Request) -> Ask;
}

/// Requests that all matter the same and have no deadline.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Alike;

impl<Request> AskOf<Request> for Alike {
    #[inline]
    fn ask(&self, _request: &Request) -> Ask {
        Ask::new()
    }
}

impl<Request, F: Fn(&Request) -> Ask> AskOf<Request> for F {
    #[inline]
    fn ask(&self, request: &Request) -> Ask {
        self(request)
    }
}

/// Says what the result of a service means for the limit.
pub trait ClassifyResult<T, E> {
    /// How the request ended.
    fn outcome(&self, result: &Result<T, E>) -> Outcome;
}

/// A response is a [`Success`](Outcome::Success), an error is [`Dropped`](Outcome::Dropped).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct ByResult;

impl<T, E> ClassifyResult<T, E> for ByResult {
    #[inline]
    fn outcome(&self, result: &Result<T, E>) -> Outcome {
        match result {
            Ok(_) => Outcome::Success,
            Err(_) => Outcome::Dropped,
        }
    }
}

impl<T, E, F: Fn(&Result<T, E>) -> Outcome> ClassifyResult<T, E> for F {
    #[inline]
    fn outcome(&self, result: &Result<T, E>) -> Outcome {
        self(result)
    }
}

/// Service that admits requests within an adaptive limit, and fails the rest.
///
/// Made by [`PlainCapacityLayer`].
#[derive(Clone, Debug)]
pub struct PlainCapacity<S, C = ByResult, A = Alike> {
    inner: S,
    limiter: Limiter,
    classify: C,
    asks: A,
}

impl<S, C, A> PlainCapacity<S, C, A> {
    inner_service_accessors!();

    /// Refuses a request that found no permit, unless it may wait for one.
    #[inline(never)]
    fn refuse<Request>(&mut self, request: Request, ask: Ask) -> PlainCapacityFuture<S, C, Request>
    where
        S: Service<Request> + Clone,
        C: Clone,
    {
        match self.limiter.turn_away(ask.claim()) {
            Some(refused) => {
                let shed = shed_by(&self.limiter, refused);
                PlainCapacityFuture::new(State::Refused { shed }, self.classify.clone())
            }
            None => PlainCapacityFuture::new(self.wait(request, ask), self.classify.clone()),
        }
    }

    #[cold]
    #[inline(never)]
    fn wait<Request>(&mut self, request: Request, ask: Ask) -> State<S, S::Future, Request>
    where
        S: Service<Request> + Clone,
    {
        // The instance that was polled ready goes into the future, not a clone of it.
        let clone = self.inner.clone();
        let waiting = Box::pin(Waiting {
            admit: self.limiter.admit_with(ask),
            inner: Some((mem::replace(&mut self.inner, clone), request)),
            limiter: self.limiter.clone(),
        });
        State::Waiting { waiting }
    }

    /// Serves a request that its limiter does not enforce, or that a layer further out counts.
    #[cold]
    #[inline(never)]
    fn pass<Request>(&mut self, request: Request, ask: Ask) -> State<S, S::Future, Request>
    where
        S: Service<Request>,
    {
        let limiter = &self.limiter;
        let held = if nesting::is_counted_by(limiter.id()) {
            Ok(Held::NOTHING)
        } else if limiter.mode() == Mode::Shadow {
            Held::shadow(limiter, ask)
        } else {
            Held::uncounted(limiter)
        };
        match held {
            Ok(held) => {
                let inside = Inside::of(held.counted_by());
                let future = self.inner.call(request);
                drop(inside);
                State::Running { future, held }
            }
            Err(refused) => State::Refused {
                shed: shed_by(limiter, refused),
            },
        }
    }
}

impl<S, C, A, Request> Service<Request> for PlainCapacity<S, C, A>
where
    S: Service<Request> + Clone,
    S::Error: Into<BoxError>,
    C: ClassifyResult<S::Response, S::Error> + Clone,
    A: AskOf<Request>,
{
    type Response = S::Response;
    type Error = CapacityError;
    type Future = PlainCapacityFuture<S, C, Request>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(CapacityError::service)
    }

    #[inline]
    fn call(&mut self, request: Request) -> Self::Future {
        let ask = self.asks.ask(&request);
        let limiter = &self.limiter;
        if limiter.mode() != Mode::Enforce || nesting::is_counted_by(limiter.id()) {
            let state = self.pass(request, ask);
            return PlainCapacityFuture::new(state, self.classify.clone());
        }
        // Each future is built where it is returned, since moving it costs more than the limiter.
        let Some(admission) = limiter.try_enter(ask.claim()) else {
            return self.refuse(request, ask);
        };
        let inside = Inside::of(limiter.id());
        let future = self.inner.call(request);
        drop(inside);
        let held = Held::Alone(admission);
        PlainCapacityFuture::new(State::Running { future, held }, self.classify.clone())
    }
}

pin_project! {
    /// Future of [`PlainCapacity`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it returns the permit, or the place in the waiting room; the request counts as
    /// cancelled.
    #[must_use = "futures do nothing unless polled"]
    pub struct PlainCapacityFuture<S, C, Request>
    where
        S: Service<Request>,
    {
        #[pin]
        state: State<S, S::Future, Request>,
        classify: C,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, F, Request> {
        /// In the waiting room. Boxed, so that a request that does not wait is not moved with room
        /// for that.
        Waiting { waiting: Pin<Box<Waiting<S, Request>>> },
        Running { #[pin] future: F, held: Held },
        Refused { shed: Shed },
    }
}

pin_project! {
    /// A request that waits, and the inner service that was polled ready for it.
    struct Waiting<S, Request> {
        #[pin]
        admit: Admit,
        inner: Option<(S, Request)>,
        limiter: Limiter,
    }
}

impl<S, C, Request> PlainCapacityFuture<S, C, Request>
where
    S: Service<Request>,
{
    #[inline]
    const fn new(state: State<S, S::Future, Request>, classify: C) -> Self {
        Self { state, classify }
    }
}

impl<S, C, Request> Future for PlainCapacityFuture<S, C, Request>
where
    S: Service<Request>,
    S::Error: Into<BoxError>,
    C: ClassifyResult<S::Response, S::Error>,
{
    type Output = Result<S::Response, CapacityError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut state = this.state;
        match &*state {
            State::Running { .. } => {}
            State::Refused { shed } => return Poll::Ready(Err(CapacityError::Shed(*shed))),
            State::Waiting { .. } => ready!(enter(state.as_mut(), cx)?),
        }
        let StateProjection::Running { future, held } = state.project() else {
            unreachable!("`enter` leaves the request running or returns why not")
        };
        held.poll_place(cx);
        let inside = Inside::of(held.counted_by());
        let result = ready!(future.poll(cx));
        drop(inside);
        // In place: taken out first, it would be moved for nothing.
        held.complete(this.classify.outcome(&result));
        *held = Held::NOTHING;
        Poll::Ready(result.map_err(CapacityError::service))
    }
}

/// Waits until the request runs.
#[cold]
#[inline(never)]
fn enter<S: Service<Request>, Request>(
    mut state: Pin<&mut State<S, S::Future, Request>>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), CapacityError>> {
    let StateProjection::Waiting { waiting } = state.as_mut().project() else {
        return Poll::Ready(Ok(()));
    };
    let waiting = waiting.as_mut().project();
    let admitted = ready!(waiting.admit.poll(cx));
    let (mut service, request) = waiting
        .inner
        .take()
        .expect("`PlainCapacityFuture` polled after completion");
    match admitted {
        Ok(admission) => {
            let held = Held::Alone(admission);
            let inside = Inside::of(held.counted_by());
            let future = service.call(request);
            drop(inside);
            state.set(State::Running { future, held });
            Poll::Ready(Ok(()))
        }
        Err(refused) => {
            let shed = shed_by(waiting.limiter, refused);
            Poll::Ready(Err(CapacityError::Shed(shed)))
        }
    }
}

impl<S, C, Request> fmt::Debug for PlainCapacityFuture<S, C, Request>
where
    S: Service<Request>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Waiting { .. } => "waiting",
            State::Running { .. } => "running",
            State::Refused { .. } => "refused",
        };
        f.debug_struct("PlainCapacityFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}

/// An error of any service, as tower's own middlewares have it.
pub type BoxError = Box<dyn error::Error + Send + Sync>;

/// What went wrong in a [`PlainCapacity`].
///
/// The error of the inner service is boxed, so that this layer can stand between tower's own
/// middlewares: their error is a `BoxError`, which is no [`Error`](error::Error) itself. A layer
/// whose neighbour wants a `BoxError` and nothing else, such as
/// `reqwest::ClientBuilder::connector_layer`, stands under a `map_err`:
///
/// ```
/// use std::{convert::Infallible, time::Duration};
/// use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};
/// use tower_capacity::PlainCapacityLayer;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let service = ServiceBuilder::new()
///     .timeout(Duration::from_secs(5))
///     .map_err(BoxError::from)
///     .layer(PlainCapacityLayer::adaptive())
///     .timeout(Duration::from_secs(1))
///     .service(service_fn(async |number: u32| Ok::<_, Infallible>(2 * number)));
/// assert_eq!(service.oneshot(21).await?, 42);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[expect(
    clippy::exhaustive_enums,
    reason = "either the limiter refused or the service failed"
)]
pub enum CapacityError {
    /// The limiter refused the request; the inner service was not called.
    Shed(Shed),
    /// The inner service failed.
    Service(BoxError),
}

impl CapacityError {
    fn service(error: impl Into<BoxError>) -> Self {
        Self::Service(error.into())
    }
}

impl fmt::Display for CapacityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shed(shed) => write!(f, "shed: {shed}"),
            Self::Service(error) => error.fmt(f),
        }
    }
}

/// The source is the [`Shed`], or the error of the service.
impl error::Error for CapacityError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Shed(shed) => Some(shed),
            Self::Service(error) => Some(&**error),
        }
    }
}
