//! K: how many connections the database makes use of.
//!
//! At saturation Little's law gives X = n/S, so the elasticity ε = ∂ln X/∂ln n says what one more
//! connection earns: 1, its full share; 0, nothing, the queue has only moved into the database;
//! below 0, it costs. Kleinrock's power X^α/S peaks at ε = 1/(1 + α); the default ε* = 0.25 is α = 3.
//! Wait times say nothing about ε. Two experiments measure it:
//!
//! - **Up**: every growth of a saturated pool is on trial. Half a second after the connections are
//!   open, throughput is measured for 1.5 s and compared with that before. Growth that earned less
//!   than ε* is taken back, down to the smallest size on its way that had nearly all of the
//!   throughput. Where the pool is not full all the time any more, throughput is what was asked for
//!   and says nothing; what cannot be resolved is kept, too. The next try is smaller: by the square
//!   root of the factor, after 5 s to 5 min. Once the factor is below 1.2, the size it started from
//!   is the knee.
//! - **Down**: at the knee, the *gate* is held at 0.8 n for two of four seconds (high, low, low,
//!   high, so that a linear drift cancels), while all connections stay open. If the last part
//!   earns clearly less than ε*, it is closed; if clearly more, the database has recovered, and the
//!   pool may grow again. At the minimum, where there is no going down, one more is tried instead.
//!
//! The rule is .NET's for its thread pool turned into single experiments: that one dithers forever
//! (hundreds of resizes in four minutes in our model), this one backs off.

use std::time::Duration;

use tokio::time::Instant;

use super::PoolWindow;

/// The constants of the knee search. *Model* means the scenarios of `benches/pools`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
#[cfg_attr(feature = "json", derive(serde::Deserialize, serde::Serialize))]
pub struct KneeConfig {
    /// ε*: the elasticity below which a connection does not pay. Defaults to 0.25; in the model,
    /// results between 0.1 and 0.33 differed by 2 %.
    pub worth: f64,
    /// Time for a change to show in throughput before it is measured. Defaults to 500 ms:
    /// two of the pool's windows of 250 ms, in which what was under way before is done.
    pub settle: Duration,
    /// Time to measure it for. Defaults to 1.5 s, or to three use times where those are longer, and
    /// up to 6 s for a clear result. At a thousand queries a second that is a standard error of 0.09
    /// for a growth by half.
    pub measure: Duration,
    /// A standard error of ε above this is no clear result. Defaults to 0.15: then 0.25
    /// is told from 0 and from 0.5 by more than one and a half of it.
    pub precision: f64,
    /// How long connections may take to open before a trial is called off. Defaults to 10 s,
    /// twice the pool's default for one of them.
    pub open_within: Duration,
    /// Largest factor of a growth on trial. Defaults to 2, as in slow start (RFC 5681).
    pub growth: f64,
    /// Part of the limit that stays open while dithering down. Defaults to 0.8: a fifth less
    /// costs a database below its knee at most a fifth for half of a second, and shows at one above.
    pub dither: f64,
    /// How long each of the four slots of a dither lasts, the settling included. Defaults to 1 s,
    /// and to four use times where those are longer: the settling of 500 ms,
    /// and as long to measure.
    pub slot: Duration,
    /// Shortest time between two experiments that taught nothing new. Defaults to 5 s: an
    /// experiment of four slots then takes less than half of the time.
    pub retry: Duration,
    /// Longest, after doubling. Defaults to 60 s: a knee that moved is found within a minute.
    pub retry_max: Duration,
    /// Longest time between two growths on trial at a knee, unless throughput there has risen.
    /// Defaults to 300 s: a trial and its end are two resizes, so under thirty an hour.
    pub retry_growth_max: Duration,
    /// The knee is forgotten after so long without saturation. Defaults to 20 s: it is a fact about
    /// an overload, not about the service.
    pub forget: Duration,
}

impl Default for KneeConfig {
    fn default() -> Self {
        Self {
            worth: 0.25,
            settle: Duration::from_millis(500),
            measure: Duration::from_millis(1_500),
            precision: 0.15,
            open_within: Duration::from_secs(10),
            growth: 2.0,
            dither: 0.8,
            slot: Duration::from_secs(1),
            retry: Duration::from_secs(5),
            retry_max: Duration::from_secs(60),
            retry_growth_max: Duration::from_secs(300),
            forget: Duration::from_secs(20),
        }
    }
}

/// Fewer waiting checkouts on average are chance.
const A_QUEUE: f64 = 0.3;

/// A probe with a standard error above this many times the precision says nothing.
const RESOLVED: f64 = 2.0;

/// ε with its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
#[cfg_attr(feature = "json", derive(serde::Serialize))]
pub struct Elasticity {
    /// ∂ln X/∂ln n.
    pub mean: f64,
    /// Its standard error, from the counts of completions taken as Poisson.
    pub error: f64,
}

impl Elasticity {
    /// Between `few` connections and `many`, if both windows saw completions.
    fn between(few: usize, low: &PoolWindow, many: usize, high: &PoolWindow) -> Option<Self> {
        Self::over((many as f64 / few as f64).ln(), low, high)
    }

    /// Between two windows in which the pool was full, by the mean of their limits.
    fn of(low: &PoolWindow, high: &PoolWindow) -> Option<Self> {
        Self::over((mean_limit(high) / mean_limit(low)).ln(), low, high)
    }

    /// Whether more connections can have done that. Of twice as many, no database loses nearly half
    /// of its throughput: then the queries changed, or the database did by itself.
    fn is_plausible(&self) -> bool {
        self.mean > -0.8
    }

    /// `step`: the logarithm of the factor between the sizes.
    fn over(step: f64, low: &PoolWindow, high: &PoolWindow) -> Option<Self> {
        let (fewer, more) = (low.completions as f64, high.completions as f64);
        (step > 0.0 && fewer > 0.0 && more > 0.0).then(|| Self {
            mean: (high.throughput() / low.throughput()).ln() / step,
            error: (1.0 / fewer + 1.0 / more).sqrt() / step,
        })
    }
}

/// The limit in force, on average over the window.
fn mean_limit(window: &PoolWindow) -> f64 {
    window.capacity.as_secs_f64() / window.duration.as_secs_f64().max(1e-9)
}

/// Connections in use, on average over the window.
fn in_use(window: &PoolWindow) -> f64 {
    window.busy.as_secs_f64() / window.duration.as_secs_f64().max(1e-9)
}

/// What is known about the knee, and the experiment under way.
#[derive(Clone, Debug)]
pub(super) struct Knee {
    config: KneeConfig,
    /// The most connections worth having, if a trial showed it.
    cap: Option<usize>,
    growth: f64,
    retry: Duration,
    not_before: Instant,
    /// When to try again whether fewer would do, and how long after the next try that shows that
    /// all are needed.
    probe_after: Instant,
    probe_retry: Duration,
    /// Nothing says how much too large the pool is, so the next try goes further down.
    is_far: bool,
    /// The last growth that did not pay.
    failed: Option<Failed>,
    /// The one before a growth that did: chance, if that is taken back later.
    doubted: Option<Failed>,
    calm_since: Option<Instant>,
    saturated_since: Option<Instant>,
    /// Whether anything completed in the last window.
    completes: bool,
    trial: Trial,
}

#[derive(Clone, Debug)]
struct Failed {
    from: usize,
    /// Throughput before it.
    throughput: f64,
    /// When what was begun at the larger size has completed.
    settled: Instant,
    /// Use time at this size then, and its standard error.
    use_time: Option<(f64, f64)>,
    /// What was seen at the larger size, until it was compared with what came after it too.
    larger: Option<(usize, PoolWindow)>,
    /// When to try again, and how long after the next failure.
    again: Instant,
    retry: Duration,
}

#[derive(Clone, Debug)]
enum Trial {
    None,
    Up {
        from: usize,
        to: usize,
        before: Box<PoolWindow>,
        /// What was seen since, one window for each limit in force.
        steps: Vec<PoolWindow>,
        /// For how long hardly any checkout has waited.
        calm: Duration,
        phase: Phase,
    },
    Down {
        high: usize,
        low: usize,
        floor: usize,
        slots: Box<Slots>,
    },
}

#[derive(Clone, Debug)]
enum Phase {
    Opening { since: Instant },
    Settling { until: Instant },
    Measuring(Box<PoolWindow>),
}

/// What is known of a growth on trial.
struct Growth<'a> {
    from: usize,
    to: usize,
    /// What came before it.
    began: &'a PoolWindow,
    /// The same, and its smaller sizes.
    before: PoolWindow,
    steps: &'a [PoolWindow],
    /// The last one did not pay.
    has_failed: bool,
}

/// Four slots, high, low, low, high, over and over for up to three blocks.
#[derive(Clone, Debug)]
struct Slots {
    started: Instant,
    /// How long each is.
    lasts: Duration,
    index: u32,
    high: PoolWindow,
    low: PoolWindow,
}

/// How far a pool that is short of connections may be opened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Opening {
    /// Experiments show that more earn nothing.
    Shut,
    /// Whether the last growth pays will be known in a moment.
    Soon,
    /// Up to this size.
    To(usize),
}

/// What an experiment says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    /// It goes on.
    Running,
    /// Growth was enough, or cannot be judged: it stays. With the use time, if that is as it was
    /// before.
    Keep(Option<f64>),
    /// Growth paid: as much of it stays as this size, and the use time seen is what the database
    /// needs.
    Paid(usize, Elasticity, PoolWindow),
    /// Growth did not pay: back to this size, and whether a smaller one was seen to earn less.
    Revert(usize, Elasticity, bool),
    /// The last part earns nothing: down to this size.
    Useless(usize, Elasticity),
    /// The last part earns its keep: the knee lies higher.
    Useful(Elasticity, PoolWindow),
    /// No clear result.
    Unclear(Option<Elasticity>),
}

impl Knee {
    pub(super) fn new(config: KneeConfig, now: Instant) -> Self {
        Self {
            config,
            cap: None,
            growth: config.growth,
            retry: config.retry,
            not_before: now,
            probe_after: now,
            probe_retry: config.retry,
            is_far: false,
            failed: None,
            doubted: None,
            calm_since: None,
            saturated_since: None,
            completes: false,
            trial: Trial::None,
        }
    }

    /// K, if it is known.
    pub(super) fn cap(&self) -> Option<usize> {
        self.cap
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.trial, Trial::None)
    }

    /// The limit of the gate for a pool of `target` connections: lower in half of a dither.
    pub(super) fn admitted(&self, target: usize) -> usize {
        match &self.trial {
            Trial::Down { low, slots, .. } if slots.is_low() => target.min(*low),
            _ => target,
        }
    }

    /// The largest size that a saturated pool of `size`, with `wanted` takers, may be tried at.
    pub(super) fn reach(&self, now: Instant, size: usize, wanted: usize) -> usize {
        if now < self.not_before {
            return size;
        }
        let factor = ((size as f64 * self.growth).ceil() as usize).max(size + 1);
        wanted
            .min(factor)
            .min(self.cap.unwrap_or(usize::MAX))
            .max(size)
    }

    /// The largest size for the first jump of a step. After growth that did not pay there are no
    /// jumps: what waits then waits for the database.
    pub(super) fn jump(&self, now: Instant, size: usize) -> usize {
        if now < self.not_before || self.failed.is_some() {
            return size;
        }
        (8 * size + 8).min(self.cap.unwrap_or(usize::MAX))
    }

    /// Use time before the growth on trial.
    pub(super) fn use_time_before(&self) -> Option<f64> {
        match &self.trial {
            Trial::Up { before, .. } => before.mean_use_time(),
            _ => None,
        }
    }

    /// A growth was decided on, from what `before` showed. One on trial already goes on from where it
    /// began: whether that paid would not be known otherwise.
    pub(super) fn grow(&mut self, now: Instant, from: usize, to: usize, before: PoolWindow) {
        let phase = Phase::Opening { since: now };
        let (from, before, steps) = match std::mem::replace(&mut self.trial, Trial::None) {
            Trial::Up {
                from,
                before,
                steps,
                ..
            } => (from, before, steps),
            _ => (from, Box::new(before), Vec::new()),
        };
        self.trial = Trial::Up {
            from,
            to,
            before,
            steps,
            calm: Duration::ZERO,
            phase,
        };
    }

    /// Tries whether the last part of a saturated pool of `size` is worth having, if it is time.
    /// `floor`: the size it cannot go below.
    pub(super) fn try_down(
        &mut self,
        now: Instant,
        size: usize,
        floor: usize,
        window: &PoolWindow,
    ) -> bool {
        /// The part of what was served since the pool is saturated that a probe may cost. (It loses what
        /// it closes for one slot, and ends there if that was needed.)
        const AFFORDABLE: f64 = 0.015;
        let since = self.saturated_since.unwrap_or(now);
        if now < self.not_before.max(self.probe_after) || !self.is_idle() {
            return false;
        }
        let Some(lasts) = self.slot(window) else {
            return false;
        };
        let cost = lasts.mul_f64(1.0 - self.dither());
        if (now - since).mul_f64(AFFORDABLE) < cost {
            return false;
        }
        let low = ((size as f64 * self.dither()).round() as usize).min(size - 1);
        let low = if self.is_far { low.max(floor) } else { low };
        if low < floor || low == size {
            // There is no going down from here: now and then, try one more.
            self.cap = Some(size + usize::from(self.may_try_again(now, size, window)));
            self.wait(now);
            return false;
        }
        let slots = Box::new(Slots {
            started: now,
            lasts,
            index: 0,
            high: PoolWindow::default(),
            low: PoolWindow::default(),
        });
        self.trial = Trial::Down {
            high: size,
            low,
            floor,
            slots,
        };
        true
    }

    /// How long a slot of a dither is, if throughput is so high that it tells one size from the
    /// other.
    fn slot(&self, window: &PoolWindow) -> Option<Duration> {
        /// Half of a slot settles.
        const USES: f64 = 4.0;
        /// A dither of longer ones takes minutes, and the load has changed by its end.
        const LONGEST: Duration = Duration::from_secs(10);
        let slot = self.config.slot.max(uses(window, USES));
        // What is measured at each size, in all blocks together.
        let completions = window.throughput() * 6.0 * slot.as_secs_f64() / 2.0;
        let error = (2.0 / completions).sqrt() / -self.dither().ln();
        (slot <= LONGEST && error <= RESOLVED * self.config.precision).then_some(slot)
    }

    /// The part of the limit that stays open in half of a dither: half, where nothing says how much
    /// too large the pool is; less is closed near a knee.
    fn dither(&self) -> f64 {
        const FURTHER: f64 = 0.5;
        if self.is_far {
            FURTHER
        } else {
            self.config.dither
        }
    }

    /// How far a pool of `size` may be opened while checkouts wait.
    ///
    /// Doubled at first, and again once throughput shows that the last doubling paid. Until then it
    /// stays as it is, if a moment will show it; if not, a few more are opened at a time, since what
    /// is not known is no reason to let checkouts wait.
    pub(super) fn opening(&self, now: Instant, size: usize) -> Opening {
        /// As many as are dialled at the same time.
        const A_FEW: usize = 2;
        let cap = self.cap.unwrap_or(usize::MAX);
        if cap <= size {
            return Opening::Shut;
        }
        let doubled = ((size as f64 * self.growth).ceil() as usize).max(size + 1);
        match &self.trial {
            Trial::None => {
                let failed = self.failed.as_ref();
                let tried = failed.is_some() || self.cap.is_some();
                if failed.is_some_and(|failed| now < failed.again) || tried && now < self.not_before
                {
                    return Opening::Shut;
                }
                Opening::To(doubled.min(cap))
            }
            // After one that did not pay, a small step at a time.
            Trial::Up { .. } if self.failed.is_some() => Opening::Shut,
            Trial::Up {
                from,
                to,
                before,
                steps,
                ..
            } => {
                let (low, high) = split(before, steps, (*from, *to));
                match self.judge(&low, &high) {
                    Some(true) => Opening::To(doubled.min(cap)),
                    Some(false) => Opening::Shut,
                    None if self.completes && is_soon_known(*to, steps) => Opening::Soon,
                    None => Opening::To((size + A_FEW).min(cap)),
                }
            }
            Trial::Down { .. } => Opening::Shut,
        }
    }

    /// Whether the connections between two sizes pay, if what was seen of both tells.
    fn judge(&self, low: &PoolWindow, high: &PoolWindow) -> Option<bool> {
        if !lasted(low, high) || !lasted(high, high) {
            return None;
        }
        let seen = Elasticity::of(low, high).filter(Elasticity::is_plausible)?;
        if seen.mean - seen.error >= self.config.worth {
            Some(true)
        } else if seen.mean + seen.error < self.config.worth {
            Some(false)
        } else {
            None
        }
    }

    /// Takes in a whole window of a pool of `size`; forgets what no longer holds.
    pub(super) fn observe(
        &mut self,
        now: Instant,
        size: usize,
        window: &PoolWindow,
        saturated: bool,
    ) {
        if saturated {
            self.calm_since = None;
            self.saturated_since.get_or_insert(now);
            if self.is_refuted(now, size, window) {
                *self = Self::new(self.config, now);
            }
            return;
        }
        self.saturated_since = None;
        let since = *self.calm_since.get_or_insert(now);
        if now - since >= self.config.forget {
            *self = Self::new(self.config, now);
            self.calm_since = Some(since);
        }
    }

    /// Whether the last growth that did not pay is no evidence any more: because its throughput,
    /// seen again from the size it began at, does pay (the database was disturbed meanwhile), or
    /// because the queries are others now.
    fn is_refuted(&mut self, now: Instant, size: usize, window: &PoolWindow) -> bool {
        /// Use times that differ by this factor are of other queries.
        const OTHER: f64 = 1.5;
        let Some(failed) = &mut self.failed else {
            return false;
        };
        if failed.from != size || now < failed.settled + window.duration {
            return false;
        }
        if let Some((to, larger)) = failed.larger.take()
            && Elasticity::between(size, window, to, &larger)
                .is_some_and(|seen| seen.mean - seen.error >= self.config.worth)
        {
            return true;
        }
        let seen = seen_use_time(window);
        let (Some((then, error)), Some((now, other))) = (failed.use_time, seen) else {
            failed.use_time = seen;
            return false;
        };
        let factor = (now / then).max(then / now);
        factor > OTHER && (now - then).abs() > 3.0 * error.hypot(other)
    }

    /// Takes in every window, before anything is decided on it.
    pub(super) fn see(&mut self, window: &PoolWindow) {
        self.completes = window.completions > 0;
        if let Trial::Up { steps, calm, .. } = &mut self.trial {
            // Where hardly any checkout waits, throughput is what was asked for, and says nothing of a size.
            if window.mean_queue() < A_QUEUE {
                *calm += window.duration;
                return;
            }
            *calm = Duration::ZERO;
            match steps.last_mut() {
                Some(last) if last.limit == window.limit => last.merge(window),
                _ => steps.push(window.clone()),
            }
        }
    }

    /// Calls the experiment off.
    pub(super) fn cancel(&mut self) {
        self.trial = Trial::None;
    }

    /// Takes in a small window while an experiment runs.
    pub(super) fn on_window(
        &mut self,
        now: Instant,
        window: &PoolWindow,
        is_full: impl Fn(&PoolWindow) -> bool,
    ) -> Outcome {
        let outcome = match &mut self.trial {
            Trial::None => return Outcome::Running,
            Trial::Up {
                from,
                to,
                before,
                steps,
                calm,
                phase,
            } => {
                // Enough for what waited. What waits later is another load, and not to be compared with it.
                if *calm >= self.config.measure {
                    let outcome = Outcome::Keep(None);
                    self.learn(now, &outcome);
                    return outcome;
                }
                let growth = Growth {
                    from: *from,
                    to: *to,
                    began: before,
                    before: split(before, steps, (*from, *to)).0,
                    steps,
                    has_failed: self.failed.is_some(),
                };
                Self::step_up(&self.config, now, window, &growth, phase, is_full)
            }
            Trial::Down {
                high, low, slots, ..
            } => Self::step_down(&self.config, now, window, (*high, *low), slots),
        };
        let outcome = self.confirm(now, outcome);
        self.learn(now, &outcome);
        outcome
    }

    /// Connections that pay are what a knee looks like from above. Only a size that achieves more
    /// than when growth from it failed, or a long time, is a reason to try again. That half of the
    /// pool pays says little of its last part.
    fn confirm(&self, now: Instant, outcome: Outcome) -> Outcome {
        match (&self.trial, outcome) {
            (Trial::Down { high, slots, .. }, Outcome::Useful(seen, _))
                if self.is_far || !self.may_try_again(now, *high, &slots.high) =>
            {
                Outcome::Unclear(Some(seen))
            }
            (_, outcome) => outcome,
        }
    }

    fn may_try_again(&self, now: Instant, from: usize, window: &PoolWindow) -> bool {
        const MORE: f64 = 1.15;
        self.failed.as_ref().is_none_or(|failed| {
            failed.from != from
                || now >= failed.again
                || window.throughput() >= MORE * failed.throughput
        })
    }

    fn step_up(
        config: &KneeConfig,
        now: Instant,
        window: &PoolWindow,
        growth: &Growth<'_>,
        phase: &mut Phase,
        is_full: impl Fn(&PoolWindow) -> bool,
    ) -> Outcome {
        let &Growth {
            from,
            to,
            began,
            ref before,
            steps,
            has_failed,
        } = growth;
        match phase {
            Phase::Opening { since } => {
                if window.limit >= to {
                    *phase = Phase::Settling {
                        until: now + config.settle,
                    };
                } else if now - *since >= config.open_within {
                    return Outcome::Keep(None);
                }
                Outcome::Running
            }
            Phase::Settling { until } => {
                if now >= *until {
                    *phase = Phase::Measuring(Box::default());
                }
                Outcome::Running
            }
            Phase::Measuring(after) => {
                after.merge(window);
                let measure = config.measure.max(uses(after, 3.0));
                let longest = 4 * config.measure;
                if after.duration < measure.min(longest) {
                    return Outcome::Running;
                }
                if !lasted(before, after) {
                    return Outcome::Keep(None);
                }
                if !is_full(after) {
                    // Throughput is what was asked for, and says nothing.
                    return match is_as_fast(before, after) {
                        true => Outcome::Keep(after.mean_use_time()),
                        false => Outcome::Keep(None),
                    };
                }
                let seen = Elasticity::of(before, after).filter(Elasticity::is_plausible);
                let is_clear = seen.is_some_and(|seen| {
                    let pays_not = seen.mean + seen.error < config.worth;
                    seen.error <= config.precision || pays_not && seen.error <= config.worth
                });
                if !is_clear && after.duration < longest {
                    return Outcome::Running;
                }
                let (keep, smaller_earns_less) = worth_keeping((from, to), began, steps, after);
                // After one that did not pay, the next has to pay for certain. Else, what is not
                // known is no reason to take anything back.
                let Some(seen) = seen.filter(|_| is_clear || has_failed) else {
                    return Outcome::Keep(None);
                };
                let pays = if has_failed {
                    seen.mean - seen.error >= config.worth
                } else {
                    seen.mean >= config.worth
                };
                if pays {
                    let keep = keep.min(needed(before, to, seen));
                    return Outcome::Paid(keep, seen, std::mem::take(&mut **after));
                }
                Outcome::Revert(keep, seen, smaller_earns_less)
            }
        }
    }

    fn step_down(
        config: &KneeConfig,
        now: Instant,
        window: &PoolWindow,
        (high, low): (usize, usize),
        slots: &mut Slots,
    ) -> Outcome {
        if window.queued == 0 {
            // No checkout waits: the limit is not what bounds throughput.
            return Outcome::Unclear(None);
        }
        let slot = now - slots.started;
        // The first half of a slot settles.
        if slot > slots.lasts / 2 {
            if slots.is_low() {
                &mut slots.low
            } else {
                &mut slots.high
            }
            .merge(window);
        }
        if slot < slots.lasts {
            return Outcome::Running;
        }
        slots.started = now;
        slots.index += 1;
        let seen = Elasticity::between(low, &slots.low, high, &slots.high)
            .filter(Elasticity::is_plausible);
        let is_resolved = seen.is_some_and(|seen| seen.error <= RESOLVED * config.precision);
        if !slots.index.is_multiple_of(4) {
            // Drift may be part of it, and a probe that costs this much is not worth its end.
            return match seen {
                Some(seen) if seen.mean - seen.error > 1.4 * config.worth => {
                    Outcome::Unclear(Some(seen))
                }
                _ => Outcome::Running,
            };
        }
        match seen {
            Some(seen) if is_resolved && seen.mean + seen.error < 0.6 * config.worth => {
                Outcome::Useless(low, seen)
            }
            Some(seen) if seen.mean - seen.error > 1.4 * config.worth => {
                Outcome::Useful(seen, std::mem::take(&mut slots.low))
            }
            seen if slots.index == 12 => Outcome::Unclear(seen),
            _ => Outcome::Running,
        }
    }

    fn learn(&mut self, now: Instant, outcome: &Outcome) {
        /// Below this factor growth is not worth trying.
        const SMALLEST_GROWTH: f64 = 1.2;
        /// The factor of a trial next to a knee.
        const SMALL_GROWTH: f64 = 1.4;
        match outcome {
            Outcome::Running => return,
            Outcome::Keep(use_time) => {
                self.failed = None;
                self.retry = self.config.retry;
                self.is_far = use_time.is_none();
            }
            Outcome::Paid(needed, _, after) => {
                // The knee lies higher than was thought.
                self.cap = None;
                self.doubted = self.failed.take();
                self.growth = self.growth.powi(2).min(self.config.growth);
                self.retry = self.config.retry;
                if let Trial::Up { to, .. } = &self.trial
                    && needed < to
                {
                    // The knee is near: small steps from here, and no jump back to where it was.
                    self.growth = SMALL_GROWTH;
                    self.failed = Some(Failed {
                        from: *needed,
                        throughput: after.throughput(),
                        settled: now,
                        use_time: None,
                        larger: None,
                        again: now + self.retry,
                        retry: 2 * self.retry,
                    });
                }
            }
            Outcome::Revert(from, _, smaller_earns_less) => {
                // The knee may lie far lower, and nothing says where.
                self.is_far |= self.failed.is_none() && !smaller_earns_less;
                if let Trial::Up {
                    to, before, phase, ..
                } = &mut self.trial
                {
                    let retry = self
                        .failed
                        .as_ref()
                        .map_or(self.config.retry, |failed| failed.retry);
                    let after = match phase {
                        Phase::Measuring(after) => std::mem::take(&mut **after),
                        _ => PoolWindow::default(),
                    };
                    let longest =
                        Duration::from_secs_f64(2.0 * after.mean_use_time().unwrap_or(0.0));
                    let larger = Some((*to, after));
                    self.failed = Some(Failed {
                        from: *from,
                        throughput: before.throughput(),
                        settled: now + self.config.settle.max(longest),
                        use_time: None,
                        larger,
                        again: now + retry,
                        retry: (2 * retry).min(self.config.retry_growth_max),
                    });
                }
                self.growth = self.growth.sqrt();
                if self.growth < SMALLEST_GROWTH || self.cap.is_some() {
                    self.cap = Some(*from);
                }
                self.wait(now);
            }
            Outcome::Useless(to, _) => {
                if let Trial::Down { high, floor, .. } = &self.trial {
                    if to < floor {
                        self.cap = Some(*high);
                        self.wait(now);
                    } else {
                        self.cap = Some(*to);
                        self.retry = self.config.retry;
                    }
                    if let Some(doubted) = self.doubted.take()
                        && doubted.from == *to
                    {
                        let again = now + doubted.retry;
                        self.failed = Some(Failed { again, ..doubted });
                    }
                }
            }
            Outcome::Useful(..) => {
                // One small trial tells.
                self.cap = None;
                self.growth = SMALL_GROWTH;
                // It costs a fifth of the throughput for half of its time.
                self.probe_after = now + self.probe_retry;
                self.probe_retry = (2 * self.probe_retry).min(self.config.retry_max / 2);
            }
            Outcome::Unclear(_) => {
                self.is_far = false;
                self.wait(now);
            }
        }
        self.trial = Trial::None;
    }

    fn wait(&mut self, now: Instant) {
        self.not_before = now + self.retry;
        self.retry = (2 * self.retry).min(self.config.retry_max);
    }
}

/// How many connections a jump to `to` that paid was about, if no size between was seen.
///
/// Had each connection earned its share up to the knee, and none beyond it, the knee would lie where
/// the throughput that was reached divides by what each earned before. A real one is rounder, so
/// half as many more stay.
fn needed(low: &PoolWindow, to: usize, seen: Elasticity) -> usize {
    const ROUNDER: f64 = 1.5;
    /// Below this factor a growth is small enough to be right.
    const JUMP: f64 = 2.5;
    let from = mean_limit(low);
    let factor = to as f64 / from;
    if factor < JUMP {
        return to;
    }
    ((ROUNDER * from * factor.powf(seen.mean)).ceil() as usize).min(to)
}

/// The smallest size of a growth from `from` to `to` that reached nearly all of the highest
/// throughput: what a jump opens beyond that earns nothing. In steps of two, since a single size was
/// seen too shortly to tell, and in doubt the smaller. And whether a smaller one was seen at all.
fn worth_keeping(
    (from, to): (usize, usize),
    before: &PoolWindow,
    steps: &[PoolWindow],
    after: &PoolWindow,
) -> (usize, bool) {
    const NEARLY_ALL: f64 = 0.93;
    /// With a standard error of a fifth.
    const ENOUGH: u64 = 25;
    let merged = |(above, upto): (usize, usize), mut sum: PoolWindow| {
        let within = |step: &&PoolWindow| above < step.limit && step.limit <= upto;
        steps.iter().filter(within).for_each(|step| sum.merge(step));
        sum
    };
    let mut sizes = vec![(from, merged((0, from), before.clone()))];
    let mut upto = to;
    while upto > from {
        let above = from.max(upto / 2);
        if upto == to {
            sizes.push((to, merged((above, upto), after.clone())));
        } else {
            let seen = merged((above, upto), PoolWindow::default());
            sizes.push((mean_limit(&seen).round() as usize, seen));
        }
        upto = above;
    }
    sizes.retain(|(_, seen)| seen.completions >= ENOUGH && lasted(seen, seen));
    let error = |seen: &PoolWindow| 1.0 / (seen.completions as f64).sqrt();
    let most = sizes
        .iter()
        .map(|(_, seen)| seen.throughput() * (1.0 - error(seen)))
        .fold(0.0, f64::max);
    let enough = sizes
        .iter()
        .filter(|(_, seen)| seen.throughput() * (1.0 + error(seen)) >= NEARLY_ALL * most);
    let enough = enough.map(|&(size, _)| size).min();
    let keep = enough.unwrap_or(to).clamp(from.min(to), to);
    (keep, sizes.iter().any(|&(size, _)| size < keep))
}

/// Whether it takes but a moment more to know what the pool achieves with `to` connections, at the
/// pace of the one step that led there. The few that are opened after it can be dialled no faster than
/// they are known.
fn is_soon_known(to: usize, steps: &[PoolWindow]) -> bool {
    /// With a standard error of a fifth.
    const ENOUGH: f64 = 25.0;
    const MOMENT: Duration = Duration::from_millis(100);
    let (last, is_first) = match steps {
        [only] if only.limit >= to => (only, true),
        [.., last] if last.limit >= to => (last, false),
        _ => return true,
    };
    let left = ENOUGH - last.completions as f64;
    let pace = last.completions as f64 / last.duration.as_secs_f64().max(1e-9);
    is_first && left > 0.0 && last.duration < MOMENT && pace * MOMENT.as_secs_f64() >= ENOUGH
}

/// What was seen in the smaller half of a growth to `to`, what came before it included, and in the
/// larger.
fn split(
    before: &PoolWindow,
    steps: &[PoolWindow],
    (from, to): (usize, usize),
) -> (PoolWindow, PoolWindow) {
    let (mut low, mut high) = (before.clone(), PoolWindow::default());
    for step in steps {
        let is_low = step.limit <= from.max(to / 2);
        let part = if is_low { &mut low } else { &mut high };
        part.merge(step);
    }
    (low, high)
}

/// Whether a window was long enough for its completions to be those of its size: what was begun at
/// another size completes in the first use time.
fn lasted(low: &PoolWindow, high: &PoolWindow) -> bool {
    const USES: f64 = 2.0;
    let used = use_time(high).or_else(|| use_time(low));
    used.is_some_and(|seconds| low.duration.as_secs_f64() >= USES * seconds)
}

/// The mean use time by Little's law, which counts those that are not over yet: the first to complete
/// are the short ones.
fn use_time(window: &PoolWindow) -> Option<f64> {
    let seen = window.mean_use_time()?;
    Some(seen.max(window.busy.as_secs_f64() / window.completions as f64))
}

/// So many mean use times, if any use was seen.
fn uses(window: &PoolWindow, count: f64) -> Duration {
    let seconds = count * use_time(window).unwrap_or(0.0);
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// The mean use time of what has completed, and its standard error.
fn seen_use_time(window: &PoolWindow) -> Option<(f64, f64)> {
    let mean = window.mean_use_time()?;
    let error = mean * (window.use_time_variation() / window.completions as f64).sqrt();
    Some((mean, error))
}

/// Whether use times are as they were before with more connections in use, and so not of the pool's
/// doing.
fn is_as_fast(before: &PoolWindow, after: &PoolWindow) -> bool {
    /// Completions without which use times are not known: the first to complete are the short ones.
    const ENOUGH: u64 = 50;
    const MORE: f64 = 1.2;
    /// Mean use times that differ by less than this part are the same.
    const SAME: f64 = 0.1;
    let (Some((used, error)), Some((uses, other))) = (seen_use_time(before), seen_use_time(after))
    else {
        return false;
    };
    before.completions.min(after.completions) >= ENOUGH
        && in_use(after) >= MORE * in_use(before)
        && uses - used <= (SAME * used).max(2.0 * error.hypot(other))
}

impl Slots {
    fn is_low(&self) -> bool {
        matches!(self.index % 4, 1 | 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_growth_past_the_knee_the_smallest_size_with_nearly_all_of_the_throughput_is_kept() {
        let step = |limit: u32, throughput: u64| PoolWindow {
            duration: Duration::from_secs(1),
            completions: throughput,
            use_time: Duration::from_secs(u64::from(limit)),
            capacity: Duration::from_secs(u64::from(limit)),
            limit: limit as usize,
            ..PoolWindow::default()
        };
        let (low, after) = (step(4, 348), step(96, 1_426));
        let steps = [
            step(8, 680),
            step(16, 1_180),
            step(32, 1_512),
            step(64, 1_576),
        ];
        assert_eq!(worth_keeping((4, 96), &low, &steps, &after), (32, true));
        let flat = [step(8, 490), step(16, 500)];
        assert_eq!(
            worth_keeping((4, 16), &step(4, 500), &flat, &step(16, 480)),
            (4, false)
        );
        let each = [step(8, 800), step(16, 1_600)];
        assert_eq!(
            worth_keeping((4, 32), &step(4, 400), &each, &step(32, 3_200)),
            (32, true)
        );
    }

    #[test]
    fn a_probe_in_which_the_queries_changed_or_that_saw_few_of_them_finds_no_knee() {
        let config = KneeConfig::default();
        let window = |completions| PoolWindow {
            duration: Duration::from_secs(1),
            completions,
            queued: 10,
            ..PoolWindow::default()
        };
        let ends = |high, low| {
            let mut slots = Slots {
                started: Instant::now(),
                lasts: config.slot,
                index: 3,
                high: window(high),
                low: window(low),
            };
            let last = PoolWindow {
                queued: 10,
                ..PoolWindow::default()
            };
            let end = slots.started + config.slot;
            Knee::step_down(&config, end, &last, (10, 8), &mut slots)
        };
        assert!(matches!(ends(10_000, 10_000), Outcome::Useless(8, _)));
        assert_eq!(ends(2_500, 10_000), Outcome::Running, "others by far");
        assert_eq!(ends(30, 33), Outcome::Running, "few");
    }
}
