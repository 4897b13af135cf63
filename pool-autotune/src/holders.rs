//! Who has a connection, who waits for a second one, and who forgot to give one back.

use std::panic::Location;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::Id;
use tokio::time::Instant;

use crate::tuner::{Leak, NestedAcquire};

/// The checkouts that are out, each in a slot of its own, so that two of them hardly ever touch the
/// same lock.
#[derive(Debug)]
pub(crate) struct Holders {
    slots: Box<[Mutex<Option<Holder>>]>,
    next: AtomicUsize,
    /// Tasks that hold a connection and wait for another. Touched only by those.
    nested: Mutex<Vec<(Id, &'static Location<'static>)>>,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    task: Option<Id>,
    call_site: &'static Location<'static>,
    since: Instant,
}

/// Where a checkout is kept. None if there was no free slot to be found at once.
pub(crate) type Slot = Option<usize>;

impl Holders {
    /// For at most `max` checkouts; half of the slots stay empty, so one is soon found.
    pub(crate) fn new(max: usize) -> Self {
        let slots = max.saturating_mul(2).clamp(2, 8192);
        Self {
            slots: (0..slots).map(|_| Mutex::default()).collect(),
            next: AtomicUsize::new(0),
            nested: Mutex::default(),
        }
    }

    pub(crate) fn enter(&self, call_site: &'static Location<'static>, since: Instant) -> Slot {
        let holder = Holder {
            task: tokio::task::try_id(),
            call_site,
            since,
        };
        let start = self.next.fetch_add(1, Relaxed);
        (0..self.slots.len())
            .map(|step| (start.wrapping_add(step)) % self.slots.len())
            .find(|&slot| match self.slots[slot].try_lock() {
                Ok(mut free) if free.is_none() => {
                    *free = Some(holder);
                    true
                }
                _ => false,
            })
    }

    pub(crate) fn leave(&self, slot: Slot) {
        if let Some(slot) = slot {
            *lock(&self.slots[slot]) = None;
        }
    }

    fn each(&self) -> impl Iterator<Item = Holder> {
        self.slots.iter().filter_map(|slot| *lock(slot))
    }

    /// This task is about to wait at `call_site`. The guard is for a task that holds a connection
    /// already; with it comes whether *all* of the `limit` connections are held by such tasks.
    pub(crate) fn wait(
        &self,
        call_site: &'static Location<'static>,
        limit: usize,
    ) -> Option<(NestedWait<'_>, Option<NestedAcquire>)> {
        let task = tokio::task::try_id()?;
        let holds = self
            .each()
            .find(|holder| holder.task == Some(task))?
            .call_site;
        lock(&self.nested).push((task, call_site));
        let wait = NestedWait {
            holders: self,
            task,
        };
        let nested = lock(&self.nested);
        let mut out = 0;
        let all = self.each().all(|holder| {
            out += 1;
            nested.iter().any(|&(task, _)| holder.task == Some(task))
        });
        drop(nested);
        let deadlock = (all && out >= limit).then_some(NestedAcquire {
            holds,
            asks: call_site,
        });
        Some((wait, deadlock))
    }

    /// The call site with the connection that has been out longest, if that is longer than `usual`
    /// explains.
    pub(crate) fn leak(&self, now: Instant, usual: Option<Duration>) -> Option<Leak> {
        /// No use time below this is a leak.
        const LEAST: Duration = Duration::from_secs(30);
        /// Nor one below this many times the usual.
        const TIMES: u32 = 20;
        let patience = usual.map_or(LEAST, |usual| LEAST.max(usual.saturating_mul(TIMES)));
        let overdue = |holder: &Holder| now.saturating_duration_since(holder.since) > patience;
        let oldest = self
            .each()
            .filter(overdue)
            .min_by_key(|holder| holder.since)?;
        let from_there = |holder: &Holder| overdue(holder) && holder.call_site == oldest.call_site;
        Some(Leak {
            call_site: oldest.call_site,
            held_for: now.saturating_duration_since(oldest.since),
            count: self.each().filter(from_there).count().max(1),
        })
    }
}

/// A task that holds a connection is waiting for another.
#[derive(Debug)]
pub(crate) struct NestedWait<'a> {
    holders: &'a Holders,
    task: Id,
}

impl Drop for NestedWait<'_> {
    fn drop(&mut self) {
        let mut nested = lock(&self.holders.nested);
        if let Some(index) = nested.iter().position(|&(task, _)| task == self.task) {
            nested.swap_remove(index);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that could panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
