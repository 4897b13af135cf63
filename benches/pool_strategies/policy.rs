//! The policies that are compared.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use overload_benches::pools::{Contender, Rule, Seen};
use pool_autotune::Autotuned;
use pool_autotune::adapter::Adapter;
use pool_autotune::tuner::TunerConfig;
use tokio::time::{Instant, sleep};

/// Connections that the rules start with, as the tuner does.
pub(crate) const START: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Policy {
    /// Of the sweep that the oracle is chosen from.
    Static(usize),
    /// A default, a formula, a published rule or, last but not least, the tuner.
    Contender(Contender),
    /// deadpool's default size, and a tuner that only reports.
    Recommend,
    /// deadpool's default size, without a gate.
    Raw,
}

impl Policy {
    pub(crate) const OURS: Self = Self::Contender(Contender::Ours);

    /// All that are no static sizes of a sweep.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let others = [Self::Recommend, Self::Raw];
        Contender::ALL
            .map(Self::Contender)
            .into_iter()
            .chain(others)
    }

    pub(crate) fn name(self) -> String {
        match (self, self.rule()) {
            (Self::Static(size), _) => format!("static {size}"),
            (Self::OURS, _) => "pool-autotune".to_owned(),
            (Self::Contender(Contender::Deadpool), Some(Rule::Static(size))) => {
                format!("deadpool default {size}")
            }
            (Self::Contender(Contender::Bb8Sqlx), Some(Rule::Static(size))) => {
                format!("bb8, sqlx default {size}")
            }
            (Self::Contender(Contender::Hikari), Some(Rule::Static(size))) => {
                format!("HikariCP formula {size}")
            }
            (Self::Contender(contender), _) => contender.name().to_owned(),
            (Self::Recommend, _) => "recommend mode".to_owned(),
            (Self::Raw, _) => format!("no gate, deadpool {}", default_size()),
        }
    }

    pub(crate) fn rule(self) -> Option<Rule> {
        match self {
            Self::Static(size) => Some(Rule::Static(size)),
            Self::Contender(contender) => contender.rule(cores()),
            Self::Recommend | Self::Raw => None,
        }
    }

    /// The size that it never leaves, if it is fixed.
    pub(crate) fn fixed(self) -> Option<usize> {
        match (self, self.rule()) {
            (_, Some(Rule::Static(size))) => Some(size),
            (Self::Recommend | Self::Raw, _) => Some(default_size()),
            _ => None,
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// deadpool's: two connections for each core.
pub(crate) fn default_size() -> usize {
    2 * cores()
}

/// Opens connections at once, and decides nothing.
pub(crate) fn still() -> TunerConfig {
    let mut config = TunerConfig::default();
    config.experiments = false;
    config.dial.per_second = 1e6;
    config.dial.burst = 1e6;
    config
}

/// What the callers tell a rule.
#[derive(Debug, Default)]
pub(crate) struct Seeing {
    pub(crate) done: AtomicU64,
    pub(crate) slow_waits: AtomicU64,
    pub(crate) timeouts: AtomicU64,
    pub(crate) moves: AtomicU64,
}

/// Plays a rule that is not the tuner's.
pub(crate) async fn follow<P: Adapter>(
    mut rule: Rule,
    pool: Autotuned<P>,
    max: usize,
    seeing: Arc<Seeing>,
) {
    const LOOKS: u32 = 10;
    let mut size = START;
    let read = |counter: &AtomicU64| counter.load(Relaxed);
    let mut before = (0, 0, 0);
    let mut looked = Instant::now();
    loop {
        let mut used = 0.0;
        for _ in 0..LOOKS {
            sleep(Duration::from_millis(25)).await;
            let now = pool.snapshot();
            used += now.in_use() as f64 / now.limit().max(1) as f64;
        }
        let now = (
            read(&seeing.done),
            read(&seeing.slow_waits),
            read(&seeing.timeouts),
        );
        let slow_waits = now.1 - before.1;
        let seen = Seen {
            utilisation: (used / f64::from(LOOKS)).min(1.0),
            slow_waits,
            slow: slow_waits * 20 > now.0 - before.0,
            timeouts: now.2 - before.2,
            completions: now.0 - before.0,
            seconds: looked.elapsed().as_secs_f64(),
        };
        (before, looked) = (now, Instant::now());
        let next = rule.next(size, max, &seen);
        if next != size {
            seeing.moves.fetch_add(1, Relaxed);
            size = next;
        }
        if pool.set_bounds(size..=size).is_err() {
            return;
        }
    }
}
