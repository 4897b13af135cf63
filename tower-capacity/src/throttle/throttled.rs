use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, request};
use http_body::Body;

use crate::{
    grpc::is_grpc,
    layer::CapacityBody,
    reject::{DefaultReject, Reject, reject_grpc, reject_http},
};

/// Marks the response to a request that this client did not send; its value is `adaptive`.
///
/// In a gRPC response it is part of the status's metadata. A response of the backend has it only if
/// a backend forwards such responses.
pub const THROTTLED_HEADER: HeaderName = HeaderName::from_static("x-throttled");

/// Why a request was not sent: the backend has accepted nothing for a while.
///
/// It is in the extensions of the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttled {
    rejections: u64,
    lasts: Duration,
    retry_after: Duration,
}

impl Throttled {
    pub(super) const fn new(rejections: u64, lasts: Duration, retry_after: Duration) -> Self {
        Self {
            rejections,
            lasts,
            retry_after,
        }
    }

    /// Requests of this kind that the backend has rejected since it last accepted one.
    #[must_use]
    pub const fn rejections(&self) -> u64 {
        self.rejections
    }

    /// How long it has accepted none.
    #[must_use]
    pub const fn lasts(&self) -> Duration {
        self.lasts
    }

    /// When to ask again.
    #[must_use]
    pub const fn retry_after(&self) -> Duration {
        self.retry_after
    }
}

impl fmt::Display for Throttled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the backend accepted none of {} requests in {:?}",
            self.rejections, self.lasts
        )
    }
}

impl std::error::Error for Throttled {}

/// Responds like a server that is not available, to requests that were not sent.
///
/// - HTTP: `503 Service Unavailable`, `Retry-After` in whole seconds, rounded up, and one line of
///   text.
/// - gRPC: trailers-only, `grpc-status` 14 (`UNAVAILABLE`), as from gRPC's own throttlers, and
///   `grpc-retry-pushback-ms: -1`: do not retry.
impl<B> Reject<B, Throttled> for DefaultReject
where
    B: Body,
    B::Data: From<Bytes>,
{
    fn reject(&self, throttled: &Throttled, request: &request::Parts) -> Response<CapacityBody<B>> {
        if is_grpc(&request.headers) {
            let message = "not sent: the backend rejects requests";
            reject_grpc(request, "14", message, HeaderValue::from_static("-1"))
        } else {
            reject_http(throttled.retry_after, || HTTP_BODY.into())
        }
    }
}

const HTTP_BODY: Bytes = Bytes::from_static(b"not sent: the backend is overloaded\n");
