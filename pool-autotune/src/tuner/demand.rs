//! D: how many connections the demand needs.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::PoolWindow;

/// Square-root staffing: connections for an offered load of `load` (arrivals per second times use
/// time in seconds, so mean connections in use).
///
/// `⌈L + β·√(L·(c_a² + c_s²)/2)⌉`: the load itself, plus slack for its variation. The square root
/// is Halfin and Whitt's regime (Operations Research 29(3), 1981), where β = 1.3 leaves few
/// arrivals waiting; the variation term is Allen and Cunneen's correction for use times that are
/// not exponential. Arrivals are taken as Poisson (c_a² = 1).
pub(super) fn staffing(load: f64, use_time_variation: f64) -> usize {
    const BETA: f64 = 1.3;
    const ARRIVAL_VARIATION: f64 = 1.0;
    let slack = BETA * (load * (ARRIVAL_VARIATION + use_time_variation) / 2.0).sqrt();
    // A float cast saturates, and takes NaN to zero.
    (load + slack).ceil() as usize
}

/// S0: use time when the pool is not the bottleneck.
///
/// Demand is computed from it and never from the use time of a saturated pool: that one grows
/// *because* too much is asked of the database, and would ask for more.
#[derive(Clone, Debug, Default)]
pub(super) struct BaseUseTime {
    seconds: Option<f64>,
    /// Connections in use while the pool was not saturated, on average.
    usual: f64,
}

impl BaseUseTime {
    /// Weight of a new unsaturated window: about ten windows to forget.
    const WEIGHT: f64 = 0.1;

    pub(super) fn get(&self) -> Option<f64> {
        self.seconds
    }

    /// Takes a use time for the base: an experiment showed that it is not our doing.
    pub(super) fn rebase(&mut self, seconds: Option<f64>) {
        self.seconds = seconds.or(self.seconds);
    }

    pub(super) fn learn(&mut self, window: &PoolWindow, saturated: bool) {
        /// Above this utilisation use times already carry queueing inside the database.
        const CALM: f64 = 0.8;
        /// More in use than this many times the mean is more than usual.
        const USUAL: f64 = 1.1;
        let Some(seen) = window.mean_use_time() else {
            return;
        };
        let in_use = window.busy.as_secs_f64() / window.duration.as_secs_f64().max(1e-9);
        let is_calm = !saturated && window.utilisation() < CALM;
        if is_calm {
            self.usual += Self::WEIGHT * (in_use - self.usual);
        }
        self.seconds = Some(match self.seconds {
            // Better an inflated guess than none: it can only fall from here.
            None => seen,
            // Where more than usual is in use, part of the use time is that of the others.
            Some(base) if is_calm && in_use <= USUAL * self.usual => {
                base + Self::WEIGHT * (seen - base)
            }
            // Saturation cannot make queries faster, so these are faster queries.
            Some(base) => base.min(seen),
        });
    }
}

/// The highest demand of the last while.
///
/// A queue of falling values, as in the sliding-window maximum: constant time, and at most one
/// entry per window.
#[derive(Clone, Debug)]
pub(super) struct PeakDemand {
    horizon: Duration,
    since: Instant,
    falling: VecDeque<(Instant, usize)>,
}

impl PeakDemand {
    pub(super) fn new(horizon: Duration, now: Instant) -> Self {
        Self {
            horizon,
            since: now,
            falling: VecDeque::new(),
        }
    }

    pub(super) fn push(&mut self, now: Instant, demand: usize) {
        while self
            .falling
            .back()
            .is_some_and(|&(_, smaller)| smaller <= demand)
        {
            self.falling.pop_back();
        }
        self.falling.push_back((now, demand));
        while self
            .falling
            .front()
            .is_some_and(|&(at, _)| now - at > self.horizon)
        {
            self.falling.pop_front();
        }
    }

    /// The peak of what was seen.
    pub(super) fn so_far(&self) -> Option<usize> {
        self.falling.front().map(|&(_, demand)| demand)
    }

    /// The peak, once a whole horizon was seen.
    pub(super) fn get(&self, now: Instant) -> Option<usize> {
        if now - self.since < self.horizon {
            return None;
        }
        self.falling.front().map(|&(_, demand)| demand)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staffing_adds_square_root_slack() {
        assert_eq!(staffing(0.0, 1.0), 0);
        assert_eq!(staffing(1.0, 1.0), 3); // 1 + 1.3
        assert_eq!(staffing(25.0, 1.0), 32); // 25 + 6.5
        assert_eq!(staffing(100.0, 1.0), 113);
    }

    #[test]
    fn constant_use_times_need_less_slack_than_variable_ones() {
        assert!(staffing(25.0, 0.0) < staffing(25.0, 1.0));
        assert!(staffing(25.0, 1.0) < staffing(25.0, 9.0));
    }

    #[test]
    fn absurd_input_saturates() {
        assert_eq!(staffing(f64::NAN, 1.0), 0);
        assert_eq!(staffing(f64::INFINITY, 1.0), usize::MAX);
    }

    #[test]
    fn peak_is_the_maximum_of_the_horizon_and_unknown_before_it() {
        let second = Duration::from_secs(1);
        let start = Instant::now();
        let mut peak = PeakDemand::new(10 * second, start);
        for (at, demand) in [(1, 3), (2, 9), (5, 4), (8, 6)] {
            peak.push(start + at * second, demand);
        }
        assert_eq!(peak.get(start + 9 * second), None);
        peak.push(start + 11 * second, 2);
        assert_eq!(peak.get(start + 11 * second), Some(9));
        peak.push(start + 13 * second, 2);
        assert_eq!(peak.get(start + 13 * second), Some(6));
    }
}
