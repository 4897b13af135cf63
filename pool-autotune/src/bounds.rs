use std::error::Error;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

/// The smallest and the largest size a pool may be given. At least 1, and `min <= max`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bounds {
    min: usize,
    max: usize,
}

impl Bounds {
    /// Checks and makes bounds.
    ///
    /// ```
    /// use pool_autotune::Bounds;
    ///
    /// let bounds = Bounds::new(2..=50)?;
    /// assert_eq!((bounds.min(), bounds.max()), (2, 50));
    /// assert_eq!(
    ///     Bounds::new(0..=50).unwrap_err().to_string(),
    ///     "bounds 0..=50: a pool needs at least 1 connection",
    /// );
    /// # Ok::<(), pool_autotune::BoundsError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// A minimum of zero, or above the maximum.
    pub fn new(bounds: RangeInclusive<usize>) -> Result<Self, BoundsError> {
        let (min, max) = bounds.into_inner();
        if min == 0 {
            return Err(BoundsError {
                min,
                max,
                problem: Problem::Zero,
            });
        }
        if min > max {
            return Err(BoundsError {
                min,
                max,
                problem: Problem::MinAboveMax,
            });
        }
        Ok(Self { min, max })
    }

    /// Does the arithmetic of a capacity plan: the connections that a peak of
    /// `requests_per_second`, each holding one for `mean_service_time`, keeps busy (Little's law),
    /// times `headroom`, within this process's share of what the server allows.
    ///
    /// `server_max` is the server's limit on connections less those it reserves and those of other
    /// services; `instances` is how many processes share it, counting those that a rollout adds.
    /// The request rate is that of one process. The minimum is 2, or the share if that is 1.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pool_autotune::{Bounds, Plan};
    ///
    /// // 400 requests per second of 25 ms each, half as much again, 8 pods on 180 connections.
    /// let bounds = Bounds::from_capacity(Plan {
    ///     requests_per_second: 400.0,
    ///     mean_service_time: Duration::from_millis(25),
    ///     headroom: 1.5,
    ///     server_max: 180,
    ///     instances: 8,
    /// })?;
    /// assert_eq!((bounds.min(), bounds.max()), (2, 15));
    /// # Ok::<(), pool_autotune::PlanError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Names the input that cannot hold: a rate, time or headroom that is no positive number, a
    /// headroom below 1, no instances, or a peak that needs more connections than the share.
    pub fn from_capacity(plan: Plan) -> Result<Self, PlanError> {
        let Plan {
            requests_per_second,
            mean_service_time,
            headroom,
            server_max,
            instances,
        } = plan;
        let refuse = |message: String| Err(PlanError { message });
        if !(requests_per_second.is_finite() && requests_per_second > 0.0) {
            return refuse(format!(
                "requests_per_second is {requests_per_second}: expected above 0"
            ));
        }
        if mean_service_time.is_zero() {
            return refuse("mean_service_time is 0 s: expected above 0".to_owned());
        }
        if !(headroom.is_finite() && headroom >= 1.0) {
            return refuse(format!(
                "headroom is {headroom}: expected a factor of at least 1"
            ));
        }
        if instances == 0 {
            return refuse("instances is 0: expected at least 1".to_owned());
        }
        let share = server_max / instances;
        if share == 0 {
            return refuse(format!(
                "server_max is {server_max}: not one connection for each of {instances} instances"
            ));
        }
        let busy = requests_per_second * mean_service_time.as_secs_f64();
        let needed = (busy * headroom).ceil() as usize;
        if needed > share {
            return refuse(format!(
                "server_max is {server_max}: {requests_per_second} requests/s of \
                 {mean_service_time:?} with headroom {headroom} need {needed} connections, and each \
                 of {instances} instances may have {share}"
            ));
        }
        let max = needed.max(2).min(share);
        Ok(Self {
            min: max.min(2),
            max,
        })
    }

    /// The smallest size.
    #[must_use]
    pub fn min(&self) -> usize {
        self.min
    }

    /// The largest size.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }

    /// The size within the bounds that is nearest to `size`.
    #[must_use]
    pub fn clamp(&self, size: usize) -> usize {
        size.clamp(self.min, self.max)
    }

    /// Checks them against a pool that can hold at most `pool_max` connections.
    /// The same, as far as they are not above `max`.
    pub(crate) fn at_most(self, max: usize) -> Self {
        Self {
            min: self.min.min(max),
            max: self.max.min(max),
        }
    }

    pub(crate) fn within(self, pool_max: usize) -> Result<Self, BoundsError> {
        if self.max > pool_max {
            let problem = Problem::AbovePool { pool_max };
            return Err(BoundsError {
                min: self.min,
                max: self.max,
                problem,
            });
        }
        Ok(self)
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.min, self.max)
    }
}

/// Why bounds cannot be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BoundsError {
    min: usize,
    max: usize,
    problem: Problem,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Problem {
    Zero,
    MinAboveMax,
    AbovePool { pool_max: usize },
}

impl fmt::Display for BoundsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { min, max, problem } = self;
        write!(f, "bounds {min}..={max}: ")?;
        match problem {
            Problem::Zero => write!(f, "a pool needs at least 1 connection"),
            Problem::MinAboveMax => write!(f, "the minimum is above the maximum"),
            Problem::AbovePool { pool_max } => write!(
                f,
                "the pool was built with a maximum of {pool_max}; build it with at least {max}"
            ),
        }
    }
}

impl Error for BoundsError {}

/// The inputs of [`Bounds::from_capacity`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "written out by its users: nothing has a default"
)]
pub struct Plan {
    /// Requests per second that one process serves at its peak.
    pub requests_per_second: f64,
    /// How long one of them holds a connection, on average.
    pub mean_service_time: Duration,
    /// Factor on top of what the peak needs, at least 1. Capacity documents often use 1.5.
    pub headroom: f64,
    /// Connections that the server has for this service.
    pub server_max: usize,
    /// Processes that share them.
    pub instances: usize,
}

/// Why a plan does not add up; the message names the input.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PlanError {
    message: String,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for PlanError {}

#[cfg(test)]
#[path = "../tests/inside/bounds.rs"]
mod tests;
