use std::time::Duration;

use http::{HeaderMap, Response, StatusCode, response};

use super::{
    Throttled,
    retry_after::{pushback, retry_after},
};
use crate::grpc::is_grpc;

/// What a response says about whether the backend accepted the request.
///
/// For a [`ThrottleLayer`](super::ThrottleLayer) and for retry policies; see [`of`](Self::of).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// It was accepted, however it ended.
    Accepted,
    /// The backend had no capacity for it.
    Rejected(RetryAdvice),
    /// The caller, or the key that the backend counts it under, has used up a quota. This says
    /// nothing about what the backend has capacity for.
    Limited(RetryAdvice),
}

/// What a backend that refuses a request says about trying *that request* again (RFC 9110 §10.2.3,
/// gRFC A6). It says nothing about other requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetryAdvice {
    /// Nothing.
    Untold,
    /// Not before this time has passed, at most [`LONGEST`](Self::LONGEST).
    After(Duration),
    /// Not at all, or later than a caller can wait.
    Never,
}

impl RetryAdvice {
    /// The longest wait that is passed on: one minute. Longer ones become
    /// [`Never`](Self::Never), so that no backend can keep a retry policy waiting for hours.
    pub const LONGEST: Duration = Duration::from_secs(60);

    /// What `Retry-After` says.
    fn from_retry_after(headers: &HeaderMap) -> Self {
        retry_after(headers).map_or(Self::Untold, Self::after)
    }

    /// What gRPC's pushback says.
    fn from_pushback(headers: &HeaderMap) -> Self {
        match pushback(headers) {
            None => Self::Untold,
            Some(wait) => wait.map_or(Self::Never, Self::after),
        }
    }

    fn after(wait: Duration) -> Self {
        if wait > Self::LONGEST {
            return Self::Never;
        }
        Self::After(wait)
    }
}

impl Answer {
    /// Reads a response.
    ///
    /// | response | answer |
    /// |---|---|
    /// | 503 | rejected |
    /// | 502, 504 | rejected: a gateway that cannot reach the backend |
    /// | 429 | limited |
    /// | gRPC, trailers-only, status 8 (`RESOURCE_EXHAUSTED`) with a `google.rpc.QuotaFailure` in its details | limited |
    /// | gRPC, trailers-only, status 8 otherwise, or 14 (`UNAVAILABLE`) | rejected |
    /// | any that this client made itself ([`Throttled`]) | rejected, never to be retried |
    /// | anything else | accepted |
    ///
    /// The advice of a refusal is in `Retry-After` (RFC 9110 §10.2.3: seconds, or a date, which
    /// is compared with the response's own `Date`), and in gRPC in `grpc-retry-pushback-ms`
    /// (gRFC A6: negative or unreadable means never).
    ///
    /// A gRPC response with headers before its status was accepted: gRFC A6 calls such a call
    /// committed.
    #[must_use]
    pub fn of<B>(response: &Response<B>) -> Self {
        let own = response.extensions().get::<Throttled>();
        Self::read(response.status(), response.headers(), own)
    }

    /// Reads the head of a response, like [`of`](Self::of).
    #[must_use]
    pub fn of_parts(parts: &response::Parts) -> Self {
        let own = parts.extensions.get::<Throttled>();
        Self::read(parts.status, &parts.headers, own)
    }

    /// What a retry policy has to know: the advice of a refusal, `None` if there is nothing to
    /// retry.
    #[must_use]
    pub const fn advice(self) -> Option<RetryAdvice> {
        match self {
            Self::Accepted => None,
            Self::Rejected(advice) | Self::Limited(advice) => Some(advice),
        }
    }

    fn read(status: StatusCode, headers: &HeaderMap, own: Option<&Throttled>) -> Self {
        if own.is_some() {
            return Self::Rejected(RetryAdvice::Never);
        }
        if is_grpc(headers) {
            return match headers.get("grpc-status").map(|status| status.as_bytes()) {
                Some(b"8") if is_quota_failure(headers) => {
                    Self::Limited(RetryAdvice::from_pushback(headers))
                }
                Some(b"8" | b"14") => Self::Rejected(RetryAdvice::from_pushback(headers)),
                _ => Self::Accepted,
            };
        }
        match status {
            StatusCode::TOO_MANY_REQUESTS => Self::Limited(RetryAdvice::from_retry_after(headers)),
            StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Self::Rejected(RetryAdvice::from_retry_after(headers)),
            _ => Self::Accepted,
        }
    }
}

/// Whether the details of a gRPC status, a base64-encoded `google.rpc.Status`, hold a
/// `google.rpc.QuotaFailure`. The name of the type stands in them as it is.
fn is_quota_failure(headers: &HeaderMap) -> bool {
    const TYPE: &[u8] = b"google.rpc.QuotaFailure";
    headers.get("grpc-status-details-bin").is_some_and(|value| {
        let details = from_base64(value.as_bytes());
        details.windows(TYPE.len()).any(|name| name == TYPE)
    })
}

/// Decodes up to the first byte that is not of the alphabet, such as padding.
fn from_base64(text: &[u8]) -> Vec<u8> {
    let digit = |byte: &u8| {
        Some(u32::from(match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        }))
    };
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut filled) = (0_u32, 0);
    for six in text.iter().map_while(digit) {
        bits = bits << 6 | six;
        filled += 6;
        if filled >= 8 {
            filled -= 8;
            decoded.push((bits >> filled) as u8);
        }
    }
    decoded
}
