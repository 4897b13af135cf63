//! A limit outside of a load shedder: what is shed costs no quota, over HTTP and gRPC, and one predicate
//! lets a request past both.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::CONTENT_TYPE, request};
use http_body_util::Full;
use rate_limit::{HOUR, Limiter, ManualClock, Quota, RateLimitLayer, key};
use tower::{Layer, ServiceExt, service_fn};
use tower_capacity::{CapacityLayer, limit::Fixed};

#[tokio::test]
async fn a_request_that_is_shed_costs_no_quota() {
    let quota = Limiter::builder()
        .quota(Quota::count(10).per(HOUR))
        .clock(ManualClock::new())
        .build()
        .unwrap();
    let capacity = tower_capacity::Limiter::builder()
        .law(Fixed::new(1))
        .max_queue(0)
        .build()
        .unwrap();
    let inner = service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("ok")))
    });
    let stack = RateLimitLayer::from_limiter(quota.clone())
        .key(key::global())
        .layer(CapacityLayer::new(capacity).layer(inner));
    // Its body holds the only place.
    let running = stack.clone().oneshot(Request::new(())).await.unwrap();
    assert_eq!((running.status(), quota.peek(())), (StatusCode::OK, 9));
    for grpc in [false, true, false] {
        let mut request = Request::new(());
        if grpc {
            let grpc = "application/grpc".parse().unwrap();
            request.headers_mut().insert(CONTENT_TYPE, grpc);
        }
        let shed = stack.clone().oneshot(request).await.unwrap();
        if grpc {
            assert_eq!(shed.headers()["grpc-status"], "8");
        } else {
            assert_eq!(shed.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
        assert_eq!(quota.peek(()), 9);
    }
    drop(running);
    let served = stack.oneshot(Request::new(())).await.unwrap();
    assert_eq!((served.status(), quota.peek(())), (StatusCode::OK, 8));
}

#[tokio::test]
async fn one_predicate_lets_a_probe_past_both_layers() {
    fn is_probe(request: &request::Parts) -> bool {
        request.uri.path() == "/livez"
    }
    let quota = Limiter::builder()
        .quota(Quota::count(1).per(HOUR))
        .clock(ManualClock::new())
        .build()
        .unwrap();
    let capacity = tower_capacity::Limiter::builder()
        .law(Fixed::new(1))
        .max_queue(0)
        .build()
        .unwrap();
    let inner = service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("ok")))
    });
    let limited = RateLimitLayer::from_limiter(quota.clone())
        .key(key::global())
        .bypass(is_probe);
    let capacity = CapacityLayer::new(capacity).bypass(is_probe);
    let stack = limited.layer(capacity.layer(inner));
    let get = |path| Request::get(path).body(()).unwrap();
    // The quota is spent, and the only place is taken.
    let running = stack.clone().oneshot(get("/")).await.unwrap();
    for (path, status) in [("/livez", 200), ("/", 429), ("/livez", 200)] {
        let response = stack.clone().oneshot(get(path)).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{path}");
    }
    drop(running);
}
