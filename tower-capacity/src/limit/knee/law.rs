//! The law itself. What it does and why is told in the parent module.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    objective::Objective,
    tally::{Elasticity, Scatter, Tally, USELESS},
};
use crate::limit::{Explanation, Limit, Window};

/// Limit before the first window. 20 (Netflix concurrency-limits).
const INITIAL: usize = 20;
/// τ: the share beyond those at work. 0 and 0.2 are worse by a point (model).
const HEADROOM: f64 = 0.1;
/// Share of the way to go down and up in a window (model).
const STEP_DOWN: f64 = 0.7;
const STEP_UP: f64 = 0.5;
/// Least and greatest change of the limit in a window. Envoy has 0.5 and 2.
const LEAST_STEP: f64 = 0.5;
const GREATEST_STEP: f64 = 1.5;
/// Share of the limit below which a window that did not reach it shows *S*.
const LIGHT: f64 = 0.7;
/// Share of the limit in use, or of the offered requests refused, from which it was the limit that
/// held throughput down (model).
const FULL: f64 = 0.8;
const REFUSED: f64 = 0.2;
/// Growth of a limit that refused and was not full.
const ROOM: f64 = 1.1;
/// Slower than this, twice in a row, is news.
const NEWS: f64 = 0.7;
/// What a probe leaves of the limit. Half costs more than it tells (model).
const DEPTH: f64 = 0.7;
/// Elasticity below which a step of slow start did not pay, and its error from which that is not known.
const VAIN: f64 = 0.5;
const UNSURE: f64 = 0.4;
/// Share of the limit in use from which slow start takes the next step: with 0.4 it is two steps ahead of a
/// load that grows slowly, with 0.8 short bursts never get there (model).
const REACHED: f64 = 0.55;
/// A service time of this many times *S* ends slow start.
const SLOW: f64 = 2.0;
/// Elasticity above which throughput is as good as proportional to concurrency.
const PAYS: f64 = 0.65;
/// Elasticity that starts slow start again, once confirmed.
const FAST: f64 = 0.85;
/// Error of an elasticity that ends a probe.
const SURE: f64 = 0.2;
/// Windows that a probe measures at most, and up to twice as many where windows scatter.
const PROBE_WINDOWS: f64 = 2.5;
/// Share of refused requests below which a probe may go upwards.
const MILD: f64 = 0.5;
/// What is left of a refused share, of this at least, once the load has fallen.
const CALMER: f64 = 0.5;
const REFUSES: f64 = 0.1;
/// A limit that is this many times what it was after the last probe, or that part of it, asks for one.
const AWAY: f64 = 2.0;
/// Completions that a window should hold for each request of a small limit, and at least.
const FOR_EACH: (f64, f64) = (8.0, 16.0);
/// Growth of *S* that has to be confirmed.
const CONFIRM: f64 = 1.15;
/// Growth of slow start: at first and up to a throughput that was seen, and beyond.
const DOUBLE: f64 = 2.0;
const GROWTH: f64 = 1.4;
/// Share of deaths among the requests that ended from which the limit falls.
const DEATHS: f64 = 0.2;
/// Share of deaths above which nothing is lost by a low limit.
const HOPELESS: f64 = 0.9;
/// When the first probe is due, and the longest pause between two: in seconds and in windows.
const SOONEST: (f64, f64) = (1.0, 24.0);
const LATEST: (f64, f64) = (30.0, 128.0);
/// Completions that make a throughput known to a seventh.
const EVIDENCE: f64 = 50.0;
/// A limit that went down this far without a probe, in logarithms, has told as much as one.
const DRIFT: f64 = 0.2;
/// Requests inside, over those that completions account for (Little's law), which do not end.
const STUCK: f64 = 3.0;
/// A gap between completions of this many service times, in which this many were due, is a pause of
/// the process and no queue.
const PAUSE: (f64, f64) = (3.0, 40.0);

/// Finds the knee: the least limit at which more concurrency no longer buys throughput.
#[derive(Clone, Debug)]
pub struct Knee {
    initial: usize,
    limit: f64,
    /// *S*: the service time without a queue of ours, in seconds.
    base: Option<f64>,
    /// Light load or a probe has shown *S*.
    verified: bool,
    slow_start: bool,
    first_start: bool,
    /// The limit that the throughput of before needs.
    carries: f64,
    usual_throughput: f64,
    /// The windows at the limit, as one.
    steady: Option<Tally>,
    /// The first windows at rest, or those before the last step of slow start, and the limit then.
    rest: Option<(f64, Tally)>,
    last: Option<Tally>,
    last_inflight: f64,
    scatter: Scatter,
    probe: Option<Probe>,
    /// When the next probe is due, and the pause before it.
    due: Option<Instant>,
    pause: f64,
    /// The last window was slower than the limit explains.
    news: bool,
    void: Void,
    /// Where the deaths began.
    dying: Option<Dying>,
    /// The share of deaths that no limit prevents.
    own_deaths: f64,
    objective: Option<Objective>,
    elasticity: Option<f64>,
    reason: &'static str,
    /// Share of the offered requests that is refused at the limit.
    refused: f64,
    /// The last window had less than half of that.
    calm: bool,
    /// The next probe goes upwards.
    upwards: bool,
    /// The limit after the last probe.
    probed: f64,
}

/// A limit on trial.
#[derive(Clone, Copy, Debug)]
struct Probe {
    /// The limit before.
    high: f64,
    low: f64,
    before: Tally,
    during: Tally,
    /// Since the limit is up again, to confirm.
    after: Option<Tally>,
    /// One window is spent on the way.
    settled: bool,
    windows: u32,
    /// From the limit upwards.
    up: bool,
}

impl Probe {
    /// Downwards from `high`, under which `before` was measured.
    fn down(high: f64, low: f64, before: Tally) -> Self {
        Self {
            high,
            low,
            before,
            during: Tally::default(),
            after: None,
            settled: false,
            windows: 0,
            up: false,
        }
    }

    /// Back up to `high`, or for the first time; `low` was measured.
    fn back_up(high: f64, low: Tally, before: Tally) -> Self {
        Self {
            during: low,
            after: Some(Tally::default()),
            ..Self::down(high, low.inflight(), before)
        }
    }

    const fn commanded(&self) -> f64 {
        if self.after.is_some() {
            self.high
        } else {
            self.low
        }
    }
}

/// The limit, *S* and the share of deaths when they began.
#[derive(Clone, Copy, Debug)]
struct Dying {
    limit: f64,
    base: Option<f64>,
    share: f64,
}

/// Windows that say nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Void {
    None,
    /// The next one still shows a pause of the process.
    Pause,
    /// The pause is over; the next gap is no pause.
    Over,
}

impl Knee {
    /// Creates the law.
    #[must_use]
    pub fn new() -> Self {
        Self {
            initial: INITIAL,
            limit: INITIAL as f64,
            base: None,
            verified: false,
            slow_start: true,
            first_start: true,
            carries: 0.0,
            usual_throughput: 0.0,
            steady: None,
            rest: None,
            last: None,
            last_inflight: 0.0,
            scatter: Scatter::default(),
            probe: None,
            due: None,
            pause: 0.0,
            news: false,
            void: Void::None,
            dying: None,
            own_deaths: 0.0,
            objective: None,
            elasticity: None,
            reason: "hold",
            refused: 0.0,
            calm: false,
            upwards: false,
            probed: INITIAL as f64,
        }
    }

    /// Starts with what another limiter had learned: its limit, and its service time without a queue.
    #[must_use]
    pub fn warm_start(mut self, limit: usize, base: Option<Duration>) -> Self {
        self.initial = limit;
        self.limit = limit as f64;
        self.base = base
            .map(|base| base.as_secs_f64())
            .filter(|base| *base > 0.0);
        self
    }

    /// Lowers the limit further while more than 1 % of the requests take longer than this, and a
    /// lower limit helps. Defaults to none.
    #[must_use]
    pub const fn latency_objective(mut self, service_time: Duration) -> Self {
        self.objective = Some(Objective::new(service_time));
        self
    }

    fn commanded(&self) -> f64 {
        self.probe.map_or(self.limit, |probe| probe.commanded())
    }

    /// Reads a window. Returns why the limit is what it is, and the limit to command.
    fn decide(&mut self, now: Instant, window: &Window) -> (&'static str, f64) {
        let held = self.commanded();
        let inflight = window.mean_inflight;
        if !inflight.is_finite() {
            return ("hold", held);
        }
        let service_time = window
            .service_time
            .filter(|time| time.is_finite() && *time > 0.0);
        let drains = inflight > 1.3 * held + 1.0;
        if let Some(decision) = self.on_deaths(now, window, drains) {
            return decision;
        }
        if self.is_void(window) {
            return ("stall", held);
        }
        let Some(service_time) = service_time else {
            return ("hold", held);
        };
        let last_inflight = std::mem::replace(&mut self.last_inflight, inflight);
        // Growth that leaves room is judged all the same.
        let has_grown = self.slow_start
            && !self.verified
            && self
                .rest
                .is_some_and(|(_, before)| inflight > 1.15 * before.inflight());
        let fills = window.limited && (self.slow_start || is_full(window, held));
        if !fills && !has_grown {
            return self.on_light_load(window, service_time, last_inflight);
        }
        if drains {
            return ("drains", held);
        }
        if self.due.is_none() {
            self.pause = 0.0;
            self.schedule(now, window);
            if !self.verified {
                self.due = Some(now);
            }
        }
        let base = self.bounded_base(window, service_time);
        if let Some(objective) = &mut self.objective {
            let settles = self.probe.is_some_and(|probe| !probe.settled);
            if self.verified && service_time <= base {
                objective.learn(window);
            } else if !settles {
                objective.judge(window, held);
            }
        }
        let tally = Tally::of(window, service_time);
        if let Some(probe) = self.probe {
            return self.on_probe(probe, now, window, &tally, base);
        }
        self.at_the_limit(now, window, &tally, base)
    }

    /// Requests that die inside are evidence, whatever else the window says.
    fn on_deaths(
        &mut self,
        now: Instant,
        window: &Window,
        drains: bool,
    ) -> Option<(&'static str, f64)> {
        let died = window.died as f64;
        let share = died / (died + window.completions as f64).max(1.0);
        if died < 4.0 || share <= (1.5 * self.own_deaths).max(DEATHS) {
            if share < 0.25 * DEATHS && !drains {
                self.own_deaths *= 0.9;
                // Calm again: what is measured now is a better guess than what the fall made of it.
                if let (Some(first), Some(now)) = (self.dying.take(), window.service_time) {
                    self.base = Some(first.base.map_or(now, |base| base.min(now)));
                }
            }
            return None;
        }
        let began_before = self.dying.is_some() && self.void == Void::Pause;
        if drains || began_before {
            self.void = Void::None;
            return Some(("drains", self.commanded()));
        }
        let at = self.limit.min(window.mean_inflight).max(1.0);
        let first = *self.dying.get_or_insert(Dying {
            limit: self.limit,
            base: self.base,
            share,
        });
        self.probe = None;
        self.steady = None;
        self.end_slow_start();
        if (at <= first.limit / 8.0 || at < 1.5) && share > 0.7 * first.share {
            // Where hardly anything is done, a higher limit would do no more.
            if share > HOPELESS {
                return Some(("deaths", self.limit));
            }
            self.own_deaths = share;
            self.limit = first.limit;
            self.base = first.base;
            self.dying = None;
            return Some(("not our deaths", self.limit));
        }
        let carried = target(window.throughput() * self.base.unwrap_or(0.0));
        self.limit = carried.clamp(at / 8.0, at / 2.0).max(1.0);
        let service_time = window
            .service_time
            .filter(|time| time.is_finite() && *time > 0.0);
        if let Some(service_time) = service_time {
            let found = at_work(self.limit) * service_time / at;
            self.base = Some(self.base.map_or(found, |base| base.min(found)));
        }
        self.void = Void::Pause;
        self.pause = 0.0;
        self.schedule(now, window);
        if !self.verified {
            self.due = Some(now);
        }
        Some(("deaths", self.limit))
    }

    /// A window that shows a pause of the process, or the one after it.
    fn is_void(&mut self, window: &Window) -> bool {
        let gap = window.longest_gap.as_secs_f64();
        let service_time = window.service_time.unwrap_or(f64::INFINITY);
        let pauses = gap > PAUSE.0 * service_time && gap * self.usual_throughput > PAUSE.1;
        let (next, void) = match self.void {
            Void::None if pauses => (Void::Pause, true),
            Void::Pause => (Void::Over, true),
            Void::None | Void::Over => (Void::None, false),
        };
        self.void = next;
        void
    }

    fn on_light_load(
        &mut self,
        window: &Window,
        service_time: f64,
        last_inflight: f64,
    ) -> (&'static str, f64) {
        // All that came was admitted: that much is needed.
        if let Some(probe) = self.probe.take()
            && probe.up
        {
            self.limit = probe.high;
        }
        self.steady = None;
        self.rest = None;
        // A burst was held back, and most of the time there was room.
        if window.limited {
            if window.refusals > 0 {
                self.limit *= ROOM;
                return ("room", self.limit);
            }
            return ("hold", self.limit);
        }
        self.due = None;
        let pace = if self.usual_throughput == 0.0 {
            1.0
        } else {
            0.3
        };
        self.usual_throughput += pace * (window.throughput() - self.usual_throughput);
        let inflight = window.mean_inflight;
        if inflight >= LIGHT * self.limit {
            return ("hold", self.limit);
        }
        if let Some(objective) = &mut self.objective {
            objective.learn(window);
        }
        // What was saved by another process is a guess.
        if !std::mem::replace(&mut self.verified, true) {
            self.base = Some(service_time);
        }
        let base = self.base.get_or_insert(service_time);
        if service_time < *base {
            *base += 0.4 * (service_time - *base);
        } else if inflight < 1.1 * last_inflight {
            // Not while a queue builds.
            *base += 0.2 * (service_time - *base);
        }
        ("light load", self.limit)
    }

    /// *S*, which is at most the service time with a queue.
    fn bounded_base(&mut self, window: &Window, service_time: f64) -> f64 {
        let most = service_time * (1.0 + 2.0 * window.service_time_error.clamp(0.1, 10.0));
        let mut base = self.base.unwrap_or(service_time).min(most);
        // A request that is alone meets no queue of ours.
        if window.mean_inflight < 1.3 && self.limit < 1.5 && base < service_time {
            base += 0.5 * (service_time - base);
        }
        self.base = Some(base);
        base
    }

    /// A window at the limit, with no probe under way.
    fn at_the_limit(
        &mut self,
        now: Instant,
        window: &Window,
        tally: &Tally,
        base: f64,
    ) -> (&'static str, f64) {
        let (inflight, service_time) = (tally.inflight(), tally.service_time());
        let before = self.steady;
        if self.slow_start {
            let steady = before.unwrap_or_default().plus(tally);
            self.steady = Some(steady);
            self.usual_throughput = steady.throughput();
            if let Some(decision) = self.on_slow_start(now, window, &steady, base) {
                return decision;
            }
        }
        let steady = before.unwrap_or_default().at_most(EVIDENCE).plus(tally);
        self.steady = Some(steady);
        if let Some(last) = self.last.replace(*tally)
            && (inflight / last.inflight()).ln().abs() < 0.2
        {
            self.scatter.learn(&last, tally);
        }
        let explained = base * (1.0 + HEADROOM) / service_time;
        // A full limit makes requests slower by itself, a small one the more: by the root above.
        let by_limit = base * inflight / at_work(inflight).max(0.1);
        if by_limit < NEWS * service_time && self.limit >= 2.0 {
            if !std::mem::replace(&mut self.news, true) {
                return ("news", self.limit);
            }
            self.news = false;
            let low = target(inflight * base / service_time);
            let low = low.clamp(0.5 * self.limit, 0.8 * self.limit);
            return self.start(*tally, low.min(self.limit.round() - 1.0));
        }
        self.news = false;
        self.usual_throughput += 0.3 * (tally.throughput() - self.usual_throughput);
        if let Some(decision) = self.on_drift(&steady, tally) {
            return decision;
        }
        if let Some(decision) = self.start_if_due(now, window, &steady, explained) {
            return decision;
        }
        // Between bursts the mean says less than the limit that was reached.
        let at = if inflight > 0.4 * self.limit {
            self.limit
        } else {
            inflight
        };
        let target = target(at * base / service_time)
            .clamp(LEAST_STEP * self.limit, GREATEST_STEP * self.limit);
        let (pace, reason) = if target < self.limit {
            (STEP_DOWN, "queueing")
        } else if explained >= 1.0 {
            // Nothing queues at all.
            (1.0, "headroom")
        } else {
            (STEP_UP, "headroom")
        };
        self.limit += pace * (target - self.limit);
        (reason, self.limit)
    }

    /// Starts a probe that is due: upwards where something has changed and little is refused.
    fn start_if_due(
        &mut self,
        now: Instant,
        window: &Window,
        steady: &Tally,
        explained: f64,
    ) -> Option<(&'static str, f64)> {
        let refused = refused_share(window);
        let is_calm = refused < CALMER * self.refused && self.refused > REFUSES;
        let was_calm = std::mem::replace(&mut self.calm, is_calm);
        let is_away = self.verified
            && explained < 1.0
            && steady.completions() >= EVIDENCE
            && (self.limit / self.probed).ln().abs() > AWAY.ln();
        if is_calm && was_calm {
            self.refused = refused;
            self.at_once(now);
        } else if !is_calm {
            self.refused += 0.3 * (refused - self.refused);
        }
        if is_away {
            self.probed = self.limit;
            self.at_once(now);
        }
        if self.due.is_none_or(|due| now < due) || steady.completions() < EVIDENCE {
            return None;
        }
        if std::mem::take(&mut self.upwards) && self.refused < MILD {
            return Some(self.start_upwards(*steady));
        }
        let low = (DEPTH * self.limit).min(self.limit.round() - 1.0);
        (low >= 1.0).then(|| self.start(*steady, low))
    }

    /// A probe is due, upwards.
    const fn at_once(&mut self, now: Instant) {
        self.pause = 0.0;
        self.upwards = true;
        self.due = Some(now);
    }

    /// A limit that came down by itself, and took throughput with it while the service time stayed, is
    /// a probe's lower half: has the limit to be up again?
    fn on_drift(&mut self, steady: &Tally, tally: &Tally) -> Option<(&'static str, f64)> {
        let enough = EVIDENCE / 2.0;
        if steady.completions() < enough || tally.completions() < enough / 5.0 {
            return None;
        }
        let (limit, rest) = *self.rest.get_or_insert((self.limit, *steady));
        if (limit / self.limit).ln() < DRIFT {
            return None;
        }
        let found = steady.elasticity(&rest, self.scatter.at_least_chance())?;
        if found.value - found.error < PAYS {
            return None;
        }
        self.rest = None;
        self.limit = limit.min(GREATEST_STEP * self.limit);
        self.probe = Some(Probe::back_up(self.limit, *steady, rest));
        Some(("confirm", self.limit))
    }

    /// Grows for as long as that pays.
    fn on_slow_start(
        &mut self,
        now: Instant,
        window: &Window,
        tally: &Tally,
        base: f64,
    ) -> Option<(&'static str, f64)> {
        let paid = self
            .rest
            .and_then(|(_, before)| Some((before, before.elasticity(tally, Scatter::default())?)));
        if let Some((before, found)) = paid
            && found.value < VAIN
            && found.error < VAIN
        {
            self.end_slow_start();
            let known = self.base.filter(|_| self.verified);
            let again = found.value - found.error < USELESS && !self.verified;
            let decision = self.settle(now, window, &before, tally, found, again);
            // Growth that did not pay says nothing of a service time that was seen.
            if let (Some(known), Some(found)) = (known, self.base) {
                self.base = Some(found.min(known));
            }
            return Some(decision);
        }
        if let Some((_, found)) = paid
            && found.error > UNSURE
            && found.value - found.error < VAIN
            && tally.completions() < 2.0 * EVIDENCE
        {
            return Some(("slow start", self.limit));
        }
        let slow = tally.service_time() > base * (SLOW + 1.0 / self.limit.sqrt());
        if slow && self.verified {
            self.end_slow_start();
            return None;
        }
        if tally.inflight() > REACHED * self.limit {
            self.rest = Some((self.limit, *tally));
            self.steady = None;
            let is_known = self.first_start || self.carries > GROWTH * self.limit;
            self.limit *= if is_known { DOUBLE } else { GROWTH };
        }
        Some(("slow start", self.limit))
    }

    const fn end_slow_start(&mut self) {
        self.rest = None;
        self.slow_start = false;
        self.first_start = false;
    }

    /// Where most is admitted, a higher limit costs less than a lower one, and may be all that is missing.
    fn start_upwards(&mut self, before: Tally) -> (&'static str, f64) {
        let high = (self.limit / DEPTH).max(self.limit.round() + 1.0);
        self.probe = Some(Probe {
            up: true,
            ..Probe::back_up(high, before, before)
        });
        ("probe upwards", high)
    }

    fn start(&mut self, before: Tally, low: f64) -> (&'static str, f64) {
        self.probe = Some(Probe::down(self.limit, low, before));
        ("probe", low)
    }

    fn on_probe(
        &mut self,
        mut probe: Probe,
        now: Instant,
        window: &Window,
        tally: &Tally,
        base: f64,
    ) -> (&'static str, f64) {
        if !probe.settled {
            probe.settled = true;
            self.probe = Some(probe);
            return ("probe", probe.commanded());
        }
        if tally.inflight() > STUCK * tally.throughput() * tally.service_time() + 1.0 {
            // What is inside does not end, so that it is no load.
            self.probe = None;
            self.schedule(now, window);
            return ("no evidence", self.limit);
        }
        probe.windows += 1;
        let arm = probe.after.as_mut().unwrap_or(&mut probe.during);
        *arm = if probe.windows == 1 {
            *tally
        } else {
            arm.plus(tally)
        };
        let high = probe.after.unwrap_or(probe.before);
        let low = probe.during;
        let scatter = self.scatter.at_least_chance();
        let found = low.elasticity(&high, scatter);
        let is_plain = found.is_none_or(|found| {
            let error = 2.0 * found.error;
            found.error < SURE || found.value - error > PAYS || found.value + error < USELESS
        });
        let most = PROBE_WINDOWS * scatter.throughput.sqrt().min(2.0);
        let is_long = f64::from(probe.windows) >= most;
        if !is_plain && !is_long {
            self.probe = Some(probe);
            return ("probe", probe.commanded());
        }
        self.probe = None;
        let Some(found) = found else {
            self.schedule(now, window);
            return ("no evidence", self.limit);
        };
        self.elasticity = Some(found.value);
        if probe.after.is_some() {
            return self.confirm(&probe, now, window, &high, found, base);
        }
        let would = busy(&low, found) * high.service_time() / high.inflight();
        if found.value > PAYS && would > CONFIRM * base {
            self.probe = Some(Probe {
                after: Some(Tally::default()),
                settled: false,
                windows: 0,
                ..probe
            });
            return ("confirm", probe.high);
        }
        let again = found.value < USELESS && found.value + found.error < VAIN;
        self.settle(now, window, &low, &high, found, again)
    }

    /// Was the throughput back with the limit?
    fn confirm(
        &mut self,
        probe: &Probe,
        now: Instant,
        window: &Window,
        high: &Tally,
        found: Elasticity,
        base: f64,
    ) -> (&'static str, f64) {
        let is_not_ours = found.value > 0.5;
        if is_not_ours || found.pays() {
            let (knee, _) = self.settle(now, window, &probe.during, high, found, false);
            if probe.up {
                self.at_once(now);
            }
            if found.value > FAST {
                self.slow_start = true;
                self.carries = 1.1 * self.usual_throughput * high.service_time();
                let sooner = self.carries.min(DOUBLE * probe.high);
                self.limit = self.limit.max(probe.high).max(sooner);
            }
            let reason = if is_not_ours { "not our queue" } else { knee };
            return (reason, self.limit);
        }
        self.steady = None;
        self.rest = None;
        self.schedule(now, window);
        if probe.up {
            return ("enough", self.limit);
        }
        self.limit = target(high.inflight() * base / high.service_time());
        ("capacity lost", self.limit)
    }

    /// Takes *S* from two points, and goes where it says, but not below the lower one.
    fn settle(
        &mut self,
        now: Instant,
        window: &Window,
        low: &Tally,
        high: &Tally,
        found: Elasticity,
        again: bool,
    ) -> (&'static str, f64) {
        let before = self.limit;
        let pays = found.pays();
        let busy = if pays {
            high.inflight()
        } else {
            busy(low, found)
        };
        let wanted = target(busy).max(low.inflight());
        self.limit = wanted.min(GREATEST_STEP * before);
        self.base = Some(at_work(wanted) * high.service_time() / high.inflight());
        self.steady = None;
        self.rest = None;
        self.last = None;
        self.probed = self.limit;
        let lower = DEPTH * self.limit.min(low.inflight());
        if again && lower >= 1.0 {
            return self.start(*low, lower);
        }
        self.verified = true;
        if pays || (self.limit / before).ln().abs() > 0.2 {
            self.pause = 0.0;
        }
        self.schedule(now, window);
        ("knee", self.limit)
    }

    /// Puts the next probe off, for twice as long as the last.
    fn schedule(&mut self, now: Instant, window: &Window) {
        let window = window.duration.as_secs_f64().min(60.0);
        let soonest = SOONEST.0.max(SOONEST.1 * window);
        let latest = LATEST.0.max(LATEST.1 * window);
        self.pause = (2.0 * self.pause).clamp(soonest, latest);
        self.due = Some(now + Duration::from_secs_f64(self.pause));
    }
}

impl Default for Knee {
    fn default() -> Self {
        Self::new()
    }
}

impl Limit for Knee {
    fn initial(&self) -> usize {
        self.initial
    }

    fn on_window(&mut self, now: Instant, window: &Window) -> usize {
        let (reason, mut commanded) = self.decide(now, window);
        self.reason = reason;
        let (least, most) = (window.min_limit as f64, window.max_limit as f64);
        if let Some(objective) = &self.objective
            && commanded > objective.ceiling()
        {
            self.reason = "objective";
            self.limit = self.limit.min(objective.ceiling());
            commanded = objective.ceiling();
        }
        self.limit = self.limit.clamp(least, most);
        commanded.clamp(least, most).round() as usize
    }

    fn evidence(&self) -> u64 {
        match &self.probe {
            _ if self.dying.is_some() => 16,
            None => (FOR_EACH.0 * self.limit).clamp(FOR_EACH.1, 128.0) as u64,
            Some(probe) if !probe.settled => 8,
            Some(_) => 32,
        }
    }

    fn objective(&self) -> Option<Duration> {
        self.objective.map(|objective| objective.service_time())
    }

    fn name(&self) -> &'static str {
        "knee"
    }

    fn explain(&self) -> Explanation {
        Explanation {
            reason: self.reason,
            baseline: self.base,
            elasticity: self.elasticity,
        }
    }
}

/// Whether the limit was what held throughput down, and not the callers.
fn is_full(window: &Window, held: f64) -> bool {
    window.mean_inflight >= FULL * held || refused_share(window) >= REFUSED
}

/// The refused part of what was offered.
fn refused_share(window: &Window) -> f64 {
    let refused = window.refusals as f64;
    refused / (refused + window.completions as f64).max(1.0)
}

/// The limit for so many requests at work.
fn target(at_work: f64) -> f64 {
    let at_work = at_work.max(0.0);
    (at_work * (1.0 + HEADROOM) + at_work.sqrt()).max(1.0)
}

/// The requests at work for which a limit is the target.
fn at_work(limit: f64) -> f64 {
    let share = 1.0 + HEADROOM;
    let root = ((1.0 + 4.0 * share * limit).sqrt() - 1.0) / (2.0 * share);
    root * root
}

/// Where the line through two points meets the knee: the requests at work at the higher one.
fn busy(low: &Tally, found: Elasticity) -> f64 {
    low.inflight() * (found.value.clamp(0.0, 1.0) * found.moved).exp()
}
