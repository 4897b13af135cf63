//! What a limiter owes its callers, in exact arithmetic: one key and one policy, no cleverness.
//!
//! Levels are whole multiples of `1 / DAY` cells (a day in nanoseconds), so that quotas whose
//! period divides a day drain by a whole number each nanosecond, and nothing is ever rounded.

use rate_limit::Quota;

/// The accounts of one key for one policy: what it owes by each quota that decided on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reference {
    pub(crate) accounts: Vec<(Quota, i128)>,
    now: u64,
    /// Since when nothing is owed.
    paid_at: u64,
    /// By how much an implementation may overstate a level: its intervals are rounded up, by less
    /// than 1/16384, where they are not whole nanoseconds.
    slack: i128,
    /// The most that a quota of any account so far drains in a nanosecond, the tick of debts.
    coarsest: i128,
    /// In nanoseconds.
    tick: i128,
}

/// Why a request does not fit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Refusal {
    /// It fits after this many nanoseconds.
    Wait(u64),
    Never,
}

impl Reference {
    /// For an implementation with debts that are whole numbers of what drains in `tick` nanoseconds.
    pub(crate) fn with_tick(tick: i128) -> Self {
        Self {
            tick,
            ..Self::default()
        }
    }

    /// Lets time pass until `now`, in nanoseconds.
    pub(crate) fn advance(&mut self, now: u64) {
        let elapsed = i128::from(now - self.now);
        let times = self
            .accounts
            .iter()
            .map(|(quota, level)| (level + drain(quota) - 1) / drain(quota));
        let pays_at = self.now + times.max().unwrap_or(0) as u64;
        self.now = now;
        for (quota, level) in &mut self.accounts {
            *level = (*level - elapsed * drain(quota)).max(0);
        }
        if pays_at > self.paid_at {
            self.paid_at = pays_at;
        }
        if self.owes_nothing() && !self.is_on_the_brink() {
            self.accounts.clear();
            self.slack = 0;
            self.coarsest = 0;
        }
    }

    /// Whether a cautious implementation may still see a debt where there is none: what happens
    /// next to the key depends on whether it does.
    pub(crate) fn is_on_the_brink(&self) -> bool {
        let since = i128::from(self.now.saturating_sub(self.paid_at));
        let certain = |(quota, _): &(Quota, i128)| since * drain(quota) > self.caution(quota);
        self.owes_nothing() && !self.accounts.iter().all(certain)
    }

    pub(crate) fn owes_nothing(&self) -> bool {
        self.accounts.iter().all(|(_, level)| *level == 0)
    }

    /// The level by which `quota` decides.
    fn seen_by(&self, quota: &Quota) -> i128 {
        let own = self.accounts.iter().find(|(other, _)| other == quota);
        let most = self.accounts.iter().map(|(_, level)| *level).max();
        let carried = most.unwrap_or(0).min(full(quota));
        own.map_or(carried, |(_, level)| *level)
    }

    /// Why `cells` do not fit, if they do not and what is owed is overstated by `more`.
    fn refusal(&self, quota: &Quota, cells: u64, more: i128) -> Option<Refusal> {
        if cells == 0 {
            return None;
        }
        if cells > quota.burst_size() {
            return Some(Refusal::Never);
        }
        let over = self.seen_by(quota) + more + parts(cells) - full(quota);
        let wait = (over + drain(quota) - 1) / drain(quota);
        (over > 0).then_some(Refusal::Wait(wait as u64))
    }

    /// Why `cells` do not fit.
    pub(crate) fn decide(&self, quota: &Quota, cells: u64) -> Option<Refusal> {
        self.refusal(quota, cells, 0)
    }

    /// The same as the most cautious implementation sees it.
    pub(crate) fn decide_cautiously(&self, quota: &Quota, cells: u64) -> Option<Refusal> {
        self.refusal(quota, cells, self.caution(quota))
    }

    /// The most and the least cells that may be reported as left.
    pub(crate) fn left(&self, quota: &Quota) -> (u64, u64) {
        let left = |more: i128| (full(quota) - self.seen_by(quota) - more).max(0) / DAY;
        (left(0) as u64, left(self.caution(quota)) as u64)
    }

    /// A tick for each of a few roundings, of the quota with the coarsest ticks, and the slack.
    fn caution(&self, quota: &Quota) -> i128 {
        let drains = self.accounts.iter().map(|(other, _)| drain(other));
        let coarsest = drains.chain([self.coarsest, drain(quota)]).max();
        self.slack.max(slack(quota)) + TICKS * self.tick * coarsest.unwrap_or_default()
    }

    /// Opens the account of a quota that decides on a key in debt.
    pub(crate) fn open(&mut self, quota: &Quota) {
        if self.owes_nothing() {
            self.accounts.clear();
        }
        if self.accounts.iter().all(|(other, _)| other != quota) {
            self.accounts.push((*quota, self.seen_by(quota)));
        }
        self.coarsest = self.coarsest.max(drain(quota));
        self.slack = self.slack.max(slack(quota));
    }

    /// Charges `cells`, whether they fit or not: `quota` up to two bursts, all others up to one.
    pub(crate) fn charge(&mut self, quota: &Quota, cells: u64) {
        if cells == 0 {
            return;
        }
        self.open(quota);
        for (other, level) in &mut self.accounts {
            let most = if other == quota { 2 } else { 1 } * full(other);
            *level = (*level).max((*level + parts(cells)).min(most));
        }
    }

    pub(crate) fn refund(&mut self, cells: u64) {
        for (_, level) in &mut self.accounts {
            *level = (*level - parts(cells)).max(0);
        }
    }
}

fn parts(cells: u64) -> i128 {
    i128::from(cells).saturating_mul(DAY)
}

fn full(quota: &Quota) -> i128 {
    parts(quota.burst_size())
}

fn drain(quota: &Quota) -> i128 {
    let period = quota.period().as_nanos() as i128;
    assert_eq!(DAY % period, 0, "a period that does not divide a day");
    i128::from(quota.cells()) * (DAY / period)
}

/// By how much rounding up the interval may overstate a debt of two bursts.
fn slack(quota: &Quota) -> i128 {
    let nanos = quota.period().as_nanos();
    if nanos.is_multiple_of(quota.cells().into()) {
        0
    } else {
        full(quota) / (16_384 / 2)
    }
}

const DAY: i128 = 86_400_000_000_000;

const TICKS: i128 = 4;
