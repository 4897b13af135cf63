//! Refusals over gRPC: trailers-only, so that every client sees a status and not an HTTP error.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};

use super::{Limited, Reason, digits};
use crate::{Quota, RateLimitBody};

/// Refuses in the emptied header map of the request, with the request's content type.
pub(super) fn answer<B>(
    limited: &Limited<'_>,
    mut headers: HeaderMap,
    with_details: bool,
) -> Response<RateLimitBody<B>> {
    let content_type = headers.remove(header::CONTENT_TYPE);
    let (code, message) = match limited.reason() {
        Reason::Quota => (RESOURCE_EXHAUSTED, "quota exceeded"),
        Reason::Inflight => (RESOURCE_EXHAUSTED, "too many requests in flight"),
        Reason::NoRoom => (RESOURCE_EXHAUSTED, "too many clients"),
        Reason::NoKey => (INVALID_ARGUMENT, "no rate-limit key"),
        Reason::Denied => (PERMISSION_DENIED, "not allowed"),
        Reason::Unavailable => (UNAVAILABLE, "quota service unavailable"),
    };
    headers.clear();
    headers.insert(header::CONTENT_TYPE, content_type.unwrap_or(GRPC));
    headers.insert(GRPC_STATUS, digits::small(code));
    headers.insert(GRPC_MESSAGE, HeaderValue::from_static(message));
    if let Some(wait) = limited.retry_after() {
        headers.insert(GRPC_RETRY_PUSHBACK, digits::millis(wait));
    } else if limited.never_conforms() {
        headers.insert(GRPC_RETRY_PUSHBACK, DO_NOT_RETRY);
    }
    if with_details && limited.reason() == Reason::Quota {
        let details = base64(&details(code, message, limited));
        // Base64 is always a valid value.
        if let Ok(details) = HeaderValue::from_maybe_shared(Bytes::from(details)) {
            headers.insert(GRPC_STATUS_DETAILS, details);
        }
    }
    let mut response = Response::new(RateLimitBody::refusal(Bytes::new()));
    *response.headers_mut() = headers;
    response
}

/// A `google.rpc.QuotaFailure.Violation`, as a field of its parent. Its subject is the policy,
/// never the key.
pub(super) fn violation(policy: &str, quota: Quota) -> Bytes {
    let mut violation = Vec::new();
    field(&mut violation, 1, policy.as_bytes());
    field(&mut violation, 2, quota.to_string().as_bytes());
    let mut parent = Vec::new();
    field(&mut parent, 1, &violation);
    parent.into()
}

/// A `google.rpc.Status` with a `RetryInfo`, if retrying helps, and a `QuotaFailure`.
///
/// Written by hand: these five messages of strings and integers do not warrant a dependency on a
/// protobuf runtime. `tests/tonic.rs` reads them back with tonic-types.
fn details(code: u8, message: &str, limited: &Limited<'_>) -> Vec<u8> {
    let mut status = Vec::with_capacity(256);
    varint_field(&mut status, 1, code.into());
    field(&mut status, 2, message.as_bytes());
    if let Some(wait) = limited.retry_after() {
        // Three small messages inside each other: at most 2 × 11 bytes for the innermost.
        let mut delay = Buffer::<24>::default();
        varint_field(&mut delay, 1, wait.as_secs());
        varint_field(&mut delay, 2, wait.subsec_nanos().into());
        let mut retry_info = Buffer::<32>::default();
        field(&mut retry_info, 1, delay.filled());
        any(&mut status, RETRY_INFO, &[retry_info.filled()]);
    }
    let mut violations = [&[][..]; crate::MAX_POLICIES];
    let own;
    if let Some(over) = limited.quota {
        for (violation, index) in violations.iter_mut().zip(limited.violated_indices()) {
            *violation = &over.rendered.violations[index];
        }
        // Only the first policy can have been replaced by a quota of the request's own.
        if let (Some(quota), true) = (over.charge.own(0), over.ruling.violated.contains(0)) {
            own = violation(over.rules.rules()[0].policy.name(), quota.quota);
            violations[0] = &own;
        }
    }
    any(&mut status, QUOTA_FAILURE, &violations);
    status
}

/// Appends `value`, in pieces, as a `google.protobuf.Any` in field 3.
fn any(status: &mut Vec<u8>, type_url: &str, value: &[&[u8]]) {
    let length = value.iter().map(|piece| piece.len()).sum::<usize>();
    let any = 1 + varint_len(type_url.len()) + type_url.len() + 1 + varint_len(length) + length;
    tag(status, 3, LENGTH_DELIMITED);
    varint(status, any as u64);
    field(status, 1, type_url.as_bytes());
    tag(status, 2, LENGTH_DELIMITED);
    varint(status, length as u64);
    for piece in value {
        status.extend_from_slice(piece);
    }
}

trait Put {
    fn put(&mut self, bytes: &[u8]);
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// A message of at most `N` bytes.
struct Buffer<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Buffer<N> {
    fn filled(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl<const N: usize> Default for Buffer<N> {
    fn default() -> Self {
        Self {
            bytes: [0; N],
            length: 0,
        }
    }
}

impl<const N: usize> Put for Buffer<N> {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }
}

fn tag(out: &mut impl Put, number: u8, wire_type: u8) {
    out.put(&[number << 3 | wire_type]);
}

fn field(out: &mut impl Put, number: u8, bytes: &[u8]) {
    tag(out, number, LENGTH_DELIMITED);
    varint(out, bytes.len() as u64);
    out.put(bytes);
}

fn varint_field(out: &mut impl Put, number: u8, value: u64) {
    tag(out, number, VARINT);
    varint(out, value);
}

fn varint(out: &mut impl Put, mut value: u64) {
    while value >= 0x80 {
        out.put(&[value as u8 | 0x80]);
        value >>= 7;
    }
    out.put(&[value as u8]);
}

fn varint_len(value: usize) -> usize {
    let bits = usize::BITS - value.leading_zeros();
    bits.max(1).div_ceil(7) as usize
}

/// Base64 without padding, as gRPC wants binary metadata (RFC 4648 §4).
pub(super) fn base64(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity((bytes.len() * 4).div_ceil(3));
    for chunk in bytes.chunks(3) {
        let triple = [
            chunk[0],
            *chunk.get(1).unwrap_or(&0),
            *chunk.get(2).unwrap_or(&0),
        ];
        let bits = u32::from_be_bytes([0, triple[0], triple[1], triple[2]]);
        for digit in 0..=chunk.len() {
            let shift = 18 - 6 * digit as u32;
            text.push(BASE64[(bits >> shift & 63) as usize]);
        }
    }
    text
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

const VARINT: u8 = 0;
const LENGTH_DELIMITED: u8 = 2;
const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";
const QUOTA_FAILURE: &str = "type.googleapis.com/google.rpc.QuotaFailure";

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_STATUS_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
/// gRFC A6: milliseconds until a retry is welcome; a negative number asks for none.
const GRPC_RETRY_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const DO_NOT_RETRY: HeaderValue = HeaderValue::from_static("-1");
const INVALID_ARGUMENT: u8 = 3;
const PERMISSION_DENIED: u8 = 7;
const RESOURCE_EXHAUSTED: u8 = 8;
const UNAVAILABLE: u8 = 14;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn base64_matches_the_vectors_of_rfc_4648_without_padding() {
        let vectors = ["", "Zg", "Zm8", "Zm9v", "Zm9vYg", "Zm9vYmE", "Zm9vYmFy"];
        for (length, expected) in vectors.into_iter().enumerate() {
            assert_eq!(base64(&b"foobar"[..length]), expected.as_bytes());
        }
    }

    #[test]
    fn the_longest_delay_fits_its_buffer() {
        let mut delay = Buffer::<24>::default();
        varint_field(&mut delay, 1, Duration::MAX.as_secs());
        varint_field(&mut delay, 2, Duration::MAX.subsec_nanos().into());
        assert!(delay.filled().len() <= 24);
    }

    #[test]
    fn varints_are_as_long_as_they_say() {
        for value in [0, 1, 127, 128, 16_383, 16_384, usize::MAX] {
            let mut out = Vec::new();
            varint(&mut out, value as u64);
            assert_eq!(out.len(), varint_len(value), "{value}");
        }
    }
}
