//! What a service reads from its configuration to build a pool with.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::text::{ParseSettingError, duration};
use crate::{Bounds, Mode};

/// What of a [`Builder`](crate::Builder) is a matter of configuration, as a value:
/// [`Builder::settings`](crate::Builder::settings) takes it. What is left out is as the builder has it.
///
/// It is text, too, for configuration files (feature `serde`) and the environment.
///
/// ```
/// use std::time::Duration;
/// use pool_autotune::{Mode, PoolSettings};
///
/// let settings: PoolSettings = "size 2..=50, wait 500ms, waiting 200, mode recommend".parse()?;
/// let same = PoolSettings::new()
///     .bounds("2..=50".parse()?)
///     .wait_timeout(Duration::from_millis(500))
///     .max_waiting(200)
///     .mode(Mode::Recommend);
/// assert_eq!(settings, same);
/// assert_eq!(settings.to_string().parse(), Ok(settings));
///
/// let wrong = "wait 500".parse::<PoolSettings>().unwrap_err();
/// assert_eq!(wrong.to_string(), "`wait 500`: expected a duration above 0, such as 250ms or 2s");
/// # Ok::<(), pool_autotune::ParseSettingError>(())
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[must_use]
pub struct PoolSettings {
    pub(crate) bounds: Option<Bounds>,
    pub(crate) wait_timeout: Option<Duration>,
    pub(crate) open_timeout: Option<Duration>,
    pub(crate) max_waiting: Option<usize>,
    pub(crate) mode: Option<Mode>,
}

impl PoolSettings {
    /// Sets nothing, to start from.
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`Builder::bounds`](crate::Builder::bounds); `size` in text.
    pub fn bounds(mut self, bounds: Bounds) -> Self {
        self.bounds = Some(bounds);
        self
    }

    /// As [`Builder::wait_timeout`](crate::Builder::wait_timeout); `wait` in text.
    pub fn wait_timeout(mut self, timeout: Duration) -> Self {
        self.wait_timeout = Some(timeout);
        self
    }

    /// As [`Builder::open_timeout`](crate::Builder::open_timeout); `open` in text.
    pub fn open_timeout(mut self, timeout: Duration) -> Self {
        self.open_timeout = Some(timeout);
        self
    }

    /// As [`Builder::max_waiting`](crate::Builder::max_waiting); `waiting` in text.
    pub fn max_waiting(mut self, checkouts: usize) -> Self {
        self.max_waiting = Some(checkouts);
        self
    }

    /// As [`Builder::mode`](crate::Builder::mode); `mode` in text.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = Some(mode);
        self
    }
}

impl FromStr for PoolSettings {
    type Err = ParseSettingError;

    fn from_str(text: &str) -> Result<Self, ParseSettingError> {
        let mut settings = Self::new();
        let mut seen = Vec::new();
        let parts = text.split(',').map(str::trim);
        for part in parts.filter(|part| !part.is_empty()) {
            let error = |expected| ParseSettingError::new(part, expected);
            let (name, value) = part.split_once(' ').ok_or_else(|| error(PARTS))?;
            let value = value.trim();
            if seen.contains(&name) {
                return Err(error("each setting once"));
            }
            seen.push(name);
            let time = || duration(value).ok_or_else(|| error(DURATION));
            settings = match name {
                "size" => settings.bounds(value.parse()?),
                "wait" => settings.wait_timeout(time()?),
                "open" => settings.open_timeout(time()?),
                "waiting" => {
                    let checkouts = value.parse();
                    settings.max_waiting(checkouts.map_err(|_| error("a number of checkouts"))?)
                }
                "mode" => settings.mode(value.parse()?),
                _ => return Err(error(PARTS)),
            };
        }
        Ok(settings)
    }
}

const PARTS: &str = "size MIN..=MAX, wait DURATION, open DURATION, waiting N or mode MODE";
const DURATION: &str = "a duration above 0, such as 250ms or 2s";

impl fmt::Display for PoolSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            self.bounds.map(|bounds| format!("size {bounds}")),
            self.wait_timeout.map(|wait| format!("wait {wait:?}")),
            self.open_timeout.map(|open| format!("open {open:?}")),
            self.max_waiting.map(|waiting| format!("waiting {waiting}")),
            self.mode.map(|mode| format!("mode {mode}")),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_value_and_what_was_expected() {
        for (text, expected) in [
            ("size 0..=4", "`0..=4`: expected MIN..=MAX with 1 <= MIN"),
            ("wait 0s", "`wait 0s`: expected a duration above 0"),
            (
                "open 3 weeks",
                "`open 3 weeks`: expected a duration above 0",
            ),
            ("waiting -1", "`waiting -1`: expected a number of checkouts"),
            ("mode off", "`off`: expected enforce or recommend"),
            ("speed 3", "`speed 3`: expected size MIN..=MAX, wait"),
            ("wait", "`wait`: expected size MIN..=MAX, wait"),
            ("wait 1s, wait 2s", "`wait 2s`: expected each setting once"),
        ] {
            let error = text.parse::<PoolSettings>().expect_err(text);
            assert!(error.to_string().starts_with(expected), "{error}");
        }
    }

    #[test]
    fn every_setting_is_read_and_written() {
        let text = "size 2..=50, wait 1.5ms, open 2s, waiting 0, mode enforce";
        let settings: PoolSettings = text.parse().expect("valid");
        assert_eq!(settings.to_string(), text);
        assert_eq!("".parse(), Ok(PoolSettings::new()));
    }
}
