use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use pin_project_lite::pin_project;

use super::{RateLimitBody, service::Extras};
use crate::policy::ResponseHead;

pin_project! {
    /// The response future of [`RateLimit`](crate::RateLimit).
    ///
    /// # Cancel safety
    ///
    /// Dropping it before it is ready gives back what policies with
    /// [`settle`](crate::Policy::settle) have charged, and the count in flight. What other policies
    /// have charged stays charged.
    pub struct RateLimitFuture<F, B> {
        #[pin]
        state: State<F, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, B> {
        Admitted { #[pin] future: F, extras: Option<Box<Extras>> },
        Refused { response: Option<Response<RateLimitBody<B>>> },
    }
}

impl<F, B> RateLimitFuture<F, B> {
    pub(super) fn admitted(future: F, extras: Option<Box<Extras>>) -> Self {
        Self {
            state: State::Admitted { future, extras },
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
            StateProj::Admitted { future, extras } => {
                let outcome = ready!(future.poll(cx));
                // Without a response there is nothing to settle by: a reservation goes back, as
                // it does when this future is dropped.
                let extras = extras.take();
                Poll::Ready(outcome.map(|response| match extras {
                    None => response.map(RateLimitBody::inner),
                    Some(extras) => finish(response, extras),
                }))
            }
            StateProj::Refused { response } => Poll::Ready(Ok(response
                .take()
                .expect("RateLimitFuture polled after completion"))),
        }
    }
}

/// Kept apart, so that the many without extras are not moved around for them.
#[inline(never)]
fn finish<B>(response: Response<B>, extras: Box<Extras>) -> Response<RateLimitBody<B>> {
    let Extras {
        receipt,
        inflight,
        stamp,
        stamp_redirects,
    } = *extras;
    let (mut parts, body) = response.into_parts();
    if let Some(receipt) = receipt {
        receipt.settle(&ResponseHead::new(&parts));
    }
    if let Some(stamp) = stamp
        && (stamp_redirects || !parts.status.is_redirection())
    {
        for (name, value) in &stamp.headers {
            parts.headers.append(name, value.clone());
        }
    }
    Response::from_parts(parts, RateLimitBody::admitted(body, inflight))
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
