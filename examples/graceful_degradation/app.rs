//! The service, bare and protected.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use rate_limit::{Quota, RateLimitLayer, SECOND, key};
use tokio::{net::TcpListener, task::JoinHandle};
use tower::ServiceBuilder;
use tower_capacity::{CapacityLayer, Limiter};

use crate::{
    cli::{Options, Problem},
    database::{Database, Pool},
};

/// The header in which each request names its caller.
pub(crate) const CALLER: &str = "x-api-key";

/// A route that passes no layer and does nothing.
pub(crate) const HEALTH: &str = "/live";

/// What each caller is entitled to: a policy, not an estimate of the capacity.
pub(crate) const QUOTA_PER_SECOND: u64 = 50;

/// Nothing but a handler and a pool, both with the defaults of their libraries.
pub(crate) fn bare(database: &Database) -> Result<(Router, Pool), Problem> {
    let pool = database.bare()?;
    let app = routes().route(HEALTH, get(async || "alive\n"));
    Ok((app.with_state(pool.clone()), pool))
}

/// The parts of a protected service that can be watched.
#[derive(Clone)]
pub(crate) struct Protected {
    pub(crate) limiter: Limiter,
    pub(crate) pool: Pool,
}

/// The same handler behind a quota for each caller and a limit that adapts, and in front of a pool
/// that sizes itself.
pub(crate) fn protected(
    database: &Database,
    options: &Options,
) -> Result<(Router, Protected), Problem> {
    let pool = database.autotuned(options.pool)?;
    // Without CoDel: the bounds of the queue refuse on arrival, and a waiter is served in order.
    let limiter = Limiter::builder()
        .bounds(options.limit.range())
        .codel(None)
        .build();
    let limiter = limiter.map_err(Problem::new)?;
    let quota = Quota::count(QUOTA_PER_SECOND)
        .per(SECOND)
        .burst(QUOTA_PER_SECOND);
    let limited = RateLimitLayer::new(quota).map_err(Problem::new)?;
    let layers = ServiceBuilder::new()
        .layer(limited.key(key::header(CALLER)))
        .layer(CapacityLayer::new(limiter.clone()));
    let app = routes()
        .layer(layers)
        .route(HEALTH, get(async || "alive\n"));
    let app = app.with_state(pool.clone());
    Ok((app, Protected { limiter, pool }))
}

fn routes() -> Router<Pool> {
    Router::new().route("/orders/{word}", get(count))
}

async fn count(State(pool): State<Pool>, Path(word): Path<String>) -> (StatusCode, String) {
    match pool.count(word).await {
        Ok(count) => (StatusCode::OK, format!("{count}\n")),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

/// A server that is up until this is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    pub(crate) async fn start(app: Router, port: u16) -> Result<Self, Problem> {
        let listener = TcpListener::bind(("127.0.0.1", port))
            .await
            .map_err(|error| {
                Problem::new(format_args!(
                    "cannot listen on port {port}: {error}; expected a port that is free"
                ))
            })?;
        let address = listener.local_addr().map_err(Problem::new)?;
        Ok(Self {
            address,
            task: tokio::spawn(async move { axum::serve(listener, app).await }),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// So many users, each with one request after the other and no pause between them: enough to keep
/// every core busy, too few to make a queue that matters.
pub(crate) async fn capacity(address: SocketAddr, users: usize, lasting: Duration) -> Option<f64> {
    let workers: Vec<_> = (0..users)
        .map(|_| tokio::spawn(crate::load::back_to_back(address, lasting)))
        .collect();
    let mut answered = 0;
    for worker in workers {
        answered += worker.await.ok()?;
    }
    (answered > 0).then(|| answered as f64 / lasting.as_secs_f64())
}
