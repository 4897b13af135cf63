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

use super::{CapacityBody, layer::Config, upgrade::Held};
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
        state: State<S, S::Future, ReqBody, CapacityBody<ResBody>>,
        config: Arc<Config<R>>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, F, ReqBody, B> {
        /// In the waiting room, with the inner service that was polled ready.
        Waiting { #[pin] admit: Admit, waiting: Option<(S, Request<ReqBody>)> },
        /// Inside; without a permit if bypassed.
        Running { #[pin] future: F, held: Option<Held> },
        Refused { response: Option<Response<B>> },
    }
}

impl<S, R, ReqBody, ResBody> CapacityFuture<S, R, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>>,
    ResBody: Body,
{
    pub(super) fn bypassed(future: S::Future, config: &Arc<Config<R>>) -> Self {
        Self::new(State::Running { future, held: None }, config)
    }

    pub(super) fn admitted(
        service: &mut S,
        request: Request<ReqBody>,
        admission: Admission,
        config: &Arc<Config<R>>,
    ) -> Self {
        Self::new(start(service, request, admission), config)
    }

    pub(super) fn waiting(
        ready: S,
        request: Request<ReqBody>,
        admit: Admit,
        config: &Arc<Config<R>>,
    ) -> Self {
        let waiting = Some((ready, request));
        Self::new(State::Waiting { admit, waiting }, config)
    }

    pub(super) fn refused(
        response: Response<CapacityBody<ResBody>>,
        config: &Arc<Config<R>>,
    ) -> Self {
        let response = Some(response);
        Self::new(State::Refused { response }, config)
    }

    fn new(
        state: State<S, S::Future, ReqBody, CapacityBody<ResBody>>,
        config: &Arc<Config<R>>,
    ) -> Self {
        Self {
            state,
            config: Arc::clone(config),
        }
    }
}

/// Calls the inner service, which holds its permit from here on.
fn start<S, ReqBody, B>(
    service: &mut S,
    mut request: Request<ReqBody>,
    admission: Admission,
) -> State<S, S::Future, ReqBody, B>
where
    S: Service<Request<ReqBody>>,
{
    let held = Some(Held::new(admission, &mut request));
    State::Running {
        future: service.call(request),
        held,
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
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProjection::Waiting { admit, waiting } => {
                    let admitted = ready!(admit.poll(cx));
                    let (mut service, request) = waiting.take().expect(POLLED_AGAIN);
                    match admitted {
                        Ok(admission) => {
                            this.state.set(start(&mut service, request, admission));
                        }
                        Err(refused) => {
                            return Poll::Ready(Ok(this.config.answer(refused, request)));
                        }
                    }
                }
                StateProjection::Running { future, held } => {
                    let result = ready!(future.poll(cx));
                    return Poll::Ready(finish(result, held.take(), this.config));
                }
                StateProjection::Refused { response } => {
                    return Poll::Ready(Ok(response.take().expect(POLLED_AGAIN)));
                }
            }
        }
    }
}

/// Says how the request ended, and passes the permit on to the body.
fn finish<R, B: Body, E>(
    result: Result<Response<B>, E>,
    mut held: Option<Held>,
    config: &Config<R>,
) -> Result<Response<CapacityBody<B>>, E> {
    let response = match result {
        Ok(response) => response,
        Err(error) => {
            if let Some(held) = &mut held {
                held.complete(Outcome::Dropped);
            }
            return Err(error);
        }
    };
    let (parts, body) = response.into_parts();
    if let Some(held) = &mut held {
        held.complete(config.outcome(&parts));
    }
    if config.release_on_headers {
        held = None;
    }
    let body = CapacityBody::new(body, held, is_grpc(&parts.headers));
    Ok(Response::from_parts(parts, body))
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
