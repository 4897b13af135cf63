//! What does a rate-limit decision cost: allowed or refused, one key or a million, bare or as a
//! Tower call?
//!
//! `cargo bench -p overload-benches --bench rate_limit -- [tower|direct|policies|decide|threads]`
//!
//! Every contender gets the same quota, the same keys in the same order and the clock it comes
//! with. `rate-limit` and `governor` appear twice, because what they read by default differs: ours
//! `Instant`, governor quanta.
//!
//! Rounds of all contenders are interleaved, since a shared machine drifts by more than they
//! differ. Reported are medians over the rounds, and between which values the middle half of them
//! lies; what a Tower call adds and what ratio one is of another is taken within each round.
//!
//! Times are CPU time of the measuring thread, so that other work on the machine does not count.
//! "tower" and "threads" are wall time; the latter only means something on an idle machine with two
//! cores.

use std::{
    array,
    convert::Infallible,
    env, fmt,
    future::{Ready, ready},
    hint::black_box,
    net::SocketAddr,
    num::NonZeroU32,
    pin::pin,
    sync::{Arc, Barrier},
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use axum::{body::Body, extract::ConnectInfo};
use cpu_time::ThreadTime;
use governor::clock::{Clock, MonotonicClock};
use http::{Request, Response};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::Zipf;
use rate_limit::{HOUR, Limiter, Policy, Quota, RateLimitLayer, SECOND, key};
use tokio::time::Instant;
use tower::{Layer, Service, service_fn};

/// Does its work once, and says how long each of it took, in nanoseconds.
type Turn = Box<dyn FnMut() -> f64>;

fn main() {
    let groups: [(&str, fn()); 5] = [
        ("tower", tower_call),
        ("direct", direct),
        ("policies", policies),
        ("decide", decide),
        ("threads", two_threads),
    ];
    let asked: Vec<_> = env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    for (name, group) in groups {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            group();
        }
    }
}

/// One decision for the key with this number; true when it is admitted.
type Check = Arc<dyn Fn(u64) -> bool + Send + Sync>;

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
        .max_keys(keys as usize);
    let counter = ours.clone().counter_clock().build().unwrap();
    let ours = ours.build().unwrap();
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
            Arc::new(move |key| ours.check(key).is_ok()) as Check,
        ),
        (
            "rate-limit, quanta",
            Arc::new(move |key| counter.check(key).is_ok()),
        ),
        (
            "governor",
            Arc::new(move |key| quanta.check_key(&key).is_ok()),
        ),
        (
            "governor-instant",
            Arc::new(move |key| instant.check_key(&key).is_ok()),
        ),
        (
            "axum_gcra",
            Arc::new(move |key| {
                gcra.req_sync(key, gcra_quota, Instant::now().into_std())
                    .is_ok()
            }),
        ),
        (
            "tokio-rate-limit",
            Arc::new(move |key| tokio.check(&names[key as usize]).permitted),
        ),
    ]
}

/// The numbers of the keys to ask for, in order.
fn sequence(pattern: &str, keys: u64) -> Arc<[u64]> {
    let mut rng = SmallRng::seed_from_u64(42);
    let length = (16 * keys).min(1 << 20);
    if pattern.ends_with("Zipf") {
        let zipf = Zipf::new(keys as f64, 1.1).expect("valid parameters");
        (0..length).map(|_| rng.sample(zipf) as u64 - 1).collect()
    } else {
        (0..length).map(|_| rng.random_range(0..keys)).collect()
    }
}

/// Decisions in a turn.
const DECISIONS: usize = 1 << 15;

fn decide() {
    for (pattern, keys) in [
        ("1 key", 1),
        ("64k keys", 65_536),
        ("1M keys", 1_000_000),
        ("1M keys, Zipf", 1_000_000),
    ] {
        let sequence = sequence(pattern, keys);
        for mode in [Mode::Allow, Mode::Deny] {
            let contenders = keyed(mode, keys).into_iter().map(|(name, check)| {
                (0..keys).for_each(|key| _ = check(key));
                let sequence = Arc::clone(&sequence);
                let mut at = 0;
                let turn = move || {
                    timed(DECISIONS, || {
                        for _ in 0..DECISIONS {
                            at = (at + 1) & (sequence.len() - 1);
                            black_box(check(sequence[at]));
                        }
                    })
                };
                (name, Box::new(turn) as Turn)
            });
            let title = format!("decide, {pattern}, {}", mode.name());
            compare(&title, contenders.collect());
        }
    }
}

/// The time per decision on each of two threads that ask at once, for keys of the same sequence at
/// different places.
fn two_threads() {
    for (pattern, keys) in [("1 key", 1), ("1M keys", 1_000_000)] {
        let sequence = sequence(pattern, keys);
        for mode in [Mode::Allow, Mode::Deny] {
            let contenders = keyed(mode, keys).into_iter().map(|(name, check)| {
                (0..keys).for_each(|key| _ = check(key));
                let sequence = Arc::clone(&sequence);
                let turn = move || {
                    let barrier = Barrier::new(2);
                    let work = |offset| {
                        barrier.wait();
                        let start = Instant::now();
                        for n in 0..DECISIONS {
                            black_box(check(sequence[(offset + n) & (sequence.len() - 1)]));
                        }
                        start.elapsed().as_nanos() as f64 / DECISIONS as f64
                    };
                    thread::scope(|scope| {
                        let other = scope.spawn(|| work(sequence.len() / 2));
                        (work(0) + other.join().expect("no panic")) / 2.0
                    })
                };
                (name, Box::new(turn) as Turn)
            });
            let title = format!("two threads, {pattern}, {}", mode.name());
            compare(&title, contenders.collect());
        }
    }
}

/// Limiters without keys, for scale.
fn direct() {
    for mode in [Mode::Allow, Mode::Deny] {
        let governor = governor::RateLimiter::direct(mode.governor());
        let bucket = match mode {
            Mode::Allow => ratelimit::Ratelimiter::builder(1_000_000_000)
                .max_tokens(1_000_000_000)
                .initial_available(1_000_000_000),
            Mode::Deny => ratelimit::Ratelimiter::builder(1)
                .period(HOUR)
                .max_tokens(1),
        };
        let bucket = bucket.build().expect("a valid rate");
        let now = Instant::now();
        let contenders = vec![
            repeated("governor", move || governor.check().is_ok()),
            repeated("ratelimit", move || bucket.try_wait().is_ok()),
            repeated("Instant::now", move || Instant::now() > black_box(now)),
        ];
        Times::measure(&format!("direct, {}", mode.name()), ROUNDS, contenders);
    }
}

/// Several quotas for each key, decided together.
fn policies() {
    let contenders = [("1", 1), ("2", 2), ("4", 4), ("8", 8)].map(|(name, count)| {
        let mut builder = Limiter::builder();
        for n in 0..count {
            builder = builder.policy(Policy::new(format!("p{n}"), Mode::Allow.ours()));
        }
        let limiter = builder.build().expect("valid quotas");
        repeated(name, move || limiter.check(7u64).is_ok())
    });
    Times::measure("policies of one limiter, allow", ROUNDS, contenders.into());
}

fn repeated(name: &'static str, check: impl Fn() -> bool + 'static) -> (&'static str, Turn) {
    check();
    let turn = move || {
        timed(DECISIONS, || {
            (0..DECISIONS).for_each(|_| _ = black_box(check()))
        })
    };
    (name, Box::new(turn))
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

/// A whole call, by peer address, of an inner service that is ready and answers at once: from
/// having the request to having dropped the response.
fn tower_call() {
    for mode in [Mode::Allow, Mode::Deny] {
        let peer =
            key::peer_from(|head| Some(head.extensions().get::<ConnectInfo<SocketAddr>>()?.0.ip()));
        let ours = Limiter::builder().quota(mode.ours());
        let counter = ours.clone().counter_clock().build();
        let [ours, counter] = [ours.build(), counter].map(|limiter| {
            RateLimitLayer::from_limiter(limiter.expect("a valid quota")).key(peer.clone())
        });

        let mut config = tower_governor::governor::GovernorConfigBuilder::default();
        match mode {
            Mode::Allow => config.per_nanosecond(1).burst_size(u32::MAX),
            Mode::Deny => config.period(HOUR).burst_size(1),
        };
        let governor = tower_governor::GovernorLayer::new(config.finish().expect("a valid quota"));
        let contenders = vec![
            ("bare", calls(service_fn(inner))),
            ("tower_governor", calls(governor.layer(service_fn(inner)))),
            ("rate-limit", calls(ours.layer(service_fn(inner)))),
            (
                "rate-limit, quanta",
                calls(counter.layer(service_fn(inner))),
            ),
        ];
        let title = format!("tower, {}", mode.name());
        let times = Times::measure(&title, 201, contenders);
        for (index, name) in ["tower_governor", "rate-limit", "rate-limit, quanta"]
            .iter()
            .enumerate()
        {
            let added = times.paired(index + 1, 0, |own, bare| own - bare);
            println!("  added by {name:<18} {added}");
        }
    }
}

/// Requests that are there before the time is taken: few enough to stay in the first cache and in
/// the allocator's list for this thread. Of more, what is measured is how they are freed.
const CALLS: usize = 4;

/// How many times so many are called in a turn.
const BATCHES: usize = 256;

fn calls<S>(mut service: S) -> Turn
where
    S: Service<Request<()>> + 'static,
{
    let mut call = move |request| {
        let future = pin!(service.call(request));
        let Poll::Ready(response) = future.poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("the inner service answers at once");
        };
        drop(black_box(response.ok()));
    };
    call(request());
    Box::new(move || {
        let mut spent = Duration::ZERO;
        for _ in 0..BATCHES {
            let requests: [_; CALLS] = array::from_fn(|_| request());
            let start = Instant::now();
            requests.into_iter().for_each(&mut call);
            spent += start.elapsed();
        }
        spent.as_nanos() as f64 / (CALLS * BATCHES) as f64
    })
}

/// CPU time of this thread for each of so many pieces of `work`, in nanoseconds.
fn timed(pieces: usize, work: impl FnOnce()) -> f64 {
    let start = ThreadTime::now();
    work();
    start.elapsed().as_nanos() as f64 / pieces as f64
}

/// Reports all contenders, and what ratio the first two are of each of the others.
fn compare(title: &str, contenders: Vec<(&str, Turn)>) {
    let names: Vec<_> = contenders
        .iter()
        .map(|(name, _)| name.to_string())
        .collect();
    let times = Times::measure(title, ROUNDS, contenders);
    for ours in [0, 1] {
        for (index, name) in names.iter().enumerate().skip(2) {
            let ratio = times.paired(ours, index, |ours, theirs| ours / theirs);
            println!("  {} / {name:<18} {ratio}", names[ours]);
        }
    }
}

const ROUNDS: usize = 41;

/// What each contender took in each round.
struct Times(Vec<Vec<f64>>);

impl Times {
    fn measure(title: &str, rounds: usize, mut contenders: Vec<(&str, Turn)>) -> Self {
        for (_, turn) in &mut contenders {
            turn();
        }
        let mut times = vec![Vec::with_capacity(rounds); contenders.len()];
        for _ in 0..rounds {
            for ((_, turn), times) in contenders.iter_mut().zip(&mut times) {
                times.push(turn());
            }
        }
        println!("\n{title}: ns, median [middle half] of {rounds} rounds");
        for ((name, _), times) in contenders.iter().zip(&times) {
            println!("  {name:<20} {}", Spread::of(times.iter().copied()));
        }
        Self(times)
    }

    /// What `compare` makes of a contender and another in the same round.
    fn paired(&self, own: usize, other: usize, compare: fn(f64, f64) -> f64) -> Spread {
        let pairs = self.0[own].iter().zip(&self.0[other]);
        Spread::of(pairs.map(|(&own, &other)| compare(own, other)))
    }
}

/// The quartiles.
struct Spread([f64; 3]);

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.collect();
        values.sort_by(f64::total_cmp);
        Self([1, 2, 3].map(|quarter| values[quarter * (values.len() - 1) / 4]))
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, median, high] = self.0;
        // Ratios have two digits, times one.
        let digits = if median < 10.0 { 2 } else { 1 };
        write!(f, "{median:>7.digits$} [{low:.digits$} to {high:.digits$}]")
    }
}
