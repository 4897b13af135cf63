//! The errors of building a limiter and of draining it.

use std::{error::Error, fmt, ops::RangeInclusive, time::Duration};

use crate::gate::{self, Partition};

/// A limiter that cannot work.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ConfigError {
    /// The bounds of the limit are not 1 ≤ min ≤ max ≤ [`Gate::MAX_LIMIT`](crate::gate::Gate::MAX_LIMIT).
    #[non_exhaustive]
    Bounds {
        /// Least limit asked for.
        min: usize,
        /// Greatest limit asked for.
        max: usize,
    },
    /// The law starts outside the bounds.
    #[non_exhaustive]
    InitialOutOfBounds {
        /// Where the law starts.
        initial: usize,
        /// The bounds asked for.
        bounds: RangeInclusive<usize>,
    },
    /// A setting of the default law beside a law that was set.
    #[non_exhaustive]
    OtherLaw {
        /// Name of the law that was set.
        law: &'static str,
        /// The method of the builder that does not go with it.
        setting: &'static str,
    },
    /// The latency objective is zero, which no request meets.
    LatencyObjective,
    /// A share of the limit is not above 0 and at most 1.
    #[non_exhaustive]
    Share {
        /// The key that was to have it.
        key: String,
        /// The share asked for.
        share: f64,
    },
    /// A key was given two shares.
    #[non_exhaustive]
    ShareTwice {
        /// The key.
        key: String,
    },
    /// The shares are more than the limit.
    #[non_exhaustive]
    ShareSum {
        /// The first key with a share that no longer fits.
        key: String,
        /// Of the shares up to that one.
        sum: f64,
    },
    /// More keys have shares than there are partitions.
    #[non_exhaustive]
    ShareCount {
        /// Keys with a share.
        keys: usize,
    },
    /// The name is empty, so that metrics would carry an empty label.
    Name,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bounds { min, max } => write!(
                f,
                "limit bounds {min}..={max} are not possible: expected 1 <= min <= max <= {}",
                gate::MAX
            ),
            Self::InitialOutOfBounds { initial, bounds } => write!(
                f,
                "the law starts at a limit of {initial}: expected one within its bounds {bounds:?}"
            ),
            Self::OtherLaw { law, setting } => write!(
                f,
                "{setting} is for the default law: expected it without the law {law}"
            ),
            Self::LatencyObjective => {
                f.write_str("the latency objective is 0 s: expected a time above 0")
            }
            Self::Share { key, share } => write!(
                f,
                "the share of {key:?} is {share}: expected one above 0 and at most 1"
            ),
            Self::ShareTwice { key } => write!(f, "{key:?} has two shares: expected one"),
            Self::ShareSum { key, sum } => write!(
                f,
                "with that of {key:?} the shares add up to {sum:.3}: expected at most 1, since they \
                 are parts of one limit"
            ),
            Self::ShareCount { keys } => write!(
                f,
                "{keys} keys have a share: expected at most {}",
                Partition::MAX
            ),
            Self::Name => f.write_str(
                "the name of the limiter is empty: expected one that tells it from others in metrics",
            ),
        }
    }
}

impl Error for ConfigError {}

/// A drain ended before the limiter was empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DrainError {
    /// Requests were still inside when the deadline had passed. The limiter keeps refusing.
    #[non_exhaustive]
    Timeout {
        /// Requests that were still inside.
        inflight: usize,
        /// How long the drain waited for them.
        deadline: Duration,
    },
    /// [`Limiter::resume`](crate::Limiter::resume) was called. The limiter admits again.
    Resumed,
}

impl fmt::Display for DrainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { inflight, deadline } => {
                write!(f, "{inflight} requests still inside after {deadline:?}")
            }
            Self::Resumed => f.write_str("resumed before all requests had left"),
        }
    }
}

impl Error for DrainError {}

pub(crate) fn check_bounds(bounds: &RangeInclusive<usize>) -> Result<(), ConfigError> {
    let (min, max) = (*bounds.start(), *bounds.end());
    if min == 0 || max > gate::MAX || min > max {
        return Err(ConfigError::Bounds { min, max });
    }
    Ok(())
}

pub(crate) fn check_shares(shares: &[(Box<str>, f64)]) -> Result<(), ConfigError> {
    let mut sum = 0.0;
    for (index, (key, share)) in shares.iter().enumerate() {
        let key = || key.to_string();
        // Not a number is in no range.
        if !(*share > 0.0 && *share <= 1.0) {
            return Err(ConfigError::Share {
                key: key(),
                share: *share,
            });
        }
        if shares[..index].iter().any(|(other, _)| **other == *key()) {
            return Err(ConfigError::ShareTwice { key: key() });
        }
        sum += share;
        // A sum of decimal fractions may miss 1 by a little.
        if sum > 1.0 + 1e-9 {
            return Err(ConfigError::ShareSum { key: key(), sum });
        }
    }
    if shares.len() > Partition::MAX {
        let keys = shares.len();
        return Err(ConfigError::ShareCount { keys });
    }
    Ok(())
}
