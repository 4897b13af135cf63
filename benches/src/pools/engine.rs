//! Plays a scenario, from event to event.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

use pool_autotune::{
    Bounds,
    tuner::{Decision, DialBudget, DialConfig, DialState, PoolWindow, Tuner, TunerConfig},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::time::Instant;

use super::{Contender, Phase, Rule, Scenario, Seen, Stage, database::Processors, scenarios::MAX};

/// How often a window is closed, as in the shipped driver.
const TICK: u64 = 250_000_000;
/// How long a caller stands in line.
const TIMEOUT: u64 = 2_000_000_000;
/// A longer wait is slow, as in the shipped configuration.
const SLOW: u64 = 20_000_000;
const SECOND: f64 = 1e9;
/// Seconds together in which goodput is counted, to see when it settles.
const SLOT: f64 = 1.0;

/// What came of a scenario.
#[derive(Clone, Debug)]
pub struct Report {
    /// Phase by phase.
    pub phases: Vec<PhaseReport>,
    /// Times the target moved, warming up included.
    pub resizes: usize,
    /// Connections opened.
    pub dials: u64,
    /// Moments at which there were more connections than the limit and its debts allow.
    pub over_limit: u64,
    /// Most connections at any moment, those being opened included.
    pub peak: usize,
    /// What the tuner decided, for explanations: moves of the target only.
    pub decisions: Vec<(f64, Decision)>,
}

/// What came of a phase. All but [`by_slot`](Self::by_slot) leave the warm-up out.
#[derive(Clone, Debug, Default)]
pub struct PhaseReport {
    /// Seconds judged.
    pub seconds: f64,
    /// Callers.
    pub offered: u64,
    /// Callers that were served, whenever.
    pub good: u64,
    /// Time integral of connections, over the seconds judged.
    pub connection_seconds: f64,
    /// Times the target moved.
    pub resizes: usize,
    /// Callers served in each slot from the phase's start.
    pub by_slot: Vec<u32>,
    /// Seconds that a slot lasts.
    pub slot: f64,
    /// Seconds from arrival to the end, of those served; all patience for those that were not.
    pub times: Vec<f32>,
}

impl PhaseReport {
    /// Callers served, per second.
    #[must_use]
    pub fn goodput(&self) -> f64 {
        self.good as f64 / self.seconds
    }

    /// Seconds within which 99 of 100 callers were served.
    #[must_use]
    pub fn p99(&self) -> f64 {
        let Some(last) = self.times.len().checked_sub(1) else {
            return 0.0;
        };
        let mut times = self.times.clone();
        let (_, p99, _) = times.select_nth_unstable_by(last * 99 / 100, f32::total_cmp);
        f64::from(*p99)
    }
}

/// Plays `scenario` under a contender. The same seed brings the same callers to each contender.
#[must_use]
pub fn run(scenario: &Scenario, contender: Contender, seed: u64) -> Report {
    let cores = scenario.phases[0].database.cores as usize;
    match contender.rule(cores) {
        Some(rule) => run_rule(scenario, rule, seed),
        None => {
            let start = Instant::now();
            let bounds = Bounds::new(2..=MAX).expect("two to ninety-six is a range");
            let config = TunerConfig::default();
            let tuner = Tuner::new(config, bounds, scenario.start, start);
            let dial = DialBudget::new(config.dial, start);
            Engine::new(scenario, Policy::Tuned(Box::new(tuner)), dial, start, seed).play()
        }
    }
}

/// Plays `scenario` under a published rule, which opens connections as fast as it likes.
pub(super) fn run_rule(scenario: &Scenario, rule: Rule, seed: u64) -> Report {
    let start = Instant::now();
    let mut config = DialConfig::default();
    config.per_second = 1e9;
    config.burst = 1e9;
    config.at_once = MAX;
    let dial = DialBudget::new(config, start);
    Engine::new(scenario, Policy::Rule(rule), dial, start, seed).play()
}

enum Policy {
    Rule(Rule),
    Tuned(Box<Tuner>),
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Event {
    /// A caller comes.
    Arrive,
    /// A caller gives up, if it still stands in line.
    GiveUp(usize),
    /// A wait without CPU is over.
    Waited(usize),
    /// A window closes.
    Tick,
    /// There may be something to dial with.
    Token,
    /// The next phase begins.
    Phase,
}

/// A caller.
#[derive(Debug)]
struct Caller {
    arrived: u64,
    phase: usize,
    class: usize,
    judged: bool,
    /// Of the randomness of its work, so that it is the same under every policy.
    seed: u64,
    state: State,
    /// When it got its permit, then its connection.
    since: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    InLine,
    /// The network part of a new connection.
    Connecting,
    /// The database's part of it.
    Authenticating,
    /// The stage it is in.
    Inside(usize),
    Gone,
}

struct Engine<'a> {
    scenario: &'a Scenario,
    policy: Policy,
    dial: DialBudget,
    start: Instant,
    now: u64,
    order: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    arrivals: SmallRng,
    phase: usize,
    phase_began: u64,

    callers: Vec<Caller>,
    line: VecDeque<usize>,
    processors: Processors,
    /// The holder of the hot row, and the jobs that wait for it.
    row: VecDeque<usize>,

    target: usize,
    /// The limit without a dither, as in the shipped driver: connections above it are closed.
    ceiling: usize,
    limit: usize,
    permits: usize,
    in_hand: usize,
    idle: usize,
    token_at: Option<u64>,

    window: PoolWindow,
    window_began: u64,
    busy: f64,
    queueing: f64,
    capacity: f64,

    report: Report,
}

impl<'a> Engine<'a> {
    fn new(
        scenario: &'a Scenario,
        policy: Policy,
        dial: DialBudget,
        start: Instant,
        seed: u64,
    ) -> Self {
        let size = match &policy {
            Policy::Rule(Rule::Static(size)) => *size,
            _ => scenario.start,
        };
        Self {
            scenario,
            policy,
            dial,
            start,
            now: 0,
            order: 0,
            events: BinaryHeap::new(),
            arrivals: SmallRng::seed_from_u64(seed),
            phase: 0,
            phase_began: 0,
            callers: Vec::new(),
            line: VecDeque::new(),
            processors: Processors::default(),
            row: VecDeque::new(),
            target: size,
            ceiling: size,
            limit: size,
            permits: 0,
            in_hand: 0,
            idle: size,
            token_at: None,
            window: PoolWindow::default(),
            window_began: 0,
            busy: 0.0,
            queueing: 0.0,
            capacity: 0.0,
            report: Report {
                phases: vec![PhaseReport::default(); scenario.phases.len()],
                resizes: 0,
                dials: 0,
                over_limit: 0,
                peak: size,
                decisions: Vec::new(),
            },
        }
    }

    fn play(mut self) -> Report {
        self.begin_phase(0);
        self.at(TICK, Event::Tick);
        loop {
            let database = self.phase().database;
            let others = self.row.len().saturating_sub(1);
            let job = self
                .processors
                .next_in(&database, others)
                .map(|seconds| self.now + (seconds * SECOND).ceil() as u64);
            let event = self.events.peek().map(|&Reverse((at, ..))| at);
            let Some(event) = event else { break };
            if let Some(job) = job
                && job <= event
            {
                self.advance(job);
                if let Some(caller) = self.processors.finish() {
                    self.proceed(caller);
                }
                continue;
            }
            self.advance(event);
            let Some(Reverse((_, _, event))) = self.events.pop() else {
                break;
            };
            match event {
                Event::Arrive => self.arrive(true),
                Event::GiveUp(caller) => self.give_up(caller),
                Event::Waited(caller) => self.proceed(caller),
                Event::Tick => self.tick(),
                Event::Token => {
                    self.token_at = None;
                    self.apply();
                }
                Event::Phase if self.phase + 1 == self.scenario.phases.len() => break,
                Event::Phase => self.begin_phase(self.phase + 1),
            }
        }
        self.report
    }

    fn phase(&self) -> &'a Phase {
        &self.scenario.phases[self.phase]
    }

    fn at(&mut self, when: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((when, self.order, event)));
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_nanos(self.now)
    }

    fn size(&self) -> usize {
        self.idle + self.in_hand
    }

    /// Connections, with those being opened.
    fn live(&self) -> usize {
        self.idle + self.permits
    }

    fn is_judged(&self) -> bool {
        (self.now - self.phase_began) as f64 >= self.phase().warm_up * SECOND
    }

    fn advance(&mut self, to: u64) {
        let seconds = (to - self.now) as f64 / SECOND;
        let others = self.row.len().saturating_sub(1);
        let database = self.phase().database;
        self.processors.advance(seconds, &database, others);
        self.busy += seconds * self.in_hand as f64;
        self.queueing += seconds * self.line.len() as f64;
        self.capacity += seconds * self.limit as f64;
        if self.is_judged() {
            let live = self.live() as f64;
            let phase = &mut self.report.phases[self.phase];
            phase.connection_seconds += seconds * live;
            phase.seconds += seconds;
        }
        self.now = to;
    }

    fn begin_phase(&mut self, index: usize) {
        self.phase = index;
        self.phase_began = self.now;
        let phase = self.phase();
        let ends = self.now + (phase.lasts * SECOND) as u64;
        let report = &mut self.report.phases[index];
        report.by_slot = vec![0; (phase.lasts / SLOT).ceil() as usize];
        report.slot = SLOT;
        self.at(ends, Event::Phase);
        for _ in 0..phase.at_once {
            self.arrive(false);
        }
        if index == 0 {
            self.next_arrival();
        }
    }

    fn next_arrival(&mut self) {
        let gap = -(1.0 - self.arrivals.random::<f64>()).ln() / self.phase().rate;
        let when = self.now + (gap * SECOND) as u64;
        self.at(when, Event::Arrive);
    }

    fn arrive(&mut self, one_of_many: bool) {
        if one_of_many {
            self.next_arrival();
        }
        let seed = self.arrivals.random();
        let classes = &self.phase().classes;
        let total: f64 = classes.iter().map(|class| class.weight).sum();
        let mut pick = self.arrivals.random::<f64>() * total;
        let class = classes
            .iter()
            .position(|class| {
                pick -= class.weight;
                pick < 0.0
            })
            .unwrap_or(0);
        let judged = self.is_judged();
        if judged {
            self.report.phases[self.phase].offered += 1;
        }
        self.window.arrivals += 1;
        let caller = self.callers.len();
        self.callers.push(Caller {
            arrived: self.now,
            phase: self.phase,
            class,
            judged,
            seed,
            state: State::InLine,
            since: self.now,
        });
        self.line.push_back(caller);
        self.grant();
        if self.callers[caller].state == State::InLine {
            self.at(self.now + TIMEOUT, Event::GiveUp(caller));
            if self.ceiling < self.target {
                self.apply();
            }
        }
    }

    fn give_up(&mut self, caller: usize) {
        if self.callers[caller].state != State::InLine {
            return;
        }
        // First come, first to give up.
        self.line.retain(|&waiting| waiting != caller);
        self.callers[caller].state = State::Gone;
        self.window.timeouts += 1;
        self.window.slow_waits += 1;
        self.window.wait_time += Duration::from_nanos(TIMEOUT);
        let Caller { phase, judged, .. } = self.callers[caller];
        if judged {
            self.report.phases[phase].times.push(2.0);
        }
    }

    /// Lets the first in line in, while there are permits.
    fn grant(&mut self) {
        while self.permits < self.limit
            && let Some(caller) = self.line.pop_front()
        {
            let waited = self.now - self.callers[caller].arrived;
            self.window.wait_time += Duration::from_nanos(waited);
            self.window.slow_waits += u64::from(waited > SLOW);
            self.permits += 1;
            self.callers[caller].since = self.now;
            if self.idle > 0 {
                self.idle -= 1;
                self.in_hand += 1;
                self.enter(caller, 0);
            } else {
                self.callers[caller].state = State::Connecting;
                let wait = self.phase().database.dial_wait;
                self.at(self.now + (wait * SECOND) as u64, Event::Waited(caller));
            }
            self.watch();
        }
    }

    /// Counts what must never be.
    fn watch(&mut self) {
        self.report.peak = self.report.peak.max(self.live());
        let allowed = self.ceiling.max(self.permits);
        self.report.over_limit += u64::from(self.live() > allowed);
    }

    /// What a caller was at has ended.
    fn proceed(&mut self, caller: usize) {
        match self.callers[caller].state {
            State::Connecting => {
                self.callers[caller].state = State::Authenticating;
                let work = self.phase().database.dial_cpu;
                self.processors.start(caller, work);
            }
            State::Authenticating => {
                self.window.dials += 1;
                self.report.dials += 1;
                let took = self.now - self.callers[caller].since;
                self.window.dial_time += Duration::from_nanos(took);
                self.callers[caller].since = self.now;
                self.in_hand += 1;
                self.enter(caller, 0);
                self.apply();
            }
            State::Inside(stage) => self.enter(caller, stage + 1),
            State::InLine | State::Gone => {}
        }
    }

    /// Begins a stage, or ends the transaction.
    fn enter(&mut self, caller: usize, stage: usize) {
        let Caller {
            phase, class, seed, ..
        } = self.callers[caller];
        self.callers[caller].state = State::Inside(stage);
        let stages = &self.scenario.phases[phase].classes[class].stages;
        match stages.get(stage) {
            Some(&Stage::Cpu(mean)) => {
                let mut random = SmallRng::seed_from_u64(seed.wrapping_add(stage as u64));
                let work = -mean * (1.0 - random.random::<f64>()).ln();
                self.processors.start(caller, work);
            }
            Some(&Stage::Wait(seconds)) => {
                self.at(self.now + (seconds * SECOND) as u64, Event::Waited(caller));
            }
            Some(Stage::Lock) => {
                self.row.push_back(caller);
                if self.row.len() == 1 {
                    self.enter(caller, stage + 1);
                }
            }
            None => self.finish(caller),
        }
    }

    fn finish(&mut self, caller: usize) {
        if self.row.front() == Some(&caller) {
            self.row.pop_front();
            if let Some(&next) = self.row.front() {
                self.proceed(next);
            }
        }
        self.callers[caller].state = State::Gone;
        let Caller {
            arrived,
            phase,
            judged,
            since,
            ..
        } = self.callers[caller];
        let used = Duration::from_nanos(self.now - since);
        self.window.completions += 1;
        self.window.use_time += used;
        self.window.use_time_squared += used.as_secs_f64() * used.as_secs_f64();
        let report = &mut self.report.phases[phase];
        if judged {
            report.good += 1;
            let seconds = (self.now - arrived) as f64 / SECOND;
            report.times.push(seconds as f32);
        }
        let slot = ((self.now - self.phase_began) as f64 / SECOND / SLOT) as usize;
        if let Some(count) = self.report.phases[self.phase].by_slot.get_mut(slot) {
            *count += 1;
        }
        let too_many = self.permits > self.ceiling;
        self.permits -= 1;
        self.in_hand -= 1;
        self.idle += usize::from(!too_many);
        self.grant();
    }

    fn tick(&mut self) {
        self.at(self.now + TICK, Event::Tick);
        let mut window = std::mem::take(&mut self.window);
        window.duration = Duration::from_nanos(self.now - self.window_began);
        window.busy = Duration::from_secs_f64(std::mem::take(&mut self.busy));
        window.queueing = Duration::from_secs_f64(std::mem::take(&mut self.queueing));
        window.capacity = Duration::from_secs_f64(std::mem::take(&mut self.capacity));
        window.limit = self.limit;
        window.queued = self.line.len();
        let ages = self
            .line
            .iter()
            .map(|&caller| Duration::from_nanos(self.now - self.callers[caller].arrived));
        window.queued_for = ages.sum();
        self.window_began = self.now;
        let now = self.instant();
        let next = match &mut self.policy {
            Policy::Tuned(tuner) => {
                let decision = tuner.on_window(now, &window);
                let to = decision.to();
                if decision.is_resize() {
                    let at = self.now as f64 / SECOND;
                    self.report.decisions.push((at, decision));
                }
                to
            }
            Policy::Rule(rule) => {
                let seen = Seen {
                    utilisation: window.utilisation(),
                    slow_waits: window.slow_waits,
                    slow: window.slow_waits * 20 > window.arrivals,
                    timeouts: window.timeouts,
                    completions: window.completions,
                    seconds: window.duration.as_secs_f64(),
                };
                rule.next(self.target, MAX, &seen)
            }
        };
        if next != self.target {
            self.target = next;
            self.report.resizes += 1;
            if self.is_judged() {
                self.report.phases[self.phase].resizes += 1;
            }
        }
        self.apply();
    }

    /// Moves the limit towards its target and closes what is too many, as the shipped driver does.
    fn apply(&mut self) {
        let now = self.instant();
        let state = DialState::new(self.ceiling, self.target, self.size(), self.line.len());
        self.ceiling = self.dial.limit(now, state);
        self.limit = match &self.policy {
            Policy::Tuned(tuner) => self.ceiling.min(tuner.admitted()),
            Policy::Rule(_) => self.ceiling,
        };
        let surplus = self.live().saturating_sub(self.ceiling.max(self.permits));
        self.idle -= surplus.min(self.idle);
        self.grant();
        self.watch();
        if self.ceiling < self.target
            && !self.line.is_empty()
            && let Some(token) = self.dial.next_token()
        {
            let when = (token - self.start).as_nanos() as u64;
            if self.token_at.is_none_or(|at| at > when) && when > self.now {
                self.token_at = Some(when);
                self.at(when, Event::Token);
            }
        }
    }
}
