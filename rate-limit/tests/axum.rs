//! Real axum servers, real connections: the quota is one, however many services axum makes.

use std::net::SocketAddr;

use axum::{Router, body::Body, extract::ConnectInfo, extract::State, routing::get};
use futures_util::future::join_all;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use rate_limit::{HOUR, Quota, RateLimitLayer, key};
use tokio::net::TcpListener;

const CONNECTIONS: usize = 40;
const QUOTA: usize = 5;

/// Five an hour: none comes back while a test runs.
fn layer() -> RateLimitLayer {
    RateLimitLayer::new(Quota::count(QUOTA as u64).per(HOUR))
        .unwrap()
        .key(key::peer_from(|head| {
            Some(head.extensions().get::<ConnectInfo<SocketAddr>>()?.0.ip())
        }))
}

async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
    addr
}

/// Sends one request on a connection of its own.
async fn get_on_new_connection(addr: SocketAddr, path: &str) -> Response<String> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let request = Request::get(format!("http://{addr}{path}"))
        .body(Body::empty())
        .unwrap();
    let (parts, body) = client.request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Response::from_parts(parts, String::from_utf8(body.into()).unwrap())
}

/// How many of 40 concurrent connections are admitted; the rest must be limited.
async fn admitted(app: Router, path: &str) -> usize {
    let addr = serve(app).await;
    let requests = (0..CONNECTIONS).map(|_| get_on_new_connection(addr, path));
    let statuses: Vec<_> = join_all(requests)
        .await
        .iter()
        .map(Response::status)
        .collect();
    let count = |wanted| statuses.iter().filter(|&&status| status == wanted).count();
    let admitted = count(StatusCode::OK);
    assert_eq!(count(StatusCode::TOO_MANY_REQUESTS), CONNECTIONS - admitted);
    admitted
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_connections_share_one_quota() {
    let app = Router::new().route("/", get(async || "ok")).layer(layer());
    assert_eq!(admitted(app, "/").await, QUOTA);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nested_router_shares_one_quota() {
    let api = Router::new()
        .route("/work", get(async || "ok"))
        .layer(layer());
    assert_eq!(
        admitted(Router::new().nest("/api", api), "/api/work").await,
        QUOTA
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_layer_shares_one_quota() {
    let app = Router::new()
        .route("/", get(async || "ok"))
        .route_layer(layer());
    assert_eq!(admitted(app, "/").await, QUOTA);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_before_with_state_shares_one_quota() {
    let app = Router::new()
        .route("/", get(async |State(word): State<&'static str>| word))
        .layer(layer())
        .with_state("ok");
    assert_eq!(admitted(app, "/").await, QUOTA);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_after_with_state_shares_one_quota() {
    let app = Router::new()
        .route("/", get(async |State(word): State<&'static str>| word))
        .with_state("ok")
        .layer(layer());
    assert_eq!(admitted(app, "/").await, QUOTA);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_layer_on_two_routers_is_one_quota() {
    let layer = layer();
    let a = Router::new()
        .route("/a", get(async || "ok"))
        .layer(layer.clone());
    let b = Router::new().route("/b", get(async || "ok")).layer(layer);
    let addr = serve(a.merge(b)).await;
    let mut admitted = 0;
    for path in ["/a", "/b"].into_iter().cycle().take(CONNECTIONS) {
        let response = get_on_new_connection(addr, path).await;
        admitted += usize::from(response.status() == StatusCode::OK);
    }
    assert_eq!(admitted, QUOTA);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_why_and_when_to_come_back() {
    let addr = serve(Router::new().route("/", get(async || "ok")).layer(layer())).await;
    for _ in 0..QUOTA {
        assert_eq!(
            get_on_new_connection(addr, "/").await.status(),
            StatusCode::OK
        );
    }
    let refusal = get_on_new_connection(addr, "/").await;
    assert_eq!(refusal.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(
        refusal.headers()[header::CONTENT_TYPE],
        "application/problem+json"
    );
    let wait: u64 = refusal.headers()[header::RETRY_AFTER]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        (700..=720).contains(&wait),
        "one of five an hour comes back in 720 s, not {wait}"
    );
    let problem: serde_json::Value = serde_json::from_str(refusal.body()).unwrap();
    assert_eq!(problem["status"], 429);
    assert_eq!(problem["violated-policies"], serde_json::json!(["default"]));
    assert!(
        problem["type"]
            .as_str()
            .unwrap()
            .ends_with("#quota-exceeded")
    );
    assert!(
        !refusal.headers().contains_key("host"),
        "nothing of the request comes back"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fallbacks_and_unknown_paths_are_limited_by_a_router_layer() {
    let app = Router::new().route("/", get(async || "ok")).layer(layer());
    let addr = serve(app).await;
    for _ in 0..QUOTA {
        assert_eq!(
            get_on_new_connection(addr, "/none").await.status(),
            StatusCode::NOT_FOUND
        );
    }
    assert_eq!(
        get_on_new_connection(addr, "/").await.status(),
        StatusCode::TOO_MANY_REQUESTS
    );
}

/// With the feature, the default key needs no help.
#[cfg(feature = "axum")]
#[tokio::test(flavor = "multi_thread")]
async fn the_default_key_finds_connect_info() {
    let layer = RateLimitLayer::new(Quota::count(QUOTA as u64).per(HOUR))
        .unwrap()
        .missing_key(key::MissingKey::Allow);
    let app = Router::new().route("/", get(async || "ok")).layer(layer);
    assert_eq!(admitted(app, "/").await, QUOTA);
}
