//! The load: open-loop, over real connections, from threads of its own.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, Exp1};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::app::{CALLER, HEALTH};

/// Responses later than this are worth nothing to the user.
pub(crate) const OBJECTIVE: Duration = Duration::from_millis(500);
/// Users go away after this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// Users of the service. One request in ten comes from the first, which keeps to no quota.
const CALLERS: u32 = 40;
/// Health checks a second.
const CHECKS: f64 = 30.0;
const WORDS: [&str; 6] = ["express", "gift", "fragile", "insured", "pickup", "evening"];

type HttpClient = Client<HttpConnector, Empty<Bytes>>;

/// A constant rate for some time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) multiplier: f64,
    pub(crate) start: f64,
    pub(crate) lasts: f64,
    pub(crate) offered: f64,
}

/// From half the capacity to ten times it and back, in `seconds` seconds.
pub(crate) fn ramp(capacity: f64, seconds: f64) -> Vec<Step> {
    /// Multiples of the capacity, and shares of the time.
    const STEPS: [(f64, f64); 8] = [
        (0.5, 4.0),
        (0.8, 4.0),
        (1.0, 4.0),
        (1.5, 4.0),
        (3.0, 4.0),
        (10.0, 8.0),
        (1.0, 2.0),
        (0.5, 6.0),
    ];
    let whole: f64 = STEPS.iter().map(|(_, share)| share).sum();
    let mut start = 0.0;
    STEPS
        .iter()
        .map(|&(multiplier, share)| {
            let lasts = seconds * share / whole;
            let step = Step {
                multiplier,
                start,
                lasts,
                offered: multiplier * capacity,
            };
            start += lasts;
            step
        })
        .collect()
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// 200.
    Answered,
    /// 503.
    Shed,
    /// 429.
    Limited,
    /// Another status, a broken connection, or no answer in time.
    Failed,
}

/// One request, as its user saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    /// When it should have started, in seconds since the run did.
    pub(crate) at: f64,
    /// From that moment to the end of the response, or of the user's patience.
    pub(crate) latency: Duration,
    /// From that moment to when it did start: what the generator itself was late.
    pub(crate) late_start: Duration,
    pub(crate) fate: Fate,
}

impl Record {
    /// When its user had the response, or gave up.
    pub(crate) const fn ended(&self) -> f64 {
        self.at + self.latency.as_secs_f64()
    }
}

/// What became of all requests of a run.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) requests: Vec<Record>,
    /// Health checks, which pass no layer: what a response takes on this machine at that moment.
    pub(crate) checks: Vec<Record>,
}

/// A run in progress.
pub(crate) struct Generator {
    thread: Option<std::thread::JoinHandle<()>>,
    shared: Arc<Shared>,
}

struct Shared {
    outstanding: AtomicUsize,
    records: Mutex<Records>,
}

impl Shared {
    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generator {
    /// Starts the schedule now, on a thread of its own.
    pub(crate) fn start(address: SocketAddr, steps: Vec<Step>, seed: u64) -> Self {
        let shared = Arc::new(Shared {
            outstanding: AtomicUsize::new(0),
            records: Mutex::default(),
        });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                match runtime {
                    Ok(runtime) => runtime.block_on(generate(address, steps, seed, shared)),
                    Err(error) => eprintln!("no load: {error}"),
                }
            })
        };
        Self {
            thread: Some(thread),
            shared,
        }
    }

    /// Requests that were sent and not answered yet.
    pub(crate) fn outstanding(&self) -> usize {
        self.shared.outstanding.load(Relaxed)
    }

    /// Waits for the end of the schedule and of every request.
    pub(crate) async fn finish(mut self) -> Records {
        if let Some(thread) = self.thread.take() {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                eprintln!("the load generator broke down");
            }
        }
        std::mem::take(&mut *self.shared.records())
    }
}

async fn generate(address: SocketAddr, steps: Vec<Step>, seed: u64, shared: Arc<Shared>) {
    let client = client();
    let mut random = SmallRng::seed_from_u64(seed);
    let start = Instant::now();
    let mut requests = tokio::task::JoinSet::new();
    let ends = steps.last().map_or(0.0, |step| step.start + step.lasts);
    requests.spawn(check(
        client.clone(),
        address,
        start,
        ends,
        Arc::clone(&shared),
    ));
    for step in steps {
        let mut at = step.start;
        loop {
            let gap: f64 = Exp1.sample(&mut random);
            at += gap / step.offered;
            if at >= step.start + step.lasts {
                break;
            }
            let intended = start + Duration::from_secs_f64(at);
            sleep_until(intended).await;
            let caller = if random.random_bool(0.1) {
                0
            } else {
                random.random_range(1..CALLERS)
            };
            let word = WORDS[random.random_range(0..WORDS.len())];
            let (client, shared) = (client.clone(), Arc::clone(&shared));
            requests.spawn(async move {
                shared.outstanding.fetch_add(1, Relaxed);
                let path = format!("/orders/{word}");
                let record = ask_at(&client, address, caller, &path, (start, at)).await;
                shared.outstanding.fetch_sub(1, Relaxed);
                shared.records().requests.push(record);
            });
            while requests.try_join_next().is_some() {}
        }
    }
    while requests.join_next().await.is_some() {}
}

/// Asks for the health of the service at a constant rate until `ends`, in seconds since `start`.
async fn check(
    client: HttpClient,
    address: SocketAddr,
    start: Instant,
    ends: f64,
    shared: Arc<Shared>,
) {
    let mut checks = tokio::task::JoinSet::new();
    for number in 0..(CHECKS * ends) as u32 {
        let at = f64::from(number) / CHECKS;
        sleep_until(start + Duration::from_secs_f64(at)).await;
        let (client, shared) = (client.clone(), Arc::clone(&shared));
        checks.spawn(async move {
            let record = ask_at(&client, address, 0, HEALTH, (start, at)).await;
            shared.records().checks.push(record);
        });
        while checks.try_join_next().is_some() {}
    }
    while checks.join_next().await.is_some() {}
}

/// Asks now for what should have been asked for `at` seconds after `start`.
async fn ask_at(
    client: &HttpClient,
    address: SocketAddr,
    caller: u32,
    path: &str,
    (start, at): (Instant, f64),
) -> Record {
    let intended = start + Duration::from_secs_f64(at);
    let late_start = intended.elapsed();
    let fate = ask(client, address, caller, path, intended + PATIENCE).await;
    Record {
        at,
        latency: intended.elapsed(),
        late_start,
        fate,
    }
}

/// Sends requests back to back for `lasting`, and returns how many were served.
pub(crate) async fn back_to_back(address: SocketAddr, lasting: Duration) -> u64 {
    let client = client();
    let end = Instant::now() + lasting;
    let path = format!("/orders/{}", WORDS[0]);
    let mut answered = 0;
    while Instant::now() < end {
        let fate = ask(&client, address, 1, &path, Instant::now() + PATIENCE).await;
        answered += u64::from(fate == Fate::Answered);
    }
    answered
}

fn client() -> HttpClient {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(5))
        .build_http()
}

async fn ask(
    client: &HttpClient,
    address: SocketAddr,
    caller: u32,
    path: &str,
    deadline: Instant,
) -> Fate {
    let request = Request::builder()
        .uri(format!("http://{address}{path}"))
        .header(CALLER, format!("caller-{caller}"))
        .body(Empty::new());
    let Ok(request) = request else {
        return Fate::Failed;
    };
    // Dropping the request on a time-out closes its connection, as a browser does.
    let answered = timeout_at(deadline, async {
        let response = client.request(request).await.ok()?;
        let status = response.status();
        response.into_body().collect().await.ok()?;
        Some(status)
    });
    match answered.await {
        Ok(Some(StatusCode::OK)) => Fate::Answered,
        Ok(Some(StatusCode::SERVICE_UNAVAILABLE)) => Fate::Shed,
        Ok(Some(StatusCode::TOO_MANY_REQUESTS)) => Fate::Limited,
        Ok(_) | Err(_) => Fate::Failed,
    }
}
