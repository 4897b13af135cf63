//! The load of a level: open loop or users that think, over real connections.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::weighted::WeightedIndex;
use rand_distr::{Distribution, Exp1, Zipf};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::fleet::{Balancer, HttpClient, client};
use crate::pod::USER;
use crate::profile::{Level, Profile};

/// What became of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fate {
    /// 200.
    Served,
    /// 503 in place of a response.
    Shed,
    /// 429.
    Limited,
    /// Another status, or a broken connection.
    Failed,
    /// Its user gave up.
    TimedOut,
}

/// One request, as its user saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    /// When it was due, in seconds since the level began.
    pub(crate) at: f64,
    /// From then to its end.
    pub(crate) ms: f64,
    pub(crate) fate: Fate,
    /// How late the generator itself sent it, in ms.
    pub(crate) late_ms: f64,
}

/// The load of a level, in numbers of the run.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    arrivals: Arrivals,
    patience: Duration,
    weights: Vec<f64>,
    keys: Option<(f64, f64)>,
    seconds: f64,
}

#[derive(Clone, Copy, Debug)]
enum Arrivals {
    /// Requests a second, whatever becomes of them.
    Open(f64),
    Users {
        count: usize,
        think: [f64; 2],
        each: f64,
    },
}

/// More requests than this under way are refused before they are sent, as by a balancer.
const MOST: usize = 4_000;

/// Users that requests of an open loop are from.
const USERS: u32 = 10_000;

impl Load {
    pub(crate) fn of(profile: &Profile, level: &Level, seconds: f64) -> Self {
        let scale = &profile.scale;
        let arrivals = match (level.rate, level.users) {
            (Some(rate), _) if level.unscaled => Arrivals::Open(rate),
            (Some(rate), _) => Arrivals::Open(scale.rate(rate)),
            (None, users) => Arrivals::Users {
                count: scale.count(users.unwrap_or(1)),
                think: level
                    .think_ms
                    .unwrap_or_default()
                    .map(|ms| scale.ms(ms) / 1e3),
                each: level.spawn_per_s.map_or(0.0, |rate| 1.0 / scale.rate(rate)),
            },
        };
        let weight = |name: &String, weight: f64| match &level.mix {
            Some(mix) => mix.get(name).copied().unwrap_or(0.0),
            None => weight,
        };
        let endpoints = profile.endpoints.iter();
        Self {
            arrivals,
            patience: Duration::from_secs_f64(scale.ms(profile.patience_ms) / 1e3),
            weights: endpoints.map(|e| weight(&e.name, e.weight)).collect(),
            keys: profile
                .cache
                .map(|cache| (f64::from(cache.keys), cache.skew)),
            seconds,
        }
    }

    /// Another rate, open loop.
    pub(crate) fn at(mut self, rate: f64) -> Self {
        self.arrivals = Arrivals::Open(rate);
        self
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.seconds
    }
}

struct Sender {
    load: Load,
    balancer: Arc<Balancer>,
    client: HttpClient,
    start: Instant,
    mix: WeightedIndex<f64>,
    outstanding: AtomicUsize,
    records: Arc<Mutex<Vec<Record>>>,
}

/// Records so far, and the thread that adds to them.
pub(crate) struct Running {
    pub(crate) records: Arc<Mutex<Vec<Record>>>,
    thread: std::thread::JoinHandle<()>,
}

impl Running {
    /// Starts the load on a thread of its own.
    pub(crate) fn start(load: Load, balancer: Arc<Balancer>, seed: u64) -> Result<Self, String> {
        let mix = WeightedIndex::new(&load.weights)
            .map_err(|error| format!("weights of endpoints {:?}: {error}", load.weights))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let records = Arc::<Mutex<Vec<Record>>>::default();
        let kept = Arc::clone(&records);
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let sender = Arc::new(Sender {
                    load,
                    balancer,
                    client: client(),
                    start: Instant::now(),
                    mix,
                    outstanding: AtomicUsize::new(0),
                    records: kept,
                });
                sender.run(seed).await;
            });
        });
        Ok(Self { records, thread })
    }

    /// Waits for the last request.
    pub(crate) async fn finish(self) -> Vec<Record> {
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            eprintln!("the load generator broke down");
        }
        std::mem::take(&mut *self.records.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Sender {
    async fn run(self: Arc<Self>, seed: u64) {
        let mut tasks = JoinSet::new();
        match self.load.arrivals {
            Arrivals::Open(rate) => {
                let mut random = SmallRng::seed_from_u64(seed);
                let mut at = 0.0;
                loop {
                    let gap: f64 = Exp1.sample(&mut random);
                    at += gap / rate;
                    if at >= self.load.seconds {
                        break;
                    }
                    let due = self.start + Duration::from_secs_f64(at);
                    if due > Instant::now() {
                        sleep_until(due).await;
                    }
                    let (endpoint, key) = self.draw(&mut random);
                    let user = random.random_range(0..USERS);
                    let sender = Arc::clone(&self);
                    tasks.spawn(async move {
                        sender.send(due, endpoint, key, user).await;
                    });
                    while tasks.try_join_next().is_some() {}
                }
            }
            Arrivals::Users { count, think, each } => {
                for user in 0..count {
                    let sender = Arc::clone(&self);
                    tasks.spawn(async move {
                        sleep(Duration::from_secs_f64(user as f64 * each)).await;
                        sender.user(user as u32, think, seed + user as u64).await;
                    });
                }
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn user(&self, user: u32, [least, most]: [f64; 2], seed: u64) {
        let mut random = SmallRng::seed_from_u64(seed);
        while self.start.elapsed().as_secs_f64() < self.load.seconds {
            let (endpoint, key) = self.draw(&mut random);
            self.send(Instant::now(), endpoint, key, user).await;
            sleep(Duration::from_secs_f64(random.random_range(least..=most))).await;
        }
    }

    fn draw(&self, random: &mut SmallRng) -> (usize, u32) {
        let endpoint = self.mix.sample(random);
        let zipf = self
            .load
            .keys
            .and_then(|(keys, skew)| Zipf::new(keys, skew).ok());
        let key = match zipf {
            Some(zipf) => zipf.sample(random) as u32,
            None => random.random_range(0..1_000),
        };
        (endpoint, key)
    }

    async fn send(&self, due: Instant, endpoint: usize, key: u32, user: u32) {
        let late_ms = due.elapsed().as_secs_f64() * 1e3;
        let fate = if self.outstanding.fetch_add(1, Relaxed) < MOST {
            self.ask(due + self.load.patience, endpoint, key, user)
                .await
        } else {
            Fate::Failed
        };
        self.outstanding.fetch_sub(1, Relaxed);
        let record = Record {
            at: (due - self.start).as_secs_f64(),
            ms: due.elapsed().as_secs_f64() * 1e3,
            fate,
            late_ms,
        };
        self.records
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(record);
    }

    async fn ask(&self, deadline: Instant, endpoint: usize, key: u32, user: u32) -> Fate {
        let Some(pod) = self.balancer.next() else {
            return Fate::Failed;
        };
        let request = Request::get(format!("http://{pod}/e/{endpoint}/{key}"))
            .header(USER, user)
            .body(Empty::new());
        let Ok(request) = request else {
            return Fate::Failed;
        };
        // Dropping the request on a time-out closes its connection, as a browser does.
        let reply = timeout_at(deadline, async {
            let response = self.client.request(request).await.ok()?;
            let status = response.status();
            response.into_body().collect().await.ok()?;
            Some(status)
        });
        match reply.await {
            Ok(Some(StatusCode::OK)) => Fate::Served,
            Ok(Some(StatusCode::SERVICE_UNAVAILABLE)) => Fate::Shed,
            Ok(Some(StatusCode::TOO_MANY_REQUESTS)) => Fate::Limited,
            Ok(_) => Fate::Failed,
            Err(_) => Fate::TimedOut,
        }
    }
}
