//! The future that enters a gate.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    Ask, Gate, GateSnapshot, MAX, Permit, Refused, RefusedReason,
    queue::{Removed, Told},
};
use crate::sync::lock;

pin_project! {
    /// Future of [`Gate::acquire`] and its kin.
    ///
    /// Enters on its first poll if a permit is free; else stands in line until it is handed one,
    /// or its wait is over.
    #[must_use = "futures do nothing unless polled"]
    pub struct Acquire {
        #[pin]
        enter: Enter,
    }
}

impl Acquire {
    pub(super) const fn new(gate: Gate, ask: Ask) -> Self {
        Self {
            enter: Enter::new(gate, ask),
        }
    }
}

impl Future for Acquire {
    type Output = Result<Permit, Refused>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut enter = self.project().enter;
        let entered = ready!(enter.as_mut().poll(cx));
        let place = &enter.place;
        Poll::Ready(
            entered.map(|entered| Permit::new(place.gate.clone(), entered, place.ask.claim())),
        )
    }
}

impl fmt::Debug for Acquire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acquire")
            .field("gate", &self.enter.place.gate)
            .field("queued", &self.enter.place.key.is_some())
            .finish()
    }
}

pin_project! {
    /// Enters a gate for an owner that returns the permit itself, with [`Gate::leave`].
    #[must_use = "futures do nothing unless polled"]
    pub(crate) struct Enter {
        place: Place,
        #[pin]
        timer: Option<Sleep>,
    }
}

impl Enter {
    pub(crate) const fn new(gate: Gate, ask: Ask) -> Self {
        Self {
            place: Place {
                gate,
                ask,
                key: None,
            },
            timer: None,
        }
    }

    #[cfg(not(loom))]
    pub(crate) const fn claim(&self) -> super::Claim {
        self.place.ask.claim()
    }
}

impl Future for Enter {
    type Output = Result<GateSnapshot, Refused>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if this.place.key.is_none() {
            match this.place.enter_or_queue(cx) {
                Entry::Done(result) => return Poll::Ready(result),
                // Polled below, so that it is registered.
                Entry::Queued(deadline) => this.timer.set(deadline.map(sleep_until)),
            }
        } else if let Some(told) = this.place.told(cx) {
            return Poll::Ready(told);
        }
        let Some(timer) = this.timer.as_mut().as_pin_mut() else {
            return Poll::Pending;
        };
        ready!(timer.poll(cx));
        Poll::Ready(this.place.leave_line())
    }
}

enum Entry {
    Done(Result<GateSnapshot, Refused>),
    /// In line until this deadline, if there is one.
    Queued(Option<Instant>),
}

/// A place in line, if `key` is set: either still waiting, or handed a permit that it has not
/// picked up. Dropping it gives back whichever it is.
struct Place {
    gate: Gate,
    ask: Ask,
    key: Option<usize>,
}

impl Place {
    fn enter_or_queue(&mut self, cx: &Context<'_>) -> Entry {
        let shared = &self.gate.shared;
        let (ask, claim) = (&self.ask, self.ask.claim());
        let refusing = match shared.try_enter(claim) {
            Ok(word) => return Entry::Done(Ok(GateSnapshot(word))),
            Err(word) => word,
        };
        if refusing.is_closed() {
            return Entry::Done(Err(Refused::now(refusing, RefusedReason::Closed)));
        }
        let waker = cx.waker().clone();
        let now = Instant::now();
        let mut room = lock(&shared.room);
        let longest = shared.longest(refusing);
        let is_full = room.queue.len() >= longest;
        let mut displaced = None;
        // What waits has to fit into the word.
        if is_full && room.queue.len() + claim.cost() <= MAX {
            displaced = room
                .queue
                .displace(claim.line(), refusing, &shared.partitions);
        }
        if is_full && displaced.is_none() {
            drop(room);
            return Entry::Done(Err(Refused::now(refusing, RefusedReason::QueueFull)));
        }
        let displaced = displaced.map(|(waker, cost)| {
            shared.word.unqueue(cost);
            waker
        });
        let wait = ask.max_wait.unwrap_or(room.max_wait);
        let wait = ask.time_left.map_or(wait, |left| wait.min(left));
        let codel = room.codel;
        self.key = Some(room.queue.push_back(waker, claim, now, codel.as_ref()));
        let word = shared.word.queue(claim.cost());
        drop(room);
        let has_displaced = displaced.is_some();
        if let Some(displaced) = displaced {
            displaced.wake();
        }
        // A permit may have come free before the word said that a request waits for it, and those
        // that were being gathered for the waiter that was displaced are free again.
        if has_displaced || word.has_permit(shared.need(claim)) {
            shared.admit_waiters();
            if let Some(told) = self.told(cx) {
                return Entry::Done(told);
            }
        }
        // An unbounded wait, or one that ends after the end of time.
        Entry::Queued(now.checked_add(wait))
    }

    /// What this waiter was told, if it is no longer to wait: picks up its permit, or leaves.
    fn told(&mut self, cx: &Context<'_>) -> Option<Result<GateSnapshot, Refused>> {
        let key = self.key?;
        let mut room = lock(&self.gate.shared.room);
        let (told, stale) = room.queue.ask(key, cx.waker());
        drop(room);
        drop(stale);
        // Only this future removes it, and it is told only once.
        (told != Told::Wait).then(|| self.leave_line())
    }

    /// Leaves the line: with a permit if one arrived, else because it was told to, or because its
    /// wait is over.
    fn leave_line(&mut self) -> Result<GateSnapshot, Refused> {
        let shared = &self.gate.shared;
        let Some(key) = self.key.take() else {
            // Only reached when polled again after completion.
            return Err(Refused::now(shared.word.load(), RefusedReason::WaitTimeout));
        };
        let mut room = lock(&shared.room);
        let Removed {
            told,
            since,
            waker,
            was_gathering,
        } = room.queue.remove(key);
        let word = match told {
            Told::Wait => shared.word.unqueue(self.ask.claim().cost()),
            Told::Enter | Told::Leave(_) => shared.word.load(),
        };
        drop(room);
        drop(waker);
        match told {
            Told::Enter => Ok(GateSnapshot(word)),
            Told::Leave(reason) => Err(Refused::after(since, word, reason)),
            Told::Wait => {
                if was_gathering {
                    shared.admit_waiters();
                }
                shared.tell_if_emptied(word);
                Err(Refused::after(since, word, RefusedReason::WaitTimeout))
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.key.is_some() && self.leave_line().is_ok() {
            // A permit was on its way.
            let claim = self.ask.claim();
            self.gate.shared.leave(claim.partition(), claim.cost());
        }
    }
}
