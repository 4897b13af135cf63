//! A place in the queue, and the right that comes of it.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Sleep;

use super::{
    WaitRefused,
    line::{Allowance, Shaper},
};

/// A place in the queue. Dropping it gives it up.
pub(super) struct Ticket {
    pub(super) shaper: Shaper,
    pub(super) ticket: u64,
    pub(super) cells: u64,
    pub(super) deadline: u64,
    pub(super) waiting: bool,
}

impl Ticket {
    pub(super) fn sleep(&self) -> Sleep {
        tokio::time::sleep_until(self.shaper.instant(self.deadline))
    }

    /// Waits until it is first in line and conforms. `sleep` is its own timer.
    pub(super) fn poll_turn(
        &mut self,
        mut sleep: Pin<&mut Sleep>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Permit, WaitRefused>> {
        let shaper = self.shaper.clone();
        let inner = &*shaper.inner;
        loop {
            let now = shaper.now();
            let wake_at = {
                let mut line = shaper.lock();
                let Some(position) = line.position(self.ticket) else {
                    // Only this ticket removes itself, and then it is not polled again.
                    return Poll::Ready(Err(WaitRefused::QueueFull));
                };
                let first = position == 0;
                let lasts = |allowance: &Allowance| allowance.until > now;
                line.requests = line.requests.filter(lasts);
                line.cells = line.cells.filter(lasts);
                let wait = line.wait(inner, now, 1, self.cells);
                let free = line.inflight < inner.concurrency;
                if first && free && wait == 0 {
                    line.charge(inner, now, self.cells);
                    line.inflight += 1;
                    self.waiting = false;
                    line.leave(0);
                    return Poll::Ready(Ok(Permit {
                        shaper: shaper.clone(),
                        cells: self.cells,
                    }));
                }
                // It waits no longer for what it cannot get in time, as upstream may have made it.
                if now >= self.deadline || now.saturating_add(wait) > self.deadline {
                    self.waiting = false;
                    line.leave(position);
                    let expected = Duration::from_nanos(wait);
                    return Poll::Ready(Err(WaitRefused::TooLong { expected }));
                }
                let waiting = &mut line.waiting[position];
                if !waiting
                    .waker
                    .as_ref()
                    .is_some_and(|waker| waker.will_wake(cx.waker()))
                {
                    waiting.waker = Some(cx.waker().clone());
                }
                // Without a free place, the permit that frees one wakes the first.
                let turn = if first && free {
                    now.saturating_add(wait)
                } else {
                    u64::MAX
                };
                turn.min(self.deadline)
            };
            sleep.as_mut().reset(shaper.instant(wake_at));
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.waiting {
            let mut line = self.shaper.lock();
            if let Some(position) = line.position(self.ticket) {
                line.leave(position);
            }
        }
    }
}

/// The right of one request to be under way, made by [`Shaper::acquire`]. Dropping it lets the next
/// one through.
#[must_use = "dropping a permit says that the request is over"]
pub struct Permit {
    pub(super) shaper: Shaper,
    pub(super) cells: u64,
}

impl Permit {
    /// Charges or gives back the difference to what the request has `actually` cost. Quotas of
    /// requests are not concerned.
    pub fn settle(&self, actual: u64) {
        let now = self.shaper.now();
        let mut line = self.shaper.lock();
        for (quota, tat) in self.shaper.inner.quotas.iter().zip(&mut line.tats) {
            if quota.counts_requests {
                continue;
            }
            *tat = if actual > self.cells {
                quota.gcra.charge_anyway(*tat, now, actual - self.cells)
            } else {
                quota.gcra.refund(*tat, now, self.cells - actual)
            };
        }
        line.wake_first();
    }

    /// The shaper.
    #[must_use]
    pub fn shaper(&self) -> &Shaper {
        &self.shaper
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("cells", &self.cells)
            .finish_non_exhaustive()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut line = self.shaper.lock();
        line.inflight -= 1;
        line.wake_first();
    }
}
