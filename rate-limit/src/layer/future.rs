use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use pin_project_lite::pin_project;

use super::RateLimitBody;

pin_project! {
    /// The response future of [`RateLimit`](crate::RateLimit).
    pub struct RateLimitFuture<F, B> {
        #[pin]
        state: State<F, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, B> {
        Admitted { #[pin] future: F },
        Refused { response: Option<Response<RateLimitBody<B>>> },
    }
}

impl<F, B> RateLimitFuture<F, B> {
    pub(super) fn admitted(future: F) -> Self {
        Self {
            state: State::Admitted { future },
        }
    }

    pub(super) fn refused(response: Response<RateLimitBody<B>>) -> Self {
        Self {
            state: State::Refused {
                response: Some(response),
            },
        }
    }
}

impl<F, B, E> Future for RateLimitFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<RateLimitBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Admitted { future } => {
                let response = ready!(future.poll(cx))?;
                Poll::Ready(Ok(response.map(RateLimitBody::inner)))
            }
            StateProj::Refused { response } => Poll::Ready(Ok(response
                .take()
                .expect("RateLimitFuture polled after completion"))),
        }
    }
}

impl<F, B> std::fmt::Debug for RateLimitFuture<F, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match self.state {
            State::Admitted { .. } => "admitted",
            State::Refused { .. } => "refused",
        };
        f.debug_tuple("RateLimitFuture").field(&state).finish()
    }
}
