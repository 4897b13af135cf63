//! The queue in front of another service.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use super::{WaitRefused, feedback::Feedback};
use crate::{Quota, QuotaError, Unit, gcra::Gcra};

/// Lets requests through at the pace of its quotas, a bounded number at once. A cheap handle:
/// clones share one line.
#[derive(Clone)]
pub struct Shaper {
    inner: Arc<Inner>,
}

struct Inner {
    epoch: Instant,
    quotas: Box<[Kept]>,
    concurrency: usize,
    max_queue: usize,
    max_wait: Duration,
    max_pause: Duration,
    line: Mutex<Line>,
}

/// A quota of upstream's.
struct Kept {
    gcra: Gcra,
    /// Whether a request costs it one cell, whatever it costs the others.
    counts_requests: bool,
}

impl Kept {
    fn cost(&self, requests: u64, cells: u64) -> u64 {
        if self.counts_requests {
            requests
        } else {
            cells
        }
    }
}

/// Everything that changes. Times are nanoseconds since the epoch.
#[derive(Default)]
struct Line {
    /// The TAT of each quota.
    tats: Vec<u64>,
    inflight: usize,
    waiting: VecDeque<Waiting>,
    /// The cells that the waiting requests will be charged.
    queued_cells: u64,
    next_ticket: u64,
    /// Upstream wants nothing before this.
    paused_until: u64,
    /// Upstream wants at most this many requests, and cells, before then.
    requests: Option<Allowance>,
    cells: Option<Allowance>,
}

struct Waiting {
    ticket: u64,
    cells: u64,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug)]
struct Allowance {
    remaining: u64,
    until: u64,
}

impl Shaper {
    /// Starts a shaper.
    pub fn builder() -> ShaperBuilder {
        ShaperBuilder {
            quotas: Vec::new(),
            concurrency: None,
            max_queue: DEFAULT_MAX_QUEUE,
            max_wait: DEFAULT_MAX_WAIT,
            max_pause: DEFAULT_MAX_PAUSE,
        }
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

    fn now(&self) -> u64 {
        nanos(self.inner.epoch.elapsed())
    }

    fn instant(&self, nanos: u64) -> Instant {
        self.inner.epoch + Duration::from_nanos(nanos)
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
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
    fn wait(&self, inner: &Inner, now: u64, requests: u64, cells: u64) -> u64 {
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

    fn position(&self, ticket: u64) -> Option<usize> {
        self.waiting
            .binary_search_by_key(&ticket, |waiting| waiting.ticket)
            .ok()
    }

    fn leave(&mut self, position: usize) {
        if let Some(left) = self.waiting.remove(position) {
            self.queued_cells -= left.cells;
        }
        if position == 0 {
            self.wake_first();
        }
    }

    fn wake_first(&mut self) {
        if let Some(first) = self.waiting.front_mut()
            && let Some(waker) = first.waker.take()
        {
            waker.wake();
        }
    }
}

impl Inner {
    /// Whether requests and what they cost are counted apart.
    fn counts_requests(&self) -> bool {
        self.quotas.iter().any(|quota| quota.counts_requests)
    }
}

/// A place in the queue. Dropping it gives it up.
pub(super) struct Ticket {
    shaper: Shaper,
    ticket: u64,
    cells: u64,
    deadline: u64,
    waiting: bool,
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
                    for (quota, tat) in inner.quotas.iter().zip(&mut line.tats) {
                        let cost = quota.cost(1, self.cells);
                        *tat = quota.gcra.charge_anyway(*tat, now, cost);
                    }
                    let requests = if inner.counts_requests() {
                        1
                    } else {
                        self.cells
                    };
                    if let Some(allowance) = &mut line.requests {
                        allowance.remaining = allowance.remaining.saturating_sub(requests);
                    }
                    if let Some(allowance) = &mut line.cells {
                        allowance.remaining = allowance.remaining.saturating_sub(self.cells);
                    }
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
    shaper: Shaper,
    cells: u64,
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

/// Builds a [`Shaper`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct ShaperBuilder {
    quotas: Vec<Quota>,
    concurrency: Option<usize>,
    max_queue: usize,
    max_wait: Duration,
    max_pause: Duration,
}

impl ShaperBuilder {
    /// Adds a quota that upstream grants. All of them are kept.
    ///
    /// With quotas of several [units](Quota::unit), those of requests are charged one cell for each
    /// request, and the others what the request costs: 50 requests and 10 000 tokens a minute.
    pub fn quota(mut self, quota: Quota) -> Self {
        self.quotas.push(quota);
        self
    }

    /// Sets how many requests may be under way at once, from when they are sent until the
    /// response body ends or is dropped.
    ///
    /// Defaults to no limit.
    pub fn concurrency(mut self, requests: usize) -> Self {
        self.concurrency = Some(requests);
        self
    }

    /// Sets how many requests may wait.
    ///
    /// Defaults to 1 000.
    pub fn max_queue(mut self, requests: usize) -> Self {
        self.max_queue = requests;
        self
    }

    /// Sets how long a request may wait.
    ///
    /// Defaults to 30 seconds.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = wait;
        self
    }

    /// Sets how long upstream can make the shaper pause at once, whatever it asks for.
    ///
    /// Defaults to 10 minutes.
    pub fn max_pause(mut self, pause: Duration) -> Self {
        self.max_pause = pause;
        self
    }

    /// Builds the shaper.
    ///
    /// # Errors
    ///
    /// Fails if a quota means nothing or cannot be kept, if concurrency is zero, or if there is
    /// nothing to keep: neither a quota nor a concurrency.
    pub fn build(self) -> Result<Shaper, ShaperError> {
        let Self {
            quotas,
            concurrency,
            max_queue,
            max_wait,
            max_pause,
        } = self;
        if concurrency == Some(0) {
            return Err(ShaperError::ZeroConcurrency);
        }
        if quotas.is_empty() && concurrency.is_none() {
            return Err(ShaperError::Unlimited);
        }
        let is_mixed = quotas
            .iter()
            .any(|quota| quota.cell_unit() != Unit::Requests);
        let keep = |quota: &Quota| {
            Ok(Kept {
                gcra: Gcra::new(quota)?,
                counts_requests: is_mixed && quota.cell_unit() == Unit::Requests,
            })
        };
        let quotas = quotas.iter().map(keep);
        let quotas = quotas.collect::<Result<Box<[_]>, QuotaError>>()?;
        let line = Line {
            tats: vec![0; quotas.len()],
            ..Line::default()
        };
        Ok(Shaper {
            inner: Arc::new(Inner {
                epoch: Instant::now(),
                quotas,
                concurrency: concurrency.unwrap_or(usize::MAX),
                max_queue,
                max_wait: max_wait.min(LONGEST),
                max_pause: max_pause.min(LONGEST),
                line: Mutex::new(line),
            }),
        })
    }
}

/// A shaper that makes no sense.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ShaperError {
    /// A quota means nothing or cannot be kept.
    Quota(QuotaError),
    /// No request at all could be under way.
    ZeroConcurrency,
    /// There is neither a quota nor a concurrency to keep.
    Unlimited,
}

impl From<QuotaError> for ShaperError {
    fn from(error: QuotaError) -> Self {
        Self::Quota(error)
    }
}

impl fmt::Display for ShaperError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quota(_) => "invalid quota of a shaper",
            Self::ZeroConcurrency => "concurrency of 0, expected at least 1",
            Self::Unlimited => "nothing to keep, expected a quota or a concurrency",
        })
    }
}

impl std::error::Error for ShaperError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Quota(error) => Some(error),
            _ => None,
        }
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

const DEFAULT_MAX_QUEUE: usize = 1_000;
const DEFAULT_MAX_WAIT: Duration = Duration::from_secs(30);
const DEFAULT_MAX_PAUSE: Duration = Duration::from_secs(600);

/// Longer than any request waits, and no timer overflows.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
