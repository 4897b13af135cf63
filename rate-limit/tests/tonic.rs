//! A real tonic server and client: a refusal is a gRPC status, not an HTTP error.

use std::net::SocketAddr;

use rate_limit::{HOUR, Limiter, MINUTE, Policy, Quota, RateLimitLayer, key};
use tokio::net::TcpListener;
use tonic::{
    Code, Status,
    transport::{
        Channel, Endpoint, Server,
        server::{TcpConnectInfo, TcpIncoming},
    },
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;

const CALLS: usize = 40;
const QUOTA: usize = 5;

/// Serves tonic's own health service behind `layer`.
async fn serve(layer: RateLimitLayer) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (_reporter, health) = tonic_health::server::health_reporter();
    let server = Server::builder().layer(layer).add_service(health);
    tokio::spawn(async move {
        server
            .serve_with_incoming(TcpIncoming::from(listener))
            .await
            .unwrap();
    });
    addr
}

async fn connect(addr: SocketAddr) -> HealthClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).unwrap();
    HealthClient::new(endpoint.connect().await.unwrap())
}

async fn check(client: &mut HealthClient<Channel>) -> Result<(), Status> {
    client
        .check(HealthCheckRequest {
            service: String::new(),
        })
        .await
        .map(|_| ())
}

fn layer() -> RateLimitLayer {
    RateLimitLayer::new(Quota::count(QUOTA as u64).per(HOUR))
        .unwrap()
        .key(key::peer_from(|head| {
            Some(
                head.extensions()
                    .get::<TcpConnectInfo>()?
                    .remote_addr()?
                    .ip(),
            )
        }))
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_and_streams_share_one_quota_and_get_status_8() {
    let addr = serve(layer()).await;
    let mut refusals = Vec::new();
    for _ in 0..4 {
        let mut client = connect(addr).await;
        for _ in 0..CALLS / 4 {
            if let Err(status) = check(&mut client).await {
                refusals.push(status);
            }
        }
    }
    assert_eq!(refusals.len(), CALLS - QUOTA);
    for status in &refusals {
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.code() as i32, 8);
        assert_eq!(status.message(), "quota exceeded");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trailers_say_when_to_come_back() {
    let addr = serve(layer()).await;
    let mut client = connect(addr).await;
    for _ in 0..QUOTA {
        check(&mut client).await.unwrap();
    }
    let status = check(&mut client).await.unwrap_err();
    let pushback = status
        .metadata()
        .get("grpc-retry-pushback-ms")
        .unwrap()
        .to_str()
        .unwrap();
    let pushback: u64 = pushback.parse().unwrap();
    assert!((700_000..=720_000).contains(&pushback), "{pushback} ms");
    assert!(
        !status.metadata().contains_key("te"),
        "nothing of the request comes back"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_details_decode_as_rich_errors() {
    let limiter = Limiter::builder()
        .policy(Policy::new("burst", Quota::count(1).per(MINUTE)))
        .policy(Policy::new("hourly", Quota::count(1).per(HOUR)))
        .build()
        .unwrap();
    let layer = RateLimitLayer::from_limiter(limiter).key(key::global());
    let mut client = connect(serve(layer).await).await;
    check(&mut client).await.unwrap();
    let details = check(&mut client).await.unwrap_err().get_error_details();

    let delay = details.retry_info().unwrap().retry_delay.unwrap();
    assert!((3_500..=3_600).contains(&delay.as_secs()), "{delay:?}");
    assert!(delay.subsec_nanos() > 0, "exact, not rounded");
    let violations = &details.quota_failure().unwrap().violations;
    let told: Vec<_> = violations
        .iter()
        .map(|v| (&*v.subject, &*v.description))
        .collect();
    assert_eq!(
        told,
        [
            ("burst", "1 requests per 60s, burst 1"),
            ("hourly", "1 requests per 3600s, burst 1")
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_can_never_conform_is_told_not_to_retry() {
    let quota = Policy::new("units", Quota::count(5).per(HOUR)).cost(|_| 6);
    let limiter = Limiter::builder().policy(quota).build().unwrap();
    let layer = RateLimitLayer::from_limiter(limiter).key(key::global());
    let mut client = connect(serve(layer).await).await;
    let status = check(&mut client).await.unwrap_err();
    assert_eq!(
        status.metadata().get("grpc-retry-pushback-ms").unwrap(),
        "-1"
    );
    assert!(status.get_error_details().retry_info().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_caller_gets_permission_denied() {
    let everyone = key::AccessList::networks(["127.0.0.0/8"]).unwrap();
    let mut client = connect(serve(layer().deny(everyone)).await).await;
    assert_eq!(
        check(&mut client).await.unwrap_err().code(),
        Code::PermissionDenied
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bypassed_method_is_never_limited() {
    let layer = layer().bypass(|head| head.uri.path() == "/grpc.health.v1.Health/Check");
    let mut client = connect(serve(layer).await).await;
    for _ in 0..CALLS {
        check(&mut client).await.unwrap();
    }
}

/// With the feature, the default key needs no help.
#[cfg(feature = "tonic")]
#[tokio::test(flavor = "multi_thread")]
async fn the_default_key_finds_connect_info() {
    let layer = RateLimitLayer::new(Quota::count(QUOTA as u64).per(HOUR))
        .unwrap()
        .missing_key(key::MissingKey::Allow);
    let mut client = connect(serve(layer).await).await;
    for _ in 0..QUOTA {
        check(&mut client).await.unwrap();
    }
    assert_eq!(
        check(&mut client).await.unwrap_err().code(),
        Code::ResourceExhausted
    );
}

#[tokio::test]
async fn failures_of_the_server_are_free_where_the_policy_says_so() {
    let limiter = Limiter::builder()
        .policy(
            Policy::new("calls", Quota::count(2).per(HOUR))
                .settle(|response| response.is_failure().then_some(0)),
        )
        .build()
        .unwrap();
    let layer = RateLimitLayer::from_limiter(limiter.clone()).key(key::global());
    let addr = serve(layer).await;
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).unwrap();
    let channel = endpoint.connect().await.unwrap();
    // No service is there, so the server says that it is not implemented.
    let elsewhere = format!("http://{addr}/elsewhere").parse().unwrap();
    let mut failing = HealthClient::with_origin(channel, elsewhere);
    for _ in 0..5 {
        let status = check(&mut failing).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
    }
    assert_eq!(limiter.peek(()), 2);
    let mut client = connect(addr).await;
    assert!(check(&mut client).await.is_ok());
    assert_eq!(limiter.peek(()), 1);
}
