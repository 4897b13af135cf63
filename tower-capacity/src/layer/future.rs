use std::{
    fmt,
    future::Future,
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
    upgrade::Held,
};
use crate::{Admission, Admit, Outcome, classify::is_grpc, reject::Reject};

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
        /// In the waiting room.
        Waiting { #[pin] admit: Admit, waiting: Option<Waiting<S, R, ReqBody>> },
        /// Inside; without a permit if bypassed.
        Running { #[pin] future: F, held: Option<Held>, response: ResponseConfig },
        Refused { response: Option<Response<B>> },
    }
}

/// What a request that waits needs once it is admitted or refused.
struct Waiting<S, R, ReqBody> {
    /// The inner service that was polled ready.
    service: S,
    request: Request<ReqBody>,
    upgrade: Option<UpgradePermit>,
    config: Arc<Config<R>>,
}

impl<S, R, ReqBody, ResBody> CapacityFuture<S, R, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>>,
    ResBody: Body,
{
    pub(super) const fn bypassed(future: S::Future) -> Self {
        Self {
            state: State::Running {
                future,
                held: None,
                response: ResponseConfig::bypassed(),
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

    pub(super) const fn waiting(
        service: S,
        request: Request<ReqBody>,
        admit: Admit,
        upgrade: Option<UpgradePermit>,
        config: Arc<Config<R>>,
    ) -> Self {
        let waiting = Some(Waiting {
            service,
            request,
            upgrade,
            config,
        });
        Self {
            state: State::Waiting { admit, waiting },
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
    let held = Some(Held::new(admission, upgrade, &mut request));
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
                StateProjection::Waiting { admit, waiting } => {
                    let admitted = ready!(admit.poll(cx));
                    let Waiting {
                        mut service,
                        request,
                        upgrade,
                        config,
                    } = waiting.take().expect(POLLED_AGAIN);
                    match admitted {
                        Ok(admission) => {
                            state.set(start(&mut service, request, admission, upgrade, &config));
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
                    return Poll::Ready(finish(result, held.take(), response));
                }
                StateProjection::Refused { response } => {
                    return Poll::Ready(Ok(response.take().expect(POLLED_AGAIN)));
                }
            }
        }
    }
}

/// Says how the request ended, and passes the permit on to the body.
fn finish<B: Body, E>(
    result: Result<Response<B>, E>,
    held: Option<Held>,
    config: &ResponseConfig,
) -> Result<Response<CapacityBody<B>>, E> {
    let Some(mut held) = held else {
        return result.map(|response| response.map(CapacityBody::unlimited));
    };
    let mut response = match result {
        Ok(response) => response,
        Err(error) => {
            held.complete(Outcome::Dropped);
            return Err(error);
        }
    };
    let outcome;
    (response, outcome) = config.outcome(response);
    held.complete(outcome);
    held.answered(response.status());
    let held = (!config.release_on_headers).then_some(held);
    let is_grpc = is_grpc(response.headers());
    Ok(response.map(|body| CapacityBody::new(body, held, is_grpc)))
}

impl<S, R, ReqBody, ResBody> fmt::Debug for CapacityFuture<S, R, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>>,
    ResBody: Body,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Waiting { .. } => "waiting",
            State::Running { held: Some(_), .. } => "running",
            State::Running { held: None, .. } => "bypassed",
            State::Refused { .. } => "refused",
        };
        f.debug_struct("CapacityFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
