//! The line in front of somebody else's service.

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
use crate::{Quota, QuotaError, gcra::Gcra};

/// Lets requests through at the pace of its quotas, a bounded number at once. A cheap handle:
/// clones share one line.
#[derive(Clone)]
pub struct Shaper {
    inner: Arc<Inner>,
}

struct Inner {
    epoch: Instant,
    quotas: Box<[Gcra]>,
    concurrency: usize,
    max_queue: usize,
    max_wait: Duration,
    max_pause: Duration,
    line: Mutex<Line>,
}

/// Everything that changes. Times are nanoseconds since the epoch.
#[derive(Default)]
struct Line {
    /// The TAT of each quota.
    tats: Vec<u64>,
    inflight: usize,
    waiting: VecDeque<Waiting>,
    /// The cells that those waiting will be charged.
    queued_cells: u64,
    next_ticket: u64,
    /// Upstream wants nothing before this.
    paused_until: u64,
    /// Upstream wants at most so many before then.
    allowance: Option<Allowance>,
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

    /// How many requests wait for their turn.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// How much longer upstream wants to be left alone; zero when it does not mind.
    #[must_use]
    pub fn paused_for(&self) -> Duration {
        Duration::from_nanos(self.lock().paused_until.saturating_sub(self.now()))
    }

    /// Lets nobody through for `wait`, at most [`max_pause`](ShaperBuilder::max_pause). What
    /// follows is paced: a burst right after a pause is what upstream has just asked not to get.
    pub fn pause(&self, wait: Duration) {
        let now = self.now();
        let until = now.saturating_add(nanos(wait.min(self.inner.max_pause)));
        let mut line = self.lock();
        if until > line.paused_until {
            line.paused_until = until;
            for (gcra, tat) in self.inner.quotas.iter().zip(&mut line.tats) {
                *tat = gcra.leave_one_at(*tat, until);
            }
            line.wake_first();
        }
    }

    /// Lets at most `requests` through in the time `within`, beyond those under way.
    pub(super) fn allow(&self, requests: u64, within: Duration) {
        let until = self
            .now()
            .saturating_add(nanos(within.min(self.inner.max_pause)));
        let mut line = self.lock();
        // The one that brought the news is not under way any more for upstream; the others may or
        // may not be in its count. Assuming that they are not is the safe way to be wrong.
        let others = line.inflight.saturating_sub(1) as u64;
        line.allowance = Some(Allowance {
            remaining: requests.saturating_sub(others),
            until,
        });
        line.wake_first();
    }

    pub(super) fn heed(&self, feedback: Feedback) {
        if let Some(wait) = feedback.pause {
            self.pause(wait);
        }
        if let Some((requests, within)) = feedback.allowance {
            self.allow(requests, within);
        }
    }

    /// Joins the line for `cells`, unless the wait would be too long.
    pub(super) fn join(
        &self,
        cells: u64,
        patience: Option<Duration>,
    ) -> Result<Ticket, WaitRefused> {
        let inner = &*self.inner;
        let now = self.now();
        let patience = patience.map_or(inner.max_wait, |own| own.min(inner.max_wait));
        let mut line = self.lock();
        if inner.quotas.iter().any(|gcra| cells > gcra.burst()) {
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
    /// How long until the first in line, with `cells`, conforms to all that limits it but
    /// concurrency.
    fn wait_of_first(&self, inner: &Inner, now: u64, cells: u64) -> u64 {
        let quotas = inner.quotas.iter().zip(&self.tats);
        let quotas = quotas
            .map(|(gcra, &tat)| gcra.wait_for(tat, now, cells))
            .max()
            .unwrap_or(0);
        let allowance = match self.allowance {
            Some(Allowance { remaining, until }) if remaining < cells => until.saturating_sub(now),
            _ => 0,
        };
        quotas
            .max(self.paused_until.saturating_sub(now))
            .max(allowance)
    }

    /// How long one who joins the line now will wait for the quotas. Waiting for others to finish
    /// comes on top, and nobody knows how long they take.
    fn expected_wait(&self, inner: &Inner, now: u64, cells: u64) -> u64 {
        let cells = self.queued_cells.saturating_add(cells);
        let quotas = inner.quotas.iter().zip(&self.tats);
        let quotas = quotas
            .map(|(gcra, &tat)| gcra.wait_for(tat, now, cells))
            .max()
            .unwrap_or(0);
        quotas.max(self.paused_until.saturating_sub(now))
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

/// A place in the line. Dropping it gives it up.
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
    ) -> Poll<Result<Turn, WaitRefused>> {
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
                if line
                    .allowance
                    .is_some_and(|allowance| allowance.until <= now)
                {
                    line.allowance = None;
                }
                let wait = line.wait_of_first(inner, now, self.cells);
                let free = line.inflight < inner.concurrency;
                if first && free && wait == 0 {
                    for (gcra, tat) in inner.quotas.iter().zip(&mut line.tats) {
                        *tat = gcra.charge_anyway(*tat, now, self.cells);
                    }
                    if let Some(allowance) = &mut line.allowance {
                        allowance.remaining = allowance.remaining.saturating_sub(self.cells);
                    }
                    line.inflight += 1;
                    self.waiting = false;
                    line.leave(0);
                    return Poll::Ready(Ok(Turn {
                        shaper: shaper.clone(),
                    }));
                }
                if now >= self.deadline {
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
                // Without a free place, whoever leaves one wakes the first.
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

/// The right to be under way; the place is free again when it is dropped.
pub(super) struct Turn {
    shaper: Shaper,
}

impl Turn {
    pub(super) fn shaper(&self) -> &Shaper {
        &self.shaper
    }
}

impl Drop for Turn {
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
    /// Fails when a quota means nothing or cannot be kept, when concurrency is zero, and when
    /// there is nothing to keep: neither a quota nor a concurrency.
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
        let quotas = quotas
            .iter()
            .map(Gcra::new)
            .collect::<Result<Box<[_]>, _>>()?;
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
            .field("allowance", &line.allowance)
            .finish_non_exhaustive()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

const DEFAULT_MAX_QUEUE: usize = 1_000;
const DEFAULT_MAX_WAIT: Duration = Duration::from_secs(30);
const DEFAULT_MAX_PAUSE: Duration = Duration::from_secs(600);

/// Longer than anybody waits, and no timer overflows.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
