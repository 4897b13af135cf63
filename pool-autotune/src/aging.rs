//! Connections that are closed for their age or because they are not needed, and those kept open.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;
use tower_capacity::gate::Ask;

use crate::adapter::{Adapter, PutBack};
use crate::control::{Control, TICK};
use crate::opening::Unused;
use crate::shared::{Inside, Shared, until_done};
use crate::{Error, Mode};

/// How long connections above the target that were needed are kept, or up to half as long again, unless
/// an idle timeout is set: that of HikariCP. To close one sooner saves nothing that its next dial would
/// not cost.
const KEPT_FOR: Duration = Duration::from_secs(600);

impl<P: Adapter> Shared<P> {
    pub(crate) fn age(self: &Arc<Self>, control: &mut Control, now: Instant) {
        if self.mode == Mode::Recommend {
            return;
        }
        for _ in 0..control.dial.at_once() {
            if !self.is_time_to_retire() {
                break;
            }
            // With its permit, so that it is neither handed out nor counted twice meanwhile.
            let Some(entered) = self.gate.try_enter(Ask::new()) else {
                break;
            };
            let cover = Inside::uncounted(Arc::clone(self), entered);
            let Some(closing) = self.retire(control, now) else {
                break;
            };
            until_done(closing, cover);
        }
        self.close_unneeded(control, now);
        self.keep_open();
    }

    /// Closes a connection that is due, after one has been given back.
    #[cold]
    pub(crate) fn retire_returned(&self) -> PutBack {
        let Some(lifetime) = self.aging.lifetime.filter(|_| self.is_time_to_retire()) else {
            return PutBack::Done;
        };
        let skip = self.aging.skip.load(Relaxed);
        if skip > 0 {
            self.aging.skip.store(skip - 1, Relaxed);
            return PutBack::Done;
        }
        let now = Instant::now();
        let due = now.checked_sub(lifetime.due);
        let (mut seen, mut is_any_due) = (0, false);
        // Closes none.
        let _ = self.adapter.close_aged(&mut |born| {
            seen += 1;
            is_any_due |= due.is_some_and(|due| born <= due);
            false
        });
        if !is_any_due {
            self.aging.skip_some(seen);
            return PutBack::Done;
        }
        let closing = self.retire(&mut self.control(), now);
        closing.unwrap_or(PutBack::Done)
    }

    fn is_time_to_retire(&self) -> bool {
        self.aging.has_lifetime() && self.stats.now() >= self.aging.next.load(Relaxed)
    }

    /// Closes an idle connection that is due, unless it is needed until another has taken its place.
    fn retire(&self, control: &mut Control, now: Instant) -> Option<PutBack> {
        let lifetime = self.aging.lifetime?;
        let due = now.checked_sub(lifetime.due)?;
        let overdue = now.checked_sub(lifetime.overdue);
        let max = control.tuner.bounds().max();
        let target = self.target.load(Relaxed) + control.held.count + control.hanging;
        let target = target.min(max);
        let size = self.adapter.size();
        let idle = self.adapter.idle();
        let idle = idle.unwrap_or_else(|| size.saturating_sub(self.holders.in_hand()));
        // At the maximum none can be opened before.
        let is_full = size >= target && target >= max;
        let is_spare = idle >= 2 || size > target || is_full;
        let (mut closed, mut waits) = (0, 0);
        let closing = self.adapter.close_aged(&mut |born| {
            let closes = is_spare || overdue.is_some_and(|overdue| born <= overdue);
            let is_due = born <= due && closed == 0;
            waits += usize::from(is_due && !closes);
            closed += usize::from(is_due && closes);
            is_due && closes
        });
        if closed > 0 {
            // What a tick comes too late is made up for.
            let last = self.stats.now().saturating_sub(TICK.as_nanos() as u64);
            let from = self.aging.next.load(Relaxed).max(last);
            let next = from + lifetime.spacing(size).as_nanos() as u64;
            self.aging.next.store(next, Relaxed);
            control.aging.is_replacing = false;
        } else if waits > 0 {
            control.aging.is_replacing = true;
            control.ahead = control.ahead.max(1);
        }
        (closed > 0).then_some(closing)
    }

    /// Closes the connections that were not needed for as long as the idle timeout.
    ///
    /// A timer for each would close none where the pool behind hands them out in turn.
    fn close_unneeded(&self, control: &mut Control, now: Instant) {
        let half = self.aging.idle_timeout.unwrap_or(KEPT_FOR) / 2;
        if now.saturating_duration_since(control.aging.needed_since) < half {
            return;
        }
        let peak = self.aging.peak.swap(self.gate.inflight(), Relaxed);
        let needed = peak.max(control.aging.needed);
        control.aging.needed = peak;
        control.aging.needed_since = now;
        control.kept = control.kept.min(needed);
        if self.aging.idle_timeout.is_some() {
            let needed = needed.max(self.aging.keep_open);
            self.close_free(self.adapter.size().saturating_sub(needed));
        }
    }

    /// Opens what is missing of the connections to be kept open.
    fn keep_open(self: &Arc<Self>) {
        let target = self.target.load(Relaxed);
        let keep = self.aging.keep_open.min(target);
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        if self.adapter.size() >= keep || self.aging.is_warming.swap(true, Relaxed) {
            return;
        }
        let warming = Warming(Arc::clone(self));
        let opening = async move {
            // Tried again at the next look.
            let _ = warming.0.warm(keep).await;
            drop(warming);
        };
        drop(runtime.spawn(opening));
    }

    /// Opens connections within the dial budget until there are as many, and none that is idle.
    pub(crate) async fn warm(self: &Arc<Self>, connections: usize) -> Result<(), Error<P::Error>> {
        let opening: Vec<_> = (0..connections)
            .map(|_| {
                let shared = Arc::clone(self);
                tokio::spawn(async move {
                    let ask = Ask::new();
                    let mut entry = pin!(shared.gate.acquire_with(ask));
                    let permit = shared.enter(entry.as_mut()).await;
                    let permit = permit.map_err(|refused| Error::refused(&refused))?;
                    let inside = Inside::uncounted(Arc::clone(&shared), permit.into_entered());
                    shared.dial(inside, Instant::now(), ask, false).await
                })
            })
            .collect();
        // All are kept until the last is open: one that goes back would be the next to be found.
        let mut open: Vec<Unused<P>> = Vec::new();
        for opening in opening {
            if let Ok(opened) = opening.await {
                open.push(opened?);
            }
        }
        Ok(())
    }
}

struct Warming<P: Adapter>(Arc<Shared<P>>);

impl<P: Adapter> Drop for Warming<P> {
    fn drop(&mut self) {
        self.0.aging.is_warming.store(false, Relaxed);
    }
}
