//! Refusals over plain HTTP.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::{Limited, Reason, digits};
use crate::RateLimitBody;

/// The problem document (RFC 9457) for one violated policy. The type is the one registered for
/// exceeded quotas by draft-ietf-httpapi-ratelimit-headers. The name needs no escaping, see
/// `policy::check_name`.
pub(crate) fn problem(policy: &str) -> Bytes {
    // `from_owner`: unlike a `Bytes` made from a `String`, its first clone allocates nothing.
    Bytes::from_owner(render(&format!("\"{policy}\"")))
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
    plain: bool,
) -> Response<RateLimitBody<B>> {
    let (status, problem, line): (_, &'static str, &'static str) = match limited.reason() {
        Reason::Quota => (StatusCode::TOO_MANY_REQUESTS, "", "quota exceeded\n"),
        Reason::Inflight => (
            StatusCode::TOO_MANY_REQUESTS,
            "{\"title\":\"too many requests in flight\",\"status\":429}",
            "too many requests in flight\n",
        ),
        Reason::NoRoom => (
            StatusCode::TOO_MANY_REQUESTS,
            "{\"title\":\"too many clients\",\"status\":429}",
            "too many clients\n",
        ),
        Reason::NoKey => (
            StatusCode::BAD_REQUEST,
            "{\"title\":\"the request has nothing to be limited by\",\"status\":400}",
            "the request has nothing to be limited by\n",
        ),
        Reason::Denied => (
            StatusCode::FORBIDDEN,
            "{\"title\":\"not allowed\",\"status\":403}",
            "not allowed\n",
        ),
        Reason::Unavailable => (
            StatusCode::SERVICE_UNAVAILABLE,
            "{\"type\":\"https://iana.org/assignments/http-problem-types#temporary-reduced-capacity\",\
             \"title\":\"quotas cannot be told at the moment\",\"status\":503}",
            "quotas cannot be told at the moment\n",
        ),
    };
    let (content_type, body) = if plain {
        (PLAIN, Bytes::from_static(line.as_bytes()))
    } else if limited.reason() == Reason::Quota {
        (PROBLEM_JSON, violation(limited))
    } else {
        (PROBLEM_JSON, Bytes::from_static(problem.as_bytes()))
    };
    headers.clear();
    headers.insert(header::CONTENT_TYPE, content_type);
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
        (Some(rule), None) => rule.problem.clone(),
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
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
