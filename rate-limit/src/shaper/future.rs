use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_service::Service;

use super::{
    ShapedBody, ShapedError, Shaper,
    layer::Settings,
    ticket::{Permit, Ticket},
};
use crate::{ResponseHead, key::RequestHead};

pin_project! {
    /// The response future of [`Shaped`](super::Shaped).
    ///
    /// # Cancel safety
    ///
    /// Dropping it while it waits gives up its place and costs nothing. Dropping it once the
    /// request was sent frees the place; the cells are spent.
    pub struct ShapedFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        call: Call<S, Request<B>>,
        settings: Arc<Settings>,
    }
}

pin_project! {
    /// A request of any kind on its way through the queue and the service.
    pub(super) struct Call<S, R>
    where
        S: Service<R>,
    {
        #[pin]
        state: State<S, R>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, R>
    where
        S: Service<R>,
    {
        Arriving { call: Option<(S, R)> },
        Waiting { ticket: Ticket, #[pin] sleep: Sleep, call: Option<(S, R)> },
        Calling { #[pin] future: S::Future, permit: Option<Permit> },
    }
}

/// What comes of a request: its response, and the right to be under way, once.
type Outcome<T, E> = Result<(T, Option<Permit>), ShapedError<E>>;

impl<S: Service<R>, R> Call<S, R> {
    pub(super) fn new(inner: S, request: R) -> Self {
        Self {
            state: State::Arriving {
                call: Some((inner, request)),
            },
        }
    }

    /// Waits for its turn and calls the service. `price` says what the request costs and how long
    /// it may wait.
    pub(super) fn poll_response(
        self: Pin<&mut Self>,
        shaper: &Shaper,
        price: impl Fn(&R) -> (u64, Option<Duration>),
        cx: &mut Context<'_>,
    ) -> Poll<Outcome<S::Response, S::Error>> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                // Not before it is polled: one that is made and put aside must not block the line.
                StateProj::Arriving { call } => {
                    // Taken once: the state changes below, or the future is done.
                    let (inner, request) = call.take().expect("polled after completion");
                    let (cells, patience) = price(&request);
                    let ticket = match shaper.join(cells, patience) {
                        Ok(ticket) => ticket,
                        Err(refused) => return Poll::Ready(Err(ShapedError::Refused(refused))),
                    };
                    let sleep = ticket.sleep();
                    state.set(State::Waiting {
                        ticket,
                        sleep,
                        call: Some((inner, request)),
                    });
                }
                StateProj::Waiting {
                    ticket,
                    sleep,
                    call,
                } => {
                    let permit = match ready!(ticket.poll_turn(sleep, cx)) {
                        Ok(permit) => permit,
                        Err(refused) => return Poll::Ready(Err(ShapedError::Refused(refused))),
                    };
                    // Taken once: the state changes below.
                    let (mut inner, request) = call.take().expect("polled after completion");
                    let future = inner.call(request);
                    state.set(State::Calling {
                        future,
                        permit: Some(permit),
                    });
                }
                StateProj::Calling { future, permit } => {
                    let outcome = ready!(future.poll(cx));
                    let permit = permit.take();
                    return Poll::Ready(match outcome {
                        Ok(response) => Ok((response, permit)),
                        Err(error) => Err(ShapedError::Inner(error)),
                    });
                }
            }
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self.state {
            State::Arriving { .. } => "arriving",
            State::Waiting { .. } => "waiting",
            State::Calling { .. } => "calling",
        }
    }
}

impl<S: Service<Request<B>>, B> ShapedFuture<S, B> {
    pub(super) fn new(inner: S, request: Request<B>, settings: Arc<Settings>) -> Self {
        Self {
            call: Call::new(inner, request),
            settings,
        }
    }
}

impl<S, B, ResBody> Future for ShapedFuture<S, B>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
{
    type Output = Result<Response<ShapedBody<ResBody>>, ShapedError<S::Error>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let settings = &**this.settings;
        let price = |request: &Request<B>| settings.of(&RequestHead::of(request));
        let outcome = ready!(this.call.poll_response(&settings.shaper, price, cx));
        let (response, permit) = outcome?;
        let (parts, body) = response.into_parts();
        let head = ResponseHead::new(&parts);
        if let Some(permit) = &permit {
            permit.heed(head.status(), head.headers());
        }
        if let Some(wait) = settings.feedback.as_ref().and_then(|own| own(&head)) {
            settings.shaper.pause(wait);
        }
        let body = ShapedBody::new(body, permit);
        Poll::Ready(Ok(Response::from_parts(parts, body)))
    }
}

impl<S: Service<Request<B>>, B> fmt::Debug for ShapedFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ShapedFuture")
            .field(&self.call.name())
            .finish()
    }
}
