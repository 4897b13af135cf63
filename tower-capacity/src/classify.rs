//! What a response says about capacity.

use http::{HeaderMap, StatusCode};

use crate::{Outcome, grpc::is_grpc};

/// Classifies a response by its status, as [`CapacityLayer`](crate::CapacityLayer) does unless told
/// otherwise.
///
/// | response | outcome |
/// |---|---|
/// | 5xx except 501 and 505 | [`Dropped`](Outcome::Dropped) |
/// | 408 | [`Dropped`](Outcome::Dropped): a timeout |
/// | other 4xx, 501, 505 | [`Ignored`](Outcome::Ignored): answered without the work |
/// | gRPC with status `DEADLINE_EXCEEDED`, `RESOURCE_EXHAUSTED`, `INTERNAL`, `UNAVAILABLE`, `DATA_LOSS`, `UNKNOWN` | [`Dropped`](Outcome::Dropped) |
/// | gRPC with another status except `OK` | [`Ignored`](Outcome::Ignored) |
/// | anything else | [`Success`](Outcome::Success) |
#[must_use]
pub fn by_status(status: StatusCode, headers: &HeaderMap) -> Outcome {
    if is_grpc(headers)
        && let Some(outcome) = by_grpc_status(headers)
    {
        return outcome;
    }
    match status {
        StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED => Outcome::Ignored,
        StatusCode::REQUEST_TIMEOUT => Outcome::Dropped,
        status if status.is_server_error() => Outcome::Dropped,
        status if status.is_client_error() => Outcome::Ignored,
        _ => Outcome::Success,
    }
}

/// Reads `grpc-status` from headers or trailers; `None` where there is none.
pub(crate) fn by_grpc_status(headers: &HeaderMap) -> Option<Outcome> {
    Some(match headers.get("grpc-status")?.as_bytes() {
        b"0" => Outcome::Success,
        // UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
        b"2" | b"4" | b"8" | b"13" | b"14" | b"15" => Outcome::Dropped,
        _ => Outcome::Ignored,
    })
}

#[cfg(test)]
mod tests {
    use http::response;

    use super::*;

    fn outcome(response: response::Builder) -> Outcome {
        let response = response.body(()).unwrap();
        by_status(response.status(), response.headers())
    }

    #[test]
    fn http_statuses_fall_into_three_classes() {
        for (status, expected) in [
            (200, Outcome::Success),
            (304, Outcome::Success),
            (404, Outcome::Ignored),
            (408, Outcome::Dropped),
            (429, Outcome::Ignored),
            (500, Outcome::Dropped),
            (501, Outcome::Ignored),
            (503, Outcome::Dropped),
        ] {
            assert_eq!(
                outcome(http::Response::builder().status(status)),
                expected,
                "{status}"
            );
        }
    }

    #[test]
    fn grpc_statuses_in_headers_decide_over_the_http_status() {
        for (status, expected) in [
            ("0", Outcome::Success),
            ("5", Outcome::Ignored),
            ("4", Outcome::Dropped),
            ("14", Outcome::Dropped),
        ] {
            let response = http::Response::builder()
                .header("content-type", "application/grpc+proto")
                .header("grpc-status", status);
            assert_eq!(outcome(response), expected, "grpc-status {status}");
        }
    }

    #[test]
    fn a_grpc_response_without_status_is_a_success_until_its_trailers() {
        let response = http::Response::builder().header("content-type", "application/grpc");
        assert_eq!(outcome(response), Outcome::Success);
    }
}
