//! The event loop.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use rand::{SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, Exp1};
use tokio::time::Instant;
use tower_capacity::{Admission, Admit, Limiter, Outcome, gate::Refused, limit::Fixed};

use super::{
    PhaseReport, Report, Sample, Scenario, Server,
    server::{Connections, Cores},
};

/// Runs a scenario under the limiter that `limiter` creates.
#[must_use]
pub fn run(scenario: &Scenario, limiter: impl FnOnce() -> Limiter + Send) -> Report {
    // A thread of its own: what the limiter keeps for each thread starts afresh.
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime without I/O needs nothing that could be missing")
                .block_on(async { Simulation::new(scenario, limiter()).run().await })
        });
        run.join().expect("a simulation does not panic")
    })
}

/// The best goodput of any fixed limit without a waiting room, phase by phase.
#[must_use]
pub fn oracle(scenario: &Scenario, limits: &[usize]) -> Vec<f64> {
    let mut best = vec![0.0_f64; scenario.phases.len()];
    for &limit in limits {
        let fixed = || {
            Limiter::builder()
                .law(Fixed::new(limit))
                .build()
                .expect("the oracle tries possible limits")
        };
        for (best, phase) in best.iter_mut().zip(&run(scenario, fixed).phases) {
            *best = best.max(phase.goodput());
        }
    }
    best
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Arrival,
    /// The first request on the cores is done, if nothing changed since this version.
    CpuDone {
        version: u64,
    },
    /// A request gives its connection back.
    ConnectionDone {
        request: usize,
    },
    /// A request's answer arrives.
    Answer {
        request: usize,
    },
    /// A client has lost its patience.
    GoneAway {
        request: usize,
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
    OnCpu {
        done: u64,
    },
    InLine,
    Connected,
    /// Its answer is on the way; nothing of the server is held.
    Travelling,
    /// Its client went away while it held a connection, which it still gives back.
    Abandoned,
    Gone,
}

struct Request {
    arrived: f64,
    phase: usize,
    retries: u32,
    place: Place,
    admission: Option<Admission>,
}

struct Simulation<'a> {
    scenario: &'a Scenario,
    limiter: Limiter,
    random: SmallRng,
    start: Instant,
    now: f64,
    phase: usize,
    server: Server,
    events: BinaryHeap<Reverse<Planned>>,
    planned: u64,
    requests: Vec<Request>,
    cores: Cores,
    connections: Connections,
    /// While the process stands still nothing happens in it; its events wait.
    paused: Option<Vec<Event>>,
    woken: Arc<Mutex<Vec<usize>>>,
    good_since_sample: std::collections::VecDeque<f64>,
    report: Report,
}

impl<'a> Simulation<'a> {
    fn new(scenario: &'a Scenario, limiter: Limiter) -> Self {
        let phases = &scenario.phases;
        Self {
            scenario,
            limiter,
            random: SmallRng::seed_from_u64(scenario.seed),
            start: Instant::now(),
            now: 0.0,
            phase: 0,
            server: phases
                .first()
                .map_or_else(Server::default, |phase| phase.server),
            events: BinaryHeap::new(),
            planned: 0,
            requests: Vec::new(),
            cores: Cores::default(),
            connections: Connections::default(),
            paused: None,
            woken: Arc::default(),
            good_since_sample: std::collections::VecDeque::new(),
            report: Report {
                phases: phases
                    .iter()
                    .map(|phase| PhaseReport {
                        lasts: phase.lasts,
                        ..PhaseReport::default()
                    })
                    .collect(),
                ..Report::default()
            },
        }
    }

    async fn run(mut self) -> Report {
        let end: f64 = self.scenario.phases.iter().map(|phase| phase.lasts).sum();
        self.plan_arrival();
        self.plan(
            self.scenario
                .phases
                .first()
                .map_or(0.0, |phase| phase.lasts),
            Event::NextPhase,
        );
        self.plan(0.1, Event::Sample);
        if let Some((every, _)) = self.scenario.pauses {
            self.plan(every, Event::PauseBegins);
        }
        while let Some(Reverse(next)) = self.events.pop() {
            if next.at >= end {
                break;
            }
            self.advance_to(next.at).await;
            self.handle(next.event);
            self.poll_woken();
        }
        self.report.changes = self
            .limiter
            .history()
            .iter()
            .map(ToString::to_string)
            .collect();
        self.report
    }

    async fn advance_to(&mut self, at: f64) {
        let target = self.start + Duration::from_secs_f64(at);
        let step = target.saturating_duration_since(Instant::now());
        if !step.is_zero() {
            tokio::time::advance(step).await;
        }
        self.now = at;
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
        if phase.offered > 0.0 {
            let gap: f64 = Exp1.sample(&mut self.random);
            self.plan(gap / phase.offered, Event::Arrival);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::PauseBegins => {
                self.cores.serve(self.now, &self.server);
                self.paused = Some(Vec::new());
                let lasting = self.scenario.pauses.map_or(0.0, |(_, lasting)| lasting);
                return self.plan(lasting, Event::PauseEnds);
            }
            Event::PauseEnds => return self.resume(),
            Event::NextPhase => return self.next_phase(),
            Event::Sample => return self.sample(),
            _ => {}
        }
        if let Some(held) = &mut self.paused {
            held.push(event);
            return;
        }
        match event {
            Event::Arrival => {
                self.arrive(0);
                self.plan_arrival();
            }
            Event::CpuDone { version } if version == self.cores.version => self.cpu_done(),
            Event::ConnectionDone { request } => self.connection_done(request),
            Event::Answer { request } => self.answer(request),
            Event::GoneAway { request } => self.give_up(request),
            _ => {}
        }
    }

    /// The process goes on: what fell into the pause happens now, all at once.
    fn resume(&mut self) {
        let (every, lasting) = self.scenario.pauses.unwrap_or_default();
        // Work stood still too.
        self.cores.skip_to(self.now);
        for event in self.paused.take().unwrap_or_default() {
            match event {
                Event::CpuDone { .. } => {}
                event => self.handle(event),
            }
        }
        self.plan_cpu();
        self.plan(every - lasting, Event::PauseBegins);
    }

    fn next_phase(&mut self) {
        self.cores.serve(self.now, &self.server);
        let was_silent = self.scenario.phases[self.phase].offered <= 0.0;
        self.phase += 1;
        let Some(phase) = self.scenario.phases.get(self.phase) else {
            return;
        };
        self.server = phase.server;
        self.plan(phase.lasts, Event::NextPhase);
        self.plan_cpu();
        if was_silent {
            self.plan_arrival();
        }
    }

    fn sample(&mut self) {
        let snapshot = self.limiter.snapshot();
        while self
            .good_since_sample
            .front()
            .is_some_and(|&at| at < self.now - 1.0)
        {
            self.good_since_sample.pop_front();
        }
        self.report.samples.push(Sample {
            at: self.now,
            limit: snapshot.limit(),
            inflight: snapshot.inflight(),
            queued: snapshot.queued(),
            goodput: self.good_since_sample.len() as u64,
        });
        if let Some(phase) = self.report.phases.get_mut(self.phase) {
            phase.limits.push(snapshot.limit());
        }
        self.plan(0.1, Event::Sample);
    }

    fn arrive(&mut self, retries: u32) {
        let request = self.requests.len();
        let Some(phase) = self.report.phases.get_mut(self.phase) else {
            return;
        };
        phase.offered += 1;
        self.requests.push(Request {
            arrived: self.now,
            phase: self.phase,
            retries,
            place: Place::Waiting(Box::pin(self.limiter.admit())),
            admission: None,
        });
        self.plan(
            self.scenario.patience.as_secs_f64(),
            Event::GoneAway { request },
        );
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
        let Place::Waiting(admit) = &mut self.requests[request].place else {
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
        let work = self.server.cpu.draw(&mut self.random);
        let done = self.cores.enter(self.now, &self.server, request, work);
        self.requests[request].admission = Some(admission);
        self.requests[request].place = Place::OnCpu { done };
        self.plan_cpu();
    }

    fn refused(&mut self, request: usize, _refused: &Refused) {
        self.requests[request].place = Place::Gone;
        self.report.phases[self.requests[request].phase].refused += 1;
        self.retry(request);
    }

    fn retry(&mut self, request: usize) {
        let retries = self.requests[request].retries;
        if retries < self.scenario.retries {
            self.arrive(retries + 1);
        }
    }

    fn plan_cpu(&mut self) {
        if let Some((at, _)) = self.cores.next(self.now, &self.server) {
            let version = self.cores.version;
            self.plan(at - self.now, Event::CpuDone { version });
        }
    }

    fn cpu_done(&mut self) {
        let Some((_, request)) = self.cores.next(self.now, &self.server) else {
            return;
        };
        if let Place::OnCpu { done } = self.requests[request].place {
            self.cores.leave(self.now, &self.server, request, done);
        }
        let time = self.server.dependency.draw(&mut self.random);
        if self.connections.enter(&self.server, request, time) {
            self.requests[request].place = Place::Connected;
            self.plan(time, Event::ConnectionDone { request });
        } else {
            self.requests[request].place = Place::InLine;
        }
        self.plan_cpu();
    }

    fn connection_done(&mut self, request: usize) {
        if let Some((next, time)) = self.connections.leave(&self.server) {
            self.requests[next].place = Place::Connected;
            self.plan(time, Event::ConnectionDone { request: next });
        }
        if matches!(self.requests[request].place, Place::Connected) {
            self.requests[request].place = Place::Travelling;
            self.plan(self.server.delay, Event::Answer { request });
        }
    }

    fn answer(&mut self, request: usize) {
        let Request {
            arrived,
            phase,
            place,
            admission,
            ..
        } = &mut self.requests[request];
        if !matches!(place, Place::Travelling) {
            return;
        }
        *place = Place::Gone;
        if let Some(mut admission) = admission.take() {
            admission.complete(Outcome::Success);
        }
        let sojourn = self.now - *arrived;
        let report = &mut self.report.phases[*phase];
        report.sojourn.push(sojourn);
        if sojourn <= self.scenario.objective.as_secs_f64() {
            report.good += 1;
            self.good_since_sample.push_back(self.now);
        } else {
            report.late += 1;
        }
    }

    /// The client goes away; the server notices and stops, but a connection that is busy with a
    /// query stays busy until it ends.
    fn give_up(&mut self, request: usize) {
        let left = match &self.requests[request].place {
            Place::Gone | Place::Abandoned => return,
            Place::OnCpu { done } => {
                let done = *done;
                self.cores.leave(self.now, &self.server, request, done);
                self.plan_cpu();
                Place::Gone
            }
            Place::InLine => {
                self.connections.give_up(request);
                Place::Gone
            }
            Place::Connected => Place::Abandoned,
            Place::Waiting(_) | Place::Travelling => Place::Gone,
        };
        self.requests[request].place = left;
        self.requests[request].admission = None;
        self.report.phases[self.requests[request].phase].abandoned += 1;
        self.retry(request);
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
