//! The ways into a gate, and out of it.

use std::time::Duration;

#[cfg(not(loom))]
use super::Partition;
#[cfg(not(loom))]
use super::acquire::Enter;
use super::{
    Acquire, Ask, Claim, Entered, Gate, GateSnapshot, Permit, Priority, Refused, RefusedReason,
};
#[cfg(not(loom))]
use crate::sync::lock;

impl Gate {
    /// Enters now or not at all.
    ///
    /// # Errors
    ///
    /// [`RefusedReason::Full`] if no permit is free or others wait for one,
    /// [`RefusedReason::Closed`] if the gate is closed.
    pub fn try_acquire(&self) -> Result<Permit, Refused> {
        self.acquire_now(Claim::ONE)
    }

    /// Enters now or not at all, past waiters that matter less. Otherwise as
    /// [`try_acquire`](Self::try_acquire).
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire).
    pub fn try_acquire_as(&self, priority: Priority) -> Result<Permit, Refused> {
        self.try_acquire_with(Ask::new().priority(priority))
    }

    /// Enters now or not at all, as `ask` says; how long it might wait is not looked at. Otherwise
    /// as [`try_acquire_as`](Self::try_acquire_as).
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire).
    pub fn try_acquire_with(&self, ask: Ask) -> Result<Permit, Refused> {
        self.acquire_now(ask.claim())
    }

    #[inline(always)]
    fn acquire_now(&self, claim: Claim) -> Result<Permit, Refused> {
        match self.shared.try_enter(claim) {
            Ok(word) => Ok(Permit::new(self.clone(), GateSnapshot(word), claim)),
            Err(word) => Err(Refused::now(word, RefusedReason::Full)),
        }
    }

    /// Enters now or not at all, for a caller that holds the gate itself and returns what it got to
    /// [`exit`](Self::exit). `None` where [`try_acquire_with`](Self::try_acquire_with) would have refused.
    #[inline]
    #[must_use = "dropping it leaves the request inside: return it with `exit`"]
    pub fn try_enter(&self, ask: Ask) -> Option<Entered> {
        let claim = ask.claim();
        let entered = self.shared.try_enter(claim).ok()?;
        Some(Entered::new(GateSnapshot(entered), claim))
    }

    /// Returns a permit without a handle.
    #[inline]
    pub fn exit(&self, entered: Entered) {
        let cost = entered.cost();
        if cost > 0 {
            self.shared.leave(entered.partition(), cost);
        }
    }

    /// Enters, waiting in line for at most the gate's own `max_wait`.
    ///
    /// # Errors
    ///
    /// The future returns [`RefusedReason::QueueFull`], [`RefusedReason::WaitTimeout`] or
    /// [`RefusedReason::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives back the place in line, or the permit that was on its way.
    ///
    /// # Panics
    ///
    /// Waiting with a bound needs tokio's timer: polling the future outside a tokio runtime
    /// panics when it has to wait.
    pub fn acquire(&self) -> Acquire {
        self.acquire_with(Ask::new())
    }

    /// Enters, waiting in line for at most `max_wait`. Otherwise as [`acquire`](Self::acquire).
    pub fn acquire_within(&self, max_wait: Duration) -> Acquire {
        self.acquire_with(Ask::new().max_wait(max_wait))
    }

    /// Enters as `ask` says. Otherwise as [`acquire`](Self::acquire), but that a waiter may also be
    /// told [`RefusedReason::Overloaded`] or [`RefusedReason::Displaced`].
    pub fn acquire_with(&self, ask: Ask) -> Acquire {
        Acquire::new(self.clone(), ask)
    }

    /// Enters whatever the limit says, and returns what [`try_acquire`](Self::try_acquire) would
    /// have returned too.
    ///
    /// For work that must never be refused but has to be counted. The surplus is a debt like that
    /// of a lowered limit. Beyond [`MAX_LIMIT`](Self::MAX_LIMIT) requests inside, the permit is not
    /// counted.
    pub fn acquire_anyway(&self) -> (Permit, Result<(), Refused>) {
        let refusing = match self.shared.try_enter(Claim::ONE) {
            Ok(word) => {
                let permit = Permit::new(self.clone(), GateSnapshot(word), Claim::ONE);
                return (permit, Ok(()));
            }
            Err(word) => word,
        };
        let permit = match self.shared.word.enter() {
            Ok(word) => Permit::new(self.clone(), GateSnapshot(word), Claim::ONE),
            Err(word) => Permit::uncounted(self.clone(), GateSnapshot(word)),
        };
        (permit, Err(Refused::now(refusing, RefusedReason::Full)))
    }

    /// Enters like [`try_acquire_with`](Self::try_acquire_with), for an owner of the gate that returns
    /// the permit itself with [`leave`](Self::leave) and so needs no handle for each.
    #[cfg(not(loom))]
    #[inline]
    pub(crate) fn enter(&self, claim: Claim) -> Result<GateSnapshot, Refused> {
        let entered = self.shared.try_enter(claim);
        let entered = entered.map(GateSnapshot);
        entered.map_err(|word| Refused::now(word, RefusedReason::Full))
    }

    /// As [`acquire_with`](Self::acquire_with), for an owner that returns the permit itself.
    #[cfg(not(loom))]
    pub(crate) fn enter_with(&self, ask: Ask) -> Enter {
        Enter::new(self.clone(), ask)
    }

    /// Refuses a request that found no permit and may not wait for one either.
    #[cfg(all(feature = "layer", not(loom)))]
    pub(crate) fn turn_away(&self, claim: Claim) -> Option<Refused> {
        let word = self.shared.word.load();
        let longest = self.shared.longest(word);
        let is_full = || {
            let room = lock(&self.shared.room);
            room.queue.len() >= longest && !room.queue.may_displace(claim.line())
        };
        let no_place = longest == 0 || word.queued() >= longest && is_full();
        (no_place || word.is_closed()).then(|| Refused::now(word, RefusedReason::QueueFull))
    }

    /// How many permits the waiters want that a request would wait behind; `None` if it would not
    /// have to wait.
    #[cfg(not(loom))]
    pub(crate) fn ahead_of(&self, claim: Claim) -> Option<usize> {
        let shared = &self.shared;
        let word = shared.word.load();
        let has_room = word.has_room(shared.need(claim));
        if word.queued() == 0 {
            return (!has_room).then_some(0);
        }
        let room = lock(&shared.room);
        let first = room.queue.first_class();
        if has_room && first.is_none_or(|first| first < claim.priority()) {
            return None;
        }
        Some(room.queue.ahead_of(claim.line(), word, &shared.partitions))
    }

    /// Returns what [`enter`](Self::enter) and its kin gave.
    #[cfg(not(loom))]
    #[inline]
    pub(crate) fn leave(&self, partition: Partition, cost: usize) {
        self.shared.leave(partition, cost);
    }
}
