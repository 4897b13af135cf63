//! Settings as text, for configuration files and environment variables.

use std::error::Error;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::{Bounds, Mode};

/// Reads `enforce` or `recommend`.
impl FromStr for Mode {
    type Err = ParseSettingError;

    fn from_str(text: &str) -> Result<Self, ParseSettingError> {
        [Self::Enforce, Self::Recommend]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| ParseSettingError::new(text, "enforce or recommend"))
    }
}

/// Reads `2..=50`.
///
/// ```
/// use pool_autotune::{Bounds, Mode};
///
/// let bounds: Bounds = "2..=50".parse()?;
/// assert_eq!((bounds.min(), bounds.max()), (2, 50));
/// assert_eq!(bounds.to_string(), "2..=50");
/// assert_eq!("recommend".parse(), Ok(Mode::Recommend));
///
/// let wrong = "9..=4".parse::<Bounds>().unwrap_err();
/// assert_eq!(wrong.to_string(), "`9..=4`: expected MIN..=MAX with 1 <= MIN <= MAX");
/// # Ok::<(), pool_autotune::ParseSettingError>(())
/// ```
impl FromStr for Bounds {
    type Err = ParseSettingError;

    fn from_str(text: &str) -> Result<Self, ParseSettingError> {
        let parsed = text.split_once("..=").and_then(|(min, max)| {
            let (min, max) = (min.trim().parse().ok()?, max.trim().parse().ok()?);
            Self::new(min..=max).ok()
        });
        parsed.ok_or_else(|| ParseSettingError::new(text, "MIN..=MAX with 1 <= MIN <= MAX"))
    }
}

/// Reads `250ms`; `None` if it is no duration above zero.
pub(crate) fn duration(text: &str) -> Option<Duration> {
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

/// Text that is no [`PoolSettings`](crate::PoolSettings), [`Bounds`] or [`Mode`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ParseSettingError {
    text: Box<str>,
    expected: &'static str,
}

impl ParseSettingError {
    pub(crate) fn new(text: &str, expected: &'static str) -> Self {
        Self {
            text: text.into(),
            expected,
        }
    }
}

impl fmt::Display for ParseSettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: expected {}", self.text, self.expected)
    }
}

impl Error for ParseSettingError {}

#[cfg(feature = "serde")]
mod with_serde {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use super::{Bounds, Mode};
    use crate::PoolSettings;

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

    as_text!(Bounds);
    as_text!(Mode);
    as_text!(PoolSettings);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_value_and_what_was_expected() {
        for text in ["0..=4", "4", "2..4", "many..=4", "-1..=4"] {
            let error = text.parse::<Bounds>().expect_err(text).to_string();
            assert_eq!(
                error,
                format!("`{text}`: expected MIN..=MAX with 1 <= MIN <= MAX")
            );
        }
        let error = "off".parse::<Mode>().expect_err("no mode").to_string();
        assert_eq!(error, "`off`: expected enforce or recommend");
    }

    #[cfg(all(feature = "json", feature = "serde"))]
    #[test]
    fn configuration_is_read_and_written_as_text() {
        let bounds: Bounds = serde_json::from_str("\"2..=50\"").expect("valid");
        assert_eq!(serde_json::to_string(&bounds).expect("text"), "\"2..=50\"");
        let mode = serde_json::from_str::<Mode>("\"recommend\"").expect("valid");
        assert_eq!(mode, Mode::Recommend);
        let text = "\"size 2..=50, wait 250ms\"";
        let settings: crate::PoolSettings = serde_json::from_str(text).expect("valid");
        assert_eq!(serde_json::to_string(&settings).expect("text"), text);
    }
}
