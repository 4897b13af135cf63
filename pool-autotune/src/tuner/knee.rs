//! K: how many connections the database makes use of.
//!
//! At saturation Little's law gives X = n/S, so the elasticity ε = ∂ln X/∂ln n says what one more
//! connection earns: 1, its full share; 0, nothing, the queue has only moved into the database;
//! below 0, it costs. Kleinrock's power X^α/S peaks at ε = 1/(1 + α); the default ε* = 0.25 is α = 3.
//! Wait times say nothing about ε. Two experiments measure it:
//!
//! - **Up**: every growth of a saturated pool is on trial. Half a second after the connections are
//!   open, throughput is measured for 1.5 s and compared with that before. Growth that earned less
//!   than ε* is taken back, but for as much as throughput has risen. Where the pool is not full all
//!   the time any more, throughput is what was asked for and says nothing; then growth is taken back
//!   if it ended the line by moving it into the database, with use times longer by more than half of
//!   the wait that is gone. The next try is smaller: by the square root of the factor, after 5 to
//!   60 s. Once the factor is below 1.2, the size it started from is the knee.
//! - **Down**: at the knee, the *gate* is held at 0.8 n for two of four seconds (high, low, low,
//!   high, so that a linear drift cancels), while all connections stay open. If the last fifth
//!   earns clearly less than ε*, it is closed; if clearly more, the database has recovered, and the
//!   pool may grow again. At the minimum, where there is no going down, one more is tried instead.
//!
//! The rule is .NET's for its thread pool turned into single experiments: that one dithers forever
//! (hundreds of resizes in four minutes in our model), this one backs off.

use std::time::Duration;

use tokio::time::Instant;

use super::PoolWindow;

/// The constants of the knee search.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
#[cfg_attr(feature = "json", derive(serde::Deserialize, serde::Serialize))]
pub struct KneeConfig {
    /// ε*: the elasticity below which a connection does not pay. Defaults to 0.25; in the model,
    /// results between 0.1 and 0.33 differed by 2 %.
    pub worth: f64,
    /// Time for a change to show in throughput before it is measured. Defaults to 500 ms.
    pub settle: Duration,
    /// Time to measure it for. Defaults to 1.5 s, and up to four times as long for a clear answer.
    pub measure: Duration,
    /// A standard error of ε above this is no clear answer. Defaults to 0.15.
    pub precision: f64,
    /// How long connections may take to open before a trial is called off. Defaults to 10 s.
    pub open_within: Duration,
    /// Largest factor of a growth on trial. Defaults to 2.
    pub growth: f64,
    /// Part of the limit that stays open while dithering down. Defaults to 0.8.
    pub dither: f64,
    /// How long each of the four slots of a dither lasts, the settling included. Defaults to 1 s.
    pub slot: Duration,
    /// Shortest time between two experiments that taught nothing new. Defaults to 5 s.
    pub retry: Duration,
    /// Longest, after doubling. Defaults to 60 s.
    pub retry_max: Duration,
    /// Longest time between two growths on trial at a knee, unless throughput there has risen.
    /// Defaults to 300 s: a trial and its end are two resizes, so under thirty an hour.
    pub retry_growth_max: Duration,
    /// The knee is forgotten after so long without saturation. Defaults to 20 s: it is a fact about
    /// an overload, not about the service.
    pub forget: Duration,
    /// Below this many completions a second no experiment has an answer, and none is made.
    /// Defaults to 20.
    pub min_throughput: f64,
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
            min_throughput: 20.0,
        }
    }
}

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
        let step = (many as f64 / few as f64).ln();
        let (fewer, more) = (low.completions as f64, high.completions as f64);
        (step > 0.0 && fewer > 0.0 && more > 0.0).then(|| Self {
            mean: (high.throughput() / low.throughput()).ln() / step,
            error: (1.0 / fewer + 1.0 / more).sqrt() / step,
        })
    }
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
    /// The last growth that did not pay.
    failed: Option<Failed>,
    /// The one before a growth that did: chance, if that is taken back later.
    doubted: Option<Failed>,
    calm_since: Option<Instant>,
    trial: Trial,
}

#[derive(Clone, Copy, Debug)]
struct Failed {
    from: usize,
    /// Throughput before it.
    throughput: f64,
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
        before: PoolWindow,
        phase: Phase,
    },
    Down {
        high: usize,
        low: usize,
        floor: usize,
        slots: Slots,
    },
}

#[derive(Clone, Debug)]
enum Phase {
    Opening { since: Instant },
    Settling { until: Instant },
    Measuring(PoolWindow),
}

/// Four slots, high, low, low, high, over and over for up to three blocks.
#[derive(Clone, Debug)]
struct Slots {
    started: Instant,
    index: u32,
    high: PoolWindow,
    low: PoolWindow,
}

/// What an experiment says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    /// It goes on.
    Running,
    /// Growth was enough, or cannot be judged: it stays.
    Keep,
    /// Growth paid: as much of it stays as this size, and the use time seen is what the database
    /// needs.
    Paid(usize, Elasticity, PoolWindow),
    /// Growth ended the line in front of the pool by moving it into the database: back to this size.
    Moved(usize),
    /// Growth did not pay: back to this size.
    Revert(usize, Elasticity),
    /// The last fifth earns nothing: down to this size.
    Useless(usize, Elasticity),
    /// The last fifth earns its keep: the knee lies higher.
    Useful(Elasticity, PoolWindow),
    /// No clear answer.
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
            failed: None,
            doubted: None,
            calm_since: None,
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
        let (from, before) = match std::mem::replace(&mut self.trial, Trial::None) {
            Trial::Up { from, before, .. } => (from, before),
            _ => (from, before),
        };
        self.trial = Trial::Up {
            from,
            to,
            before,
            phase,
        };
    }

    /// Tries whether the last fifth of a saturated pool of `size` is worth having, if it is time.
    /// `floor`: the size it cannot go below.
    pub(super) fn try_down(
        &mut self,
        now: Instant,
        size: usize,
        floor: usize,
        window: &PoolWindow,
    ) -> bool {
        if now < self.not_before || !self.is_idle() {
            return false;
        }
        let low = ((size as f64 * self.config.dither).round() as usize).min(size - 1);
        if low < floor {
            // There is no going down from here: now and then, try one more.
            self.cap = Some(size + usize::from(self.may_try_again(now, size, window)));
            self.wait(now);
            return false;
        }
        let slots = Slots {
            started: now,
            index: 0,
            high: PoolWindow::default(),
            low: PoolWindow::default(),
        };
        self.trial = Trial::Down {
            high: size,
            low,
            floor,
            slots,
        };
        true
    }

    /// Whether the pool is saturated in a whole window; forgets the knee when it was not for long.
    pub(super) fn observe(&mut self, now: Instant, saturated: bool) {
        if saturated {
            self.calm_since = None;
            return;
        }
        let since = *self.calm_since.get_or_insert(now);
        if now - since >= self.config.forget {
            *self = Self::new(self.config, now);
            self.calm_since = Some(since);
        }
    }

    /// Use times have been far above their base for a while: grow less, and look down now.
    pub(super) fn alarm(&mut self, now: Instant) {
        self.growth = self.growth.sqrt().max(1.2);
        self.not_before = now;
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
                phase,
            } => Self::step_up(
                &self.config,
                now,
                window,
                (*from, *to),
                before,
                phase,
                is_full,
            ),
            Trial::Down {
                high, low, slots, ..
            } => Self::step_down(&self.config, now, window, (*high, *low), slots),
        };
        let outcome = self.confirm(now, outcome);
        self.learn(now, &outcome);
        outcome
    }

    /// Connections that pay are what a knee looks like from above. Only a size that achieves more
    /// than when growth from it failed, or a long time, is a reason to try again.
    fn confirm(&self, now: Instant, outcome: Outcome) -> Outcome {
        match (&self.trial, outcome) {
            (Trial::Down { high, slots, .. }, Outcome::Useful(seen, _))
                if !self.may_try_again(now, *high, &slots.high) =>
            {
                Outcome::Unclear(Some(seen))
            }
            (_, outcome) => outcome,
        }
    }

    fn may_try_again(&self, now: Instant, from: usize, window: &PoolWindow) -> bool {
        const MORE: f64 = 1.15;
        self.failed.is_none_or(|failed| {
            failed.from != from
                || now >= failed.again
                || window.throughput() >= MORE * failed.throughput
        })
    }

    fn step_up(
        config: &KneeConfig,
        now: Instant,
        window: &PoolWindow,
        (from, to): (usize, usize),
        before: &PoolWindow,
        phase: &mut Phase,
        is_full: impl Fn(&PoolWindow) -> bool,
    ) -> Outcome {
        match phase {
            Phase::Opening { since } => {
                if window.limit >= to {
                    *phase = Phase::Settling {
                        until: now + config.settle,
                    };
                } else if now - *since >= config.open_within {
                    return Outcome::Keep;
                }
                Outcome::Running
            }
            Phase::Settling { until } => {
                if now >= *until {
                    *phase = Phase::Measuring(PoolWindow::default());
                }
                Outcome::Running
            }
            Phase::Measuring(after) => {
                after.merge(window);
                if after.duration < config.measure {
                    return Outcome::Running;
                }
                if !is_full(after) {
                    // Throughput is what was asked for, and says nothing.
                    return match removed_wait(before, after) {
                        Some(false) => Outcome::Moved(from),
                        _ => Outcome::Keep,
                    };
                }
                let Some(seen) = Elasticity::between(from, before, to, after) else {
                    return Outcome::Keep;
                };
                if seen.error > config.precision && after.duration < 4 * config.measure {
                    return Outcome::Running;
                }
                if seen.mean >= config.worth {
                    let needed = needed(from, to, seen);
                    return Outcome::Paid(needed, seen, std::mem::take(after));
                }
                Outcome::Revert(earned(from, to, seen), seen)
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
            // Nobody waits: the limit is not what bounds throughput.
            return Outcome::Unclear(None);
        }
        let slot = now - slots.started;
        // The first half of a slot settles.
        if slot > config.slot / 2 {
            if slots.is_low() {
                &mut slots.low
            } else {
                &mut slots.high
            }
            .merge(window);
        }
        if slot < config.slot {
            return Outcome::Running;
        }
        slots.started = now;
        slots.index += 1;
        if !slots.index.is_multiple_of(4) {
            return Outcome::Running;
        }
        let seen = Elasticity::between(low, &slots.low, high, &slots.high);
        match seen {
            Some(seen) if seen.mean + seen.error < 0.6 * config.worth => {
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
            Outcome::Keep => {
                self.failed = None;
                self.retry = self.config.retry;
            }
            Outcome::Paid(needed, _, after) => {
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
                        again: now + self.retry,
                        retry: 2 * self.retry,
                    });
                }
            }
            Outcome::Revert(from, _) | Outcome::Moved(from) => {
                if let Trial::Up { before, .. } = &self.trial {
                    let retry = self.failed.map_or(self.config.retry, |failed| failed.retry);
                    self.failed = Some(Failed {
                        from: *from,
                        throughput: before.throughput(),
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
            }
            Outcome::Unclear(_) => self.wait(now),
        }
        self.trial = Trial::None;
    }

    fn wait(&mut self, now: Instant) {
        self.not_before = now + self.retry;
        self.retry = (2 * self.retry).min(self.config.retry_max);
    }
}

/// How many connections a growth that paid was about.
///
/// A jump to many times the size pays on the whole, even where its last half earns nothing. Had each
/// connection earned its share up to the knee, and none beyond it, the knee would lie where the
/// throughput that was reached divides by what each earned before: at `from`·X1/X0. A real one is
/// rounder, so half as many more stay.
fn needed(from: usize, to: usize, seen: Elasticity) -> usize {
    const ROUNDER: f64 = 1.5;
    /// Below this factor a growth is small enough to be right.
    const JUMP: f64 = 2.5;
    let factor = to as f64 / from as f64;
    if factor < JUMP {
        return to;
    }
    let knee = from as f64 * factor.powf(seen.mean);
    ((ROUNDER * knee).ceil() as usize).min(to)
}

/// Of a growth that did not pay as a whole, as much as earned its share for certain.
fn earned(from: usize, to: usize, seen: Elasticity) -> usize {
    let factor = to as f64 / from as f64;
    let certain = (seen.mean - seen.error).max(0.0);
    (from as f64 * factor.powf(certain)).round() as usize
}

/// Whether the wait that is gone is saved, and most of it not spent inside the database now. If none
/// is gone, the line has another reason than the size, and the growth did at least no harm.
fn removed_wait(before: &PoolWindow, after: &PoolWindow) -> Option<bool> {
    const MOST: f64 = 0.5;
    /// Mean use times that differ by less than this part are the same.
    const SAME: f64 = 0.1;
    let gone = (before.mean_wait_time() - after.mean_wait_time()).max(0.0);
    let used = before.mean_use_time()?;
    let longer = after.mean_use_time()? - used;
    Some(longer <= (MOST * gone).max(SAME * used))
}

impl Slots {
    fn is_low(&self) -> bool {
        matches!(self.index % 4, 1 | 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(wait_ms: u64, use_ms: u64) -> PoolWindow {
        PoolWindow {
            arrivals: 1_000,
            completions: 1_000,
            wait_time: Duration::from_secs(wait_ms),
            use_time: Duration::from_secs(use_ms),
            ..PoolWindow::default()
        }
    }

    #[test]
    fn of_growth_that_did_not_pay_what_earned_its_share_is_kept() {
        let seen = |mean, error| Elasticity { mean, error };
        assert_eq!(earned(16, 32, seen(0.23, 0.02)), 19);
        assert_eq!(earned(8, 16, seen(0.23, 0.15)), 8, "it may be chance");
        assert_eq!(earned(8, 16, seen(-0.3, 0.02)), 8);
    }

    #[test]
    fn a_wait_that_became_use_time_is_not_removed() {
        let before = window(10, 4);
        assert_eq!(removed_wait(&before, &window(0, 4)), Some(true));
        assert_eq!(removed_wait(&before, &window(1, 6)), Some(true));
        assert_eq!(removed_wait(&before, &window(0, 12)), Some(false));
        assert_eq!(removed_wait(&before, &window(12, 4)), Some(true));
        assert_eq!(removed_wait(&before, &window(12, 5)), Some(false));
        assert_eq!(removed_wait(&before, &PoolWindow::default()), None);
    }
}
