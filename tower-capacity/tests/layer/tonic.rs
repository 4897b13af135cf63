//! The layer in a tonic server, called by a tonic client.

use std::{net::SocketAddr, time::Duration};

use crate::support::{fixed, until};
use tokio::net::TcpListener;
use tonic::{
    Code,
    codegen::tokio_stream::wrappers::TcpListenerStream,
    transport::{Endpoint, Server},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower_capacity::{CapacityLayer, Limiter};

async fn serve(layer: CapacityLayer) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_reporter, health) = tonic_health::server::health_reporter();
    let server = Server::builder().layer(layer).add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

async fn client(address: SocketAddr) -> HealthClient<tonic::transport::Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    HealthClient::new(endpoint.connect().await.unwrap())
}

fn overall() -> HealthCheckRequest {
    HealthCheckRequest::default()
}

async fn assert_empties(limiter: &Limiter) {
    until(|| limiter.snapshot().inflight() == 0).await;
}

#[tokio::test]
async fn a_unary_call_is_counted_once_and_leaves() {
    let limiter = fixed(5, 0);
    let address = serve(CapacityLayer::new(limiter.clone())).await;
    client(address).await.check(overall()).await.unwrap();
    assert_empties(&limiter).await;
    assert_eq!(limiter.snapshot().completions(), 1);
}

#[tokio::test]
async fn a_stream_holds_its_permit_and_the_next_call_is_refused_with_status_8() {
    let limiter = fixed(1, 0);
    let address = serve(CapacityLayer::new(limiter.clone())).await;
    let mut first = client(address).await;
    let mut stream = first.watch(overall()).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    assert_eq!(limiter.snapshot().inflight(), 1);

    let status = client(address).await.check(overall()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "overloaded");
    let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap();
    let pushback: u64 = pushback.to_str().unwrap().parse().unwrap();
    assert!(pushback < 4_000, "{pushback} ms");

    drop(stream);
    drop(first);
    assert_empties(&limiter).await;
    client(address).await.check(overall()).await.unwrap();
}

#[tokio::test]
async fn forty_streams_on_forty_connections_share_one_limit() {
    let limiter = fixed(5, 0);
    let address = serve(CapacityLayer::new(limiter.clone())).await;
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..40 {
        let mut client = client(address).await;
        match client.watch(overall()).await {
            Ok(stream) => held.push((client, stream)),
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted);
                refused += 1;
            }
        }
        assert!(limiter.snapshot().inflight() <= 5);
    }
    assert_eq!((held.len(), refused), (5, 35));
    drop(held);
    assert_empties(&limiter).await;
}

#[tokio::test]
async fn a_draining_server_answers_unavailable() {
    let limiter = fixed(5, 0);
    let address = serve(CapacityLayer::new(limiter.clone())).await;
    limiter.drain(Duration::from_secs(30)).await.unwrap();
    let status = client(address).await.check(overall()).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "draining")
    );
}

#[tokio::test]
async fn a_status_in_the_headers_is_classified() {
    let limiter = fixed(5, 0);
    let address = serve(CapacityLayer::new(limiter.clone())).await;
    let unknown = HealthCheckRequest {
        service: "nobody".to_owned(),
    };
    let status = client(address).await.check(unknown).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_empties(&limiter).await;
    let snapshot = limiter.snapshot();
    assert_eq!(
        (snapshot.completions(), snapshot.drops(), snapshot.ignored()),
        (0, 0, 1)
    );
}
