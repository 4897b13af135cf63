//! The fast path allocates nothing.
#![cfg(not(loom))]

use std::future::{Ready, ready};

use allocation_counter::measure;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::Empty;
use tower::{Layer, Service, service_fn};
use tower_capacity::{
    CapacityLayer, Limiter, Outcome, PlainCapacityLayer,
    gate::{Gate, GateConfig},
    limit::Fixed,
};

/// Allocations of `work`, the first run of which may set up what a thread keeps.
fn allocations(mut work: impl FnMut()) -> u64 {
    work();
    measure(work).count_total
}

#[test]
fn entering_and_leaving_a_gate_allocates_nothing() {
    let gate = Gate::new(GateConfig::new(4));
    let work = || {
        let first = gate.try_acquire().unwrap();
        let second = gate.acquire().now_or_never().unwrap().unwrap();
        drop((first, second));
    };
    assert_eq!(allocations(work), 0);
}

#[test]
fn a_refusal_of_a_gate_allocates_nothing() {
    let gate = Gate::new(GateConfig::new(0).max_queue(0));
    let work = || {
        gate.try_acquire().unwrap_err();
        gate.acquire().now_or_never().unwrap().unwrap_err();
    };
    assert_eq!(allocations(work), 0);
}

#[test]
fn admitting_and_refusing_a_request_allocate_nothing() {
    let limiter = Limiter::builder()
        .law(Fixed::new(1))
        .max_queue(0)
        .build()
        .unwrap();
    let work = || {
        let mut admission = limiter.try_admit().unwrap();
        limiter.admit().now_or_never().unwrap().unwrap_err();
        admission.complete(Outcome::Success);
    };
    assert_eq!(allocations(work), 0);
}

type Inner = Ready<Result<Response<Empty<bytes::Bytes>>, std::convert::Infallible>>;

fn answer(_request: Request<()>) -> Inner {
    ready(Ok(Response::new(Empty::new())))
}

#[test]
fn a_request_through_the_layer_allocates_nothing() {
    let mut service = CapacityLayer::adaptive().layer(service_fn(answer));
    let work = || {
        let response = service
            .call(Request::new(()))
            .now_or_never()
            .unwrap()
            .unwrap();
        drop(response);
    };
    assert_eq!(allocations(work), 0);
}

#[test]
fn a_plain_request_allocates_nothing_admitted_or_shed() {
    let limiter = Limiter::builder().law(Fixed::new(1)).max_queue(0).build();
    let layer = PlainCapacityLayer::new(limiter.unwrap());
    let inner = service_fn(|()| ready(Ok::<_, std::convert::Infallible>(())));
    let mut service = layer.layer(inner);
    let work = || {
        let admitted = service.call(());
        service.call(()).now_or_never().unwrap().unwrap_err();
        admitted.now_or_never().unwrap().unwrap();
    };
    assert_eq!(allocations(work), 0);
}

#[test]
fn a_shed_request_allocates_only_the_headers_and_the_mark_of_its_response() {
    let limiter = Limiter::builder()
        .law(Fixed::new(1))
        .max_queue(0)
        .build()
        .unwrap();
    let mut service = CapacityLayer::new(limiter.clone()).layer(service_fn(answer));
    let _held = limiter.try_admit().unwrap();
    let mut shed = |request: fn() -> Request<()>| {
        allocations(|| drop(service.call(request()).now_or_never().unwrap().unwrap()))
    };
    let headers = || {
        let mut headers = http::HeaderMap::new();
        headers.insert("retry-after", http::HeaderValue::from_static("1"));
        headers.insert("content-type", http::HeaderValue::from_static("text/plain"));
        headers
    };
    let mark = allocations(|| {
        let mut response = Response::new(());
        *response.headers_mut() = headers();
        response.extensions_mut().insert(7_u64);
    });
    assert_eq!(shed(|| Request::new(())), mark);

    // As every server leaves them: then the mark is all that is allocated beside the headers.
    let served = || {
        let mut request = Request::new(());
        request.extensions_mut().insert(7_u64);
        request
    };
    let (shed, request) = (shed(served), allocations(|| drop(served())));
    assert_eq!(shed - request, allocations(|| drop(headers())) + 1);
}
