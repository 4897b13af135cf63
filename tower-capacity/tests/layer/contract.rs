//! The contract between a Tower middleware and its neighbours, poll by poll.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use futures_util::future::{Ready, ready};
use http::{HeaderName, Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::{Layer, Service};
use tower_capacity::{Capacity, CapacityLayer, Limiter, priority_header};
use tower_test::mock;

use crate::support::fixed;

type Body = Full<bytes::Bytes>;
type Mock = mock::Mock<Request<()>, Response<Body>>;
type Handle = mock::Handle<Request<()>, Response<Body>>;

fn limited(limit: usize, max_queue: usize) -> (Capacity<Mock>, Handle, Limiter) {
    let limiter = fixed(limit, max_queue);
    let (service, handle) = mock::pair();
    let layer = CapacityLayer::new(limiter.clone());
    (layer.layer(service), handle, limiter)
}

fn request() -> Request<()> {
    Request::new(())
}

type Called = task::Spawn<<Capacity<Mock> as Service<Request<()>>>::Future>;

/// Waits for readiness and calls, as every caller of a service must.
fn call_with(service: &mut Capacity<Mock>, request: Request<()>) -> Called {
    let mut readiness = task::spawn(());
    assert_ready_ok!(readiness.enter(|cx, _| service.poll_ready(cx)));
    task::spawn(service.call(request))
}

fn call(service: &mut Capacity<Mock>) -> Called {
    call_with(service, request())
}

fn status<B>(response: &Response<B>) -> StatusCode {
    response.status()
}

#[tokio::test]
async fn readiness_is_that_of_the_inner_service_and_holds_nothing() {
    let (mut service, mut handle, limiter) = limited(1, 0);
    handle.allow(0);
    let mut readiness = task::spawn(());
    assert_pending!(readiness.enter(|cx, _| service.poll_ready(cx)));
    handle.allow(1);
    assert_ready_ok!(readiness.enter(|cx, _| service.poll_ready(cx)));
    assert_eq!(limiter.snapshot().inflight(), 0);
}

#[tokio::test]
async fn a_clone_that_is_ready_but_never_called_starves_nobody() {
    let (mut service, mut handle, _limiter) = limited(1, 0);
    handle.allow(3);
    let mut idle = service.clone();
    let mut readiness = task::spawn(());
    assert_ready_ok!(readiness.enter(|cx, _| idle.poll_ready(cx)));

    let mut response = call(&mut service);
    assert_pending!(response.poll());
    let (_request, send) = handle.next_request().await.unwrap();
    send.send_response(Response::new(Body::default()));
    assert_eq!(status(&assert_ready_ok!(response.poll())), StatusCode::OK);
}

#[tokio::test]
async fn a_shed_clone_leaves_no_waiter_behind() {
    let (mut service, mut handle, limiter) = limited(1, 0);
    handle.allow(3);
    let mut running = call(&mut service);
    assert_pending!(running.poll());
    let mut shed = service.clone();
    let refused = assert_ready_ok!(call(&mut shed).poll());
    assert_eq!(status(&refused), StatusCode::SERVICE_UNAVAILABLE);

    drop(running);
    assert_eq!(limiter.snapshot().inflight(), 0);
    // `shed` is still alive, as a keep-alive connection's clone would be.
    assert_pending!(call(&mut service).poll());
    assert_eq!(limiter.snapshot().refusals(), 1);
}

#[tokio::test]
async fn response_future_drop_releases_permit() {
    let (mut service, mut handle, limiter) = limited(1, 0);
    handle.allow(1);
    let response = call(&mut service);
    assert_eq!(limiter.snapshot().inflight(), 1);
    drop(response);
    assert_eq!(limiter.snapshot().inflight(), 0);
    assert_eq!(limiter.snapshot().cancelled(), 1);
}

#[tokio::test]
async fn response_body_drop_releases_permit() {
    let (mut service, mut handle, limiter) = limited(1, 0);
    handle.allow(1);
    let mut response = call(&mut service);
    assert_pending!(response.poll());
    let (_request, send) = handle.next_request().await.unwrap();
    send.send_response(Response::new(Body::from("body")));
    let response = assert_ready_ok!(response.poll());
    assert_eq!(limiter.snapshot().inflight(), 1);
    drop(response);
    assert_eq!(limiter.snapshot().inflight(), 0);
    assert_eq!(limiter.snapshot().completions(), 1);
}

#[tokio::test]
async fn waiting_happens_inside_the_future_and_in_order() {
    let (mut service, mut handle, limiter) = limited(1, 2);
    handle.allow(3);
    let mut first = call(&mut service);
    let mut second = call(&mut service);
    let mut third = call(&mut service);
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    assert_pending!(third.poll());
    assert_eq!(limiter.snapshot().queued(), 2);

    let (_request, send) = handle.next_request().await.unwrap();
    send.send_response(Response::new(Body::default()));
    drop(assert_ready_ok!(first.poll()));
    assert!(second.is_woken() && !third.is_woken());
    assert_pending!(second.poll());
    let (_request, send) = handle.next_request().await.unwrap();
    send.send_response(Response::new(Body::default()));
    assert_eq!(status(&assert_ready_ok!(second.poll())), StatusCode::OK);
}

#[tokio::test]
async fn a_waiter_that_is_dropped_leaves_the_line() {
    let (mut service, mut handle, limiter) = limited(1, 2);
    handle.allow(3);
    let first = call(&mut service);
    let mut second = call(&mut service);
    assert_pending!(second.poll());
    drop(second);
    assert_eq!(limiter.snapshot().queued(), 0);
    drop(first);
    assert_eq!(limiter.snapshot().inflight(), 0);
}

#[tokio::test]
async fn the_inner_error_passes_unchanged_and_counts_as_a_drop() {
    let (mut service, mut handle, limiter) = limited(1, 0);
    handle.allow(1);
    let mut response = call(&mut service);
    assert_pending!(response.poll());
    let (_request, send) = handle.next_request().await.unwrap();
    send.send_error("the inner error");
    let error = assert_ready_err!(response.poll());
    assert_eq!(error.to_string(), "the inner error");
    let snapshot = limiter.snapshot();
    assert_eq!((snapshot.drops(), snapshot.inflight()), (1, 0));
}

#[tokio::test]
async fn layers_around_one_limiter_share_its_limit() {
    let layer = CapacityLayer::new(fixed(1, 0));
    let (service, mut handle) = mock::pair::<Request<()>, Response<Body>>();
    handle.allow(2);
    let mut first = layer.layer(service.clone());
    let mut second = layer.layer(service);
    let _running = call(&mut first);
    let refused = assert_ready_ok!(call(&mut second).poll());
    assert_eq!(status(&refused), StatusCode::SERVICE_UNAVAILABLE);
}

/// A service that panics when called without having been polled ready, like `tower::Buffer`, and
/// whose clones are not ready.
#[derive(Debug, Default)]
struct Strict {
    ready: bool,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Service<Request<()>> for Strict {
    type Response = Response<Empty<bytes::Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _request: Request<()>) -> Self::Future {
        assert!(
            std::mem::take(&mut self.ready),
            "called without `poll_ready`"
        );
        ready(Ok(Response::new(Empty::new())))
    }
}

#[tokio::test]
async fn the_instance_that_was_polled_ready_is_the_one_that_is_called() {
    let limiter = fixed(1, 1);
    let mut service = CapacityLayer::new(limiter.clone()).layer(Strict::default());
    let held = limiter.try_admit().unwrap();
    let mut readiness = task::spawn(());
    assert_ready!(readiness.enter(|cx, _| service.poll_ready(cx))).unwrap();
    let mut waiting = task::spawn(service.call(request()));
    assert_pending!(waiting.poll());
    drop(held);
    assert_ready_ok!(waiting.poll());
}

#[tokio::test]
async fn accessors_reach_the_inner_service() {
    let mut service = CapacityLayer::adaptive().layer(Strict { ready: true });
    assert!(service.get_ref().ready);
    service.get_mut().ready = false;
    assert!(!service.into_inner().ready);
}

#[tokio::test]
async fn everything_can_be_printed() {
    let layer = CapacityLayer::adaptive();
    let mut service = layer.layer(Strict { ready: true });
    let text = format!("{layer:?} {service:?} {:?}", service.call(request()));
    assert!(text.contains("limit: 20"), "{text}");
}

#[tokio::test]
async fn a_critical_request_is_served_before_those_that_waited_longer() {
    let limiter = fixed(1, 2);
    let (service, mut handle) = mock::pair::<Request<()>, Response<Body>>();
    let layer = CapacityLayer::new(limiter.clone())
        .priority(priority_header(HeaderName::from_static("x-priority")));
    let mut service = layer.layer(service);
    handle.allow(3);
    let mut ask = |class: &str| {
        let request = Request::builder().uri(class).header("x-priority", class);
        call_with(&mut service, request.body(()).unwrap())
    };
    let mut running = ask("default");
    let mut usual = ask("default");
    let mut critical = ask("critical");
    assert_pending!(running.poll());
    assert_pending!(usual.poll());
    assert_pending!(critical.poll());
    let _first = handle.next_request().await.unwrap();
    drop(running);
    assert!(critical.is_woken() && !usual.is_woken());
    assert_pending!(critical.poll());
    let (request, _send) = handle.next_request().await.unwrap();
    assert_eq!(request.uri(), "critical");
}

#[tokio::test(start_paused = true)]
async fn a_grpc_request_waits_no_longer_than_its_deadline() {
    let (mut service, _handle, limiter) = limited(1, 2);
    let _held = limiter.try_admit().unwrap();
    let start = tokio::time::Instant::now();
    let request = Request::builder()
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "30m")
        .body(())
        .unwrap();
    let response = service.call(request).await.unwrap();
    assert_eq!(start.elapsed(), std::time::Duration::from_millis(30));
    assert_eq!(response.headers()["grpc-status"], "8");
}

fn of_tenant(tenant: &str) -> Request<()> {
    let mut request = request();
    let value = tenant.try_into().expect("a header value");
    request.headers_mut().insert("x-tenant", value);
    request
}

#[tokio::test]
async fn one_tenant_that_fills_limit_and_room_does_not_starve_another() {
    let limiter = fixed(2, 2);
    let (service, mut handle) = mock::pair();
    let layer = CapacityLayer::new(limiter.clone())
        .partition(|request| request.headers.get("x-tenant")?.to_str().ok());
    let mut service: Capacity<Mock> = layer.layer(service);
    handle.allow(5);
    let mut hot: Vec<_> = (0..4)
        .map(|_| call_with(&mut service, of_tenant("hot")))
        .collect();
    assert_pending!(hot[2].poll());
    assert_pending!(hot[3].poll());
    assert_eq!(limiter.inflight_of(limiter.partition("hot")), 2);

    let mut quiet = call_with(&mut service, of_tenant("quiet"));
    assert_pending!(quiet.poll());
    let displaced = assert_ready_ok!(hot[3].poll());
    assert_eq!(status(&displaced), StatusCode::SERVICE_UNAVAILABLE);

    // One of the hot requests is done: its permit goes past the one that waited longer.
    let (first, respond) = handle.next_request().await.expect("the first request");
    assert_eq!(first.headers()["x-tenant"], "hot");
    respond.send_response(Response::new(Body::default()));
    drop(assert_ready_ok!(hot[0].poll()));
    assert_pending!(hot[2].poll());
    assert_pending!(quiet.poll());
    assert_eq!(limiter.inflight_of(limiter.partition("quiet")), 1);
    let (second, _respond) = handle.next_request().await.expect("the second request");
    let (third, _respond) = handle.next_request().await.expect("the quiet request");
    assert_eq!(second.headers()["x-tenant"], "hot");
    assert_eq!(third.headers()["x-tenant"], "quiet");
}
