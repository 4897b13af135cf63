//! What a refused caller gets.

use std::{cell::Cell, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
    request,
};
use http_body::Body;

use crate::{
    classify::is_grpc,
    gate::{Refused, RefusedReason},
    layer::CapacityBody,
};

/// Why a request was shed, and the numbers at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shed {
    refused: Refused,
}

/// Least time a shed caller is asked to stay away, in seconds. The header has whole ones and must
/// not say 0.
const MIN_RETRY_AFTER: f64 = 1.0;
/// Most, whatever the estimate: capacity may come back at any time.
const MAX_RETRY_AFTER: f64 = 10.0;

impl Shed {
    /// `drain` is how many seconds the requests inside and in line are expected to take.
    #[inline]
    pub(crate) fn new(mut refused: Refused, drain: f64) -> Self {
        let retry_after = jitter(drain.clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER / 2.0));
        // At most ten seconds.
        refused.set_retry_after_millis((1e3 * retry_after) as u16);
        Self { refused }
    }

    /// Why.
    #[must_use]
    pub const fn reason(&self) -> RefusedReason {
        self.refused.reason()
    }

    /// Requests that were allowed inside.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.refused.limit()
    }

    /// Requests that were inside.
    #[must_use]
    pub const fn inflight(&self) -> usize {
        self.refused.inflight()
    }

    /// Requests that waited.
    #[must_use]
    pub const fn queued(&self) -> usize {
        self.refused.queued()
    }

    /// How long this request had waited.
    #[must_use]
    pub const fn waited(&self) -> Duration {
        self.refused.waited()
    }

    /// When to come back: the time in which the requests ahead are expected to finish, at least
    /// one second and at most ten, and up to twice that at random, so that callers who were shed
    /// together do not return together.
    #[must_use]
    pub const fn retry_after(&self) -> Duration {
        Duration::from_millis(self.refused.retry_after_millis() as u64)
    }
}

impl fmt::Display for Shed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.refused.fmt(f)
    }
}

/// One to two times `least`, a different share at each call: the fractional parts of the multiples
/// of the golden ratio, which spread more evenly than random numbers do (Weyl 1916).
///
/// Each thread draws its own, so that refusing does not make threads wait for each other.
#[inline]
fn jitter(least: f64) -> f64 {
    thread_local! {
        static SHARE: Cell<u64> = const { Cell::new(0) };
    }
    let share = SHARE.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
    SHARE.set(share);
    least + least * ((share >> 40) as f64 / (1_u64 << 24) as f64)
}

/// Answers a refused request. `T` says why it was refused.
///
/// [`DefaultReject`] answers unless [`CapacityLayer::on_shed`](crate::CapacityLayer::on_shed) set
/// a hook.
pub trait Reject<B: Body, T = Shed> {
    /// Creates the answer. `request` is the head of the refused request.
    fn reject(&self, refusal: &T, request: &request::Parts) -> Response<CapacityBody<B>>;
}

/// Answers gRPC requests with a trailers-only status, and others with 503.
///
/// - HTTP: `503 Service Unavailable`, `Retry-After` in whole seconds, rounded up, and one line of
///   text.
/// - gRPC (`content-type: application/grpc*`): `grpc-status` 8 (`RESOURCE_EXHAUSTED`), or 14
///   (`UNAVAILABLE`) from a limiter that drains, `grpc-message`, and `grpc-retry-pushback-ms`
///   (gRFC A6).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct DefaultReject;

impl<B> Reject<B> for DefaultReject
where
    B: Body,
    B::Data: From<Bytes>,
{
    fn reject(&self, shed: &Shed, request: &request::Parts) -> Response<CapacityBody<B>> {
        if !is_grpc(&request.headers) {
            return reject_http(shed.retry_after(), || HTTP_BODY.into());
        }
        let (status, message) = match shed.reason() {
            RefusedReason::Closed => ("14", "draining"),
            _ => ("8", "overloaded"),
        };
        let pushback = shed.retry_after().as_millis() as u64;
        reject_grpc(status, message, HeaderValue::from(pushback))
    }
}

const HTTP_BODY: Bytes = Bytes::from_static(b"overloaded, try again later\n");

/// 503 with a line of text.
pub(crate) fn reject_http<B: Body>(
    retry_after: Duration,
    line: fn() -> B::Data,
) -> Response<CapacityBody<B>> {
    let mut response = Response::new(CapacityBody::refusal(line));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, whole_seconds(retry_after));
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// A trailers-only response.
pub(crate) fn reject_grpc<B: Body>(
    status: &'static str,
    message: &'static str,
    pushback_ms: HeaderValue,
) -> Response<CapacityBody<B>> {
    let mut response = Response::new(CapacityBody::empty());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static(status));
    headers.insert("grpc-message", HeaderValue::from_static(message));
    headers.insert("grpc-retry-pushback-ms", pushback_ms);
    response
}

/// Whole seconds, rounded up; those that occur without an allocation.
fn whole_seconds(time: Duration) -> HeaderValue {
    const RENDERED: [&str; 10] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"];
    let seconds = time.as_nanos().div_ceil(1_000_000_000).max(1) as usize;
    RENDERED.get(seconds - 1).map_or_else(
        || HeaderValue::from(seconds),
        |rendered| HeaderValue::from_static(rendered),
    )
}

/// A hook that answers refused requests with the response type of the inner service.
pub struct ShedHook<B, T = Shed> {
    answer: Arc<Answer<B, T>>,
}

type Answer<B, T> = dyn Fn(&T, &request::Parts) -> Response<B> + Send + Sync;

impl<B, T> ShedHook<B, T> {
    pub(crate) fn new(
        answer: impl Fn(&T, &request::Parts) -> Response<B> + Send + Sync + 'static,
    ) -> Self {
        Self {
            answer: Arc::new(answer),
        }
    }
}

impl<B, T> Clone for ShedHook<B, T> {
    fn clone(&self) -> Self {
        Self {
            answer: Arc::clone(&self.answer),
        }
    }
}

impl<B: Body, T> Reject<B, T> for ShedHook<B, T> {
    fn reject(&self, refusal: &T, request: &request::Parts) -> Response<CapacityBody<B>> {
        (self.answer)(refusal, request).map(CapacityBody::unlimited)
    }
}

impl<B, T> fmt::Debug for ShedHook<B, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShedHook").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_rounded_up_and_never_zero() {
        for (millis, expected) in [
            (0, "1"),
            (1, "1"),
            (1000, "1"),
            (1001, "2"),
            (9001, "10"),
            (12_000, "12"),
        ] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), expected);
        }
    }

    #[test]
    fn jitter_spreads_between_once_and_twice() {
        let drawn: Vec<_> = (0..100).map(|_| jitter(2.0)).collect();
        assert!(drawn.iter().all(|wait| (2.0..4.0).contains(wait)));
        let early = drawn.iter().filter(|&&wait| wait < 3.0).count();
        assert!(
            (40..=60).contains(&early),
            "{early} of 100 in the first half"
        );
    }
}
