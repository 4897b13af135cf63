use std::{fmt, time::Duration};

/// How a [`Throttler`](super::Throttler) starts out.
///
/// ```
/// use std::time::Duration;
/// use tower_capacity::throttle::{ThrottleConfig, Throttler};
///
/// // As in the book.
/// let config = ThrottleConfig::new()
///     .window(Duration::from_secs(120))
///     .padding(1.0)
///     .max_probability(1.0);
/// let throttler = Throttler::new(config)?;
/// # Ok::<(), tower_capacity::throttle::ThrottleConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct ThrottleConfig {
    pub(super) multiplier: f64,
    pub(super) window: Duration,
    pub(super) padding: f64,
    pub(super) max_probability: f64,
    pub(super) max_pause: Duration,
    pub(super) name: Box<str>,
}

impl ThrottleConfig {
    /// Starts from the defaults.
    pub fn new() -> Self {
        Self {
            multiplier: 2.0,
            window: Duration::from_secs(30),
            padding: 8.0,
            max_probability: 0.9,
            max_pause: Duration::from_secs(60),
            name: "default".into(),
        }
    }

    /// Sets how many requests are sent for each that is accepted, at least 1.
    ///
    /// Less wastes less of the backend, and reacts to fewer rejections. Defaults to 2 (*Site
    /// Reliability Engineering*, chapter 21: the client learns sooner that the backend is back).
    pub const fn multiplier(mut self, multiplier: f64) -> Self {
        self.multiplier = multiplier;
        self
    }

    /// Sets for how long a request counts, one second to one hour.
    ///
    /// Defaults to 30 seconds, as in Envoy's admission control and gRPC's lookup throttler. The
    /// book has two minutes, with which a client of 100 requests a second takes ten minutes to
    /// trust a backend that was gone for three; with these defaults it takes one (see
    /// [`AdaptiveThrottle`](super::AdaptiveThrottle)).
    pub const fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Sets what is added to the requests in the denominator, at least 1: the more, the less a few
    /// rejections mean.
    ///
    /// Defaults to 8, as in gRPC's lookup throttler. The book has 1, with which the first rejection
    /// of a client that has asked for nothing else refuses half of what comes next.
    pub const fn padding(mut self, requests: f64) -> Self {
        self.padding = requests;
        self
    }

    /// Sets the largest share of requests that is refused, 0 to 1.
    ///
    /// The rest is what finds out that the backend is back. Defaults to 0.9, as in failsafe-go
    /// (Envoy: 0.8, the book: 1).
    pub const fn max_probability(mut self, share: f64) -> Self {
        self.max_probability = share;
        self
    }

    /// Sets for how long a `Retry-After` or `grpc-retry-pushback-ms` is obeyed at most. Zero
    /// ignores them.
    ///
    /// Defaults to 60 seconds.
    pub const fn max_pause(mut self, pause: Duration) -> Self {
        self.max_pause = pause;
        self
    }

    /// Names the throttler in metrics and events, after the backend above all. Defaults to
    /// `default`.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    pub(super) fn check(&self) -> Result<(), ThrottleConfigError> {
        let error = |field, value, expected| {
            Err(ThrottleConfigError {
                field,
                value,
                expected,
            })
        };
        if !(self.multiplier.is_finite() && self.multiplier >= 1.0) {
            let value = self.multiplier.to_string();
            return error("multiplier", value, "a finite number of at least 1");
        }
        if !(self.padding.is_finite() && self.padding >= 1.0) {
            let value = self.padding.to_string();
            return error("padding", value, "a finite number of at least 1");
        }
        if !(0.0..=1.0).contains(&self.max_probability) {
            let value = self.max_probability.to_string();
            return error("max_probability", value, "a share from 0 to 1");
        }
        check_window(self.window)
    }
}

impl Default for ThrottleConfig {
    fn default() -> Self {
        Self::new()
    }
}

pub(super) fn check_window(window: Duration) -> Result<(), ThrottleConfigError> {
    if (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&window) {
        return Ok(());
    }
    Err(ThrottleConfigError {
        field: "window",
        value: format!("{window:?}"),
        expected: "one second to one hour",
    })
}

/// A throttle or a retry budget that cannot work.
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
        write!(f, "{field} {value} is not possible: expected {expected}")
    }
}

impl std::error::Error for ThrottleConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_with_its_value() {
        let says = |config: ThrottleConfig| config.check().unwrap_err().to_string();
        assert_eq!(
            says(ThrottleConfig::new().multiplier(0.5)),
            "multiplier 0.5 is not possible: expected a finite number of at least 1"
        );
        assert_eq!(
            says(ThrottleConfig::new().max_probability(f64::NAN)),
            "max_probability NaN is not possible: expected a share from 0 to 1"
        );
        assert_eq!(
            says(ThrottleConfig::new().window(Duration::ZERO)),
            "window 0ns is not possible: expected one second to one hour"
        );
        assert_eq!(says(ThrottleConfig::new().padding(f64::INFINITY)).len(), 67);
        assert!(ThrottleConfig::new().check().is_ok());
    }
}
