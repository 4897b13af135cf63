//! How a request enters a limiter, waits and leaves it.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::time::Instant;

#[cfg(feature = "metrics")]
use crate::pressure::Pressure;
use crate::{
    accounting::{Outcome, Progress, Ticket},
    gate::{Ask, Claim, Enter, GateSnapshot, Priority, Refused, RefusedReason},
    limiter::Limiter,
};

impl Limiter {
    /// Admits now or not at all.
    ///
    /// # Errors
    ///
    /// [`Refused`] says why, and what the limit was.
    pub fn try_admit(&self) -> Result<Admission, Refused> {
        self.try_admit_as(Priority::Default)
    }

    /// Admits now or not at all, past waiters that matter less.
    ///
    /// # Errors
    ///
    /// [`Refused`] says why, and what the limit was.
    #[inline]
    pub fn try_admit_as(&self, priority: Priority) -> Result<Admission, Refused> {
        self.try_admit_with(Ask::new().priority(priority))
    }

    /// Admits now or not at all, as `ask` says; how long it might wait is not looked at.
    ///
    /// # Errors
    ///
    /// [`Refused`] says why, and what the limit was.
    #[inline]
    pub fn try_admit_with(&self, ask: Ask) -> Result<Admission, Refused> {
        let claim = ask.claim();
        let entered = if self.is_pressed(claim.priority()) {
            let gate = self.shared.gate.snapshot();
            Err(Refused::for_reason(RefusedReason::Downstream, gate))
        } else {
            self.shared.gate.enter(claim)
        };
        match entered {
            Ok(entered) => Ok(self.admission(entered, claim)),
            Err(refused) => {
                self.note_refusal(&refused);
                Err(refused)
            }
        }
    }

    /// Admits, after a wait in the bounded waiting room if need be.
    ///
    /// # Errors
    ///
    /// The future returns [`Refused`] if the room is full, the wait is over or the limiter drains.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives back the place in line, or the permit that was on its way.
    pub fn admit(&self) -> Admit {
        self.admit_with(Ask::new())
    }

    /// Admits as `ask` says. Otherwise as [`admit`](Self::admit).
    ///
    /// A request that would have to wait is refused at once, as
    /// [`RefusedReason::Deadline`](crate::gate::RefusedReason::Deadline), if the waiters that go
    /// before it and its own service are expected to take longer than the time it has left.
    pub fn admit_with(&self, ask: Ask) -> Admit {
        let claim = ask.claim();
        let doomed = ask.left().is_some_and(|left| {
            let ahead = self.shared.gate.ahead_of(claim);
            ahead.is_some_and(|ahead| self.expected_sojourn(ahead + claim.cost()) > left)
        });
        let reason = if self.is_pressed(claim.priority()) {
            Some(RefusedReason::Downstream)
        } else {
            doomed.then_some(RefusedReason::Deadline)
        };
        let refused = reason.map(|reason| Refused::for_reason(reason, self.shared.gate.snapshot()));
        Admit {
            enter: self.shared.gate.enter_with(ask),
            limiter: self.clone(),
            waiting: None,
            refused,
        }
    }

    /// Whether what requests depend on has no room for those of this class.
    #[inline]
    fn is_pressed(&self, priority: Priority) -> bool {
        let downstream = self.shared.downstream.as_ref();
        downstream.is_some_and(|pressure| pressure().value() >= bearable(priority))
    }

    /// Refuses a request that found no permit, if no wait would give it one: the limiter drains,
    /// or its waiting room has no place. Counts the refusal.
    #[cfg(feature = "layer")]
    pub(crate) fn turn_away(&self, claim: Claim) -> Option<Refused> {
        let refused = if self.is_pressed(claim.priority()) {
            let gate = self.shared.gate.snapshot();
            Refused::for_reason(RefusedReason::Downstream, gate)
        } else {
            self.shared.gate.turn_away(claim)?
        };
        self.note_refusal(&refused);
        Some(refused)
    }

    /// Admits now, or not without counting a refusal: the request may still wait. See
    /// [`turn_away`](Self::turn_away).
    ///
    /// Two words, so that admission and refusal alike come back in registers.
    #[cfg(feature = "layer")]
    #[inline]
    pub(crate) fn try_enter(&self, claim: Claim) -> Option<Admission> {
        if self.is_pressed(claim.priority()) {
            return None;
        }
        let entered = self.shared.gate.enter(claim).ok()?;
        Some(self.admission(entered, claim))
    }

    /// Counts a request that has just entered.
    #[inline]
    fn admission(&self, entered: GateSnapshot, claim: Claim) -> Admission {
        let shared = &self.shared;
        // Within 5 % of the limit, so that a law also sees a limit that is only just reached.
        let limit = entered.limit();
        if entered.inflight() + limit / 20 >= limit {
            shared.accounting.set_limited();
        }
        let ticket = if let Some(stride) = shared.accounting.draw() {
            self.enter_timed(stride, entered, claim)
        } else {
            Ticket::untimed(claim)
        };
        shared.metrics.admitted(claim.cost());
        Admission {
            limiter: self.clone(),
            ticket,
        }
    }

    /// Starts to time a request.
    fn enter_timed(&self, stride: u32, entered: GateSnapshot, claim: Claim) -> Ticket {
        let shared = &self.shared;
        let now = shared.accounting.now();
        let ticket = shared.accounting.enter(claim, now, stride);
        let is_alone = entered.inflight() == claim.cost();
        if shared.windows.is_due_on_entry(now, is_alone) {
            self.look_on_entry(now, is_alone);
        }
        ticket
    }
}

/// The pressure downstream from which on a class is shed.
const fn bearable(priority: Priority) -> f64 {
    match priority {
        Priority::Critical => f64::INFINITY,
        Priority::Default => 1.0,
        Priority::Sheddable => 0.75,
        Priority::Background => 0.5,
    }
}

pin_project! {
    /// Future of [`Limiter::admit`].
    #[must_use = "futures do nothing unless polled"]
    pub struct Admit {
        #[pin]
        enter: Enter,
        limiter: Limiter,
        waiting: Option<Waiting>,
        // Decided before it could wait.
        refused: Option<Refused>,
    }
}

impl Future for Admit {
    type Output = Result<Admission, Refused>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let limiter = &*this.limiter;
        if let Some(refused) = this.refused.take() {
            limiter.note_refusal(&refused);
            return Poll::Ready(Err(refused));
        }
        let claim = this.enter.claim();
        let Poll::Ready(entered) = this.enter.poll(cx) else {
            if this.waiting.is_none() {
                *this.waiting = Some(Waiting::new(limiter, claim.cost()));
                limiter.shared.accounting.set_limited();
            }
            return Poll::Pending;
        };
        drop(this.waiting.take());
        Poll::Ready(match entered {
            Ok(entered) => Ok(limiter.admission(entered, claim)),
            Err(refused) => {
                limiter.note_refusal(&refused);
                Err(refused)
            }
        })
    }
}

/// A request in the waiting room, counted there until it is dropped.
struct Waiting {
    limiter: Limiter,
    cost: usize,
    since: Instant,
}

impl Waiting {
    fn new(limiter: &Limiter, cost: usize) -> Self {
        limiter.shared.metrics.waits(cost);
        Self {
            limiter: limiter.clone(),
            cost,
            since: Instant::now(),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let waited = self.since.elapsed();
        self.limiter.shared.metrics.waited(self.cost, waited);
    }
}

impl fmt::Debug for Admit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admit")
            .field("limiter", &self.limiter)
            .field("waiting", &self.waiting.is_some())
            .finish()
    }
}

/// One admitted request: its permit, and the duty to say how it ended.
///
/// Say how it ended with [`complete`](Self::complete) as soon as that is known; the permit is
/// returned when the admission is dropped. One that is dropped without a word was *cancelled*:
/// neither a success nor a failure.
#[derive(Debug)]
#[must_use = "dropping an admission returns its permit"]
pub struct Admission {
    limiter: Limiter,
    ticket: Ticket,
}

impl Admission {
    /// Records how the request ended.
    ///
    /// The permit stays out until the admission is dropped, and the service time ends then, so that
    /// work in a body that is still being streamed is seen. Recording it again changes a success into a drop (a gRPC status comes
    /// after the body) and nothing else.
    #[inline]
    pub fn complete(&mut self, outcome: Outcome) {
        match self.ticket.progress() {
            Progress::Running => {
                self.ticket.set_progress(match outcome {
                    Outcome::Success => Progress::Succeeded,
                    Outcome::Ignored => Progress::Ignored,
                    Outcome::Dropped => Progress::Dropped,
                });
                if self.ticket.is_timed() {
                    self.limiter.shared.accounting.answer(self.ticket);
                }
            }
            Progress::Succeeded if outcome == Outcome::Dropped => {
                self.ticket.set_progress(Progress::Dropped);
            }
            Progress::Succeeded | Progress::Ignored | Progress::Dropped => {}
        }
    }

    /// The limiter that admitted the request.
    #[must_use]
    pub const fn limiter(&self) -> &Limiter {
        &self.limiter
    }
}

impl Drop for Admission {
    #[inline]
    fn drop(&mut self) {
        let shared = &self.limiter.shared;
        let left = shared.accounting.leave(self.ticket);
        let cost = self.ticket.cost();
        shared.metrics.left(cost, self.ticket.progress());
        shared.gate.leave(self.ticket.partition(), cost);
        // No window may close any more that would show it.
        #[cfg(feature = "metrics")]
        if shared.gate.inflight() == 0 {
            shared.metrics.demand(Pressure::IDLE);
        }
        if let Some((now, held)) = left {
            self.limiter.look(now, held);
        }
    }
}
