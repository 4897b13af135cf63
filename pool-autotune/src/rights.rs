//! What bounds a pool from outside: its part in the budget of a fleet, if it has one.

use std::time::Duration;

use tokio::time::Instant;

#[cfg(feature = "fleet")]
pub(crate) use crate::fleet::Right;
#[cfg(feature = "fleet")]
use crate::fleet::{BudgetSnapshot, Member};
use crate::tuner::{PoolWindow, Verdict};

/// A pool's part in the budget of a fleet, if it has one.
#[derive(Debug, Default)]
pub(crate) struct Rights {
    #[cfg(feature = "fleet")]
    member: Option<Member>,
}

#[cfg(feature = "fleet")]
impl Rights {
    pub(crate) fn new(member: Option<Member>) -> Self {
        Self { member }
    }

    /// Whether a connection may be opened only with a right to it.
    #[inline]
    pub(crate) fn is_bound(&self) -> bool {
        self.member.is_some()
    }

    /// Reports what the pool has and could use, and returns what it may have.
    pub(crate) fn follow(&self, need: usize, want: usize, open: impl FnOnce() -> usize) -> usize {
        self.member
            .as_ref()
            .map_or(usize::MAX, |member| member.follow(need, want, open))
    }

    /// Takes in what the pool did until now. Returns whether an experiment of the fleet runs.
    /// `acts`: whether the pool does what it is told.
    pub(crate) fn saw(&self, now: Instant, window: &PoolWindow, is_full: bool, acts: bool) -> bool {
        (self.member.as_ref()).is_some_and(|member| member.saw(now, window, is_full, acts))
    }

    /// How many of `limit` connections are let out.
    pub(crate) fn admits(&self, now: Instant, limit: usize) -> usize {
        self.member
            .as_ref()
            .map_or(limit, |member| member.admits(now, limit))
    }

    /// When that changes next, in an experiment.
    pub(crate) fn admits_until(&self, now: Instant) -> Option<Instant> {
        self.member.as_ref()?.admits_until(now)
    }

    /// Dials of this pool that have a right.
    pub(crate) fn dialing(&self) -> usize {
        self.member.as_ref().map_or(0, Member::dialing)
    }

    /// How many dials may begin now.
    pub(crate) fn may_dial(&self) -> usize {
        self.member.as_ref().map_or(usize::MAX, Member::may_dial)
    }

    /// Waits for the right to a dial, which has ended when it is dropped.
    pub(crate) async fn take(&self) -> Option<Right> {
        match &self.member {
            Some(member) => Some(member.take().await),
            None => None,
        }
    }

    /// The right to a dial if there is one now; `None` if not.
    pub(crate) fn try_take(&self) -> Option<Option<Right>> {
        match &self.member {
            Some(member) => member.try_take().map(Some),
            None => Some(None),
        }
    }

    pub(crate) fn opened_unasked(&self) {
        if let Some(member) = &self.member {
            member.opened_unasked();
        }
    }

    /// The server has no place for more connections.
    pub(crate) fn refused(&self) {
        if let Some(member) = &self.member {
            member.refused();
        }
    }

    /// How long a dial may take.
    pub(crate) fn dial_for(&self) -> Duration {
        self.member.as_ref().map_or(Duration::MAX, Member::dial_for)
    }

    /// Whether the fleet knows how many connections the database makes use of.
    pub(crate) fn is_at_knee(&self) -> bool {
        self.member.as_ref().is_some_and(Member::is_at_knee)
    }

    pub(crate) fn verdict(&self) -> Option<Verdict> {
        self.member.as_ref()?.verdict()
    }

    pub(crate) fn snapshot(&self) -> Option<BudgetSnapshot> {
        self.member.as_ref().map(Member::snapshot)
    }
}

/// There is none to have.
#[cfg(not(feature = "fleet"))]
#[derive(Debug)]
pub(crate) enum Right {}

#[cfg(not(feature = "fleet"))]
impl Rights {
    #[inline]
    pub(crate) fn is_bound(&self) -> bool {
        false
    }

    pub(crate) fn follow(&self, _: usize, _: usize, _: impl FnOnce() -> usize) -> usize {
        usize::MAX
    }

    pub(crate) fn saw(&self, _: Instant, _: &PoolWindow, _: bool, _: bool) -> bool {
        false
    }

    pub(crate) fn admits(&self, _: Instant, limit: usize) -> usize {
        limit
    }

    pub(crate) fn admits_until(&self, _: Instant) -> Option<Instant> {
        None
    }

    pub(crate) fn dialing(&self) -> usize {
        0
    }

    pub(crate) fn may_dial(&self) -> usize {
        usize::MAX
    }

    pub(crate) async fn take(&self) -> Option<Right> {
        None
    }

    pub(crate) fn try_take(&self) -> Option<Option<Right>> {
        Some(None)
    }

    pub(crate) fn opened_unasked(&self) {}

    pub(crate) fn refused(&self) {}

    pub(crate) fn dial_for(&self) -> Duration {
        Duration::MAX
    }

    pub(crate) fn is_at_knee(&self) -> bool {
        false
    }

    pub(crate) fn verdict(&self) -> Option<Verdict> {
        None
    }
}
