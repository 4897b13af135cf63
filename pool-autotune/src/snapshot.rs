use std::sync::Arc;
use std::time::Duration;

use crate::Mode;

/// The state of an [`Autotuned`](crate::Autotuned) pool at one moment. Times and rates are over
/// the last five to ten seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolSnapshot {
    pub(crate) name: Arc<str>,
    pub(crate) mode: Mode,
    pub(crate) target: usize,
    pub(crate) limit: usize,
    pub(crate) size: usize,
    pub(crate) in_use: usize,
    /// Of these, connections held for far longer than usual, which come on top of the target.
    pub(crate) held: usize,
    pub(crate) pending: usize,
    pub(crate) arrival_rate: f64,
    pub(crate) throughput: f64,
    pub(crate) wait_mean: Duration,
    pub(crate) wait_p95: Duration,
    pub(crate) use_mean: Option<Duration>,
    pub(crate) dial_error: Option<Arc<str>>,
    #[cfg(feature = "fleet")]
    pub(crate) budget: Option<crate::fleet::BudgetSnapshot>,
}

impl PoolSnapshot {
    /// The name of the pool.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the tuner acts or only reports.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Connections the tuner wants there to be.
    #[must_use]
    pub fn target(&self) -> usize {
        self.target
    }

    /// Connections allowed out now: the target, or less while connections are still being opened.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Connections that exist.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Checkouts that have a connection, or are having one opened.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// Checkouts that wait in line.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Checkouts asked for per second.
    #[must_use]
    pub fn arrival_rate(&self) -> f64 {
        self.arrival_rate
    }

    /// Checkouts returned per second.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        self.throughput
    }

    /// Mean wait time of all checkouts, including those that did not have to wait.
    #[must_use]
    pub fn wait_mean(&self) -> Duration {
        self.wait_mean
    }

    /// 95th percentile of wait times, to within 25 %.
    #[must_use]
    pub fn wait_p95(&self) -> Duration {
        self.wait_p95
    }

    /// Why the last connection did not open, until one does.
    #[must_use]
    pub fn dial_error(&self) -> Option<&str> {
        self.dial_error.as_deref()
    }

    /// The state of the budget that the pool shares with a fleet, if it does.
    #[cfg(feature = "fleet")]
    #[must_use]
    pub fn budget(&self) -> Option<&crate::fleet::BudgetSnapshot> {
        self.budget.as_ref()
    }

    /// Mean use time of the checkouts returned, if there were any.
    #[must_use]
    pub fn use_mean(&self) -> Option<Duration> {
        self.use_mean
    }
}
