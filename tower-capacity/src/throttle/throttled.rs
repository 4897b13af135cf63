use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, request};
use http_body::Body;

use crate::{
    classify::is_grpc,
    layer::CapacityBody,
    reject::{DefaultReject, Reject, reject_grpc, reject_http},
};

/// Marks an answer to a request that this client refused itself; its value is the reason.
///
/// In a gRPC answer it is part of the status's metadata. An answer of the backend never has it, as
/// long as nobody forwards such answers.
pub const THROTTLED_HEADER: HeaderName = HeaderName::from_static("x-throttled");

/// Why a request was not sent, and the numbers at that moment.
///
/// It is in the extensions of the answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throttled {
    reason: ThrottledReason,
    retry_after: Duration,
    probability: f64,
    requests: u64,
    accepts: u64,
}

impl Throttled {
    pub(super) const fn new(
        reason: ThrottledReason,
        retry_after: Duration,
        probability: f64,
        requests: u64,
        accepts: u64,
    ) -> Self {
        Self {
            reason,
            retry_after,
            probability,
            requests,
            accepts,
        }
    }

    /// Why.
    #[must_use]
    pub const fn reason(&self) -> ThrottledReason {
        self.reason
    }

    /// When to ask again: what is left of a pause, else one second.
    #[must_use]
    pub const fn retry_after(&self) -> Duration {
        self.retry_after
    }

    /// Probability with which requests were refused.
    #[must_use]
    pub const fn probability(&self) -> f64 {
        self.probability
    }

    /// Requests in the window.
    #[must_use]
    pub const fn requests(&self) -> u64 {
        self.requests
    }

    /// Requests in the window that the backend accepted.
    #[must_use]
    pub const fn accepts(&self) -> u64 {
        self.accepts
    }
}

impl fmt::Display for Throttled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            ThrottledReason::Adaptive => write!(
                f,
                "the backend accepted {} of {} requests",
                self.accepts, self.requests
            ),
            ThrottledReason::Paused => write!(
                f,
                "the backend asked to be left alone for another {:?}",
                self.retry_after
            ),
        }
    }
}

impl std::error::Error for Throttled {}

/// Why a request was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ThrottledReason {
    /// The backend rejects too much of what it is sent.
    Adaptive,
    /// The backend has asked not to be sent anything.
    Paused,
}

impl ThrottledReason {
    /// The reason as it stands in metrics, events and [`THROTTLED_HEADER`].
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::Paused => "paused",
        }
    }
}

impl fmt::Display for ThrottledReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Answers as a server that sheds, for requests that were not even sent.
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
            let message = match throttled.reason {
                ThrottledReason::Adaptive => "not sent: the backend rejects requests",
                ThrottledReason::Paused => "not sent: the backend asked for a pause",
            };
            reject_grpc(request, "14", message, HeaderValue::from_static("-1"))
        } else {
            reject_http(throttled.retry_after, || HTTP_BODY.into())
        }
    }
}

const HTTP_BODY: Bytes = Bytes::from_static(b"not sent: the backend is overloaded\n");
