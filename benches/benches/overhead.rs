//! What does a limiter cost a request that it admits, and one that it refuses?
//!
//! `cargo bench -p overload-benches --bench overhead`
//!
//! The inner service is ready at once and does nothing, so that all that is measured is the layer.
//! Rounds of all contenders are interleaved, since a shared machine drifts by more than they
//! differ, and ratios to `tower::limit::ConcurrencyLimit` of the same round are reported.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
};

use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::Empty;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_capacity::{CapacityLayer, Limiter, limit::Fixed};

type Reply = Response<Empty<bytes::Bytes>>;

fn answer(_request: Request<()>) -> Ready<Result<Reply, Infallible>> {
    ready(Ok(Response::new(Empty::new())))
}

/// A way to spend requests: answers nanoseconds a request.
type Measure = Box<dyn FnMut() -> f64>;

const REQUESTS: u32 = 100_000;

fn nanos(requests: u32, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos() as f64 / f64::from(requests)
}

/// One handle, one request after the other.
fn one_thread<S>(mut service: S) -> Measure
where
    S: Service<Request<()>> + 'static,
    S::Error: std::fmt::Debug,
{
    Box::new(move || {
        nanos(REQUESTS, || {
            for _ in 0..REQUESTS {
                let ready = service
                    .ready()
                    .now_or_never()
                    .expect("a free permit")
                    .expect("ready");
                let response = ready
                    .call(Request::new(()))
                    .now_or_never()
                    .expect("an answer");
                drop(black_box(response));
            }
        })
    })
}

/// A clone for each request, as servers do.
fn clone_each<S>(service: S) -> Measure
where
    S: Service<Request<()>> + Clone + 'static,
    S::Error: std::fmt::Debug,
{
    Box::new(move || {
        nanos(REQUESTS, || {
            for _ in 0..REQUESTS {
                let response = service.clone().oneshot(Request::new(())).now_or_never();
                drop(black_box(response.expect("an answer")));
            }
        })
    })
}

/// Two threads with 64 tasks each, which yield inside.
fn two_threads<L, S>(layer: &L) -> Measure
where
    L: Layer<Yielding, Service = S>,
    S: Service<Request<()>> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: Send,
    S::Error: std::fmt::Debug + Send,
{
    const TASKS: u32 = 128;
    let service = layer.layer(Yielding);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .expect("a runtime without drivers");
    Box::new(move || {
        nanos(REQUESTS, || {
            runtime.block_on(async {
                let tasks: Vec<_> = (0..TASKS)
                    .map(|_| {
                        let service = service.clone();
                        tokio::spawn(async move {
                            for _ in 0..REQUESTS / TASKS {
                                let response = service.clone().oneshot(Request::new(())).await;
                                drop(black_box(response.expect("an answer")));
                            }
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await.expect("no panic");
                }
            });
        })
    })
}

/// Answers after one yield to the scheduler.
#[derive(Clone, Debug)]
struct Yielding;

impl Service<Request<()>> for Yielding {
    type Response = Reply;
    type Error = Infallible;
    type Future = futures_util::future::BoxFuture<'static, Result<Reply, Infallible>>;

    fn poll_ready(
        &mut self,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _request: Request<()>) -> Self::Future {
        Box::pin(async {
            tokio::task::yield_now().await;
            Ok(Response::new(Empty::new()))
        })
    }
}

const WIDE: usize = 10_000;

fn fixed(limit: usize) -> CapacityLayer {
    let limiter = Limiter::builder()
        .law(Fixed::new(limit))
        .max_queue(0)
        .build();
    CapacityLayer::new(limiter.expect("a possible limit"))
}

/// The default law at work, above a limit that nobody reaches.
fn adaptive() -> CapacityLayer {
    let limiter = Limiter::builder().bounds(WIDE..=2 * WIDE).build();
    CapacityLayer::new(limiter.expect("possible bounds"))
}

fn tower_limit(limit: usize) -> tower::limit::GlobalConcurrencyLimitLayer {
    tower::limit::GlobalConcurrencyLimitLayer::new(limit)
}

/// Interleaved rounds of all contenders; the medians, and their ratios to `reference`.
fn compare(title: &str, reference: usize, mut contenders: Vec<(&str, Measure)>) {
    const ROUNDS: usize = 21;
    let mut times = vec![Vec::with_capacity(ROUNDS); contenders.len()];
    for (_, measure) in &mut contenders {
        measure();
    }
    for _ in 0..ROUNDS {
        for ((_, measure), times) in contenders.iter_mut().zip(&mut times) {
            times.push(measure());
        }
    }
    let ratios: Vec<Vec<f64>> = times
        .iter()
        .map(|own| {
            own.iter()
                .zip(&times[reference])
                .map(|(own, base)| own / base)
                .collect()
        })
        .collect();
    println!("\n{title}\n{:<42} {:>9} {:>8}", "", "ns", "ratio");
    for (((name, _), times), ratios) in contenders.iter().zip(times).zip(ratios) {
        println!("{name:<42} {:>9.1} {:>8.2}", median(times), median(ratios));
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let inner = || service_fn(answer);
    compare(
        "one thread, one handle",
        1,
        vec![
            ("bare", one_thread(inner())),
            (
                "tower ConcurrencyLimit",
                one_thread(tower_limit(WIDE).layer(inner())),
            ),
            (
                "tower LoadShed + ConcurrencyLimit",
                one_thread(tower::load_shed::LoadShed::new(
                    tower_limit(WIDE).layer(inner()),
                )),
            ),
            (
                "tower-capacity, fixed",
                one_thread(fixed(WIDE).layer(inner())),
            ),
            (
                "tower-capacity, adaptive",
                one_thread(adaptive().layer(inner())),
            ),
        ],
    );
    compare(
        "one thread, a clone for each request",
        1,
        vec![
            ("bare", clone_each(inner())),
            (
                "tower ConcurrencyLimit",
                clone_each(tower_limit(WIDE).layer(inner())),
            ),
            (
                "tower LoadShed + ConcurrencyLimit",
                clone_each(tower::load_shed::LoadShed::new(
                    tower_limit(WIDE).layer(inner()),
                )),
            ),
            (
                "tower-capacity, fixed",
                clone_each(fixed(WIDE).layer(inner())),
            ),
            (
                "tower-capacity, adaptive",
                clone_each(adaptive().layer(inner())),
            ),
        ],
    );
    compare(
        "two threads x 64 tasks",
        1,
        vec![
            ("bare", two_threads(&tower::layer::util::Identity::new())),
            ("tower ConcurrencyLimit", two_threads(&tower_limit(WIDE))),
            ("tower-capacity, fixed", two_threads(&fixed(WIDE))),
            ("tower-capacity, adaptive", two_threads(&adaptive())),
        ],
    );
    let full = Limiter::builder()
        .law(Fixed::new(1))
        .max_queue(0)
        .build()
        .expect("possible");
    let _admission = full.try_admit().expect("the only permit");
    compare(
        "refused",
        0,
        vec![
            ("tower LoadShed + ConcurrencyLimit", {
                let mut shed = tower::load_shed::LoadShed::new(tower_limit(0).layer(inner()));
                Box::new(move || {
                    nanos(REQUESTS, || {
                        for _ in 0..REQUESTS {
                            let ready = shed.ready().now_or_never();
                            let shed = ready.expect("always ready").expect("always ready");
                            let refused = shed.call(Request::new(())).now_or_never();
                            drop(black_box(refused.expect("an answer")));
                        }
                    })
                })
            }),
            ("tower-capacity, limiter", {
                let full = full.clone();
                Box::new(move || {
                    nanos(REQUESTS, || {
                        for _ in 0..REQUESTS {
                            drop(black_box(full.try_admit()));
                        }
                    })
                })
            }),
            (
                "tower-capacity, layer (HTTP response)",
                one_thread(CapacityLayer::new(full.clone()).layer(inner())),
            ),
        ],
    );
}
