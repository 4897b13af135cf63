//! The tuner: demand and knee, and which of them moves the target.

use std::time::Duration;

use tokio::time::Instant;

use super::demand::{BaseUseTime, PeakDemand, staffing};
use super::knee::{Knee, Opening, Outcome};
use super::{Cause, Decision, Inputs, PoolWindow, Reason, TunerConfig, Verdict};
use crate::Bounds;

/// Decides how many connections a pool should have. See the [module docs](super).
#[derive(Clone, Debug)]
pub struct Tuner {
    config: TunerConfig,
    bounds: Bounds,
    target: usize,
    /// Windows since the last decision that needed a whole one.
    gathered: PoolWindow,
    pub(super) base: BaseUseTime,
    peak: PeakDemand,
    pub(super) knee: Knee,
    verdict: Verdict,
    /// The mean time that the last connections took to open.
    dial: Option<f64>,
    /// The fastest such time.
    fastest_dial: Option<f64>,
    may_grow: bool,
    /// When a checkout last gave up while more connections were allowed.
    gave_up: Option<Instant>,
    /// Connections in use in the last whole window, on average.
    in_use: usize,
    /// Windows of less than 250 ms together.
    lately: PoolWindow,
    /// What was seen since the pool is full at its limit.
    full: PoolWindow,
    /// The fastest mean time to open a connection.
    base_dial: Option<f64>,
    cause: Cause,
    shrunk: Option<Instant>,
    /// Since when the pool, grown to work off a backlog, is no longer saturated.
    drained_since: Option<Instant>,
}

impl Tuner {
    /// A tuner for a pool that has just started, or that is `start` connections large.
    #[must_use]
    pub fn new(config: TunerConfig, bounds: Bounds, start: usize, now: Instant) -> Self {
        Self {
            config,
            bounds,
            target: bounds.clamp(start),
            gathered: PoolWindow::default(),
            base: BaseUseTime::default(),
            peak: PeakDemand::new(config.shrink_horizon, now),
            knee: Knee::new(config.knee, now),
            verdict: Verdict::Healthy,
            dial: None,
            fastest_dial: None,
            may_grow: bounds.clamp(start) < bounds.max(),
            gave_up: None,
            in_use: 0,
            lately: PoolWindow::default(),
            full: PoolWindow::default(),
            base_dial: None,
            cause: Cause::Unknown,
            shrunk: None,
            drained_since: None,
        }
    }

    /// The size it wants. Always within its bounds.
    #[must_use]
    pub fn target(&self) -> usize {
        self.target
    }

    /// How many connections to let out: the target, or less while it tries whether fewer would do.
    #[must_use]
    pub fn admitted(&self) -> usize {
        self.knee.admitted(self.target)
    }

    /// Whether it would open more for checkouts that wait, as far as it knows: then it is best given
    /// the next window soon.
    pub(crate) fn may_grow(&self) -> bool {
        self.may_grow
    }

    /// Whether checkouts gave up lately and more connections are allowed: a dial that begins later ends too
    /// late for the next, so a window ends as soon as one waits.
    pub(crate) fn is_urgent(&self, now: Instant) -> bool {
        self.may_grow && self.is_impatient(now)
    }

    /// What the last whole window says is the matter. [`Verdict::ConnectBound`] and those about
    /// single checkouts are not the tuner's to see.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict.clone()
    }

    /// K: the most connections worth having, if an experiment found it.
    #[must_use]
    pub fn knee(&self) -> Option<usize> {
        self.knee.cap()
    }

    /// The highest demand of the last 300 s, or of the time there was.
    #[must_use]
    pub fn peak_demand(&self) -> Option<usize> {
        self.peak.so_far()
    }

    /// The bounds it keeps to.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Changes the bounds, and moves the target into them.
    pub fn set_bounds(&mut self, now: Instant, bounds: Bounds) -> Decision {
        self.bounds = bounds;
        self.knee.cancel();
        let to = bounds.clamp(self.target);
        let decision = self.decide(now, Reason::Bounds, to, Inputs::default());
        self.verdict = self.judge(self.verdict != Verdict::Healthy);
        decision
    }

    /// The server is another one, or the same one anew: what was learned about it is forgotten.
    pub fn failover(&mut self, now: Instant) -> Decision {
        let is_saturated = self.verdict != Verdict::Healthy;
        *self = Self::new(self.config, self.bounds, self.target, now);
        // Its callers wait as before.
        self.verdict = self.judge(is_saturated);
        self.decide(now, Reason::Failover, self.target, Inputs::default())
    }

    /// Takes in what happened since the last call. Best called every 250 ms: a backlog is acted on
    /// at once, everything else when enough was seen.
    pub fn on_window(&mut self, now: Instant, window: &PoolWindow) -> Decision {
        let decision = self.act_on(now, window);
        let is_shut = self.knee.opening(now, self.target) == Opening::Shut;
        self.may_grow = self.target < self.bounds.max() && !is_shut;
        decision
    }

    fn act_on(&mut self, now: Instant, window: &PoolWindow) -> Decision {
        self.dial = window.mean_dial_time().or(self.dial);
        self.fastest_dial = match (window.mean_dial_time(), self.fastest_dial) {
            (Some(seen), Some(fastest)) => Some(seen.min(fastest)),
            (seen, fastest) => fastest.or(seen),
        };
        if gave_up(window) + window.late_dials > 0 && self.target < self.bounds.max() {
            self.gave_up = Some(now);
        }
        self.knee.see(window);
        self.gathered.merge(window);
        self.note_full(window);
        // A size is decided on after a whole window; that checkouts wait is known before.
        if self.gathered.duration >= self.config.min_window && self.is_saturated(&self.gathered) {
            self.verdict = self.judge(true);
        }
        if let Some(decision) = self.on_backlog(now, window) {
            self.gathered = PoolWindow::default();
            return decision;
        }
        if let Some(decision) = self.on_starving(now, window) {
            self.gathered = PoolWindow::default();
            return decision;
        }
        if !self.knee.is_idle() {
            return self.on_experiment(now, window);
        }
        if !self.is_telling(&self.gathered) {
            return self.decide(now, Reason::Gathering, self.target, Inputs::default());
        }
        let gathered = std::mem::take(&mut self.gathered);
        self.on_whole_window(now, &gathered)
    }

    /// Keeps what was seen while the pool was full at this limit. Throughput says something of a
    /// size only where that was in use all the time.
    fn note_full(&mut self, window: &PoolWindow) {
        if !self.is_full(window) {
            self.full = PoolWindow::default();
        } else if self.full.limit == window.limit && self.full.duration < self.config.max_window {
            self.full.merge(window);
        } else {
            self.full = window.clone();
        }
    }

    /// Opens more while checkouts wait longer than a dial takes, whatever the reason, unless
    /// experiments show that more do not pay.
    fn on_starving(&mut self, now: Instant, window: &PoolWindow) -> Option<Decision> {
        if !self.is_starving(now, window) {
            return None;
        }
        let Opening::To(reach) = self.knee.opening(now, self.target) else {
            return None;
        };
        let wanted = self.target + window.queued.max(gave_up(window) as usize);
        let target = self.bounds.clamp(reach.min(wanted));
        if target == self.target {
            return None;
        }
        let inputs = self.inputs(window, self.demand(window), true);
        let before = std::mem::take(&mut self.full);
        Some(self.grow_to(now, Reason::Starving, target, &before, inputs))
    }

    /// Whether a checkout gave up in the time for which demand is remembered.
    fn is_impatient(&self, now: Instant) -> bool {
        self.gave_up
            .is_some_and(|gave_up| now - gave_up < self.config.shrink_horizon)
    }

    /// Whether checkouts have waited for longer than opening a connection takes, and no growth is
    /// under way.
    fn is_starving(&self, now: Instant, window: &PoolWindow) -> bool {
        /// Where nothing was seen yet, no wait below this is worth a connection.
        const SHORTEST: Duration = Duration::from_millis(5);
        /// Where dials take longer, the sooner they begin the better.
        const LONGEST: Duration = Duration::from_millis(25);
        /// Dialling that takes this many times its fastest is slow.
        const SLOW: f64 = 2.0;
        let room = self.bounds.max().saturating_sub(window.held);
        if window.limit < self.target.min(room) {
            return false;
        }
        // Some have no patience for a dial, and the next will not wait for it either. What is open needs
        // none.
        let is_late = window.spare > 0 || self.is_impatient(now);
        if gave_up(window) > 0 || window.queued > 0 && is_late {
            return true;
        }
        let shortest = if self.base.get().is_none() {
            SHORTEST
        } else {
            self.config.slow_wait
        };
        let dial = self.dial.map_or(Duration::ZERO, Duration::from_secs_f64);
        // A server that has become slow to open connections is busy.
        let is_busy = match (self.dial, self.fastest_dial) {
            (Some(dial), Some(fastest)) => dial > SLOW * fastest,
            _ => false,
        };
        let dial = if is_busy { dial } else { dial.min(LONGEST) };
        window.queued > 0 && window.mean_age() > dial.max(shortest)
    }

    /// The fast path: a backlog that more connections will work off.
    fn on_backlog(&mut self, now: Instant, window: &PoolWindow) -> Option<Decision> {
        /// Arrivals of a shorter time are a burst as likely as a rate.
        const A_WHILE: Duration = Duration::from_millis(250);
        self.lately.merge(window);
        if self.lately.duration < A_WHILE {
            return None;
        }
        let window = &std::mem::take(&mut self.lately);
        // A limit still on its way to the target explains the backlog.
        if window.queued <= window.limit || window.limit < self.target {
            return None;
        }
        let base = self.base.get()?;
        let seen = window.mean_use_time()?;
        if seen >= self.config.inflated * base {
            return None;
        }
        let drain = window.queued as f64 * base / self.config.drain_backlog_in.as_secs_f64();
        let load = window.arrival_rate() * base + drain;
        let demand = staffing(load, window.use_time_variation());
        // A small step can wait for a whole window, and for the end of an experiment.
        if demand / 2 < self.target {
            return None;
        }
        let jump = self.knee.jump(now, self.target).min(demand);
        let target = self.bounds.clamp(jump);
        if target <= self.target {
            return None;
        }
        let inputs = self.inputs(window, Some(demand), true);
        let before = std::mem::take(&mut self.full);
        Some(self.grow_to(now, Reason::Backlog, target, &before, inputs))
    }

    fn grow_to(
        &mut self,
        now: Instant,
        reason: Reason,
        target: usize,
        window: &PoolWindow,
        inputs: Inputs,
    ) -> Decision {
        if matches!(
            reason,
            Reason::Backlog | Reason::Starving | Reason::Trial | Reason::Paid
        ) {
            // What it takes to work off a backlog, or a burst, is needed once, and given back.
            self.drained_since = Some(now);
        }
        if self.config.experiments {
            self.knee.grow(now, self.target, target, window.clone());
        }
        self.decide(now, reason, target, inputs)
    }

    /// Goes on with an experiment.
    fn on_experiment(&mut self, now: Instant, window: &PoolWindow) -> Decision {
        let config = self.config;
        let before = self.knee.use_time_before();
        let outcome = self
            .knee
            .on_window(now, window, |after| is_full(&config, after));
        if outcome == Outcome::Running {
            return self.decide(now, Reason::Gathering, self.target, Inputs::default());
        }
        let gathered = std::mem::take(&mut self.gathered);
        let saturated = self.is_saturated(&gathered);
        let (reason, to, seen) = match outcome {
            Outcome::Running | Outcome::Unclear(None) => (Reason::Settling, self.target, None),
            Outcome::Keep(None) => {
                // Should a probe show later that it did not pay, the dials of the growth say why.
                self.cause = self.cause_of(&gathered);
                (Reason::Settling, self.target, None)
            }
            Outcome::Keep(use_time) => {
                // As long with more connections as with fewer: not our doing.
                self.base.rebase(use_time);
                (Reason::Settling, self.target, None)
            }
            Outcome::Paid(needed, seen, after) => {
                // Growth that pays may make use times longer, too, and that part is our doing.
                self.base.rebase(before.or_else(|| after.mean_use_time()));
                let demand = self.demand(&after);
                let inputs = Inputs {
                    elasticity: Some(seen),
                    ..self.inputs(&after, demand, true)
                };
                if needed < self.target {
                    return self.decide(now, Reason::Overshot, self.bounds.clamp(needed), inputs);
                }
                return match self.reach(now, &after, demand.unwrap_or(0)) {
                    Some((_, target)) => self.grow_to(now, Reason::Paid, target, &after, inputs),
                    None => self.decide(now, Reason::Paid, self.target, inputs),
                };
            }
            Outcome::Revert(to, seen, _) => {
                self.cause = self.cause_of(&gathered);
                (Reason::NoGain, to, Some(seen))
            }
            Outcome::Useless(to, seen) => (Reason::Useless, to, Some(seen)),
            Outcome::Useful(seen, low) => {
                self.base.rebase(low.mean_use_time());
                (Reason::Recovered, self.target, Some(seen))
            }
            Outcome::Unclear(seen) if self.is_at_knee() => (Reason::AtKnee, self.target, seen),
            Outcome::Unclear(seen) => (Reason::Settling, self.target, seen),
        };
        let demand = self.demand(&gathered);
        self.peak.push(now, demand.unwrap_or(0));
        let inputs = Inputs {
            elasticity: seen,
            ..self.inputs(&gathered, demand, saturated)
        };
        self.decide(now, reason, self.bounds.clamp(to), inputs)
    }

    /// Whether the window is long enough to decide on. The last condition is .NET's rule for its
    /// thread pool: with n connections the count of completions is off by up to n − 1 at each end.
    fn is_telling(&self, window: &PoolWindow) -> bool {
        let enough = window.completions >= self.config.min_completions
            && (window.limit.saturating_sub(1) as f64) < 0.15 * window.completions as f64;
        window.duration >= self.config.max_window
            || (window.duration >= self.config.min_window && enough)
    }

    /// Why a growth on trial did not pay: from how busy the application was meanwhile, and from the
    /// time it took to open its connections.
    fn cause_of(&self, trial: &PoolWindow) -> Cause {
        /// An application with this share of its workers busy has no time for its connections.
        const BUSY: f64 = 0.9;
        /// Dialling that takes this many times its base is slow: of the two to five dials of a trial
        /// one comes late on any machine, and at a processor that is at its end all wait for their
        /// share.
        const SLOW: f64 = 3.0;
        if trial.app_utilisation() > BUSY {
            return Cause::AppHold;
        }
        match (trial.mean_dial_time(), self.base_dial) {
            (Some(seen), Some(base)) if seen > SLOW * base => Cause::Cpu,
            (Some(_), Some(_)) => Cause::Lock,
            _ => Cause::Unknown,
        }
    }

    fn judge(&self, saturated: bool) -> Verdict {
        if !saturated {
            Verdict::Healthy
        } else if self.is_at_knee() {
            Verdict::AtKnee(self.cause)
        } else if self.target == self.bounds.max() {
            Verdict::BudgetBound
        } else {
            Verdict::Underprovisioned
        }
    }

    /// Whether experiments showed that it need not be larger than it is.
    fn is_at_knee(&self) -> bool {
        self.knee.cap().is_some_and(|cap| cap <= self.target)
    }

    fn on_whole_window(&mut self, now: Instant, window: &PoolWindow) -> Decision {
        let saturated = self.is_saturated(window);
        if !saturated {
            self.base_dial = match (window.mean_dial_time(), self.base_dial) {
                (Some(seen), Some(base)) => Some(seen.min(base)),
                (seen, base) => base.or(seen),
            };
        }
        self.knee.observe(now, self.target, window, saturated);
        self.base.learn(window, saturated);
        let demand = self.demand(window);
        let inputs = self.inputs(window, demand, saturated);
        // No use time was ever seen: nothing is known, and nothing is asked for.
        let demand = demand.unwrap_or(0);
        self.peak.push(now, demand);
        // What is in use says more than what was given back, of uses that take long.
        let in_use = window.busy.as_secs_f64() / window.duration.as_secs_f64().max(1e-9);
        self.in_use = staffing(in_use, window.use_time_variation());

        if saturated {
            self.drained_since = self.drained_since.map(|_| now);
            return self.on_saturated(now, window, demand, inputs);
        }
        let (reason, target) = self.give_back(now).unwrap_or_else(|| self.shrink(now));
        if target < self.target {
            self.shrunk = Some(now);
        }
        self.decide(now, reason, target, inputs)
    }

    fn on_saturated(
        &mut self,
        now: Instant,
        window: &PoolWindow,
        demand: usize,
        inputs: Inputs,
    ) -> Decision {
        if let Some((reason, target)) = self.reach(now, window, demand) {
            return self.grow_to(now, reason, target, window, inputs);
        }
        if self.config.experiments
            && self.is_full(window)
            && self
                .knee
                .try_down(now, self.target, self.bounds.min(), window)
        {
            return self.decide(now, Reason::Probing, self.target, inputs);
        }
        let reason = if self.is_at_knee() {
            Reason::AtKnee
        } else if self.target == self.bounds.max() {
            Reason::AtMaximum
        } else {
            Reason::Settling
        };
        self.decide(now, reason, self.target, inputs)
    }

    /// The size a saturated pool may be tried at, if larger.
    fn reach(&self, now: Instant, window: &PoolWindow, demand: usize) -> Option<(Reason, usize)> {
        // As many as run and wait could run at once, if the database made use of them. Where not all
        // run all the time, waits come in bursts, and the slack in the demand is for those.
        let takers = if self.is_full(window) {
            window.limit + window.mean_queue().ceil() as usize
        } else {
            0
        };
        let reach = self.knee.reach(now, self.target, demand.max(takers));
        let target = self.bounds.clamp(reach);
        let reason = if demand >= target {
            Reason::Saturated
        } else {
            Reason::Trial
        };
        (target > self.target).then_some((reason, target))
    }

    pub(crate) fn is_full(&self, window: &PoolWindow) -> bool {
        is_full(&self.config, window)
    }

    fn demand(&self, window: &PoolWindow) -> Option<usize> {
        let base = self.base.get()?;
        Some(staffing(
            window.arrival_rate() * base,
            window.use_time_variation(),
        ))
    }

    fn is_saturated(&self, window: &PoolWindow) -> bool {
        is_saturated(&self.config, window)
    }

    /// Gives back at once what was only needed to work off a backlog.
    fn give_back(&mut self, now: Instant) -> Option<(Reason, usize)> {
        if now - self.drained_since? < self.config.give_back_after {
            return None;
        }
        self.drained_since = None;
        let floor = self.bounds.clamp(self.peak.so_far()?.max(self.in_use));
        let is_more = self.target as f64 > floor as f64 * (1.0 + self.config.dead_band);
        is_more.then_some((Reason::Drained, floor))
    }

    fn shrink(&self, now: Instant) -> (Reason, usize) {
        let steady = (Reason::Steady, self.target);
        let Some(peak) = self.peak.get(now) else {
            return steady;
        };
        let floor = self.bounds.clamp(peak.max(self.in_use));
        if self.target as f64 <= floor as f64 * (1.0 + self.config.dead_band) {
            return steady;
        }
        if self
            .shrunk
            .is_some_and(|shrunk| now - shrunk < self.config.shrink_every)
        {
            return (Reason::Settling, self.target);
        }
        let step = ((self.target as f64 * self.config.shrink_step) as usize).max(1);
        (Reason::Surplus, floor.max(self.target - step))
    }

    fn inputs(&self, window: &PoolWindow, demand: Option<usize>, saturated: bool) -> Inputs {
        Inputs {
            arrival_rate: window.arrival_rate(),
            throughput: window.throughput(),
            mean_wait_time: window.mean_wait_time(),
            mean_use_time: window.mean_use_time(),
            base_use_time: self.base.get(),
            use_time_variation: window.use_time_variation(),
            utilisation: window.utilisation(),
            mean_queue: window.mean_queue(),
            queued: window.queued,
            limit: window.limit,
            timeouts: window.timeouts,
            saturated,
            demand,
            knee: self.knee.cap(),
            elasticity: None,
        }
    }

    fn decide(&mut self, at: Instant, reason: Reason, to: usize, inputs: Inputs) -> Decision {
        let from = std::mem::replace(&mut self.target, to);
        if !matches!(
            reason,
            Reason::Gathering | Reason::Bounds | Reason::Failover
        ) {
            self.verdict = self.judge(inputs.saturated);
        }
        Decision {
            at,
            from,
            to,
            reason,
            inputs,
        }
    }
}

/// Checkouts that gave up waiting.
fn gave_up(window: &PoolWindow) -> u64 {
    window.timeouts + window.cancelled
}

/// Whether checkouts wait for connections more than they should, be it in bursts.
fn is_saturated(config: &TunerConfig, window: &PoolWindow) -> bool {
    // Slow waits are counted where they are measured, against `config.slow_wait`.
    let slow = window.slow_waits * 20 > window.arrivals;
    slow || is_full(config, window)
}

/// Whether the pool, and not its users, bounds throughput: saturated all the time.
fn is_full(config: &TunerConfig, window: &PoolWindow) -> bool {
    /// Behind a line as long as the pool this much in use is all there is to have: the rest is the
    /// time from one user to the next, which short uses notice.
    const BEHIND_A_LINE: f64 = 0.75;
    let (used, queue) = (window.utilisation(), window.mean_queue());
    let full = used > config.full && queue > 0.3;
    // A line that is gone by now was a backlog, and part of the window went by without it.
    let line = queue.min(window.queued as f64);
    let behind_a_line = used > BEHIND_A_LINE && line > window.limit as f64;
    full || behind_a_line || window.timeouts > 0
}
