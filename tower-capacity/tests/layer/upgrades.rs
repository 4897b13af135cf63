//! Upgraded connections with a limiter of their own, under `axum::serve`.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Extension, Router,
    extract::{State, ws::WebSocketUpgrade},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use futures_util::{SinkExt, StreamExt, future::join_all, stream};
use http::{Request, StatusCode};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message},
};
use tower_capacity::{CapacityLayer, Limiter, UpgradePermit};

use crate::support::{Work, connect, fixed, get_once, serve, until};

const LIMIT: usize = 5;

async fn echo(upgrade: WebSocketUpgrade, Extension(permit): Extension<UpgradePermit>) -> Response {
    upgrade.on_upgrade(move |mut socket| async move {
        let _permit = permit;
        while let Some(Ok(message)) = socket.recv().await {
            if socket.send(message).await.is_err() {
                break;
            }
        }
    })
}

async fn work(State(work): State<Work>) -> &'static str {
    work.run().await;
    "done"
}

struct Server {
    address: SocketAddr,
    requests: Limiter,
    sockets: Limiter,
    work: Work,
}

impl Server {
    /// A limit of 5 for requests, another for sockets, and no waiting.
    async fn start(sockets: usize) -> Self {
        let (requests, sockets) = (fixed(LIMIT, 0), fixed(sockets, 0));
        let inner = Work::new();
        let app = Router::new()
            .route("/socket", any(echo))
            .route("/work", get(work))
            .route("/plain", get(|| async { "plain" }))
            .with_state(inner.clone())
            .layer(CapacityLayer::new(requests.clone()).upgrades(sockets.clone()));
        Self {
            address: serve(app).await,
            requests,
            sockets,
            work: inner,
        }
    }

    fn inflight(&self) -> (usize, usize) {
        let inflight = |limiter: &Limiter| limiter.snapshot().inflight();
        (inflight(&self.requests), inflight(&self.sockets))
    }

    async fn socket(&self) -> Result<WebSocketStream<TcpStream>, tungstenite::Error> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let url = format!("ws://{}/socket", self.address);
        let (socket, _response) = tokio_tungstenite::client_async(url, stream).await?;
        Ok(socket)
    }

    /// Opens sockets, as many handshakes at a time as the limit on requests lets in.
    async fn open_sockets(&self, count: usize) -> Vec<WebSocketStream<TcpStream>> {
        let sockets: Vec<_> = stream::iter(0..count)
            .map(|_| self.socket())
            .buffer_unordered(LIMIT)
            .map(Result::unwrap)
            .collect()
            .await;
        assert_eq!(self.inflight(), (0, count));
        sockets
    }
}

fn refused_with(error: tungstenite::Error) -> StatusCode {
    match error {
        tungstenite::Error::Http(response) => response.status(),
        other => panic!("expected an HTTP response, got {other:?}"),
    }
}

/// Descriptors for 2,000 sockets, both ends; fewer sockets where the system forbids that.
fn affordable_sockets() -> usize {
    const WANTED: u64 = 4_500;
    let granted = rlimit::increase_nofile_limit(WANTED).unwrap();
    if granted >= WANTED {
        return 2_000;
    }
    eprintln!("only {granted} file descriptors: 400 sockets instead of 2,000");
    400
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_sockets_leave_the_limit_on_requests_alone() {
    let count = affordable_sockets();
    let server = Server::start(count).await;
    let mut sockets = server.open_sockets(count).await;

    let error = server.socket().await.unwrap_err();
    assert_eq!(refused_with(error), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(server.sockets.snapshot().refusals(), 1);
    assert_eq!(server.requests.snapshot().refusals(), 0);

    // Plain requests see a limit of five: five run, the other fifteen are shed.
    let requests = (0..20).map(|_| get_once(server.address, "/work"));
    let release = async {
        until(|| server.requests.snapshot().refusals() == 15).await;
        until(|| server.work.inside() == LIMIT).await;
        server.work.open();
    };
    let (responses, ()) = tokio::join!(join_all(requests), release);
    let ok = responses
        .iter()
        .filter(|response| response.status() == StatusCode::OK)
        .count();
    assert_eq!((ok, server.work.peak()), (LIMIT, LIMIT));

    // The sockets are alive.
    for socket in sockets.iter_mut().step_by(100) {
        socket.send(Message::text("ping")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("ping"));
    }
    drop(sockets);
    until(|| server.inflight() == (0, 0)).await;
}

#[tokio::test]
async fn a_request_that_only_claims_to_upgrade_counts_as_a_request() {
    let server = Server::start(2_000).await;
    let claims = |path: &str| {
        Request::builder()
            .uri(path)
            .header("host", "test")
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .body(axum::body::Body::empty())
            .unwrap()
    };
    let mut running = Vec::new();
    for _ in 0..LIMIT {
        let mut connection = connect(server.address).await;
        running.push(tokio::spawn(async move {
            connection.send_request(claims("/work")).await.unwrap()
        }));
    }
    until(|| server.inflight() == (LIMIT, LIMIT)).await;
    let mut connection = connect(server.address).await;
    let sixth = connection.send_request(claims("/work")).await.unwrap();
    assert_eq!(sixth.status(), StatusCode::SERVICE_UNAVAILABLE);
    until(|| server.inflight() == (LIMIT, LIMIT)).await;

    server.work.open();
    for response in join_all(running).await {
        assert_eq!(response.unwrap().status(), StatusCode::OK);
    }
    until(|| server.inflight() == (0, 0)).await;
}

#[tokio::test]
async fn draining_the_requests_lets_the_sockets_be() {
    let server = Server::start(10).await;
    let mut sockets = server.open_sockets(3).await;
    server
        .requests
        .drain(Duration::from_secs(30))
        .await
        .unwrap();
    let error = server.socket().await.unwrap_err();
    assert_eq!(refused_with(error), StatusCode::SERVICE_UNAVAILABLE);
    sockets[0].send(Message::text("still here")).await.unwrap();
    assert!(sockets[0].next().await.unwrap().is_ok());
    assert_eq!(server.inflight(), (0, 3));
}

#[tokio::test]
async fn draining_the_sockets_waits_for_them() {
    let server = Server::start(10).await;
    let sockets = server.open_sockets(3).await;
    let drain = tokio::spawn({
        let limiter = server.sockets.clone();
        async move { limiter.drain(Duration::from_secs(30)).await }
    });
    until(|| server.sockets.is_draining()).await;
    let error = server.socket().await.unwrap_err();
    assert_eq!(refused_with(error), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        get_once(server.address, "/plain").await.status(),
        StatusCode::OK
    );
    assert!(!drain.is_finished());
    drop(sockets);
    drain.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_handler_that_declines_to_upgrade_returns_both_permits() {
    let (requests, sockets) = (fixed(LIMIT, 0), fixed(1, 0));
    let declines = |_: WebSocketUpgrade| async { StatusCode::FORBIDDEN.into_response() };
    let app = Router::new()
        .route("/socket", any(declines))
        .layer(CapacityLayer::new(requests.clone()).upgrades(sockets.clone()));
    let address = serve(app).await;
    for _ in 0..3 {
        let stream = TcpStream::connect(address).await.unwrap();
        let url = format!("ws://{address}/socket");
        let error = tokio_tungstenite::client_async(url, stream)
            .await
            .unwrap_err();
        assert_eq!(refused_with(error), StatusCode::FORBIDDEN);
        until(|| requests.snapshot().inflight() + sockets.snapshot().inflight() == 0).await;
    }
}
