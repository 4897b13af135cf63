use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::held::Held;
use crate::{Outcome, classify::by_grpc_status};

pin_project! {
    /// Body of a response that passed [`Capacity`](crate::Capacity): the inner body with its
    /// permit, or the body of a refusal.
    ///
    /// The permit returns when the body ends, fails or is dropped. Responses that passed a
    /// client's throttle have such a body too, without a permit. A [`Reject`](crate::Reject) of
    /// your own makes one with [`unlimited`](Self::unlimited) or [`empty`](Self::empty).
    pub struct CapacityBody<B>
    where
        B: Body,
    {
        #[pin]
        kind: Kind<B, B::Data>,
    }
}

pin_project! {
    #[project = KindProjection]
    enum Kind<B, D> {
        Inner { #[pin] body: B, held: Held },
        // A function, since data would make every body as large as that of a refusal.
        Refusal { data: Option<fn() -> D> },
    }
}

impl<B: Body> CapacityBody<B> {
    pub(super) const fn new(body: B, held: Held) -> Self {
        Self {
            kind: Kind::Inner { body, held },
        }
    }

    /// A body without a permit.
    #[must_use]
    pub const fn unlimited(body: B) -> Self {
        Self::new(body, Held::NOTHING)
    }

    pub(crate) const fn refusal(data: fn() -> B::Data) -> Self {
        Self {
            kind: Kind::Refusal { data: Some(data) },
        }
    }

    /// A body without data and without a permit.
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            kind: Kind::Refusal { data: None },
        }
    }
}

impl<B: Body> Body for CapacityBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.project().kind.project() {
            KindProjection::Refusal { data } => {
                Poll::Ready(data.take().map(|data| Ok(Frame::data(data()))))
            }
            KindProjection::Inner { body, held } => {
                let frame = ready!(body.poll_frame(cx));
                match &frame {
                    None => *held = Held::NOTHING,
                    Some(Err(_)) => {
                        held.complete(Outcome::Dropped);
                        *held = Held::NOTHING;
                    }
                    Some(Ok(frame)) => {
                        if let Some(outcome) = frame.trailers_ref().and_then(by_grpc_status) {
                            held.complete(outcome);
                        }
                    }
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inner { body, .. } => body.is_end_stream(),
            Kind::Refusal { data } => data.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inner { body, .. } => body.size_hint(),
            Kind::Refusal { data } => {
                let remaining = data.map_or(0, |data| data().remaining());
                SizeHint::with_exact(remaining as u64)
            }
        }
    }
}

/// Without data and without a permit.
impl<B: Body> Default for CapacityBody<B> {
    fn default() -> Self {
        Self::empty()
    }
}

impl<B: Body + fmt::Debug> fmt::Debug for CapacityBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Inner { body, held, .. } => f
                .debug_struct("CapacityBody")
                .field("body", body)
                .field("holds_permit", &!held.is_nothing())
                .finish(),
            Kind::Refusal { .. } => f.debug_struct("CapacityBody").finish_non_exhaustive(),
        }
    }
}
