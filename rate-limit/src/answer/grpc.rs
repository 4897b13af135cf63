//! Refusals over gRPC: trailers-only, so that every client sees a status and not an HTTP error.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};

use super::{Limited, Reason, digits};
use crate::RateLimitBody;

/// Whether a request speaks gRPC: `application/grpc`, alone or with a suffix or a parameter.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let suffix = content_type.and_then(|value| value.strip_prefix(b"application/grpc"));
    suffix.is_some_and(|suffix| matches!(suffix.first(), None | Some(b'+' | b';' | b'-')))
}

/// Answers in the emptied header map of the request. The response names the plain content type,
/// or the request's own for gRPC-Web.
pub(super) fn answer<B>(
    limited: &Limited<'_>,
    mut headers: HeaderMap,
) -> Response<RateLimitBody<B>> {
    let content_type = headers.remove(header::CONTENT_TYPE);
    let (status, message) = match limited.reason() {
        Reason::Quota => (RESOURCE_EXHAUSTED, "quota exceeded"),
        Reason::NoRoom => (RESOURCE_EXHAUSTED, "too many clients"),
        Reason::NoKey => (INVALID_ARGUMENT, "the request has nothing to be limited by"),
    };
    headers.clear();
    headers.insert(header::CONTENT_TYPE, content_type.unwrap_or(GRPC));
    headers.insert(GRPC_STATUS, HeaderValue::from_static(status));
    headers.insert(GRPC_MESSAGE, HeaderValue::from_static(message));
    if let Some(wait) = limited.retry_after() {
        headers.insert(GRPC_RETRY_PUSHBACK, digits::millis(wait));
    } else if limited.never_conforms() {
        headers.insert(GRPC_RETRY_PUSHBACK, DO_NOT_RETRY);
    }
    let mut response = Response::new(RateLimitBody::refusal(Bytes::new()));
    *response.headers_mut() = headers;
    response
}

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// gRFC A6: milliseconds until a retry is welcome; a negative number asks for none.
const GRPC_RETRY_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const DO_NOT_RETRY: HeaderValue = HeaderValue::from_static("-1");
const RESOURCE_EXHAUSTED: &str = "8";
const INVALID_ARGUMENT: &str = "3";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grpc_content_types_are_grpc() {
        let grpc = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
            is_grpc(&headers)
        };
        assert!(grpc("application/grpc"));
        assert!(grpc("application/grpc+proto"));
        assert!(grpc("application/grpc-web+proto"));
        assert!(grpc("application/grpc;charset=utf-8"));
        assert!(!grpc("application/grpcish"));
        assert!(!grpc("application/json"));
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
