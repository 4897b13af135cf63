//! Settings as text, for configuration files and environment variables.

use std::{error, fmt, ops::RangeInclusive, str::FromStr, time::Duration};

use crate::{LimiterSettings, Mode, gate::Gate};

/// Reads `enforce`, `shadow` or `off`.
impl FromStr for Mode {
    type Err = ParseSettingsError;

    fn from_str(text: &str) -> Result<Self, ParseSettingsError> {
        [Self::Enforce, Self::Shadow, Self::Off]
            .into_iter()
            .find(|mode| mode.to_string() == text)
            .ok_or_else(|| ParseSettingsError::new(text, "enforce, shadow or off"))
    }
}

/// Reads what [`LimiterSettings`] displays, in any order; what is left out is as by default.
///
/// ```
/// use std::time::Duration;
/// use tower_capacity::{LimiterSettings, Mode};
///
/// let settings: LimiterSettings = "limit 4..=200, queue 50, wait 250ms, mode shadow".parse()?;
/// let same = LimiterSettings::new()
///     .bounds(4..=200)
///     .max_queue(Some(50))
///     .max_wait(Duration::from_millis(250))
///     .mode(Mode::Shadow);
/// assert_eq!(settings, same);
/// assert_eq!(settings.to_string().parse(), Ok(settings));
///
/// let wrong = "wait 250".parse::<LimiterSettings>().unwrap_err();
/// assert_eq!(wrong.to_string(), "`wait 250`: expected a duration above 0, such as 250ms or 2s");
/// # Ok::<(), tower_capacity::ParseSettingsError>(())
/// ```
///
/// [`codel`](LimiterSettings::codel) has no text.
impl FromStr for LimiterSettings {
    type Err = ParseSettingsError;

    fn from_str(text: &str) -> Result<Self, ParseSettingsError> {
        let mut settings = Self::new();
        let mut seen = Vec::new();
        let parts = text.split(',').map(str::trim);
        for part in parts.filter(|part| !part.is_empty()) {
            let error = |expected: &str| ParseSettingsError::new(part, expected);
            let (name, value) = part.split_once(' ').ok_or_else(|| error(PARTS))?;
            let value = value.trim();
            if seen.contains(&name) {
                return Err(error("each setting once"));
            }
            seen.push(name);
            settings = match name {
                "limit" => settings.bounds(bounds(value).ok_or_else(|| {
                    let most = Gate::MAX_LIMIT;
                    error(&format!("MIN..=MAX with 1 <= MIN <= MAX <= {most}"))
                })?),
                "queue" => {
                    let requests = value.parse();
                    let requests = requests.map_err(|_| error("a number of requests"))?;
                    settings.max_queue(Some(requests))
                }
                "wait" => settings.max_wait(
                    duration(value)
                        .ok_or_else(|| error("a duration above 0, such as 250ms or 2s"))?,
                ),
                "mode" => settings.mode(value.parse()?),
                _ => return Err(error(PARTS)),
            };
        }
        Ok(settings)
    }
}

const PARTS: &str = "limit MIN..=MAX, queue N, wait DURATION or mode MODE";

fn bounds(text: &str) -> Option<RangeInclusive<usize>> {
    let (min, max) = text.split_once("..=")?;
    let (min, max) = (min.parse().ok()?, max.parse().ok()?);
    (1 <= min && min <= max && max <= Gate::MAX_LIMIT).then_some(min..=max)
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(digits);
    let seconds = match unit.trim() {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return None,
    };
    let duration = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
    (!duration.is_zero()).then_some(duration)
}

impl fmt::Display for LimiterSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "limit {}..={}", self.bounds.start(), self.bounds.end())?;
        if let Some(queue) = self.max_queue {
            write!(f, ", queue {queue}")?;
        }
        write!(f, ", wait {:?}, mode {}", self.max_wait, self.mode)
    }
}

/// Text that is no [`LimiterSettings`] or [`Mode`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseSettingsError {
    part: Box<str>,
    expected: Box<str>,
}

impl ParseSettingsError {
    fn new(part: &str, expected: &str) -> Self {
        Self {
            part: part.into(),
            expected: expected.into(),
        }
    }
}

impl fmt::Display for ParseSettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: expected {}", self.part, self.expected)
    }
}

impl error::Error for ParseSettingsError {}

#[cfg(feature = "serde")]
mod with_serde {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use super::{LimiterSettings, Mode};

    macro_rules! as_text {
        ($type:ty) => {
            /// As text.
            #[cfg_attr(docsrs, doc(cfg(feature = "serde")))]
            impl Serialize for $type {
                fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                    to.collect_str(self)
                }
            }

            /// From text.
            #[cfg_attr(docsrs, doc(cfg(feature = "serde")))]
            impl<'de> Deserialize<'de> for $type {
                fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                    let text = String::deserialize(from)?;
                    text.parse().map_err(D::Error::custom)
                }
            }
        };
    }

    as_text!(LimiterSettings);
    as_text!(Mode);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_value_and_what_was_expected() {
        for (text, expected) in [
            (
                "limit 0..=4",
                "`limit 0..=4`: expected MIN..=MAX with 1 <= MIN <= MAX <= ",
            ),
            ("limit 9..=4", "`limit 9..=4`: expected MIN..=MAX"),
            ("queue -1", "`queue -1`: expected a number of requests"),
            ("wait 0ms", "`wait 0ms`: expected a duration above 0"),
            (
                "wait 3 weeks",
                "`wait 3 weeks`: expected a duration above 0",
            ),
            ("mode loud", "`loud`: expected enforce, shadow or off"),
            ("speed 3", "`speed 3`: expected limit MIN..=MAX, queue N"),
            ("limit", "`limit`: expected limit MIN..=MAX, queue N"),
            ("queue 1, queue 2", "`queue 2`: expected each setting once"),
        ] {
            let error = text.parse::<LimiterSettings>().expect_err(text);
            assert!(error.to_string().starts_with(expected), "{error}");
        }
    }

    #[test]
    fn what_is_left_out_is_as_by_default() {
        assert_eq!("".parse(), Ok(LimiterSettings::new()));
        let settings = LimiterSettings::new().max_wait(Duration::from_micros(1_500));
        assert_eq!("wait 1.5 ms".parse(), Ok(settings.clone()));
        assert_eq!(settings.to_string().parse(), Ok(settings));
    }

    #[cfg(feature = "serde")]
    #[test]
    fn configuration_is_read_and_written_as_text() {
        let text = "\"limit 4..=200, wait 250ms, mode off\"";
        let settings: LimiterSettings = serde_json::from_str(text).expect("valid");
        assert_eq!(serde_json::to_string(&settings).expect("text"), text);
        let error = serde_json::from_str::<Mode>("\"on\"").expect_err("no mode");
        assert!(error.to_string().contains("expected enforce"), "{error}");
    }
}
