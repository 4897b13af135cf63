//! What does a limiter cost a request that it admits, and one that it refuses?
//!
//! `cargo bench -p overload-benches --bench overhead`
//!
//! The inner services are ready at once and do nothing, so that all that is measured is the layer;
//! none of the limits is reached unless the row says so. Rounds of all contenders are interleaved,
//! since a shared machine drifts by more than they differ: reported are the medians, what each adds
//! to the bare service of the same round, and the ratio of that to what
//! `tower::limit::ConcurrencyLimit` adds.

use std::{
    convert::Infallible,
    fmt::Debug,
    future::{Ready, ready},
    hint::black_box,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use allocation_counter::measure;
use congestion_limiter::{
    limiter::{DefaultLimiter, Limiter as _, Outcome as CongestionOutcome},
    limits::Vegas,
};
use futures_util::FutureExt;
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use http_body_util::Full;
use tokio::time::Instant;
use tower::{
    Layer, Service, ServiceExt, limit::GlobalConcurrencyLimitLayer, load_shed::LoadShed,
    util::BoxCloneService,
};
use tower_capacity::{
    CapacityLayer, Limiter, PlainCapacityLayer,
    gate::{Ask, Partition},
    limit::Fixed,
};

/// A service of unit requests: what is left is the limiter.
#[derive(Clone, Copy, Debug)]
struct Unit;

impl Service<()> for Unit {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(()))
    }
}

/// Like [`Unit`], except that it yields once to the scheduler.
#[derive(Clone, Copy, Debug)]
struct Yielding;

impl Service<()> for Yielding {
    type Response = ();
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<(), Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        Box::pin(async {
            tokio::task::yield_now().await;
            Ok(())
        })
    }
}

/// Requests and responses of HTTP, with a body that the caller reads to its end.
#[derive(Clone, Copy, Debug)]
struct Http;

type Body = Full<bytes::Bytes>;

impl Service<Request<Body>> for Http {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _request: Request<Body>) -> Self::Future {
        let body = Full::new(bytes::Bytes::from_static(b"done"));
        ready(Ok(Response::new(body)))
    }
}

/// Refuses at once: what a refusal of HTTP costs whatever decides it.
#[derive(Clone, Copy, Debug)]
struct Refusing {
    /// Whether the extensions say why.
    marks: bool,
}

impl Service<Request<Body>> for Refusing {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _request: Request<Body>) -> Self::Future {
        let body = Full::new(bytes::Bytes::from_static(b"overloaded, try again later\n"));
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        let headers = response.headers_mut();
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        if self.marks {
            response.extensions_mut().insert([0_u64; 2]);
        }
        ready(Ok(response))
    }
}

/// Spends `requests` requests.
type Spend = Box<dyn FnMut(u32)>;

const REQUESTS: u32 = 100_000;

/// One handle, one request after the other.
fn one_handle<S>(mut service: S) -> Spend
where
    S: Service<()> + 'static,
{
    Box::new(move |requests| {
        for _ in 0..requests {
            let ready = service.ready().now_or_never().expect("ready at once");
            let Ok(ready) = ready else {
                continue;
            };
            drop(black_box(ready.call(()).now_or_never()));
        }
    })
}

/// A clone for each request, as servers do.
fn clone_each<S>(service: S) -> Spend
where
    S: Service<()> + Clone + 'static,
{
    Box::new(move |requests| {
        for _ in 0..requests {
            drop(black_box(service.clone().oneshot(()).now_or_never()));
        }
    })
}

/// Two threads with 64 tasks each, which yield inside.
fn two_threads<S>(service: S) -> Spend
where
    S: Service<()> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: Send,
    S::Error: Send,
{
    const TASKS: u32 = 128;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .expect("a runtime without drivers");
    Box::new(move |requests| {
        runtime.block_on(async {
            let tasks: Vec<_> = (0..TASKS)
                .map(|_| {
                    let service = service.clone();
                    tokio::spawn(async move {
                        for _ in 0..requests / TASKS {
                            drop(black_box(service.clone().oneshot(()).await));
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("no panic");
            }
        });
    })
}

/// A clone for each request, and the response body read to its end.
fn with_body<S, B>(service: S) -> Spend
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + 'static,
    S::Error: Debug,
    B: http_body::Body + Unpin,
    B::Error: Debug,
{
    Box::new(move |requests| {
        for _ in 0..requests {
            let request = Request::new(Body::default());
            let response = service.clone().oneshot(request).now_or_never();
            let response = response.expect("an answer").expect("a response");
            let read = http_body_util::BodyExt::collect(response.into_body());
            drop(black_box(read.now_or_never()));
        }
    })
}

const WIDE: usize = 10_000;

fn fixed(limit: usize) -> Limiter {
    let builder = Limiter::builder().law(Fixed::new(limit)).max_queue(0);
    builder.build().expect("a possible limit")
}

/// The default law at work, above a limit that is never reached.
fn adaptive() -> Limiter {
    let limiter = Limiter::builder().bounds(WIDE..=2 * WIDE).build();
    limiter.expect("possible bounds")
}

fn of_four_partitions(_request: &()) -> Ask {
    thread_local! {
        static TURN: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
    }
    TURN.set(TURN.get() + 1);
    Ask::new().partition(Partition::new(1 + TURN.get() % 4))
}

/// It is no Tower layer: acquire and release around the call.
#[derive(Clone, Debug)]
struct Congestion<S> {
    limiter: Arc<DefaultLimiter<Vegas>>,
    inner: S,
}

impl<S> Service<()> for Congestion<S>
where
    S: Service<(), Response = (), Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = ();
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<(), Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        let limiter = Arc::clone(&self.limiter);
        let mut inner = self.inner.clone();
        Box::pin(async move {
            let Some(token) = limiter.try_acquire().await else {
                return Ok(());
            };
            inner.call(()).await?;
            limiter
                .release(token, Some(CongestionOutcome::Success))
                .await;
            Ok(())
        })
    }
}

/// Each contender around one inner service, spent in one way.
macro_rules! contenders {
    ($spend:ident, $inner:expr) => {{
        let acc = tower_acc::Vegas::builder()
            .initial_limit(WIDE)
            .max_limit(WIDE);
        let aimd = tower_resilience_adaptive::Aimd::builder().initial_limit(WIDE);
        let aimd = aimd.max_limit(WIDE).build().expect("possible numbers");
        let congestion = Arc::new(DefaultLimiter::new(Vegas::new(WIDE, WIDE..=WIDE)));
        let little = little_loadshedder::LoadShed::new($inner, 0.01, Duration::from_secs(1));
        vec![
            ("bare", $spend($inner)),
            (
                "tower ConcurrencyLimit",
                $spend(GlobalConcurrencyLimitLayer::new(WIDE).layer($inner)),
            ),
            (
                "tower LoadShed + ConcurrencyLimit",
                $spend(LoadShed::new(
                    GlobalConcurrencyLimitLayer::new(WIDE).layer($inner),
                )),
            ),
            (
                "tower-acc Vegas",
                $spend(tower_acc::ConcurrencyLimitLayer::new(acc.build()).layer($inner)),
            ),
            (
                "congestion-limiter Vegas",
                $spend(Congestion {
                    limiter: congestion,
                    inner: $inner,
                }),
            ),
            ("little-loadshedder", $spend(little)),
            (
                "tower-resilience AIMD",
                $spend(tower_resilience_adaptive::AdaptiveLimiterLayer::new(aimd).layer($inner)),
            ),
            (
                "tower-capacity, fixed",
                $spend(PlainCapacityLayer::new(fixed(WIDE)).layer($inner)),
            ),
            (
                "tower-capacity, adaptive",
                $spend(PlainCapacityLayer::new(adaptive()).layer($inner)),
            ),
            (
                "tower-capacity, four partitions",
                $spend(
                    PlainCapacityLayer::new(fixed(WIDE))
                        .ask(of_four_partitions)
                        .layer($inner),
                ),
            ),
        ]
    }};
}

/// Interleaved rounds of all contenders. The first is bare, the second what the others are compared
/// with.
fn compare(title: &str, requests: u32, mut contenders: Vec<(&str, Spend)>) {
    const ROUNDS: usize = 21;
    let mut times = vec![Vec::with_capacity(ROUNDS); contenders.len()];
    for (_, spend) in &mut contenders {
        spend(requests);
    }
    for _ in 0..ROUNDS {
        for ((_, spend), times) in contenders.iter_mut().zip(&mut times) {
            let start = Instant::now();
            spend(requests);
            times.push(start.elapsed().as_nanos() as f64 / f64::from(requests));
        }
    }
    println!("\n{title}");
    println!(
        "{:<42} {:>8} {:>8} {:>8} {:>12}",
        "", "ns", "added", "ratio", "allocations"
    );
    for (index, (name, spend)) in contenders.iter_mut().enumerate() {
        let added = |index: usize| {
            let pairs = times[index].iter().zip(&times[0]);
            median(pairs.map(|(own, bare)| own - bare).collect())
        };
        let allocations = measure(|| spend(1_024)).count_total as f64 / 1_024.0;
        println!(
            "{name:<42} {:>8.1} {:>8.1} {:>8.2} {allocations:>12.2}",
            median(times[index].clone()),
            added(index),
            added(index) / added(1)
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    // Some peers need a runtime's timer.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime without drivers");
    let entered = runtime.enter();
    compare(
        "one thread, one handle",
        REQUESTS,
        contenders!(one_handle, Unit),
    );
    compare(
        "one thread, a clone for each request",
        REQUESTS,
        contenders!(clone_each, Unit),
    );
    refused();
    bodies();
    drop(entered);
    compare(
        "two threads x 64 tasks",
        REQUESTS,
        contenders!(two_threads, Yielding),
    );
}

/// Nothing is admitted; the first row is the same service without a limiter.
fn refused() {
    let full = fixed(1);
    let _admission = full.try_admit().expect("the only permit");
    let limiter = full.clone();
    let contenders: Vec<(&str, Spend)> = vec![
        ("bare", one_handle(Unit)),
        (
            "tower LoadShed + ConcurrencyLimit",
            one_handle(LoadShed::new(
                GlobalConcurrencyLimitLayer::new(0).layer(Unit),
            )),
        ),
        (
            "tower-capacity, limiter alone",
            Box::new(move |requests| {
                for _ in 0..requests {
                    drop(black_box(limiter.try_admit()));
                }
            }),
        ),
        (
            "tower-capacity",
            one_handle(PlainCapacityLayer::new(full.clone()).layer(Unit)),
        ),
    ];
    compare("refused", REQUESTS, contenders);
    let contenders: Vec<(&str, Spend)> = vec![
        ("bare, not refused", with_body(Http)),
        (
            "two static headers and no limiter",
            with_body(Refusing { marks: false }),
        ),
        (
            "the same and a mark in the extensions",
            with_body(Refusing { marks: true }),
        ),
        (
            "tower-capacity",
            with_body(CapacityLayer::new(full).layer(Http)),
        ),
    ];
    compare("refused over HTTP", REQUESTS, contenders);
}

/// The others have no body of their own, and return their permit before it is read.
fn bodies() {
    let tenants = CapacityLayer::new(fixed(WIDE)).partition(|request| request.uri.path().get(1..));
    let contenders: Vec<(&str, Spend)> = vec![
        ("bare", with_body(Http)),
        (
            "tower ConcurrencyLimit",
            with_body(GlobalConcurrencyLimitLayer::new(WIDE).layer(Http)),
        ),
        (
            "tower-capacity, fixed",
            with_body(CapacityLayer::new(fixed(WIDE)).layer(Http)),
        ),
        (
            "tower-capacity, adaptive",
            with_body(CapacityLayer::new(adaptive()).layer(Http)),
        ),
        ("tower-capacity, partitions", with_body(tenants.layer(Http))),
        (
            "bare, boxed as routers do",
            with_body(BoxCloneService::new(Http)),
        ),
        (
            "tower-capacity, adaptive, boxed as routers do",
            with_body(BoxCloneService::new(
                CapacityLayer::new(adaptive()).layer(Http),
            )),
        ),
    ];
    compare(
        "HTTP types, a clone for each request, the body read",
        REQUESTS,
        contenders,
    );
}
