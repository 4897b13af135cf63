use http::Response;
use proptest::prelude::*;

use super::*;

fn feedback(status: u16, headers: &[(&'static str, &str)]) -> Feedback {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    let (parts, ()) = response.body(()).unwrap().into_parts();
    Feedback::read(parts.status, &parts.headers)
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
    let told = |value| feedback(200, &[("ratelimit", value)]).requests;
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

#[test]
fn only_what_counts_requests_paces_requests() {
    let headers = [
        (
            "ratelimit-policy",
            "\"r\";q=100;w=60, \"mb\";q=10;w=60;qu=\"megabytes\"",
        ),
        ("ratelimit", "\"r\";r=90;t=60, \"mb\";r=0;t=60"),
    ];
    let told = feedback(200, &headers);
    assert_eq!(told.requests, Some((90, Duration::from_secs(60))));
    assert_eq!(told.cells, None);
}

#[test]
fn the_headers_of_vendors_are_read() {
    let openai = [
        ("x-ratelimit-limit-requests", "60"),
        ("x-ratelimit-remaining-requests", "59"),
        ("x-ratelimit-reset-requests", "1s"),
        ("x-ratelimit-remaining-tokens", "149984"),
        ("x-ratelimit-reset-tokens", "6m0.5s"),
    ];
    let told = feedback(200, &openai);
    assert_eq!(told.requests, Some((59, Duration::from_secs(1))));
    assert_eq!(told.cells, Some((149_984, Duration::from_millis(360_500))));
    let anthropic = [
        ("date", "Thu, 26 Nov 2026 20:30:00 GMT"),
        ("anthropic-ratelimit-requests-remaining", "0"),
        ("anthropic-ratelimit-requests-reset", "2026-11-26T20:30:30Z"),
        ("anthropic-ratelimit-tokens-remaining", "8000"),
        (
            "anthropic-ratelimit-tokens-reset",
            "2026-11-26T21:31:00+01:00",
        ),
    ];
    let told = feedback(200, &anthropic);
    assert_eq!(told.requests, Some((0, Duration::from_secs(30))));
    assert_eq!(told.cells, Some((8_000, Duration::from_secs(60))));
    let wait = |headers: &[(&'static str, &str)]| feedback(429, headers).pause;
    assert_eq!(
        wait(&[("retry-after", "2"), ("retry-after-ms", "1250")]),
        Some(Duration::from_millis(1_250))
    );
    assert_eq!(wait(&anthropic), Some(Duration::from_secs(30)));
    for nonsense in ["", "soon", "5x", "1.2.3s", "-3s", "1e400s"] {
        let headers = [
            ("x-ratelimit-remaining-tokens", "1"),
            ("x-ratelimit-reset-tokens", nonsense),
        ];
        assert_eq!(feedback(200, &headers), Feedback::default(), "{nonsense}");
    }
}

#[test]
fn days_are_counted_as_calendars_do() {
    let at = |text| {
        let since = rfc3339(text)?.duration_since(SystemTime::UNIX_EPOCH);
        Some(since.ok()?.as_secs())
    };
    assert_eq!(at("1970-01-01T00:00:00Z"), Some(0));
    assert_eq!(at("2000-02-29T12:00:00Z"), Some(951_825_600));
    assert_eq!(at("2026-11-26T20:30:00Z"), Some(1_795_725_000));
    assert_eq!(at("2026-13-26T20:30:00Z"), None);
    assert_eq!(at("yesterday"), None);
}

proptest! {
    #[test]
    fn nothing_that_upstream_says_panics(
        status in 200u16..600,
        retry_after in "[ -~]{0,40}",
        ratelimit in "[ -~]{0,80}",
        pushback in "[-0-9]{0,30}",
        reset in "[ -~]{0,30}",
    ) {
        feedback(status, &[
            ("retry-after", &retry_after),
            ("ratelimit", &ratelimit),
            ("grpc-status", "8"),
            ("grpc-retry-pushback-ms", &pushback),
            ("ratelimit-policy", &ratelimit),
            ("retry-after-ms", &reset),
            ("x-ratelimit-remaining-requests", "1"),
            ("x-ratelimit-reset-requests", &reset),
            ("anthropic-ratelimit-tokens-remaining", "1"),
            ("anthropic-ratelimit-tokens-reset", &reset),
        ]);
    }
}
