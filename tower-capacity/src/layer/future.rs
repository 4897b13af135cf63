use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    CapacityBody, UpgradePermit,
    layer::{Config, ResponseConfig},
    upgrade::{Held, asks_for_upgrade},
};
use crate::{Admission, Admit, Outcome, classify::by_status, reject::Reject};

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
        /// In the waiting room. Apart, so that a request that need not wait does not move the
        /// place for one.
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
    upgrade: Option<UpgradePermit>,
}

impl<S, R, ReqBody, ResBody> CapacityFuture<S, R, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>>,
    ResBody: Body,
{
    pub(super) const fn bypassed(future: S::Future) -> Self {
        Self::running(future, Held::NOTHING, None)
    }

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
        admission: Admission,
        upgrade: Option<UpgradePermit>,
        config: &Config<R>,
    ) -> Self {
        Self {
            state: start(service, request, admission, upgrade, config),
        }
    }

    pub(super) fn waiting(
        service: S,
        request: Request<ReqBody>,
        admit: Admit,
        upgrade: Option<UpgradePermit>,
        config: Arc<Config<R>>,
    ) -> Self {
        let waiting = Box::pin(Waiting {
            admit,
            inner: Some(Inner {
                service,
                request,
                upgrade,
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
    admission: Admission,
    upgrade: Option<UpgradePermit>,
    config: &Config<R>,
) -> State<S, R, S::Future, ReqBody, B>
where
    S: Service<Request<ReqBody>>,
{
    let held = if upgrade.is_some() || asks_for_upgrade(&request) {
        Held::shared(admission, upgrade, &mut request)
    } else {
        Held::Alone(admission)
    };
    State::Running {
        future: service.call(request),
        held,
        response: config.response.clone(),
    }
}

impl<S, R, ReqBody, ResBody> Future for CapacityFuture<S, R, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body,
    R: Reject<ResBody>,
{
    type Output = Result<Response<CapacityBody<ResBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const POLLED_AGAIN: &str = "`CapacityFuture` polled after it had answered";
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProjection::Waiting { waiting } => {
                    let waiting = waiting.as_mut().project();
                    let admitted = ready!(waiting.admit.poll(cx));
                    let Inner {
                        mut service,
                        request,
                        upgrade,
                    } = waiting.inner.take().expect(POLLED_AGAIN);
                    let config = &**waiting.config;
                    match admitted {
                        Ok(admission) => {
                            let running = start(&mut service, request, admission, upgrade, config);
                            state.set(running);
                        }
                        Err(refused) => return Poll::Ready(Ok(config.answer(refused, request))),
                    }
                }
                StateProjection::Running {
                    future,
                    held,
                    response,
                } => {
                    let result = ready!(future.poll(cx));
                    let held = mem::replace(held, Held::NOTHING);
                    return Poll::Ready(finish(result, held, response.as_deref()));
                }
                StateProjection::Refused { response } => {
                    return Poll::Ready(Ok(response.take().expect(POLLED_AGAIN)));
                }
            }
        }
    }
}

/// Says how the request ended, and passes the permit on to the body.
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
    let Some(config) = config else {
        held.complete(by_status(response.status(), response.headers()));
        held.answered(response.status());
        return Ok(response.map(|body| CapacityBody::new(body, held)));
    };
    let (parts, body) = response.into_parts();
    held.complete(match &config.classify {
        Some(classify) => classify(&parts),
        None => by_status(parts.status, &parts.headers),
    });
    held.answered(parts.status);
    if config.release_on_headers {
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
