//! The layer under `axum::serve`, over TCP.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use crate::support::{Work, connect, fixed, get_once, request, serve, until};
use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{State, ws::WebSocketUpgrade},
    response::Response,
    routing::{any, get},
};
use futures_util::{future::join_all, stream};
use http::StatusCode;
use http_body_util::BodyExt;
use tower_capacity::{CapacityLayer, DrainError, Limiter, UpgradePermit};

const CONNECTIONS: usize = 40;
const LIMIT: usize = 5;

fn shedding() -> CapacityLayer {
    CapacityLayer::new(fixed(LIMIT, 0))
}

async fn work(State(work): State<Work>) -> &'static str {
    work.run().await;
    "done"
}

/// Sends one request on each of 40 connections; the work ends once all others were refused.
async fn statuses(address: SocketAddr, path: &str, limiter: &Limiter, work: &Work) -> Vec<u16> {
    let requests = (0..CONNECTIONS).map(|_| get_once(address, path));
    let release = async {
        until(|| limiter.snapshot().refusals() == (CONNECTIONS - LIMIT) as u64).await;
        until(|| work.inside() == LIMIT).await;
        work.open();
    };
    let (responses, ()) = tokio::join!(join_all(requests), release);
    responses
        .iter()
        .map(|response| response.status().as_u16())
        .collect()
}

async fn assert_holds_the_limit(path: &str, limiter: Limiter, work: Work, app: Router) {
    let address = serve(app).await;
    let statuses = statuses(address, path, &limiter, &work).await;
    let count = |status| statuses.iter().filter(|&&s| s == status).count();
    assert_eq!((count(200), count(503)), (LIMIT, CONNECTIONS - LIMIT));
    assert_eq!(work.peak(), LIMIT);
    until(|| limiter.snapshot().inflight() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_connections_share_one_limit() {
    let (layer, inner) = (shedding(), Work::new());
    let limiter = layer.limiter().clone();
    let app = Router::new()
        .route("/", get(work))
        .with_state(inner.clone())
        .layer(layer);
    assert_holds_the_limit("/", limiter, inner, app).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_connections_share_one_limit_with_the_layer_before_the_state() {
    let (layer, inner) = (shedding(), Work::new());
    let limiter = layer.limiter().clone();
    let app = Router::new()
        .route("/", get(work))
        .layer(layer)
        .with_state(inner.clone());
    assert_holds_the_limit("/", limiter, inner, app).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_connections_share_one_limit_on_a_nested_router() {
    let (layer, inner) = (shedding(), Work::new());
    let limiter = layer.limiter().clone();
    let nested = Router::new().route("/work", get(work)).layer(layer);
    let app = Router::new().nest("/api", nested).with_state(inner.clone());
    assert_holds_the_limit("/api/work", limiter, inner, app).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_connections_share_one_limit_over_three_routes() {
    let (layer, inner) = (shedding(), Work::new());
    let limiter = layer.limiter().clone();
    let app = Router::new()
        .route("/a", get(work))
        .route_layer(layer.clone())
        .route("/b", get(work).layer(layer.clone()))
        .merge(Router::new().route("/c", get(work)).layer(layer))
        .with_state(inner.clone());
    let address = serve(app).await;
    let requests = (0..CONNECTIONS).map(|i| get_once(address, ["/a", "/b", "/c"][i % 3]));
    let release = async {
        until(|| limiter.snapshot().refusals() == (CONNECTIONS - LIMIT) as u64).await;
        until(|| inner.inside() == LIMIT).await;
        inner.open();
    };
    tokio::join!(join_all(requests), release);
    assert_eq!(inner.peak(), LIMIT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_connections_are_all_served_when_the_room_holds_them() {
    let inner = Work::new();
    let limiter = fixed(LIMIT, CONNECTIONS);
    let layer = CapacityLayer::new(limiter.clone());
    let app = Router::new()
        .route("/", get(work))
        .with_state(inner.clone())
        .layer(layer);
    let address = serve(app).await;
    let requests = (0..CONNECTIONS).map(|_| get_once(address, "/"));
    let release = async {
        until(|| limiter.snapshot().queued() == CONNECTIONS - LIMIT).await;
        until(|| inner.inside() == LIMIT).await;
        inner.open();
    };
    let (responses, ()) = tokio::join!(join_all(requests), release);
    assert!(
        responses
            .iter()
            .all(|response| response.status() == StatusCode::OK)
    );
    assert_eq!(inner.peak(), LIMIT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expensive_route_takes_its_permits_and_is_not_starved_by_a_cheap_one() {
    let (cheap, export) = (Work::new(), Work::new());
    let limiter = fixed(LIMIT, CONNECTIONS);
    let layer = CapacityLayer::new(limiter.clone());
    let layer = layer.cost(|request| match request.uri.path() {
        "/export" => 4,
        _ => 1,
    });
    let app = Router::new()
        .route("/", get(work).with_state(cheap.clone()))
        .route("/export", get(work).with_state(export.clone()))
        .layer(layer);
    let address = serve(app).await;
    let inside: Vec<_> = (0..LIMIT)
        .map(|_| tokio::spawn(get_once(address, "/")))
        .collect();
    until(|| cheap.inside() == LIMIT).await;
    let exported = tokio::spawn(get_once(address, "/export"));
    until(|| limiter.snapshot().queued() == 4).await;
    let behind: Vec<_> = (0..10)
        .map(|_| tokio::spawn(get_once(address, "/")))
        .collect();
    until(|| limiter.snapshot().queued() == 14).await;
    cheap.open();
    // Four that wait behind the export cannot enter before it; one can beside it.
    until(|| export.inside() == 1).await;
    export.open();
    for response in join_all(inside.into_iter().chain(behind).chain([exported])).await {
        assert_eq!(response.unwrap().status(), StatusCode::OK);
    }
    assert_eq!((cheap.peak(), export.peak()), (LIMIT, 1));
    until(|| limiter.snapshot().inflight() == 0).await;
    assert_eq!(limiter.snapshot().completions(), 16);
}

/// A router with limit 1, and its only permit taken by a request to `/`.
async fn taken(layer: CapacityLayer) -> (SocketAddr, Limiter, Work) {
    let inner = Work::new();
    let limiter = layer.limiter().clone();
    let app = Router::new()
        .route("/", get(work))
        .route("/livez", get(|| async { "alive" }))
        .with_state(inner.clone())
        .layer(layer);
    let address = serve(app).await;
    tokio::spawn(get_once(address, "/"));
    let inflight = limiter.clone();
    until(move || inflight.snapshot().inflight() == 1).await;
    (address, limiter, inner)
}

#[tokio::test]
async fn a_shed_request_is_told_when_to_come_back() {
    let (address, _limiter, _work) = taken(CapacityLayer::new(fixed(1, 0))).await;
    let response = get_once(address, "/").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let seconds: u64 = response.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=4).contains(&seconds), "Retry-After: {seconds}");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "overloaded, try again later\n");
}

#[tokio::test]
async fn a_bypassed_probe_is_answered_while_the_service_is_full() {
    let layer = CapacityLayer::new(fixed(1, 0)).bypass(|request| request.uri.path() == "/livez");
    let (address, limiter, _work) = taken(layer).await;
    assert_eq!(get_once(address, "/livez").await.status(), StatusCode::OK);
    assert_eq!(limiter.snapshot().refusals(), 0);
    assert_eq!(
        get_once(address, "/").await.status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
}

#[tokio::test]
async fn shadow_mode_counts_what_it_would_have_shed_and_admits_it() {
    let (address, limiter, _work) = taken(CapacityLayer::new(fixed(1, 0)).shadow(true)).await;
    assert_eq!(get_once(address, "/livez").await.status(), StatusCode::OK);
    assert_eq!(limiter.snapshot().refusals(), 1);
}

#[tokio::test]
async fn a_hook_answers_shed_requests_in_the_services_own_words() {
    let (limiter, inner) = (fixed(1, 0), Work::new());
    let layer = CapacityLayer::new(limiter.clone()).on_shed(|shed, request| {
        let text = format!(
            "{} {}/{}",
            request.uri.path(),
            shed.inflight(),
            shed.limit()
        );
        Response::builder()
            .status(529)
            .body(Body::from(text))
            .unwrap()
    });
    let app = Router::new()
        .route("/", get(work))
        .with_state(inner.clone())
        .layer(layer);
    let address = serve(app).await;
    tokio::spawn(get_once(address, "/"));
    until(|| limiter.snapshot().inflight() == 1).await;
    let response = get_once(address, "/").await;
    assert_eq!(response.status().as_u16(), 529);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "/ 1/1");
}

#[tokio::test]
async fn a_draining_limiter_refuses_newcomers_and_waits_for_the_rest() {
    let (address, limiter, inner) = taken(CapacityLayer::new(fixed(1, 0))).await;
    let drain = tokio::spawn({
        let limiter = limiter.clone();
        async move { limiter.drain(Duration::from_secs(30)).await }
    });
    until(|| limiter.is_draining()).await;
    assert_eq!(
        get_once(address, "/").await.status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
    inner.open();
    drain.await.unwrap().unwrap();
    limiter.resume();
    assert_eq!(get_once(address, "/").await.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_drain_whose_deadline_passes_says_how_many_are_inside() {
    let limiter = fixed(2, 0);
    let _admission = limiter.try_admit().unwrap();
    let error = limiter.drain(Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(error, DrainError::Timeout { inflight: 1, .. }));
    assert_eq!(error.to_string(), "1 requests still inside after 5s");
}

/// A body that says something each second for 30 seconds of tokio time.
async fn thirty_seconds() -> Body {
    let ticks = tokio::time::interval(Duration::from_secs(1));
    Body::from_stream(stream::unfold((ticks, 0), |(mut ticks, sent)| async move {
        ticks.tick().await;
        (sent <= 30).then(|| {
            (
                Ok::<_, Infallible>(Bytes::from_static(b"tick")),
                (ticks, sent + 1),
            )
        })
    }))
}

/// A streaming response that has just begun, with the permit it holds.
async fn streaming(layer: CapacityLayer) -> (Limiter, Response<hyper::body::Incoming>) {
    let limiter = layer.limiter().clone();
    let app = Router::new().route("/", get(thirty_seconds)).layer(layer);
    let address = serve(app).await;
    let response = get_once(address, "/").await;
    assert_eq!(response.status(), StatusCode::OK);
    (limiter, response)
}

#[tokio::test(start_paused = true)]
async fn a_streaming_body_keeps_its_permit_for_thirty_seconds() {
    let (limiter, response) = streaming(CapacityLayer::new(fixed(1, 0))).await;
    let mut body = response.into_body();
    for _ in 0..30 {
        assert!(body.frame().await.unwrap().is_ok());
        assert_eq!(limiter.snapshot().inflight(), 1);
    }
    while body.frame().await.is_some() {}
    until(|| limiter.snapshot().inflight() == 0).await;
    let snapshot = limiter.snapshot();
    assert_eq!((snapshot.completions(), snapshot.cancelled()), (1, 0));
}

#[tokio::test]
async fn a_client_that_drops_its_stream_returns_the_permit() {
    let (limiter, response) = streaming(CapacityLayer::new(fixed(1, 0))).await;
    assert_eq!(limiter.snapshot().inflight(), 1);
    drop(response);
    until(|| limiter.snapshot().inflight() == 0).await;
}

#[tokio::test]
async fn a_stream_may_release_its_permit_on_headers() {
    let layer = CapacityLayer::new(fixed(1, 0)).release_on_headers(true);
    let (limiter, response) = streaming(layer).await;
    assert_eq!(limiter.snapshot().inflight(), 0);
    drop(response);
}

#[tokio::test]
async fn a_client_that_goes_away_before_the_answer_counts_as_cancelled() {
    let inner = Work::new();
    let limiter = fixed(1, 0);
    let app = Router::new()
        .route("/", get(work))
        .with_state(inner.clone())
        .layer(CapacityLayer::new(limiter.clone()));
    let address = serve(app).await;
    let client = tokio::spawn(get_once(address, "/"));
    until(|| limiter.snapshot().inflight() == 1).await;
    client.abort();
    until(|| limiter.snapshot().inflight() == 0).await;
    let snapshot = limiter.snapshot();
    assert_eq!(
        (
            snapshot.cancelled(),
            snapshot.completions(),
            snapshot.drops()
        ),
        (1, 0, 0)
    );
}

#[tokio::test]
async fn a_panicking_handler_returns_its_permit() {
    async fn panics() -> &'static str {
        panic!("the handler's own fault")
    }
    let limiter = fixed(1, 0);
    let app = Router::new()
        .route("/", get(panics))
        .layer(CapacityLayer::new(limiter.clone()));
    let address = serve(app).await;
    for _ in 0..3 {
        let mut connection = connect(address).await;
        assert!(
            connection.send_request(request("/")).await.is_err(),
            "the connection dies"
        );
        until(|| limiter.snapshot().inflight() == 0).await;
    }
    assert_eq!(limiter.snapshot().cancelled(), 3);
}

#[tokio::test]
async fn server_errors_count_as_drops_and_client_errors_as_nothing() {
    let limiter = fixed(1, 0);
    let app = Router::new()
        .route("/ok", get(|| async { StatusCode::OK }))
        .route(
            "/broken",
            get(|| async { StatusCode::INTERNAL_SERVER_ERROR }),
        )
        .layer(CapacityLayer::new(limiter.clone()));
    let address = serve(app).await;
    for path in ["/ok", "/broken", "/missing"] {
        let _ = get_once(address, path).await.into_body().collect().await;
        until(|| limiter.snapshot().inflight() == 0).await;
    }
    let snapshot = limiter.snapshot();
    assert_eq!(
        (snapshot.completions(), snapshot.drops(), snapshot.ignored()),
        (1, 1, 1)
    );
}

/// Starts a WebSocket handshake and answers the status, with the connection held open.
async fn handshake(address: SocketAddr) -> (StatusCode, hyper::upgrade::Upgraded) {
    let request = http::Request::builder()
        .uri("/")
        .header("host", "test")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .body(Body::empty())
        .unwrap();
    let response = connect(address).await.send_request(request).await.unwrap();
    let status = response.status();
    (status, hyper::upgrade::on(response).await.unwrap())
}

#[tokio::test]
async fn a_websocket_that_keeps_the_guard_keeps_its_permit() {
    async fn socket(upgrade: WebSocketUpgrade, permit: Extension<UpgradePermit>) -> Response {
        upgrade.on_upgrade(move |mut socket| async move {
            let _permit = permit;
            while socket.recv().await.is_some() {}
        })
    }
    let limiter = fixed(1, 0);
    let app = Router::new()
        .route("/", any(socket))
        .layer(CapacityLayer::new(limiter.clone()));
    let address = serve(app).await;
    let (status, socket) = handshake(address).await;
    assert_eq!(status, StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(
        get_once(address, "/").await.status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
    drop(socket);
    until(|| limiter.snapshot().inflight() == 0).await;
}

#[tokio::test]
async fn a_websocket_that_ignores_the_guard_returns_its_permit_with_the_handshake() {
    async fn socket(upgrade: WebSocketUpgrade) -> Response {
        upgrade.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
    }
    let limiter = fixed(1, 0);
    let app = Router::new()
        .route("/", any(socket))
        .layer(CapacityLayer::new(limiter.clone()));
    let address = serve(app).await;
    let (_status, _socket) = handshake(address).await;
    until(|| limiter.snapshot().inflight() == 0).await;
}

#[tokio::test]
async fn the_layer_fits_where_users_put_it() {
    let layer = CapacityLayer::adaptive();
    let _stacked: Router = Router::new().route("/", get(|| async {})).layer(
        tower::ServiceBuilder::new()
            .layer(layer.clone())
            .layer(shedding()),
    );
    let service = tower::ServiceBuilder::new()
        .layer(layer)
        .service(Router::<()>::new());
    let _boxed: tower::util::BoxCloneSyncService<http::Request<Body>, _, Infallible> =
        tower::util::BoxCloneSyncService::new(service);
}
