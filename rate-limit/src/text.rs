//! Quotas, policies and modes as text, for configuration files and environment variables.

use std::{fmt, str::FromStr, sync::Mutex, time::Duration};

use crate::{Mode, Quota, Unit, policy::check_name, sync::lock};

/// Reads what [`Quota`] displays, and shorter forms of it: `100 requests per 60s, burst 20`,
/// `100 per minute`, `100/min burst 20`, `1048576 content-bytes / s`, `5 per 15 minutes`. A unit of
/// the service's own is in quotes, so that a misspelt one is none: `10_000 'tokens' per minute`.
///
/// ```
/// use rate_limit::{MINUTE, Quota};
///
/// let quota: Quota = "100 per minute, burst 20".parse()?;
/// assert_eq!(quota, Quota::count(100).per(MINUTE).burst(20));
/// assert_eq!(quota.to_string().parse(), Ok(quota));
/// # Ok::<(), rate_limit::ParseSettingsError>(())
/// ```
///
/// Whether the quota can be kept is checked when a limiter is built, or by [`Quota::validate`].
impl FromStr for Quota {
    type Err = ParseSettingsError;

    fn from_str(text: &str) -> Result<Self, ParseSettingsError> {
        let error = |expected| ParseSettingsError {
            what: "quota",
            text: text.to_owned(),
            expected,
        };
        // A slash is a word of its own; a comma is none.
        let spaced = text.replace('/', " / ").replace(',', " ");
        let mut words = spaced.split_ascii_whitespace().peekable();
        let count = words.next().and_then(number);
        let count = count.ok_or_else(|| error("a count, as in \"100 per minute\""))?;
        let unit = match words.next_if(|word| !matches!(*word, "per" | "/")) {
            None | Some("request" | "requests") => Unit::Requests,
            Some("content-bytes" | "bytes") => Unit::ContentBytes,
            Some(word) => own_unit(word).ok_or_else(|| {
                error("requests, content-bytes or a name in quotes after the count")
            })?,
        };
        if !matches!(words.next(), Some("per" | "/")) {
            return Err(error("\"per\" or \"/\" before the period"));
        }
        let period = words.next().and_then(|first| {
            let (digits, name) = first.split_at(
                first
                    .find(|c: char| !c.is_ascii_digit() && c != '.')
                    .unwrap_or(first.len()),
            );
            let name = if name.is_empty() { words.next()? } else { name };
            let times = if digits.is_empty() {
                1.0
            } else {
                digits.parse::<f64>().ok()?
            };
            Duration::try_from_secs_f64(times * seconds(name)?).ok()
        });
        let period = period.ok_or_else(|| {
            error("a period such as \"second\", \"60s\", \"15 minutes\", \"hour\" or \"day\"")
        })?;
        let quota = Self::count(count).per(period).unit(unit);
        match (words.next(), words.next().and_then(number), words.next()) {
            (None, ..) => Ok(quota),
            (Some("burst"), Some(burst), None) => Ok(quota.burst(burst)),
            _ => Err(error("nothing or \"burst\" and a number at the end")),
        }
    }
}

/// The unit in quotes. Units are `'static`, so each name is kept once for as long as the program
/// runs; there may not be more of them than any configuration needs.
fn own_unit(word: &str) -> Option<Unit> {
    static NAMES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
    let name = word.strip_prefix('\'')?.strip_suffix('\'')?;
    check_name(name).ok()?;
    let mut names = lock(&NAMES);
    if let Some(known) = names.iter().find(|known| **known == name) {
        return Some(Unit::Custom(known));
    }
    if names.len() == MAX_UNITS {
        return None;
    }
    let name: &'static str = Box::leak(name.into());
    names.push(name);
    Some(Unit::Custom(name))
}

const MAX_UNITS: usize = 1_000;

fn number(word: &str) -> Option<u64> {
    let digits = word.replace('_', "");
    digits.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
    digits.parse().ok()
}

fn seconds(name: &str) -> Option<f64> {
    Some(match name {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" | "millisecond" | "milliseconds" => 1e-3,
        "s" | "sec" | "second" | "seconds" => 1.0,
        "m" | "min" | "minute" | "minutes" => 60.0,
        "h" | "hour" | "hours" => 3_600.0,
        "d" | "day" | "days" => 86_400.0,
        _ => return None,
    })
}

/// Reads `enforce`, `shadow` or `off`.
impl FromStr for Mode {
    type Err = ParseSettingsError;

    fn from_str(text: &str) -> Result<Self, ParseSettingsError> {
        [Self::Enforce, Self::Shadow, Self::Off]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| ParseSettingsError {
                what: "mode",
                text: text.to_owned(),
                expected: "enforce, shadow or off",
            })
    }
}

/// Text that is neither a [`Quota`] nor a [`Mode`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ParseSettingsError {
    what: &'static str,
    text: String,
    expected: &'static str,
}

impl fmt::Display for ParseSettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:?}, expected {}",
            self.what, self.text, self.expected
        )
    }
}

impl std::error::Error for ParseSettingsError {}

#[cfg(feature = "serde")]
mod with_serde {
    use std::{borrow::Cow, sync::Arc};

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use crate::{Mode, Policy, Quota};

    /// As text, see the implementation of `FromStr`. One that cannot be kept is refused.
    #[cfg_attr(docsrs, doc(cfg(feature = "serde")))]
    impl<'de> Deserialize<'de> for Quota {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let text = Cow::<'de, str>::deserialize(deserializer)?;
            let quota: Self = text.parse().map_err(D::Error::custom)?;
            quota.validate().map_err(D::Error::custom)?;
            Ok(quota)
        }
    }

    /// As text.
    #[cfg_attr(docsrs, doc(cfg(feature = "serde")))]
    impl Serialize for Quota {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }

    /// As text.
    #[cfg_attr(docsrs, doc(cfg(feature = "serde")))]
    impl<'de> Deserialize<'de> for Mode {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let text = Cow::<'de, str>::deserialize(deserializer)?;
            text.parse().map_err(D::Error::custom)
        }
    }

    /// As text.
    #[cfg_attr(docsrs, doc(cfg(feature = "serde")))]
    impl Serialize for Mode {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }

    /// From `name`, `quota` and `shadow`, which is `false` if it is missing.
    #[cfg_attr(docsrs, doc(cfg(feature = "serde")))]
    impl<'de> Deserialize<'de> for Policy {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            #[derive(Deserialize)]
            #[serde(deny_unknown_fields, rename = "Policy")]
            struct Fields {
                name: String,
                quota: Quota,
                #[serde(default)]
                shadow: bool,
            }
            let Fields {
                name,
                quota,
                shadow,
            } = Fields::deserialize(deserializer)?;
            crate::policy::check_name(&name).map_err(D::Error::custom)?;
            Ok(Self::new(Arc::<str>::from(name), quota).shadow(shadow))
        }
    }
}
