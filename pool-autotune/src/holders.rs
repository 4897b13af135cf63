//! The checkouts that hold a connection, wait for a second one, or were never given back.

use std::panic::Location;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::task::Id;

use crate::sync::lock;
use crate::tuner::{Leak, NestedAcquire};

/// The checkouts that are out, and counts of those that came and went.
///
/// Each thread enters checkouts in a lane of its own as long as there are enough lanes, so its lock
/// is free unless a connection is given back from another thread at the same moment: entering and
/// leaving take it once each, for all that there is to record.
#[derive(Debug)]
pub(crate) struct Holders {
    lanes: Box<[Lane]>,
    /// Tasks that hold a connection and wait for another. Touched only by those.
    nested: Mutex<Vec<(Id, &'static Location<'static>)>>,
}

const LANES: usize = 32;

/// On a pair of cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane(Mutex<Checkouts>);

#[derive(Debug, Default)]
struct Checkouts {
    out: Vec<Option<Holder>>,
    free: Vec<u32>,
    counts: Counts,
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) arrivals: u64,
    pub(crate) completions: u64,
    pub(crate) use_ns: u64,
    pub(crate) use_us_squared: u64,
    /// Checkouts that have their connection. (Of one lane it may be negative.)
    in_hand: i64,
    /// Σ(time of each return) − Σ(time of each checkout), so that ∫`in_hand` dt up to t is this plus
    /// `in_hand`·t at any moment.
    balance_ns: i64,
}

impl Counts {
    #[inline]
    fn taken(&mut self, since: u64) {
        self.in_hand += 1;
        self.balance_ns = self.balance_ns.wrapping_sub(since as i64);
    }

    #[inline]
    fn returned(&mut self, used: Used) {
        let Used { since, ns, counts } = used;
        self.in_hand -= 1;
        self.balance_ns = self.balance_ns.wrapping_add((since + ns) as i64);
        if counts {
            self.completed(ns);
        }
    }

    /// ∫`in_hand` dt up to now, wrapping.
    pub(crate) fn busy_ns(&self, now: u64) -> i64 {
        let inside = self.in_hand.wrapping_mul(now as i64);
        self.balance_ns.wrapping_add(inside)
    }

    fn plus(self, other: Self) -> Self {
        Self {
            arrivals: self.arrivals + other.arrivals,
            completions: self.completions + other.completions,
            use_ns: self.use_ns.wrapping_add(other.use_ns),
            use_us_squared: self.use_us_squared.wrapping_add(other.use_us_squared),
            in_hand: self.in_hand + other.in_hand,
            balance_ns: self.balance_ns.wrapping_add(other.balance_ns),
        }
    }

    #[inline]
    fn completed(&mut self, ns: u64) {
        /// Longer use times count as this long in the variance, so that its sum cannot overflow.
        const LONGEST_US: u64 = 1 << 26;
        let us = (ns / 1_000).min(LONGEST_US);
        self.completions += 1;
        self.use_ns = self.use_ns.wrapping_add(ns);
        self.use_us_squared = self.use_us_squared.wrapping_add(us * us);
    }
}

/// A use that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    pub(crate) since: u64,
    /// For how long.
    pub(crate) ns: u64,
    /// Whether it says something of others.
    pub(crate) counts: bool,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    task: Option<Id>,
    call_site: &'static Location<'static>,
    /// As the clock of the pool has it.
    since: u64,
    /// Taken for good, and so no leak.
    kept: bool,
}

/// Where a checkout is kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Slot(u32);

/// Whether a checkout is counted as it enters, or was when it began to wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Arrival {
    Now,
    Before,
}

impl Holders {
    pub(crate) fn new() -> Self {
        Self {
            lanes: (0..LANES).map(|_| Lane::default()).collect(),
            nested: Mutex::default(),
        }
    }

    /// A checkout came that is not served at once.
    pub(crate) fn arrived(&self) {
        lock(&self.lanes[lane()].0).counts.arrivals += 1;
    }

    #[inline]
    pub(crate) fn enter(
        &self,
        call_site: &'static Location<'static>,
        since: u64,
        arrival: Arrival,
    ) -> Slot {
        let holder = Some(Holder {
            task: tokio::task::try_id(),
            call_site,
            since,
            kept: false,
        });
        let lane = lane();
        let mut checkouts = lock(&self.lanes[lane].0);
        checkouts.counts.arrivals += u64::from(arrival == Arrival::Now);
        checkouts.counts.taken(since);
        let index = match checkouts.free.pop() {
            Some(index) => {
                checkouts.out[index as usize] = holder;
                index
            }
            None => {
                checkouts.out.push(holder);
                (checkouts.out.len() - 1) as u32
            }
        };
        // As many as a gate holds fit.
        Slot(index * LANES as u32 + lane as u32)
    }

    /// A checkout is over, and its connection is back.
    #[inline]
    pub(crate) fn leave(&self, slot: Slot, used: Used) {
        let (mut checkouts, index) = self.at(slot);
        checkouts.out[index as usize] = None;
        checkouts.free.push(index);
        checkouts.counts.returned(used);
    }

    /// A checkout is over, and its connection is on its way back until [`returned`](Self::returned).
    pub(crate) fn part(&self, slot: Slot) {
        let (mut checkouts, index) = self.at(slot);
        checkouts.out[index as usize] = None;
        checkouts.free.push(index);
    }

    pub(crate) fn returned(&self, used: Used) {
        lock(&self.lanes[lane()].0).counts.returned(used);
    }

    #[inline]
    fn at(&self, Slot(slot): Slot) -> (MutexGuard<'_, Checkouts>, u32) {
        let lane = slot as usize % LANES;
        (lock(&self.lanes[lane].0), slot / LANES as u32)
    }

    /// The connection of this checkout is kept for good.
    pub(crate) fn keep(&self, slot: Slot) {
        let (mut checkouts, index) = self.at(slot);
        if let Some(holder) = &mut checkouts.out[index as usize] {
            holder.kept = true;
            // Its task may check out another without waiting for this one.
            holder.task = None;
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        let counts = self.lanes.iter().map(|lane| lock(&lane.0).counts);
        counts.fold(Counts::default(), Counts::plus)
    }

    /// Checkouts that have their connection.
    pub(crate) fn in_hand(&self) -> usize {
        self.counts().in_hand.try_into().unwrap_or(0)
    }

    /// Connections given back.
    pub(crate) fn completions(&self) -> u64 {
        self.counts().completions
    }

    fn each(&self, mut of: impl FnMut(&Holder)) {
        for lane in &self.lanes {
            lock(&lane.0).out.iter().flatten().for_each(&mut of);
        }
    }

    /// Whether this task holds one connection and does not wait for another yet: served before tasks
    /// that hold none, it gives back two the sooner. A task that works with many at once gets no more
    /// than its turn.
    pub(crate) fn is_nested(&self) -> bool {
        let Some(task) = tokio::task::try_id() else {
            return false;
        };
        let mut holds = 0;
        self.each(|holder| holds += usize::from(holder.task == Some(task)));
        holds == 1 && lock(&self.nested).iter().all(|&(other, _)| other != task)
    }

    /// This task is about to wait at `call_site`. The guard is for a task that holds a connection
    /// already; with it comes whether *all* of the `limit` connections are held by such tasks.
    pub(crate) fn wait(
        &self,
        call_site: &'static Location<'static>,
        limit: usize,
    ) -> Option<(NestedWait<'_>, Option<NestedAcquire>)> {
        let task = tokio::task::try_id()?;
        let mut holds = None;
        self.each(|holder| {
            if holder.task == Some(task) {
                holds.get_or_insert(holder.call_site);
            }
        });
        let holds = holds?;
        lock(&self.nested).push((task, call_site));
        let wait = NestedWait {
            holders: self,
            task,
        };
        let nested = lock(&self.nested);
        let (mut out, mut waiting) = (0, 0);
        self.each(|holder| {
            let waits = nested.iter().any(|&(task, _)| holder.task == Some(task));
            out += 1;
            waiting += usize::from(waits);
        });
        drop(nested);
        let deadlock = (waiting == out && out >= limit).then_some(NestedAcquire {
            holds,
            asks: call_site,
        });
        Some((wait, deadlock))
    }

    /// The connections that have been out for longer than `after`, up to now, and those kept for good.
    pub(crate) fn held(&self, now: u64, window: Duration, after: Duration) -> Held {
        let mut held = Held::default();
        let age = |holder: &Holder| Duration::from_nanos(now.saturating_sub(holder.since));
        self.each(|holder| {
            let age = age(holder);
            if age > after || holder.kept {
                held.count += 1;
                held.busy += age.min(window);
                if !holder.kept && held.oldest.is_none_or(|(oldest, _)| oldest < age) {
                    held.oldest = Some((age, holder.call_site));
                }
            }
        });
        if let Some((_, site)) = held.oldest {
            let is_there =
                |holder: &Holder| age(holder) > after && !holder.kept && holder.call_site == site;
            self.each(|holder| held.there += usize::from(is_there(holder)));
        }
        held
    }
}

/// The lane of this thread.
#[inline]
fn lane() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static LANE: usize = THREADS.fetch_add(1, Relaxed) % LANES;
    }
    // A thread that has lost its own at its end shares the first.
    LANE.try_with(|lane| *lane).unwrap_or(0)
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

#[cfg(test)]
#[path = "../tests/inside/holders.rs"]
mod tests;
