//! K: how many connections the database makes use of, found by all processes together.
//!
//! One process alone is fooled: what it opens takes throughput from the others, and looks like a gain. So
//! the experiment is on the sums. For four slots on the server's clock (high, low, low, high, so that a
//! linear drift cancels) every process lets fewer connections out in the low ones; none is opened or closed
//! for it. If the part that was kept back earned nothing, that part is closed: K is one more bound of what is
//! shared. It bounds shares only, never what is counted, so that it cannot make the fleet exceed the total.
//!
//! These rules run in the process whose beat made the shares. What becomes of K is sent with its next beat,
//! and the store takes it only if nothing else became of it meanwhile.

/// The constants of the experiment. Those of [`KneeConfig`](crate::tuner::KneeConfig) are the same for one
/// pool, and have the same reasons.
pub(super) mod constants {
    /// ε*: the elasticity below which a connection does not pay; less than 0.6 of it is closed, more than
    /// 1.4 times is a reason to have more. As of one pool.
    pub(super) const WORTH: f64 = 0.25;
    /// The standard error of ε that a slot is made long enough for: less than the distance of 0.6 ε* from 0.
    pub(super) const PRECISION: f64 = 0.1;
    /// A slot in ms, half of which settles, and its bounds. As of one pool.
    pub(super) const SLOT: f64 = 1_000.0;
    pub(super) const SLOT_MAX: f64 = 10_000.0;
    /// Use times in a slot. As of one pool.
    pub(super) const USES: f64 = 4.0;
    /// What stays open in a low slot, in thousandths: half where nothing says how far away the knee is, and
    /// near it four fifths. As of one pool.
    pub(super) const FAR: i64 = 500;
    pub(super) const NEAR: i64 = 800;
    /// The part of what was served since the fleet is saturated, or the last experiment that cost something,
    /// that an experiment may cost. As of one pool.
    pub(super) const AFFORDABLE: f64 = 0.015;
    /// And where it may confirm what was found, or undo it.
    pub(super) const CONFIRMS: f64 = 0.04;
    /// Time in ms between two experiments that taught nothing new, doubled up to the second. As of one pool.
    pub(super) const RETRY: i64 = 5_000;
    pub(super) const RETRY_MAX: i64 = 60_000;
    /// K is forgotten after so long without saturation, in ms. As of one pool.
    pub(super) const FORGET: i64 = 20_000;
    /// And where no experiment confirms it for so long: the longest near a knee, two slots of 10 s that cost a
    /// fifth each, is afforded in half of that.
    pub(super) const HOLDS: i64 = 200_000;
    /// The longest that a trial is announced before it starts, in ms, and a slack for clocks that are set.
    pub(in crate::fleet) const LEAD_MAX: i64 = 120_000;
    pub(super) const SET_BACK: i64 = 5_000;
    /// More connections than any server has.
    pub(super) const MOST: i64 = 1 << 31;
    /// Where no fewer can be tried, more are tried after so long, in ms.
    pub(super) const ALONE: i64 = 30_000;
    /// The part of the work, in thousandths, that has to be of processes that took part.
    pub(super) const TAKE_PART: i64 = 800;
}

use self::constants::*;

/// What a store keeps of the experiments. A store reads the first three numbers, and the number of the trial.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Knee {
    /// Counts changes: one is taken only if it is the next.
    pub(super) version: i64,
    /// The most connections worth having, with those that beat. 0: not known.
    pub(super) cap: i64,
    /// Until when that holds, in ms of the store's clock, as all times here.
    pub(super) until: i64,
    /// The last trial: when it starts, which is its number, too.
    pub(super) trial: i64,
    /// Whether its result is still to come.
    pub(super) is_open: i64,
    pub(super) slot: i64,
    /// What stays open in a low slot, in thousandths.
    pub(super) low: i64,
    /// Since when the fleet is saturated, or the last experiment that cost something. 0: it is not.
    since: i64,
    /// Since when it no longer is.
    calm: i64,
    retry: i64,
    not_before: i64,
    /// Trials in a row that raised it.
    rises: i64,
    /// Processes when the last trial was begun.
    members: i64,
}

/// What one process reports, and the sums over all.
pub(super) const REPORTED: usize = 9;

/// What all processes reported lately, summed up.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Sums {
    /// Connections in use, in thousandths, and those of pools that are full and have a queue.
    pub(super) busy: i64,
    pub(super) full: i64,
    /// Connections returned in 1,000 s.
    pub(super) rate: i64,
    /// Connections in use of those that took part in the last trial.
    pub(super) took_part: i64,
    /// In its slots: connections returned, and connection milliseconds in use.
    pub(super) high: (i64, i64),
    pub(super) low: (i64, i64),
    /// Connections that would be left if those kept back were closed, in thousandths.
    pub(super) left: i64,
}

/// What a trial showed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    /// What was kept back cost throughput.
    Harmful,
    /// It earned nothing, or little.
    Useless,
    /// It earned about as much as it is worth.
    Fits,
    /// It earned more.
    Useful,
    Unclear,
    /// Nothing was kept back.
    Untried,
}

impl Sums {
    pub(super) fn from_numbers(numbers: &[i64]) -> Option<Self> {
        let &[
            busy,
            full,
            rate,
            took_part,
            x_high,
            x_low,
            b_high,
            b_low,
            left,
        ] = <&[i64; REPORTED]>::try_from(numbers).ok()?;
        Some(Self {
            busy,
            full,
            rate,
            took_part,
            high: (x_high, b_high),
            low: (x_low, b_low),
            left,
        })
    }

    /// Whether most of what is in use is of pools that could use more.
    fn is_saturated(&self) -> bool {
        self.busy > 0 && 2 * self.full >= self.busy
    }

    fn have_enough_taken_part(&self) -> bool {
        self.took_part > 0 && 1_000 * self.took_part >= TAKE_PART * self.busy
    }

    /// ε and its standard error, the counts taken as Poisson.
    pub(super) fn elasticity(&self) -> Option<(f64, f64)> {
        let [more, fewer] = [self.high, self.low].map(|(x, b)| (x as f64, b as f64));
        if fewer.0 <= 0.0 || more.0 <= 0.0 || fewer.1 <= 0.0 || more.1 <= fewer.1 {
            return None;
        }
        let step = (more.1 / fewer.1).ln();
        let error = (1.0 / more.0 + 1.0 / fewer.0).sqrt();
        Some(((more.0 / fewer.0).ln() / step, error / step))
    }

    fn outcome(&self, low: i64) -> Outcome {
        let step = (self.high.1 as f64 / self.low.1.max(1) as f64).ln();
        if !self.have_enough_taken_part() {
            return Outcome::Unclear;
        }
        // Where pools were not full, or had one connection each.
        if step < 0.5 * -part(low).ln() {
            return Outcome::Untried;
        }
        match self.elasticity() {
            None => Outcome::Unclear,
            Some((mean, error)) if mean + error < 0.0 => Outcome::Harmful,
            Some((mean, error)) if mean + error < 0.6 * WORTH => Outcome::Useless,
            Some((mean, error)) if mean - error > 1.4 * WORTH => Outcome::Useful,
            Some((_, error)) if error <= 2.0 * PRECISION => Outcome::Fits,
            Some(_) => Outcome::Unclear,
        }
    }
}

fn part(thousandths: i64) -> f64 {
    thousandths as f64 / 1_000.0
}

impl Knee {
    /// As a store has it: nothing at first.
    pub(super) fn from_numbers(numbers: &[i64]) -> Self {
        let &[
            version,
            cap,
            until,
            trial,
            is_open,
            slot,
            low,
            since,
            calm,
            retry,
            not_before,
            rises,
            members,
        ] = numbers
        else {
            // Of another version: it is begun anew, after what is there.
            let version = numbers.first().copied().unwrap_or(0);
            return Self {
                version,
                ..Self::default()
            };
        };
        Self {
            version,
            cap,
            until,
            trial,
            is_open,
            slot,
            low,
            since,
            calm,
            retry,
            not_before,
            rises,
            members,
        }
    }

    pub(super) fn numbers(&self) -> [i64; 13] {
        [
            self.version,
            self.cap,
            self.until,
            self.trial,
            self.is_open,
            self.slot,
            self.low,
            self.since,
            self.calm,
            self.retry,
            self.not_before,
            self.rises,
            self.members,
        ]
    }

    /// K, where it holds.
    pub(super) fn cap(&self, now: i64) -> Option<usize> {
        (self.cap > 0 && now < self.until).then_some(self.cap as usize)
    }

    /// Whether it was made by a clock that shows `now`, and not by one that was set back since, and is of
    /// numbers that can be calculated with.
    fn is_of(&self, now: i64) -> bool {
        let latest = [
            (self.since, 0),
            (self.calm, 0),
            (self.until, HOLDS),
            (self.not_before, RETRY_MAX),
            (self.trial, LEAD_MAX),
        ];
        let in_time = |(at, later): (i64, i64)| (0..=now + later + SET_BACK).contains(&at);
        latest.into_iter().all(in_time)
            && [self.cap, self.rises, self.members]
                .iter()
                .all(|n| (0..=MOST).contains(n))
            && (0..=RETRY_MAX).contains(&self.retry)
            && (0..=SLOT_MAX as i64).contains(&self.slot)
            && (0..1_000).contains(&self.low)
    }

    /// What becomes of it, after a look at all processes; `None` if it stays as it is. `members`: how many
    /// there are; `most`: what there is to share; `lead`: the time within which every process beats, in ms.
    pub(super) fn next(
        &self,
        now: i64,
        sums: &Sums,
        members: i64,
        most: i64,
        lead: i64,
    ) -> Option<Self> {
        if !self.is_of(now) {
            return Some(Self {
                version: self.version + 1,
                ..Self::default()
            });
        }
        let mut next = *self;
        if self.is_open == 1 {
            let end = self.trial + 4 * self.slot;
            // A process reports with its next beat.
            if now < end || !sums.have_enough_taken_part() && now < end + 2 * lead {
                return None;
            }
            next.is_open = 0;
            // One that joined or left took throughput from the others in some of the slots.
            let are_the_same = 32 * (members - self.members).abs() <= members;
            next.learn(now, sums, are_the_same, most);
        }
        if !sums.is_saturated() {
            if next.since > 0 && next.calm == 0 {
                next.calm = now;
            } else if next.calm > 0 && now - next.calm >= FORGET {
                next = Self {
                    version: self.version,
                    trial: self.trial,
                    ..Self::default()
                };
            }
        } else {
            if next.since == 0 {
                next.since = now;
                next.low = FAR;
                next.retry = RETRY;
            }
            next.calm = 0;
            if next.cap > 0 && now >= next.until {
                (next.cap, next.low) = (0, FAR);
            }
            next.begin(now, sums, members, lead);
        }
        if next == *self {
            return None;
        }
        next.version += 1;
        Some(next)
    }

    /// Begins a trial where one can be resolved and afforded.
    fn begin(&mut self, now: i64, sums: &Sums, members: i64, lead: i64) {
        if now < self.not_before || sums.rate <= 0 {
            return;
        }
        // Near a knee, a database with few queries tells only half of the connections from all.
        let found = [self.low, FAR]
            .into_iter()
            .find_map(|low| Some((low, slot(sums, low)?)));
        let Some((low, slot)) = found else {
            return;
        };
        let cost = 2.0 * slot * (1.0 - part(low));
        let affordable = match self.cap {
            0 => AFFORDABLE,
            _ => CONFIRMS,
        };
        if cost > affordable * (now - self.since) as f64 {
            return;
        }
        let trial = now + lead;
        // What would be measured of it has to be of one size.
        let holds = self.cap == 0 || trial + 4 * slot as i64 + 2 * lead < self.until;
        if !holds {
            return;
        }
        (self.trial, self.members) = (trial, members);
        self.is_open = 1;
        (self.low, self.slot) = (low, slot as i64);
    }

    fn learn(&mut self, now: i64, sums: &Sums, are_the_same: bool, most: i64) {
        let outcome = match are_the_same {
            true => sums.outcome(self.low),
            false => Outcome::Unclear,
        };
        let is_known = self.cap > 0;
        let is_useful = outcome == Outcome::Useful;
        self.rises = if is_useful { self.rises } else { 0 };
        match outcome {
            Outcome::Harmful | Outcome::Useless => {
                let left = (sums.left / 1_000).max(1);
                let all = if is_known { self.cap.min(most) } else { most };
                // Where less than all was in use.
                let all = all.min((sums.left / self.low.max(1)).max(left));
                self.cap = match outcome {
                    Outcome::Harmful => all.min(left),
                    // A little of each of many steps would be much.
                    _ => (all + all.min(left)) / 2,
                };
                self.until = now + HOLDS;
                self.retry = RETRY;
                return;
            }
            Outcome::Useful if is_known && self.low == NEAR => {
                // The knee lies higher: by half, then as much again, then four times. What that gains pays for
                // the next trial.
                self.cap = match self.rises {
                    0 => self.cap + (self.cap / 2).max(1),
                    1 => 2 * self.cap,
                    _ => 4 * self.cap,
                };
                self.rises += 1;
                self.until = now + HOLDS;
                self.retry = RETRY;
                if self.cap < most {
                    return;
                }
                self.cap = 0;
            }
            Outcome::Useful | Outcome::Fits => {
                // That half of all pays says nothing of the last part, which is to be tried from above.
                if self.low == NEAR {
                    self.until = now + HOLDS;
                }
                self.low = NEAR;
                self.wait(now);
            }
            // Where there is no going down, more is tried after a while, and may prove harmful.
            Outcome::Untried if is_known && now + HOLDS > self.until + ALONE => {
                self.cap = (self.cap + (self.cap / 8).max(2)).min(most.max(1));
                self.until = now + HOLDS;
                return;
            }
            Outcome::Unclear | Outcome::Untried => self.wait(now),
        }
        self.since = now;
    }

    fn wait(&mut self, now: i64) {
        self.not_before = now + self.retry;
        self.retry = (2 * self.retry).min(RETRY_MAX);
    }
}

/// How long a slot has to be, in ms, if a trial can be resolved.
fn slot(sums: &Sums, low: i64) -> Option<f64> {
    let rate = sums.rate as f64 / 1_000_000.0;
    let use_time = sums.busy as f64 / 1_000.0 / rate;
    // Of two slots of a kind, half is measured.
    let completions = 2.0 / (PRECISION * part(low).ln()).powi(2);
    let least = SLOT.max(USES * use_time);
    // With twice the error where they are few.
    let is_resolved = least.max(completions / rate / 4.0) <= SLOT_MAX;
    is_resolved.then(|| least.max(completions / rate).min(SLOT_MAX).ceil())
}
