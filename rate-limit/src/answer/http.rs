//! Refusals over plain HTTP.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::{Limited, Reason, digits};
use crate::RateLimitBody;

/// A problem document (RFC 9457), rendered once. The type is the one registered for exceeded
/// quotas by draft-ietf-httpapi-ratelimit-headers.
#[derive(Clone, Debug)]
pub(crate) struct Problem(Bytes);

impl Problem {
    /// The document for one violated policy. Its name needs no escaping, see `policy::compile`.
    pub(crate) fn quota_exceeded(policy: &str) -> Self {
        // `from_owner`: unlike a `Bytes` made from a `String`, its first clone allocates nothing.
        Self(Bytes::from_owner(render(&format!("\"{policy}\""))))
    }
}

fn render(names: &str) -> String {
    format!(
        "{{\"type\":\"https://iana.org/assignments/http-problem-types#quota-exceeded\",\
         \"title\":\"quota exceeded\",\"status\":429,\"violated-policies\":[{names}]}}"
    )
}

/// Answers in the emptied header map of the request.
pub(super) fn answer<B>(
    limited: &Limited<'_>,
    mut headers: HeaderMap,
) -> Response<RateLimitBody<B>> {
    let (status, body) = match limited.reason() {
        Reason::Quota => (StatusCode::TOO_MANY_REQUESTS, violation(limited)),
        Reason::NoRoom => (StatusCode::TOO_MANY_REQUESTS, Bytes::from_static(NO_ROOM)),
        Reason::NoKey => (StatusCode::BAD_REQUEST, Bytes::from_static(NO_KEY)),
    };
    headers.clear();
    headers.insert(header::CONTENT_TYPE, PROBLEM_JSON);
    if let Some(wait) = limited.retry_after() {
        headers.insert(header::RETRY_AFTER, digits::seconds(wait));
    }
    let mut response = Response::new(RateLimitBody::refusal(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn violation(limited: &Limited<'_>) -> Bytes {
    let mut rules = limited.violated_rules();
    match (rules.next(), rules.next()) {
        (Some(rule), None) => rule.problem.0.clone(),
        _ => {
            let names: Vec<_> = limited
                .violated()
                .map(|p| format!("\"{}\"", p.name()))
                .collect();
            render(&names.join(",")).into()
        }
    }
}

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
const NO_ROOM: &[u8] = b"{\"title\":\"too many clients\",\"status\":429}";
const NO_KEY: &[u8] = b"{\"title\":\"the request has nothing to be limited by\",\"status\":400}";
