//! Who has a connection, who waits for a second one, and who forgot to give one back.

use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::panic::Location;
use std::ptr;
use std::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::task::Id;

use crate::tuner::{Leak, NestedAcquire};

/// The checkouts that are out, each in a slot of its own.
#[derive(Debug)]
pub(crate) struct Holders {
    slots: Box<[Cell]>,
    next: AtomicUsize,
    sites: Sites,
    /// Tasks that hold a connection and wait for another. Touched only by those.
    nested: Mutex<Vec<(Task, &'static Location<'static>)>>,
}

/// A checkout that is out, in two words without a lock.
///
/// # Memory ordering
///
/// `held` is the one that counts: a cell is taken by exchanging its zero, and free when it is zero
/// again. `task` is cleared before that and set after, so whoever reads `held`, `task`, and then the
/// same `held` again has read the task of that holder, or none.
#[derive(Debug, Default)]
struct Cell {
    /// Microseconds since the epoch of the statistics, shifted by `Sites::BITS`, and the call site;
    /// zero if free.
    held: AtomicU64,
    /// Zero for none.
    task: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    task: Option<Task>,
    call_site: &'static Location<'static>,
    since_us: u64,
}

/// Where a checkout is kept. None if there was no free slot to be found at once.
pub(crate) type Slot = Option<usize>;

impl Holders {
    /// For at most `max` checkouts; half of the slots stay empty, so one is soon found.
    pub(crate) fn new(max: usize) -> Self {
        let slots = max.saturating_mul(2).clamp(2, 8192).next_power_of_two();
        Self {
            slots: (0..slots).map(|_| Cell::default()).collect(),
            next: AtomicUsize::new(0),
            sites: Sites::default(),
            nested: Mutex::default(),
        }
    }

    /// `since_us`: microseconds since the epoch of the statistics.
    pub(crate) fn enter(&self, call_site: &'static Location<'static>, since_us: u64) -> Slot {
        let held = since_us << Sites::BITS | self.sites.index(call_site)?;
        // A hint, no count: of two that read the same, one finds the cell taken.
        let start = self.next.load(Relaxed);
        let slot = (0..self.slots.len())
            .map(|step| start.wrapping_add(step) & (self.slots.len() - 1))
            .find(|&slot| {
                let cell = &self.slots[slot].held;
                cell.load(Relaxed) == 0 && cell.compare_exchange(0, held, Acquire, Relaxed).is_ok()
            })?;
        self.next.store(slot + 1, Relaxed);
        if let Some(task) = Task::current() {
            self.slots[slot].task.store(task.0, Release);
        }
        Some(slot)
    }

    pub(crate) fn leave(&self, slot: Slot) {
        if let Some(slot) = slot {
            self.slots[slot].task.store(0, Relaxed);
            self.slots[slot].held.store(0, Release);
        }
    }

    fn each(&self) -> impl Iterator<Item = Holder> {
        self.slots.iter().filter_map(|cell| {
            let held = cell.held.load(Acquire);
            let task = cell.task.load(Acquire);
            if cell.held.load(Relaxed) != held {
                return None;
            }
            Some(Holder {
                // None for a free cell.
                call_site: self.sites.get(held)?,
                task: (task != 0).then_some(Task(task)),
                since_us: held >> Sites::BITS,
            })
        })
    }

    /// This task is about to wait at `call_site`. The guard is for a task that holds a connection
    /// already; with it comes whether *all* of the `limit` connections are held by such tasks.
    pub(crate) fn wait(
        &self,
        call_site: &'static Location<'static>,
        limit: usize,
    ) -> Option<(NestedWait<'_>, Option<NestedAcquire>)> {
        let task = Task::current()?;
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

    /// Connections held by tasks that wait for another one.
    pub(crate) fn nested(&self) -> usize {
        let nested = lock(&self.nested);
        if nested.is_empty() {
            return 0;
        }
        let waits = |task: Task| nested.iter().any(|&(waiting, _)| waiting == task);
        let holders = self.each().filter_map(|holder| holder.task);
        holders.filter(|&task| waits(task)).count()
    }

    /// The call site with the connection that has been out longest, if that is longer than `usual`
    /// explains.
    pub(crate) fn leak(&self, now_us: u64, usual: Option<Duration>) -> Option<Leak> {
        /// No use time below this is a leak.
        const LEAST: Duration = Duration::from_secs(30);
        /// Nor one below this many times the usual.
        const TIMES: u32 = 20;
        let patience = usual.map_or(LEAST, |usual| LEAST.max(usual.saturating_mul(TIMES)));
        let held_for =
            |holder: &Holder| Duration::from_micros(now_us.saturating_sub(holder.since_us));
        let overdue = |holder: &Holder| held_for(holder) > patience;
        let oldest = self
            .each()
            .filter(overdue)
            .min_by_key(|holder| holder.since_us)?;
        let from_there = |holder: &Holder| overdue(holder) && holder.call_site == oldest.call_site;
        Some(Leak {
            call_site: oldest.call_site,
            held_for: held_for(&oldest),
            count: self.each().filter(from_there).count().max(1),
        })
    }
}

/// A task that holds a connection is waiting for another.
#[derive(Debug)]
pub(crate) struct NestedWait<'a> {
    holders: &'a Holders,
    task: Task,
}

impl Drop for NestedWait<'_> {
    fn drop(&mut self) {
        let mut nested = lock(&self.holders.nested);
        if let Some(index) = nested.iter().position(|&(task, _)| task == self.task) {
            nested.swap_remove(index);
        }
    }
}

/// The number of a task: what is in an [`Id`], which says so only to a hasher.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Task(u64);

impl Task {
    fn current() -> Option<Self> {
        #[derive(Default)]
        struct Number(u64);

        impl Hasher for Number {
            fn write_u64(&mut self, number: u64) {
                self.0 = number;
            }

            fn write(&mut self, bytes: &[u8]) {
                let digits = bytes.iter().map(|&byte| u64::from(byte));
                self.0 = digits.fold(self.0, |number, digit| number << 8 | digit);
            }

            fn finish(&self) -> u64 {
                self.0
            }
        }

        let id: Id = tokio::task::try_id()?;
        Some(Self(BuildHasherDefault::<Number>::default().hash_one(id)))
    }
}

/// Call sites, each at an index that stays its own.
#[derive(Debug)]
struct Sites([OnceLock<&'static Location<'static>>; Self::MOST]);

impl Default for Sites {
    fn default() -> Self {
        Self([const { OnceLock::new() }; Self::MOST])
    }
}

impl Sites {
    const BITS: u32 = 8;
    /// Checkouts from further call sites are not kept.
    const MOST: usize = (1 << Self::BITS) - 1;

    /// Its index, from 1 on.
    fn index(&self, site: &'static Location<'static>) -> Option<u64> {
        let start = ptr::from_ref(site).addr() / align_of::<Location<'_>>();
        (0..Self::MOST)
            .map(|step| start.wrapping_add(step) % Self::MOST)
            .find(|&index| {
                let there = self.0[index].get_or_init(|| site);
                ptr::eq(*there, site)
            })
            .map(|index| index as u64 + 1)
    }

    /// The site in the low bits of a word, if there is one.
    fn get(&self, word: u64) -> Option<&'static Location<'static>> {
        let index = (word & Self::MOST as u64) as usize;
        self.0.get(index.checked_sub(1)?)?.get().copied()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that could panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
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
            assert_eq!(held[0].task, Task::current());
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
        let site = here();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let slot = holders.enter(site, 0);
                        assert!(slot.is_some(), "two slots for each");
                        holders.leave(slot);
                    }
                });
            }
        });
        assert_eq!(holders.each().count(), 0);
    }
}
