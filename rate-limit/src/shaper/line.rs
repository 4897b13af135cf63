//! The queue in front of another service, and everything that is known of that.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;

use crate::{gcra::Gcra, sync::lock};

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
    pub(super) fn now(&self) -> u64 {
        nanos(self.inner.epoch.elapsed())
    }

    pub(super) fn instant(&self, nanos: u64) -> Instant {
        self.inner.epoch + Duration::from_nanos(nanos)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Line> {
        // No user code runs under it, and the line is consistent after every statement that can
        // panic.
        lock(&self.inner.line)
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

    /// Charges one request that costs `cells` to everything that limits it, except concurrency.
    pub(super) fn charge(&mut self, inner: &Inner, now: u64, cells: u64) {
        for (quota, tat) in inner.quotas.iter().zip(&mut self.tats) {
            *tat = quota.gcra.charge_anyway(*tat, now, quota.cost(1, cells));
        }
        let requests = if inner.counts_requests() { 1 } else { cells };
        for (allowance, cost) in [(&mut self.requests, requests), (&mut self.cells, cells)] {
            if let Some(allowance) = allowance {
                allowance.remaining = allowance.remaining.saturating_sub(cost);
            }
        }
    }

    /// How long a request that joins the queue now will wait.
    pub(super) fn expected_wait(&self, inner: &Inner, now: u64, cells: u64) -> u64 {
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

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
