//! The future that enters a gate.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{Gate, Permit, Refused, RefusedReason, queue::Standing};
use crate::sync::lock;

pin_project! {
    /// Future of [`Gate::acquire`] and [`Gate::acquire_within`].
    ///
    /// Enters on its first poll if a permit is free; else stands in line until it is handed one,
    /// or its wait is over.
    #[must_use = "futures do nothing unless polled"]
    pub struct Acquire {
        place: Place,
        max_wait: Option<Duration>,
        #[pin]
        timer: Option<Sleep>,
    }
}

impl Acquire {
    pub(super) const fn new(gate: Gate, max_wait: Option<Duration>) -> Self {
        Self {
            place: Place { gate, key: None },
            max_wait,
            timer: None,
        }
    }
}

impl Future for Acquire {
    type Output = Result<Permit, Refused>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if this.place.key.is_none() {
            match this.place.enter_or_queue(cx, *this.max_wait) {
                Entry::Done(result) => return Poll::Ready(result),
                // Polled below, so that it is registered.
                Entry::Queued(deadline) => this.timer.set(deadline.map(sleep_until)),
            }
        } else if let Some(permit) = this.place.admitted(cx) {
            return Poll::Ready(Ok(permit));
        }
        let Some(timer) = this.timer.as_mut().as_pin_mut() else {
            return Poll::Pending;
        };
        ready!(timer.poll(cx));
        Poll::Ready(this.place.give_up())
    }
}

impl fmt::Debug for Acquire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acquire")
            .field("gate", &self.place.gate)
            .field("queued", &self.place.key.is_some())
            .finish()
    }
}

enum Entry {
    Done(Result<Permit, Refused>),
    /// In line until this deadline, if there is one.
    Queued(Option<Instant>),
}

/// A place in line, if `key` is set: either still waiting, or handed a permit that nobody has
/// picked up. Dropping it gives back whichever it is.
struct Place {
    gate: Gate,
    key: Option<usize>,
}

impl Place {
    fn enter_or_queue(&mut self, cx: &Context<'_>, max_wait: Option<Duration>) -> Entry {
        let shared = &self.gate.shared;
        let refusing = match shared.word.try_enter() {
            Ok(word) => return Entry::Done(Ok(Permit::new(self.gate.clone(), word))),
            Err(word) => word,
        };
        if refusing.is_closed() {
            return Entry::Done(Err(Refused::now(refusing, RefusedReason::Closed)));
        }
        let waker = cx.waker().clone();
        let now = Instant::now();
        let mut room = lock(&shared.room);
        let longest = room
            .max_queue
            .unwrap_or_else(|| refusing.limit())
            .min(super::MAX);
        if room.queue.len() >= longest {
            drop(room);
            return Entry::Done(Err(Refused::now(refusing, RefusedReason::QueueFull)));
        }
        let wait = max_wait.unwrap_or(room.max_wait);
        self.key = Some(room.queue.push_back(waker, now));
        let word = shared.word.queue();
        drop(room);
        // A permit may have come free before the word said that somebody waits for it.
        if word.has_room() {
            shared.admit_waiters();
            if let Some(permit) = self.admitted(cx) {
                return Entry::Done(Ok(permit));
            }
        }
        // An unbounded wait, or one that ends after the end of time.
        Entry::Queued(now.checked_add(wait))
    }

    /// Picks up the permit, if this waiter was handed one.
    fn admitted(&mut self, cx: &Context<'_>) -> Option<Permit> {
        let key = self.key?;
        let mut room = lock(&self.gate.shared.room);
        let (standing, stale) = room.queue.check(key, cx.waker());
        if standing == Standing::Admitted {
            self.key = None;
            room.queue.remove(key);
        }
        drop(room);
        drop(stale);
        (standing == Standing::Admitted)
            .then(|| Permit::new(self.gate.clone(), self.gate.shared.word.load()))
    }

    /// Leaves the line because the wait is over, unless a permit arrived first.
    fn give_up(&mut self) -> Result<Permit, Refused> {
        let shared = &self.gate.shared;
        let Some(key) = self.key.take() else {
            // Only reached when polled again after completion.
            return Err(Refused::now(shared.word.load(), RefusedReason::WaitTimeout));
        };
        let mut room = lock(&shared.room);
        let (since, waker) = room.queue.remove(key);
        if waker.is_none() {
            drop(room);
            return Ok(Permit::new(self.gate.clone(), shared.word.load()));
        }
        let word = shared.word.unqueue();
        drop(room);
        drop(waker);
        shared.tell_if_emptied(word);
        Err(Refused::after(since, word))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.key.is_some() {
            // A permit that was on its way is returned by its own drop.
            drop(self.give_up());
        }
    }
}
