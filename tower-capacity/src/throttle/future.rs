use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use super::{Answer, Attempt, layer::Classify};
use crate::layer::CapacityBody;

pin_project! {
    /// Future of [`Throttle`](super::Throttle).
    ///
    /// # Cancel safety
    ///
    /// Dropping it before the response cancels the inner call; the request counts as not accepted
    /// (see [`Attempt`]).
    #[must_use = "futures do nothing unless polled"]
    pub struct ThrottleFuture<F, B>
    where
        B: Body,
    {
        #[pin]
        state: State<F, CapacityBody<B>>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, B> {
        /// On its way; without an attempt if bypassed.
        Sent { #[pin] future: F, attempt: Option<Attempt>, classify: Option<Arc<Classify>> },
        Refused { response: Option<Response<B>> },
    }
}

impl<F, B: Body> ThrottleFuture<F, B> {
    pub(super) const fn sent(
        future: F,
        attempt: Option<Attempt>,
        classify: Option<Arc<Classify>>,
    ) -> Self {
        Self {
            state: State::Sent {
                future,
                attempt,
                classify,
            },
        }
    }

    pub(super) const fn refused(response: Response<CapacityBody<B>>) -> Self {
        Self {
            state: State::Refused {
                response: Some(response),
            },
        }
    }
}

impl<F, B, E> Future for ThrottleFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<CapacityBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Refused { response } => {
                let response = response.take();
                Poll::Ready(Ok(
                    response.expect("`ThrottleFuture` polled after completion")
                ))
            }
            StateProjection::Sent {
                future,
                attempt,
                classify,
            } => {
                // Dropped with an error, the attempt counts as not accepted.
                let result = ready!(future.poll(cx));
                let attempt = attempt.take();
                let mut response = result?;
                if let Some(attempt) = attempt {
                    let answer;
                    (response, answer) = read(response, classify.as_deref());
                    attempt.answered(answer);
                }
                Poll::Ready(Ok(response.map(CapacityBody::unlimited)))
            }
        }
    }
}

fn read<B>(response: Response<B>, classify: Option<&Classify>) -> (Response<B>, Answer) {
    let Some(classify) = classify else {
        let answer = Answer::of(&response);
        return (response, answer);
    };
    let (parts, body) = response.into_parts();
    let answer = classify(&parts);
    (Response::from_parts(parts, body), answer)
}

impl<F, B: Body> fmt::Debug for ThrottleFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Sent {
                attempt: Some(_), ..
            } => "sent",
            State::Sent { attempt: None, .. } => "bypassed",
            State::Refused { .. } => "refused",
        };
        f.debug_struct("ThrottleFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
