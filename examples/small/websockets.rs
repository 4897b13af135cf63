//! `cargo run -p overload-examples --bin websockets`
//!
//! WebSockets beside requests. A socket is open for hours and mostly idle, so sockets have a limiter of their
//! own: 1,000 here, or what the memory of a process is worth.

use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::response::Response;
use axum::{Extension, Router, routing::any, routing::get};
use tower_capacity::{CapacityLayer, Limiter, UpgradePermit, limit::Fixed};

async fn socket(
    upgrade: WebSocketUpgrade,
    Extension(permit): Extension<UpgradePermit>,
) -> Response {
    // As long as the permit lives, the socket counts.
    upgrade.on_upgrade(|socket| echo(socket, permit))
}

async fn echo(mut socket: WebSocket, _permit: UpgradePermit) {
    while let Some(Ok(message)) = socket.recv().await {
        if socket.send(message).await.is_err() {
            return;
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let most = std::env::args()
        .nth(1)
        .map_or(Ok(1_000), |most| most.parse())?;
    let sockets = Limiter::builder()
        .law(Fixed::new(most))
        .name("sockets")
        .build()?;
    let capacity = CapacityLayer::adaptive().upgrades(sockets.clone());
    let app = Router::new()
        .route("/socket", any(socket))
        .route(
            "/",
            get(async move || format!("{} sockets", sockets.snapshot().inflight())),
        )
        .layer(capacity);

    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}
