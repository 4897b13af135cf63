use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Method, Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    CapacityBody, UpgradePermit,
    held::Held,
    layer::{Config, ResponseConfig},
    nesting::Inside,
};
use crate::{
    Admit, Outcome,
    classify::by_status,
    reject::{Reject, Shed},
};

pin_project! {
    /// Future of [`Capacity`](crate::Capacity).
    ///
    /// # Cancel safety
    ///
    /// Dropping it returns the permit, or the place in the waiting room; the request counts as
    /// cancelled.
    #[must_use = "futures do nothing unless polled"]
    pub struct CapacityFuture<S, R, ReqBody, ResBody>
    where
        S: Service<Request<ReqBody>>,
        ResBody: Body,
    {
        #[pin]
        state: State<S, R, S::Future, ReqBody, CapacityBody<ResBody>>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, R, F, ReqBody, B> {
        /// In the waiting room. Boxed, so that a request that does not wait is not moved with room
        /// for that.
        Waiting { waiting: Pin<Box<Waiting<S, R, ReqBody>>> },
        /// Inside, unless bypassed.
        Running { #[pin] future: F, held: Held, response: Option<Arc<ResponseConfig>> },
        Refused { response: Option<Response<B>> },
    }
}

pin_project! {
    /// A request that waits, and what it needs once it is admitted or refused.
    struct Waiting<S, R, ReqBody> {
        #[pin]
        admit: Admit,
        inner: Option<Inner<S, ReqBody>>,
        config: Arc<Config<R>>,
    }
}

struct Inner<S, ReqBody> {
    /// The inner service that was polled ready.
    service: S,
    request: Request<ReqBody>,
    /// Of the connection that the request wants upgraded, if such are counted apart.
    apart: Option<UpgradePermit>,
}

impl<S, R, ReqBody, ResBody> CapacityFuture<S, R, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>>,
    ResBody: Body,
{
    #[inline]
    pub(super) const fn running(
        future: S::Future,
        held: Held,
        response: Option<Arc<ResponseConfig>>,
    ) -> Self {
        Self {
            state: State::Running {
                future,
                held,
                response,
            },
        }
    }

    pub(super) fn admitted(
        service: &mut S,
        request: Request<ReqBody>,
        held: Held,
        apart: Option<UpgradePermit>,
        config: &Config<R>,
    ) -> Self {
        Self {
            state: start(service, request, held, apart, config),
        }
    }

    pub(super) fn waiting(
        service: S,
        request: Request<ReqBody>,
        admit: Admit,
        apart: Option<UpgradePermit>,
        config: Arc<Config<R>>,
    ) -> Self {
        let waiting = Box::pin(Waiting {
            admit,
            inner: Some(Inner {
                service,
                request,
                apart,
            }),
            config,
        });
        Self {
            state: State::Waiting { waiting },
        }
    }

    pub(super) const fn refused(response: Response<CapacityBody<ResBody>>) -> Self {
        Self {
            state: State::Refused {
                response: Some(response),
            },
        }
    }
}

/// Calls the inner service, which holds its permit from here on.
fn start<S, R, ReqBody, B>(
    service: &mut S,
    mut request: Request<ReqBody>,
    mut held: Held,
    apart: Option<UpgradePermit>,
    config: &Config<R>,
) -> State<S, R, S::Future, ReqBody, B>
where
    S: Service<Request<ReqBody>>,
{
    let (method, headers) = (request.method(), request.headers());
    if apart.is_some() || config.is_upgrade(method, request.version(), headers) {
        let is_connect = *method == Method::CONNECT;
        let outer = request.extensions_mut().remove::<UpgradePermit>();
        let permit;
        (held, permit) = held.shared(apart, is_connect, outer);
        request.extensions_mut().insert(permit);
    }
    let response = match held.is_nothing() {
        true => None,
        false => config.response.clone(),
    };
    let inside = Inside::of(held.counted_by());
    let future = service.call(request);
    drop(inside);
    State::Running {
        future,
        held,
        response,
    }
}

impl<S, R, ReqBody, ResBody> Future for CapacityFuture<S, R, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body,
    R: Reject<ResBody>,
{
    type Output = Result<Response<CapacityBody<ResBody>>, S::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        if !matches!(*state, State::Running { .. })
            && let Some(response) = ready!(enter(state.as_mut(), cx))
        {
            return Poll::Ready(Ok(response));
        }
        let StateProjection::Running {
            future,
            held,
            response,
        } = state.project()
        else {
            unreachable!("`enter` leaves the request running or returns its response")
        };
        held.poll_place(cx);
        let inside = Inside::of(held.counted_by());
        let result = ready!(future.poll(cx));
        drop(inside);
        let held = mem::replace(held, Held::NOTHING);
        Poll::Ready(finish(result, held, response.as_deref()))
    }
}

type StateOf<S, R, ReqBody, ResBody> =
    State<S, R, <S as Service<Request<ReqBody>>>::Future, ReqBody, CapacityBody<ResBody>>;

/// Waits until the request runs (`None`) or is refused.
#[cold]
#[inline(never)]
fn enter<S, R, ReqBody, ResBody>(
    mut state: Pin<&mut StateOf<S, R, ReqBody, ResBody>>,
    cx: &mut Context<'_>,
) -> Poll<Option<Response<CapacityBody<ResBody>>>>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body,
    R: Reject<ResBody>,
{
    const POLLED_AGAIN: &str = "`CapacityFuture` polled after completion";
    let running = match state.as_mut().project() {
        StateProjection::Waiting { waiting } => {
            let waiting = waiting.as_mut().project();
            let admitted = ready!(waiting.admit.poll(cx));
            let Inner {
                mut service,
                request,
                apart,
            } = waiting.inner.take().expect(POLLED_AGAIN);
            let config = &**waiting.config;
            match admitted {
                Ok(admission) => {
                    let held = Held::Alone(admission);
                    start(&mut service, request, held, apart, config)
                }
                Err(refused) => {
                    let (parts, _body) = request.into_parts();
                    return Poll::Ready(Some(config.refuse(refused, parts)));
                }
            }
        }
        StateProjection::Refused { response } => {
            return Poll::Ready(Some(response.take().expect(POLLED_AGAIN)));
        }
        StateProjection::Running { .. } => return Poll::Ready(None),
    };
    state.set(running);
    Poll::Ready(None)
}

/// Records how the request ended, and passes the permit on to the body.
#[inline]
fn finish<B: Body, E>(
    result: Result<Response<B>, E>,
    mut held: Held,
    config: Option<&ResponseConfig>,
) -> Result<Response<CapacityBody<B>>, E> {
    let response = match result {
        Ok(response) => response,
        Err(error) => {
            held.complete(Outcome::Dropped);
            return Err(error);
        }
    };
    let (parts, body) = response.into_parts();
    // What a limiter further in refuses says nothing about this one.
    let outcome = if parts.extensions.get::<Shed>().is_some() {
        Outcome::Ignored
    } else {
        match config.and_then(|config| config.classify.as_ref()) {
            Some(classify) => classify(&parts),
            None => by_status(parts.status, &parts.headers),
        }
    };
    held.complete(outcome);
    held.answered(parts.status);
    if config.is_some_and(|config| config.release_on_headers) {
        held = Held::NOTHING;
    }
    Ok(Response::from_parts(parts, CapacityBody::new(body, held)))
}

impl<S, R, ReqBody, ResBody> fmt::Debug for CapacityFuture<S, R, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>>,
    ResBody: Body,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Waiting { .. } => "waiting",
            State::Running { held, .. } if held.is_nothing() => "bypassed",
            State::Running { .. } => "running",
            State::Refused { .. } => "refused",
        };
        f.debug_struct("CapacityFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
