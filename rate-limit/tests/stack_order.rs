//! Which of two layers is the outermost, as each kind of stack writes it: a request that both would refuse
//! is refused by that one.

use std::convert::Infallible;

use axum::{Router, body::Body, routing::get};
use http::{Request, Response, StatusCode};
use rate_limit::{HOUR, Quota, RateLimitLayer, key};
use tokio::net::TcpListener;
use tonic::transport::{Endpoint, Server, server::TcpIncoming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_capacity::{Admission, CapacityLayer, Limiter, limit::Fixed};

/// A quota that is used up, and a capacity that is as long as the admission lives.
async fn both_refuse() -> (RateLimitLayer, CapacityLayer, Admission) {
    let quota = RateLimitLayer::new(Quota::count(1).per(HOUR)).expect("valid");
    let quota = quota.key(key::global());
    assert!(quota.limiter().check(()).is_ok());
    let limiter = Limiter::builder().law(Fixed::new(1)).max_queue(0);
    let limiter = limiter.build().expect("valid");
    let inside = limiter.try_admit().expect("there is room");
    (quota, CapacityLayer::new(limiter), inside)
}

#[tokio::test]
async fn the_last_layer_of_a_router_is_the_outermost() {
    let (quota, capacity, _inside) = both_refuse().await;
    let routes = Router::new().route("/", get(async || "hello"));
    let app: Router = routes.layer(capacity).layer(quota);
    let response = app.oneshot(Request::new(Body::empty())).await;
    assert_eq!(response.unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn the_first_layer_of_a_service_builder_is_the_outermost() {
    let (quota, capacity, _inside) = both_refuse().await;
    let inner =
        service_fn(async |_: Request<Body>| Ok::<_, Infallible>(Response::new(Body::empty())));
    let stack = ServiceBuilder::new().layer(quota).layer(capacity);
    let response = stack.service(inner).oneshot(Request::new(Body::empty()));
    let status = response.await.unwrap().status();
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn the_first_layer_of_a_tonic_server_is_the_outermost() {
    let (quota, capacity, _inside) = both_refuse().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_reporter, health) = tonic_health::server::health_reporter();
    let server = Server::builder()
        .layer(quota)
        .layer(capacity)
        .add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let mut client = HealthClient::new(endpoint.connect().await.unwrap());
    let refused = client.check(HealthCheckRequest::default()).await;
    assert_eq!(refused.unwrap_err().message(), "quota exceeded");
}
