//! What a refused request gets.
//!
//! | refused because of | HTTP | gRPC |
//! |---|---|---|
//! | a quota, [`max_inflight`](crate::LimiterBuilder::max_inflight) or a full table | 429 | `RESOURCE_EXHAUSTED` (8) |
//! | a policy that admits nothing while Redis is away | 503 | `UNAVAILABLE` (14) |
//! | [`MissingKey::Deny`](crate::key::MissingKey) | 400 | `INVALID_ARGUMENT` (3) |
//! | the [deny list](crate::RateLimitLayer::deny) | 403 | `PERMISSION_DENIED` (7) |
//!
//! HTTP callers get `retry-after` in whole seconds, rounded up and at least 1, and a problem
//! document (RFC 9457) that names the violated policies. gRPC callers get a trailers-only response
//! with `grpc-retry-pushback-ms` and, in `grpc-status-details-bin`, a `RetryInfo` and a
//! `QuotaFailure`.
//!
//! A refusal over HTTP allocates nothing: the request's own header map is emptied and sent back,
//! bodies are rendered when the limiter is built, and the digits of a wait are a slice of a
//! constant. gRPC details take two small allocations, and [`QuotaHeaders`] some for each field.
//! The response carries the marker [`Refused`] in its extensions.
//!
//! Everything can be replaced, see [`RateLimitLayer::on_limited`](crate::RateLimitLayer::on_limited).
//! [`QuotaHeaders`] adds headers to all responses.

#[expect(
    clippy::module_inception,
    reason = "the trait that gives the module its name"
)]
mod answer;
mod digits;
mod grpc;
mod http;
mod limited;
mod quota_headers;
mod refused;
mod rendered;
mod standard;

pub use self::{
    answer::{Answer, Hook},
    limited::Limited,
    quota_headers::{Draft, QuotaHeaders, Reset},
    refused::Refused,
    standard::StandardAnswer,
};
pub(crate) use self::{limited::OverQuota, quota_headers::Stamp, rendered::Rendered};
pub use crate::refusal::Reason;
