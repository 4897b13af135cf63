//! The handle of a gate: its settings, its end and its numbers.

use std::{fmt, sync::atomic::Ordering::Relaxed, time::Duration};

use super::{
    Codel, GateConfig, GateSnapshot, Partition,
    shared::Shared,
    word::{MAX, Word},
};
use crate::sync::{Arc, lock};

/// A counter of requests inside, with a movable limit and a bounded waiting room.
///
/// Cloning is cheap and gives another handle to the same gate. See the [module docs](super).
#[derive(Clone)]
pub struct Gate {
    pub(super) shared: Arc<Shared>,
}

impl Gate {
    /// Largest limit that a gate can hold: 2,097,151. Larger ones are lowered to it.
    pub const MAX_LIMIT: usize = MAX;

    /// Creates a gate.
    #[must_use]
    pub fn new(config: GateConfig) -> Self {
        Self {
            shared: Arc::new(Shared::new(&config)),
        }
    }

    /// Moves the limit, at most to [`MAX_LIMIT`](Self::MAX_LIMIT).
    ///
    /// A higher limit admits waiters at once, in order. A lower one revokes nothing: see
    /// [`debt`](Self::debt). Zero admits none until it is raised again.
    pub fn set_limit(&self, limit: usize) {
        self.set_limit_beside(limit, 0);
    }

    /// Moves the limit, of which `held` permits are out for good: a request that costs more than
    /// the rest waits for the rest, not for those.
    pub(crate) fn set_limit_beside(&self, limit: usize, held: usize) {
        // Before the limit, so that the waiters that it admits are judged by both.
        self.shared.held.store(held, Relaxed);
        let before = self.shared.word.set_limit(limit.min(MAX));
        if before.queued() > 0 {
            self.shared.admit_waiters();
        }
    }

    /// Changes how many may wait (`None`: as many as the limit in force, and eight at least) and for how long.
    ///
    /// Applies to requests that come from now on; no waiter is sent away.
    pub fn set_waiting(&self, max_queue: Option<usize>, max_wait: Duration) {
        self.shared.set_max_queue(max_queue);
        lock(&self.shared.room).max_wait = max_wait;
    }

    /// Changes the bounds of a healthy wait, see [`GateConfig::codel`].
    pub fn set_codel(&self, codel: Option<Codel>) {
        lock(&self.shared.room).codel = codel;
    }

    /// Refuses every request that comes from now on. Waiters keep their place.
    pub fn close(&self) {
        let before = self.shared.word.close();
        if before.is_idle() {
            self.shared.emptied.notify_waiters();
        }
    }

    /// Admits again after [`close`](Self::close).
    pub fn reopen(&self) {
        self.shared.word.reopen();
        self.shared.emptied.notify_waiters();
    }

    /// Whether the gate was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.word.load().is_closed()
    }

    /// Waits until the gate is closed, no request is inside and none waits.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect on the gate.
    pub async fn emptied(&self) {
        self.settled(|word| (word.is_closed() && word.is_idle()).then_some(()))
            .await;
    }

    /// Waits until a closed gate is empty, or is open again: `false`.
    #[cfg(not(loom))]
    pub(crate) async fn drained(&self) -> bool {
        self.settled(|word| match word.is_closed() {
            true => word.is_idle().then_some(true),
            false => Some(false),
        })
        .await
    }

    /// Waits for what changes when a gate closes, opens or empties.
    async fn settled<T>(&self, read: impl Fn(Word) -> Option<T>) -> T {
        loop {
            let changed = self.shared.emptied.notified();
            tokio::pin!(changed);
            // Registered before the load, so that no change falls between the two.
            changed.as_mut().enable();
            if let Some(read) = read(self.shared.word.load()) {
                return read;
            }
            changed.await;
        }
    }

    /// Requests allowed inside.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.snapshot().limit()
    }

    /// Requests inside, each as often as it costs.
    #[must_use]
    pub fn inflight(&self) -> usize {
        self.snapshot().inflight()
    }

    /// Requests of a partition inside, each as often as it costs.
    #[must_use]
    pub fn inflight_of(&self, partition: Partition) -> usize {
        self.shared
            .partitions
            .inflight(partition, self.shared.word.load())
    }

    /// Requests that wait, each as often as it costs.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.snapshot().queued()
    }

    /// Requests inside above the limit; zero unless the limit was lowered below them, or one costs
    /// more than the limit.
    #[must_use]
    pub fn debt(&self) -> usize {
        self.snapshot().debt()
    }

    /// Reads limit, inflight and queue in one moment.
    #[must_use]
    #[inline]
    pub fn snapshot(&self) -> GateSnapshot {
        GateSnapshot(self.shared.word.load())
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot().fields(&mut f.debug_struct("Gate"))
    }
}
