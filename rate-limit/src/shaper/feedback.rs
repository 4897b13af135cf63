//! What a response says about the next request.

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap, StatusCode,
    header::{AGE, DATE, RETRY_AFTER},
};
use sfv::{BareItem, KeyRef, List, ListEntry, Parser};

use crate::ResponseHead;

/// How upstream wants to be treated.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Feedback {
    /// Leave it alone for so long.
    pub(crate) pause: Option<Duration>,
    /// Send no more than so many in that time.
    pub(crate) allowance: Option<(u64, Duration)>,
}

impl Feedback {
    /// Reads a response. What cannot be read is ignored, as the drafts demand of clients.
    pub(crate) fn of(response: &ResponseHead<'_>) -> Self {
        let headers = response.headers();
        let grpc_exhausted = text(headers, "grpc-status").is_some_and(|status| status == "8");
        let refused = grpc_exhausted
            || matches!(
                response.status(),
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
            );
        // A cached response tells of the past (draft -11 §5).
        let allowance = if headers.contains_key(AGE) {
            None
        } else {
            allowance(headers)
        };
        if !refused {
            return Self {
                pause: None,
                allowance,
            };
        }
        let pause = retry_after(headers)
            .or_else(|| pushback(headers))
            .or_else(|| allowance.map(|(_, within)| within))
            .unwrap_or(UNTOLD);
        Self {
            pause: Some(pause),
            allowance: None,
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Seconds, or a date (RFC 9110 §10.2.3). A date is compared with the server's own clock, if it
/// says what time it has.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Too large a number is still a very long time.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    let date = headers.get(DATE).and_then(|date| date.to_str().ok());
    let now = date.and_then(|date| httpdate::parse_http_date(date).ok());
    Some(
        at.duration_since(now.unwrap_or_else(SystemTime::now))
            .unwrap_or_default(),
    )
}

/// gRFC A6. A negative or unreadable number says not to retry *this* request, and nothing about
/// others.
fn pushback(headers: &HeaderMap) -> Option<Duration> {
    let millis = text(headers, "grpc-retry-pushback-ms")?.parse().ok()?;
    Some(Duration::from_millis(millis))
}

/// The tightest of the policies in `ratelimit`: `r` requests within `t` seconds.
fn allowance(headers: &HeaderMap) -> Option<(u64, Duration)> {
    let mut tightest: Option<(u64, Duration)> = None;
    for line in headers.get_all("ratelimit") {
        if line.len() > MAX_FIELD {
            return None;
        }
        let list: List = Parser::new(line.as_bytes()).parse().ok()?;
        for entry in list {
            let ListEntry::Item(item) = entry else {
                return None;
            };
            let number = |key: &str| match item.params.get(KeyRef::from_str(key).ok()?) {
                Some(BareItem::Integer(number)) => u64::try_from(i64::from(*number)).ok(),
                _ => None,
            };
            let remaining = number("r")?;
            // Without a window there is nothing to pace by.
            let Some(within) = number("t") else {
                continue;
            };
            let found = (remaining, Duration::from_secs(within));
            // Fewest per second first; nothing left for longest before nothing left for less.
            let slower = tightest.is_none_or(|(r, t)| {
                let (a, b) = (u128::from(remaining), u128::from(r));
                let (a, b) = (a * u128::from(t.as_secs()), b * u128::from(within));
                a < b || (a == b && within > t.as_secs())
            });
            if slower {
                tightest = Some(found);
            }
        }
    }
    tightest
}

/// How long to leave alone whoever refuses without saying for how long.
const UNTOLD: Duration = Duration::from_secs(1);

/// Longer fields are not worth reading.
const MAX_FIELD: usize = 4_096;

#[cfg(test)]
mod tests {
    use http::Response;
    use proptest::prelude::*;

    use super::*;

    fn feedback(status: u16, headers: &[(&'static str, &str)]) -> Feedback {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let (parts, ()) = response.body(()).unwrap().into_parts();
        Feedback::of(&ResponseHead::new(&parts))
    }

    fn pause(headers: &[(&'static str, &str)]) -> u64 {
        feedback(429, headers).pause.unwrap().as_secs()
    }

    #[test]
    fn refusals_pause_for_as_long_as_they_say() {
        assert_eq!(pause(&[("retry-after", "7")]), 7);
        assert_eq!(pause(&[("retry-after", " 7 ")]), 7);
        assert_eq!(pause(&[("retry-after", "0")]), 0);
        assert_eq!(
            pause(&[("retry-after", "99999999999999999999999")]),
            u64::MAX
        );
        assert_eq!(pause(&[("retry-after", "-7")]), 1);
        assert_eq!(pause(&[("retry-after", "soon")]), 1);
        assert_eq!(pause(&[]), 1);
        assert_eq!(
            feedback(503, &[("retry-after", "7")]).pause,
            Some(Duration::from_secs(7))
        );
        assert_eq!(feedback(500, &[("retry-after", "7")]).pause, None);
        assert_eq!(feedback(200, &[("retry-after", "7")]).pause, None);
    }

    #[test]
    fn dates_are_read_by_the_servers_clock() {
        let date = ("date", "Wed, 21 Oct 2015 07:27:30 GMT");
        assert_eq!(
            pause(&[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"), date]),
            30
        );
        assert_eq!(
            pause(&[("retry-after", "Wed, 21 Oct 2015 07:27:00 GMT"), date]),
            0
        );
        assert_eq!(
            pause(&[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")]),
            0
        );
    }

    #[test]
    fn grpc_pushback_is_in_milliseconds() {
        let exhausted = |value| {
            feedback(
                200,
                &[("grpc-status", "8"), ("grpc-retry-pushback-ms", value)],
            )
            .pause
        };
        assert_eq!(exhausted("1500"), Some(Duration::from_millis(1_500)));
        assert_eq!(exhausted("-1"), Some(Duration::from_secs(1)));
        assert_eq!(feedback(200, &[("grpc-status", "5")]).pause, None);
    }

    #[test]
    fn ratelimit_paces_and_the_tightest_policy_wins() {
        let told = |value| feedback(200, &[("ratelimit", value)]).allowance;
        let within = |r, t| Some((r, Duration::from_secs(t)));
        assert_eq!(told("\"default\";r=5;t=10"), within(5, 10));
        assert_eq!(told("\"a\";r=50;t=10, \"b\";r=100;t=60"), within(100, 60));
        assert_eq!(told("\"a\";r=0;t=5, \"b\";r=0;t=60"), within(0, 60));
        assert_eq!(told("\"a\";r=5"), None);
        assert_eq!(told("\"a\";t=5"), None);
        assert_eq!(told("\"a\";r=-5;t=1"), None);
        assert_eq!(told("\"a\";r=5;t=1, ("), None);
        assert_eq!(told("limit=5, remaining=2, reset=1"), None);
        let cached = feedback(200, &[("ratelimit", "\"a\";r=0;t=9"), ("age", "30")]);
        assert_eq!(cached, Feedback::default());
    }

    #[test]
    fn retry_after_wins_over_ratelimit() {
        let headers = [("retry-after", "3"), ("ratelimit", "\"a\";r=0;t=9")];
        assert_eq!(pause(&headers), 3);
        assert_eq!(pause(&headers[1..]), 9);
    }

    proptest! {
        #[test]
        fn nothing_that_upstream_says_panics(
            status in 200u16..600,
            retry_after in "[ -~]{0,40}",
            ratelimit in "[ -~]{0,80}",
            pushback in "[-0-9]{0,30}",
        ) {
            feedback(status, &[
                ("retry-after", &retry_after),
                ("ratelimit", &ratelimit),
                ("grpc-status", "8"),
                ("grpc-retry-pushback-ms", &pushback),
            ]);
        }
    }
}
