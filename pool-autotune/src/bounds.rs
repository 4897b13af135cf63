use std::error::Error;
use std::fmt;
use std::ops::RangeInclusive;

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
