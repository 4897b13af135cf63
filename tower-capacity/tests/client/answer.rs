//! What a client reads from a response.

use std::time::Duration;

use http::Response;
use tower_capacity::throttle::{Answer, RetryAdvice};

fn answer(status: u16, headers: &[(&'static str, &str)]) -> Answer {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    let response = response.body(()).unwrap();
    let answer = Answer::of(&response);
    assert_eq!(answer, Answer::of_parts(&response.into_parts().0));
    answer
}

fn after(millis: u64) -> Answer {
    Answer::Rejected(RetryAdvice::After(Duration::from_millis(millis)))
}

const UNTOLD: Answer = Answer::Rejected(RetryAdvice::Untold);
const NEVER: Answer = Answer::Rejected(RetryAdvice::Never);

#[test]
fn only_refusals_for_lack_of_capacity_are_rejections() {
    for status in [200, 304, 400, 404, 408, 500, 501] {
        assert_eq!(answer(status, &[("retry-after", "5")]), Answer::Accepted);
    }
    for status in [502, 503, 504] {
        assert_eq!(answer(status, &[]), UNTOLD, "{status}");
    }
    assert_eq!(answer(429, &[]), Answer::Limited(RetryAdvice::Untold));
}

#[test]
fn retry_after_is_read_in_seconds_and_as_a_date() {
    let told = |value| answer(503, &[("retry-after", value)]);
    assert_eq!(told("7"), after(7_000));
    assert_eq!(told(" 7 "), after(7_000));
    assert_eq!(told("0"), after(0));
    assert_eq!(told("-7"), UNTOLD);
    assert_eq!(told("soon"), UNTOLD);
    assert_eq!(told("60"), after(60_000));
    for too_long in ["61", "3600", "99999999999999999999999"] {
        assert_eq!(told(too_long), NEVER, "{too_long}");
    }
    // Without the server's own time the date is compared with ours.
    assert_eq!(told("Wed, 21 Oct 2015 07:28:00 GMT"), after(0));
    let date = ("date", "Wed, 21 Oct 2015 07:27:30 GMT");
    let until = ("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT");
    assert_eq!(answer(503, &[until, date]), after(30_000));
}

#[test]
fn grpc_pushback_is_in_milliseconds_and_no_number_means_never() {
    let told = |status, value| {
        let headers = [
            ("content-type", "application/grpc"),
            ("grpc-status", status),
            ("grpc-retry-pushback-ms", value),
        ];
        answer(200, &headers)
    };
    assert_eq!(told("8", "1500"), after(1_500));
    assert_eq!(told("14", "0"), after(0));
    assert_eq!(told("14", "-1"), NEVER);
    assert_eq!(told("14", "soon"), NEVER);
    assert_eq!(told("14", "99999999999"), NEVER);
    assert_eq!(told("0", "1500"), Answer::Accepted);
    assert_eq!(told("4", "1500"), Answer::Accepted);
}

#[test]
fn a_quota_in_the_details_of_a_grpc_status_is_the_callers_and_not_the_backends() {
    let details = |text: &str| {
        let headers = [
            ("content-type", "application/grpc"),
            ("grpc-status", "8"),
            ("grpc-status-details-bin", text),
        ];
        answer(200, &headers)
    };
    let limited = Answer::Limited(RetryAdvice::Untold);
    // "type.googleapis.com/google.rpc.QuotaFailure", at each offset of a group of three bytes.
    for text in [
        "dHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucnBjLlF1b3RhRmFpbHVyZQ==",
        "IHR5cGUuZ29vZ2xlYXBpcy5jb20vZ29vZ2xlLnJwYy5RdW90YUZhaWx1cmU",
        "ICB0eXBlLmdvb2dsZWFwaXMuY29tL2dvb2dsZS5ycGMuUXVvdGFGYWlsdXJl",
    ] {
        assert_eq!(details(text), limited, "{text}");
    }
    // "type.googleapis.com/google.rpc.RetryInfo", and nothing.
    let retry_info = "dHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucnBjLlJldHJ5SW5mbw==";
    assert_eq!(details(retry_info), UNTOLD);
    assert_eq!(details(""), UNTOLD);
}

#[test]
fn grpc_headers_without_a_status_are_an_acceptance() {
    let headers = [("content-type", "application/grpc+proto")];
    assert_eq!(answer(200, &headers), Answer::Accepted);
}
