use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_service::Service;

use super::{
    ShapedBody, ShapedError,
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
        state: State<S, B>,
        settings: Arc<Settings>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B>
    where
        S: Service<Request<B>>,
    {
        Arriving { call: Option<(S, Request<B>)> },
        Waiting { ticket: Ticket, #[pin] sleep: Sleep, call: Option<(S, Request<B>)> },
        Calling { #[pin] future: S::Future, turn: Option<Permit> },
    }
}

impl<S: Service<Request<B>>, B> ShapedFuture<S, B> {
    pub(super) fn new(inner: S, request: Request<B>, settings: Arc<Settings>) -> Self {
        Self {
            state: State::Arriving {
                call: Some((inner, request)),
            },
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
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                // Not before it is polled: one that is made and put aside must not block the line.
                StateProj::Arriving { call } => {
                    // Taken once: the state changes below, or the future is done.
                    let (inner, request) = call.take().expect("polled after completion");
                    let (cells, patience) = this.settings.of(&RequestHead::of(&request));
                    let ticket = match this.settings.shaper.join(cells, patience) {
                        Ok(ticket) => ticket,
                        Err(refused) => return Poll::Ready(Err(ShapedError::Refused(refused))),
                    };
                    let sleep = ticket.sleep();
                    this.state.set(State::Waiting {
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
                    let turn = match ready!(ticket.poll_turn(sleep, cx)) {
                        Ok(turn) => turn,
                        Err(refused) => return Poll::Ready(Err(ShapedError::Refused(refused))),
                    };
                    // Taken once: the state changes below.
                    let (mut inner, request) = call.take().expect("polled after completion");
                    let future = inner.call(request);
                    this.state.set(State::Calling {
                        future,
                        turn: Some(turn),
                    });
                }
                StateProj::Calling { future, turn } => {
                    let outcome = ready!(future.poll(cx));
                    let turn = turn.take();
                    let (parts, body) = outcome.map_err(ShapedError::Inner)?.into_parts();
                    if let Some(turn) = &turn {
                        let head = ResponseHead::new(&parts);
                        turn.heed(head.status(), head.headers());
                        if let Some(own) =
                            this.settings.feedback.as_ref().and_then(|own| own(&head))
                        {
                            turn.shaper().pause(own);
                        }
                    }
                    return Poll::Ready(Ok(Response::from_parts(
                        parts,
                        ShapedBody::new(body, turn),
                    )));
                }
            }
        }
    }
}

impl<S: Service<Request<B>>, B> fmt::Debug for ShapedFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Arriving { .. } => "arriving",
            State::Waiting { .. } => "waiting",
            State::Calling { .. } => "calling",
        };
        f.debug_tuple("ShapedFuture").field(&state).finish()
    }
}
