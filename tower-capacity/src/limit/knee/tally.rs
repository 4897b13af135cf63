//! What one or several windows say together.

use crate::limit::Window;

/// Sums over windows under the same limit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    completions: f64,
    seconds: f64,
    inflight_seconds: f64,
    samples: f64,
    /// Σ samples × ln service time.
    logs: f64,
    /// Σ (samples × relative error of the service time)².
    errors: f64,
}

/// How throughput follows concurrency between two tallies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Elasticity {
    pub(super) value: f64,
    /// Standard error.
    pub(super) error: f64,
    /// Change of the logarithm of inflight.
    pub(super) moved: f64,
}

/// Elasticity below which less concurrency is as good, and surely above which more is better.
pub(super) const USELESS: f64 = 0.15;

impl Elasticity {
    /// Whether even the higher of the two limits is not enough.
    pub(super) fn pays(&self) -> bool {
        self.value - self.error > USELESS
    }
}

/// How far steady windows scatter, in variances of independent requests: of throughput and of service
/// time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scatter {
    pub(super) throughput: f64,
    pub(super) service_time: f64,
}

/// Change of ln n from which an elasticity is read.
const MOVED: f64 = 0.15;
/// The relative error of a service time is at least this over the root of the samples.
const LEAST_SPREAD: f64 = 0.3;
/// How fast the scatter is learned, and the most that one pair of windows says of it.
const PACE: f64 = 0.1;
const MOST: f64 = 20.0;

impl Tally {
    pub(super) fn of(window: &Window, service_time: f64) -> Self {
        let seconds = window.duration.as_secs_f64().max(1e-9);
        let samples = window.samples.max(1) as f64;
        let error = window
            .service_time_error
            .max(LEAST_SPREAD / samples.sqrt())
            .min(10.0);
        Self {
            completions: window.completions as f64,
            seconds,
            inflight_seconds: window.mean_inflight.max(1e-3) * seconds,
            samples,
            logs: samples * service_time.ln(),
            errors: (samples * error).powi(2),
        }
    }

    /// Keeps `completions` at most, as if the rest had been forgotten.
    pub(super) fn at_most(&self, completions: f64) -> Self {
        let share = (completions / self.completions.max(1.0)).min(1.0);
        Self {
            completions: share * self.completions,
            seconds: share * self.seconds,
            inflight_seconds: share * self.inflight_seconds,
            samples: share * self.samples,
            logs: share * self.logs,
            errors: share * self.errors,
        }
    }

    pub(super) fn plus(&self, other: &Self) -> Self {
        Self {
            completions: self.completions + other.completions,
            seconds: self.seconds + other.seconds,
            inflight_seconds: self.inflight_seconds + other.inflight_seconds,
            samples: self.samples + other.samples,
            logs: self.logs + other.logs,
            errors: self.errors + other.errors,
        }
    }

    pub(super) const fn completions(&self) -> f64 {
        self.completions
    }

    pub(super) fn throughput(&self) -> f64 {
        self.completions.max(0.5) / self.seconds
    }

    pub(super) fn inflight(&self) -> f64 {
        self.inflight_seconds / self.seconds
    }

    pub(super) fn service_time(&self) -> f64 {
        (self.logs / self.samples).exp()
    }

    /// Variance of the logarithm of the throughput, if completions are independent.
    fn throughput_variance(&self) -> f64 {
        1.0 / self.completions.max(1.0)
    }

    /// Variance of the logarithm of the service time, if requests are independent.
    fn service_time_variance(&self) -> f64 {
        self.errors / self.samples.powi(2)
    }

    /// The elasticity between this tally and one at a higher limit; `None` if inflight hardly moved.
    pub(super) fn elasticity(&self, high: &Self, scatter: Scatter) -> Option<Elasticity> {
        let moved = (high.inflight() / self.inflight()).ln();
        let by_throughput = (high.throughput() / self.throughput()).ln() / moved;
        let by_service_time = 1.0 - (high.service_time() / self.service_time()).ln() / moved;
        let is_read = moved > MOVED && by_throughput.is_finite() && by_service_time.is_finite();
        if !is_read {
            return None;
        }
        let square = moved.powi(2);
        let of_throughput =
            scatter.throughput * (high.throughput_variance() + self.throughput_variance()) / square;
        let of_service_time = scatter.service_time
            * (high.service_time_variance() + self.service_time_variance())
            / square;
        let both = of_throughput + of_service_time;
        // Three standard errors apart: the throughput is what counts.
        let (value, variance) = if (by_throughput - by_service_time).powi(2) > 9.0 * both {
            (by_throughput, of_throughput)
        } else {
            (
                (by_throughput * of_service_time + by_service_time * of_throughput) / both,
                of_throughput * of_service_time / both,
            )
        };
        Some(Elasticity {
            value,
            error: variance.sqrt(),
            moved,
        })
    }
}

impl Default for Scatter {
    /// Service times of neighbours are alike: they shared the same crowd.
    fn default() -> Self {
        Self {
            throughput: 1.0,
            service_time: 2.0,
        }
    }
}

impl Scatter {
    /// Learns from two windows in a row under about the same limit.
    pub(super) fn learn(&mut self, before: &Tally, after: &Tally) {
        let ratio = |moved: f64, variance: f64| (moved.powi(2) / variance).min(MOST);
        let throughput = ratio(
            (after.throughput() / before.throughput()).ln(),
            after.throughput_variance() + before.throughput_variance(),
        );
        let service_time = ratio(
            (after.service_time() / before.service_time()).ln(),
            after.service_time_variance() + before.service_time_variance(),
        );
        if throughput.is_finite() && service_time.is_finite() {
            self.throughput += PACE * (throughput - self.throughput);
            self.service_time += PACE * (service_time - self.service_time);
        }
    }

    /// The same, and nowhere below what independent requests have.
    pub(super) fn at_least_chance(self) -> Self {
        Self {
            throughput: self.throughput.max(1.0),
            service_time: self.service_time.max(1.0),
        }
    }
}
