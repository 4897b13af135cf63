//! Never locked out: whatever has happened to a limiter, it admits everything again soon after the
//! load has fallen below 70 % of what the service can do.
//!
//! Histories are random, seeded, and played in virtual time against a model of a service. One that
//! fails is shrunk to the fewest phases that still fail, and printed with its seed.
//! `SITUATIONS=10000` plays more of them, `SITUATIONS_SEED=7` starts elsewhere.
#![cfg(not(loom))]

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::time::advance;
use tower_capacity::{
    Admission, Admit, Limiter, Outcome, Priority, SavedLimit,
    gate::{Ask, RefusedReason},
};

/// What holds for a while. Times are in service times of the idle service.
#[derive(Clone, Debug)]
struct Phase {
    lasts: f64,
    /// Offered load, as a share of what the service can do when all is well.
    load: f64,
    /// Cores that work, of those that there are.
    cores: f64,
    /// Delay of a dependency.
    delay: f64,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Plain,
    /// This share of the requests is answered at once and stays open until the history ends.
    Streams(f64),
    /// As many streams open at once.
    Burst(usize),
    /// This share of the requests never ends by itself; the callers leave after the phase.
    Hung(f64),
    /// Callers leave after this long.
    Impatient(f64),
    /// All outcomes are ignored.
    Ignored,
    /// This share of the requests fails after its work.
    Failing(f64),
    /// The service answers at once and works on the body.
    Bodies,
    /// Requests of all classes and of some partitions.
    Classes,
    /// The bounds are narrow, and wide again afterwards.
    Bounds(usize),
    /// The limiter drains and resumes.
    Drained,
    /// The clock jumps at the start.
    Paused(f64),
}

#[derive(Clone, Debug)]
struct History {
    cores: usize,
    service_time: f64,
    /// A saved limit, with its service time relative to the true one.
    warm: Option<(usize, f64)>,
    phases: Vec<Phase>,
    /// How much less work each request is where several are on a core: see [`SHARING`].
    sharing: f64,
    seed: u64,
}

impl History {
    /// What the service can do, in requests a second.
    fn capacity(&self) -> f64 {
        self.cores as f64 / self.service_time * SHARING.powf(self.sharing)
    }

    fn random(seed: u64) -> Self {
        let random = &mut SmallRng::seed_from_u64(seed);
        let r = random;
        let cores = [1, 2, 4, 8, 16][r.random_range(0..5)];
        let warm = r
            .random_bool(0.3)
            .then(|| (r.random_range(1..200), r.random_range(-2.0_f64..2.0).exp()));
        let phases = (0..r.random_range(1..=4))
            .map(|_| Phase {
                lasts: r.random_range(20.0..250.0),
                load: r.random_range(-1.0_f64..1.6).exp(),
                cores: if r.random_bool(0.3) {
                    r.random_range(0.2..1.0)
                } else {
                    1.0
                },
                delay: if r.random_bool(0.2) {
                    r.random_range(1.0..8.0)
                } else {
                    0.0
                },
                kind: match r.random_range(0..14) {
                    0 => Kind::Streams(r.random_range(0.01..0.3)),
                    1 => Kind::Burst(r.random_range(1..60)),
                    2 => Kind::Hung(r.random_range(0.01..1.0)),
                    3 => Kind::Impatient(r.random_range(0.5..8.0)),
                    4 => Kind::Ignored,
                    5 => Kind::Failing(r.random_range(0.1..1.0)),
                    6 => Kind::Bodies,
                    7 => Kind::Classes,
                    8 => Kind::Bounds(r.random_range(1..10)),
                    9 => Kind::Drained,
                    10 => Kind::Paused(r.random_range(1.0..5000.0)),
                    _ => Kind::Plain,
                },
            })
            .collect();
        Self {
            cores,
            service_time: r.random_range((0.000_5_f64).ln()..(0.3_f64).ln()).exp(),
            warm,
            phases,
            sharing: 0.0,
            seed,
        }
    }

    /// The same where requests share a part of what they cost.
    fn sharing(seed: u64) -> Self {
        let exponent = SmallRng::seed_from_u64(!seed).random_range(0.2..0.6);
        Self {
            sharing: exponent,
            ..Self::random(seed)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    Arrival(usize),
    /// The work of a request is done.
    Done(usize),
    /// The caller of a request leaves.
    Leaves(usize),
    NextPhase(usize),
}

/// Ordered by time, then by number.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Planned(f64, u64, Event);

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

enum Request {
    Waiting(Pin<Box<Admit>>, usize),
    Inside(Admission, usize),
    Gone,
}

struct Run<'a> {
    history: &'a History,
    /// Refusals have to end within so many times [`GRACE`].
    graces: f64,
    limiter: Limiter,
    random: SmallRng,
    now: f64,
    planned: BinaryHeap<Reverse<Planned>>,
    number: u64,
    requests: Vec<Request>,
    waiting: Vec<usize>,
    /// When each core is free.
    free: Vec<f64>,
    /// The core of each request inside, and when its work there is done.
    work: HashMap<usize, (usize, f64)>,
    phase: usize,
    /// Refused since the last phase has lasted long enough.
    refused: Option<u64>,
    reasons: Vec<RefusedReason>,
}

/// Service times, or seconds, within which refusals have to end.
const GRACE: (f64, f64) = (20.0, 5.0);

/// So many requests a core share what can be shared (wake-ups, group commits, system calls for many
/// sockets): throughput grows with their number to the power of [`History::sharing`].
const SHARING: f64 = 16.0;

/// The load of the last phase.
const LIGHT: f64 = 0.65;

impl<'a> Run<'a> {
    fn new(history: &'a History, graces: f64) -> Self {
        let mut builder = Limiter::builder();
        if let Some((limit, baseline)) = history.warm {
            let micros = (1e6 * history.service_time * baseline).max(1.0) as u64;
            let saved: SavedLimit = format!("limit={limit} baseline_us={micros}")
                .parse()
                .expect("the format is documented");
            builder = builder.warm_start(saved);
        }
        Self {
            history,
            graces,
            limiter: builder.build().expect("the defaults are possible"),
            random: SmallRng::seed_from_u64(!history.seed),
            now: 0.0,
            planned: BinaryHeap::new(),
            number: 0,
            requests: Vec::new(),
            waiting: Vec::new(),
            free: vec![0.0; history.cores],
            work: HashMap::new(),
            phase: 0,
            refused: None,
            reasons: Vec::new(),
        }
    }

    fn plan(&mut self, after: f64, event: Event) {
        self.number += 1;
        let planned = Planned(self.now + after, self.number, event);
        self.planned.push(Reverse(planned));
    }

    fn phase(&self) -> Phase {
        self.history
            .phases
            .get(self.phase)
            .cloned()
            .unwrap_or(Phase {
                lasts: f64::INFINITY,
                load: LIGHT,
                cores: 1.0,
                delay: 0.0,
                kind: Kind::Plain,
            })
    }

    /// Plays the history and then light load. Returns the refusals after the time that is allowed.
    async fn play(mut self) -> u64 {
        let service_time = self.history.service_time;
        self.begin_phase().await;
        let grace = self.graces * (GRACE.0 * service_time).max(GRACE.1);
        let measured = (100.0 * service_time).max(0.5);
        let mut light_since = None;
        while let Some(Reverse(Planned(at, _, event))) = self.planned.pop() {
            if self.phase == self.history.phases.len() {
                // What was admitted before has to be done first.
                let busy_until = self.free.iter().copied().fold(self.now, f64::max);
                let since = *light_since.get_or_insert(busy_until);
                if self.refused.is_none() && at - since > grace {
                    self.refused = Some(0);
                }
                if at - since > grace + measured {
                    break;
                }
            }
            let step = Duration::from_secs_f64((at - self.now).max(0.0));
            advance(step).await;
            self.now = at;
            match event {
                Event::Arrival(phase) if phase == self.phase => {
                    self.arrive();
                    self.plan_arrival();
                }
                Event::Arrival(_) => {}
                Event::Done(request) => self.done(request),
                Event::Leaves(request) => {
                    self.requests[request] = Request::Gone;
                    // The work of a request that is dropped is dropped too.
                    if let Some((core, done)) = self.work.remove(&request) {
                        let left = (done - self.now).clamp(0.0, self.history.service_time);
                        self.free[core] = (self.free[core] - left).max(self.now);
                    }
                    self.poll_waiting();
                }
                Event::NextPhase(phase) if phase == self.phase => self.next_phase().await,
                Event::NextPhase(_) => {}
            }
        }
        self.refused.unwrap_or(0)
    }

    async fn begin_phase(&mut self) {
        let phase = self.phase();
        match phase.kind {
            Kind::Bounds(most) => self.limiter.set_bounds(1..=most).expect("possible bounds"),
            Kind::Drained => drop(self.limiter.drain(Duration::ZERO).await),
            Kind::Paused(times) => {
                let pause = times * self.history.service_time;
                advance(Duration::from_secs_f64(pause)).await;
                let shifted = std::mem::take(&mut self.planned).into_iter();
                self.planned = shifted
                    .map(|Reverse(Planned(at, number, event))| {
                        Reverse(Planned(at + pause, number, event))
                    })
                    .collect();
                self.now += pause;
            }
            Kind::Burst(streams) => {
                for _ in 0..streams {
                    if let Ok(mut admission) = self.limiter.try_admit() {
                        admission.complete(Outcome::Success);
                        self.requests.push(Request::Inside(admission, usize::MAX));
                    }
                }
            }
            _ => {}
        }
        if phase.lasts.is_finite() {
            let lasts = phase.lasts * self.history.service_time;
            self.plan(lasts, Event::NextPhase(self.phase));
        }
        self.plan_arrival();
    }

    async fn next_phase(&mut self) {
        match self.phase().kind {
            Kind::Bounds(_) => self
                .limiter
                .set_bounds(1..=16_384)
                .expect("possible bounds"),
            Kind::Drained => self.limiter.resume(),
            // The callers of what hangs give up in the end.
            Kind::Hung(_) => {
                for request in &mut self.requests {
                    if matches!(request, Request::Inside(_, phase) if *phase == HUNG) {
                        *request = Request::Gone;
                    }
                }
            }
            _ => {}
        }
        self.phase += 1;
        self.begin_phase().await;
    }

    fn plan_arrival(&mut self) {
        let capacity = self.history.capacity();
        // Evenly spaced within a half: what is refused is not refused by chance.
        let gap = self.random.random_range(0.75..1.25) / (self.phase().load * capacity);
        self.plan(gap, Event::Arrival(self.phase));
    }

    fn arrive(&mut self) {
        let mut ask = Ask::new();
        if matches!(self.phase().kind, Kind::Classes) {
            let class = Priority::ALL[self.random.random_range(0..4)];
            let key = ["a", "b", "c"][self.random.random_range(0..3)];
            ask = ask.priority(class).partition(self.limiter.partition(key));
        }
        let admit = Box::pin(self.limiter.admit_with(ask));
        let request = self.requests.len();
        self.requests.push(Request::Waiting(admit, self.phase));
        self.waiting.push(request);
        if let Kind::Impatient(patience) = self.phase().kind {
            let patience = patience * self.history.service_time;
            self.plan(patience, Event::Leaves(request));
        }
        self.poll_waiting();
    }

    fn poll_waiting(&mut self) {
        for request in std::mem::take(&mut self.waiting) {
            let Request::Waiting(admit, phase) = &mut self.requests[request] else {
                continue;
            };
            let phase = *phase;
            match admit.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => self.waiting.push(request),
                Poll::Ready(Ok(admission)) => self.admitted(request, admission, phase),
                Poll::Ready(Err(refused)) => {
                    self.requests[request] = Request::Gone;
                    if let Some(count) = &mut self.refused {
                        *count += 1;
                        self.reasons.push(refused.reason());
                    }
                }
            }
        }
    }

    fn admitted(&mut self, request: usize, mut admission: Admission, phase: usize) {
        let now = self.phase();
        let share = self.random.random::<f64>();
        let stays = match now.kind {
            Kind::Streams(streams) if share < streams => {
                admission.complete(Outcome::Success);
                Some(usize::MAX)
            }
            Kind::Hung(hung) if share < hung => Some(HUNG),
            Kind::Bodies => {
                admission.complete(Outcome::Success);
                None
            }
            _ => None,
        };
        if let Some(phase) = stays {
            self.requests[request] = Request::Inside(admission, phase);
            return;
        }
        self.requests[request] = Request::Inside(admission, phase);
        let cores = ((self.free.len() as f64 * now.cores).round() as usize).max(1);
        let core = (0..cores)
            .min_by(|a, b| self.free[*a].total_cmp(&self.free[*b]))
            .expect("there is a core");
        let crowd = (self.work.len() + 1) as f64 / cores as f64;
        let shared = crowd.clamp(1.0, SHARING).powf(-self.history.sharing);
        let work = self.history.service_time * shared * self.random.random_range(0.8..1.2);
        self.free[core] = self.free[core].max(self.now) + work;
        self.work.insert(request, (core, self.free[core]));
        let delay = now.delay * self.history.service_time;
        let after = self.free[core] - self.now + delay;
        self.plan(after, Event::Done(request));
    }

    fn done(&mut self, request: usize) {
        self.work.remove(&request);
        let inside = std::mem::replace(&mut self.requests[request], Request::Gone);
        if let Request::Inside(mut admission, phase) = inside {
            let kind = self.history.phases.get(phase).map(|phase| &phase.kind);
            admission.complete(match kind {
                Some(Kind::Ignored) => Outcome::Ignored,
                Some(Kind::Failing(share)) if self.random.random_bool(*share) => Outcome::Dropped,
                _ => Outcome::Success,
            });
        }
        self.poll_waiting();
    }
}

/// Mark of a request that hangs.
const HUNG: usize = usize::MAX - 1;

fn refusals(history: &History, graces: f64) -> u64 {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing that could be missing")
        .block_on(Run::new(history, graces).play())
}

/// Leaves out one thing after the other for as long as the rest still fails.
fn shrink(mut history: History, graces: f64) -> History {
    loop {
        let mut smaller = Vec::new();
        for index in 0..history.phases.len() {
            let mut next = history.clone();
            next.phases.remove(index);
            smaller.push(next);
            let mut next = history.clone();
            next.phases[index].kind = Kind::Plain;
            if !matches!(history.phases[index].kind, Kind::Plain) {
                smaller.push(next);
            }
            let mut next = history.clone();
            (next.phases[index].delay, next.phases[index].cores) = (0.0, 1.0);
            if history.phases[index].delay > 0.0 || history.phases[index].cores < 1.0 {
                smaller.push(next);
            }
        }
        if history.warm.is_some() {
            smaller.push(History {
                warm: None,
                ..history.clone()
            });
        }
        if history.sharing > 0.0 {
            smaller.push(History {
                sharing: 0.0,
                ..history.clone()
            });
        }
        let Some(failing) = smaller.into_iter().find(|next| refusals(next, graces) > 0) else {
            return history;
        };
        history = failing;
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| {
        value
            .parse()
            .unwrap_or_else(|_| panic!("{variable}={value}: expected a number"))
    })
}

/// What came of random histories.
struct Played {
    count: u64,
    /// Histories after which refusals went on for longer than [`GRACE`], and for longer than twice that.
    late: u64,
    locked_out: u64,
}

/// Plays random histories, and prints the first three that fail by more than a little.
fn play_all(kind: &str, draw: impl Fn(u64) -> History) -> Played {
    let (first, count) = (number("SITUATIONS_SEED", 1), number("SITUATIONS", 100));
    let mut played = Played {
        count,
        late: 0,
        locked_out: 0,
    };
    for seed in first..first + count {
        let history = draw(seed);
        if refusals(&history, 1.0) == 0 {
            continue;
        }
        played.late += 1;
        let refused = refusals(&history, 2.0);
        if refused == 0 {
            continue;
        }
        played.locked_out += 1;
        if played.locked_out <= 3 {
            println!(
                "seed {seed}: {refused} refused, as after {:?}",
                shrink(history, 2.0)
            );
        }
    }
    let Played {
        late, locked_out, ..
    } = played;
    println!("{late} of {count} {kind} from seed {first} on, {locked_out} for twice as long");
    played
}

/// Few histories may have a few failures more by chance.
const CHANCE: u64 = 3;

#[test]
fn after_any_history_light_load_is_soon_admitted_whole() {
    let played = play_all("histories", History::random);
    // 12 of 1,000 were late when this was written, 1 of them by more; 20 and 6 of 1,500 from seed 88000001 on.
    assert!(played.late <= played.count / 50 + CHANCE);
    assert!(played.locked_out <= played.count / 100 + CHANCE);
}

#[test]
fn after_most_histories_it_is_where_requests_share_what_they_cost() {
    let played = play_all("histories that share", History::sharing);
    // 131 of 1,000 were late when this was written, 68 of them by more: most of them slow services that start far
    // from the limit they need. One in four was late by more before the law looked for such servers.
    assert!(played.late <= played.count / 6 + CHANCE);
    assert!(played.locked_out <= played.count / 10 + CHANCE);
}
