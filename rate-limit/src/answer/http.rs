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
    Bytes::from_owner(render(&format!("\"{policy}\""), false))
}

fn render(names: &str, never: bool) -> String {
    let detail = match never {
        true => ",\"detail\":\"the request costs more than the burst of its quota\"",
        false => "",
    };
    format!(
        "{{\"type\":\"https://iana.org/assignments/http-problem-types#quota-exceeded\",\
         \"title\":\"quota exceeded\",\"status\":429{detail},\"violated-policies\":[{names}]}}"
    )
}

/// Refuses in the emptied header map of the request.
pub(super) fn answer<B>(
    limited: &Limited<'_>,
    mut headers: HeaderMap,
    plain: bool,
) -> Response<RateLimitBody<B>> {
    // A problem without a type has the phrase of its status as title (RFC 9457 §4.2.1).
    let (status, problem, line): (_, &'static str, &'static str) = match limited.reason() {
        Reason::Quota => (StatusCode::TOO_MANY_REQUESTS, "", "quota exceeded\n"),
        Reason::Inflight => (
            StatusCode::TOO_MANY_REQUESTS,
            "{\"title\":\"Too Many Requests\",\"status\":429,\
             \"detail\":\"too many requests in flight\"}",
            "too many requests in flight\n",
        ),
        Reason::NoRoom => (
            StatusCode::TOO_MANY_REQUESTS,
            "{\"title\":\"Too Many Requests\",\"status\":429,\
             \"detail\":\"too many clients\"}",
            "too many clients\n",
        ),
        Reason::NoKey => (
            StatusCode::BAD_REQUEST,
            "{\"title\":\"Bad Request\",\"status\":400,\"detail\":\"no rate-limit key\"}",
            "no rate-limit key\n",
        ),
        Reason::Denied => (
            StatusCode::FORBIDDEN,
            "{\"title\":\"Forbidden\",\"status\":403,\"detail\":\"not allowed\"}",
            "not allowed\n",
        ),
        Reason::Unavailable => (
            StatusCode::SERVICE_UNAVAILABLE,
            "{\"type\":\"https://iana.org/assignments/http-problem-types#temporary-reduced-capacity\",\
             \"title\":\"quota service unavailable\",\"status\":503}",
            "quota service unavailable\n",
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
    let mut indices = limited.violated_indices();
    match (limited.quota, indices.next(), indices.next()) {
        (Some(over), Some(index), None) if !limited.never_conforms() => {
            over.rendered.problems[index].clone()
        }
        _ => {
            let names = limited
                .violated()
                .map(|policy| format!("\"{}\"", policy.name()));
            let names = names.collect::<Vec<_>>().join(",");
            render(&names, limited.never_conforms()).into()
        }
    }
}

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
