use std::time::Duration;

use super::BudgetError;
use crate::Mode;

/// The state of a [`Budget`](super::Budget) at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetSnapshot {
    pub(super) mode: Mode,
    pub(super) counts: Counts,
    pub(super) granted: usize,
    pub(super) bound: usize,
    pub(super) open: usize,
    pub(super) need: usize,
    pub(super) want: usize,
    pub(super) lease_left: Option<Duration>,
    pub(super) error: Option<BudgetError>,
}

/// What the last reply said, and what was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Counts {
    pub(super) total: usize,
    pub(super) reserve: usize,
    pub(super) members: usize,
    pub(super) counted: usize,
    pub(super) knee: Option<usize>,
    /// Without a store.
    pub(super) granted: usize,
    pub(super) is_settling: bool,
    pub(super) denied: u64,
    pub(super) floor_hits: u64,
    pub(super) store_errors: u64,
}

impl BudgetSnapshot {
    /// Whether the budget acts or only reports.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Processes that share the total.
    #[must_use]
    pub fn members(&self) -> usize {
        self.counts.members
    }

    /// Connections that all of them may have together, with those kept for processes that join.
    #[must_use]
    pub fn total(&self) -> usize {
        self.counts.total
    }

    /// Connections that are kept for processes that join.
    #[must_use]
    pub fn reserve(&self) -> usize {
        self.counts.reserve
    }

    /// Connections that are counted for all processes.
    #[must_use]
    pub fn counted(&self) -> usize {
        self.counts.counted
    }

    /// The most connections that the database makes use of, with those that beat, if the fleet found it by
    /// experiment: see [the module docs](super#the-knee). Shares are made of no more.
    #[must_use]
    pub fn knee(&self) -> Option<usize> {
        self.counts.knee
    }

    /// Connections that this process may have, with the one that beats.
    #[must_use]
    pub fn granted(&self) -> usize {
        self.granted
    }

    /// Connections that this process has open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open
    }

    /// The most sessions of this process that the server may show: those that are open, being opened, or
    /// closed and not seen to be gone.
    #[must_use]
    pub fn bound(&self) -> usize {
        self.bound
    }

    /// Connections that this process uses or waits for.
    #[must_use]
    pub fn need(&self) -> usize {
        self.need
    }

    /// Connections that this process would have if there were enough.
    #[must_use]
    pub fn want(&self) -> usize {
        self.want
    }

    /// For how long the grant holds if no beat comes through. `None` without a grant.
    #[must_use]
    pub fn lease_left(&self) -> Option<Duration> {
        self.lease_left
    }

    /// Whether the server is new, and gives no rights until every process with some has registered or lost them.
    #[must_use]
    pub fn is_settling(&self) -> bool {
        self.counts.is_settling
    }

    /// Dials that had to wait for a right.
    #[must_use]
    pub fn denied(&self) -> u64 {
        self.counts.denied
    }

    /// Beats that were granted no more than the floor, while more was wanted.
    #[must_use]
    pub fn floor_hits(&self) -> u64 {
        self.counts.floor_hits
    }

    /// Beats that failed.
    #[must_use]
    pub fn store_errors(&self) -> u64 {
        self.counts.store_errors
    }

    /// What is wrong with the budget, if anything is.
    #[must_use]
    pub fn error(&self) -> Option<&BudgetError> {
        self.error.as_ref()
    }
}
