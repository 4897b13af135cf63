//! Neither admitting nor refusing allocates, except where it is documented: quota headers, gRPC
//! details, what a request takes along. The counter is per thread, so nothing else in the process
//! disturbs it.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::SocketAddr,
    pin::pin,
    task::{Context, Poll, Waker},
};

use allocation_counter::measure;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use rate_limit::{
    HOUR, Limiter, Policy, Quota, RateLimitLayer, SECOND,
    answer::{Draft, QuotaHeaders, StandardAnswer},
    key::{self, PeerAddr},
};
use tower::{Layer, Service, service_fn};

type Answer = Response<Full<Bytes>>;

fn ok(_: Request<()>) -> Ready<Result<Answer, Infallible>> {
    ready(Ok(Response::new(Full::default())))
}

/// A request as a server would hand it over: some headers and the peer's address.
fn request(content_type: &str) -> Request<()> {
    let mut request = Request::builder()
        .header("host", "localhost")
        .header("user-agent", "test")
        .header("content-type", content_type)
        .header("x-api-key", "alice")
        .body(())
        .unwrap();
    request
        .extensions_mut()
        .insert(PeerAddr::new(SocketAddr::from(([192, 0, 2, 1], 9))));
    request
}

/// The status of `request` and the number of allocations between having it and answering it.
fn call(layer: &RateLimitLayer, request: Request<()>) -> (StatusCode, u64) {
    let mut service = layer.layer(service_fn(ok));
    let mut status = None;
    let allocations = measure(|| {
        let mut future = pin!(service.call(request));
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Ok(response)) = future.as_mut().poll(&mut cx) else {
            panic!("the answer must be ready at once");
        };
        status = Some(response.status());
    });
    (status.unwrap(), allocations.count_total)
}

fn assert_allocates_nothing(layer: &RateLimitLayer, content_type: &str) {
    // The first request of a thread may set up thread-locals.
    call(layer, request(content_type));
    assert_eq!(
        call(layer, request(content_type)),
        (StatusCode::OK, 0),
        "admitted"
    );
    let (_, allocations) = call(layer, request(content_type));
    assert_eq!(allocations, 0, "refused");
}

fn refused(layer: &RateLimitLayer) -> bool {
    call(layer, request("text/plain")).0 == StatusCode::TOO_MANY_REQUESTS
}

#[test]
fn a_single_quota_allocates_nothing() {
    let layer = RateLimitLayer::new(Quota::count(2).per(HOUR)).unwrap();
    assert_allocates_nothing(&layer, "application/json");
    assert!(refused(&layer));
}

#[test]
fn grpc_allocates_nothing_but_its_details() {
    let answer = StandardAnswer::new().grpc_details(false);
    let layer = RateLimitLayer::new(Quota::count(2).per(HOUR))
        .unwrap()
        .answer(answer);
    assert_allocates_nothing(&layer, "application/grpc");

    let layer = RateLimitLayer::new(Quota::count(1).per(HOUR)).unwrap();
    call(&layer, request("application/grpc"));
    assert_eq!(call(&layer, request("application/grpc")).1, 2);
}

#[test]
fn quota_headers_take_a_few_allocations_for_each_field() {
    let layer = RateLimitLayer::new(Quota::count(1).per(HOUR))
        .unwrap()
        .headers(QuotaHeaders::draft(Draft::V11));
    call(&layer, request("text/plain"));
    let (status, allocations) = call(&layer, request("text/plain"));
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!((1..=6).contains(&allocations), "{allocations}");
}

#[test]
fn a_grpc_response_without_a_status_takes_one_allocation_for_its_trailers() {
    let layer = RateLimitLayer::new(Quota::count(5).per(HOUR)).unwrap();
    let grpc = |_: Request<()>| {
        let mut response = Response::new(Full::default());
        let content_type = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        ready(Ok::<Answer, Infallible>(response))
    };
    let allocations = |wrapped: bool| {
        let mut service = layer.layer(service_fn(grpc));
        let count = measure(|| {
            let request = request("application/grpc");
            if wrapped {
                drop(poll_once(service.call(request)));
            } else {
                drop(poll_once(service.get_mut().call(request)));
            }
        });
        count.count_total
    };
    allocations(true);
    assert_eq!(allocations(true), allocations(false) + 1);
}

fn poll_once<F: Future>(future: F) -> F::Output {
    let Poll::Ready(output) = pin!(future).poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("the inner service answers at once");
    };
    output
}

#[test]
fn lists_plans_and_costs_allocate_nothing() {
    let limiter = Limiter::builder()
        .policy(Policy::new("api", Quota::count(2).per(HOUR)).cost(|_| 1))
        .plan(
            "pro",
            [Policy::new("api", Quota::count(2).per(HOUR)).cost(|_| 1)],
        )
        .build()
        .unwrap();
    let layer = RateLimitLayer::from_limiter(limiter)
        .key(key::forwarded(key::Trust::hops(1)))
        .allow(key::AccessList::networks(["10.0.0.0/8"]).unwrap())
        .deny(key::AccessList::keys(["mallory"]))
        .plan(|_| Some("pro"));
    assert_allocates_nothing(&layer, "application/json");
    assert!(refused(&layer));
}

#[test]
fn what_an_admitted_request_takes_along_is_one_allocation() {
    let limiter = Limiter::builder()
        .policy(Policy::new("api", Quota::count(5).per(HOUR)).settle(|_| Some(1)))
        .max_inflight(5)
        .build()
        .unwrap();
    let layer = RateLimitLayer::from_limiter(limiter);
    call(&layer, request("text/plain"));
    assert_eq!(call(&layer, request("text/plain")), (StatusCode::OK, 1));
}

#[test]
fn a_rate_that_governor_would_round_allocates_nothing() {
    let layer = RateLimitLayer::new(Quota::count(300_000_000).per(SECOND).burst(1)).unwrap();
    call(&layer, request("text/plain"));
    assert_eq!(call(&layer, request("text/plain")).1, 0);
}

#[test]
fn several_quotas_allocate_nothing() {
    let limiter = Limiter::builder()
        .policy(Policy::new("daily", Quota::count(2).per(24 * HOUR)))
        .policy(Policy::new("wide", Quota::count(1_000).per(HOUR)))
        .build()
        .unwrap();
    let layer = RateLimitLayer::from_limiter(limiter).key(key::header("x-api-key"));
    assert_allocates_nothing(&layer, "application/json");
    assert!(refused(&layer));
}
