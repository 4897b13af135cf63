use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use super::Elasticity;

/// One decision of a [`Tuner`](super::Tuner), with what it was based on.
///
/// Its [`Display`](fmt::Display) is one line for a log or a page.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub(super) at: Instant,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) reason: Reason,
    pub(super) inputs: Inputs,
}

impl Decision {
    /// When it was made.
    #[must_use]
    pub fn at(&self) -> Instant {
        self.at
    }

    /// The target before.
    #[must_use]
    pub fn from(&self) -> usize {
        self.from
    }

    /// The target after.
    #[must_use]
    pub fn to(&self) -> usize {
        self.to
    }

    #[cfg(any(feature = "metrics", feature = "otel"))]
    pub(crate) fn direction(&self) -> &'static str {
        if self.to > self.from { "up" } else { "down" }
    }

    /// Why.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// What was seen in the window it was made on; all zero when it was not made on one.
    #[must_use]
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// Whether it moved the target.
    #[must_use]
    pub fn is_resize(&self) -> bool {
        self.from != self.to
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            from,
            to,
            reason,
            inputs,
            ..
        } = self;
        match from.cmp(to) {
            std::cmp::Ordering::Less => write!(f, "grow {from} -> {to}: {reason}")?,
            std::cmp::Ordering::Equal => write!(f, "keep {to}: {reason}")?,
            std::cmp::Ordering::Greater => write!(f, "shrink {from} -> {to}: {reason}")?,
        }
        if matches!(
            reason,
            Reason::Bounds | Reason::Failover | Reason::Gathering
        ) {
            return Ok(());
        }
        write!(f, " ({inputs})")
    }
}

/// Why a [`Decision`] is what it is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// More checkouts wait than there are connections, and the database is not slower than usual.
    Backlog,
    /// Checkouts wait longer than it takes to open a connection, or than 25 ms, or give up, and more
    /// are allowed.
    Starving,
    /// The pool is saturated, and demand is above the target.
    Saturated,
    /// The pool is saturated, more wait than demand explains, and a larger pool is on trial.
    Trial,
    /// The growth on trial pays in throughput, and the pool may go on growing.
    Paid,
    /// A part of the growth on trial pays; the rest was taken back.
    Overshot,
    /// The growth on trial did not pay, and was taken back.
    NoGain,
    /// The gate is held lower for two of four seconds, to see what the last part is worth.
    Probing,
    /// The last part earned nothing.
    Useless,
    /// The last part earns its keep: the database can do more than before.
    Recovered,
    /// The pool is saturated, and the database serves no more with more connections.
    AtKnee,
    /// The target is above the peak demand of the last minutes.
    Surplus,
    /// The backlog that the pool grew to work off is gone, and demand alone needs fewer.
    Drained,
    /// The bounds were changed.
    Bounds,
    /// The server changed, and all connections with it.
    Failover,
    /// The target fits.
    Steady,
    /// The pool is saturated and needs more connections than its bounds allow.
    AtMaximum,
    /// The target moved too recently to move again.
    Settling,
    /// Too little was seen yet to decide on.
    Gathering,
}

impl Reason {
    /// A short name, for labels: `backlog`, `saturated`, …
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backlog => "backlog",
            Self::Starving => "starving",
            Self::Saturated => "saturated",
            Self::Trial => "trial",
            Self::Paid => "paid",
            Self::Overshot => "overshot",
            Self::NoGain => "no_gain",
            Self::Probing => "probing",
            Self::Useless => "useless",
            Self::Recovered => "recovered",
            Self::AtKnee => "at_knee",
            Self::Surplus => "surplus",
            Self::Drained => "drained",
            Self::Bounds => "bounds",
            Self::Failover => "failover",
            Self::Steady => "steady",
            Self::AtMaximum => "at_maximum",
            Self::Settling => "settling",
            Self::Gathering => "gathering",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backlog => "more wait than there are connections",
            Self::Starving => "checkouts wait, and more connections are allowed",
            Self::Saturated => "saturated",
            Self::Trial => "saturated; trying whether more connections earn more",
            Self::Paid => "the growth pays",
            Self::Overshot => "a part of the growth pays",
            Self::NoGain => "the growth did not pay",
            Self::Probing => "trying whether fewer connections earn as much",
            Self::Useless => "fewer connections earn as much",
            Self::Recovered => "the last connections earn their keep again",
            Self::AtKnee => {
                "saturated at the knee: the database serves no more with more connections"
            }
            Self::Surplus => "more than the demand of the last minutes",
            Self::Drained => "the backlog is worked off",
            Self::Bounds => "the bounds were changed",
            Self::Failover => "the server changed",
            Self::Steady => "steady",
            Self::AtMaximum => "saturated at the configured maximum",
            Self::Settling => "the last change has to show its effect first",
            Self::Gathering => "not enough seen yet",
        })
    }
}

/// What a [`Decision`] was based on.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
#[cfg_attr(feature = "json", derive(serde::Serialize))]
pub struct Inputs {
    /// λ: checkouts asked for per second.
    pub arrival_rate: f64,
    /// X: checkouts returned per second.
    pub throughput: f64,
    /// W: mean wait time, in seconds.
    pub mean_wait_time: f64,
    /// S: mean use time, in seconds.
    pub mean_use_time: Option<f64>,
    /// S0: mean use time when not saturated, in seconds.
    pub base_use_time: Option<f64>,
    /// c²: squared coefficient of variation of use times.
    pub use_time_variation: f64,
    /// U: part of the limit in use, 0 to 1.
    pub utilisation: f64,
    /// Q: mean number of waiting checkouts.
    pub mean_queue: f64,
    /// Checkouts waiting at the moment of the decision.
    pub queued: usize,
    /// The limit in force at that moment.
    pub limit: usize,
    /// Checkouts that gave up waiting.
    pub timeouts: u64,
    /// Whether the pool was saturated.
    pub saturated: bool,
    /// D: connections that the demand needs, if a use time is known.
    pub demand: Option<usize>,
    /// K: the most connections worth having, if an experiment found it.
    pub knee: Option<usize>,
    /// ε, of the experiment that led to the decision.
    pub elasticity: Option<Elasticity>,
}

impl fmt::Display for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "arrivals {:.0}/s, returns {:.0}/s, wait {:.1?}, use {}, base {}, in use {:.0} %, \
             queue {:.1}, demand {}",
            self.arrival_rate,
            self.throughput,
            Duration::from_secs_f64(self.mean_wait_time),
            Time(self.mean_use_time),
            Time(self.base_use_time),
            self.utilisation * 100.0,
            self.mean_queue,
            Count(self.demand),
        )?;
        if let Some(knee) = self.knee {
            write!(f, ", knee {knee}")?;
        }
        if let Some(seen) = self.elasticity {
            write!(f, ", elasticity {:.2} ± {:.2}", seen.mean, seen.error)?;
        }
        Ok(())
    }
}

struct Time(Option<f64>);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(seconds) => write!(f, "{:.1?}", Duration::from_secs_f64(seconds)),
            None => f.write_str("unknown"),
        }
    }
}

struct Count(Option<usize>);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(count) => count.fmt(f),
            None => f.write_str("unknown"),
        }
    }
}
