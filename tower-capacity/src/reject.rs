//! The responses of refused requests.

use std::{
    cell::Cell,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER},
    request,
};
use http_body::Body;

use crate::{
    gate::{Refused, RefusedReason},
    grpc::is_grpc,
    layer::CapacityBody,
};

/// Why a request was shed, and the numbers at that moment.
///
/// The layer puts it into the extensions of the refusal, for what stands around it: a log, a trace,
/// an error rate, or another limiter, which does not take the refusal for a failure of its own.
///
/// ```
/// use axum::response::Response;
/// use tower_capacity::Shed;
///
/// fn is_failure(response: &Response) -> bool {
///     response.status().is_server_error() && response.extensions().get::<Shed>().is_none()
/// }
/// # let _ = is_failure(&Response::default());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shed {
    refused: Refused,
}

/// Range from which the time to come back is drawn, in seconds, if what is ahead takes less: wide
/// enough for whole seconds to tell callers apart, since that is all that HTTP can say.
const SPREAD: f64 = 4.0;
/// Longest time to come back, whatever the estimate: capacity may return at any time.
const MAX_RETRY_AFTER: f64 = 10.0;

impl Shed {
    /// `drain` is how many seconds the requests inside and waiting are expected to take.
    #[inline]
    pub(crate) fn new(mut refused: Refused, drain: f64) -> Self {
        let retry_after = spread(drain, random());
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

    /// When to come back: after the time in which the requests ahead are expected to finish, and
    /// as much again at random, or four seconds if that is more, so that callers that were shed
    /// together do not return together. At most ten seconds.
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

impl std::error::Error for Shed {}

/// A time between `drain` and `drain + max(drain, SPREAD)` seconds. `random` is uniform in 0..1.
#[inline]
fn spread(drain: f64, random: f64) -> f64 {
    let least = drain.min(MAX_RETRY_AFTER / 2.0);
    least + random * least.max(SPREAD)
}

/// Uniform in 0..1: the fractional parts of the multiples of the golden ratio, which spread more
/// evenly than random numbers do (Weyl 1916), from a start that is random.
///
/// Each thread of each process has a sequence of its own, so that refusing does not make threads
/// wait for each other, and no two tell their callers the same times.
#[inline]
fn random() -> f64 {
    thread_local! {
        static SHARE: Cell<u64> = Cell::new(RandomState::new().hash_one(0));
    }
    let share = SHARE.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
    SHARE.set(share);
    (share >> 40) as f64 / (1_u64 << 24) as f64
}

/// Makes the response of a refused request. `T` is the reason of the refusal.
///
/// [`DefaultReject`] unless [`CapacityLayer::on_shed`](crate::CapacityLayer::on_shed) or
/// [`CapacityLayer::reject`](crate::CapacityLayer::reject) set another.
///
/// Whatever makes the response, the layer then adds the reason to its extensions, and takes the
/// body away if the request was a `HEAD`.
///
/// ```
/// use bytes::Bytes;
/// use http::{Response, StatusCode, request};
/// use http_body_util::Full;
/// use tower_capacity::{CapacityLayer, Reject, Shed, layer::CapacityBody};
///
/// #[derive(Clone)]
/// struct Busy;
///
/// impl Reject<Full<Bytes>> for Busy {
///     fn reject(&self, _shed: &Shed, _request: &request::Parts) -> Response<CapacityBody<Full<Bytes>>> {
///         let mut response = Response::new(CapacityBody::unlimited(Full::from("busy")));
///         *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
///         response
///     }
/// }
///
/// let layer = CapacityLayer::adaptive().reject(Busy);
/// # let _ = layer;
/// ```
pub trait Reject<B: Body, T = Shed> {
    /// Creates the response. `request` is the head of the refused request.
    fn reject(&self, refusal: &T, request: &request::Parts) -> Response<CapacityBody<B>>;
}

/// Refuses gRPC requests with a trailers-only status, and others with 503.
///
/// - HTTP: `503 Service Unavailable`, `Retry-After` in whole seconds, rounded up, and one line of
///   text. From a limiter that drains, also `Connection: close` over HTTP/1, so that the caller
///   opens its next connection to another instance.
/// - gRPC (`content-type: application/grpc*`): `grpc-status` 8 (`RESOURCE_EXHAUSTED`), or 14
///   (`UNAVAILABLE`) from a limiter that drains, `grpc-message`, and `grpc-retry-pushback-ms`
///   (gRFC A6). The content type is that of the request for gRPC-Web.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct DefaultReject;

impl<B> Reject<B> for DefaultReject
where
    B: Body,
    B::Data: From<Bytes>,
{
    #[inline]
    fn reject(&self, shed: &Shed, request: &request::Parts) -> Response<CapacityBody<B>> {
        let drains = shed.reason() == RefusedReason::Closed;
        if is_grpc(&request.headers) {
            let (status, message) = match drains {
                true => ("14", "draining"),
                false => ("8", "overloaded"),
            };
            let pushback = shed.retry_after().as_millis() as u64;
            return reject_grpc(request, status, message, HeaderValue::from(pushback));
        }
        if drains {
            return reject_draining(shed, request);
        }
        reject_http(shed.retry_after(), || OVERLOADED.into())
    }
}

const OVERLOADED: Bytes = Bytes::from_static(b"overloaded, try again later\n");
const DRAINING: Bytes = Bytes::from_static(b"shutting down, try another instance\n");

#[cold]
fn reject_draining<B>(shed: &Shed, request: &request::Parts) -> Response<CapacityBody<B>>
where
    B: Body,
    B::Data: From<Bytes>,
{
    let mut response = reject_http(shed.retry_after(), || DRAINING.into());
    if matches!(request.version, Version::HTTP_10 | Version::HTTP_11) {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response
}

/// 503 with a line of text.
#[inline]
pub(crate) fn reject_http<B: Body>(
    retry_after: Duration,
    line: fn() -> B::Data,
) -> Response<CapacityBody<B>> {
    let mut response = Response::new(CapacityBody::refusal(line));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.reserve(2);
    headers.append(RETRY_AFTER, whole_seconds(retry_after));
    headers.append(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// A trailers-only response.
pub(crate) fn reject_grpc<B: Body>(
    request: &request::Parts,
    status: &'static str,
    message: &'static str,
    pushback_ms: HeaderValue,
) -> Response<CapacityBody<B>> {
    let mut response = Response::new(CapacityBody::empty());
    let headers = response.headers_mut();
    let asked = request.headers.get(CONTENT_TYPE);
    let content_type = match asked {
        Some(web) if web.as_bytes().starts_with(b"application/grpc-web") => web.clone(),
        _ => HeaderValue::from_static("application/grpc"),
    };
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert("grpc-status", HeaderValue::from_static(status));
    headers.insert("grpc-message", HeaderValue::from_static(message));
    headers.insert("grpc-retry-pushback-ms", pushback_ms);
    response
}

/// Takes the body away from the response to a `HEAD`, which has none (RFC 9110 §9.3.2) and which
/// HTTP/2 fails as a protocol error; its length stays in the header.
#[inline]
pub(crate) fn fit_to_method<B: Body>(method: &Method, response: &mut Response<CapacityBody<B>>) {
    if *method == Method::HEAD {
        take_body(response);
    }
}

#[cold]
fn take_body<B: Body>(response: &mut Response<CapacityBody<B>>) {
    let body = std::mem::take(response.body_mut());
    if let Some(length) = body.size_hint().exact()
        && length > 0
    {
        let headers = response.headers_mut().entry(CONTENT_LENGTH);
        headers.or_insert_with(|| HeaderValue::from(length));
    }
}

/// Whole seconds, rounded up; those that occur without an allocation.
fn whole_seconds(time: Duration) -> HeaderValue {
    const RENDERED: [&str; 10] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"];
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    let seconds = seconds.max(1) as usize;
    RENDERED.get(seconds - 1).map_or_else(
        || HeaderValue::from(seconds),
        |rendered| HeaderValue::from_static(rendered),
    )
}

/// A hook that makes the responses of refused requests, with the body type of the inner service.
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
    fn callers_shed_together_are_told_whole_seconds_that_differ() {
        let told = |drain: f64| -> Vec<u64> {
            let drawn = (0..4_000).map(|_| spread(drain, random()));
            let seconds = drawn.map(|seconds| seconds.ceil().max(1.0) as usize);
            let mut counts = vec![0; 11];
            seconds.for_each(|seconds| counts[seconds] += 1);
            counts
        };
        for drain in [0.0, 0.01] {
            let counts = told(drain);
            for second in 1..=4 {
                let count = counts[second];
                assert!((800..1_200).contains(&count), "{drain}: {counts:?}");
            }
        }
        let counts = told(60.0);
        assert_eq!(counts[..6].iter().sum::<u64>(), 0, "{counts:?}");
        assert!(counts[6..].iter().all(|&count| count > 600), "{counts:?}");
    }

    #[test]
    fn threads_draw_different_times() {
        let draw = || [random(), random()];
        let drawn: Vec<_> = (0..4)
            .map(|_| std::thread::spawn(draw).join().unwrap())
            .collect();
        for (index, one) in drawn.iter().enumerate() {
            assert!(!drawn[..index].contains(one), "{drawn:?}");
        }
    }
}
