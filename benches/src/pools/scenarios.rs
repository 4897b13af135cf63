//! The table of scenarios.

use super::{Class, Database, Stage};

/// What happens from one moment on.
#[derive(Clone, Debug)]
pub struct Phase {
    /// Seconds.
    pub lasts: f64,
    /// Seconds at its start that are played and not judged, except for how soon the size is right.
    pub warm_up: f64,
    /// Callers a second (Poisson).
    pub rate: f64,
    /// Callers that come together at its start.
    pub at_once: usize,
    /// What they do.
    pub classes: Vec<Class>,
    /// What the database has.
    pub database: Database,
}

/// A named course of events.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What the command line calls it.
    pub name: &'static str,
    /// One after the other.
    pub phases: Vec<Phase>,
    /// Connections at the start.
    pub start: usize,
    /// Static sizes that the oracle is chosen from.
    pub sizes: &'static [usize],
}

/// The largest pool there is in any scenario.
pub const MAX: usize = 96;

const SIZES: &[usize] = &[1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, MAX];

/// The tuner's own start.
const START: usize = 4;

/// Waits 10 ms for something that is not a processor.
const IO: &[Stage] = &[Stage::Cpu(0.000_1), Stage::Wait(0.010)];
/// 500 a second at most, on two cores.
const CPU: &[Stage] = &[Stage::Cpu(0.004)];
/// 1667 a second at most, on two cores, and 10 ms elsewhere.
const MIX: &[Stage] = &[Stage::Cpu(0.001_2), Stage::Wait(0.010)];
/// 450 a second at most, whatever the cores.
const HOT_ROW: &[Stage] = &[
    Stage::Cpu(0.000_1),
    Stage::Lock,
    Stage::Wait(0.002),
    Stage::Cpu(0.000_2),
];

impl Phase {
    fn new(lasts: f64, rate: f64, stages: &[Stage]) -> Self {
        Self {
            lasts,
            warm_up: 0.0,
            rate,
            at_once: 0,
            classes: vec![Class::of(stages)],
            database: Database::default(),
        }
    }

    fn warm_up(self, warm_up: f64) -> Self {
        Self { warm_up, ..self }
    }

    fn cores(mut self, cores: f64) -> Self {
        self.database.cores = cores;
        self
    }

    fn also(mut self, weight: f64, stages: &[Stage]) -> Self {
        self.classes[0].weight -= weight;
        self.classes.push(Class {
            weight,
            stages: stages.to_vec(),
        });
        self
    }
}

fn scenario(name: &'static str, phases: Vec<Phase>) -> Scenario {
    Scenario {
        name,
        phases,
        start: START,
        sizes: SIZES,
    }
}

/// One phase of a minute and a half, the first third for warming up.
fn steady(name: &'static str, rate: f64, stages: &[Stage]) -> Scenario {
    scenario(name, vec![Phase::new(90.0, rate, stages).warm_up(30.0)])
}

/// As long as it takes to forget the start: the tuner shrinks to the peak demand of five minutes.
fn settled(name: &'static str, rate: f64, stages: &[Stage]) -> Scenario {
    scenario(name, vec![Phase::new(540.0, rate, stages).warm_up(420.0)])
}

/// A rate for two minutes, a multiple of it for two minutes, and back.
fn step(name: &'static str, rate: f64, factor: f64, stages: &[Stage]) -> Scenario {
    let phase = |rate| Phase::new(120.0, rate, stages);
    scenario(
        name,
        vec![phase(rate).warm_up(60.0), phase(factor * rate), phase(rate)],
    )
}

/// All of them.
#[must_use]
pub fn all() -> Vec<Scenario> {
    let slow = Phase::new(60.0, 1_000.0, IO);
    let flood = |weight, seconds| {
        let slow_query = [Stage::Cpu(0.000_1), Stage::Wait(seconds)];
        vec![
            slow.clone().warm_up(30.0),
            slow.clone().also(weight, &slow_query),
            slow.clone(),
        ]
    };
    let loses_a_core = |rate: f64, stages: &[Stage]| {
        let phase = || Phase::new(60.0, rate, stages);
        vec![phase().warm_up(30.0), phase().cores(1.0), phase()]
    };
    let spike = Phase {
        at_once: 50,
        ..Phase::new(10.0, 100.0, &[Stage::Cpu(0.000_2), Stage::Wait(0.002)])
    };
    let spike = [
        Phase {
            at_once: 0,
            ..spike.clone()
        },
        spike.clone(),
        spike,
    ]
    .map(|mut phase| {
        phase.database.dial_wait = 0.150;
        phase
    });
    let a = [Stage::Cpu(0.000_1), Stage::Wait(0.001)];
    let b = [Stage::Cpu(0.000_1), Stage::Wait(0.020)];
    vec![
        steady("P1 io 200/s", 200.0, IO),
        steady("P1 io 1000/s", 1_000.0, IO),
        steady("P1 io 2000/s", 2_000.0, IO),
        settled("P2 cpu 0.5", 250.0, CPU),
        settled("P2 cpu 0.85", 425.0, CPU),
        steady("P2 cpu 1.3", 650.0, CPU),
        steady("P3 mix 0.5", 833.0, MIX),
        steady("P3 mix 0.85", 1_417.0, MIX),
        steady("P3 mix 1.3", 2_167.0, MIX),
        settled("P4 hot row 0.8", 360.0, HOT_ROW),
        steady("P4 hot row 1.3", 585.0, HOT_ROW),
        scenario(
            "P7 app hold",
            vec![
                Phase::new(90.0, 500.0, IO)
                    .also(0.2, &[IO[0], IO[1], Stage::Wait(0.050)])
                    .warm_up(30.0),
            ],
        ),
        step("P8 step x4", 200.0, 4.0, MIX),
        step("P8 step x10", 150.0, 10.0, IO),
        Scenario {
            start: 5,
            ..scenario("P10 spike", spike.to_vec())
        },
        scenario("P12 cpu loses a core", loses_a_core(350.0, CPU)),
        scenario("P12 mix loses a core", loses_a_core(1_100.0, MIX)),
        scenario("P14 slow 3 % 400 ms", flood(0.03, 0.400)),
        scenario("P14 slow 10 % 50 ms", flood(0.10, 0.050)),
        scenario(
            "P19 mix shift",
            vec![
                Phase::new(60.0, 400.0, &a).warm_up(30.0),
                Phase::new(60.0, 400.0, &b),
            ],
        ),
        scenario(
            "P19 quiet half hour",
            vec![Phase::new(1_860.0, 150.0, MIX).warm_up(60.0)],
        ),
        Scenario {
            sizes: &[2, 3, 4],
            ..scenario(
                "overload hour",
                vec![Phase::new(3_660.0, 325.0, &[Stage::Cpu(0.008)]).warm_up(60.0)],
            )
        },
    ]
}
