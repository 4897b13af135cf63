use std::{fmt, time::Duration};

/// How a [`Throttler`](super::Throttler) starts out.
///
/// ```
/// use std::time::Duration;
/// use tower_capacity::throttle::{ThrottleConfig, Throttler};
///
/// let config = ThrottleConfig::new()
///     .patience(Duration::from_secs(30))
///     .name("billing");
/// let throttler = Throttler::new(config)?;
/// # Ok::<(), tower_capacity::throttle::ThrottleConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct ThrottleConfig {
    pub(super) patience: Duration,
    pub(super) min_rejections: u64,
    pub(super) share: f64,
    pub(super) name: Box<str>,
}

impl ThrottleConfig {
    /// Starts from the defaults.
    pub fn new() -> Self {
        Self {
            patience: Duration::from_secs(10),
            min_rejections: 32,
            share: 0.1,
            name: "default".into(),
        }
    }

    /// Sets for how long the backend has to accept nothing before requests are withheld, one second
    /// to one hour. Rejections that are this old are forgotten.
    ///
    /// Where acceptances are rarer than that by nature, it is longer by itself. Defaults to ten
    /// seconds.
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sets how many requests have to be rejected in a row before others are withheld, at least 1.
    /// Defaults to 32.
    pub const fn min_rejections(mut self, rejections: u64) -> Self {
        self.min_rejections = rejections;
        self
    }

    /// Sets the share of requests that is sent to a backend that accepts nothing, 0 to 1. One a
    /// second is sent in any case. Defaults to 0.1.
    pub const fn share(mut self, share: f64) -> Self {
        self.share = share;
        self
    }

    /// Names the throttler in metrics and events, best after the backend. Defaults to `default`.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    pub(super) fn check(&self) -> Result<(), ThrottleConfigError> {
        if !(0.0..=1.0).contains(&self.share) {
            return Err(ThrottleConfigError {
                field: "share",
                value: self.share.to_string(),
                expected: "a share from 0 to 1",
            });
        }
        if self.min_rejections == 0 {
            return Err(ThrottleConfigError {
                field: "min_rejections",
                value: "0".to_owned(),
                expected: "at least 1",
            });
        }
        check_duration("patience", self.patience)
    }
}

impl Default for ThrottleConfig {
    fn default() -> Self {
        Self::new()
    }
}

pub(super) fn check_duration(
    field: &'static str,
    duration: Duration,
) -> Result<(), ThrottleConfigError> {
    if (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&duration) {
        return Ok(());
    }
    Err(ThrottleConfigError {
        field,
        value: format!("{duration:?}"),
        expected: "one second to one hour",
    })
}

/// A setting of a throttle or of a retry budget is out of its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThrottleConfigError {
    pub(super) field: &'static str,
    pub(super) value: String,
    pub(super) expected: &'static str,
}

impl ThrottleConfigError {
    /// Which setting.
    #[must_use]
    pub const fn field(&self) -> &'static str {
        self.field
    }
}

impl fmt::Display for ThrottleConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            field,
            value,
            expected,
        } = self;
        write!(f, "{field} {value} is out of range: expected {expected}")
    }
}

impl std::error::Error for ThrottleConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_out_of_range_is_refused_with_its_value() {
        let says = |config: ThrottleConfig| config.check().unwrap_err().to_string();
        assert_eq!(
            says(ThrottleConfig::new().share(f64::NAN)),
            "share NaN is out of range: expected a share from 0 to 1"
        );
        assert_eq!(
            says(ThrottleConfig::new().patience(Duration::ZERO)),
            "patience 0ns is out of range: expected one second to one hour"
        );
        assert_eq!(
            says(ThrottleConfig::new().min_rejections(0)),
            "min_rejections 0 is out of range: expected at least 1"
        );
        assert!(ThrottleConfig::new().check().is_ok());
    }
}
