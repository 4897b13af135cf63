//! The clients: in a closed loop, to see what the server can do, and in an open one, which does not wait.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, Exp1};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};

use crate::Error;

/// Later than this a response is worth nothing.
const OBJECTIVE: Duration = Duration::from_secs(1);

/// Users go after this long.
const PATIENCE: Duration = Duration::from_secs(2);

/// Records that a client stores at once.
const RECORDS: usize = 20;

/// What became of the requests of some seconds.
#[derive(Default)]
pub(crate) struct Tally {
    seconds: f64,
    /// 200 in time.
    pub(crate) good: usize,
    /// 200, too late.
    pub(crate) late: usize,
    /// 503 with `retry-after`.
    pub(crate) shed: usize,
    /// When the last of them was sent, in seconds.
    pub(crate) last_shed: f64,
    /// Any other status, or a broken connection.
    pub(crate) failed: usize,
    /// No response until the user went.
    pub(crate) gone: usize,
    /// Of those that were served.
    latencies: Vec<Duration>,
}

impl Tally {
    pub(crate) fn offered(&self) -> usize {
        self.good + self.late + self.shed + self.failed + self.gone
    }

    pub(crate) fn a_second(&self, count: usize) -> f64 {
        count as f64 / self.seconds
    }

    pub(crate) fn good_a_second(&self) -> f64 {
        self.a_second(self.good)
    }

    pub(crate) fn p99(&self) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let index = (sorted.len() * 99 / 100).min(sorted.len().saturating_sub(1));
        sorted.get(index).copied().unwrap_or_default()
    }

    fn count(&mut self, at: f64, fate: Fate, latency: Duration) {
        match fate {
            Fate::Served => {
                self.latencies.push(latency);
                if latency <= OBJECTIVE {
                    self.good += 1;
                } else {
                    self.late += 1;
                }
            }
            Fate::Shed => {
                self.shed += 1;
                self.last_shed = self.last_shed.max(at);
            }
            Fate::Failed => self.failed += 1,
            Fate::Gone => self.gone += 1,
        }
    }
}

enum Fate {
    Served,
    Shed,
    Failed,
    Gone,
}

type Http = legacy::Client<HttpConnector, Full<Bytes>>;

fn http() -> Http {
    legacy::Client::builder(TokioExecutor::new()).build_http()
}

/// Whether the health check of the server succeeds.
pub(crate) async fn is_healthy(address: SocketAddr) -> bool {
    // On a connection of its own, as a load balancer's.
    let request = Request::get(format!("http://{address}/healthz")).body(Full::default());
    let Ok(request) = request else { return false };
    let response = http().request(request).await;
    response.is_ok_and(|response| response.status() == StatusCode::OK)
}

/// Users that are known to the server.
#[derive(Clone)]
pub(crate) struct Client {
    http: Http,
    address: SocketAddr,
    users: Vec<User>,
}

#[derive(Clone)]
struct User {
    token: String,
    /// Of the records that are read: always the same, so that a read costs the same however much was stored.
    host: String,
}

impl Client {
    pub(crate) async fn register(address: SocketAddr, users: usize) -> Result<Self, Error> {
        let mut client = Self {
            http: http(),
            address,
            users: Vec::new(),
        };
        let mut random = SmallRng::seed_from_u64(1);
        for user in 0..users {
            let body = json!({
                "email": format!("user{user}@example.com"),
                "username": format!("user{user}"),
                "password": "not a secret",
            });
            let request = client.request(Method::POST, "/register", None, &body)?;
            let response = client.http.request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            let session = serde_json::from_slice::<Value>(&body)
                .ok()
                .and_then(|body| body["session"].as_str().map(str::to_owned));
            let Some(session) = session else {
                let body = String::from_utf8_lossy(&body);
                return Err(format!("no session for user{user}: {status} {body}").into());
            };
            let host = uuid(&mut random);
            let body = records(&host, &mut random);
            let request = client.request(Method::POST, "/api/v0/record", Some(&session), &body)?;
            let status = client.http.request(request).await?.status();
            if status != StatusCode::OK {
                return Err(format!("user{user} could not store records: {status}").into());
            }
            client.users.push(User {
                token: session,
                host,
            });
        }
        Ok(client)
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: &Value,
    ) -> Result<Request<Full<Bytes>>, http::Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Token {token}"));
        }
        request.body(Full::from(body.to_string()))
    }

    /// Stores records or reads some, by `random`.
    async fn ask(&self, random: &mut SmallRng, until: Instant) -> Fate {
        let User { token, host } = &self.users[random.random_range(0..self.users.len())];
        let request = if random.random_bool(0.5) {
            let body = records(&uuid(random), random);
            self.request(Method::POST, "/api/v0/record", Some(token), &body)
        } else {
            let path =
                format!("/api/v0/record/next?host={host}&tag=history&start=0&count={RECORDS}");
            self.request(Method::GET, &path, Some(token), &Value::Null)
        };
        let Ok(request) = request else {
            return Fate::Failed;
        };
        // A user that goes takes the connection along.
        let response = timeout_at(until, async {
            let response = self.http.request(request).await.ok()?;
            let status = response.status();
            let says_when = response.headers().contains_key(header::RETRY_AFTER);
            response.into_body().collect().await.ok()?;
            Some((status, says_when))
        });
        match response.await {
            Ok(Some((StatusCode::OK, _))) => Fate::Served,
            Ok(Some((StatusCode::SERVICE_UNAVAILABLE, true))) => Fate::Shed,
            Ok(_) => Fate::Failed,
            Err(_) => Fate::Gone,
        }
    }
}

fn records(host: &str, random: &mut SmallRng) -> Value {
    let mut record = |index| {
        json!({
            "id": uuid(random),
            "idx": index,
            "host": { "id": host, "name": "" },
            "timestamp": 1_700_000_000_000_000_000_u64,
            "version": "v0",
            "tag": "history",
            "data": { "data": "ls -l ".repeat(20), "content_encryption_key": "key" },
        })
    };
    (0..RECORDS).map(&mut record).collect()
}

fn uuid(random: &mut SmallRng) -> String {
    let hex = format!("{:032x}", random.random::<u128>());
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}

/// So many clients that each wait for a response; returns responses a second.
pub(crate) async fn closed(client: &Client, clients: u64, lasting: Duration) -> f64 {
    let until = Instant::now() + lasting;
    let served = Arc::new(AtomicUsize::new(0));
    let mut all = JoinSet::new();
    for seed in 0..clients {
        let (client, served) = (client.clone(), Arc::clone(&served));
        all.spawn(async move {
            let mut random = SmallRng::seed_from_u64(seed);
            while Instant::now() < until {
                if matches!(client.ask(&mut random, until).await, Fate::Served) {
                    served.fetch_add(1, Relaxed);
                }
            }
        });
    }
    all.join_all().await;
    served.load(Relaxed) as f64 / lasting.as_secs_f64()
}

/// Requests at random moments (Poisson), whatever becomes of those before.
pub(crate) async fn open(client: &Client, a_second: f64, lasting: Duration) -> Tally {
    let mut random = SmallRng::seed_from_u64(7);
    let start = Instant::now();
    let mut requests = JoinSet::new();
    let mut at = 0.0;
    loop {
        let gap: f64 = Exp1.sample(&mut random);
        at += gap / a_second;
        if at >= lasting.as_secs_f64() {
            break;
        }
        let intended = start + Duration::from_secs_f64(at);
        sleep_until(intended).await;
        let (client, mut random) = (client.clone(), SmallRng::from_rng(&mut random));
        requests.spawn(async move {
            let fate = client.ask(&mut random, intended + PATIENCE).await;
            (at, fate, intended.elapsed())
        });
    }
    let mut tally = Tally {
        seconds: lasting.as_secs_f64(),
        ..Tally::default()
    };
    while let Some(ended) = requests.join_next().await {
        match ended {
            Ok((at, fate, latency)) => tally.count(at, fate, latency),
            Err(_) => tally.failed += 1,
        }
    }
    tally
}
