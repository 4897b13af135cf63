use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::Permit;

pin_project! {
    /// The response body of [`Shaped`](super::Shaped): the request is under way until it ends or
    /// is dropped.
    pub struct ShapedBody<B> {
        #[pin]
        body: B,
        turn: Option<Permit>,
    }
}

impl<B> ShapedBody<B> {
    pub(super) fn new(body: B, turn: Option<Permit>) -> Self {
        Self { body, turn }
    }
}

/// A body for which no permit is held.
impl<B: Default> Default for ShapedBody<B> {
    fn default() -> Self {
        Self::new(B::default(), None)
    }
}

impl<B: Body> Body for ShapedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            *this.turn = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> std::fmt::Debug for ShapedBody<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShapedBody")
            .field("under_way", &self.turn.is_some())
            .finish_non_exhaustive()
    }
}
