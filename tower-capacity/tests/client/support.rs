//! Servers over TCP, and clients for them.

use std::net::SocketAddr;

use axum::{Router, body::Body};
use http::Request;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::net::TcpListener;

pub(crate) async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

pub(crate) type HyperClient = Client<HttpConnector, Body>;

pub(crate) fn hyper_client() -> HyperClient {
    Client::builder(TokioExecutor::new()).build_http()
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Request<Body> {
    Request::builder()
        .uri(format!("http://{address}{path}"))
        .body(Body::empty())
        .unwrap()
}
