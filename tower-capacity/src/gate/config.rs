//! How a gate starts out.

use std::time::Duration;

use super::{Codel, Partition};

/// How a [`Gate`](super::Gate) starts out.
#[derive(Clone, Debug)]
#[must_use]
pub struct GateConfig {
    pub(super) limit: usize,
    pub(super) max_queue: Option<usize>,
    pub(super) max_wait: Duration,
    pub(super) codel: Option<Codel>,
    pub(super) shares: Vec<f64>,
    pub(super) reserved: usize,
}

impl GateConfig {
    /// The longest wait by default: one second.
    pub const DEFAULT_MAX_WAIT: Duration = Duration::from_secs(1);

    /// Starts with `limit` permits, at most 2,097,151.
    pub const fn new(limit: usize) -> Self {
        Self {
            limit,
            max_queue: None,
            max_wait: Self::DEFAULT_MAX_WAIT,
            codel: None,
            shares: Vec::new(),
            reserved: 0,
        }
    }

    /// Sets how many may wait, each as often as it [costs](super::Ask::cost): a request finds a place as
    /// long as they are fewer. Zero refuses at once a request that finds no permit.
    ///
    /// Defaults to the limit in force, so that by Little's law a full room costs its last waiter
    /// about one service time: enough to absorb a burst, too little to store an overload. Below a limit
    /// of eight it stays at eight, since chance alone fills fewer.
    pub const fn max_queue(mut self, waiters: usize) -> Self {
        self.max_queue = Some(waiters);
        self
    }

    /// Sets how long a request waits. [`Duration::MAX`] waits without bound.
    ///
    /// Defaults to [`DEFAULT_MAX_WAIT`](Self::DEFAULT_MAX_WAIT).
    pub const fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = wait;
        self
    }

    /// Sheds from a line that has stopped absorbing bursts, and serves its newest first.
    ///
    /// Defaults to none: in order of arrival, as long as `max_wait` allows.
    pub const fn codel(mut self, codel: Codel) -> Self {
        self.codel = Some(codel);
        self
    }

    /// Reserves permits of the limit for [`Priority::Critical`](super::Priority::Critical), such as health checks: no other
    /// class may fill them. One permit is for every class, however small the limit.
    ///
    /// Defaults to none.
    pub const fn reserved(mut self, permits: usize) -> Self {
        self.reserved = permits;
        self
    }

    /// Guarantees shares of the limit, from 0 to 1, to the [partitions](Partition) from 1 on.
    ///
    /// Shares beyond a sum of 1 are still served in proportion, but cannot all be held at once.
    /// Defaults to none: then all partitions in use are guaranteed the same.
    pub fn shares(mut self, shares: impl IntoIterator<Item = f64>) -> Self {
        self.shares = shares.into_iter().take(Partition::MAX).collect();
        self
    }
}
