//! The highest limit at which a latency objective is met.

use std::time::Duration;

use crate::limit::Window;

/// Share of late requests that is fine: the objective is for 99 %.
const LATE_SHARE: f64 = 0.01;
/// How the ceiling moves when too many are late, and when few are (model).
const STEP_DOWN: f64 = 0.85;
const STEP_UP: f64 = 1.05;

/// Lowers a ceiling over the limit while more requests are late than may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Objective {
    service_time: Duration,
    /// No limit goes above; infinite while the objective is met without.
    ceiling: f64,
    /// The share of late requests that is not for want of a lower limit.
    own: f64,
    late: f64,
    samples: f64,
    /// The limit and the share of late requests where the ceiling began to fall.
    fall: Option<(f64, f64)>,
    /// Windows that still show the last step.
    settling: u32,
}

impl Objective {
    /// How fast the own share follows windows without a queue.
    const PACE: f64 = 0.2;
    /// Half the limit must take this part of the late requests away, or they were not for want of
    /// a lower one.
    const PAYS: f64 = 0.7;
    /// How far above what may be late chance alone goes: two standard errors of a count.
    const CHANCE: f64 = 2.0;

    pub(super) const fn new(service_time: Duration) -> Self {
        Self {
            service_time,
            ceiling: f64::INFINITY,
            own: 0.0,
            late: 0.0,
            samples: 0.0,
            fall: None,
            settling: 0,
        }
    }

    pub(super) const fn service_time(&self) -> Duration {
        self.service_time
    }

    pub(super) const fn ceiling(&self) -> f64 {
        self.ceiling
    }

    /// Reads a window in which nothing queued: what is late then is late by nature.
    pub(super) fn learn(&mut self, window: &Window) {
        if window.samples > 0 {
            let share = window.late as f64 / window.samples as f64;
            self.own += Self::PACE * (share - self.own);
        }
    }

    /// Reads a window at the limit; `limit` is the one the law wants.
    pub(super) fn judge(&mut self, window: &Window, limit: f64) {
        if self.settling > 0 {
            self.settling -= 1;
            return;
        }
        self.late += window.late as f64;
        self.samples += window.samples as f64;
        let share = self.late / self.samples.max(1.0);
        // Half as much again as those that are late by nature.
        let may = LATE_SHARE.max(1.5 * self.own);
        let expected = may * self.samples;
        let highest = limit.min(self.ceiling);
        if self.late > expected + Self::CHANCE * expected.sqrt() + 1.0 {
            let (from, late) = *self.fall.get_or_insert((highest, share));
            if highest > 0.5 * from {
                self.ceiling = (STEP_DOWN * highest).max(1.0);
                self.settling = 1;
            } else if share > Self::PAYS * late {
                self.own = share;
                self.fall = None;
                self.ceiling = f64::INFINITY;
            } else {
                self.fall = Some((highest, share));
            }
        } else if expected < 2.0 {
            // Too few to say that they are in time.
            return;
        } else if self.late < expected {
            self.own = self.own.min(share);
            self.fall = None;
            self.ceiling *= STEP_UP;
            if self.ceiling > 2.0 * limit {
                self.ceiling = f64::INFINITY;
            }
        }
        (self.late, self.samples) = (0.0, 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(late: u64) -> Window {
        Window {
            samples: 1000,
            late,
            ..Window::new(Duration::from_millis(100), 40)
        }
    }

    #[test]
    fn late_requests_lower_the_ceiling_and_timely_ones_lift_it_again() {
        let mut objective = Objective::new(Duration::from_millis(50));
        objective.judge(&window(100), 40.0);
        assert!((objective.ceiling() - 34.0).abs() < 1e-9);
        for _ in 0..40 {
            objective.judge(&window(0), 40.0);
        }
        assert!(objective.ceiling().is_infinite());
    }

    #[test]
    fn the_window_after_a_step_still_shows_the_old_limit_and_is_skipped() {
        let mut objective = Objective::new(Duration::from_millis(50));
        objective.judge(&window(100), 40.0);
        let ceiling = objective.ceiling();
        objective.judge(&window(100), 34.0);
        assert!((objective.ceiling() - ceiling).abs() < 1e-9);
    }

    #[test]
    fn requests_that_are_late_without_a_queue_do_not_lower_the_ceiling() {
        let mut objective = Objective::new(Duration::from_millis(50));
        for _ in 0..20 {
            objective.learn(&window(50));
        }
        objective.judge(&window(55), 40.0);
        assert!(objective.ceiling().is_infinite());
    }

    #[test]
    fn lateness_that_half_the_limit_does_not_cure_is_not_for_want_of_a_lower_one() {
        let mut objective = Objective::new(Duration::from_millis(50));
        let mut limit = 40.0_f64;
        let mut lowest = limit;
        for _ in 0..40 {
            objective.judge(&window(900), limit);
            limit = objective.ceiling().min(40.0);
            lowest = lowest.min(limit);
        }
        assert!(lowest > 15.0, "{lowest}");
        assert!(objective.ceiling().is_infinite());
        // The dependency recovers; the objective counts again.
        objective.judge(&window(0), 40.0);
        objective.judge(&window(100), 40.0);
        assert!(objective.ceiling() < 40.0);
    }

    #[test]
    fn one_late_request_in_a_hundred_is_no_reason() {
        let mut objective = Objective::new(Duration::from_millis(50));
        for _ in 0..100 {
            objective.judge(&window(10), 40.0);
        }
        assert!(objective.ceiling().is_infinite());
    }
}
