//! Servers over TCP, one client connection a request, and a handler that tests can hold.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{Router, body::Body};
use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tower_capacity::{Limiter, limit::Fixed};

/// Work that counts the requests inside and lasts until the test opens it.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    inside: Arc<AtomicUsize>,
    peak: Arc<AtomicUsize>,
    open: watch::Sender<bool>,
}

impl Work {
    pub(crate) fn new() -> Self {
        Self {
            inside: Arc::default(),
            peak: Arc::default(),
            open: watch::Sender::new(false),
        }
    }

    pub(crate) async fn run(&self) {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(inside, Ordering::SeqCst);
        let mut open = self.open.subscribe();
        open.wait_for(|&open| open)
            .await
            .expect("the test holds the sender");
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn open(&self) {
        self.open.send_replace(true);
    }

    /// How many are inside; admitted requests get there a moment after they are counted.
    pub(crate) fn inside(&self) -> usize {
        self.inside.load(Ordering::SeqCst)
    }

    pub(crate) fn peak(&self) -> usize {
        self.peak.load(Ordering::SeqCst)
    }
}

pub(crate) fn fixed(limit: usize, max_queue: usize) -> Limiter {
    Limiter::builder()
        .law(Fixed::new(limit))
        .max_queue(max_queue)
        .build()
        .unwrap()
}

pub(crate) async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// One connection of its own, so that nothing is shared between requests but the server.
pub(crate) async fn connect(address: SocketAddr) -> http1::SendRequest<Body> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

pub(crate) fn request(path: &str) -> Request<Body> {
    Request::builder()
        .uri(path)
        .header("host", "test")
        .body(Body::empty())
        .unwrap()
}

pub(crate) async fn get_once(address: SocketAddr, path: &str) -> Response<Incoming> {
    connect(address)
        .await
        .send_request(request(path))
        .await
        .unwrap()
}

/// Waits for a condition that other tasks bring about.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}
