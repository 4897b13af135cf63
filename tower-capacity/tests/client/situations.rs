//! A throttled client never gets less than a plain one: random situations in virtual time, each
//! played twice, with and without the throttle.
//!
//! `SITUATIONS=1000 cargo test -p tower-capacity --all-features --test client situations` plays
//! more of them, `SITUATIONS_SEED=7` others. A failure prints its seed, which alone plays it again,
//! and the smallest situation like it that fails too.

use std::{
    convert::Infallible,
    env, fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode, header::RETRY_AFTER};
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_capacity::{
    CapacityLayer, Limiter,
    layer::CapacityBody,
    limit::Fixed,
    priority_header,
    throttle::{ThrottleLayer, Throttled},
};

type Body = CapacityBody<Full<Bytes>>;
type Server = BoxCloneSyncService<Request<()>, Response<Body>, Infallible>;

const TENANT: HeaderName = HeaderName::from_static("x-tenant");
const PRIORITY: HeaderName = HeaderName::from_static("x-priority");
/// Longer than any service time, shorter than any spell.
const PATIENCE: Duration = Duration::from_secs(2);
const CLASSES: [&str; 4] = ["critical", "default", "sheddable", "background"];

/// What stands in front of the service.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Fixed,
    Adaptive,
    /// Tenants are classes.
    Priorities,
    Partitions,
    /// Each tenant has a quota.
    Quota,
    /// Each path has a limit of its own; tenants ask for different paths.
    Routes,
}

/// What happens to the service for a while.
#[derive(Clone, Copy, Debug)]
enum Spell {
    /// It returns 503.
    Rejects,
    /// It sends no response.
    Hangs,
    /// Its requests take ten times as long.
    Slow,
}

#[derive(Clone, Debug)]
struct Situation {
    seed: u64,
    kind: Kind,
    limit: usize,
    service_time: Duration,
    clients: usize,
    /// Requests a second of each tenant.
    tenants: Vec<f64>,
    /// Requests a second of the quota of each tenant.
    quota: f64,
    /// With the second in which each begins and ends.
    spells: Vec<(Spell, f64, f64)>,
    seconds: f64,
}

impl Situation {
    fn random(seed: u64) -> Self {
        let mut random = Random(seed);
        let kinds = [
            Kind::Fixed,
            Kind::Adaptive,
            Kind::Priorities,
            Kind::Partitions,
            Kind::Quota,
            Kind::Routes,
        ];
        let kind = random.choice(&kinds);
        let capacity = random.within(5.0, 60.0);
        let service_time = random.within(0.01, 0.15);
        let limit = (capacity * service_time).ceil().max(1.0);
        let capacity = limit / service_time;
        let offered = capacity.min(50.0) * random.within(0.3, 8.0);
        let shares: Vec<f64> = (0..random.choice(&[1, 1, 2, 3, 4]))
            .map(|_| random.within(0.02, 1.0))
            .collect();
        let sum: f64 = shares.iter().sum();
        let seconds = random.within(40.0, 70.0);
        let mut spells = Vec::new();
        let mut at = random.within(5.0, 30.0);
        while at < seconds - 20.0 && random.uniform() < 0.7 {
            let lasts = random.within(3.0, 30.0);
            let spell = random.choice(&[Spell::Rejects, Spell::Hangs, Spell::Slow]);
            spells.push((spell, at, (at + lasts).min(seconds - 15.0)));
            at += lasts + random.within(10.0, 30.0);
        }
        Self {
            seed,
            kind,
            limit: limit as usize,
            service_time: Duration::from_secs_f64(service_time),
            clients: random.choice(&[1, 1, 2, 5, 20, 100]),
            // One that asks less than once in the throttle's patience is not told from the others.
            tenants: shares
                .iter()
                .map(|share| (offered * share / sum).max(0.5))
                .collect(),
            quota: random.within(0.1, 10.0),
            spells,
            seconds,
        }
    }

    /// Situations with less in them, to be tried if this one fails.
    fn smaller(&self) -> Vec<Self> {
        let mut smaller = Vec::new();
        for spell in 0..self.spells.len() {
            let mut without = self.clone();
            without.spells.remove(spell);
            smaller.push(without);
        }
        for tenant in 1..self.tenants.len() {
            let mut without = self.clone();
            without.tenants.remove(tenant);
            smaller.push(without);
        }
        if self.clients > 1 {
            let clients = self.clients / 2;
            smaller.push(Self {
                clients,
                ..self.clone()
            });
        }
        smaller
    }

    fn spell(&self, at: f64) -> Option<Spell> {
        let mut spells = self.spells.iter();
        let is_now = |(_, from, to): &&(Spell, f64, f64)| (*from..*to).contains(&at);
        spells.find(is_now).map(|(spell, ..)| *spell)
    }

    /// When each request is sent, and by which tenant.
    fn arrivals(&self) -> Vec<(f64, usize)> {
        let mut random = Random(self.seed ^ 0xA771_7A15);
        let mut arrivals = Vec::new();
        for (tenant, rate) in self.tenants.iter().enumerate() {
            let mut at = -random.uniform().ln() / rate;
            while at < self.seconds {
                arrivals.push((at, tenant));
                at -= random.uniform().ln() / rate;
            }
        }
        arrivals.sort_by(|a, b| a.0.total_cmp(&b.0));
        arrivals
    }

    fn server(&self) -> Server {
        let start = Instant::now();
        let situation = self.clone();
        let work = service_fn(move |_request: Request<()>| {
            let spell = situation.spell(start.elapsed().as_secs_f64());
            let service_time = situation.service_time;
            async move {
                match spell {
                    None => sleep(service_time).await,
                    Some(Spell::Slow) => sleep(10 * service_time).await,
                    Some(Spell::Hangs) => std::future::pending().await,
                    Some(Spell::Rejects) => return Ok(refusal(StatusCode::SERVICE_UNAVAILABLE)),
                }
                Ok::<_, Infallible>(Response::new(Full::default()))
            }
        });
        let limiter = || {
            Limiter::builder()
                .law(Fixed::new(self.limit))
                .build()
                .unwrap()
        };
        let tenant =
            |request: &http::request::Parts| request.headers[TENANT].to_str().unwrap().to_owned();
        match self.kind {
            Kind::Fixed => Server::new(CapacityLayer::new(limiter()).layer(work)),
            Kind::Adaptive => Server::new(CapacityLayer::adaptive().layer(work)),
            Kind::Priorities => {
                let layer = CapacityLayer::new(limiter()).priority(priority_header(PRIORITY));
                Server::new(layer.layer(work))
            }
            Kind::Partitions => {
                let layer = CapacityLayer::new(limiter());
                let layer = layer.partition_by(move |request| Some(tenant(request)));
                Server::new(layer.layer(work))
            }
            Kind::Quota => {
                let buckets = vec![(1.0_f64, Instant::now()); self.tenants.len()];
                let (buckets, quota) = (Arc::new(Mutex::new(buckets)), self.quota);
                let inner = CapacityLayer::new(limiter()).layer(work);
                Server::new(service_fn(move |request: Request<()>| {
                    let (buckets, inner) = (Arc::clone(&buckets), inner.clone());
                    async move {
                        let tenant: usize =
                            request.headers()[TENANT].to_str().unwrap().parse().unwrap();
                        if !take(&mut buckets.lock().unwrap()[tenant], quota) {
                            let limited = refusal(StatusCode::TOO_MANY_REQUESTS);
                            return Ok(limited.map(CapacityBody::unlimited));
                        }
                        inner.oneshot(request).await
                    }
                }))
            }
            Kind::Routes => {
                let routes: Vec<_> = (self.tenants.iter())
                    .map(|_| Server::new(CapacityLayer::new(limiter()).layer(work.clone())))
                    .collect();
                Server::new(service_fn(move |request: Request<()>| {
                    let route: usize = request.uri().path()[1..].parse().unwrap();
                    routes[route].clone().oneshot(request)
                }))
            }
        }
    }

    async fn play(&self, throttled: bool) -> Played {
        let server = self.server();
        let clients: Vec<_> = (0..self.clients)
            .map(|_| ThrottleLayer::adaptive())
            .collect();
        let start = Instant::now();
        let mut calls = Vec::new();
        for (number, (at, tenant)) in self.arrivals().into_iter().enumerate() {
            sleep_until(start + Duration::from_secs_f64(at)).await;
            let request = Request::builder()
                .uri(format!("/{tenant}"))
                .header(TENANT, tenant)
                .header(PRIORITY, CLASSES[tenant % CLASSES.len()])
                .body(())
                .unwrap();
            let server = server.clone();
            let throttle = throttled.then(|| clients[number % self.clients].clone());
            calls.push(tokio::spawn(async move {
                let call = async {
                    let Some(throttle) = throttle else {
                        let response = server.oneshot(request).await.unwrap();
                        let status = response.status();
                        drop(response.into_body().collect().await);
                        return (status, false);
                    };
                    let response = throttle.layer(server).oneshot(request).await.unwrap();
                    let withheld = response.extensions().get::<Throttled>().is_some();
                    let status = response.status();
                    drop(response.into_body().collect().await);
                    (status, withheld)
                };
                let answered = timeout(PATIENCE, call).await;
                let (ok, withheld) = answered.map_or((false, false), |(status, withheld)| {
                    (status.is_success(), withheld)
                });
                (tenant, ok, withheld)
            }));
        }
        let mut played = Played {
            ok: vec![0; self.tenants.len()],
            asked: calls.len(),
            withheld: 0,
        };
        for call in calls {
            let (tenant, ok, withheld) = call.await.unwrap();
            played.ok[tenant] += usize::from(ok);
            played.withheld += usize::from(withheld);
        }
        played
    }

    /// What the throttle costs, if it costs anything.
    async fn harm(&self) -> Result<(Played, Played), String> {
        let (plain, throttled) = (self.play(false).await, self.play(true).await);
        let enough = |plain: usize, throttled: usize, slack: f64| {
            throttled as f64 + slack >= 0.95 * plain as f64
        };
        // When a permit that hangs is free again, once its caller has given up, is chance.
        let hangs = self.spells.iter();
        let hangs = hangs.filter(|(spell, ..)| matches!(spell, Spell::Hangs));
        let capacity = self.limit as f64 / self.service_time.as_secs_f64();
        let hung = hangs.count() as f64 * capacity * PATIENCE.as_secs_f64();
        let offered: f64 = self.tenants.iter().sum();
        let hung = hung.min(hung / capacity * offered);
        // Once a request was withheld the two runs are no longer the same, and which request is served
        // by a full server is chance.
        let chance = |ok: usize| (ok as f64).sqrt().min(0.05 * ok as f64 + 2.0);
        let all: usize = plain.ok.iter().sum();
        if !enough(all, throttled.ok.iter().sum(), chance(all) + hung) {
            return Err(format!("plain {plain}, throttled {throttled}"));
        }
        for (tenant, (&plain_ok, &throttled_ok)) in plain.ok.iter().zip(&throttled.ok).enumerate() {
            if !enough(plain_ok, throttled_ok, 3.0 * chance(plain_ok) + hung) {
                return Err(format!(
                    "tenant {tenant}: plain {plain}, throttled {throttled}"
                ));
            }
        }
        Ok((plain, throttled))
    }
}

/// Takes one request out of what is left of a quota.
fn take((left, at): &mut (f64, Instant), per_second: f64) -> bool {
    let now = Instant::now();
    *left = (*left + per_second * (now - *at).as_secs_f64()).min(per_second.max(1.0));
    *at = now;
    let allowed = *left >= 1.0;
    *left -= f64::from(u8::from(allowed));
    allowed
}

fn refusal(status: StatusCode) -> Response<Full<Bytes>> {
    let response = Response::builder().status(status).header(RETRY_AFTER, "30");
    response.body(Full::default()).unwrap()
}

struct Played {
    /// Successes of each tenant.
    ok: Vec<usize>,
    asked: usize,
    withheld: usize,
}

impl fmt::Display for Played {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            ok,
            asked,
            withheld,
        } = self;
        write!(f, "{ok:?} of {asked} ({withheld} not sent)")
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        ((z >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    fn within(&mut self, least: f64, most: f64) -> f64 {
        least + (most - least) * self.uniform()
    }

    fn choice<T: Copy>(&mut self, of: &[T]) -> T {
        of[(self.uniform() * of.len() as f64) as usize]
    }
}

fn setting(name: &str, default: u64) -> u64 {
    let value = env::var(name).ok().and_then(|value| value.parse().ok());
    value.unwrap_or(default)
}

#[tokio::test(start_paused = true)]
async fn a_throttled_client_gets_what_a_plain_one_gets_in_every_situation() {
    let (count, first) = (setting("SITUATIONS", 16), setting("SITUATIONS_SEED", 1));
    let (mut plain_ok, mut throttled_ok, mut spared, mut asked) = (0, 0, 0, 0);
    for seed in first..first + count {
        let situation = Situation::random(seed);
        match situation.harm().await {
            Ok((plain, throttled)) => {
                plain_ok += plain.ok.iter().sum::<usize>();
                throttled_ok += throttled.ok.iter().sum::<usize>();
                spared += throttled.withheld;
                asked += throttled.asked;
            }
            Err(harm) => {
                let (smallest, harm) = shrink(situation, harm).await;
                panic!("SITUATIONS=1 SITUATIONS_SEED={seed}: {harm}; {smallest:?}");
            }
        }
    }
    assert!(
        throttled_ok as f64 >= 0.98 * plain_ok as f64,
        "{throttled_ok} of {plain_ok} in all"
    );
    println!(
        "{count} situations from seed {first}: {plain_ok} served without and {throttled_ok} with \
         the throttle, which kept back {spared} of {asked}"
    );
}

async fn shrink(mut situation: Situation, mut harm: String) -> (Situation, String) {
    'smaller: loop {
        for smaller in situation.smaller() {
            if let Err(found) = smaller.harm().await {
                (situation, harm) = (smaller, found);
                continue 'smaller;
            }
        }
        return (situation, harm);
    }
}

/// A server of 1,000 requests a second, and clients that share what is offered.
async fn in_front_of_the_limiter(offered: f64, clients: usize) -> (usize, usize) {
    let situation = Situation {
        seed: 1,
        kind: Kind::Fixed,
        limit: 10,
        service_time: Duration::from_millis(10),
        clients,
        tenants: vec![offered],
        quota: 0.0,
        spells: Vec::new(),
        seconds: 10.0,
    };
    let (plain, throttled) = (situation.play(false).await, situation.play(true).await);
    assert_eq!(throttled.withheld, 0);
    (plain.ok[0], throttled.ok[0])
}

#[tokio::test(start_paused = true)]
async fn a_gateway_in_front_of_a_limiter_serves_as_much_with_a_throttle_as_without() {
    for (offered, clients) in [
        (900.0, 1),
        (1_050.0, 1),
        (1_200.0, 5),
        (2_000.0, 20),
        (2_000.0, 100),
    ] {
        let (plain, throttled) = in_front_of_the_limiter(offered, clients).await;
        assert_eq!(throttled, plain, "{offered}/s of {clients} clients");
    }
}
