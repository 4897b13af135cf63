//! What does a rate-limit decision cost: allowed or refused, one key or a million, bare or as a
//! Tower call?
//!
//! `cargo bench -p overload-benches --bench rate_limit`
//!
//! Every contender gets the same quota, the same keys in the same order and the clock it comes
//! with. `governor` appears twice, with its default clock (quanta) and with `Instant`, which is
//! what ours reads.
//!
//! Times are CPU time of the measuring thread, so that other work on the machine does not count;
//! "2 threads" is wall time, and only means something on an idle machine with two cores.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    net::SocketAddr,
    num::NonZeroU32,
    pin::pin,
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use axum::{body::Body, extract::ConnectInfo};
use cpu_time::ThreadTime;
use criterion::{
    BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
    measurement::{Measurement, ValueFormatter, WallTime},
};
use governor::clock::{Clock, MonotonicClock};
use http::{Request, Response};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::Zipf;
use rate_limit::{HOUR, Limiter, Policy, Quota, RateLimitLayer, SECOND, key};
use tokio::time::Instant;
use tower::{Layer, Service, service_fn};

/// One decision for the key with this number; true when it is admitted.
type Check = Box<dyn Fn(u64) -> bool + Send + Sync>;

/// A quota that is never used up, or one that is after the first request.
#[derive(Clone, Copy)]
enum Mode {
    Allow,
    Deny,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }

    fn governor(self) -> governor::Quota {
        match self {
            Self::Allow => governor::Quota::with_period(Duration::from_nanos(1))
                .unwrap()
                .allow_burst(NonZeroU32::MAX),
            Self::Deny => governor::Quota::with_period(HOUR).unwrap(),
        }
    }

    fn ours(self) -> Quota {
        match self {
            Self::Allow => Quota::count(1_000_000_000)
                .per(SECOND)
                .burst(u32::MAX.into()),
            Self::Deny => Quota::count(1).per(HOUR),
        }
    }
}

fn keyed(mode: Mode, keys: u64) -> Vec<(&'static str, Check)> {
    let quanta = governor::RateLimiter::<u64, _, _>::dashmap(mode.governor());
    let instant: governor::RateLimiter<
        u64,
        _,
        _,
        governor::middleware::NoOpMiddleware<<MonotonicClock as Clock>::Instant>,
    > = governor::RateLimiter::new(
        mode.governor(),
        governor::state::keyed::DashMapStateStore::<u64>::default(),
        MonotonicClock,
    );
    let ours = Limiter::builder()
        .quota(mode.ours())
        .max_keys(keys as usize)
        .build()
        .unwrap();
    let gcra = axum_gcra::gcra::RateLimiter::<u64>::new(
        u64::MAX,
        std::collections::hash_map::RandomState::new(),
    );
    let gcra_quota = match mode {
        Mode::Allow => axum_gcra::gcra::Quota::new(Duration::from_nanos(1), NonZeroU32::MAX.into()),
        Mode::Deny => axum_gcra::gcra::Quota::simple(HOUR),
    };
    // Counts per second only, so "one an hour" is one a second and 1 in the bucket.
    let (rate, burst) = match mode {
        Mode::Allow => (1_000_000_000, 1_000_000_000),
        Mode::Deny => (1, 1),
    };
    let tokio = tokio_rate_limit::RateLimiter::builder()
        .requests_per_second(rate)
        .burst(burst)
        .build()
        .unwrap();
    let names: Vec<_> = (0..keys).map(|key| format!("key-{key}")).collect();
    vec![
        (
            "rate-limit",
            Box::new(move |key| ours.check(key).is_ok()) as Check,
        ),
        (
            "governor",
            Box::new(move |key| quanta.check_key(&key).is_ok()),
        ),
        (
            "governor-instant",
            Box::new(move |key| instant.check_key(&key).is_ok()),
        ),
        (
            "axum_gcra",
            Box::new(move |key| {
                gcra.req_sync(key, gcra_quota, Instant::now().into_std())
                    .is_ok()
            }),
        ),
        (
            "tokio-rate-limit",
            Box::new(move |key| tokio.check(&names[key as usize]).permitted),
        ),
    ]
}

/// The numbers of the keys to ask for, in order.
fn sequence(pattern: &str, keys: u64) -> Vec<u64> {
    let mut rng = SmallRng::seed_from_u64(42);
    let length = 1 << 20;
    match pattern {
        "zipf" => {
            let zipf = Zipf::new(keys as f64, 1.1).unwrap();
            (0..length).map(|_| rng.sample(zipf) as u64 - 1).collect()
        }
        _ => (0..length).map(|_| rng.random_range(0..keys)).collect(),
    }
}

fn decide(c: &mut Criterion<CpuTime>) {
    for (pattern, keys) in [
        ("hot", 1),
        ("64k", 65_536),
        ("1M", 1_000_000),
        ("zipf", 1_000_000),
    ] {
        let sequence = sequence(pattern, keys);
        for mode in [Mode::Allow, Mode::Deny] {
            let mut group = c.benchmark_group(format!("decide/{pattern}/{}", mode.name()));
            group.throughput(Throughput::Elements(1));
            for (name, check) in keyed(mode, keys) {
                for key in 0..keys {
                    check(key);
                }
                let mut at = 0;
                group.bench_function(name, |b| {
                    b.iter(|| {
                        at = (at + 1) & (sequence.len() - 1);
                        black_box(check(sequence[at]))
                    });
                });
                if pattern == "hot" || pattern == "1M" {
                    two_threads(&mut group, name, &check, &sequence);
                }
            }
        }
    }
}

/// The time per decision on each of two threads that ask at once.
fn two_threads(
    group: &mut BenchmarkGroup<'_, CpuTime>,
    name: &str,
    check: &Check,
    sequence: &[u64],
) {
    group.bench_function(BenchmarkId::new(name, "2 threads"), |b| {
        b.iter_custom(|iterations| {
            let start = Instant::now();
            thread::scope(|scope| {
                for offset in [0, sequence.len() / 2] {
                    scope.spawn(move || {
                        for n in 0..iterations as usize {
                            black_box(check(sequence[(offset + n) & (sequence.len() - 1)]));
                        }
                    });
                }
            });
            start.elapsed()
        });
    });
}

/// Limiters without keys, for scale.
fn direct(c: &mut Criterion<CpuTime>) {
    for mode in [Mode::Allow, Mode::Deny] {
        let mut group = c.benchmark_group(format!("direct/{}", mode.name()));
        group.throughput(Throughput::Elements(1));
        let governor = governor::RateLimiter::direct(mode.governor());
        governor.check().ok();
        group.bench_function("governor", |b| {
            b.iter(|| black_box(governor.check().is_ok()))
        });
        let bucket = match mode {
            Mode::Allow => ratelimit::Ratelimiter::builder(1_000_000_000)
                .max_tokens(1_000_000_000)
                .initial_available(1_000_000_000)
                .build()
                .unwrap(),
            Mode::Deny => ratelimit::Ratelimiter::builder(1)
                .period(HOUR)
                .max_tokens(1)
                .build()
                .unwrap(),
        };
        bucket.try_wait().ok();
        group.bench_function("ratelimit", |b| {
            b.iter(|| black_box(bucket.try_wait().is_ok()))
        });
        group.bench_function("Instant::now", |b| b.iter(Instant::now));
    }
}

/// Several quotas for each key, decided together.
fn policies(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("policies");
    group.throughput(Throughput::Elements(1));
    for count in [1, 2, 4, 8] {
        let mut builder = Limiter::builder();
        for n in 0..count {
            builder = builder.policy(Policy::new(format!("p{n}"), Mode::Allow.ours()));
        }
        let limiter = builder.build().unwrap();
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| black_box(limiter.check(7u64).is_ok()));
        });
    }
}

fn inner(_: Request<()>) -> Ready<Result<Response<Body>, Infallible>> {
    ready(Ok(Response::new(Body::empty())))
}

/// A request as it comes from a browser through axum.
fn request() -> Request<()> {
    let mut request = Request::builder()
        .uri("http://localhost/")
        .header("host", "localhost")
        .header("user-agent", "Mozilla/5.0")
        .header("accept", "*/*")
        .header("accept-encoding", "gzip")
        .body(())
        .unwrap();
    let peer = SocketAddr::from(([192, 0, 2, 1], 40_000));
    request.extensions_mut().insert(ConnectInfo(peer));
    request
}

/// A whole call, by peer address, of an inner service that is ready and answers at once.
fn tower_call(c: &mut Criterion<CpuTime>) {
    for mode in [Mode::Allow, Mode::Deny] {
        let mut group = c.benchmark_group(format!("tower/{}", mode.name()));
        group.throughput(Throughput::Elements(1));
        measure(&mut group, "bare", service_fn(inner));

        let peer =
            key::peer_from(|head| Some(head.extensions().get::<ConnectInfo<SocketAddr>>()?.0.ip()));
        let layer = RateLimitLayer::new(mode.ours()).unwrap().key(peer);
        measure(&mut group, "rate-limit", layer.layer(service_fn(inner)));

        let mut config = tower_governor::governor::GovernorConfigBuilder::default();
        match mode {
            Mode::Allow => config.per_nanosecond(1).burst_size(u32::MAX),
            Mode::Deny => config.period(HOUR).burst_size(1),
        };
        let layer = tower_governor::GovernorLayer::new(config.finish().unwrap());
        measure(&mut group, "tower_governor", layer.layer(service_fn(inner)));
    }
}

fn measure<S>(group: &mut BenchmarkGroup<'_, CpuTime>, name: &str, mut service: S)
where
    S: Service<Request<()>>,
{
    let mut call = move |request| {
        let future = pin!(service.call(request));
        let Poll::Ready(response) = future.poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("the inner service answers at once");
        };
        response.ok()
    };
    call(request());
    group.bench_function(name, |b| {
        b.iter_batched(request, &mut call, BatchSize::SmallInput);
    });
}

/// CPU time of the measuring thread.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = ThreadTime;
    type Value = Duration;

    fn start(&self) -> ThreadTime {
        ThreadTime::now()
    }

    fn end(&self, start: ThreadTime) -> Duration {
        start.elapsed()
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn config() -> Criterion<CpuTime> {
    Criterion::default()
        .with_measurement(CpuTime)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
}

criterion_group! {
    name = benches;
    config = config();
    targets = tower_call, direct, policies, decide
}
criterion_main!(benches);
