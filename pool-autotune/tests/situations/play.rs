//! A server in memory, and callers that use it through a pool.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use deadpool::managed::{Manager, Metrics, Object, Pool, RecycleError, RecycleResult};
use pool_autotune::adapter::Adapter;
use pool_autotune::tuner::{Decision, Verdict};
use pool_autotune::{Autotuned, PoolSnapshot};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Builder;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::generate::{Event, Phase, Situation, Style};

/// What came of a situation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) callers: usize,
    pub(crate) served: usize,
    /// For how long connections were used by those that were served, and by holders while others came.
    pub(crate) used: Duration,
    /// By the phase in which they came.
    pub(crate) by_phase: Vec<(usize, usize)>,
    pub(crate) dials: usize,
    /// Dials under way at the same time, at most.
    pub(crate) peak_dials: usize,
    pub(crate) decisions: Vec<(Duration, Decision)>,
    /// What the pool told at the end of each phase, and what was true then.
    pub(crate) told: Vec<(Duration, Told, Truth)>,
}

/// What a tuned pool tells of itself.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) verdict: Verdict,
    pub(crate) snapshot: PoolSnapshot,
    pub(crate) report: String,
}

/// What server and callers know.
#[derive(Clone, Debug)]
pub(crate) struct Truth {
    pub(crate) open: usize,
    pub(crate) dialing: usize,
    /// Since the last dial failed, or was given up.
    pub(crate) dial_failed: Option<Duration>,
    /// Callers that wait for a connection, and since when there is always one.
    pub(crate) waiting: usize,
    pub(crate) waiting_for: Duration,
    /// For how long each connection that is in use has been.
    pub(crate) used_for: Vec<Duration>,
}

impl Outcome {
    pub(crate) fn add(&mut self, other: &Self) {
        self.callers += other.callers;
        self.served += other.served;
        self.used += other.used;
        self.by_phase.resize(other.by_phase.len(), (0, 0));
        for (sum, other) in self.by_phase.iter_mut().zip(&other.by_phase) {
            *sum = (sum.0 + other.0, sum.1 + other.1);
        }
    }
}

#[derive(Clone, Debug)]
struct Server(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    generation: usize,
    /// Dials fail until then.
    down_until: Instant,
    /// Dials begun before hang for good.
    hangs_until: Instant,
    paused_until: Instant,
    slots: usize,
    /// By connections that have not ended, whether the pool knows it or not.
    taken: usize,
    open: usize,
    working: usize,
    dial: Duration,
    knee: Option<usize>,
    /// The next use ends with a dead connection.
    kill_one: bool,
    bad_statement: bool,
    dials: usize,
    dialing: usize,
    peak_dialing: usize,
    /// When the last dial failed, or was given up.
    dial_failed: Option<Instant>,
    waiting: usize,
    waiting_since: Instant,
    used_since: HashMap<u64, Instant>,
    checkouts: u64,
}

/// A connection; a slot of the server as long as it lives.
#[derive(Debug)]
pub(crate) struct Connection {
    server: Server,
    generation: usize,
    idle_since: Instant,
    dead: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.server.0.lock().unwrap();
        state.open -= 1;
        state.taken -= usize::from(self.generation == state.generation);
    }
}

/// A dial, and whether it succeeded.
struct Dialing(Server, bool);

impl Drop for Dialing {
    fn drop(&mut self) {
        let mut state = self.0.0.lock().unwrap();
        state.dialing -= 1;
        if !self.1 {
            state.dial_failed = Some(Instant::now());
        }
    }
}

impl State {
    fn end_all(&mut self) {
        self.generation += 1;
        self.taken = 0;
    }
}

impl Server {
    fn new(situation: &Situation) -> Self {
        let now = Instant::now();
        Self(Arc::new(Mutex::new(State {
            generation: 0,
            down_until: now,
            hangs_until: now,
            paused_until: now,
            slots: usize::MAX,
            taken: 0,
            open: 0,
            working: 0,
            dial: situation.phases[0].dial,
            knee: None,
            kill_one: false,
            bad_statement: false,
            dials: 0,
            dialing: 0,
            peak_dialing: 0,
            dial_failed: None,
            waiting: 0,
            waiting_since: now,
            used_since: HashMap::new(),
            checkouts: 0,
        })))
    }

    fn begin(&self, phase: &Phase) {
        let mut state = self.0.lock().unwrap();
        let now = Instant::now();
        state.dial = phase.dial;
        state.knee = phase.knee;
        match phase.event {
            Event::Nothing | Event::Bounds(_) => {}
            Event::Kill | Event::IdleTimeout => state.end_all(),
            Event::KillOne => state.kill_one = true,
            Event::Down(time) => {
                state.end_all();
                state.down_until = now + time;
            }
            Event::Hang(time) => {
                state.end_all();
                state.hangs_until = now + time;
            }
            Event::Pause(time) => state.paused_until = now + time,
            Event::Full(slots) => {
                state.slots = slots;
                // No server has more connections than slots: this one was started anew, with fewer.
                if state.taken > slots {
                    state.end_all();
                }
            }
            Event::BadStatement => state.bad_statement = true,
        }
    }

    async fn dial(&self) -> io::Result<Connection> {
        let (dial, fails, hangs, generation) = {
            let mut state = self.0.lock().unwrap();
            let now = Instant::now();
            state.dials += 1;
            state.dialing += 1;
            state.peak_dialing = state.peak_dialing.max(state.dialing);
            (
                state.dial,
                now < state.down_until,
                now < state.hangs_until,
                state.generation,
            )
        };
        let mut dialing = Dialing(self.clone(), false);
        if hangs {
            std::future::pending::<()>().await;
        }
        if fails {
            tokio::task::yield_now().await;
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        sleep(dial).await;
        let mut state = self.0.lock().unwrap();
        if state.taken >= state.slots {
            return Err(io::Error::other("53300"));
        }
        state.open += 1;
        state.taken += usize::from(generation == state.generation);
        drop(state);
        dialing.1 = true;
        Ok(Connection {
            server: self.clone(),
            // What is half open when the server goes away is lost with the rest.
            generation,
            idle_since: Instant::now(),
            dead: false,
        })
    }

    fn truth(&self) -> Truth {
        let state = self.0.lock().unwrap();
        Truth {
            open: state.open,
            dialing: state.dialing,
            dial_failed: state.dial_failed.as_ref().map(Instant::elapsed),
            waiting: state.waiting,
            waiting_for: match state.waiting {
                0 => Duration::ZERO,
                _ => state.waiting_since.elapsed(),
            },
            used_for: state.used_since.values().map(Instant::elapsed).collect(),
        }
    }

    /// A checkout, if there is one before the caller loses its patience.
    async fn checkout<S: Source>(
        &self,
        source: &S,
        patience: Duration,
    ) -> Option<(Using<'_>, S::Checkout)> {
        /// Dial and patience are drawn from the same few times. Where both end in the same millisecond,
        /// the order of two timers would decide, and it is another where the dial has a task of its own.
        const A_TIE: Duration = Duration::from_millis(1);
        let waits = WaitsForOne::begin(self);
        let checkout = timeout(patience + A_TIE, source.get()).await.ok()??;
        drop(waits);
        let mut state = self.0.lock().unwrap();
        state.checkouts += 1;
        let id = state.checkouts;
        state.used_since.insert(id, Instant::now());
        drop(state);
        Some((Using(self, id), checkout))
    }

    fn is_alive(&self, connection: &Connection) -> bool {
        !connection.dead && self.0.lock().unwrap().generation == connection.generation
    }

    /// Works for a caller; returns whether that went well, and the SQLSTATE if it did not.
    async fn work(
        &self,
        connection: &mut Connection,
        time: Duration,
    ) -> Result<(), Option<&'static str>> {
        if !self.is_alive(connection) {
            return Err(Some("57P01"));
        }
        let (factor, paused) = {
            let mut state = self.0.lock().unwrap();
            state.working += 1;
            let factor = state.knee.map_or(1.0, |knee| {
                let beyond = state.working.saturating_sub(knee) as f64;
                (state.working as f64 / knee as f64).max(1.0) * (1.0 + 0.02 * beyond)
            });
            (factor, state.paused_until)
        };
        let working = Working(self);
        sleep(time.mul_f64(factor)).await;
        sleep_until(paused).await;
        drop(working);
        let mut state = self.0.lock().unwrap();
        if std::mem::take(&mut state.kill_one) {
            connection.dead = true;
            return Err(Some("57P01"));
        }
        if std::mem::take(&mut state.bad_statement) {
            return Err(Some("08P01"));
        }
        drop(state);
        if self.is_alive(connection) {
            Ok(())
        } else {
            Err(Some("57P01"))
        }
    }
}

struct WaitsForOne<'a>(&'a Server);

impl<'a> WaitsForOne<'a> {
    fn begin(server: &'a Server) -> Self {
        let mut state = server.0.lock().unwrap();
        if state.waiting == 0 {
            state.waiting_since = Instant::now();
        }
        state.waiting += 1;
        drop(state);
        Self(server)
    }
}

impl Drop for WaitsForOne<'_> {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().waiting -= 1;
    }
}

struct Using<'a>(&'a Server, u64);

impl Drop for Using<'_> {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().used_since.remove(&self.1);
    }
}

struct Working<'a>(&'a Server);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().working -= 1;
    }
}

/// Dials at most two at once, 50 a second after the first four.
pub(crate) struct Budget {
    at_once: Semaphore,
    next: Mutex<Instant>,
}

impl Budget {
    async fn wait(&self) -> tokio::sync::SemaphorePermit<'_> {
        const EVERY: Duration = Duration::from_millis(20);
        const BURST: Duration = Duration::from_millis(60);
        let permit = self.at_once.acquire().await.expect("never closed");
        let at = {
            let mut next = self.next.lock().unwrap();
            let now = Instant::now();
            let due = *next;
            *next = due.max(now) + EVERY;
            now.max(due.checked_sub(BURST).unwrap_or(now))
        };
        sleep_until(at).await;
        permit
    }
}

pub(crate) struct Dialer {
    server: Server,
    budget: Option<Budget>,
}

impl Manager for Dialer {
    type Type = Connection;
    type Error = io::Error;

    async fn create(&self) -> io::Result<Connection> {
        let _within = match &self.budget {
            Some(budget) => Some(budget.wait().await),
            None => None,
        };
        self.server.dial().await
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<io::Error> {
        if self.server.is_alive(connection) {
            connection.idle_since = Instant::now();
            Ok(())
        } else {
            Err(RecycleError::message("dead"))
        }
    }
}

/// What callers ask.
pub(crate) trait Source: Clone + Send + Sync + 'static {
    type Checkout: AsMut<Connection> + Send;

    fn get(&self) -> impl Future<Output = Option<Self::Checkout>> + Send;

    fn failed(&self, code: &str);

    fn set_max(&self, max: usize);

    fn tell(&self) -> Option<Told> {
        None
    }
}

/// A bare pool that keeps to its maximum when that is lowered: deadpool's own `resize` forgets the
/// permits that are idle, and lets as many checkouts in as before once the others are back.
#[derive(Clone)]
struct Bare {
    pool: Pool<Dialer>,
    permits: Arc<Semaphore>,
    max: Arc<Mutex<Max>>,
}

struct Max {
    now: usize,
    /// Permits to be taken from checkouts that return.
    surplus: usize,
}

pub(crate) struct BareCheckout {
    object: Option<Object<Dialer>>,
    permit: BarePermit,
}

struct BarePermit(Bare);

impl Bare {
    fn is_surplus(&self) -> bool {
        self.max.lock().unwrap().surplus > 0
    }
}

impl Drop for BarePermit {
    fn drop(&mut self) {
        let mut max = self.0.max.lock().unwrap();
        match max.surplus {
            0 => self.0.permits.add_permits(1),
            _ => max.surplus -= 1,
        }
    }
}

impl Drop for BareCheckout {
    fn drop(&mut self) {
        if self.permit.0.is_surplus() {
            self.object.take().map(Object::take);
        }
        // Back before its permit.
        self.object = None;
    }
}

impl AsMut<Connection> for BareCheckout {
    fn as_mut(&mut self) -> &mut Connection {
        self.object.as_mut().expect("until it is dropped")
    }
}

impl Source for Bare {
    type Checkout = BareCheckout;

    async fn get(&self) -> Option<BareCheckout> {
        let permit = self.permits.acquire().await.expect("never closed");
        permit.forget();
        let permit = BarePermit(self.clone());
        let object = self.pool.get().await.ok()?;
        Some(BareCheckout {
            object: Some(object),
            permit,
        })
    }

    fn failed(&self, _: &str) {}

    fn set_max(&self, to: usize) {
        let mut max = self.max.lock().unwrap();
        let from = std::mem::replace(&mut max.now, to);
        let fewer = from.saturating_sub(to);
        let more = to.saturating_sub(from);
        let owed = more.min(max.surplus);
        max.surplus -= owed;
        self.permits.add_permits(more - owed);
        max.surplus += fewer - self.permits.forget_permits(fewer);
        let mut idle = 0;
        let all = self.pool.status().size;
        self.pool.retain(|_, _| {
            idle += 1;
            all - idle < to
        });
    }
}

#[derive(Clone)]
struct Tuned(Autotuned<Pool<Dialer>>);

pub(crate) struct TunedCheckout(pool_autotune::Checkout<Pool<Dialer>>);

impl AsMut<Connection> for TunedCheckout {
    fn as_mut(&mut self) -> &mut Connection {
        &mut self.0
    }
}

impl Source for Tuned {
    type Checkout = TunedCheckout;

    async fn get(&self) -> Option<TunedCheckout> {
        self.0.get().await.ok().map(TunedCheckout)
    }

    fn failed(&self, code: &str) {
        self.0.note_sqlstate(code);
    }

    fn set_max(&self, max: usize) {
        let bounds = 2.min(max)..=max;
        self.0.set_bounds(bounds).expect("within the pool's own");
    }

    fn tell(&self) -> Option<Told> {
        Some(Told {
            verdict: self.0.verdict(),
            snapshot: self.0.snapshot(),
            report: self.0.report().to_string(),
        })
    }
}

fn dialer(server: &Server, budget: bool) -> Dialer {
    let budget = budget.then(|| Budget {
        at_once: Semaphore::new(2),
        next: Mutex::new(Instant::now()),
    });
    Dialer {
        server: server.clone(),
        budget,
    }
}

fn pool(situation: &Situation, server: &Server, budget: bool) -> Pool<Dialer> {
    let builder = Pool::builder(dialer(server, budget));
    builder
        .max_size(situation.max)
        .build()
        .expect("no timeouts are set")
}

/// With `budget` it dials no faster than a tuned one may.
pub(crate) fn bare(situation: &Situation, budget: bool) -> Outcome {
    run(async {
        let server = Server::new(situation);
        let source = Bare {
            pool: pool(situation, &server, budget),
            permits: Arc::new(Semaphore::new(situation.max)),
            max: Arc::new(Mutex::new(Max {
                now: situation.max,
                surplus: 0,
            })),
        };
        play(situation, server, source).await
    })
}

pub(crate) fn tuned(situation: &Situation) -> Outcome {
    run(async {
        let server = Server::new(situation);
        let pool = pool(situation, &server, false);
        assert_eq!(pool.max_size(), situation.max);
        let start = Instant::now();
        let tuned = Autotuned::builder(pool)
            .wait_timeout(situation.patience)
            .open_timeout(situation.patience.max(Duration::from_secs(5)))
            .build()
            .expect("valid settings");
        let mut outcome = play(situation, server, Tuned(tuned.clone())).await;
        outcome.decisions = tuned
            .decisions()
            .into_iter()
            .map(|decision| (decision.at() - start, decision))
            .collect();
        outcome
    })
}

/// A pool that is fair: the longest waiter gets the next connection, opened or returned. It opens
/// one more, within the dial budget, whenever a caller waits.
#[derive(Clone)]
struct Fair(Arc<FairState>);

struct FairState {
    dialer: Dialer,
    max: Mutex<usize>,
    /// One permit for each connection that is idle.
    ready: Semaphore,
    idle: Mutex<Vec<Connection>>,
    size: Mutex<usize>,
    waiting: Mutex<usize>,
    dialing: Mutex<usize>,
}

pub(crate) struct FairCheckout(Fair, Option<Connection>);

impl AsMut<Connection> for FairCheckout {
    fn as_mut(&mut self) -> &mut Connection {
        self.1.as_mut().expect("until it is dropped")
    }
}

impl Drop for FairCheckout {
    fn drop(&mut self) {
        if let Some(connection) = self.1.take() {
            self.0.give(connection);
        }
    }
}

struct Waits(Fair);

impl Drop for Waits {
    fn drop(&mut self) {
        *self.0.0.waiting.lock().unwrap() -= 1;
    }
}

impl Fair {
    fn give(&self, connection: Connection) {
        let is_surplus = *self.0.size.lock().unwrap() > *self.0.max.lock().unwrap();
        if !is_surplus && connection.server.is_alive(&connection) {
            self.0.idle.lock().unwrap().push(connection);
            self.0.ready.add_permits(1);
        } else {
            drop(connection);
            *self.0.size.lock().unwrap() -= 1;
            self.dial();
        }
    }

    fn dial(&self) {
        let mut dialing = self.0.dialing.lock().unwrap();
        let mut size = self.0.size.lock().unwrap();
        if *dialing >= *self.0.waiting.lock().unwrap() || *size >= *self.0.max.lock().unwrap() {
            return;
        }
        *dialing += 1;
        *size += 1;
        let this = self.clone();
        tokio::spawn(async move {
            let dialled = this.0.dialer.create().await;
            *this.0.dialing.lock().unwrap() -= 1;
            match dialled {
                Ok(connection) => this.give(connection),
                Err(_) => *this.0.size.lock().unwrap() -= 1,
            }
        });
    }
}

impl Source for Fair {
    type Checkout = FairCheckout;

    async fn get(&self) -> Option<FairCheckout> {
        loop {
            *self.0.waiting.lock().unwrap() += 1;
            let waits = Waits(self.clone());
            if self.0.ready.available_permits() == 0 {
                self.dial();
            }
            self.0.ready.acquire().await.expect("never closed").forget();
            drop(waits);
            let connection = self
                .0
                .idle
                .lock()
                .unwrap()
                .pop()
                .expect("one for each permit");
            if connection.server.is_alive(&connection) {
                return Some(FairCheckout(self.clone(), Some(connection)));
            }
            drop(connection);
            *self.0.size.lock().unwrap() -= 1;
        }
    }

    fn failed(&self, _: &str) {}

    fn set_max(&self, max: usize) {
        *self.0.max.lock().unwrap() = max;
        while *self.0.size.lock().unwrap() > max
            && let Ok(permit) = self.0.ready.try_acquire()
        {
            permit.forget();
            self.0.idle.lock().unwrap().pop();
            *self.0.size.lock().unwrap() -= 1;
        }
    }
}

pub(crate) fn fair(situation: &Situation) -> Outcome {
    run(async {
        let server = Server::new(situation);
        let source = Fair(Arc::new(FairState {
            dialer: dialer(&server, true),
            max: Mutex::new(situation.max),
            ready: Semaphore::new(0),
            idle: Mutex::default(),
            size: Mutex::default(),
            waiting: Mutex::default(),
            dialing: Mutex::default(),
        }));
        play(situation, server, source).await
    })
}

fn run(play: impl Future<Output = Outcome>) -> Outcome {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.expect("a runtime").block_on(play)
}

async fn play<S: Source>(situation: &Situation, server: Server, source: S) -> Outcome {
    let mut dice = SmallRng::seed_from_u64(situation.seed);
    let outcome = Arc::new(Mutex::new(Outcome {
        by_phase: vec![(0, 0); situation.phases.len()],
        ..Outcome::default()
    }));
    let mut tasks = Vec::new();
    let start = Instant::now();
    let mut ends = start;
    let end = start
        + situation
            .phases
            .iter()
            .map(|phase| phase.lasts)
            .sum::<Duration>();
    // After a fault a pool may serve again a second later than the bare one: callers that come in that
    // second are not counted.
    let mut recovers = start..start;
    for (index, phase) in situation.phases.iter().enumerate() {
        server.begin(phase);
        if let Event::Down(time) | Event::Hang(time) = phase.event {
            recovers = ends + time..ends + time + Duration::from_secs(1);
        }
        if let Event::Bounds(max) = phase.event {
            source.set_max(max);
        }
        let mut at = ends;
        ends += phase.lasts;
        for _ in 0..phase.holders {
            let (source, server) = (source.clone(), server.clone());
            let (patience, held) = (situation.patience, phase.held);
            let outcome = Arc::clone(&outcome);
            tasks.push(tokio::spawn(async move {
                if let Some(checkout) = server.checkout(&source, patience).await {
                    let others_come = end.saturating_duration_since(Instant::now());
                    outcome.lock().unwrap().used += held.min(others_come);
                    sleep(held).await;
                    drop(checkout);
                }
            }));
        }
        if phase.rate > 0.0 {
            loop {
                let gap = -(1.0 - dice.random::<f64>()).ln() / phase.rate;
                at += Duration::from_secs_f64(gap);
                if at >= ends {
                    break;
                }
                sleep_until(at).await;
                let time = phase.uses[dice.random_range(0..phase.uses.len())];
                let time = time.mul_f64(0.5 + dice.random::<f64>());
                let odd = dice.random_range(0..10);
                let mut patience = situation.patience;
                if phase.style == Style::Hasty && odd % 2 == 0 {
                    patience /= 10;
                }
                let style = match phase.style {
                    Style::Nested if odd != 0 => Style::Single,
                    style => style,
                };
                let (source, server, outcome) =
                    (source.clone(), server.clone(), Arc::clone(&outcome));
                let counts = !recovers.contains(&at);
                tasks.push(tokio::spawn(async move {
                    let served = call(source, server, style, patience, time).await;
                    if !counts {
                        return;
                    }
                    let mut outcome = outcome.lock().unwrap();
                    outcome.callers += 1;
                    outcome.served += usize::from(served);
                    if served {
                        outcome.used += match style {
                            Style::Single | Style::Hasty => time,
                            Style::Nested | Style::Joined => 2 * time,
                        };
                    }
                    outcome.by_phase[index].0 += 1;
                    outcome.by_phase[index].1 += usize::from(served);
                }));
            }
        }
        sleep_until(ends).await;
        if let Some(told) = source.tell() {
            let told = (start.elapsed(), told, server.truth());
            outcome.lock().unwrap().told.push(told);
        }
    }
    // Those still at it are given as long as they have patience, and some work.
    let last = situation.patience + Duration::from_secs(60);
    let mut all = pin!(async {
        for task in &mut tasks {
            let _ = task.await;
        }
    });
    let _ = timeout(last, all.as_mut()).await;
    let mut outcome = outcome.lock().unwrap().clone();
    let state = server.0.lock().unwrap();
    outcome.dials = state.dials;
    outcome.peak_dials = state.peak_dialing;
    outcome
}

async fn call<S: Source>(
    source: S,
    server: Server,
    style: Style,
    patience: Duration,
    time: Duration,
) -> bool {
    let one = || async {
        let Some((_using, mut checkout)) = server.checkout(&source, patience).await else {
            return false;
        };
        match server.work(checkout.as_mut(), time).await {
            Ok(()) => true,
            Err(code) => {
                if let Some(code) = code {
                    source.failed(code);
                }
                false
            }
        }
    };
    match style {
        Style::Single | Style::Hasty => one().await,
        Style::Joined => {
            let (a, b) = tokio::join!(one(), one());
            a && b
        }
        Style::Nested => {
            let Some((_using, mut first)) = server.checkout(&source, patience).await else {
                return false;
            };
            let second = one().await;
            second && server.work(first.as_mut(), time).await.is_ok()
        }
    }
}
