//! How much is allowed: a count of cells per period, and how many of them at once.

use std::{fmt, time::Duration};

/// How many cells a key may use per period, and how many of them at once.
///
/// ```
/// use rate_limit::{MINUTE, Quota};
///
/// // 100 requests a minute, at most 20 of them back to back.
/// let quota = Quota::count(100).per(MINUTE).burst(20);
/// assert_eq!(quota.to_string(), "100 requests per 60s, burst 20");
/// ```
///
/// A quota is a plain value and any numbers can be written down. Whatever enforces it refuses the
/// ones that mean nothing or cannot be kept exactly, with a [`QuotaError`] that says why.
///
/// Unlike `tower::limit::RateLimit`, which counts in fixed windows, cells come back one by one at
/// the sustained rate (the generic cell rate algorithm, ITU-T I.371). In any span of time `t` a
/// key gets at most `burst + count * t / period` cells.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Quota {
    count: u64,
    period: Duration,
    burst: u64,
    unit: Unit,
}

impl Quota {
    /// Starts a quota of `count` cells; [`QuotaCount::per`] says per how long.
    pub const fn count(count: u64) -> QuotaCount {
        QuotaCount(count)
    }

    /// Sets how many cells may be used back to back after a quiet spell.
    ///
    /// Defaults to the count.
    #[must_use]
    pub const fn burst(mut self, cells: u64) -> Self {
        self.burst = cells;
        self
    }

    /// Sets what one cell stands for, for the `RateLimit-Policy` header and for people.
    ///
    /// Defaults to [`Unit::Requests`].
    #[must_use]
    pub const fn unit(mut self, unit: Unit) -> Self {
        self.unit = unit;
        self
    }

    /// How many cells come back per [`period`](Self::period).
    #[must_use]
    pub const fn cells(&self) -> u64 {
        self.count
    }

    /// The time in which [`cells`](Self::cells) come back.
    #[must_use]
    pub const fn period(&self) -> Duration {
        self.period
    }

    /// How many cells may be used at once.
    #[must_use]
    pub const fn burst_size(&self) -> u64 {
        self.burst
    }

    /// What one cell stands for.
    #[must_use]
    pub const fn cell_unit(&self) -> Unit {
        self.unit
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            count,
            period,
            burst,
            unit,
        } = self;
        // As it is read: see `text`.
        let quote = if let Unit::Custom(_) = unit { "'" } else { "" };
        write!(
            f,
            "{count} {quote}{unit}{quote} per {period:?}, burst {burst}"
        )
    }
}

/// A count that waits for its period, made by [`Quota::count`].
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[must_use = "a count is not a quota until `per` is called"]
pub struct QuotaCount(u64);

impl QuotaCount {
    /// Completes the quota: the count is used up and comes back over `period`.
    #[must_use]
    pub const fn per(self, period: Duration) -> Quota {
        Quota {
            count: self.0,
            period,
            burst: self.0,
            unit: Unit::Requests,
        }
    }
}

/// What one cell of a [`Quota`] stands for.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Unit {
    /// One request.
    #[default]
    Requests,
    /// One byte of content.
    ContentBytes,
    /// Something of the service's own, for example `"tokens"`.
    Custom(&'static str),
}

impl Unit {
    /// The name used in headers: `requests`, `content-bytes` or the custom one.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::ContentBytes => "content-bytes",
            Self::Custom(name) => name,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A quota that means nothing or cannot be kept exactly.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct QuotaError {
    quota: Quota,
    problem: Problem,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Problem {
    ZeroCount,
    ZeroPeriod,
    ZeroBurst,
    TooFast,
    PeriodTooLong,
    BurstTooLong {
        largest: u64,
    },
    #[cfg(feature = "redis")]
    NotExactInRedis {
        largest: u64,
    },
}

impl QuotaError {
    pub(crate) const fn new(quota: Quota, problem: Problem) -> Self {
        Self { quota, problem }
    }

    /// The quota that was refused.
    #[must_use]
    pub const fn quota(&self) -> Quota {
        self.quota
    }
}

impl fmt::Display for QuotaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "quota \"{}\" cannot be enforced: ", self.quota)?;
        match self.problem {
            Problem::ZeroCount => f.write_str("expected a count of at least 1"),
            Problem::ZeroPeriod => f.write_str("expected a period longer than zero"),
            Problem::ZeroBurst => f.write_str("expected a burst of at least 1"),
            Problem::TooFast => {
                f.write_str("expected at most one cell per nanosecond; count in a larger unit")
            }
            Problem::PeriodTooLong => f.write_str("expected a period of at most 146 years"),
            Problem::BurstTooLong { largest } => {
                write!(f, "expected a burst of at most {largest} at this rate")
            }
            #[cfg(feature = "redis")]
            Problem::NotExactInRedis { largest } => write!(
                f,
                "Redis scripts count exactly only below 2^53; expected a burst of at most \
                 {largest} at this rate"
            ),
        }
    }
}

impl std::error::Error for QuotaError {}

/// One second, for [`QuotaCount::per`].
pub const SECOND: Duration = Duration::from_secs(1);
/// One minute, for [`QuotaCount::per`].
pub const MINUTE: Duration = Duration::from_secs(60);
/// One hour, for [`QuotaCount::per`].
pub const HOUR: Duration = Duration::from_secs(60 * 60);
/// One day of 24 hours, for [`QuotaCount::per`].
pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);
