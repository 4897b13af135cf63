//! The constants of a tuner.

use std::time::Duration;

use super::{DialConfig, KneeConfig};

/// The constants of a [`Tuner`](super::Tuner).
///
/// The defaults serve. Each says where it comes from; *model* means the scenarios of
/// `benches/pools` (`cargo run --release -p overload-benches --bin pools`).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
#[cfg_attr(feature = "json", derive(serde::Deserialize, serde::Serialize))]
pub struct TunerConfig {
    /// A decision needs at least this long a window (unless there is a backlog). Defaults to 1 s:
    /// long against use times, short against the 3 s in which a step should be over.
    pub min_window: Duration,
    /// … and at least this many completions. Defaults to 50, which puts the standard error of a
    /// mean of exponential times at 14 %.
    pub min_completions: u64,
    /// With too few completions a window closes after this long. Defaults to 10 s: a pool of slow
    /// queries is looked at six times a minute.
    pub max_window: Duration,
    /// A wait longer than this is slow: a pool where one checkout in twenty waits as long is
    /// saturated. Defaults to 20 ms: below what callers notice in a request of 100 ms, and above
    /// what chance makes of a pool that is large enough (model).
    pub slow_wait: Duration,
    /// A pool with more than this part of its limit in use, and a line, is saturated. Defaults to
    /// 0.92: between two checkouts a connection is free for the time of a wake-up, so a full pool of
    /// quick queries never shows 1.
    pub full: f64,
    /// With a backlog, aim to work it off in this time. Defaults to 500 ms: a step of four to ten
    /// times the load is over within the 3 s that its P99 allows (model).
    pub drain_backlog_in: Duration,
    /// How long a pool that grew to work off a backlog must not be saturated before it gives back
    /// what the demand alone does not need. Defaults to 5 s: ten times the time a backlog is worked
    /// off in, so that bursts which come every few seconds find the connections of the last.
    pub give_back_after: Duration,
    /// Above this multiple of S0, a backlog is the database's doing and does not grow the pool at
    /// once. Defaults to 1.5: use times of a database below its knee scatter by less, those of one
    /// far above it at least double (model).
    pub inflated: f64,
    /// Shrink to the peak demand of this long. Defaults to 300 s, as the Kubernetes horizontal
    /// autoscaler does, for the same reason: traffic that just fell comes back.
    pub shrink_horizon: Duration,
    /// Time between two shrinks. Defaults to 60 s: a fifth of the horizon, so that a fall by two
    /// thirds takes as long as the horizon.
    pub shrink_every: Duration,
    /// Largest part of the target given up at once. Defaults to 0.2, as in the Vibur pool.
    pub shrink_step: f64,
    /// No shrink while the target is within this part above peak demand. Defaults to 0.15, less
    /// than one step, so that no step ends below the demand.
    pub dead_band: f64,
    /// Whether to try fewer connections, and to take growth back that does not pay. Defaults to
    /// `true`; always off in [`Mode::Recommend`](crate::Mode::Recommend).
    pub experiments: bool,
    /// The constants of the experiments.
    pub knee: KneeConfig,
    /// How fast connections are opened.
    pub dial: DialConfig,
}

impl Default for TunerConfig {
    fn default() -> Self {
        Self {
            min_window: Duration::from_secs(1),
            min_completions: 50,
            max_window: Duration::from_secs(10),
            slow_wait: Duration::from_millis(20),
            full: 0.92,
            drain_backlog_in: Duration::from_millis(500),
            give_back_after: Duration::from_secs(5),
            inflated: 1.5,
            shrink_horizon: Duration::from_secs(300),
            shrink_every: Duration::from_secs(60),
            shrink_step: 0.2,
            dead_band: 0.15,
            experiments: true,
            knee: KneeConfig::default(),
            dial: DialConfig::default(),
        }
    }
}
