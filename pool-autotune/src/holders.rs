//! The checkouts that hold a connection, wait for a second one, or were never given back.

use std::panic::Location;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::Id;

use crate::tuner::{Leak, NestedAcquire};

/// The checkouts that are out, each in a slot of its own, so that two of them hardly ever touch the
/// same lock.
#[derive(Debug)]
pub(crate) struct Holders {
    slots: Box<[Mutex<Option<Holder>>]>,
    /// Where to look for a free slot first.
    next: AtomicUsize,
    /// Tasks that hold a connection and wait for another. Touched only by those.
    nested: Mutex<Vec<(Id, &'static Location<'static>)>>,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    task: Option<Id>,
    call_site: &'static Location<'static>,
    /// Microseconds since the epoch of the statistics.
    since_us: u64,
    /// Taken for good, and so no leak.
    kept: bool,
}

/// Where a checkout is kept. None if there was no free slot to be found at once.
pub(crate) type Slot = Option<usize>;

impl Holders {
    /// For at most `max` checkouts; half of the slots stay empty, so one is soon found.
    pub(crate) fn new(max: usize) -> Self {
        let slots = max.saturating_mul(2).clamp(2, 8192).next_power_of_two();
        Self {
            slots: (0..slots).map(|_| Mutex::default()).collect(),
            next: AtomicUsize::new(0),
            nested: Mutex::default(),
        }
    }

    /// `since_us`: microseconds since the epoch of the statistics.
    pub(crate) fn enter(&self, call_site: &'static Location<'static>, since_us: u64) -> Slot {
        let holder = Holder {
            task: tokio::task::try_id(),
            call_site,
            since_us,
            kept: false,
        };
        // A hint, no count: of two that read the same, one finds the slot taken.
        let start = self.next.load(Relaxed);
        let slot = (0..self.slots.len())
            .map(|step| start.wrapping_add(step) & (self.slots.len() - 1))
            .find(|&slot| match self.slots[slot].try_lock() {
                Ok(mut free) if free.is_none() => {
                    *free = Some(holder);
                    true
                }
                _ => false,
            })?;
        self.next.store(slot + 1, Relaxed);
        Some(slot)
    }

    pub(crate) fn leave(&self, slot: Slot) {
        if let Some(slot) = slot {
            *lock(&self.slots[slot]) = None;
        }
    }

    /// The connection of this checkout is kept for good.
    pub(crate) fn keep(&self, slot: Slot) {
        if let Some(slot) = slot
            && let Some(holder) = &mut *lock(&self.slots[slot])
        {
            holder.kept = true;
            // Its task may check out another without waiting for this one.
            holder.task = None;
        }
    }

    fn each(&self) -> impl Iterator<Item = Holder> {
        self.slots.iter().filter_map(|slot| *lock(slot))
    }

    /// Whether this task holds one connection and does not wait for another yet: served before tasks
    /// that hold none, it gives back two the sooner. A task that works with many at once gets no more
    /// than its turn.
    pub(crate) fn is_nested(&self) -> bool {
        let Some(task) = tokio::task::try_id() else {
            return false;
        };
        let holds = self.each().filter(|holder| holder.task == Some(task));
        holds.take(2).count() == 1 && lock(&self.nested).iter().all(|&(other, _)| other != task)
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

    /// The connections that have been out for longer than `after`, up to now, and those kept for good.
    pub(crate) fn held(&self, now_us: u64, window: Duration, after: Duration) -> Held {
        let mut held = Held::default();
        for holder in self.each() {
            let age = Duration::from_micros(now_us.saturating_sub(holder.since_us));
            if age > after || holder.kept {
                held.count += 1;
                held.busy += age.min(window);
                if !holder.kept && held.oldest.is_none_or(|(oldest, _)| oldest < age) {
                    held.oldest = Some((age, holder.call_site));
                }
            }
        }
        held.there = self
            .each()
            .filter(|holder| {
                let age = Duration::from_micros(now_us.saturating_sub(holder.since_us));
                age > after
                    && !holder.kept
                    && held
                        .oldest
                        .is_some_and(|(_, site)| holder.call_site == site)
            })
            .count();
        held
    }
}

/// Connections held for far longer than usual.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Held {
    pub(crate) count: usize,
    /// The time that they were out within the window, together.
    pub(crate) busy: Duration,
    oldest: Option<(Duration, &'static Location<'static>)>,
    /// How many of them are from the call site of the oldest.
    there: usize,
}

impl Held {
    pub(crate) fn leak(&self) -> Option<Leak> {
        let (held_for, call_site) = self.oldest?;
        Some(Leak {
            call_site,
            held_for,
            count: self.there.max(1),
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn here() -> &'static Location<'static> {
        #[track_caller]
        fn caller() -> &'static Location<'static> {
            Location::caller()
        }
        caller()
    }

    #[tokio::test]
    async fn a_checkout_is_kept_with_its_task_and_its_call_site_until_it_leaves() {
        let holders = Holders::new(2);
        let site = here();
        let task = tokio::spawn(async move {
            let slot = holders.enter(site, 123);
            assert!(slot.is_some());
            let held: Vec<Holder> = holders.each().collect();
            assert_eq!(held.len(), 1);
            assert_eq!(held[0].call_site, site);
            assert_eq!(held[0].task, tokio::task::try_id());
            assert!(held[0].task.is_some(), "inside of a task");
            assert_eq!(held[0].since_us, 123);
            holders.leave(slot);
            assert_eq!(holders.each().count(), 0);
        });
        task.await.expect("no panic");
    }

    #[test]
    fn as_many_are_kept_as_there_are_slots_and_no_slot_twice() {
        let holders = Holders::new(3);
        let site = here();
        let mut slots: Vec<Slot> = (0..8).map(|_| holders.enter(site, 0)).collect();
        assert_eq!(holders.enter(site, 0), None, "all eight are taken");
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), 8);
        holders.leave(slots[5]);
        assert_eq!(holders.enter(site, 0), slots[5]);
    }

    #[test]
    fn threads_that_come_and_go_never_share_a_slot() {
        let holders = Holders::new(4);
        let taken: [AtomicBool; 8] = Default::default();
        let site = here();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let slot = holders.enter(site, 0);
                        if let Some(slot) = slot {
                            assert!(!taken[slot].swap(true, Relaxed), "slot {slot}");
                            taken[slot].store(false, Relaxed);
                        }
                        holders.leave(slot);
                    }
                });
            }
        });
        assert_eq!(holders.each().count(), 0);
        assert!(holders.enter(site, 0).is_some());
    }
}
