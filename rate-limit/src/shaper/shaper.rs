//! What callers do with a shaper: wait for a permit, and pass on what the service has said.

use std::{fmt, time::Duration};

use super::{
    Shaper, ShaperBuilder, WaitRefused,
    feedback::Feedback,
    line::{Allowance, Kept, Waiting, nanos},
    ticket::{Permit, Ticket},
};

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
