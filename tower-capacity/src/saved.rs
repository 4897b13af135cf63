//! What a limiter has learned, for the next process to start with.

use std::{error, fmt, str::FromStr, time::Duration};

/// A limit that was found, and the service time without queueing that it was found with.
///
/// A process that starts inside an overload has never seen its service healthy, and can start
/// with what the process before it knew: write this down on shutdown, and give it to
/// [`LimiterBuilder::warm_start`](crate::LimiterBuilder::warm_start). It is one line of text.
///
/// ```
/// use tower_capacity::{Limiter, SavedLimit};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let line = Limiter::adaptive().saved_limit().to_string();
/// let saved: SavedLimit = line.parse()?;
/// let limiter = Limiter::builder().warm_start(saved).build()?;
/// # let _ = limiter;
/// # Ok(())
/// # }
/// ```
///
/// Only for the next process on a machine and version like this one. The law goes on from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedLimit {
    limit: usize,
    baseline: Option<Duration>,
}

impl SavedLimit {
    pub(crate) const fn new(limit: usize, baseline: Option<Duration>) -> Self {
        Self { limit, baseline }
    }

    /// Requests that were allowed inside.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// The service time without queueing, if the law had found one.
    #[must_use]
    pub const fn baseline(&self) -> Option<Duration> {
        self.baseline
    }
}

/// `limit=48 baseline_ns=12500000`, without the second part if there is no baseline.
impl fmt::Display for SavedLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "limit={}", self.limit)?;
        match self.baseline {
            Some(baseline) if !baseline.is_zero() => {
                write!(f, " baseline_ns={}", nanos(baseline))
            }
            _ => Ok(()),
        }
    }
}

/// What a number of the text can hold: 584 years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Reads what [`Display`](fmt::Display) writes, and microseconds (`baseline_us=12500`).
impl FromStr for SavedLimit {
    type Err = ParseSavedLimitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || ParseSavedLimitError(text.chars().take(80).collect());
        let (mut limit, mut baseline) = (None, None);
        for field in text.split_ascii_whitespace() {
            let (name, value) = field.split_once('=').ok_or_else(fail)?;
            let value: u64 = value.parse().map_err(|_| fail())?;
            match name {
                "limit" if limit.is_none() && value > 0 => limit = usize::try_from(value).ok(),
                "baseline_ns" if baseline.is_none() && value > 0 => {
                    baseline = Some(Duration::from_nanos(value));
                }
                "baseline_us" if baseline.is_none() && value > 0 => {
                    baseline = Some(Duration::from_micros(value));
                }
                _ => return Err(fail()),
            }
        }
        let limit = limit.ok_or_else(fail)?;
        Ok(Self { limit, baseline })
    }
}

/// A text cannot be read as a [`SavedLimit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseSavedLimitError(String);

impl fmt::Display for ParseSavedLimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "invalid saved limit {:?}: expected `limit=48 baseline_ns=12500000`, both above 0, the \
             second optional",
            self.0
        )
    }
}

impl error::Error for ParseSavedLimitError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for saved in [
            SavedLimit::new(1, None),
            SavedLimit::new(48, Some(Duration::from_micros(12_500))),
            SavedLimit::new(48, Some(Duration::from_nanos(298))),
        ] {
            assert_eq!(saved.to_string().parse(), Ok(saved));
        }
    }

    #[test]
    fn a_baseline_in_microseconds_is_read() {
        let saved = SavedLimit::new(48, Some(Duration::from_micros(12_500)));
        assert_eq!("limit=48 baseline_us=12500".parse(), Ok(saved));
    }

    #[test]
    fn a_baseline_below_a_nanosecond_is_left_out() {
        let saved = SavedLimit::new(48, Some(Duration::ZERO));
        assert_eq!(saved.to_string(), "limit=48");
    }

    #[test]
    fn an_invalid_text_is_refused_with_what_it_said() {
        for text in [
            "",
            "48",
            "limit=0",
            "limit=-1",
            "limit=4 limit=5",
            "baseline_us=3",
            "limit=4 baseline_us=0",
            "limit=4 baseline_ns=0",
            "limit=4 baseline_ns=1 baseline_us=1",
            "limit=4 color=red",
            "limit=99999999999999999999",
        ] {
            let error = text.parse::<SavedLimit>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
