//! What a process does in an experiment of the fleet, and what it reports.

use std::time::Duration;

use tokio::time::Instant;

use super::knee::{Knee, REPORTED, constants::LEAD_MAX};
use crate::tuner::PoolWindow;

/// How late a window may be closed for what is measured.
const LATE: Duration = Duration::from_millis(100);

/// The experiment of all processes, on the clock of this one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    /// See [`Knee::trial`].
    number: i64,
    starts: Instant,
    slot: Duration,
    /// The part of the connections that stays open in a low slot.
    low: f64,
    /// From 0 to 1: what is rounded up in this process, so that the sum over all is right.
    rounds: f64,
    seen: Seen,
    /// What this process did says nothing: it does not take part, or no longer.
    is_spoiled: bool,
}

/// What was measured: connections returned and in use, at the high size and at the low one.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    high: (u64, Duration),
    low: (u64, Duration),
    /// Time integral of what was let out in the low slots.
    let_out: Duration,
}

impl Trial {
    /// The one that is to come, if one is. `now`: when the store said so, by its clock.
    pub(super) fn announced(knee: &Knee, now: i64, id: i64) -> Option<Self> {
        let starts_in = knee.trial.checked_sub(now)?;
        let is_sane = knee.is_open == 1
            && (0..LEAD_MAX).contains(&starts_in)
            && (100..=60_000).contains(&knee.slot)
            && (1..1_000).contains(&knee.low);
        if !is_sane {
            return None;
        }
        let mixed = ((id ^ knee.trial) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Some(Self {
            number: knee.trial,
            starts: Instant::now() + Duration::from_millis(starts_in as u64),
            slot: Duration::from_millis(knee.slot as u64),
            low: knee.low as f64 / 1_000.0,
            rounds: (mixed >> 40) as f64 / f64::from(1 << 24),
            seen: Seen::default(),
            is_spoiled: false,
        })
    }

    pub(super) fn number(&self) -> i64 {
        self.number
    }

    /// Lets out as many as ever, from now on, and reports nothing.
    pub(super) fn spoil(&mut self) {
        self.is_spoiled = true;
    }

    /// Half slots that have passed, while it runs.
    fn half(&self, now: Instant) -> Option<u32> {
        if self.is_spoiled {
            return None;
        }
        let passed = now.checked_duration_since(self.starts)?;
        let half = (2 * passed.as_nanos() / self.slot.as_nanos()) as u32;
        (half < 8).then_some(half)
    }

    fn is_low(half: u32) -> bool {
        matches!(half / 2, 1 | 2)
    }

    pub(super) fn runs(&self, now: Instant) -> bool {
        self.half(now).is_some()
    }

    fn has_ended(&self, now: Instant) -> bool {
        now >= self.starts + 4 * self.slot
    }

    /// When the next half of a slot begins, or the last has ended.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        if self.is_spoiled || self.has_ended(now) {
            return None;
        }
        let next = self.half(now).map_or(0, |half| half + 1);
        Some(self.starts + self.slot / 2 * next)
    }

    /// How many of `limit` connections are let out.
    pub(super) fn admits(&self, now: Instant, limit: usize) -> usize {
        match self.half(now) {
            Some(half) if Self::is_low(half) => {
                let low = (limit as f64 * self.low + self.rounds) as usize;
                low.clamp(1, limit.max(1))
            }
            _ => limit,
        }
    }

    /// Takes in what happened to a pool until `now`.
    pub(super) fn saw(&mut self, now: Instant, window: &PoolWindow) {
        if self.runs(now) && window.duration > self.slot / 2 + LATE {
            // The process stood still, and let out what it had to let out at another time.
            return self.spoil();
        }
        // A window is closed where a half slot ends, a moment late.
        let middle = now.checked_sub(window.duration / 2);
        let Some(half) = middle.and_then(|middle| self.half(middle)) else {
            return;
        };
        // The first half of a slot settles.
        if half.is_multiple_of(2) {
            return;
        }
        let seen = &mut self.seen;
        let side = match Self::is_low(half) {
            true => {
                seen.let_out += window.capacity;
                &mut seen.low
            }
            false => &mut seen.high,
        };
        side.0 += window.completions;
        side.1 += window.busy;
    }
}

/// What this process does, summed up since the last beat.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gauge {
    /// Of all pools.
    duration: Duration,
    busy: Duration,
    full: Duration,
    completions: u64,
    last: [i64; 3],
}

impl Gauge {
    pub(super) fn saw(&mut self, window: &PoolWindow, is_full: bool) {
        self.duration += window.duration;
        self.busy += window.busy;
        self.full += if is_full { window.busy } else { Duration::ZERO };
        self.completions += window.completions;
    }

    /// What is sent with a beat. `pools`: how many there are; `own`: connections that are not theirs.
    pub(super) fn report(
        &mut self,
        now: Instant,
        pools: usize,
        own: usize,
        trial: Option<&Trial>,
    ) -> [i64; REPORTED] {
        /// Two windows of a pool: less says little.
        const LEAST: Duration = Duration::from_millis(500);
        if self.duration >= LEAST || pools == 0 {
            let per = self.duration.as_secs_f64().max(1e-3) / pools.max(1) as f64;
            let thousandths = |sum: f64| (1_000.0 * sum / per) as i64;
            self.last = [
                thousandths(self.busy.as_secs_f64()),
                thousandths(self.full.as_secs_f64()),
                thousandths(self.completions as f64),
            ];
            let last = self.last;
            *self = Self {
                last,
                ..Self::default()
            };
        }
        let [busy, full, rate] = self.last;
        let Some(trial) = trial.filter(|trial| trial.has_ended(now) && !trial.is_spoiled) else {
            return [busy, full, rate, 0, 0, 0, 0, 0, 0];
        };
        let Seen { high, low, let_out } = trial.seen;
        // Two half slots were measured.
        let left = let_out.as_secs_f64() / trial.slot.as_secs_f64() + own as f64;
        let millis = |time: Duration| time.as_millis() as i64;
        [
            busy,
            full,
            rate,
            trial.number,
            high.0 as i64,
            low.0 as i64,
            millis(high.1),
            millis(low.1),
            (1_000.0 * left) as i64,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trial with slots of an odd number of milliseconds, which begins now.
    fn trial(rounds: f64) -> Trial {
        Trial {
            number: 1,
            starts: Instant::now(),
            slot: Duration::from_millis(1_593),
            low: 0.8,
            rounds,
            seen: Seen::default(),
            is_spoiled: false,
        }
    }

    #[test]
    fn the_next_half_of_a_slot_is_always_to_come() {
        let trial = trial(0.5);
        let mut now = trial.starts;
        for half in 0..8 {
            assert_eq!(trial.half(now), Some(half));
            let next = trial.next(now).expect("it runs");
            assert!(next > now, "{half}");
            now = next;
        }
        assert_eq!((trial.next(now), trial.half(now)), (None, None));
        assert!(trial.has_ended(now));
    }

    #[test]
    fn its_own_clock_ends_it_in_a_process_that_hears_of_nothing() {
        let trial = trial(0.5);
        let end = trial.starts + 4 * trial.slot;
        let low = trial.starts + 2 * trial.slot;
        assert_eq!(trial.admits(low, 10), 8);
        for later in [0, 1, 1_000, 1_000_000] {
            assert_eq!(trial.admits(end + Duration::from_millis(later), 10), 10);
        }
    }

    #[test]
    fn a_process_that_stood_still_lets_out_what_it_has_and_reports_nothing() {
        let mut trial = trial(0.5);
        let low = trial.starts + 2 * trial.slot;
        let window = PoolWindow {
            duration: trial.slot,
            completions: 10,
            ..PoolWindow::default()
        };
        trial.saw(low, &window);
        assert_eq!((trial.admits(low, 10), trial.next(low)), (10, None));
        let report = Gauge::default().report(low + 4 * trial.slot, 1, 3, Some(&trial));
        assert_eq!(report, [0; REPORTED]);
    }

    #[test]
    fn over_many_processes_the_low_limit_is_right_and_none_is_left_with_nothing() {
        let low = trial(0.0).starts + 2 * trial(0.0).slot;
        let sum = |limit: usize| -> usize {
            let parts = (0..100).map(|part| {
                let trial = trial(f64::from(part) / 100.0);
                trial.admits(low.max(trial.starts + 2 * trial.slot), limit)
            });
            parts.sum()
        };
        assert_eq!(sum(1), 100);
        assert_eq!(sum(2), 160);
        assert_eq!(sum(7), 560);
    }

    #[test]
    fn only_the_second_half_of_each_slot_is_measured() {
        let mut trial = trial(0.0);
        let slot = trial.slot;
        let window = PoolWindow {
            duration: slot / 2,
            completions: 10,
            busy: slot,
            capacity: slot,
            ..PoolWindow::default()
        };
        let mut gauge = Gauge::default();
        for half in 1..=8 {
            trial.saw(trial.starts + slot / 2 * half, &window);
        }
        let end = trial.starts + 4 * slot;
        let millis = 2 * slot.as_millis() as i64;
        let report = gauge.report(end, 1, 3, Some(&trial));
        // Two connections were let out, and three are not the pools'.
        assert_eq!(report, [0, 0, 0, 1, 20, 20, millis, millis, 5_000]);
        let early = gauge.report(end - slot, 1, 3, Some(&trial));
        assert_eq!(early[3], 0, "it has not ended");
    }
}
