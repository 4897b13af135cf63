//! The server that stays up, with a page to watch it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{Html, Response},
    routing::get,
};
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    app::{self, Protected, QUOTA_PER_SECOND, Server},
    busy::CpuTime,
    cli::{Options, Problem},
    database::Database,
    load::{Generator, OBJECTIVE, Step},
    measure::taken_by_others,
    report::explained,
    run::decisions,
};

const PAGE: &str = include_str!("../assets/live.html");
const DEFAULT_PORT: u16 = 8080;
/// Rates and percentiles are over this long.
const RECENT: Duration = Duration::from_secs(2);
const DECISIONS: usize = 20;
/// A page that is opened late shows what happened in the last two minutes, as the page keeps it.
const PAST: Duration = Duration::from_secs(120);
const EVERY: Duration = Duration::from_millis(500);
/// Whether others use the machine is judged over as many samples.
const BUSY: usize = 10;

/// Serves until it is interrupted.
pub(crate) async fn serve(database: &Database, options: &Options) -> Result<(), Problem> {
    let (service, parts) = app::protected(database, options)?;
    let watch = Watch {
        parts,
        is_embedded: database.is_embedded(),
        started: Instant::now(),
        recent: Arc::default(),
        past: Arc::default(),
        processors: Arc::default(),
    };
    let _sampler = Sampler(tokio::spawn(sample(watch.clone())));
    let app = service
        .layer(middleware::from_fn_with_state(watch.clone(), note))
        .merge(
            Router::new()
                .route("/", get(async || Html(explained(PAGE))))
                .route("/api/live", get(live))
                .route("/api/past", get(past))
                .with_state(watch),
        );
    let server = Server::start(app, options.port.unwrap_or(DEFAULT_PORT)).await?;
    println!("watch http://{}/", server.address);
    println!(
        "ask   http://{}/orders/gift (header x-api-key: your name)",
        server.address
    );
    println!("stop  with Ctrl-C");
    // A day of load: it is ended by Ctrl-C before.
    let _generator = options.load.map(|offered| {
        let step = Step {
            multiplier: 1.0,
            start: 0.0,
            lasts: 86_400.0,
            offered,
        };
        Generator::start(server.address, vec![step], options.seed)
    });
    tokio::signal::ctrl_c().await.map_err(Problem::new)
}

/// What is sent to the page.
#[derive(Clone)]
struct Watch {
    parts: Protected,
    /// Whether the database's work is this process' own.
    is_embedded: bool,
    started: Instant,
    recent: Arc<Mutex<VecDeque<Noted>>>,
    /// Oldest first.
    past: Arc<Mutex<VecDeque<View>>>,
    /// Processor times of the last seconds, oldest first.
    processors: Arc<Mutex<VecDeque<CpuTime>>>,
}

impl Watch {
    fn note_processors(&self) {
        if let Some(now) = self.is_embedded.then(CpuTime::now).flatten() {
            let mut noted = (self.processors.lock()).unwrap_or_else(PoisonError::into_inner);
            noted.push_back(now);
            if noted.len() > BUSY {
                noted.pop_front();
            }
        }
    }

    /// Why the page shows less than the service can do, if others use the machine.
    fn busy(&self) -> Option<String> {
        let noted = (self.processors.lock()).unwrap_or_else(PoisonError::into_inner);
        let (first, last) = (noted.front()?, noted.back()?);
        taken_by_others(first.others_until(*last))
    }
}

/// Ends with the server.
struct Sampler(JoinHandle<()>);

impl Drop for Sampler {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn sample(watch: Watch) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        watch.note_processors();
        let view = view(&watch);
        let mut past = watch.past.lock().unwrap_or_else(PoisonError::into_inner);
        while past
            .front()
            .is_some_and(|first| view.t - first.t > PAST.as_secs_f64())
        {
            past.pop_front();
        }
        past.push_back(view);
    }
}

/// One response.
#[derive(Clone, Copy)]
struct Noted {
    at: Instant,
    status: StatusCode,
    took: Duration,
}

async fn note(State(watch): State<Watch>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let response = next.run(request).await;
    let mut recent = watch.recent.lock().unwrap_or_else(PoisonError::into_inner);
    recent.push_back(Noted {
        at: Instant::now(),
        status: response.status(),
        took: start.elapsed(),
    });
    while recent
        .front()
        .is_some_and(|noted| noted.at.elapsed() > RECENT)
    {
        recent.pop_front();
    }
    drop(recent);
    response
}

#[derive(Serialize)]
struct Live {
    #[serde(flatten)]
    view: View,
    busy: Option<String>,
    decisions: Vec<DecisionView>,
}

/// What the page shows of one moment.
#[derive(Clone, Serialize)]
struct View {
    t: f64,
    objective_ms: f64,
    limiter: LimiterView,
    pool: PoolView,
    quota: QuotaView,
    responses: ResponsesView,
}

#[derive(Serialize)]
struct Past {
    /// The time of the response, on the clock of the views.
    t: f64,
    views: Vec<View>,
}

#[derive(Clone, Serialize)]
struct LimiterView {
    law: &'static str,
    limit: usize,
    inflight: usize,
    queued: usize,
    admitted_per_s: f64,
    shed_per_s: f64,
    pressure: f64,
    baseline_ms: Option<f64>,
}

#[derive(Clone, Serialize)]
struct PoolView {
    name: &'static str,
    mode: &'static str,
    target: Option<usize>,
    size: usize,
    in_use: usize,
    pending: usize,
    wait_p95_ms: Option<f64>,
    use_mean_ms: Option<f64>,
}

#[derive(Clone, Serialize)]
struct QuotaView {
    policy: String,
    allowed_per_s: f64,
    limited_per_s: f64,
}

#[derive(Clone, Serialize)]
struct ResponsesView {
    goodput_per_s: f64,
    late_per_s: f64,
    errors_per_s: f64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
}

#[derive(Serialize)]
struct DecisionView {
    ago_s: f64,
    source: &'static str,
    text: String,
}

async fn past(State(watch): State<Watch>) -> Json<Past> {
    let past = watch.past.lock().unwrap_or_else(PoisonError::into_inner);
    Json(Past {
        t: watch.started.elapsed().as_secs_f64(),
        views: past.iter().cloned().collect(),
    })
}

async fn live(State(watch): State<Watch>) -> Json<Live> {
    let view = view(&watch);
    let t = view.t;
    let mut decisions = decisions(&watch.parts, watch.started);
    let last = decisions.split_off(decisions.len().saturating_sub(DECISIONS));
    let decisions = last.into_iter().rev().map(|decision| DecisionView {
        ago_s: t - decision.t,
        source: decision.source,
        text: decision.text,
    });
    Json(Live {
        view,
        busy: watch.busy(),
        decisions: decisions.collect(),
    })
}

fn view(watch: &Watch) -> View {
    let now = Instant::now();
    let mut recent: Vec<Noted> = {
        let recent = watch.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent
            .iter()
            .filter(|noted| now - noted.at <= RECENT)
            .copied()
            .collect()
    };
    recent.sort_by_key(|noted| noted.took);
    let rate = |wanted: &dyn Fn(&Noted) -> bool| {
        recent.iter().filter(|noted| wanted(noted)).count() as f64 / RECENT.as_secs_f64()
    };
    let with = |status| rate(&|noted: &Noted| noted.status == status);
    let answered: Vec<_> = recent
        .iter()
        .filter(|noted| noted.status == StatusCode::OK)
        .collect();
    let quantile = |share: f64| {
        let rank = (answered.len() as f64 * share).ceil() as usize;
        answered
            .get(rank.saturating_sub(1))
            .map(|noted| 1e3 * noted.took.as_secs_f64())
    };
    let ok = with(StatusCode::OK);
    let (shed, limited) = (
        with(StatusCode::SERVICE_UNAVAILABLE),
        with(StatusCode::TOO_MANY_REQUESTS),
    );
    let good = rate(&|noted| noted.status == StatusCode::OK && noted.took <= OBJECTIVE);
    let all = rate(&|_| true);

    let snapshot = watch.parts.limiter.snapshot();
    let pool = watch.parts.pool.state();
    View {
        t: watch.started.elapsed().as_secs_f64(),
        objective_ms: 1e3 * OBJECTIVE.as_secs_f64(),
        limiter: LimiterView {
            law: snapshot.law(),
            limit: snapshot.limit(),
            inflight: snapshot.inflight(),
            queued: snapshot.queued(),
            admitted_per_s: all - shed - limited,
            shed_per_s: shed,
            pressure: watch.parts.limiter.pressure().value(),
            baseline_ms: snapshot
                .explanation()
                .baseline
                .map(|baseline| 1e3 * baseline),
        },
        pool: PoolView {
            name: watch.parts.pool.name(),
            mode: "enforce",
            target: pool.target,
            size: pool.size,
            in_use: pool.in_use,
            pending: pool.pending,
            wait_p95_ms: pool.wait_p95_ms,
            use_mean_ms: pool.use_mean_ms,
        },
        quota: QuotaView {
            policy: format!("{QUOTA_PER_SECOND}/s for each caller"),
            allowed_per_s: all - limited,
            limited_per_s: limited,
        },
        responses: ResponsesView {
            goodput_per_s: good,
            late_per_s: ok - good,
            errors_per_s: all - ok - shed - limited,
            p50_ms: quantile(0.50),
            p99_ms: quantile(0.99),
        },
    }
}
