//! What a refusal says about when to come back. This file is the same in `tower-capacity` and `rate-limit`.

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap, HeaderName,
    header::{DATE, RETRY_AFTER},
};

/// `Retry-After`: seconds, or a date (RFC 9110 §10.2.3), which is compared with the server's own clock, if
/// it says what time it has. A value that cannot be read is ignored, as RFC 9110 demands of unknown fields.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    let value = text(RETRY_AFTER)?;
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Too large a number is still a very long time.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    let server_time = text(DATE).and_then(|date| httpdate::parse_http_date(date).ok());
    let now = server_time.unwrap_or_else(SystemTime::now);
    Some(at.duration_since(now).unwrap_or_default())
}

/// `grpc-retry-pushback-ms` (gRFC A6), if it is there: `None` inside where it is negative or unreadable,
/// which forbids to retry *this* request and says nothing about others.
pub(super) fn pushback(headers: &HeaderMap) -> Option<Option<Duration>> {
    let value = headers.get("grpc-retry-pushback-ms")?;
    let millis = value.to_str().ok().and_then(|millis| millis.parse().ok());
    Some(millis.map(Duration::from_millis))
}
