//! The throttle between real clients and real servers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, routing};
use http::StatusCode;
use tokio::net::TcpListener;
use tonic::{
    Code, Request, Status,
    codegen::tokio_stream::wrappers::TcpListenerStream,
    service::interceptor::InterceptorLayer,
    transport::{Channel, Endpoint, Server},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::{Layer, Service, ServiceExt};
use tower_capacity::throttle::{Throttle, ThrottleLayer, Throttled};

use crate::support::{get, hyper_client, serve};

#[tokio::test(start_paused = true)]
async fn a_hyper_client_spares_an_axum_server_that_rejects() {
    let (up, seen) = (
        Arc::new(AtomicBool::new(true)),
        Arc::new(AtomicUsize::new(0)),
    );
    let handler = {
        let (up, seen) = (Arc::clone(&up), Arc::clone(&seen));
        move || async move {
            seen.fetch_add(1, SeqCst);
            if up.load(SeqCst) {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    };
    let address = serve(Router::new().route("/", routing::get(handler))).await;
    let layer = ThrottleLayer::adaptive();
    let mut client = layer.layer(hyper_client());

    let mut call = async || {
        let client = client.ready().await.unwrap();
        client.call(get(address, "/")).await.unwrap()
    };
    for _ in 0..50 {
        assert_eq!(call().await.status(), StatusCode::OK);
    }
    up.store(false, SeqCst);
    let mut throttled = 0;
    for _ in 0..950 {
        let response = call().await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        throttled += usize::from(response.extensions().get::<Throttled>().is_some());
        tokio::time::advance(Duration::from_millis(50)).await;
    }
    assert_eq!(seen.load(SeqCst), 1_000 - throttled);
    // Ten seconds of patience are 200 requests. Of the other 750 one in ten is sent at random, and
    // each that comes a second after the last: one in 8.8, or 85 with a deviation of 9.
    assert!((625..=705).contains(&throttled), "{throttled} of 950");
    let snapshot = layer.throttler().snapshot();
    assert_eq!(
        (snapshot.accepts(), snapshot.rejections()),
        (50, 950 - throttled as u64)
    );
}

#[tokio::test]
async fn a_port_without_a_listener_counts_as_not_accepting() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let layer = ThrottleLayer::adaptive();
    let client = layer.layer(hyper_client());
    client.oneshot(get(address, "/")).await.unwrap_err();
    let snapshot = layer.throttler().snapshot();
    assert_eq!((snapshot.accepts(), snapshot.rejections()), (0, 1));
}

/// A health service that answers every call with `status`.
async fn tonic_client(status: Status) -> (HealthClient<Throttle<Channel>>, ThrottleLayer) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_reporter, health) = tonic_health::server::health_reporter();
    let refuse = move |_request: Request<()>| Err::<Request<()>, _>(status.clone());
    let server = Server::builder()
        .layer(InterceptorLayer::new(refuse))
        .add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let layer = ThrottleLayer::adaptive();
    (HealthClient::new(layer.layer(channel)), layer)
}

#[tokio::test]
async fn a_tonic_channel_goes_on_when_the_server_pushes_one_call_back() {
    let mut status = Status::resource_exhausted("busy");
    let pushback = "30000".parse().unwrap();
    status
        .metadata_mut()
        .insert("grpc-retry-pushback-ms", pushback);
    let (mut client, layer) = tonic_client(status).await;
    for _ in 0..20 {
        let status = client
            .check(HealthCheckRequest::default())
            .await
            .unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::ResourceExhausted, "busy")
        );
    }
    let snapshot = layer.throttler().snapshot();
    assert_eq!((snapshot.rejections(), snapshot.withheld()), (20, 0));
}

#[tokio::test]
async fn a_tonic_error_that_is_not_about_capacity_is_an_acceptance() {
    let (mut client, layer) = tonic_client(Status::permission_denied("no")).await;
    for _ in 0..20 {
        let status = client
            .check(HealthCheckRequest::default())
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
    }
    let snapshot = layer.throttler().snapshot();
    assert_eq!((snapshot.accepts(), snapshot.rejections()), (20, 0));
}
