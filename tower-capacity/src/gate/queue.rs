//! The waiting room: who stands in line, in what order.

use std::task::Waker;

use slab::Slab;
use tokio::time::Instant;

/// Waiters in order of arrival.
///
/// Waiters live in a slab and are linked by key, so that one that is cancelled leaves from the
/// middle of the line in constant time, and a room that has been full once allocates no more.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiters: Slab<Waiter>,
    front: Option<usize>,
    back: Option<usize>,
    len: usize,
}

#[derive(Debug)]
struct Waiter {
    /// `None` once the waiter was handed a permit that it has not picked up yet.
    waker: Option<Waker>,
    since: Instant,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Where a waiter stands when it asks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    InLine,
    Admitted,
}

impl Queue {
    /// How many stand in line; those who were handed a permit no longer do.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Stands at the end of the line.
    pub(super) fn push_back(&mut self, waker: Waker, since: Instant) -> usize {
        let key = self.waiters.insert(Waiter {
            waker: Some(waker),
            since,
            previous: self.back,
            next: None,
        });
        match self.back {
            Some(back) => self.waiters[back].next = Some(key),
            None => self.front = Some(key),
        }
        self.back = Some(key);
        self.len += 1;
        key
    }

    /// Marks the first in line as admitted and answers whom to wake.
    pub(super) fn admit_front(&mut self) -> Option<Waker> {
        let key = self.front?;
        self.unlink(key);
        self.waiters[key].waker.take()
    }

    /// Says where the waiter stands, and remembers whom to wake if it is still in line.
    ///
    /// Answers the waker that is no longer needed, to be dropped outside the lock: dropping it may
    /// drop a task, which may drop another waiter of this gate.
    pub(super) fn check(&mut self, key: usize, waker: &Waker) -> (Standing, Option<Waker>) {
        match &mut self.waiters[key].waker {
            None => (Standing::Admitted, None),
            Some(known) if known.will_wake(waker) => (Standing::InLine, None),
            Some(known) => (
                Standing::InLine,
                Some(std::mem::replace(known, waker.clone())),
            ),
        }
    }

    /// Forgets the waiter: the time it joined, and its waker if it was still in line.
    pub(super) fn remove(&mut self, key: usize) -> (Instant, Option<Waker>) {
        if self.waiters[key].waker.is_some() {
            self.unlink(key);
        }
        let waiter = self.waiters.remove(key);
        (waiter.since, waiter.waker)
    }

    fn unlink(&mut self, key: usize) {
        let Waiter { previous, next, .. } = self.waiters[key];
        match previous {
            Some(previous) => self.waiters[previous].next = next,
            None => self.front = next,
        }
        match next {
            Some(next) => self.waiters[next].previous = previous,
            None => self.back = previous,
        }
        self.len -= 1;
    }
}
