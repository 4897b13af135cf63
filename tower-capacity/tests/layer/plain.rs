//! The layer for services that do not speak HTTP.

use std::{io, time::Duration};

use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower::{Layer, Service, ServiceExt};
use tower_capacity::{
    BoxError, CapacityError, Limiter, Outcome, PlainCapacity, PlainCapacityLayer, Shed,
    gate::RefusedReason,
};
use tower_test::{
    assert_request_eq,
    mock::{self, Handle, Mock},
};

use crate::support::fixed;

type Limited = PlainCapacity<Mock<&'static str, u32>>;

fn limited(limit: usize, max_queue: usize) -> (Limited, Handle<&'static str, u32>, Limiter) {
    let limiter = fixed(limit, max_queue);
    let (service, handle) = mock::pair();
    let layer = PlainCapacityLayer::new(limiter.clone());
    (layer.layer(service), handle, limiter)
}

fn call(
    service: &mut Limited,
    request: &'static str,
) -> task::Spawn<<Limited as Service<&'static str>>::Future> {
    let mut readiness = task::spawn(());
    assert_ready_ok!(readiness.enter(|cx, _| service.poll_ready(cx)));
    task::spawn(service.call(request))
}

#[tokio::test]
async fn a_request_beyond_the_limit_is_shed_as_an_error_and_the_permit_returns_with_the_response() {
    let (mut service, mut handle, limiter) = limited(1, 0);
    let mut first = call(&mut service, "first");
    assert_request_eq!(handle, "first").send_response(1);
    let mut second = call(&mut service.clone(), "second");
    match assert_ready_err!(second.poll()) {
        CapacityError::Shed(shed) => assert_eq!(shed.reason(), RefusedReason::QueueFull),
        CapacityError::Service(_) => panic!("the inner service was not called"),
    }
    assert_ready_ok!(first.poll());
    let snapshot = limiter.snapshot();
    assert_eq!((snapshot.inflight(), snapshot.refusals()), (0, 1));
}

#[tokio::test]
async fn a_request_waits_in_line_and_calls_the_service_that_was_ready() {
    let (mut service, mut handle, limiter) = limited(1, 1);
    let mut first = call(&mut service, "first");
    let mut second = call(&mut service, "second");
    assert_pending!(second.poll());
    assert_eq!(limiter.snapshot().queued(), 1);
    assert_request_eq!(handle, "first").send_response(1);
    assert_eq!(assert_ready_ok!(first.poll()), 1);
    assert_pending!(second.poll());
    assert_request_eq!(handle, "second").send_response(2);
    assert_eq!(assert_ready_ok!(second.poll()), 2);
    assert_eq!(limiter.snapshot().completions(), 2);
}

#[tokio::test]
async fn a_dropped_future_returns_its_permit_or_its_place_and_counts_as_cancelled() {
    let (mut service, _handle, limiter) = limited(1, 1);
    let first = call(&mut service, "first");
    let mut second = call(&mut service, "second");
    assert_pending!(second.poll());
    drop(second);
    assert_eq!(limiter.snapshot().queued(), 0);
    drop(first);
    let snapshot = limiter.snapshot();
    assert_eq!((snapshot.inflight(), snapshot.cancelled()), (0, 1));
}

#[tokio::test]
async fn the_layer_stands_between_the_middlewares_of_tower_and_its_errors_can_be_told_apart() {
    let limiter = fixed(1, 0);
    let service = tower::ServiceBuilder::new()
        .timeout(Duration::from_secs(5))
        .layer(PlainCapacityLayer::new(limiter.clone()))
        .timeout(Duration::from_secs(1))
        .service(tower::service_fn(async |number: u32| match number {
            0 => Err(BoxError::from(io::Error::from(io::ErrorKind::NotFound))),
            _ => Ok(number),
        }));
    assert_eq!(service.clone().oneshot(1).await.unwrap(), 1);
    let error = service.clone().oneshot(0).await.unwrap_err();
    let CapacityError::Service(error) = *error.downcast().unwrap() else {
        panic!("the service failed");
    };
    assert!(error.downcast_ref::<io::Error>().is_some());

    let _held = limiter.try_admit().unwrap();
    let error = service.oneshot(1).await.unwrap_err();
    let shed = error.source().unwrap().downcast_ref::<Shed>().unwrap();
    assert_eq!(shed.reason(), RefusedReason::QueueFull);
}

/// As `reqwest` wants a layer around its connector: no error but a `BoxError`.
#[tokio::test]
async fn a_client_of_reqwest_opens_no_more_connections_at_once_than_the_limit() {
    let app = axum::Router::new().route("/", axum::routing::get(async || "hello"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });

    let limiter = fixed(1, 0);
    let layer = tower::ServiceBuilder::new()
        .map_err(BoxError::from)
        .layer(PlainCapacityLayer::new(limiter.clone()));
    let client = reqwest::Client::builder().connector_layer(layer);
    // Each request opens a connection.
    let client = client.pool_max_idle_per_host(0).no_proxy().build().unwrap();
    let response = client.get(&url).send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), "hello");
    assert_eq!(limiter.snapshot().completions(), 1);

    let _opening = limiter.try_admit().unwrap();
    let error = client.get(&url).send().await.unwrap_err();
    assert!(error.is_connect(), "{error:?}");
    assert_eq!(limiter.snapshot().refusals(), 1);
}

#[tokio::test]
async fn an_error_of_the_service_signals_overload_unless_told_otherwise() {
    let answer = async |request: Result<u32, io::ErrorKind>| request.map_err(io::Error::from);
    let layer = PlainCapacityLayer::adaptive();
    let mut service = layer.layer(tower::service_fn(answer));
    let missing = service.call(Err(io::ErrorKind::NotFound)).await;
    assert_eq!(missing.unwrap_err().to_string(), "entity not found");
    assert_eq!(layer.limiter().snapshot().drops(), 1);

    let layer = layer.classify(|result: &Result<u32, io::Error>| match result {
        Ok(_) => Outcome::Success,
        Err(_) => Outcome::Ignored,
    });
    let mut service = layer.layer(tower::service_fn(answer));
    service
        .call(Err(io::ErrorKind::NotFound))
        .await
        .unwrap_err();
    let snapshot = layer.limiter().snapshot();
    assert_eq!((snapshot.drops(), snapshot.ignored()), (1, 1));
}
