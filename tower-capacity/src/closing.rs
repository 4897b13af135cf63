//! When a window closes, what the law is shown of it, and what becomes of its decision.
//!
//! The law decides under a lock. What observers learn of it (metrics, events) is collected there and
//! sent after the lock is free, so that an observer may read the limiter.

use std::{
    ops::RangeInclusive,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, MutexGuard, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

use crate::{
    accounting::{Phase, Sum, Totals},
    change::LimitChange,
    event::LimiterEvent,
    gate::{self, Codel},
    limit::{Explanation, Window},
    limiter::Limiter,
    sync::lock,
    windows::{
        Control, FEW, HELD_FIRST, MIN_WINDOW, OLD_WINDOW, SERVICE_TIMES, STALE_SERVICE_TIMES,
        STALE_WINDOW, nanos,
    },
};

/// No service is so slow that a window must last longer than this for its sake.
const MAX_WINDOW: Duration = Duration::from_secs(10);
/// Fewer completions than the law asks for suffice if their times differ little: this many, with a
/// standard error below this.
const STEADY: u64 = 32;
const STEADY_ERROR: f64 = 0.05;
/// An open window is looked at no more often than after the first, and no less often than after the second,
/// since requests may have become faster.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
const LOOK_EARLY: Duration = Duration::from_millis(250);
/// A window ends early once it is this many times as long as its own service times ask for.
const FASTER: f64 = 4.0;
/// A request is held, and no longer load, once it has been inside for this many typical lifetimes,
/// or for up to twice as many.
const HELD_LIFETIMES: f64 = 10.0;
/// Ended requests that the typical lifetime remembers.
const LIFETIMES: f64 = 32.0;
const SLOW_LIFETIMES: f64 = 512.0;
/// Ignored requests count as work in a window with less than one success in this many of them.
const FEW_SUCCESSES: u64 = 8;
/// CoDel's target and interval in typical service times.
const CODEL_TARGET: f64 = 0.25;
const CODEL_INTERVAL: f64 = 8.0;
/// Explained changes of the limit that are kept.
const HISTORY: usize = 256;
/// Shedding is over after this long without a refusal.
const CALM: Duration = Duration::from_secs(1);

/// What observers learn of a decision.
#[derive(Debug, Default)]
struct Notices {
    moved: Option<LimitChange>,
    baseline: Option<Option<f64>>,
    held: Option<usize>,
    began: bool,
    over: Option<Duration>,
    law_panicked: Option<&'static str>,
}

impl Notices {
    fn into_events(self) -> impl Iterator<Item = LimiterEvent> {
        let panicked = self.law_panicked;
        let events = [
            panicked.map(|law| LimiterEvent::LawPanicked { law }),
            self.moved
                .map(|change| LimiterEvent::Limit(Box::new(change))),
            self.began.then_some(LimiterEvent::SheddingBegan),
            self.over
                .map(|lasted| LimiterEvent::SheddingEnded { lasted }),
        ];
        events.into_iter().flatten()
    }
}
impl Limiter {
    /// Closes the window if it is time, and lets the law decide; `held` if a held request has left, so
    /// that the gate must not admit one more for it.
    pub(crate) fn look(&self, now: u64, held: bool) {
        let windows = &self.shared.windows;
        if now < windows.closes_at.load(Relaxed) && now < windows.mark_at.load(Relaxed) && !held {
            return;
        }
        self.look_closer(now, |control, totals, notices| {
            if now >= windows.closes_at.load(Relaxed) {
                self.close_if_enough(control, totals, notices);
            }
        });
    }

    /// The same when a request enters: after a long silence, what the window holds is no news.
    pub(crate) fn look_on_entry(&self, now: u64, is_alone: bool) {
        self.look_closer(now, |control, _, _| {
            if is_alone && now >= self.shared.windows.stale_at.load(Relaxed) {
                self.open_window(control, now);
            }
        });
    }

    /// Counts what has happened, does `more`, and tells the observers once the lock is free.
    fn look_closer(&self, now: u64, more: impl FnOnce(&mut Control, &Totals, &mut Notices)) {
        let Some(mut control) = self.shared.windows.try_control() else {
            return;
        };
        let mut notices = Notices::default();
        let totals = self.shared.accounting.totals(now, false);
        self.note_refusals(&mut control, &totals, &mut notices);
        self.set_apart(&mut control, &totals, &mut notices);
        more(&mut control, &totals, &mut notices);
        drop(control);
        self.send(notices);
    }

    /// Moves the bounds of the limit, and the limit into them.
    pub(crate) fn move_bounds(&self, bounds: RangeInclusive<usize>) {
        let mut control = lock(&self.shared.windows.control);
        let within = control.limit.clamp(*bounds.start(), *bounds.end());
        control.bounds = bounds;
        self.move_from_outside(control, within, "bounds");
    }

    /// Lowers the limit to a ceiling at once, within the bounds, and keeps it there until a higher
    /// one is set; raising it is up to the law.
    #[cfg(feature = "signals")]
    pub(crate) fn set_ceiling(&self, ceiling: usize, reason: &'static str) {
        let mut control = lock(&self.shared.windows.control);
        control.ceiling = ceiling;
        let within = control.limit.min(control.highest());
        self.move_from_outside(control, within, reason);
    }

    fn move_from_outside(
        &self,
        mut control: MutexGuard<'_, Control>,
        limit: usize,
        reason: &'static str,
    ) {
        let mut notices = Notices::default();
        if limit != control.limit {
            let why = Explanation::new(reason);
            notices.moved = Some(self.move_limit(&mut control, Instant::now(), limit, why));
        }
        drop(control);
        self.send(notices);
    }

    fn open_window(&self, control: &mut Control, now: u64) {
        let shared = &self.shared;
        control.opened = shared.accounting.totals(now, true);
        shared.accounting.restart_gap(now);
        let service_time = control
            .last
            .and_then(|window| window.service_time)
            .unwrap_or(0.0);
        let lasts = Duration::from_secs_f64((SERVICE_TIMES * service_time).min(60.0))
            .clamp(MIN_WINDOW, MAX_WINDOW);
        let windows = &shared.windows;
        control.lasts = lasts;
        let look = lasts.min(LOOK_EARLY);
        windows.closes_at.store(now + nanos(look), Relaxed);
        windows.stale_at.store(now + nanos(STALE_WINDOW), Relaxed);
    }

    /// Marks those inside if it is time, and lets the gate admit as many more as are held.
    fn set_apart(&self, control: &mut Control, totals: &Totals, notices: &mut Notices) {
        let windows = &self.shared.windows;
        let mut held = totals.held;
        if totals.at >= windows.mark_at.load(Relaxed) {
            for (index, phase) in [Phase::Running, Phase::Answered].into_iter().enumerate() {
                if totals.at >= control.marks_at[index] {
                    self.shared.accounting.mark(totals.at, phase);
                    let after =
                        control.log_lifetime.map_or(HELD_FIRST, |logs| {
                            Duration::from_nanos(
                                (HELD_LIFETIMES * logs[index].exp()).min(3.6e12) as u64
                            )
                        });
                    control.marks_at[index] = totals.at + nanos(after.max(LOOK_AGAIN));
                }
            }
            held = self.shared.accounting.totals(totals.at, false).held;
            let [running, answered] = control.marks_at;
            windows.mark_at.store(running.min(answered), Relaxed);
        }
        let held = (held as usize).min(gate::MAX - control.limit);
        if held != control.held {
            control.held = held;
            windows.held.store(held, Relaxed);
            self.shared
                .gate
                .set_limit_beside(control.limit + held, held);
            notices.held = Some(held);
        }
    }

    fn close_if_enough(&self, control: &mut Control, totals: &Totals, notices: &mut Notices) {
        let shared = &self.shared;
        let now = totals.at;
        let opened = &control.opened;
        let age = Duration::from_nanos(now.saturating_sub(opened.at));
        let well =
            totals.completions + totals.ignored_work - opened.completions - opened.ignored_work;
        let ended = well + totals.drops + totals.cancelled - opened.drops - opened.cancelled;
        let times = totals.service_times.since(&opened.service_times).mean();
        let steady = times.is_some_and(|(_, error)| well >= STEADY && error < STEADY_ERROR);
        let known = steady || well >= control.law.evidence();
        // Requests have become faster than those that the length of the window was for.
        let faster = times.is_some_and(|(mean, _)| {
            age >= Duration::from_secs_f64((FASTER * SERVICE_TIMES * mean).min(60.0))
        });
        let enough = if age < control.lasts {
            known && faster
        } else {
            known || age >= OLD_WINDOW && ended >= FEW || age >= self.stale(control)
        };
        if !enough {
            let wait = control.lasts.saturating_sub(age);
            let again = now + nanos(wait.clamp(LOOK_AGAIN, LOOK_EARLY));
            return shared.windows.closes_at.store(again, Relaxed);
        }
        let window = self.window(control, totals, age);
        self.learn_typical(control, totals, &window);
        if let Some(max_wait) = control.first_queue.take() {
            shared.gate.set_waiting(None, max_wait);
        }
        control.last = Some(window);
        self.open_window(control, now);
        let at = shared.accounting.instant(now);
        // A law that panics costs its window, not the request that closed it.
        let decided = catch_unwind(AssertUnwindSafe(|| control.law.on_window(at, &window)));
        let next = decided.unwrap_or_else(|_| {
            notices.law_panicked = Some(control.law.name());
            control.limit
        });
        let next = next.clamp(*control.bounds.start(), control.highest());
        let why = control.law.explain();
        notices.baseline = Some(why.baseline);
        if next != control.limit {
            notices.moved = Some(self.move_limit(control, at, next, why));
        }
    }

    /// How long to wait for completions that do not come.
    fn stale(&self, control: &Control) -> Duration {
        let service_time = control.last.and_then(|window| window.service_time);
        Duration::from_secs_f64((STALE_SERVICE_TIMES * service_time.unwrap_or(60.0)).min(60.0))
            .clamp(OLD_WINDOW, STALE_WINDOW)
    }

    fn window(&self, control: &Control, totals: &Totals, age: Duration) -> Window {
        let opened = &control.opened;
        let inflight_time = totals
            .inflight_time
            .wrapping_sub(opened.inflight_time)
            .max(0);
        let inflight = inflight_time as f64 / age.as_nanos().max(1) as f64;
        let held = if control.law.counts_held() {
            0.0
        } else {
            0.5 * (totals.held + opened.held) as f64
        };
        let mut completions = totals.completions + totals.extra - opened.completions - opened.extra;
        let ignored = totals.ignored_work - opened.ignored_work;
        let mut times = totals.service_times.since(&opened.service_times);
        // A service that answers hardly anything but 404 works all the same.
        if FEW_SUCCESSES * completions < ignored {
            completions += ignored;
            times = times.plus(&totals.ignored_times.since(&opened.ignored_times));
        }
        if !control.law.counts_held() {
            completions = completions.saturating_sub(totals.held_ended - opened.held_ended);
        }
        Window {
            completions,
            drops: totals.drops - opened.drops,
            cancelled: totals.cancelled - opened.cancelled,
            died: totals.died - opened.died,
            refusals: totals.refusals() - opened.refusals(),
            mean_inflight: (inflight - held).max(0.0),
            service_time: times.mean().map(|(mean, _)| mean),
            service_time_error: times.mean().map_or(0.0, |(_, error)| error),
            samples: times.count(),
            late: totals.late - opened.late,
            longest_gap: Duration::from_nanos(totals.longest_gap),
            min_limit: *control.bounds.start(),
            max_limit: control.highest(),
            limited: self.shared.accounting.take_limited(),
            ..Window::new(age, control.limit)
        }
    }

    /// Learns how long requests usually take, for all that is measured in such times.
    fn learn_typical(&self, control: &mut Control, totals: &Totals, window: &Window) {
        let shared = &self.shared;
        let opened = &control.opened;
        let succeeded = totals.completions > opened.completions;
        let typical = window.service_time.filter(|_| succeeded);
        let requests = totals.completions - opened.completions;
        let permits = requests + totals.extra - opened.extra;
        let cost = permits.max(1) as f64 / requests.max(1) as f64;
        shared.accounting.adapt(window.throughput() / cost, typical);
        let throughput = window.throughput().to_bits();
        shared.windows.throughput.store(throughput, Relaxed);
        let ended = totals.completions + totals.ignored + totals.drops + totals.cancelled;
        let ended = ended - opened.completions - opened.ignored - opened.drops - opened.cancelled;
        let asked = (ended + window.refusals).max(1);
        let refused = window.refusals as f64 / asked as f64;
        shared.windows.refused.store(refused.to_bits(), Relaxed);
        let lifetimes: Sum = totals.lifetimes.since(&opened.lifetimes);
        if let Some((mean, _)) = lifetimes.mean() {
            let count = lifetimes.count() as f64;
            let log = (1e9 * mean).max(1.0).ln();
            let follow =
                |before: f64, memory: f64| before + count / (count + memory) * (log - before);
            let [fast, slow] = control.log_lifetime.unwrap_or([log; 2]);
            let memory = if log > slow {
                SLOW_LIFETIMES
            } else {
                LIFETIMES
            };
            let slow = follow(slow, memory);
            control.log_lifetime = Some([follow(fast, LIFETIMES).max(slow), slow]);
        }
        if control.relative_codel
            && let Some([_, log]) = control.log_lifetime
        {
            let typical = log.exp() / 1e9;
            let target = Duration::from_secs_f64((CODEL_TARGET * typical).min(60.0));
            let interval = Duration::from_secs_f64((CODEL_INTERVAL * typical).min(60.0));
            shared.gate.set_codel(Some(Codel::new(target, interval)));
        }
    }

    fn move_limit(
        &self,
        control: &mut Control,
        at: Instant,
        new: usize,
        why: Explanation,
    ) -> LimitChange {
        let old = std::mem::replace(&mut control.limit, new);
        control.held = control.held.min(gate::MAX - new);
        self.shared.windows.held.store(control.held, Relaxed);
        let held = control.held;
        self.shared.gate.set_limit_beside(new + held, held);
        let change = LimitChange {
            at,
            old,
            new,
            windows: 1,
            law: control.law.name(),
            why,
            window: control.last,
        };
        match control.history.back_mut() {
            Some(last) if last.why.reason == why.reason => last.extend(&change),
            _ => {
                if control.history.len() == HISTORY {
                    control.history.pop_front();
                }
                control.history.push_back(change.clone());
            }
        }
        change
    }

    /// One notice when shedding starts and one when it is over.
    fn note_refusals(&self, control: &mut Control, totals: &Totals, notices: &mut Notices) {
        let now = totals.at;
        let refusals = totals.refusals();
        if refusals > control.refusals {
            control.refusals = refusals;
            control.last_refusal = now;
            let calm_at = now + nanos(CALM);
            self.shared.windows.calm_at.store(calm_at, Relaxed);
            if control.shedding_since.is_none() {
                control.shedding_since = Some(self.shared.accounting.instant(now));
                notices.began = true;
            }
        } else if now >= control.last_refusal + nanos(CALM)
            && let Some(since) = control.shedding_since.take()
        {
            self.shared.windows.calm_at.store(u64::MAX, Relaxed);
            let at = self.shared.accounting.instant(now);
            notices.over = Some(at.saturating_duration_since(since));
        }
    }

    /// Sees the end of shedding where no request comes any more that would.
    fn watch_for_calm(&self) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let shared = Arc::downgrade(&self.shared);
        drop(runtime.spawn(async move {
            loop {
                sleep(CALM).await;
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                let limiter = Self { shared };
                let now = limiter.shared.accounting.now();
                limiter.look_closer(now, |_, _, _| ());
                if limiter.shared.windows.calm_at.load(Relaxed) == u64::MAX {
                    return;
                }
            }
        }));
    }

    /// Tells the observers, which may look at the limiter.
    fn send(&self, notices: Notices) {
        let metrics = &self.shared.metrics;
        if let Some(baseline) = notices.baseline {
            metrics.baseline(baseline);
            metrics.demand(self.pressure());
        }
        if let Some(held) = notices.held {
            metrics.held(held);
        }
        if notices.began && (cfg!(feature = "tracing") || self.shared.observer.is_some()) {
            self.watch_for_calm();
        }
        if let Some(change) = &notices.moved {
            metrics.limit(change.new);
            #[cfg(feature = "tracing")]
            tracing::debug!(
                limiter = self.name(),
                old = change.old,
                new = change.new,
                reason = change.why.reason,
                baseline_seconds = change.why.baseline,
                elasticity = change.why.elasticity,
                service_time_seconds = change.window.and_then(|window| window.service_time),
                "limit moved"
            );
        }
        #[cfg(feature = "tracing")]
        {
            let windows = &self.shared.windows;
            let limit = self.shared.gate.limit().saturating_sub(windows.held());
            if notices.began {
                tracing::warn!(limiter = self.name(), limit, "overloaded: shedding starts");
            }
            if let Some(lasted) = notices.over {
                tracing::warn!(
                    limiter = self.name(),
                    limit,
                    lasted_seconds = lasted.as_secs_f64(),
                    "no longer overloaded: shedding is over"
                );
            }
            if let Some(law) = notices.law_panicked {
                tracing::error!(
                    limiter = self.name(),
                    law,
                    "the control law panicked: the limit stays"
                );
            }
        }
        if let Some(observer) = &self.shared.observer {
            for event in notices.into_events() {
                // An observer that panics costs its event, not the request that showed it.
                let _ = catch_unwind(AssertUnwindSafe(|| observer(&event)));
            }
        }
    }
}
