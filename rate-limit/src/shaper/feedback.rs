//! What a response says about the next request.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header::AGE};
use sfv::{BareItem, Item, KeyRef, List, ListEntry, Parser};

use super::retry_after::{pushback, retry_after};

/// How upstream wants to be treated.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Feedback {
    /// Send nothing for this time.
    pub(crate) pause: Option<Duration>,
    /// Send no more than this many requests in that time.
    pub(crate) requests: Option<(u64, Duration)>,
    /// Send no more than what costs this many cells in that time.
    pub(crate) cells: Option<(u64, Duration)>,
}

impl Feedback {
    /// Reads a response. What cannot be read is ignored, as the drafts demand of clients.
    pub(crate) fn read(status: StatusCode, headers: &HeaderMap) -> Self {
        let grpc_exhausted = text(headers, "grpc-status").is_some_and(|status| status == "8");
        let refused = grpc_exhausted
            || matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
            );
        // A cached response is about the past (draft -11 §5).
        let (requests, cells) = if headers.contains_key(AGE) {
            (None, None)
        } else {
            let requests = ratelimit(headers, "requests");
            (
                requests.or_else(|| vendor(headers, "requests")),
                ratelimit(headers, "tokens").or_else(|| vendor(headers, "tokens")),
            )
        };
        if !refused {
            return Self {
                pause: None,
                requests,
                cells,
            };
        }
        let used_up = |allowance: Option<(u64, Duration)>| allowance.filter(|(left, _)| *left == 0);
        let pause = retry_after_millis(headers)
            .or_else(|| retry_after(headers))
            .or_else(|| pushback(headers).flatten())
            .or_else(|| {
                used_up(requests)
                    .or_else(|| used_up(cells))
                    .or(requests)
                    .map(|(_, within)| within)
            })
            .unwrap_or(UNTOLD);
        Self {
            pause: Some(pause),
            requests: None,
            cells: None,
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `Retry-After` in milliseconds, as OpenAI and Azure send it beside.
fn retry_after_millis(headers: &HeaderMap) -> Option<Duration> {
    let millis: f64 = text(headers, "retry-after-ms")?.trim().parse().ok()?;
    Duration::try_from_secs_f64(millis / 1_000.0).ok()
}

/// The tightest of the policies in `ratelimit` that count `unit`: `r` of them within `t` seconds.
/// Which unit a policy counts is in `ratelimit-policy`; requests, unless it says otherwise.
fn ratelimit(headers: &HeaderMap, unit: &str) -> Option<(u64, Duration)> {
    let mut tightest: Option<(u64, Duration)> = None;
    let units = units(headers);
    for item in items(headers, "ratelimit")? {
        let counts = units.iter().find(|(name, _)| *name == item.bare_item);
        if counts.map_or("requests", |(_, unit)| unit) != unit {
            continue;
        }
        let number = |key: &str| match item.params.get(KeyRef::from_str(key).ok()?) {
            Some(BareItem::Integer(number)) => u64::try_from(i64::from(*number)).ok(),
            _ => None,
        };
        let remaining = number("r")?;
        // Without a window there is nothing to pace by.
        let Some(within) = number("t") else {
            continue;
        };
        // Fewest per second first; nothing left for longest before nothing left for less.
        let slower = tightest.is_none_or(|(r, t)| {
            let (a, b) = (u128::from(remaining), u128::from(r));
            let (a, b) = (a * u128::from(t.as_secs()), b * u128::from(within));
            a < b || (a == b && within > t.as_secs())
        });
        if slower {
            tightest = Some((remaining, Duration::from_secs(within)));
        }
    }
    tightest
}

/// The policies that count something other than requests.
fn units(headers: &HeaderMap) -> Vec<(BareItem, String)> {
    let unit = |item: Item| match item.params.get(KeyRef::from_str("qu").ok()?) {
        Some(BareItem::String(unit)) => Some((item.bare_item, unit.as_str().to_owned())),
        _ => None,
    };
    let items = items(headers, "ratelimit-policy").unwrap_or_default();
    items.into_iter().filter_map(unit).collect()
}

/// The items of a structured field; `None` if it is invalid or too long.
fn items(headers: &HeaderMap, field: &str) -> Option<Vec<Item>> {
    let mut items = Vec::new();
    for line in headers.get_all(field) {
        if line.len() > MAX_FIELD {
            return None;
        }
        let list: List = Parser::new(line.as_bytes()).parse().ok()?;
        for entry in list {
            let ListEntry::Item(item) = entry else {
                return None;
            };
            items.push(item);
        }
    }
    Some(items)
}

/// What is left of `unit`, and until when, by the headers of OpenAI (and those that copy it) or
/// Anthropic.
fn vendor(headers: &HeaderMap, unit: &str) -> Option<(u64, Duration)> {
    let of = |name: String| text(headers, &name).map(str::trim);
    let left = |name| of(name)?.parse::<u64>().ok();
    if let Some(left) = left(format!("x-ratelimit-remaining-{unit}")) {
        let reset = of(format!("x-ratelimit-reset-{unit}"))?;
        return Some((left, go_duration(reset)?));
    }
    let left = left(format!("anthropic-ratelimit-{unit}-remaining"))?;
    let reset = rfc3339(of(format!("anthropic-ratelimit-{unit}-reset"))?)?;
    let date = text(headers, "date").and_then(|date| httpdate::parse_http_date(date).ok());
    let now = date.unwrap_or_else(SystemTime::now);
    Some((left, reset.duration_since(now).unwrap_or_default()))
}

/// A duration such as `6m0s`, `1.5s`, `20ms` or a number of seconds.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, unit) = rest.split_at(digits.unwrap_or(rest.len()));
        let number: f64 = number.parse().ok()?;
        let letters = unit
            .find(|c: char| !c.is_alphabetic())
            .unwrap_or(unit.len());
        let (unit, more) = unit.split_at(letters);
        total += number
            * match unit {
                "d" => 86_400.0,
                "h" => 3_600.0,
                "m" => 60.0,
                "s" | "" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = more;
    }
    (!text.is_empty()).then_some(())?;
    Duration::try_from_secs_f64(total).ok()
}

/// A time such as `2026-11-26T20:30:00Z`, with an offset or a fraction of a second.
fn rfc3339(text: &str) -> Option<SystemTime> {
    let (date, time) = text.split_once(['T', 't'])?;
    let mut date = date.splitn(3, '-').map(|field| field.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, offset) = match time.find(['Z', 'z', '+', '-']) {
        Some(at) => time.split_at(at),
        None => return None,
    };
    let mut time = time.splitn(3, ':');
    let hours: i64 = time.next()?.parse().ok()?;
    let minutes: i64 = time.next()?.parse().ok()?;
    let seconds: f64 = time.next()?.parse().ok()?;
    let offset = match offset.split_once(':') {
        Some((hours, minutes)) => {
            let sign = if hours.starts_with('-') { -1 } else { 1 };
            let hours: i64 = hours.parse().ok()?;
            hours * 3_600 + sign * minutes.parse::<i64>().ok()? * 60
        }
        None => 0,
    };
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since 1970 in the proleptic Gregorian calendar, counting years from March.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 719_469;
    let whole = days * 86_400 + hours * 3_600 + minutes * 60 - offset;
    let since = Duration::try_from_secs_f64(whole as f64 + seconds).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(since)
}

/// The pause after a refusal that names no wait.
const UNTOLD: Duration = Duration::from_secs(1);

/// Longer fields are not worth reading.
const MAX_FIELD: usize = 4_096;

#[cfg(test)]
#[path = "../../tests/inside/feedback.rs"]
mod tests;
