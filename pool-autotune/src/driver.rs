//! The task that drives a pool's tuner.
//!
//! One task per pool, spawned by [`Builder::build`](crate::Builder::build), holding the pool
//! weakly. It wakes every 250 ms to close a window, and in between when a checkout lines up, or a
//! connection was opened, while the limit is below its target. It ends with the last handle.

use std::sync::atomic::Ordering::{AcqRel, Relaxed, Release};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tower_capacity::gate::Ask;

use crate::adapter::Adapter;
use crate::control::{Control, TICK, keep_decision};
use crate::holders::Held;
use crate::metrics::Levels;
use crate::shared::{Inside, Shared};
#[cfg(feature = "json")]
use crate::tuner::Given;
use crate::tuner::{Cause, Decision, DialState, PoolWindow, Reason, Verdict};
use crate::{Bounds, Mode, PoolSnapshot, events};

/// The time to the next window while checkouts wait and the tuner may open more for them.
const SOON: Duration = Duration::from_millis(10);

/// `turn`: a task with a later one has taken its place.
pub(crate) async fn run<P: Adapter>(pool: Weak<Shared<P>>, news: Arc<Notify>, turn: u64) {
    while let Some(wake) = pool
        .upgrade()
        .and_then(|pool| pool.step(turn, Instant::now()))
    {
        // Both ends mean the same: look again.
        let _ = timeout_at(wake, news.notified()).await;
    }
}

/// A pool that waits so long for connections to open waits for nothing else.
const OPENING_FOR: Duration = Duration::from_secs(5);

impl<P: Adapter> Shared<P> {
    /// Closes a window if it is time, moves the limit towards its target, and says when to look
    /// again.
    /// `None` ends the task.
    fn step(self: &Arc<Self>, turn: u64, now: Instant) -> Option<Instant> {
        let mut control = self.control();
        if control.turn != turn {
            return None;
        }
        control.stepped = now;
        let is_urgent = control.tuner.is_urgent(now);
        if is_urgent && self.gate.queued() > 0 && self.gate.limit() >= control.tuner.target() {
            control.next_window = now;
        }
        if now >= control.next_window {
            self.close_window(&mut control, now);
            self.stats.clock().compare();
            control.next_window = now + TICK;
            self.age(&mut control, now);
        }
        if self.gate.queued() > 0 && control.tuner.may_grow() {
            control.next_window = control.next_window.min(now + SOON);
        }
        self.urgent.store(is_urgent, Relaxed);
        self.follow_fleet(&mut control, now);
        self.apply(&mut control, now);
        self.open_ahead(&mut control, now);
        if let Some(changes) = self.rights.admits_until(now) {
            control.next_window = control.next_window.min(changes);
        }
        let waiting_for_token = self.gate.queued() > 0
            && self.ceiling() < self.allowed.load(Relaxed)
            && self.mode == Mode::Enforce;
        let mut wake = control.next_window;
        if waiting_for_token {
            let next = control.dial.next_token().into_iter();
            let next = next.chain(control.dial.next_try().filter(|&next| next > now));
            wake = next.fold(wake, Instant::min);
        }
        Some(wake)
    }

    /// Opens connections that no checkout waits for.
    fn open_ahead(self: &Arc<Self>, control: &mut Control, now: Instant) {
        while control.ahead > 0 {
            let Some(entered) = self.gate.try_enter(Ask::new()) else {
                return;
            };
            let inside = Inside::new(Arc::clone(self), entered);
            control.ahead -= 1;
            if !self.expects_idle() {
                drop(Handle::current().spawn(self.dial(inside, now, Ask::new(), true)));
            }
        }
    }

    /// Drives the pool from this runtime, if the one that did has ended or stands still.
    pub(crate) fn revive_driver(self: &Arc<Self>, now: Instant) {
        /// Four windows.
        const STILL: Duration = Duration::from_secs(1);
        let mut control = self.control();
        let has_ended = control.driver.as_ref().is_none_or(AbortHandle::is_finished);
        if !has_ended && now.saturating_duration_since(control.stepped) < STILL {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        control.turn += 1;
        control.stepped = now;
        let driver = run(Arc::downgrade(self), Arc::clone(&self.news), control.turn);
        control.driver = Some(runtime.spawn(driver).abort_handle());
        events::revived(&self.name);
    }

    /// One event is one failover, whichever of its errors is told first.
    pub(crate) fn server_changed(&self) {
        /// Every connection of the old server says the same.
        const ONCE_IN: Duration = Duration::from_secs(10);
        let now = Instant::now();
        let mut control = self.control();
        let last = control.failed_over;
        if last.is_none_or(|last| now.saturating_duration_since(last) >= ONCE_IN) {
            self.fail_over(&mut control, now);
        }
    }

    /// A second connection that is lost within a second tells of the server.
    pub(crate) fn connection_lost(&self) {
        const TOGETHER: Duration = Duration::from_secs(1);
        let now = Instant::now();
        let last = self.control().lost.replace(now);
        if last.is_some_and(|last| now.saturating_duration_since(last) <= TOGETHER) {
            self.server_changed();
        }
    }

    pub(crate) fn set_bounds(&self, bounds: Bounds) {
        let now = Instant::now();
        let mut control = self.control();
        control.bounds = bounds;
        self.bind(&mut control, now, bounds);
        self.follow_fleet(&mut control, now);
        self.apply(&mut control, now);
    }

    fn bind(&self, control: &mut Control, now: Instant, bounds: Bounds) {
        let decision = control.tuner.set_bounds(now, bounds);
        control.recording.bounds(now, bounds);
        #[cfg(feature = "json")]
        control.log(&decision, || Given::Bounds {
            min: bounds.min(),
            max: bounds.max(),
        });
        self.record(control, decision);
    }

    /// Reports to the budget of a fleet what this pool needs, and keeps to its share of it.
    fn follow_fleet(&self, control: &mut Control, now: Instant) {
        if !self.rights.is_bound() {
            return;
        }
        let (need, want) = self.needs(control, now);
        let share = self.rights.follow(need, want, || self.adapter.size());
        let (target, max) = (control.tuner.target(), control.tuner.bounds().max());
        let is_bound = max < control.bounds.max();
        // A share that leaves room is no bound: the tuner is not to be disturbed by every beat.
        let max = if share >= control.bounds.max() || share >= with_room(target) {
            control.bounds.max()
        } else if is_bound || share < target {
            share
        } else {
            max
        };
        let bounds = control.bounds.at_most(max.max(1));
        if bounds != control.tuner.bounds() {
            self.bind(control, now, bounds);
        }
    }

    /// What this pool uses or waits for, and what it would have if there were enough.
    fn needs(&self, control: &mut Control, now: Instant) -> (usize, usize) {
        /// The most in one to two of these counts. Longer, and what a load that has moved on leaves behind
        /// comes too late for the queue at its new place.
        const LATELY: Duration = Duration::from_millis(500);
        let gate = self.gate.snapshot();
        let used = gate.inflight() + gate.queued();
        if now.saturating_duration_since(control.needed_since) >= LATELY {
            control.needed = (used, control.needed.0);
            control.needed_since = now;
        }
        control.needed.0 = control.needed.0.max(used);
        let target = control.tuner.target();
        let at_knee = matches!(control.tuner.verdict(), Verdict::AtKnee(_));
        let is_bound = target == control.tuner.bounds().max();
        let want = if at_knee {
            target
        } else if is_bound && gate.queued() > 0 {
            (target + gate.queued()).max(with_room(target))
        } else {
            with_room(target)
        };
        let want = (want + control.held.count).min(control.bounds.max());
        let need = control.needed.0.max(control.needed.1);
        (need.min(want), want)
    }

    pub(crate) fn snapshot(&self) -> PoolSnapshot {
        let control = self.control();
        let (window, waits) = control.recent.merged();
        let dial_error = control.dial_error.clone();
        let held = control.held.count;
        drop(control);
        let gate = self.gate.snapshot();
        PoolSnapshot {
            name: Arc::clone(&self.name),
            mode: self.mode,
            target: self.target.load(Relaxed),
            limit: gate.limit(),
            size: self.adapter.size(),
            in_use: gate.inflight(),
            held,
            pending: gate.queued(),
            arrival_rate: window.arrival_rate(),
            throughput: window.throughput(),
            wait_mean: Duration::from_secs_f64(window.mean_wait_time()),
            wait_p95: waits.quantile(0.95),
            use_mean: window.mean_use_time().map(Duration::from_secs_f64),
            dial_error,
            #[cfg(feature = "fleet")]
            budget: self.rights.snapshot(),
        }
    }

    pub(crate) fn peak_demand(&self) -> Option<usize> {
        self.control().tuner.peak_demand()
    }

    pub(crate) fn failover(&self) {
        self.fail_over(&mut self.control(), Instant::now());
    }

    fn fail_over(&self, control: &mut Control, now: Instant) {
        control.failed_over = Some(now);
        if self.mode == Mode::Enforce {
            control.generation_since = now;
            self.generation.fetch_add(1, AcqRel);
            self.close_all_idle();
        }
        let decision = control.tuner.failover(now);
        control.recording.failover(now);
        #[cfg(feature = "json")]
        control.log(&decision, || Given::Failover);
        self.record(control, decision);
        self.apply(control, now);
    }

    /// A dial failed: for a while, the pool lives on what it has.
    pub(crate) fn dial_failed(&self) {
        let now = Instant::now();
        let mut control = self.control();
        control.dial.failed(now);
        control.completed_then = self.holders.completions();
        self.apply(&mut control, now);
    }

    pub(crate) fn verdict(&self, now: Instant) -> Verdict {
        self.judge(&self.control(), now)
    }

    fn judge(&self, control: &Control, now: Instant) -> Verdict {
        /// A deadlock that formed so recently is worth telling before anything else.
        const NESTED_FOR: Duration = Duration::from_secs(60);
        if let Some(nested) = control.confirm(self.holders.completions()) {
            return Verdict::NestedAcquire(nested);
        }
        if let Some((at, nested)) = control.nested
            && now.saturating_duration_since(at) < NESTED_FOR
        {
            return Verdict::NestedAcquire(nested);
        }
        if let Some(verdict) = self.rights.verdict() {
            return verdict;
        }
        let is_down = control.dial.is_failing() && self.adapter.size() == 0;
        if is_down {
            return Verdict::ConnectBound;
        }
        if control
            .opening_since
            .is_some_and(|since| now - since >= OPENING_FOR)
        {
            return Verdict::ConnectBound;
        }
        if self.adapter.is_multiplexed()
            && let Some(n) = worth_sharing(&control.recent.merged().0)
        {
            return Verdict::UseMultiplexed { n };
        }
        match self.tuners_verdict(control) {
            Verdict::Healthy => match self.held(control, Duration::ZERO).leak() {
                Some(leak) => Verdict::Leaking(leak),
                None => Verdict::Healthy,
            },
            verdict => verdict,
        }
    }

    /// What the tuner says, and where its bound is what the fleet shares of the knee, that.
    fn tuners_verdict(&self, control: &Control) -> Verdict {
        match control.tuner.verdict() {
            Verdict::BudgetBound
                if control.tuner.bounds().max() < control.bounds.max()
                    && self.rights.is_at_knee() =>
            {
                Verdict::AtKnee(Cause::Unknown)
            }
            verdict => verdict,
        }
    }

    /// Finds the connections that are held for far longer than usual, and takes them out of what
    /// the tuner looks at: they are no sign of demand, and serve nothing.
    fn set_held_apart(&self, control: &mut Control, window: &mut PoolWindow) {
        /// No use time below this is far longer than usual.
        const LEAST: Duration = Duration::from_secs(10);
        /// Nor one below this many times the usual.
        const TIMES: u32 = 20;
        let recent = control.recent.merged().0.mean_use_time();
        control.usual = recent.map(Duration::from_secs_f64).or(control.usual);
        let after = control
            .usual
            .map(|usual| LEAST.max(usual.saturating_mul(TIMES)));
        self.stats.hold_after(after.unwrap_or(Duration::MAX));
        control.held_after = after.unwrap_or(LEAST);
        let held = self.held(control, window.duration);
        window.busy = window.busy.saturating_sub(held.busy);
        window.capacity = window.capacity.saturating_sub(held.busy);
        window.limit = window.limit.saturating_sub(held.count);
        window.held = held.count;
        control.held = held;
    }

    fn held(&self, control: &Control, window: Duration) -> Held {
        self.holders
            .held(self.stats.now(), window, control.held_after)
    }

    fn close_window(&self, control: &mut Control, now: Instant) {
        let gate = self.gate.snapshot();
        control.count_capacity(now, gate.limit());
        let (mut window, waits) =
            control
                .reader
                .next(&self.stats, &self.holders, gate.limit(), gate.queued());
        window.capacity = std::mem::take(&mut control.capacity);
        window.spare = self.adapter.size().saturating_sub(gate.limit());
        self.set_held_apart(control, &mut window);
        window.app_busy = control.app.busy();
        if let Some(nested) = control.confirm(self.holders.completions()) {
            if control.nested.is_none() {
                events::nested(&self.name, &nested);
            }
            control.nested = Some((now, nested));
        }
        let is_on_trial = self.is_on_trial(control, now, &window);
        if !is_on_trial {
            let decision = control.tuner.on_window(now, &window);
            #[cfg(feature = "json")]
            control.log(&decision, || Given::Window(Box::new(window.clone())));
            let growth = decision.to().saturating_sub(decision.from());
            self.record(control, decision);
            control.ahead = match gate.queued() {
                0 => growth.max(control.ahead),
                _ => 0,
            };
        }
        let at_knee = matches!(self.tuners_verdict(control), Verdict::AtKnee(_));
        if self.mode == Mode::Enforce && at_knee != control.sheds {
            control.sheds = at_knee;
            self.gate.set_codel(self.codel.filter(|_| at_knee));
        }
        control.recent.push(&window, &waits);
        let refused = control.recent.refused().to_bits();
        self.refused.store(refused, Relaxed);
        if !is_on_trial {
            control.recording.window(now, window);
        }
        let size = self.adapter.size();
        self.metrics.levels(|| Levels {
            bounds: control.tuner.bounds(),
            verdict: self.judge(control, now).as_str(),
            size,
            in_use: gate.inflight().min(size),
            pending: gate.queued(),
            limit: gate.limit(),
            target: control.tuner.target(),
            held: control.held.count,
            demand_ratio: self.pressure().demand_ratio(),
        });
    }

    /// Whether the fleet keeps connections back to find what that costs. What is seen meanwhile says
    /// nothing of this pool, so its tuner does not see it.
    fn is_on_trial(&self, control: &mut Control, now: Instant, window: &PoolWindow) -> bool {
        if !self.rights.is_bound() {
            return false;
        }
        let is_full = control.tuner.is_full(window);
        let is_on_trial = (self.rights).saw(now, window, is_full, self.mode == Mode::Enforce);
        if is_on_trial && !control.on_trial {
            // Its own experiment ends.
            let bounds = control.tuner.bounds();
            self.bind(control, now, bounds);
        }
        control.on_trial = is_on_trial;
        is_on_trial
    }

    fn record(&self, control: &mut Control, decision: Decision) {
        self.target.store(decision.to(), Relaxed);
        if decision.is_resize() {
            #[cfg(feature = "otel")]
            {
                let resized = (decision.direction(), decision.reason().as_str());
                *control.resizes.entry(resized).or_default() += 1;
            }
            self.metrics.resized(&decision);
        }
        if decision.to() < decision.from() {
            control.kept = match decision.reason() {
                // Not needed now; what would be dialled again in a minute stays.
                Reason::Drained | Reason::Surplus => {
                    control.kept.max(decision.from() + control.held.count)
                }
                // They do not pay, or are not allowed.
                _ => 0,
            };
        }
        if control.is_news(&decision) {
            events::decided(&self.name, self.mode, &decision);
            keep_decision(&mut control.decisions, decision);
        }
    }

    /// Moves the limit in force towards the target, and closes what is too many.
    pub(crate) fn apply(&self, control: &mut Control, now: Instant) {
        if self.mode == Mode::Recommend {
            self.grows.store(false, Relaxed);
            return;
        }
        let ceiling = self.ceiling();
        let gate = self.gate.snapshot();
        let max = control.tuner.bounds().max();
        let with_held = |connections: usize| (connections + control.held.count).min(max);
        let target = with_held(self.target.load(Relaxed));
        let admitted = with_held(self.rights.admits(now, control.tuner.admitted()));
        // A dial that hangs holds no place: another may be made beside it.
        let hanging = control.hanging;
        // Nor does a connection that is replaced.
        let replacing = usize::from(control.aging.is_replacing);
        let target = (target + hanging + replacing).min(max);
        self.allowed.store(target, Release);
        // A fleet has other uses for what is not needed.
        let kept = match self.rights.is_bound() {
            false => target.max(control.kept.min(max)),
            true => target,
        };
        self.kept.store(kept, Release);
        let size = self.count_connections() + hanging;
        let wanted = gate.queued().max(control.ahead);
        let is_alone = self.holders.completions() == control.completed_then;
        // Those that may be opened now. What waits for another right waits in the queue.
        let dials = self.rights.may_dial().saturating_add(self.rights.dialing());
        let reach = target.min(size.saturating_add(dials));
        // What is idle serves others while more checkouts wait for their dial than may run at once.
        let opening = self.opening.load(Relaxed);
        let size = size + opening.saturating_sub(control.dial.at_once());
        let state = DialState::new(ceiling, reach, size, wanted).alone(is_alone);
        let raised = control.dial.limit(now, state);
        let limit = raised.min(admitted + hanging + replacing);
        if limit != gate.limit() || raised != ceiling {
            control.count_capacity(now, gate.limit());
        }
        if raised < ceiling {
            self.lower_limit(ceiling, raised);
        } else if raised > ceiling {
            self.ceiling.store(raised, Release);
        }
        if limit != self.gate.limit() {
            self.gate.set_limit(limit);
        }
        let opening = raised < target && gate.queued() > 0 || hanging > 0;
        control.opening_since = opening.then(|| control.opening_since.unwrap_or(now));
        let is_late = control
            .opening_since
            .is_some_and(|since| now - since >= OPENING_FOR);
        let grows = raised < target || control.tuner.may_grow();
        let grows = grows && dials > 0 && !is_late && !control.dial.is_failing();
        self.grows.store(grows, Relaxed);
        self.close_unkept(kept);
    }

    /// Closes what a pool that puts connections back late has left to be closed.
    fn close_unkept(&self, kept: usize) {
        // The limit of a dither is no reason to close any: it ends in a second.
        let inside = self.gate.inflight();
        let size = self.adapter.size();
        // A checkout that was just admitted has not taken its idle connection yet.
        let all = match self.adapter.idle() {
            Some(idle) => size.min(idle + self.holders.in_hand()),
            None => size,
        };
        let surplus = all.saturating_sub(kept.max(inside));
        if surplus > 0 {
            self.close_surplus(surplus);
        }
    }
}

/// A target with room for growth until the next beat.
fn with_room(target: usize) -> usize {
    target + target / 2 + 2
}

/// How many shared connections would do the work of a pool of exclusive ones, if the pool needs
/// more than one, and for commands that reply at once: one that blocks, as `BLPOP` does, holds up
/// the tasks that share its connection.
fn worth_sharing(window: &PoolWindow) -> Option<usize> {
    /// Less than a third of what one shared connection did when measured (362,000 a second).
    const EACH: f64 = 100_000.0;
    /// Seconds. Redis answers within a fraction of a millisecond, and an exclusive connection at its
    /// limit within two.
    const BLOCKS: f64 = 0.010;
    let in_use = window.busy.as_secs_f64() / window.duration.as_secs_f64().max(1e-9);
    let blocks = window.mean_use_time().is_none_or(|mean| mean > BLOCKS);
    (in_use > 1.0 && !blocks).then(|| (window.throughput() / EACH).ceil().max(1.0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_worth_sharing_for_many_commands_that_do_not_block() {
        let window = |completions: u64, use_time: Duration| PoolWindow {
            duration: Duration::from_secs(1),
            completions,
            use_time: use_time * completions as u32,
            busy: use_time * completions as u32,
            ..PoolWindow::default()
        };
        let short = Duration::from_micros(300);
        assert_eq!(worth_sharing(&window(1_000, short)), None, "one does it");
        assert_eq!(worth_sharing(&window(20_000, short)), Some(1));
        assert_eq!(worth_sharing(&window(120_000, short)), Some(2));
        let blocking = Duration::from_millis(100);
        assert_eq!(worth_sharing(&window(480, blocking)), None);
    }
}
