//! Refusals fit their protocol and say what they are.

use std::{collections::HashSet, convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_capacity::{
    CapacityLayer, Limiter, Outcome, Shed, by_status, gate::RefusedReason, layer::CapacityBody,
    limit::Aimd,
};

use crate::support::fixed;

type Body = Full<Bytes>;

async fn done(_request: Request<()>) -> Result<Response<Body>, Infallible> {
    Ok(Response::new(Full::from("done")))
}

/// The refusal of a request by a limiter that is full.
async fn refusal(request: http::request::Builder) -> Response<CapacityBody<Body>> {
    let limiter = fixed(1, 0);
    let _held = limiter.try_admit().unwrap();
    let service = CapacityLayer::new(limiter).layer(service_fn(done));
    service.oneshot(request.body(()).unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_refused_head_over_http2_has_the_length_and_no_data() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limiter = fixed(1, 0);
    let _held = limiter.try_admit().unwrap();
    let inner = service_fn(async |_: Request<Incoming>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let service = CapacityLayer::new(limiter).layer(inner);
    tokio::spawn(async move {
        let (stream, _peer) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(move |request| service.clone().oneshot(request));
        let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        http.serve_connection(TokioIo::new(stream), service).await
    });
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::HEAD)
        .uri(format!("http://{address}/"))
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["content-length"], "28");
    let body = response.into_body().collect().await.expect("no error");
    assert!(body.to_bytes().is_empty());
}

#[tokio::test]
async fn a_hooks_body_is_left_out_of_the_response_to_a_head() {
    let limiter = fixed(1, 0);
    let _held = limiter.try_admit().unwrap();
    let layer = CapacityLayer::new(limiter).on_shed(|_, _| Response::new(Full::from("busy")));
    let head = Request::head("/").body(()).unwrap();
    let response = layer.layer(service_fn(done)).oneshot(head).await.unwrap();
    assert_eq!(response.headers()["content-length"], "4");
    assert!(
        response
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes()
            .is_empty()
    );
}

#[tokio::test]
async fn a_refusal_carries_the_reason_and_the_numbers_in_its_extensions() {
    let response = refusal(Request::builder()).await;
    let shed = response.extensions().get::<Shed>().unwrap();
    assert_eq!((shed.reason(), shed.limit()), (RefusedReason::QueueFull, 1));
    let error: &dyn std::error::Error = shed;
    assert_eq!(error.to_string(), "1 of 1 permits are out and 0 wait");
}

#[tokio::test]
async fn a_grpc_web_refusal_has_the_content_type_of_its_request() {
    for asked in ["application/grpc-web+proto", "application/grpc-web-text"] {
        let response = refusal(Request::builder().header("content-type", asked)).await;
        assert_eq!(response.headers()["content-type"], asked);
        assert_eq!(response.headers()["grpc-status"], "8");
    }
    let response =
        refusal(Request::builder().header("content-type", "application/grpc+proto")).await;
    assert_eq!(response.headers()["content-type"], "application/grpc");
}

#[tokio::test]
async fn a_draining_limiter_closes_the_connection_of_http_1_and_says_why() {
    let limiter = fixed(1, 0);
    limiter.drain(Duration::from_secs(1)).await.unwrap();
    let service = CapacityLayer::new(limiter).layer(service_fn(done));
    for (version, close) in [(Version::HTTP_11, true), (Version::HTTP_2, false)] {
        let request = Request::builder().version(version).body(()).unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let connection = response.headers().get("connection");
        assert_eq!(connection.is_some_and(|value| value == "close"), close);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "shutting down, try another instance\n");
    }
}

#[tokio::test]
async fn callers_that_are_shed_together_are_told_to_come_back_at_different_times() {
    let mut told = HashSet::new();
    for _ in 0..64 {
        let response = refusal(Request::builder()).await;
        told.insert(
            response.headers()["retry-after"]
                .to_str()
                .unwrap()
                .to_owned(),
        );
    }
    let expected = ["1", "2", "3", "4"].map(str::to_owned);
    assert_eq!(told, expected.into());
}

#[tokio::test(start_paused = true)]
async fn what_an_inner_limiter_refuses_is_no_overload_of_the_outer() {
    let outer = Limiter::builder().law(Aimd::new()).build().unwrap();
    let inner = fixed(1, 0);
    let held = inner.try_admit().unwrap();
    let service = ServiceBuilder::new()
        .layer(
            CapacityLayer::new(outer.clone())
                .classify(|parts| by_status(parts.status, &parts.headers)),
        )
        .layer(CapacityLayer::new(inner.clone()))
        .service(service_fn(done));
    for _ in 0..100 {
        let response = service.clone().oneshot(Request::new(())).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    let snapshot = outer.snapshot();
    assert_eq!((snapshot.drops(), snapshot.completions()), (0, 0));
    assert_eq!(inner.snapshot().refusals(), 100);
    drop(held);
    let broken = service_fn(async |_: Request<()>| {
        let response = Response::builder().status(503).body(Body::default());
        Ok::<_, Infallible>(response.unwrap())
    });
    let mut service = CapacityLayer::new(outer.clone()).layer(broken);
    service.call(Request::new(())).await.unwrap();
    assert_eq!(outer.snapshot().drops(), 1, "one of the service's own");
    assert_eq!(
        by_status(StatusCode::SERVICE_UNAVAILABLE, &Default::default()),
        Outcome::Dropped
    );
}
