//! The same over real HTTP: `axum::serve` on loopback, keep-alive connections.

use std::sync::Arc;

use axum::{Router, body::Body, http::StatusCode, routing::get};
use http::Request;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{net::TcpListener, runtime::Handle};
use tower::Service;
use tower_capacity::CapacityLayer;

use crate::{
    backend::Backend,
    contenders::{CLIENT_TIMEOUT, Call, Contender, Reply},
};

/// Serves the backend behind a limiter, and answers how to send it a request.
///
/// Ours is the layer of the router; the others answer inside the handler, which spares them the
/// response and its body.
pub(crate) async fn serve(contender: Contender, backend: &Backend, workers: &Handle) -> Call {
    let router = if contender == Contender::Ours {
        let backend = backend.clone();
        let handler = async move || {
            let mut backend = backend.clone();
            let Ok(()) = backend.call(()).await;
        };
        Router::new()
            .route("/", get(handler))
            .layer(CapacityLayer::adaptive())
    } else {
        let call = {
            let _runtime = workers.enter();
            contender.wrap(backend.clone())
        };
        let handler = async move || match call().await {
            Reply::Done => StatusCode::OK,
            Reply::Refused => StatusCode::SERVICE_UNAVAILABLE,
        };
        Router::new().route("/", get(handler))
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let listener = listener.into_std().expect("a listener");
    workers.spawn(async move {
        let listener = TcpListener::from_std(listener).expect("non-blocking");
        axum::serve(listener, router).await
    });
    let client: Client<HttpConnector, Body> = {
        let _runtime = workers.enter();
        Client::builder(TokioExecutor::new())
            .pool_idle_timeout(CLIENT_TIMEOUT)
            .build_http()
    };
    let uri: Arc<str> = format!("http://{address}/").into();
    Arc::new(move || {
        let client = client.clone();
        let request = Request::get(&*uri).body(Body::empty());
        let request = request.expect("a valid request");
        Box::pin(async move {
            match client.request(request).await {
                Ok(response) if response.status() == StatusCode::OK => Reply::Done,
                _ => Reply::Refused,
            }
        })
    })
}
