//! Several layers in one stack.

use axum::{Extension, Router, body::Body, routing::any};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_capacity::{CapacityLayer, Limiter, PlainCapacityLayer, UpgradePermit};

use crate::support::{Work, fixed, until};

fn inflight(limiters: &[&Limiter]) -> Vec<usize> {
    let inflight = limiters.iter().map(|limiter| limiter.snapshot().inflight());
    inflight.collect()
}

/// The permits that open sockets keep.
type Kept = Arc<Mutex<Vec<UpgradePermit>>>;

async fn socket(
    Extension(kept): Extension<Kept>,
    Extension(permit): Extension<UpgradePermit>,
) -> StatusCode {
    kept.lock().unwrap().push(permit);
    StatusCode::SWITCHING_PROTOCOLS
}

fn handshake() -> Request<Body> {
    Request::builder()
        .uri("/socket")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .body(Body::empty())
        .unwrap()
}

#[tokio::test]
async fn a_socket_keeps_the_permits_of_all_layers_that_it_passed() {
    let (outer, inner) = (fixed(9, 0), fixed(9, 0));
    let (apart, kept) = (fixed(9, 0), Kept::default());
    let app: Router = Router::new()
        .route("/socket", any(socket))
        .route_layer(CapacityLayer::new(inner.clone()).upgrades(apart.clone()))
        .layer(CapacityLayer::new(outer.clone()))
        .layer(Extension(Arc::clone(&kept)));
    for _ in 0..3 {
        let response = app.clone().oneshot(handshake()).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    }
    assert_eq!(inflight(&[&outer, &inner, &apart]), [3, 0, 3]);
    kept.lock().unwrap().pop();
    assert_eq!(inflight(&[&outer, &inner, &apart]), [2, 0, 2]);
    kept.lock().unwrap().clear();
    assert_eq!(inflight(&[&outer, &inner, &apart]), [0, 0, 0]);
}

#[tokio::test]
async fn a_bypassed_handshake_has_a_permit_that_holds_nothing() {
    let (limiter, kept) = (fixed(1, 0), Kept::default());
    let layer =
        CapacityLayer::new(limiter.clone()).bypass(|request| request.uri.path() == "/socket");
    let app: Router = Router::new()
        .route("/socket", any(socket))
        .layer(layer)
        .layer(Extension(Arc::clone(&kept)));
    let response = app.oneshot(handshake()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(kept.lock().unwrap().len(), 1);
    assert_eq!(inflight(&[&limiter]), [0]);
}

#[tokio::test]
async fn requests_that_name_another_protocol_pass_when_the_sockets_are_full() {
    let sockets = fixed(1, 0);
    let _full = sockets.try_admit().unwrap();
    let layer = CapacityLayer::new(fixed(9, 0)).upgrades(sockets);
    let service = layer.layer(service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    }));
    for (connection, upgrade, expected) in [
        ("Upgrade, HTTP2-Settings", "h2c", StatusCode::OK),
        ("close", "websocket", StatusCode::OK),
        ("upgrade", "foo", StatusCode::OK),
        ("upgrade", "websocket", StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let request = Request::builder()
            .header("connection", connection)
            .header("upgrade", upgrade)
            .body(())
            .unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), expected, "{connection}: {upgrade}");
    }
}

#[tokio::test]
async fn a_limiter_that_stands_twice_in_a_stack_counts_a_request_once() {
    let (limiter, between, inner) = (fixed(10, 0), fixed(10, 0), Work::new());
    let layer = CapacityLayer::new(limiter.clone());
    let working = inner.clone();
    let handler = move || async move {
        working.run().await;
        "done"
    };
    let app: Router = Router::new()
        .route("/", any(handler))
        .route_layer(layer.clone())
        .layer(CapacityLayer::new(between.clone()))
        .layer(layer);
    let running: Vec<_> = (0..10)
        .map(|_| tokio::spawn(app.clone().oneshot(Request::new(Body::empty()))))
        .collect();
    until(|| inner.inside() == 10).await;
    assert_eq!(inflight(&[&limiter, &between]), [10, 10]);
    let refused = app
        .clone()
        .oneshot(Request::new(Body::empty()))
        .await
        .unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    inner.open();
    for response in running {
        assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::OK);
    }
    let snapshot = limiter.snapshot();
    assert_eq!((snapshot.completions(), snapshot.inflight()), (10, 0));
}

#[tokio::test]
async fn a_limiter_that_stands_twice_around_a_plain_service_counts_once_even_after_a_wait() {
    let limiter = fixed(1, 9);
    let layer = PlainCapacityLayer::new(limiter.clone());
    let service = ServiceBuilder::new()
        .layer(layer.clone())
        .layer(layer)
        .service(service_fn(async |(): ()| Ok::<_, Infallible>(())));
    let held = limiter.try_admit().unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| tokio::spawn(service.clone().oneshot(())))
        .collect();
    until(|| limiter.snapshot().queued() == 3).await;
    drop(held);
    for call in waiting {
        call.await.unwrap().unwrap();
    }
    assert_eq!(limiter.snapshot().completions(), 3);
}

#[tokio::test]
async fn a_request_of_its_own_that_a_task_sends_is_counted() {
    let limiter = fixed(9, 0);
    let layer = CapacityLayer::new(limiter.clone());
    let inside = layer.layer(service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    }));
    let spawning = service_fn(move |_: Request<()>| {
        let inside = inside.clone();
        async move {
            let task = tokio::spawn(inside.oneshot(Request::new(())));
            drop(task.await.unwrap());
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }
    });
    let response = layer.layer(spawning).oneshot(Request::new(())).await;
    drop(response);
    assert_eq!(limiter.snapshot().completions(), 2);
}
