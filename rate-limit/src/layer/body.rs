use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::future::Held;

pin_project! {
    /// The response body of [`RateLimit`](crate::RateLimit): the inner service's, or a refusal.
    ///
    /// A type of its own so that a refusal needs nothing of the inner body type, neither a
    /// conversion nor an allocation.
    pub struct RateLimitBody<B> {
        #[pin]
        state: State<B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<B> {
        Inner { #[pin] body: B, held: Option<Held> },
        Refusal { bytes: Option<Bytes> },
    }
}

impl<B> RateLimitBody<B> {
    /// A body that passes as it is, for an [`Answer`](crate::answer::Answer) of your own.
    #[must_use]
    #[inline]
    pub fn inner(body: B) -> Self {
        Self::admitted(body, None)
    }

    /// The body of the inner service's response; keeps `held` until it ends.
    #[inline]
    pub(super) fn admitted(body: B, held: Option<Held>) -> Self {
        Self {
            state: State::Inner { body, held },
        }
    }

    /// The body of a standard refusal.
    #[must_use]
    pub fn refusal(bytes: Bytes) -> Self {
        let bytes = (!bytes.is_empty()).then_some(bytes);
        Self {
            state: State::Refusal { bytes },
        }
    }
}

/// The default body of the inner service, for layers further out that respond themselves, such as those
/// of tower-http for CORS and timeouts.
impl<B: Default> Default for RateLimitBody<B> {
    fn default() -> Self {
        Self::inner(B::default())
    }
}

impl<B> Body for RateLimitBody<B>
where
    B: Body,
    B::Data: From<Bytes>,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.project().state.project() {
            StateProj::Inner { body, held } => {
                let frame = ready!(body.poll_frame(cx));
                match &frame {
                    Some(Ok(frame)) => {
                        if let (Some(held), Some(trailers)) = (held, frame.trailers_ref()) {
                            held.trailers(trailers);
                        }
                    }
                    _ => *held = None,
                }
                Poll::Ready(frame)
            }
            StateProj::Refusal { bytes } => {
                Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes.into()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Inner { body, .. } => body.is_end_stream(),
            State::Refusal { bytes } => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Inner { body, .. } => body.size_hint(),
            State::Refusal { bytes } => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
        }
    }
}

impl<B> std::fmt::Debug for RateLimitBody<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match self.state {
            State::Inner { .. } => "inner",
            State::Refusal { .. } => "refusal",
        };
        f.debug_tuple("RateLimitBody").field(&state).finish()
    }
}
