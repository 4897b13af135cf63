//! What all handles and checkouts of a pool share, and how it closes connections.

use std::error::Error as StdError;
use std::iter;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tower_capacity::Pressure;
use tower_capacity::gate::{Codel, Entered, Gate, Permit};

use crate::adapter::{Adapter, PutBack};
use crate::ages::Aging;
use crate::control::Control;
use crate::holders::Holders;
use crate::metrics::{Metrics, Unserved};
use crate::rights::Rights;
use crate::stats::Stats;
use crate::sync::lock;
use crate::{Mode, sqlstate};

/// What all handles and checkouts of one pool share.
pub(crate) struct Shared<P> {
    pub(crate) adapter: P,
    pub(crate) gate: Gate,
    pub(crate) stats: Stats,
    pub(crate) holders: Holders,
    pub(crate) aging: Aging,
    pub(crate) metrics: Metrics,
    pub(crate) mode: Mode,
    pub(crate) name: Arc<str>,
    pub(crate) open_timeout: Duration,
    /// Whether connections are kept for critical checkouts.
    pub(crate) reserves: bool,
    /// How the queue is shed from at the knee.
    pub(crate) codel: Option<Codel>,
    /// What the tuner wants; the limit in force may be on its way there.
    pub(crate) target: AtomicUsize,
    /// The target, and as many more as are held for far longer than usual.
    pub(crate) allowed: AtomicUsize,
    /// How many connections may stay open: those allowed, and as many as were needed lately.
    pub(crate) kept: AtomicUsize,
    /// How many connections may exist. The limit of the gate, or more while the tuner tries with an
    /// open pool whether fewer would do.
    pub(crate) ceiling: AtomicUsize,
    /// Whether a checkout that waits makes the pool open one more.
    pub(crate) grows: AtomicBool,
    /// Whether each checkout that begins to wait wakes the driver, and not the first alone.
    pub(crate) urgent: AtomicBool,
    /// Checkouts that are to open a connection.
    pub(crate) opening: AtomicUsize,
    /// The share of the checkouts of the last five to ten seconds that was refused or timed out, as
    /// the bits of an `f64`.
    pub(crate) refused: AtomicU64,
    /// Connections that exist, when last looked at.
    pub(crate) size_seen: AtomicUsize,
    /// The part of a fleet's budget.
    pub(crate) rights: Rights,
    /// Dials that may run at the same time.
    pub(crate) dials: Arc<Semaphore>,
    /// Counts failovers.
    pub(crate) generation: AtomicUsize,
    /// Wakes the task that drives the tuner.
    pub(crate) news: Arc<Notify>,
    pub(crate) control: Mutex<Control>,
}

impl<P: Adapter> Shared<P> {
    /// Lowers ceiling and limit, and closes the idle connections that are too many then.
    ///
    /// Their permits are taken before and returned after, so that at no moment there are more
    /// connections than the limit in force and the debt allow, not even on their way out. Those
    /// that are in use come back to a debt, and are closed then. What is within the target stays, even
    /// if the dial budget allows no more at the moment.
    pub(crate) fn lower_limit(&self, from: usize, to: usize) {
        let free = iter::from_fn(|| self.gate.try_acquire().ok());
        let cover: Vec<Permit> = free.take(from.saturating_sub(to)).collect();
        // Checkouts inside that are not known to hold a connection may be opening one. Read in this
        // order, one that is no longer counted here is already counted by the pool.
        let inside = self.gate.inflight().saturating_sub(cover.len());
        let all = match self.adapter.idle() {
            Some(idle) => idle + inside,
            None => self.adapter.size() + inside.saturating_sub(self.holders.in_hand()),
        };
        let kept = self.kept.load(Ordering::Acquire);
        let surplus = all.saturating_sub(to.max(kept));
        self.ceiling.store(to, Ordering::Release);
        let closing = self.adapter.close_idle(surplus.min(cover.len()));
        self.gate.set_limit(to);
        until_done(closing, cover);
    }

    /// Closes one if fewer are kept than were when a connection began to go back: what was closed
    /// since was counted with its permit still out, so one is left that nothing else will close.
    #[inline]
    pub(crate) fn close_if_fewer(&self, kept: usize) {
        if self.kept.load(Ordering::Acquire) < kept {
            self.close_surplus(1);
        }
    }

    pub(crate) fn ceiling(&self) -> usize {
        self.ceiling.load(Ordering::Acquire)
    }

    /// Closes the idle connections that hold no permit.
    pub(crate) fn close_all_idle(&self) {
        self.close_free(usize::MAX);
    }

    /// Closes up to `count` idle connections that hold no permit.
    pub(crate) fn close_free(&self, count: usize) {
        let free = iter::from_fn(|| self.gate.try_acquire().ok());
        let cover: Vec<Permit> = free.take(count).collect();
        self.close_idle(cover.len(), cover);
    }

    /// Closes idle connections above the limit, as far as there are any.
    pub(crate) fn close_surplus(&self, count: usize) {
        let cover: Vec<Permit> = (0..count).map(|_| self.gate.acquire_anyway().0).collect();
        self.close_idle(count, cover);
    }

    /// Closes idle connections, and returns their permits once they are gone.
    pub(crate) fn close_idle(&self, count: usize, cover: Vec<Permit>) {
        until_done(self.adapter.close_idle(count), cover);
    }

    /// How hard the pool is pressed.
    pub(crate) fn pressure(&self) -> Pressure {
        let gate = self.gate.snapshot();
        // After a shrink more may be out than are allowed.
        let in_use = gate.inflight().min(gate.limit());
        let waiting = match self.grows.load(Ordering::Relaxed) {
            true => 0,
            false => gate.queued(),
        };
        let refused = f64::from_bits(self.refused.load(Ordering::Relaxed));
        Pressure::of(in_use, waiting, gate.limit()).with_refused(refused)
    }

    /// Counts a checkout that got no connection.
    pub(crate) fn unserved(&self, reason: Unserved) {
        self.stats.unserved(reason);
        self.metrics.unserved(reason);
    }

    pub(crate) fn control(&self) -> MutexGuard<'_, Control> {
        // A panic elsewhere leaves numbers behind that are at worst one window old.
        lock(&self.control)
    }

    pub(crate) fn note_error(&self, error: &(dyn StdError + 'static)) -> Option<sqlstate::Meaning> {
        self.note_sqlstate(&sqlstate::of(error)?)
    }

    pub(crate) fn note_sqlstate(&self, code: &str) -> Option<sqlstate::Meaning> {
        let meaning = sqlstate::meaning(code);
        match meaning {
            Some(sqlstate::Meaning::ServerChanged) => self.server_changed(),
            Some(sqlstate::Meaning::ConnectionLost) => self.connection_lost(),
            Some(sqlstate::Meaning::TooManyConnections) => {
                self.rights.refused();
                self.dial_failed();
            }
            None => {}
        }
        meaning
    }

    pub(crate) fn tell_if_below_target(&self) {
        if self.ceiling() < self.allowed.load(Ordering::Relaxed) {
            self.news.notify_one();
        }
    }
}

impl<P> Drop for Shared<P> {
    fn drop(&mut self) {
        // The driver finds nothing to drive, and ends.
        self.news.notify_one();
    }
}

/// A permit of a pool's gate, with the pool.
pub(crate) struct Inside<P: Adapter> {
    pub(crate) shared: Arc<Shared<P>>,
    /// Taken only when it is returned.
    entered: Option<Entered>,
}

impl<P: Adapter> Inside<P> {
    #[inline]
    pub(crate) fn new(shared: Arc<Shared<P>>, entered: Entered) -> Self {
        shared.aging.entered(entered.inflight());
        Self::uncounted(shared, entered)
    }

    /// One that is no sign that its connection is needed.
    #[inline]
    pub(crate) fn uncounted(shared: Arc<Shared<P>>, entered: Entered) -> Self {
        Self {
            shared,
            entered: Some(entered),
        }
    }

    #[inline]
    fn exit(&mut self) {
        if let Some(entered) = self.entered.take() {
            self.shared.gate.exit(entered);
        }
    }

    /// Returns the permit of a connection that is back; `kept`: how many were, when it began to go
    /// back.
    ///
    /// It comes back before its permit, so that the next in the queue finds it idle. While more are
    /// inside than are kept it is one too many, and one is closed while it is still paid for.
    #[inline]
    pub(crate) fn put_back(mut self, kept: usize) {
        if self.shared.mode == Mode::Recommend {
            return;
        }
        if self.shared.gate.inflight() > self.shared.kept.load(Ordering::Acquire) {
            return self.put_back_surplus(kept);
        }
        if self.shared.aging.has_lifetime() {
            return self.retire_and_put_back(kept);
        }
        self.exit();
        self.shared.close_if_fewer(kept);
    }

    #[cold]
    fn retire_and_put_back(mut self, kept: usize) {
        let shared = Arc::clone(&self.shared);
        match shared.retire_returned() {
            PutBack::Done => self.exit(),
            closing => until_done(closing, self),
        }
        shared.close_if_fewer(kept);
    }

    #[cold]
    fn put_back_surplus(self, kept: usize) {
        let shared = Arc::clone(&self.shared);
        until_done(shared.adapter.close_idle(1), self);
        shared.close_if_fewer(kept);
    }
}

impl<P: Adapter> Drop for Inside<P> {
    #[inline]
    fn drop(&mut self) {
        self.exit();
    }
}

/// A connection that is not back or gone by then is dropped, and its permit returned.
pub(crate) const DONE_WITHIN: Duration = Duration::from_secs(5);

/// Drops `then` when connections are back or gone.
pub(crate) fn until_done(back: PutBack, then: impl Send + 'static) {
    let PutBack::Later(back) = back else {
        return;
    };
    let back = async move {
        let _ = timeout(DONE_WITHIN, back).await;
        drop(then);
    };
    // Without a runtime, dropping it closes the connections and returns the permits.
    if let Ok(runtime) = Handle::try_current() {
        drop(runtime.spawn(back));
    }
}
