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

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &str)]) -> Answer {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let response = response.body(()).unwrap();
        let answer = Answer::of(&response);
        assert_eq!(answer, Answer::of_parts(&response.into_parts().0));
        answer
    }

    fn after(millis: u64) -> Answer {
        Answer::Rejected(RetryAdvice::After(Duration::from_millis(millis)))
    }

    const UNTOLD: Answer = Answer::Rejected(RetryAdvice::Untold);
    const NEVER: Answer = Answer::Rejected(RetryAdvice::Never);

    #[test]
    fn only_refusals_for_lack_of_capacity_are_rejections() {
        for status in [200, 304, 400, 404, 408, 500, 501] {
            assert_eq!(answer(status, &[("retry-after", "5")]), Answer::Accepted);
        }
        for status in [502, 503, 504] {
            assert_eq!(answer(status, &[]), UNTOLD, "{status}");
        }
        assert_eq!(answer(429, &[]), Answer::Limited(RetryAdvice::Untold));
    }

    #[test]
    fn retry_after_is_read_in_seconds_and_as_a_date() {
        let told = |value| answer(503, &[("retry-after", value)]);
        assert_eq!(told("7"), after(7_000));
        assert_eq!(told(" 7 "), after(7_000));
        assert_eq!(told("0"), after(0));
        assert_eq!(told("-7"), UNTOLD);
        assert_eq!(told("soon"), UNTOLD);
        assert_eq!(told("60"), after(60_000));
        for too_long in ["61", "3600", "99999999999999999999999"] {
            assert_eq!(told(too_long), NEVER, "{too_long}");
        }
        // Without the server's own time the date is compared with ours.
        assert_eq!(told("Wed, 21 Oct 2015 07:28:00 GMT"), after(0));
        let date = ("date", "Wed, 21 Oct 2015 07:27:30 GMT");
        let until = ("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT");
        assert_eq!(answer(503, &[until, date]), after(30_000));
    }

    #[test]
    fn grpc_pushback_is_in_milliseconds_and_no_number_means_never() {
        let told = |status, value| {
            let headers = [
                ("content-type", "application/grpc"),
                ("grpc-status", status),
                ("grpc-retry-pushback-ms", value),
            ];
            answer(200, &headers)
        };
        assert_eq!(told("8", "1500"), after(1_500));
        assert_eq!(told("14", "0"), after(0));
        assert_eq!(told("14", "-1"), NEVER);
        assert_eq!(told("14", "soon"), NEVER);
        assert_eq!(told("14", "99999999999"), NEVER);
        assert_eq!(told("0", "1500"), Answer::Accepted);
        assert_eq!(told("4", "1500"), Answer::Accepted);
    }

    #[test]
    fn a_quota_in_the_details_of_a_grpc_status_is_the_callers_and_not_the_backends() {
        let details = |text: &str| {
            let headers = [
                ("content-type", "application/grpc"),
                ("grpc-status", "8"),
                ("grpc-status-details-bin", text),
            ];
            answer(200, &headers)
        };
        let limited = Answer::Limited(RetryAdvice::Untold);
        // "type.googleapis.com/google.rpc.QuotaFailure", at each offset of a group of three bytes.
        for text in [
            "dHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucnBjLlF1b3RhRmFpbHVyZQ==",
            "IHR5cGUuZ29vZ2xlYXBpcy5jb20vZ29vZ2xlLnJwYy5RdW90YUZhaWx1cmU",
            "ICB0eXBlLmdvb2dsZWFwaXMuY29tL2dvb2dsZS5ycGMuUXVvdGFGYWlsdXJl",
        ] {
            assert_eq!(details(text), limited, "{text}");
        }
        // "type.googleapis.com/google.rpc.RetryInfo", and nothing.
        let retry_info = "dHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucnBjLlJldHJ5SW5mbw==";
        assert_eq!(details(retry_info), UNTOLD);
        assert_eq!(details(""), UNTOLD);
    }

    #[test]
    fn grpc_headers_without_a_status_are_an_acceptance() {
        let headers = [("content-type", "application/grpc+proto")];
        assert_eq!(answer(200, &headers), Answer::Accepted);
    }
}
