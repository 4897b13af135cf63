//! What the handles of a gate share: the word, the waiters, and which of them is admitted next.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    task::Waker,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    Claim, Codel, GateConfig, MAX, Partition, Priority,
    partition::Partitions,
    queue::Queue,
    word::{AtomicWord, Need, Word},
};
use crate::sync::{Mutex, lock};

pub(super) struct Shared {
    pub(super) word: AtomicWord,
    /// How many may wait; [`AS_THE_LIMIT`] follows the limit in force. Outside the lock, for
    /// requests that are refused.
    pub(super) max_queue: AtomicUsize,
    /// Permits for the highest class alone.
    pub(super) reserved: usize,
    /// Permits of the limit that are out for good, so that no request can wait for them.
    pub(super) held: AtomicUsize,
    pub(super) partitions: Partitions,
    /// Locked only by waiters, and by a permit that is returned while one waits.
    pub(super) room: Mutex<Room>,
    /// Notified when a closed gate is empty or opens again.
    pub(super) emptied: Notify,
}

pub(super) struct Room {
    pub(super) queue: Queue,
    pub(super) max_wait: Duration,
    pub(super) codel: Option<Codel>,
}

impl Shared {
    pub(super) fn new(config: &GateConfig) -> Self {
        Self {
            word: AtomicWord::new(config.limit.min(MAX)),
            max_queue: AtomicUsize::new(waiters(config.max_queue)),
            reserved: config.reserved,
            held: AtomicUsize::new(0),
            partitions: Partitions::new(&config.shares),
            room: Mutex::new(Room {
                queue: Queue::default(),
                max_wait: config.max_wait,
                codel: config.codel,
            }),
            emptied: Notify::new(),
        }
    }

    pub(super) fn set_max_queue(&self, max_queue: Option<usize>) {
        self.max_queue.store(waiters(max_queue), Relaxed);
    }

    #[inline(always)]
    pub(super) fn need(&self, claim: Claim) -> Need {
        self.need_of(claim.priority(), claim.cost())
    }

    #[inline(always)]
    fn need_of(&self, priority: Priority, cost: usize) -> Need {
        Need {
            priority,
            reserved: self.reserved,
            cost,
            held: match cost {
                1 => 0,
                _ => self.held.load(Relaxed),
            },
        }
    }

    /// How many may wait now.
    pub(super) fn longest(&self, word: Word) -> usize {
        match self.max_queue.load(Relaxed) {
            AS_THE_LIMIT => word.limit().max(LEAST_QUEUE),
            waiters => waiters,
        }
    }

    /// Returns permits: to the next in line, unless there is a debt to pay first.
    #[inline]
    pub(super) fn leave(&self, partition: Partition, cost: usize) {
        // First, so that the next to be admitted is chosen by what is true then.
        self.partitions.leave(partition, cost);
        let word = self.word.leave(cost);
        if word.queued() > 0 || word.is_closed() {
            self.left(word);
        }
    }

    /// What follows when a request has left for which others may have waited.
    #[cold]
    fn left(&self, word: Word) {
        if word.queued() > 0 {
            self.admit_waiters();
        } else {
            self.tell_if_emptied(word);
        }
    }

    /// Enters as a new request. Returns the word as it then was, or the word that refused.
    #[inline(always)]
    pub(super) fn try_enter(&self, claim: Claim) -> Result<Word, Word> {
        let need = self.need(claim);
        let entered = match self.word.try_enter(need) {
            Err(word) if word.queued() > 0 && word.has_room(need) => self.try_overtake(need, word),
            entered => entered,
        };
        if entered.is_ok() {
            self.partitions.enter(claim.partition(), need.cost);
        }
        entered
    }

    /// Enters past waiters for their part of the limit, if all of them matter less: theirs is no
    /// line for this class.
    #[cold]
    fn try_overtake(&self, need: Need, word: Word) -> Result<Word, Word> {
        let room = lock(&self.room);
        match room.queue.first_class() {
            Some(first) if first >= need.priority => Err(word),
            _ => self.word.try_overtake(need),
        }
    }

    /// Admits waiters, those that are entitled and those that matter more first, for as long as
    /// permits are free.
    ///
    /// What frees a permit, raises the limit or joins the line calls this *after* the word says
    /// so; since the word has one modification order, one of the callers sees both the free permit
    /// and the waiter.
    pub(super) fn admit_waiters(&self) {
        loop {
            let told = self.admit_one(&mut lock(&self.room));
            let Some(waker) = told else {
                return;
            };
            // Waking may run the waiter at once: never under the lock.
            waker.wake();
            self.tell_if_emptied(self.word.load());
        }
    }

    /// Admits one waiter or sheds one. Returns its waker.
    ///
    /// Where the next costs more than is free, what is free is kept for it, unless a waiter of a
    /// higher class can use it.
    fn admit_one(&self, room: &mut Room) -> Option<Waker> {
        loop {
            let word = self.word.load();
            let line = room.queue.next(word, &self.partitions, self.reserved)?;
            let mut overloaded = false;
            if let Some(codel) = &room.codel {
                let now = Instant::now();
                overloaded = room.queue.judge(line, codel, now);
                if overloaded && let Some((stale, cost)) = room.queue.shed_stale(line, codel, now) {
                    self.word.unqueue(cost);
                    return Some(stale);
                }
            }
            let (waiter, cost) = room.queue.next_of(line, overloaded)?;
            let need = self.need_of(line.priority, cost);
            if self.word.admit_waiter(need).is_ok() {
                self.partitions.enter(line.partition, cost);
                return room.queue.admit(waiter);
            }
            if cost == 1 || !room.queue.gather_for(waiter) {
                return None;
            }
        }
    }

    pub(super) fn tell_if_emptied(&self, word: Word) {
        if word.is_closed() && word.is_idle() {
            self.emptied.notify_waiters();
        }
    }
}

/// Instead of a number of waiters.
const AS_THE_LIMIT: usize = usize::MAX;
/// Places of a queue that follows the limit, at least. Chance alone fills a short one: at seven tenths of
/// the capacity an M/M/1 with one place refuses 22 %, one with eight 2 % (Erlang). With 16 more are
/// served too late (model).
const LEAST_QUEUE: usize = 8;

/// As an atomic holds it.
fn waiters(max_queue: Option<usize>) -> usize {
    max_queue.map_or(AS_THE_LIMIT, |waiters| waiters.min(MAX))
}
