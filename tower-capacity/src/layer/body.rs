use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::upgrade::Held;
use crate::{Outcome, classify::by_grpc_status};

pin_project! {
    /// Body of a response that passed [`Capacity`](crate::Capacity): the inner body with its
    /// permit, or the body of a refusal.
    ///
    /// The permit returns when the body ends, fails or is dropped. Responses that passed a
    /// client's throttle have such a body too, without a permit.
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
        Inner { #[pin] body: B, held: Option<Held>, is_grpc: bool },
        Refusal { data: Option<D> },
    }
}

impl<B: Body> CapacityBody<B> {
    pub(super) const fn new(body: B, held: Option<Held>, is_grpc: bool) -> Self {
        Self {
            kind: Kind::Inner {
                body,
                held,
                is_grpc,
            },
        }
    }

    /// A body without a permit.
    pub(crate) const fn unlimited(body: B) -> Self {
        Self::new(body, None, false)
    }

    pub(crate) const fn refusal(data: B::Data) -> Self {
        Self {
            kind: Kind::Refusal { data: Some(data) },
        }
    }

    pub(crate) const fn empty() -> Self {
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
                Poll::Ready(data.take().map(|data| Ok(Frame::data(data))))
            }
            KindProjection::Inner {
                body,
                held,
                is_grpc,
            } => {
                let frame = ready!(body.poll_frame(cx));
                match &frame {
                    None => *held = None,
                    Some(Err(_)) => {
                        if let Some(mut held) = held.take() {
                            held.complete(Outcome::Dropped);
                        }
                    }
                    Some(Ok(frame)) => {
                        if *is_grpc
                            && let Some(held) = held
                            && let Some(outcome) = frame.trailers_ref().and_then(by_grpc_status)
                        {
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
                let remaining = data.as_ref().map_or(0, bytes::Buf::remaining);
                SizeHint::with_exact(remaining as u64)
            }
        }
    }
}

/// The body of a refusal to nobody in particular: empty, without a permit.
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
                .field("holds_permit", &held.is_some())
                .finish(),
            Kind::Refusal { .. } => f.debug_struct("CapacityBody").finish_non_exhaustive(),
        }
    }
}
