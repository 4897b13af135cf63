//! The event loop.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, Exp1};
use slab::Slab;
use tokio::time::Instant;
use tower_capacity::{
    Admission, Admit, Limiter, Outcome,
    gate::{Ask, Partition, Refused},
};

use super::{
    Balance, Class, ClassReport, Load, PhaseReport, Report, Sample, Scenario, Server,
    peers::{Ended, Peer},
    server::{Connections, Cores, Workers},
};

/// What stands in front of the server.
#[derive(Debug)]
pub struct Guard {
    /// The shipped limiter.
    pub limiter: Limiter,
    /// Another project's law, which sets the limit from outside.
    pub peer: Option<Box<dyn Peer>>,
    /// The peer has the limiter's waiting room, not its own.
    pub room: bool,
}

impl From<Limiter> for Guard {
    fn from(limiter: Limiter) -> Self {
        Self {
            limiter,
            peer: None,
            room: true,
        }
    }
}

/// Runs a scenario behind what `guard` creates, once for each instance of the service.
#[must_use]
pub fn run<G: Into<Guard>>(scenario: &Scenario, guard: impl Fn() -> G + Sync) -> Report {
    // A thread of its own: what the limiter keeps for each thread starts afresh.
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime without I/O needs nothing that could be missing")
                .block_on(async { Simulation::new(scenario, || guard().into()).run().await })
        });
        run.join().expect("a simulation does not panic")
    })
}

#[derive(Clone, Copy, Debug)]
enum Event {
    /// An open request may come, if the phase is still this one.
    Arrival {
        phase: usize,
    },
    /// A client of a closed loop has thought.
    Ask {
        client: usize,
    },
    /// The first request on the cores is done, if nothing changed since this version.
    CpuDone {
        node: usize,
        version: u64,
    },
    /// A request gives its connection back.
    ConnectionDone {
        request: usize,
    },
    /// A request's answer arrives.
    Answer {
        request: usize,
        number: u64,
    },
    /// A stream has ended.
    StreamDone {
        request: usize,
        number: u64,
    },
    /// A client has lost its patience.
    GoneAway {
        request: usize,
        number: u64,
    },
    /// A request has reached a worker.
    HandedOver {
        request: usize,
        number: u64,
    },
    /// The neighbours take another share of the cores.
    Neighbour,
    /// A period of the CPU quota begins, or its share is used up.
    Quota {
        runs: bool,
    },
    NextPhase,
    PauseBegins,
    PauseEnds,
    Sample,
}

/// Ordered by time, then by the order in which it was planned.
#[derive(Clone, Copy, Debug)]
struct Planned {
    at: f64,
    number: u64,
    event: Event,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at
            .total_cmp(&other.at)
            .then(self.number.cmp(&other.number))
    }
}

/// Where a request is.
enum Place {
    Waiting(Pin<Box<Admit>>),
    /// On its way to a worker, or queued for one.
    Handed {
        queued: bool,
    },
    OnCpu {
        done: u64,
        /// The head of its answer is out: this is the body.
        body: bool,
    },
    InLine,
    Connected,
    /// Its answer is on the way; nothing of the server is held.
    Travelling,
    /// Served, and still sending: it holds its permit and nothing else.
    Streaming,
    /// Its client went away while it held a connection, which it still gives back.
    Abandoned,
}

/// One instance of the service, and the guard in front of it.
struct Node {
    limiter: Limiter,
    peer: Option<Box<dyn Peer>>,
    peer_limit: usize,
    peer_queue: usize,
    room: bool,
    /// By class of request.
    asks: Vec<Ask>,
    server: Server,
    cores: Cores,
    workers: Workers,
    connections: Connections,
    busy_at_sample: f64,
    /// Requests sent to it that have not ended.
    outstanding: usize,
}

impl Node {
    fn new(scenario: &Scenario, guard: Guard, server: Server) -> Self {
        let Guard {
            limiter,
            peer,
            room,
        } = guard;
        let ask = |class: &Class| {
            let partition = match class.tenant {
                Some(tenant) => limiter.partition(tenant),
                None => Partition::NONE,
            };
            Ask::new().priority(class.priority).partition(partition)
        };
        Self {
            asks: scenario.classes.iter().map(ask).collect(),
            room,
            peer_queue: peer.as_ref().map_or(0, |peer| peer.queue()),
            peer_limit: limiter.snapshot().limit(),
            limiter,
            peer,
            server,
            cores: Cores::default(),
            workers: Workers::default(),
            connections: Connections::default(),
            busy_at_sample: 0.0,
            outstanding: 0,
        }
    }

    fn obey(&mut self, limit: usize) {
        let limit = limit.clamp(1, 16_384);
        let queue = self.peer.as_ref().map_or(0, |peer| peer.queue());
        if !self.room && queue != self.peer_queue {
            self.peer_queue = queue;
            self.limiter
                .set_waiting(Some(queue), Duration::from_secs(3600));
        }
        if limit != self.peer_limit {
            self.peer_limit = limit;
            self.limiter
                .set_bounds(limit..=limit)
                .expect("a limit between 1 and 16,384 is possible");
        }
    }

    /// Tells the peer, if there is one, how an admitted request ended.
    fn tell_peer(&mut self, now: f64, entered: f64, inflight: usize, success: bool) {
        if let Some(peer) = &mut self.peer {
            let limit = peer.on_end(Ended {
                now,
                took: now - entered,
                inflight,
                inflight_now: self.limiter.snapshot().inflight(),
                success,
            });
            self.obey(limit);
        }
    }
}

struct Request {
    node: usize,
    class: usize,
    /// Tells the requests apart that have the same place in memory one after the other.
    number: u64,
    /// Its client, in a closed loop.
    client: Option<usize>,
    arrived: f64,
    entered: f64,
    inflight_on_entry: usize,
    phase: usize,
    retries: u32,
    place: Place,
    admission: Option<Admission>,
}

struct Simulation<'a> {
    scenario: &'a Scenario,
    nodes: Vec<Node>,
    /// The client that is next.
    turn: usize,
    random: SmallRng,
    /// A source of its own: neighbours do the same whatever the guard admits.
    neighbours: SmallRng,
    /// What neighbours and quota leave of the cores.
    share: f64,
    runs: bool,
    start: Instant,
    now: f64,
    phase: usize,
    phase_began: f64,
    /// Clients of the closed loop that exist.
    clients: usize,
    last_yield: f64,
    events: BinaryHeap<Reverse<Planned>>,
    planned: u64,
    requests: Slab<Request>,
    arrivals: u64,
    /// While the process stands still nothing happens in it; its events wait.
    paused: Option<Vec<Event>>,
    woken: Arc<Mutex<Vec<usize>>>,
    report: Report,
}

impl<'a> Simulation<'a> {
    fn new(scenario: &'a Scenario, guard: impl Fn() -> Guard) -> Self {
        let phases = &scenario.phases;
        let server = phases
            .first()
            .map_or_else(Server::default, |phase| phase.server);
        let node = |index| Node::new(scenario, guard(), scenario.server_of(index, server));
        Self {
            scenario,
            nodes: (0..scenario.nodes).map(node).collect(),
            turn: 0,
            random: SmallRng::seed_from_u64(scenario.seed),
            neighbours: SmallRng::seed_from_u64(!scenario.seed),
            share: 1.0,
            runs: true,
            start: Instant::now(),
            now: 0.0,
            phase: 0,
            phase_began: 0.0,
            clients: 0,
            last_yield: 0.0,
            events: BinaryHeap::new(),
            planned: 0,
            requests: Slab::new(),
            arrivals: 0,
            paused: None,
            woken: Arc::default(),
            report: Report {
                phases: phases
                    .iter()
                    .map(|phase| PhaseReport {
                        lasts: phase.lasts,
                        classes: vec![ClassReport::default(); scenario.classes.len()],
                        ..PhaseReport::default()
                    })
                    .collect(),
                ..Report::default()
            },
        }
    }

    async fn run(mut self) -> Report {
        let end: f64 = self.scenario.phases.iter().map(|phase| phase.lasts).sum();
        self.begin_phase();
        self.plan(0.1, Event::Sample);
        if let Some((every, _)) = self.scenario.pauses {
            self.plan(every, Event::PauseBegins);
        }
        if self.scenario.noise.is_some() {
            self.plan(0.0, Event::Neighbour);
        }
        if self.scenario.quota.is_some() {
            self.plan(0.0, Event::Quota { runs: true });
        }
        while let Some(Reverse(next)) = self.events.pop() {
            if next.at >= end {
                break;
            }
            self.advance_to(next.at).await;
            self.handle(next.event);
            self.poll_woken();
        }
        let history = self.nodes.first().map(|node| node.limiter.history());
        self.report.changes = history.iter().flatten().map(ToString::to_string).collect();
        self.requests.clear();
        let inflight = |node: &Node| node.limiter.snapshot().inflight();
        self.report.leaked = self.nodes.iter().map(inflight).sum();
        self.report
    }

    /// Moves the clock. The runtime fires timers only when it is given a turn, which costs more
    /// than the rest of an event: once a millisecond while a request waits, it gets one.
    async fn advance_to(&mut self, at: f64) {
        let target = self.start + Duration::from_secs_f64(at);
        let step = target.saturating_duration_since(Instant::now());
        self.now = at;
        if step.is_zero() {
            return;
        }
        let mut advance = pin!(tokio::time::advance(step));
        let mut context = Context::from_waker(Waker::noop());
        // The clock moves on the first poll; what is left of the future only yields.
        if advance.as_mut().poll(&mut context).is_pending() && at - self.last_yield >= 0.001 {
            self.last_yield = at;
            tokio::task::yield_now().await;
        }
    }

    fn plan(&mut self, after: f64, event: Event) {
        self.planned += 1;
        let at = self.now + after.max(0.0);
        self.events.push(Reverse(Planned {
            at,
            number: self.planned,
            event,
        }));
    }

    fn plan_arrival(&mut self) {
        let Some(phase) = self.scenario.phases.get(self.phase) else {
            return;
        };
        let peak = phase.load.peak();
        if peak > 0.0 {
            let gap: f64 = Exp1.sample(&mut self.random);
            self.plan(gap / peak, Event::Arrival { phase: self.phase });
        }
    }

    /// A request comes with the share of the peak rate that holds now (thinning).
    fn open_arrival(&mut self) {
        let Some(phase) = self.scenario.phases.get(self.phase) else {
            return;
        };
        let rate = phase.load.rate(self.now - self.phase_began, phase.lasts);
        let share = rate / phase.load.peak();
        if share >= 1.0 || self.random.random_bool(share.max(0.0)) {
            self.arrive(None, 0);
        }
    }

    /// How many clients the closed loop has, and how long they think.
    fn closed_loop(&self) -> (usize, f64) {
        match self.scenario.phases.get(self.phase).map(|phase| phase.load) {
            Some(Load::Closed { clients, think }) => (clients, think),
            _ => (0, 0.0),
        }
    }

    /// The client asks again once it has thought, unless it is one too many.
    fn think(&mut self, client: usize, refused: bool) {
        let (clients, mean) = self.closed_loop();
        if client >= clients {
            return;
        }
        let thought: f64 = Exp1.sample(&mut self.random);
        let mean = if refused { mean.max(0.01) } else { mean };
        self.plan(thought * mean, Event::Ask { client });
    }

    fn begin_phase(&mut self) {
        self.phase_began = self.now;
        let Some(phase) = self.scenario.phases.get(self.phase) else {
            return;
        };
        let lasts = phase.lasts;
        self.plan(lasts, Event::NextPhase);
        self.plan_arrival();
        let (clients, _) = self.closed_loop();
        for client in self.clients..clients {
            self.think(client, true);
        }
        self.clients = clients;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::PauseBegins => {
                for node in &mut self.nodes {
                    node.cores.serve(self.now, &node.server);
                }
                self.paused = Some(Vec::new());
                let lasting = self.scenario.pauses.map_or(0.0, |(_, lasting)| lasting);
                return self.plan(lasting, Event::PauseEnds);
            }
            Event::PauseEnds => return self.resume(),
            Event::NextPhase => return self.next_phase(),
            Event::Sample => return self.sample(),
            Event::Neighbour => return self.neighbour(),
            Event::Quota { runs } => return self.quota(runs),
            _ => {}
        }
        if let Some(held) = &mut self.paused {
            held.push(event);
            return;
        }
        match event {
            Event::Arrival { phase } if phase == self.phase => {
                self.open_arrival();
                self.plan_arrival();
            }
            Event::Ask { client } if client < self.clients => self.arrive(Some(client), 0),
            Event::CpuDone { node, version } if version == self.nodes[node].cores.version => {
                self.cpu_done(node);
            }
            Event::ConnectionDone { request } => self.connection_done(request),
            Event::HandedOver { request, number } if self.is_alive(request, number) => {
                self.handed_over(request);
            }
            Event::Answer { request, number } if self.is_alive(request, number) => {
                self.answer(request);
            }
            Event::StreamDone { request, number } if self.is_alive(request, number) => {
                self.leave(request);
            }
            Event::GoneAway { request, number } if self.is_alive(request, number) => {
                self.give_up(request);
            }
            _ => {}
        }
    }

    /// Draws the share that the neighbours leave, and for how long.
    fn neighbour(&mut self) {
        let Some(noise) = self.scenario.noise else {
            return;
        };
        self.share = 1.0 + noise.depth * self.neighbours.random_range(-1.0..1.0);
        let lasts: f64 = Exp1.sample(&mut self.neighbours);
        self.plan(noise.correlation * lasts, Event::Neighbour);
        self.share_out();
    }

    /// Runs the process for its share of a period and stops it for the rest.
    fn quota(&mut self, runs: bool) {
        const PERIOD: f64 = 0.1;
        let Some(quota) = self.scenario.quota else {
            return;
        };
        self.runs = runs;
        let share = if runs { quota } else { 1.0 - quota };
        self.plan(PERIOD * share, Event::Quota { runs: !runs });
        self.share_out();
    }

    fn share_out(&mut self) {
        let share = if self.runs { self.share } else { 0.0 };
        for index in 0..self.nodes.len() {
            let node = &mut self.nodes[index];
            node.cores.set_share(self.now, &node.server, share);
            self.plan_cpu(index);
        }
    }

    fn is_alive(&self, request: usize, number: u64) -> bool {
        self.requests
            .get(request)
            .is_some_and(|alive| alive.number == number)
    }

    /// The process goes on: what fell into the pause happens now, all at once.
    fn resume(&mut self) {
        let (every, lasting) = self.scenario.pauses.unwrap_or_default();
        // Work stood still too.
        for node in &mut self.nodes {
            node.cores.skip_to(self.now);
        }
        for event in self.paused.take().unwrap_or_default() {
            match event {
                Event::CpuDone { .. } => {}
                event => self.handle(event),
            }
        }
        for node in 0..self.nodes.len() {
            self.plan_cpu(node);
        }
        self.plan(every - lasting, Event::PauseBegins);
    }

    fn next_phase(&mut self) {
        self.phase += 1;
        if let Some(phase) = self.scenario.phases.get(self.phase) {
            for index in 0..self.nodes.len() {
                let node = &mut self.nodes[index];
                node.cores.serve(self.now, &node.server);
                node.server = self.scenario.server_of(index, phase.server);
                self.plan_cpu(index);
            }
        }
        self.begin_phase();
    }

    fn sample(&mut self) {
        let mut sample = Sample {
            at: self.now,
            limit: 0,
            inflight: 0,
            queued: 0,
        };
        for node in &mut self.nodes {
            let snapshot = node.limiter.snapshot();
            sample.limit += snapshot.limit();
            sample.inflight += snapshot.inflight();
            sample.queued += snapshot.queued();
            node.cores.serve(self.now, &node.server);
            let busy = node.cores.busy - node.busy_at_sample;
            node.busy_at_sample = node.cores.busy;
            if let Some(peer) = &mut node.peer {
                let limit = peer.on_tick(self.now, busy / (0.1 * node.server.cores));
                node.obey(limit);
            }
        }
        self.report.samples.push(sample);
        if let Some(phase) = self.report.phases.get_mut(self.phase) {
            phase.limits.push(sample.limit);
        }
        self.plan(0.1, Event::Sample);
    }

    /// The instance that the balancer sends the next request to.
    fn balance(&mut self) -> usize {
        self.turn = (self.turn + 1) % self.nodes.len();
        match self.scenario.balance {
            Balance::RoundRobin => self.turn,
            // Ties go by turns.
            Balance::LeastOutstanding => (0..self.nodes.len())
                .map(|step| (self.turn + step) % self.nodes.len())
                .min_by_key(|&node| self.nodes[node].outstanding)
                .unwrap_or(0),
        }
    }

    fn draw_class(&mut self) -> usize {
        let classes = &self.scenario.classes;
        if classes.len() < 2 {
            return 0;
        }
        let all: f64 = classes.iter().map(|class| class.weight).sum();
        let mut drawn = all * self.random.random::<f64>();
        let is_drawn = |class: &Class| {
            drawn -= class.weight;
            drawn < 0.0
        };
        classes.iter().position(is_drawn).unwrap_or(0)
    }

    /// Forgets a request.
    fn leave(&mut self, request: usize) -> Request {
        let request = self.requests.remove(request);
        self.nodes[request.node].outstanding -= 1;
        request
    }

    fn arrive(&mut self, client: Option<usize>, retries: u32) {
        let Some(phase) = self.report.phases.get_mut(self.phase) else {
            return;
        };
        phase.offered += 1;
        self.arrivals += 1;
        let (node, class) = (self.balance(), self.draw_class());
        let behind = &mut self.nodes[node];
        behind.outstanding += 1;
        let ask = behind.asks.get(class).copied().unwrap_or_default();
        let admit = behind.limiter.admit_with(ask);
        if let Some(class) = self.report.phases[self.phase].classes.get_mut(class) {
            class.offered += 1;
        }
        let number = self.arrivals;
        let request = self.requests.insert(Request {
            node,
            class,
            number,
            client,
            arrived: self.now,
            entered: self.now,
            inflight_on_entry: 0,
            phase: self.phase,
            retries,
            place: Place::Waiting(Box::pin(admit)),
            admission: None,
        });
        let (share, soon) = self.scenario.impatient;
        let patience = if share > 0.0 && self.random.random_bool(share) {
            soon
        } else {
            self.scenario.patience
        };
        self.plan(patience.as_secs_f64(), Event::GoneAway { request, number });
        self.poll(request);
    }

    fn poll_woken(&mut self) {
        loop {
            let woken =
                std::mem::take(&mut *self.woken.lock().unwrap_or_else(PoisonError::into_inner));
            if woken.is_empty() {
                return;
            }
            for request in woken {
                self.poll(request);
            }
        }
    }

    fn poll(&mut self, request: usize) {
        let Some(Request {
            place: Place::Waiting(admit),
            ..
        }) = self.requests.get_mut(request)
        else {
            return;
        };
        let waker = Waker::from(Arc::new(Doorbell {
            request,
            woken: Arc::clone(&self.woken),
        }));
        match admit.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => {}
            Poll::Ready(Ok(admission)) => self.admitted(request, admission),
            Poll::Ready(Err(refused)) => self.refused(request, &refused),
        }
    }

    fn admitted(&mut self, request: usize, admission: Admission) {
        let inside = &mut self.requests[request];
        let node = &mut self.nodes[inside.node];
        inside.entered = self.now;
        if let Some(peer) = &mut node.peer {
            inside.inflight_on_entry = node.limiter.snapshot().inflight();
            peer.on_start(self.now, inside.inflight_on_entry);
        }
        inside.admission = Some(admission);
        inside.place = Place::Handed { queued: false };
        let number = inside.number;
        if node.server.handoff > 0.0 {
            // A worker wakes up later on a crowded machine.
            let mean = node.server.handoff * (1.0 + node.cores.crowd(&node.server));
            let unit: f64 = Exp1.sample(&mut self.random);
            return self.plan(mean * unit, Event::HandedOver { request, number });
        }
        self.handed_over(request);
    }

    fn handed_over(&mut self, request: usize) {
        let handed = &mut self.requests[request];
        let node = &mut self.nodes[handed.node];
        if node.workers.enter(&node.server, request) {
            self.start(request);
        } else {
            handed.place = Place::Handed { queued: true };
        }
    }

    /// A worker begins with a request.
    fn start(&mut self, request: usize) {
        let started = &mut self.requests[request];
        let node = &mut self.nodes[started.node];
        let work = node.server.cpu.draw(&mut self.random);
        let done = node.cores.enter(self.now, &node.server, request, work);
        started.place = Place::OnCpu { done, body: false };
        let node = started.node;
        self.plan_cpu(node);
    }

    /// A request gives its worker back.
    fn free_worker(&mut self, node: usize) {
        let at = &mut self.nodes[node];
        if let Some(next) = at.workers.leave(&at.server) {
            self.start(next);
        }
    }

    fn refused(&mut self, request: usize, _refused: &Refused) {
        let request = self.leave(request);
        if let Some(peer) = &mut self.nodes[request.node].peer {
            peer.on_refuse();
        }
        self.report.phases[request.phase].refused += 1;
        self.retry(request.client, request.retries);
    }

    fn retry(&mut self, client: Option<usize>, retries: u32) {
        if retries < self.scenario.retries {
            self.arrive(client, retries + 1);
        } else if let Some(client) = client {
            self.think(client, true);
        }
    }

    fn plan_cpu(&mut self, node: usize) {
        let at = &mut self.nodes[node];
        if let Some((done, _)) = at.cores.next(self.now, &at.server) {
            let version = at.cores.version;
            self.plan(done - self.now, Event::CpuDone { node, version });
        }
    }

    fn cpu_done(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let Some((_, request)) = node.cores.next(self.now, &node.server) else {
            return;
        };
        if let Place::OnCpu { done, body } = self.requests[request].place {
            node.cores.leave(self.now, &node.server, request, done);
            if body {
                self.plan_cpu(index);
                return self.ended(request);
            }
        }
        let time = node.server.dependency.draw(&mut self.random);
        if node.connections.enter(&node.server, request, time) {
            self.requests[request].place = Place::Connected;
            self.plan(time, Event::ConnectionDone { request });
        } else {
            self.requests[request].place = Place::InLine;
        }
        self.plan_cpu(index);
    }

    fn connection_done(&mut self, request: usize) {
        let node = &mut self.nodes[self.requests[request].node];
        let delay = node.server.delay;
        if let Some((next, time)) = node.connections.leave(&node.server) {
            self.requests[next].place = Place::Connected;
            self.plan(time, Event::ConnectionDone { request: next });
        }
        self.free_worker(self.requests[request].node);
        match self.requests[request].place {
            Place::Connected => {
                self.requests[request].place = Place::Travelling;
                let number = self.requests[request].number;
                self.plan(delay, Event::Answer { request, number });
            }
            Place::Abandoned => {
                self.leave(request);
            }
            _ => {}
        }
    }

    fn answer(&mut self, request: usize) {
        let Some(Request {
            place: Place::Travelling,
            ..
        }) = self.requests.get(request)
        else {
            return;
        };
        let answered = &mut self.requests[request];
        if let Some(admission) = &mut answered.admission {
            admission.complete(Outcome::Success);
        }
        let node = &mut self.nodes[answered.node];
        if node.server.body > 0.0 {
            let unit: f64 = Exp1.sample(&mut self.random);
            let work = node.server.body * unit;
            let done = node.cores.enter(self.now, &node.server, request, work);
            answered.place = Place::OnCpu { done, body: true };
            let node = answered.node;
            return self.plan_cpu(node);
        }
        self.ended(request);
    }

    /// The client has all it waits for.
    fn ended(&mut self, request: usize) {
        let answered = &mut self.requests[request];
        let (node, class, client) = (answered.node, answered.class, answered.client);
        let (phase, number) = (answered.phase, answered.number);
        let (entered, inflight) = (answered.entered, answered.inflight_on_entry);
        let sojourn = self.now - answered.arrived;
        let streams = self.scenario.classes.get(class).map_or(0.0, |c| c.streams);
        if streams > 0.0 {
            answered.place = Place::Streaming;
            let lasts: f64 = Exp1.sample(&mut self.random);
            self.plan(streams * lasts, Event::StreamDone { request, number });
        } else {
            self.leave(request);
        }
        self.nodes[node].tell_peer(self.now, entered, inflight, true);
        let report = &mut self.report.phases[phase];
        report.sojourn.push(sojourn as f32);
        if sojourn <= self.scenario.objective.as_secs_f64() {
            report.good += 1;
            if let Some(class) = report.classes.get_mut(class) {
                class.good += 1;
            }
            let tenth = (10.0 * self.now) as usize;
            if self.report.good_by_tenth.len() <= tenth {
                self.report.good_by_tenth.resize(tenth + 1, 0);
            }
            self.report.good_by_tenth[tenth] += 1;
        } else {
            report.late += 1;
        }
        if let Some(client) = client {
            self.think(client, false);
        }
    }

    /// The client goes away; the server notices and stops, but a connection that is busy with a
    /// query stays busy until it ends.
    fn give_up(&mut self, request: usize) {
        let Request {
            node,
            client,
            entered,
            inflight_on_entry,
            phase,
            retries,
            ..
        } = self.requests[request];
        let was_inside = match &self.requests[request].place {
            Place::Abandoned | Place::Streaming => return,
            Place::Handed { queued } => {
                if *queued {
                    self.nodes[node].workers.give_up(request);
                }
                true
            }
            Place::OnCpu { done, body } => {
                let (done, body) = (*done, *body);
                let at = &mut self.nodes[node];
                at.cores.leave(self.now, &at.server, request, done);
                self.plan_cpu(node);
                if !body {
                    self.free_worker(node);
                }
                true
            }
            Place::InLine => {
                self.nodes[node].connections.give_up(request);
                self.free_worker(node);
                true
            }
            Place::Connected | Place::Travelling => true,
            Place::Waiting(_) => false,
        };
        if matches!(self.requests[request].place, Place::Connected) {
            self.requests[request].place = Place::Abandoned;
            self.requests[request].admission = None;
        } else {
            self.leave(request);
        }
        if was_inside {
            self.nodes[node].tell_peer(self.now, entered, inflight_on_entry, false);
        }
        self.report.phases[phase].abandoned += 1;
        self.retry(client, retries);
    }
}

struct Doorbell {
    request: usize,
    woken: Arc<Mutex<Vec<usize>>>,
}

impl Wake for Doorbell {
    fn wake(self: Arc<Self>) {
        self.woken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.request);
    }
}
