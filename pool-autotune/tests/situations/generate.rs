//! What happens to a pool: phases put together by chance.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// A course of events, the same for both pools.
#[derive(Clone, Debug)]
pub(crate) struct Situation {
    /// Of callers and their use times.
    pub(crate) seed: u64,
    /// The pool's maximum.
    pub(crate) max: usize,
    /// How long a caller waits for a connection.
    pub(crate) patience: Duration,
    pub(crate) phases: Vec<Phase>,
}

/// What happens from one moment on.
#[derive(Clone, Debug)]
pub(crate) struct Phase {
    pub(crate) lasts: Duration,
    /// Callers a second.
    pub(crate) rate: f64,
    /// Use times, one class as likely as the other.
    pub(crate) uses: Vec<Duration>,
    /// Connections taken at its start, and held for so long.
    pub(crate) holders: usize,
    pub(crate) held: Duration,
    /// How a caller uses the pool.
    pub(crate) style: Style,
    /// How long it takes to open a connection.
    pub(crate) dial: Duration,
    /// Connections beyond which the server becomes slower.
    pub(crate) knee: Option<usize>,
    /// What happens at its start.
    pub(crate) event: Event,
}

/// How a caller uses the pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Style {
    /// One checkout each.
    Single,
    /// One caller in ten asks for a second connection while it holds one.
    Nested,
    /// Each caller joins two checkouts in one task.
    Joined,
    /// Every other caller gives up after a tenth of the usual patience.
    Hasty,
}

/// What happens to the server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Event {
    Nothing,
    /// All connections die; the server is there again at once.
    Kill,
    /// One connection dies, and its user reports 57P01.
    KillOne,
    /// All connections die, and dials fail for so long.
    Down(Duration),
    /// All connections die, and dials hang for so long; those begun meanwhile hang on after it.
    Hang(Duration),
    /// The server replies only after this time.
    Pause(Duration),
    /// Idle connections die.
    IdleTimeout,
    /// No more connections than this from now on (SQLSTATE 53300); all end if there are more.
    Full(usize),
    /// A statement fails with an error that says nothing of the server (08P01).
    BadStatement,
    /// The maximum of the pool becomes this.
    Bounds(usize),
}

/// Callers of one phase, at most: a situation has to be played in milliseconds.
const CALLERS: f64 = 300.0;

impl Situation {
    pub(crate) fn random(seed: u64) -> Self {
        let mut dice = SmallRng::seed_from_u64(seed);
        let max = [1, 2, 5, 10, 20, 50, 100][dice.random_range(0..7)];
        let patience = Duration::from_millis(
            [100, 500, 2_000, 2_000, 10_000, 30_000][dice.random_range(0..6)],
        );
        let knee = (dice.random_range(0..5) == 0).then(|| dice.random_range(1..=max));
        let dial = time(&mut dice, &[0, 1, 1, 3, 3, 10, 30, 100, 500, 2_000]);
        let phases = (0..dice.random_range(1..=5))
            .map(|_| Phase::random(&mut dice, max, dial, knee))
            .collect();
        Self {
            seed,
            max,
            patience,
            phases,
        }
    }
}

impl Situation {
    /// The same, with other callers unless `other` is zero.
    pub(crate) fn with_callers(&self, other: u64) -> Self {
        const APART: u64 = 1_000_003;
        let mut situation = self.clone();
        situation.seed = self.seed.wrapping_add(other * APART);
        situation
    }
}

impl Phase {
    fn random(dice: &mut SmallRng, max: usize, dial: Duration, knee: Option<usize>) -> Self {
        let uses = (0..dice.random_range(1..=3))
            .map(|_| {
                time(
                    dice,
                    &[
                        0, 1, 1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 1_000, 5_000, 20_000,
                    ],
                )
            })
            .collect::<Vec<_>>();
        let mean = uses.iter().map(Duration::as_secs_f64).sum::<f64>() / uses.len() as f64;
        // Up to the maximum of the pool and somewhat beyond, whatever the use times; at times idle.
        let load = [0.0, 0.02, 0.1, 0.3, 0.6, 0.9, 1.2][dice.random_range(0..7)] * max as f64;
        let rate = (load / mean.max(0.000_1)).min(10_000.0);
        let seconds = [1.0, 5.0, 20.0, 60.0, 200.0][dice.random_range(0..5)];
        let seconds = if rate > 0.0 {
            (CALLERS / rate).clamp(0.05, seconds)
        } else {
            seconds
        };
        let holders = match dice.random_range(0..4) {
            0 => dice.random_range(0..=max.min(12)),
            _ => 0,
        };
        let held = Duration::from_secs([1, 5, 20, 3_600][dice.random_range(0..4)]);
        let style = match dice.random_range(0..10) {
            0 if max > 1 => Style::Nested,
            1 => Style::Joined,
            2 => Style::Hasty,
            _ => Style::Single,
        };
        let some = Duration::from_millis([100, 1_000, 3_000][dice.random_range(0..3)]);
        let event = match dice.random_range(0..20) {
            0 => Event::Kill,
            1 => Event::KillOne,
            2 => Event::Down(some),
            3 => Event::Hang(some),
            4 => Event::Pause(some),
            5 => Event::IdleTimeout,
            6 => Event::Full(dice.random_range(1..=max)),
            7 => Event::BadStatement,
            8 => Event::Bounds(dice.random_range(1..=max)),
            _ => Event::Nothing,
        };
        Self {
            lasts: Duration::from_secs_f64(seconds),
            rate,
            uses,
            holders,
            held,
            style,
            dial,
            knee,
            event,
        }
    }
}

fn time(dice: &mut SmallRng, ms: &[u64]) -> Duration {
    match ms[dice.random_range(0..ms.len())] {
        0 => Duration::from_micros(100),
        ms => Duration::from_millis(ms),
    }
}
