//! One of the servers.

use std::io::{Read, Write};

use axum::{Json, Router, extract::State, routing::get};
use rate_limit::{
    Limiter, Quota, RateLimitLayer, SECOND,
    fleet::{FleetBackend, FleetLimiter, Lease},
    key,
};
use serde::{Deserialize, Serialize};

use crate::cli::{Options, Problem};

/// What a server reports of itself.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Status {
    /// Whether it does without Redis.
    pub(crate) degraded: bool,
    /// How many servers it knows of, with itself.
    pub(crate) nodes: u64,
    /// Its calls to Redis so far.
    pub(crate) calls: u64,
    /// What it has admitted without Redis so far.
    pub(crate) alone: u64,
}

/// Serves until standard input ends, which is when the process that started it does.
pub(crate) fn serve(options: &Options, redis: &str) -> Result<(), Problem> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Problem::new)?;
    runtime.block_on(async {
        let limiter = limiter(options, redis)?;
        let limit = RateLimitLayer::from_limiter(limiter.clone())
            .key(key::global())
            .bypass(|request| request.uri.path() == "/status");
        let app = Router::new()
            .route("/", get(async || "hello"))
            .route("/status", get(status))
            .layer(limit)
            .with_state(limiter.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .map_err(Problem::new)?;
        let address = listener.local_addr().map_err(Problem::new)?;
        println!("{address}");
        std::io::stdout().flush().map_err(Problem::new)?;

        let (gone, parent) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            // An error is the end, too.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            let _ = gone.send(());
        });
        tokio::select! {
            served = axum::serve(listener, app).into_future() => served.map_err(Problem::new),
            _ = parent => {
                limiter.shutdown().await;
                Ok(())
            }
        }
    })
}

fn limiter(options: &Options, redis: &str) -> Result<FleetLimiter, Problem> {
    let lease = if options.exact {
        Lease::none()
    } else {
        Lease::adaptive()
    };
    let backend = FleetBackend::new(redis, "fleet-quota").map_err(Problem::new)?;
    let quota = Quota::count(options.quota.into())
        .per(SECOND)
        .burst(options.burst().into());
    Limiter::builder()
        .quota(quota)
        .build_on(backend.lease(lease).nodes(options.processes))
        .map_err(Problem::new)
}

async fn status(State(limiter): State<FleetLimiter>) -> Json<Status> {
    Json(Status {
        degraded: limiter.is_degraded(),
        nodes: limiter.nodes(),
        calls: limiter.calls(),
        alone: limiter.admitted_without_redis(),
    })
}
