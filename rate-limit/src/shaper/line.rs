//! The queue in front of another service.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    ShaperBuilder, WaitRefused,
    feedback::Feedback,
    ticket::{Permit, Ticket},
};
use crate::gcra::Gcra;

/// Lets requests through at the pace of its quotas, a bounded number at once. A cheap handle:
/// clones share one line.
#[derive(Clone)]
pub struct Shaper {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) epoch: Instant,
    pub(super) quotas: Box<[Kept]>,
    pub(super) concurrency: usize,
    pub(super) max_queue: usize,
    pub(super) max_wait: Duration,
    pub(super) max_pause: Duration,
    pub(super) line: Mutex<Line>,
}

/// A quota of upstream's.
pub(super) struct Kept {
    pub(super) gcra: Gcra,
    /// Whether a request costs it one cell, whatever it costs the others.
    pub(super) counts_requests: bool,
}

impl Kept {
    pub(super) fn cost(&self, requests: u64, cells: u64) -> u64 {
        if self.counts_requests {
            requests
        } else {
            cells
        }
    }
}

/// Everything that changes. Times are nanoseconds since the epoch.
#[derive(Default)]
pub(super) struct Line {
    /// The TAT of each quota.
    pub(super) tats: Vec<u64>,
    pub(super) inflight: usize,
    pub(super) waiting: VecDeque<Waiting>,
    /// The cells that the waiting requests will be charged.
    pub(super) queued_cells: u64,
    pub(super) next_ticket: u64,
    /// Upstream wants nothing before this.
    pub(super) paused_until: u64,
    /// Upstream wants at most this many requests, and cells, before then.
    pub(super) requests: Option<Allowance>,
    pub(super) cells: Option<Allowance>,
}

pub(super) struct Waiting {
    pub(super) ticket: u64,
    pub(super) cells: u64,
    pub(super) waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    pub(super) remaining: u64,
    pub(super) until: u64,
}

impl Shaper {
    /// Starts a shaper.
    pub fn builder() -> ShaperBuilder {
        ShaperBuilder::new()
    }

    /// How many requests are under way.
    #[must_use]
    pub fn inflight(&self) -> usize {
        self.lock().inflight
    }

    /// How many requests wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// How much longer upstream wants no requests; zero if it takes them.
    #[must_use]
    pub fn paused_for(&self) -> Duration {
        Duration::from_nanos(self.lock().paused_until.saturating_sub(self.now()))
    }

    /// Lets no request through for `wait`, at most [`max_pause`](ShaperBuilder::max_pause). What
    /// follows is paced: a burst right after a pause is what upstream has just asked not to get.
    pub fn pause(&self, wait: Duration) {
        let now = self.now();
        let until = now.saturating_add(nanos(wait.min(self.inner.max_pause)));
        let mut line = self.lock();
        if until > line.paused_until {
            line.paused_until = until;
            for (quota, tat) in self.inner.quotas.iter().zip(&mut line.tats) {
                // A burst of other units may be what a single request needs.
                if quota.counts_requests || self.inner.quotas.iter().all(|q| !q.counts_requests) {
                    *tat = quota.gcra.leave_one_at(*tat, until);
                }
            }
            line.wake_first();
        }
    }

    /// Lets at most `requests` through in the time `within`, beyond those under way.
    pub fn allow(&self, requests: u64, within: Duration) {
        let mut line = self.lock();
        // The one that brought the news is not under way any more for upstream; the others may or
        // may not be in its count. Assuming that they are not is the safe way to be wrong.
        let others = line.inflight.saturating_sub(1) as u64;
        line.requests = Some(self.allowance(requests.saturating_sub(others), within));
        line.wake_first();
    }

    /// Lets requests through that cost at most `cells` in all in the time `within`.
    pub fn allow_cells(&self, cells: u64, within: Duration) {
        let mut line = self.lock();
        line.cells = Some(self.allowance(cells, within));
        line.wake_first();
    }

    fn allowance(&self, remaining: u64, within: Duration) -> Allowance {
        let within = nanos(within.min(self.inner.max_pause));
        Allowance {
            remaining,
            until: self.now().saturating_add(within),
        }
    }

    pub(super) fn heed(&self, feedback: Feedback) {
        if let Some(wait) = feedback.pause {
            self.pause(wait);
        }
        if let Some((requests, within)) = feedback.requests {
            self.allow(requests, within);
        }
        if let Some((cells, within)) = feedback.cells
            && self.inner.quotas.iter().any(|quota| !quota.counts_requests)
        {
            self.allow_cells(cells, within);
        }
    }

    /// Waits until a request that costs `cells` may be sent. Dropping the [`Permit`] says that it is
    /// not under way any more.
    ///
    /// # Errors
    ///
    /// Fails at once if the wait would be longer than [`max_wait`](ShaperBuilder::max_wait), if the
    /// queue is full, or if `cells` is more than a burst; and later if upstream makes the wait too
    /// long.
    ///
    /// # Cancel safety
    ///
    /// A request that is dropped while it waits has cost nothing, and the queue moves up.
    ///
    /// ```
    /// use rate_limit::{MINUTE, Quota, Unit, shaper::Shaper};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let shaper = Shaper::builder()
    ///     .quota(Quota::count(50).per(MINUTE))
    ///     .quota(Quota::count(10_000).per(MINUTE).unit(Unit::Custom("tokens")))
    ///     .concurrency(10)
    ///     .build()?;
    /// let permit = shaper.acquire(800).await?;
    /// // ... the reply says what it has used ...
    /// permit.settle(350);
    /// # Ok(()) }
    /// ```
    pub async fn acquire(&self, cells: u64) -> Result<Permit, WaitRefused> {
        self.acquire_within(cells, self.inner.max_wait).await
    }

    /// As [`acquire`](Self::acquire), for a request that may wait at most `patience`.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_within(
        &self,
        cells: u64,
        patience: Duration,
    ) -> Result<Permit, WaitRefused> {
        let mut ticket = self.join(cells, Some(patience))?;
        let mut sleep = std::pin::pin!(ticket.sleep());
        std::future::poll_fn(|cx| ticket.poll_turn(sleep.as_mut(), cx)).await
    }

    /// Joins the queue for `cells`, unless the wait would be too long.
    pub(super) fn join(
        &self,
        cells: u64,
        patience: Option<Duration>,
    ) -> Result<Ticket, WaitRefused> {
        let inner = &*self.inner;
        let now = self.now();
        let patience = patience.map_or(inner.max_wait, |own| own.min(inner.max_wait));
        let mut line = self.lock();
        let too_large = |quota: &Kept| quota.cost(1, cells) > quota.gcra.burst();
        if inner.quotas.iter().any(too_large) {
            return Err(WaitRefused::TooLarge);
        }
        let expected = line.expected_wait(inner, now, cells);
        let empty = line.waiting.is_empty();
        let at_once = empty && expected == 0 && line.inflight < inner.concurrency;
        if !at_once && line.waiting.len() >= inner.max_queue {
            return Err(WaitRefused::QueueFull);
        }
        if expected > nanos(patience) {
            return Err(WaitRefused::TooLong {
                expected: Duration::from_nanos(expected),
            });
        }
        let ticket = line.next_ticket;
        line.next_ticket += 1;
        line.queued_cells += cells;
        line.waiting.push_back(Waiting {
            ticket,
            cells,
            waker: None,
        });
        let deadline = now.saturating_add(nanos(patience));
        Ok(Ticket {
            shaper: self.clone(),
            ticket,
            cells,
            deadline,
            waiting: true,
        })
    }

    pub(super) fn now(&self) -> u64 {
        nanos(self.inner.epoch.elapsed())
    }

    pub(super) fn instant(&self, nanos: u64) -> Instant {
        self.inner.epoch + Duration::from_nanos(nanos)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Line> {
        // No user code runs under it, and the line is consistent after every statement that can
        // panic.
        self.inner
            .line
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// How long until `requests` that cost `cells` in all conform to everything that limits them
    /// except concurrency: how long requests take is unknown.
    pub(super) fn wait(&self, inner: &Inner, now: u64, requests: u64, cells: u64) -> u64 {
        let quotas = inner.quotas.iter().zip(&self.tats);
        let quotas = quotas.map(|(quota, &tat)| {
            let cost = quota.cost(requests, cells);
            quota.gcra.wait_for(tat, now, cost)
        });
        let until = |allowance: Option<Allowance>, cost| match allowance {
            Some(Allowance { remaining, until }) if remaining < cost => until.saturating_sub(now),
            _ => 0,
        };
        let requests = if inner.counts_requests() {
            requests
        } else {
            cells
        };
        quotas
            .max()
            .unwrap_or(0)
            .max(self.paused_until.saturating_sub(now))
            .max(until(self.requests, requests))
            .max(until(self.cells, cells))
    }

    /// How long a request that joins the queue now will wait.
    fn expected_wait(&self, inner: &Inner, now: u64, cells: u64) -> u64 {
        let cells = self.queued_cells.saturating_add(cells);
        self.wait(inner, now, self.waiting.len() as u64 + 1, cells)
    }

    pub(super) fn position(&self, ticket: u64) -> Option<usize> {
        self.waiting
            .binary_search_by_key(&ticket, |waiting| waiting.ticket)
            .ok()
    }

    pub(super) fn leave(&mut self, position: usize) {
        if let Some(left) = self.waiting.remove(position) {
            self.queued_cells -= left.cells;
        }
        if position == 0 {
            self.wake_first();
        }
    }

    pub(super) fn wake_first(&mut self) {
        if let Some(first) = self.waiting.front_mut()
            && let Some(waker) = first.waker.take()
        {
            waker.wake();
        }
    }
}

impl Inner {
    /// Whether requests and what they cost are counted apart.
    pub(super) fn counts_requests(&self) -> bool {
        self.quotas.iter().any(|quota| quota.counts_requests)
    }
}

impl fmt::Debug for Shaper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.lock();
        f.debug_struct("Shaper")
            .field("inflight", &line.inflight)
            .field("waiting", &line.waiting.len())
            .field("requests", &line.requests)
            .field("cells", &line.cells)
            .finish_non_exhaustive()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
