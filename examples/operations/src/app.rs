use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use pool_autotune::{Autotuned, fleet::Budget};
use rate_limit::{
    Limiter as Quotas, Policy, Quota, RateLimitLayer, SECOND,
    fleet::{FleetBackend, Lease},
    key,
};
use tempfile::TempDir;
use tower_capacity::{CapacityLayer, Limiter};

/// What differs from one run to another.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// Requests a second for each caller, by the header `x-api-key`. Defaults to 50.
    pub quota: u64,
    /// The most connections to the database. Defaults to 20.
    pub max_connections: usize,
    /// The Redis of the fleet's quota; without one, the quota is this process' own. Defaults to
    /// none.
    pub redis: Option<String>,
    /// Connections that all processes with this Redis share. Defaults to no bound.
    pub budget: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            quota: 50,
            max_connections: 20,
            redis: None,
            budget: None,
        }
    }
}

type Pool = Autotuned<deadpool_sqlite::Pool>;

#[derive(Clone)]
struct Service {
    pool: Pool,
    /// What all queries of `/ledger` need, one at a time.
    row: Arc<Mutex<()>>,
    _directory: Arc<TempDir>,
}

/// The service and what watches it:
///
/// | path | what it does | layers |
/// |---|---|---|
/// | `/orders/{ms}` | holds a connection for this long | quota, capacity |
/// | `/hang` | never ends | quota, capacity |
/// | `/report/{ms}` | like `/orders`, for reports at night | none |
/// | `/ledger/{ms}` | like `/report`, one query at a time in the database | none |
/// | `/live`, `/ready` | for probes | none |
/// | `/metrics` | for Prometheus | none |
///
/// # Errors
///
/// Fails if a setting is out of range, the URL of Redis is invalid, or the directory of the
/// database cannot be created.
pub fn app(
    settings: &Settings,
    metrics: PrometheusHandle,
) -> Result<Router, Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let sqlite = deadpool_sqlite::Config::new(directory.path().join("app.sqlite"));
    let sqlite = sqlite.builder(deadpool_sqlite::Runtime::Tokio1)?;
    let pool = Autotuned::builder(sqlite.max_size(settings.max_connections).build()?);
    let pool = match (settings.budget, &settings.redis) {
        (Some(total), Some(url)) => {
            let client = redis::Client::open(url.as_str())?;
            let budget = Budget::redis_uncounted(client, "operations:budget");
            // Floors of two, so that a budget below their sum still leaves each process one.
            pool.budget(&budget.total(total).floor(2).spawn()?)
        }
        (Some(_), None) => return Err("a budget is kept in Redis: name one".into()),
        (None, _) => pool,
    };
    let pool = pool.name("orders").build()?;
    let limiter = Limiter::builder().name("api").build()?;
    let service = Service {
        pool,
        row: Arc::default(),
        _directory: Arc::new(directory),
    };
    let inner = Router::new()
        .route("/orders/{ms}", get(orders))
        .route("/hang", get(hang))
        .layer(CapacityLayer::new(limiter.clone()));
    let quotas = Quotas::builder().quota(Quota::count(settings.quota).per(SECOND));
    let key = key::header("x-api-key");
    // The node refuses a flood by itself, without a call to Redis.
    let flood = Policy::new("flood", Quota::count(20 * settings.quota).per(SECOND));
    let flood = Quotas::builder().policy(flood).build()?;
    let flood = RateLimitLayer::from_limiter(flood).key(key.clone());
    let inner = match &settings.redis {
        Some(url) => {
            // Redis shares the processors with the load here: a call that waits for one is no outage.
            let backend = FleetBackend::new(url.as_str(), "operations")?
                .lease(Lease::adaptive())
                .deadline(Duration::from_millis(100));
            let quotas = quotas.build_on(backend)?;
            inner.layer(RateLimitLayer::from_limiter(quotas).key(key))
        }
        None => inner.layer(RateLimitLayer::from_limiter(quotas.build()?).key(key)),
    };
    let ready = move || async move {
        match limiter.is_draining() {
            true => StatusCode::SERVICE_UNAVAILABLE,
            false => StatusCode::OK,
        }
    };
    Ok(inner
        .layer(flood)
        .route("/report/{ms}", get(orders))
        .route("/ledger/{ms}", get(ledger))
        .route("/live", get(async || "ok"))
        .route("/ready", get(ready))
        .route("/metrics", get(async move || metrics.render()))
        .with_state(service))
}

async fn orders(State(service): State<Service>, Path(ms): Path<u64>) -> StatusCode {
    query(&service.pool, move || take(ms)).await
}

async fn ledger(State(service): State<Service>, Path(ms): Path<u64>) -> StatusCode {
    let row = Arc::clone(&service.row);
    query(&service.pool, move || {
        let _one_at_a_time = row.lock().unwrap_or_else(PoisonError::into_inner);
        take(ms);
    })
    .await
}

async fn hang() -> Infallible {
    std::future::pending().await
}

/// A query that takes as long as `work`, on the thread that owns the connection.
async fn query(pool: &Pool, work: impl FnOnce() + Send + 'static) -> StatusCode {
    let Ok(connection) = pool.get().await else {
        return StatusCode::SERVICE_UNAVAILABLE;
    };
    let done = connection.interact(move |connection| {
        work();
        connection.query_row("SELECT 1", [], |row| row.get::<_, i64>(0))
    });
    match done.await {
        Ok(Ok(_)) => StatusCode::OK,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Holds a connection's own thread for `ms` milliseconds.
#[expect(
    clippy::disallowed_methods,
    reason = "a connection of SQLite has a thread of its own"
)]
fn take(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}
