//! What a pod serves, from its start to its drain.

use std::error::Error;
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{any, get};
use axum::{Json, Router};
use http::StatusCode;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, Exp1};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tower_capacity::{CapacityLayer, Limiter};

use super::cache::Cache;
use super::db::{Db, Failure, Work};
use super::outbound;
use super::protection::{limited, limiter};
use super::spec::{ROWS, Spec};
use super::stats::{Counted, Stats};
use crate::profile::Endpoint;

struct Pod {
    endpoints: Vec<Endpoint>,
    slots: Option<usize>,
    time: f64,
    ttl_s: u32,
    db: Db,
    cache: Option<Cache>,
    stats: Stats,
    limiter: Option<Limiter>,
    inflight: AtomicUsize,
    sockets: AtomicUsize,
    leaving: AtomicBool,
}

/// Serves until standard input ends, or says `drain`.
pub(crate) fn serve() -> Result<(), Box<dyn Error>> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let spec: Spec = serde_json::from_str(&line)?;
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(&spec))
}

async fn run(spec: &Spec) -> Result<(), Box<dyn Error>> {
    let db = Db::open(spec).await?;
    let cache = match (&spec.profile.cache, &spec.redis) {
        (Some(_), Some(url)) => {
            let size = spec.profile.scale.count(spec.profile.documented.redis_pool) / spec.pods;
            Some(Cache::open(url, (!spec.is_ours()).then_some(size.max(1)))?)
        }
        _ => None,
    };
    outbound::start(spec)?;
    let scale = &spec.profile.scale;
    let pod = Arc::new_cyclic(|pod: &std::sync::Weak<Pod>| {
        let pressed = pod.clone();
        let limiter = limiter(spec, move || {
            let pod = pressed.upgrade();
            pod.map_or(tower_capacity::Pressure::IDLE, |pod| pod.db.pressure())
        });
        Pod {
            endpoints: spec.profile.endpoints.clone(),
            slots: spec.profile.servers.database_slots,
            time: scale.time,
            ttl_s: spec.profile.cache.map_or(60, |cache| cache.ttl_s),
            db,
            cache,
            stats: Stats::new(Duration::from_secs_f64(scale.time)),
            limiter,
            inflight: AtomicUsize::new(0),
            sockets: AtomicUsize::new(0),
            leaving: AtomicBool::new(false),
        }
    });
    let mut work = Router::new()
        .route("/e/{endpoint}/{key}", get(request))
        .route("/socket", any(socket));
    if let Some(limiter) = &pod.limiter {
        work = work.layer(CapacityLayer::new(limiter.clone()));
    }
    let app = limited(work, spec)?
        .route("/livez", get(async || "live"))
        .route("/readyz", get(ready))
        .route("/startedz", get(async || "started"))
        .route("/stats", get(stats))
        .route("/explain", get(explain))
        .with_state(Arc::clone(&pod));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    let (close, closed) = oneshot::channel::<()>();
    let server = axum::serve(listener, app).with_graceful_shutdown(async {
        let _ = closed.await;
    });
    let server = tokio::spawn(server.into_future());
    if commands().recv().await.as_deref() != Some("drain") {
        return Ok(());
    }
    pod.leaving.store(true, Relaxed);
    sleep(LEAD).await;
    if let Some(limiter) = &pod.limiter {
        // A request that is still inside ends with the server, below.
        let _ = limiter.drain(DRAIN).await;
    }
    drop(close);
    let _ = timeout(DRAIN, server).await;
    pod.db.close().await;
    Ok(())
}

/// The lines of standard input; `None` when it ends, which is when the driver does.
fn commands() -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if send.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receive
}

async fn request(
    State(pod): State<Arc<Pod>>,
    Path((index, key)): Path<(usize, u32)>,
) -> StatusCode {
    let Some(endpoint) = pod.endpoints.get(index) else {
        return StatusCode::NOT_FOUND;
    };
    let _inside = Inside::new(&pod.inflight);
    let cache = pod
        .cache
        .as_ref()
        .filter(|_| endpoint.cached || endpoint.writes);
    let entry = format!("item:{key}");
    if let Some(cache) = cache
        && endpoint.cached
    {
        if cache.get(&entry).await {
            pod.stats.hits.fetch_add(1, Relaxed);
            sleep(Duration::from_secs_f64(endpoint.work_ms * pod.time / 1e3)).await;
            return StatusCode::OK;
        }
        pod.stats.misses.fetch_add(1, Relaxed);
    }
    let work = pod.work(endpoint, key);
    match pod.db.run(&work, &pod.stats).await {
        Ok(()) => {}
        Err(Failure::NoConnection) => return StatusCode::SERVICE_UNAVAILABLE,
        Err(Failure::Query) => return StatusCode::INTERNAL_SERVER_ERROR,
    }
    sleep(Duration::from_secs_f64(endpoint.work_ms * pod.time / 1e3)).await;
    if let Some(cache) = cache {
        match endpoint.writes {
            true => cache.invalidate(&entry).await,
            false => cache.set(&entry, pod.ttl_s).await,
        }
    }
    StatusCode::OK
}

impl Pod {
    /// The queries of a request. Half of a query's time is exponential, as its plans and rows differ.
    fn work(&self, endpoint: &Endpoint, key: u32) -> Work {
        let mut random = SmallRng::from_os_rng();
        let query = |_| {
            let part: f64 = Exp1.sample(&mut random);
            let seconds = endpoint.query_ms * self.time / 1e3 * (0.5 + 0.5 * part);
            let from = random.random_range(0..ROWS - endpoint.rows.min(ROWS - 1));
            let to = from + endpoint.rows;
            let sleep = format!("select pg_sleep({seconds:.6})");
            let read = format!("{sleep}, sum(value) from item where id between {from} and {to}");
            let text = match endpoint.writes {
                true => format!(
                    "{sleep}; update item set value = value + 1 where id = {}",
                    key % ROWS
                ),
                false => read,
            };
            match self.slots {
                Some(slots) => {
                    let slot = random.random_range(0..slots);
                    format!("select pg_advisory_xact_lock({slot}); {text}")
                }
                None => text,
            }
        };
        Work {
            queries: (0..endpoint.queries).map(query).collect(),
            writes: endpoint.writes,
        }
    }
}

/// Counts as long as it lives.
struct Inside<'a>(&'a AtomicUsize);

impl<'a> Inside<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

async fn socket(State(pod): State<Arc<Pod>>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async move |socket| echo(socket, &pod).await)
}

async fn echo(mut socket: WebSocket, pod: &Pod) {
    let _open = Inside::new(&pod.sockets);
    while let Some(Ok(message)) = socket.recv().await {
        if socket.send(message).await.is_err() {
            return;
        }
    }
}

async fn ready(State(pod): State<Arc<Pod>>) -> StatusCode {
    match pod.leaving.load(Relaxed) {
        true => StatusCode::SERVICE_UNAVAILABLE,
        false => StatusCode::OK,
    }
}

async fn stats(State(pod): State<Arc<Pod>>) -> Json<Counted> {
    if pod.db.is_refused() {
        pod.stats.refused.fetch_add(1, Relaxed);
    }
    let mut counted = pod.stats.counted();
    counted.pool = pod.db.sizes();
    counted.granted = pod.db.granted();
    counted.limit = pod
        .limiter
        .as_ref()
        .map(|limiter| limiter.snapshot().limit());
    counted.inflight = pod.inflight.load(Relaxed);
    counted.sockets = pod.sockets.load(Relaxed);
    Json(counted)
}

async fn explain(State(pod): State<Arc<Pod>>) -> String {
    let limiter = pod
        .limiter
        .as_ref()
        .map(|limiter| (limiter.snapshot(), limiter.history()));
    format!("{limiter:?}\n{}", pod.db.explain())
}

/// How long a pod that is to end waits until no balancer sends to it.
const LEAD: Duration = Duration::from_secs(1);

/// What a drain may take.
const DRAIN: Duration = Duration::from_secs(30);
