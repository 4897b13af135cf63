//! `cargo run -p overload-examples --bin shutdown`
//!
//! Three probes (started, ready, live) and a shutdown that loses no request: first not ready, so that the
//! load balancer has taken it out, then drained, then closed. `LEAD_MS` is how long the load balancer takes.

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::http::StatusCode;
use axum::{Router, routing::get, routing::post};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tower_capacity::CapacityLayer;

fn status(is_good: bool) -> StatusCode {
    match is_good {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let is_probe = |path: &str| matches!(path, "/livez" | "/readyz" | "/startedz");
    let capacity = CapacityLayer::adaptive().bypass(move |request| is_probe(request.uri.path()));
    let limiter = capacity.limiter().clone();
    let (started, leaving) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let (is_started, is_leaving) = (Arc::clone(&started), Arc::clone(&leaving));
    let app = Router::new()
        .route("/", post(async |body: String| body))
        // Live: the process turns. Overload is no reason to restart it.
        .route("/livez", get(async || "live"))
        // Ready: send requests here. Not when leaving; overload is what 503 is for.
        .route(
            "/readyz",
            get(async move || status(!is_leaving.load(Relaxed))),
        )
        // Started: what has to be done once is done.
        .route(
            "/startedz",
            get(async move || status(is_started.load(Relaxed))),
        )
        .layer(capacity);

    let address = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    let lead = env::var("LEAD_MS").map_or(Ok(5_000), |lead| lead.parse())?;
    let mut terminate = signal(SignalKind::terminate())?;
    println!("listening on {}", listener.local_addr()?);
    let (close, closed) = oneshot::channel::<()>();
    let server = axum::serve(listener, app).with_graceful_shutdown(async {
        let _ = closed.await;
    });
    let server = tokio::spawn(server.into_future());
    // Here a service migrates, warms its pool (`pool.prewarm(..)`) and fills its caches.
    started.store(true, Relaxed);
    println!("started");

    terminate.recv().await;
    leaving.store(true, Relaxed);
    println!("not ready");
    tokio::time::sleep(Duration::from_millis(lead)).await;
    match limiter.drain(Duration::from_secs(20)).await {
        Ok(()) => println!("drained"),
        Err(error) => println!("not drained: {error}"),
    }
    // `pool.drain(..)` comes here: no request holds a connection any more.
    drop(close);
    Ok(server.await??)
}
