//! `cargo run -p overload-examples --bin axum_postgres -- postgres://localhost/orders`
//!
//! axum and Postgres through deadpool: a layer in front of the handlers, a tuned pool behind them.

use std::env;

use axum::{Router, extract::State, http::StatusCode, routing::get};
use deadpool_postgres::{Config, Pool, Runtime};
use pool_autotune::Autotuned;
use tower_capacity::CapacityLayer;

type Orders = Autotuned<Pool>;

async fn count(State(orders): State<Orders>) -> Result<String, (StatusCode, String)> {
    let unavailable = |error| (StatusCode::SERVICE_UNAVAILABLE, format!("{error}"));
    let client = orders.get().await.map_err(unavailable)?;
    let row = client.query_one("SELECT count(*) FROM pg_class", &[]).await;
    let row = row.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(row.get::<_, i64>(0).to_string())
}

/// For operators: what the pool should have, and why.
async fn report(State(orders): State<Orders>) -> String {
    orders.report().to_string()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::new();
    config.url = Some(env::args().nth(1).ok_or("expected the URL of a Postgres")?);
    // The most connections it may ever have; it opens as many as it takes.
    let builder = config.builder(tokio_postgres::NoTls)?.max_size(50);
    let orders = Autotuned::new(builder.runtime(Runtime::Tokio1).build()?)?;

    // A request that would have to wait for a connection for long is refused before its handler runs.
    let pressed = orders.clone();
    let limiter = tower_capacity::Limiter::builder().downstream(move || pressed.pressure());
    let capacity = CapacityLayer::new(limiter.build()?)
        .bypass(|request| matches!(request.uri.path(), "/livez" | "/pool"));
    let app = Router::new()
        .route("/", get(count))
        .route("/pool", get(report))
        .route("/livez", get(async || "live"))
        .layer(capacity)
        .with_state(orders);

    let address = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}
