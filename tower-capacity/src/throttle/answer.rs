use std::time::{Duration, SystemTime};

use http::{
    HeaderMap, Response, StatusCode,
    header::{DATE, RETRY_AFTER},
    response,
};

use super::Throttled;
use crate::classify::is_grpc;

/// What a response says about whether the backend accepted the request.
///
/// For a [`ThrottleLayer`](super::ThrottleLayer) and for retry policies; see [`of`](Self::of).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// It did, however it ended.
    Accepted,
    /// It did not, and had this to say about trying again.
    Rejected(RetryAdvice),
}

/// What a backend that rejects a request says about trying again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetryAdvice {
    /// Nothing.
    Untold,
    /// Not before so much time has passed.
    After(Duration),
    /// Not at all.
    Never,
}

impl Answer {
    /// Reads a response.
    ///
    /// | response | answer |
    /// |---|---|
    /// | 429, 503 | rejected |
    /// | 502, 504 | rejected: a gateway's word for a backend that cannot be reached |
    /// | gRPC, trailers-only, status 8 (`RESOURCE_EXHAUSTED`) or 14 (`UNAVAILABLE`) | rejected |
    /// | any that this client gave itself ([`Throttled`]) | rejected, never to be retried |
    /// | anything else | accepted |
    ///
    /// The advice of a rejection is in `Retry-After` (RFC 9110 §10.2.3: seconds, or a date, which
    /// is compared with the response's own `Date`), and in gRPC in `grpc-retry-pushback-ms`
    /// (gRFC A6: negative or unreadable means never).
    ///
    /// A gRPC response whose headers come before its status was accepted: gRFC A6 calls such a call
    /// committed.
    #[must_use]
    pub fn of<B>(response: &Response<B>) -> Self {
        let own = response.extensions().get::<Throttled>();
        Self::read(response.status(), response.headers(), own)
    }

    /// Reads the head of a response, as [`of`](Self::of) does.
    #[must_use]
    pub fn of_parts(parts: &response::Parts) -> Self {
        let own = parts.extensions.get::<Throttled>();
        Self::read(parts.status, &parts.headers, own)
    }

    fn read(status: StatusCode, headers: &HeaderMap, own: Option<&Throttled>) -> Self {
        if own.is_some() {
            return Self::Rejected(RetryAdvice::Never);
        }
        if is_grpc(headers) {
            return match headers.get("grpc-status").map(|status| status.as_bytes()) {
                Some(b"8" | b"14") => Self::Rejected(pushback(headers)),
                _ => Self::Accepted,
            };
        }
        match status {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Self::Rejected(retry_after(headers)),
            _ => Self::Accepted,
        }
    }
}

fn pushback(headers: &HeaderMap) -> RetryAdvice {
    let Some(value) = headers.get("grpc-retry-pushback-ms") else {
        return RetryAdvice::Untold;
    };
    let millis = value.to_str().ok().and_then(|ms| ms.parse::<i32>().ok());
    // A negative number fails to convert.
    millis
        .and_then(|ms| u64::try_from(ms).ok())
        .map_or(RetryAdvice::Never, |ms| {
            RetryAdvice::After(Duration::from_millis(ms))
        })
}

/// What cannot be read is ignored, as RFC 9110 demands of unknown fields.
fn retry_after(headers: &HeaderMap) -> RetryAdvice {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let Some(value) = text(RETRY_AFTER) else {
        return RetryAdvice::Untold;
    };
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Too large a number is still a very long time.
        return RetryAdvice::After(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let Ok(at) = httpdate::parse_http_date(value) else {
        return RetryAdvice::Untold;
    };
    let server_time = text(DATE).and_then(|date| httpdate::parse_http_date(date).ok());
    let now = server_time.unwrap_or_else(SystemTime::now);
    RetryAdvice::After(at.duration_since(now).unwrap_or_default())
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
        for status in [429, 502, 503, 504] {
            assert_eq!(answer(status, &[]), UNTOLD, "{status}");
        }
    }

    #[test]
    fn retry_after_is_read_in_seconds_and_as_a_date() {
        let told = |value| answer(503, &[("retry-after", value)]);
        assert_eq!(told("7"), after(7_000));
        assert_eq!(told(" 7 "), after(7_000));
        assert_eq!(told("0"), after(0));
        assert_eq!(told("-7"), UNTOLD);
        assert_eq!(told("soon"), UNTOLD);
        let forever = Answer::Rejected(RetryAdvice::After(Duration::from_secs(u64::MAX)));
        assert_eq!(told("99999999999999999999999"), forever);
        // Without the server's own time the date is compared with ours.
        assert_eq!(told("Wed, 21 Oct 2015 07:28:00 GMT"), after(0));
        let date = ("date", "Wed, 21 Oct 2015 07:27:30 GMT");
        let until = ("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT");
        assert_eq!(answer(429, &[until, date]), after(30_000));
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
    fn grpc_headers_without_a_status_are_an_acceptance() {
        let headers = [("content-type", "application/grpc+proto")];
        assert_eq!(answer(200, &headers), Answer::Accepted);
    }
}
