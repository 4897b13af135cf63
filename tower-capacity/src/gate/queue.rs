//! The waiting room: who stands in which line, and in what order they leave it.

use std::{task::Waker, time::Duration};

use slab::Slab;
use tokio::time::Instant;

use super::{Codel, Priority, RefusedReason, codel::Judgement};

/// Waiters, in one line for each class.
///
/// Waiters live in a slab and are linked by key, so that one that is cancelled leaves from the
/// middle of its line in constant time, and a room that has been full once allocates no more.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiters: Slab<Waiter>,
    lines: [Line; 4],
    len: usize,
}

/// In order of arrival.
#[derive(Debug, Default)]
struct Line {
    front: Option<usize>,
    back: Option<usize>,
    judgement: Judgement,
}

#[derive(Debug)]
struct Waiter {
    standing: Standing,
    priority: Priority,
    since: Instant,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Where a waiter stands.
#[derive(Debug)]
enum Standing {
    InLine(Waker),
    /// Handed a permit that it has not picked up yet.
    Admitted,
    /// Sent away.
    Shed(RefusedReason),
}

/// What a waiter is told when it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Wait,
    Enter,
    Leave(RefusedReason),
}

impl Queue {
    /// How many stand in line; those who were told to enter or to leave no longer do.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// The highest class that somebody waits in.
    pub(super) fn first_class(&self) -> Option<Priority> {
        Priority::ALL
            .into_iter()
            .find(|class| self.line(*class).front.is_some())
    }

    /// Stands at the end of the line of its class.
    pub(super) fn push_back(
        &mut self,
        waker: Waker,
        priority: Priority,
        since: Instant,
        codel: Option<&Codel>,
    ) -> usize {
        let line = &mut self.lines[priority.rank()];
        if line.front.is_none()
            && let Some(codel) = codel
        {
            line.judgement.observe(codel, since, Duration::ZERO);
        }
        let key = self.waiters.insert(Waiter {
            standing: Standing::InLine(waker),
            priority,
            since,
            previous: line.back,
            next: None,
        });
        match line.back {
            Some(back) => self.waiters[back].next = Some(key),
            None => line.front = Some(key),
        }
        line.back = Some(key);
        self.len += 1;
        key
    }

    /// Admits one of a class: the first in line, or the newest if the line is overloaded. Answers
    /// whom to wake.
    pub(super) fn admit(&mut self, priority: Priority, overloaded: bool) -> Option<Waker> {
        let line = self.line(priority);
        let key = if overloaded { line.back } else { line.front }?;
        self.dismiss(key, Standing::Admitted)
    }

    /// Judges the line of a class by its first, at a moment when a permit is free.
    pub(super) fn judge(&mut self, priority: Priority, codel: &Codel, now: Instant) -> bool {
        let line = &mut self.lines[priority.rank()];
        let wait = line.front.map_or(Duration::ZERO, |front| {
            now.saturating_duration_since(self.waiters[front].since)
        });
        line.judgement.observe(codel, now, wait)
    }

    /// Sends away the first of a class if it has waited for longer than `patience`. Answers whom
    /// to wake.
    pub(super) fn shed_stale(
        &mut self,
        priority: Priority,
        patience: Duration,
        now: Instant,
    ) -> Option<Waker> {
        let front = self.line(priority).front?;
        let waited = now.saturating_duration_since(self.waiters[front].since);
        (waited > patience)
            .then(|| self.dismiss(front, Standing::Shed(RefusedReason::Overloaded)))
            .flatten()
    }

    /// Sends away the newest of the lowest class that waits, if that is below `priority`. Answers
    /// whom to wake.
    pub(super) fn displace(&mut self, priority: Priority) -> Option<Waker> {
        let lowest = self.last_class().filter(|lowest| *lowest < priority)?;
        let back = self.line(lowest).back?;
        self.dismiss(back, Standing::Shed(RefusedReason::Displaced))
    }

    /// Whether somebody waits who matters less.
    #[cfg(not(loom))]
    pub(super) fn has_below(&self, priority: Priority) -> bool {
        self.last_class().is_some_and(|lowest| lowest < priority)
    }

    /// The lowest class that somebody waits in.
    fn last_class(&self) -> Option<Priority> {
        Priority::ALL
            .into_iter()
            .rev()
            .find(|class| self.line(*class).back.is_some())
    }

    /// Says what the waiter is to do, and remembers whom to wake if it still stands in line.
    ///
    /// Answers the waker that is no longer needed, to be dropped outside the lock: dropping it may
    /// drop a task, which may drop another waiter of this gate.
    pub(super) fn ask(&mut self, key: usize, waker: &Waker) -> (Told, Option<Waker>) {
        match &mut self.waiters[key].standing {
            Standing::Admitted => (Told::Enter, None),
            Standing::Shed(reason) => (Told::Leave(*reason), None),
            Standing::InLine(known) if known.will_wake(waker) => (Told::Wait, None),
            Standing::InLine(known) => (Told::Wait, Some(std::mem::replace(known, waker.clone()))),
        }
    }

    /// Forgets the waiter: what it was told last, when it joined, and its waker if it still stood
    /// in line.
    pub(super) fn remove(&mut self, key: usize) -> (Told, Instant, Option<Waker>) {
        if let Standing::InLine(_) = self.waiters[key].standing {
            self.unlink(key);
        }
        let waiter = self.waiters.remove(key);
        match waiter.standing {
            Standing::InLine(waker) => (Told::Wait, waiter.since, Some(waker)),
            Standing::Admitted => (Told::Enter, waiter.since, None),
            Standing::Shed(reason) => (Told::Leave(reason), waiter.since, None),
        }
    }

    const fn line(&self, priority: Priority) -> &Line {
        &self.lines[priority.rank()]
    }

    /// Takes a waiter out of its line and leaves word for it.
    fn dismiss(&mut self, key: usize, standing: Standing) -> Option<Waker> {
        self.unlink(key);
        match std::mem::replace(&mut self.waiters[key].standing, standing) {
            Standing::InLine(waker) => Some(waker),
            Standing::Admitted | Standing::Shed(_) => None,
        }
    }

    fn unlink(&mut self, key: usize) {
        let Waiter {
            priority,
            previous,
            next,
            ..
        } = self.waiters[key];
        let line = &mut self.lines[priority.rank()];
        match previous {
            Some(previous) => self.waiters[previous].next = next,
            None => line.front = next,
        }
        match next {
            Some(next) => self.waiters[next].previous = previous,
            None => line.back = previous,
        }
        self.len -= 1;
    }
}
