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

mod digits;
mod grpc;
mod http;
mod quota_headers;
mod rendered;

use std::{fmt, sync::Arc, time::Duration};

use ::http::{Response, request};

pub(crate) use self::quota_headers::Stamp;
pub use self::quota_headers::{Draft, QuotaHeaders, Reset};
pub(crate) use self::{grpc::is_grpc, rendered::Rendered};
pub use crate::refusal::Reason;
use crate::{
    LimitError, Policy, Quota, RateLimitBody,
    gcra::Excess,
    refusal::retry_after,
    rules::{Charge, Ruleset, Ruling},
};

/// Turns a refusal into a response. Implemented by [`StandardAnswer`] and by [`Hook`].
pub trait Answer<B> {
    /// The response to the request with the head `request`.
    fn answer(&self, limited: &Limited<'_>, request: request::Parts) -> Response<RateLimitBody<B>>;
}

/// The responses of the [module's table](self).
#[derive(Clone, Debug)]
pub struct StandardAnswer {
    plain: bool,
    grpc_details: bool,
}

impl StandardAnswer {
    /// Problem documents and gRPC details.
    #[must_use]
    pub fn new() -> Self {
        Self {
            plain: false,
            grpc_details: true,
        }
    }

    /// Sends one line of text instead of a problem document.
    ///
    /// Defaults to `false`.
    #[must_use]
    pub fn plain(mut self, plain: bool) -> Self {
        self.plain = plain;
        self
    }

    /// Sends `grpc-status-details-bin` with gRPC refusals.
    ///
    /// Defaults to `true`.
    #[must_use]
    pub fn grpc_details(mut self, details: bool) -> Self {
        self.grpc_details = details;
        self
    }
}

impl Default for StandardAnswer {
    fn default() -> Self {
        Self::new()
    }
}

impl<B> Answer<B> for StandardAnswer {
    fn answer(&self, limited: &Limited<'_>, request: request::Parts) -> Response<RateLimitBody<B>> {
        if is_grpc(&request.headers) {
            grpc::answer(limited, request.headers, self.grpc_details)
        } else {
            http::answer(limited, request.headers, self.plain)
        }
    }
}

/// An answer of the service's own, made by
/// [`RateLimitLayer::on_limited`](crate::RateLimitLayer::on_limited).
pub struct Hook<F>(Arc<F>);

impl<F> Hook<F> {
    pub(crate) fn new(hook: F) -> Self {
        Self(Arc::new(hook))
    }
}

impl<B, F> Answer<B> for Hook<F>
where
    F: Fn(&Limited<'_>, &request::Parts) -> Response<B>,
{
    fn answer(&self, limited: &Limited<'_>, request: request::Parts) -> Response<RateLimitBody<B>> {
        (self.0)(limited, &request).map(RateLimitBody::inner)
    }
}

impl<F> Clone for Hook<F> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<F> fmt::Debug for Hook<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook")
    }
}

/// Why a request is refused, and the numbers.
#[derive(Debug)]
pub struct Limited<'a> {
    reason: Reason,
    quota: Option<OverQuota<'a>>,
}

/// What decided on a request over its quota.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OverQuota<'a> {
    pub(crate) rules: &'a Ruleset,
    pub(crate) rendered: &'a Rendered,
    pub(crate) charge: &'a Charge,
    pub(crate) ruling: &'a Ruling,
}

impl<'a> Limited<'a> {
    pub(crate) fn quota(over: OverQuota<'a>) -> Self {
        Self {
            reason: Reason::Quota,
            quota: Some(over),
        }
    }

    pub(crate) fn other(reason: Reason) -> Self {
        Self {
            reason,
            quota: None,
        }
    }

    /// The kind of refusal.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// After how long the same request would conform; `None` if waiting does not help.
    ///
    /// For quotas this is exact to the nanosecond; see
    /// [`retry_after_seconds`](Self::retry_after_seconds) for what a header should say. For the
    /// rest it is one second.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.quota.map_or_else(
            || self.reason.retry_after(),
            |over| retry_after(over.ruling.excess),
        )
    }

    /// The same in whole seconds, rounded up and at least 1: the value of a `retry-after` header.
    #[must_use]
    pub fn retry_after_seconds(&self) -> Option<u64> {
        let wait = self.retry_after()?;
        Some((wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1))
    }

    /// The policies that were exceeded.
    pub fn violated(&self) -> impl Iterator<Item = &'a Policy> {
        let indices = self.violated_indices();
        let quota = self.quota;
        indices.filter_map(move |index| Some(&quota?.rules.rules()[index].policy))
    }

    /// The quotas that were exceeded: those of the [policies](Self::violated), or the request's
    /// own in place of the first policy's.
    pub fn violated_quotas(&self) -> impl Iterator<Item = Quota> {
        let quota = self.quota;
        self.violated_indices().filter_map(move |index| {
            let over = quota?;
            Some(over.charge.quota(index, &over.rules.rules()[index]))
        })
    }

    fn violated_indices(&self) -> impl Iterator<Item = usize> + use<> {
        let (violated, count) = self.quota.map_or_else(Default::default, |over| {
            (over.ruling.violated, over.rules.rules().len())
        });
        (0..count).filter(move |index| violated.contains(*index))
    }

    /// Whether no wait helps, because the request is larger than a burst.
    #[must_use]
    pub fn never_conforms(&self) -> bool {
        self.quota
            .is_some_and(|over| over.ruling.excess == Some(Excess::Never))
    }

    /// What [`RateLimitLayer::explain_refusals`](crate::RateLimitLayer::explain_refusals) leaves in
    /// the response's extensions.
    pub(crate) fn explain(&self) -> LimitError {
        match self.quota {
            Some(over) => LimitError::quota(over.rules, over.ruling),
            None => LimitError::other(self.reason),
        }
    }
}

/// The marker in the extensions of the response to a refused request, for logs, metrics and other
/// layers. It takes no memory, so that refusing allocates nothing; for the reason, the policy and
/// the wait see
/// [`explain_refusals`](crate::RateLimitLayer::explain_refusals).
///
/// ```
/// use rate_limit::answer::Refused;
///
/// fn was_limited<B>(response: &http::Response<B>) -> bool {
///     response.extensions().get::<Refused>().is_some()
/// }
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Refused;
