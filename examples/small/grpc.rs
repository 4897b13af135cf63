//! `cargo run -p overload-examples --bin grpc`
//!
//! A tonic server and a client, both protected. In tonic's builder the first `layer` is the outermost.

use std::time::Duration;

use rate_limit::{MINUTE, Quota, RateLimitLayer};
use tokio::net::TcpListener;
use tonic::codegen::tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Endpoint, Server};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::ServiceBuilder;
use tower_capacity::{CapacityLayer, Limiter, limit::Fixed, throttle::ThrottleLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A limit of one and no queue, so that a second call is refused: `CapacityLayer::adaptive()` finds the limit.
    let limiter = Limiter::builder().law(Fixed::new(1)).max_queue(0).build()?;
    let quota = RateLimitLayer::new(Quota::count(6).per(MINUTE))?;
    // The service of tonic-health stands for your own.
    let (_reporter, health) = tonic_health::server::health_reporter();
    let server = Server::builder()
        .layer(quota) // outermost: too often
        .layer(CapacityLayer::new(limiter.clone())) // no room
        .add_service(health);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    println!("listening on {address}");
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    // The client spares a backend that accepts nothing, and sends everything otherwise.
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .timeout(Duration::from_secs(2)) // sent as `grpc-timeout`: no request waits longer
        .connect()
        .await?;
    let throttled = ServiceBuilder::new().layer(ThrottleLayer::adaptive());
    let mut client = HealthClient::new(throttled.service(channel));

    let call = HealthCheckRequest::default;
    println!(
        "call: {:?}",
        client.check(call()).await?.into_inner().status()
    );
    let mut stream = client.watch(call()).await?.into_inner();
    stream.message().await?;
    let shed = client
        .check(call())
        .await
        .expect_err("the stream has the place");
    println!("shed: {:?}, {}", shed.code(), shed.message());
    drop(stream);
    // What was shed cost no quota: four of six are left.
    let mut served = 0;
    let limited = loop {
        while limiter.snapshot().inflight() > 0 {
            tokio::task::yield_now().await;
        }
        match client.check(call()).await {
            Ok(_) => served += 1,
            Err(status) => break status,
        }
    };
    println!(
        "after {served} more: {:?}, {}",
        limited.code(),
        limited.message()
    );
    Ok(())
}
