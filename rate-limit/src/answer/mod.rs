//! What a refused caller gets.
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
//! constant. gRPC details take two small allocations.
//!
//! Everything can be replaced, see [`RateLimitLayer::on_limited`](crate::RateLimitLayer::on_limited).
//! [`QuotaHeaders`] adds headers to all responses.

mod digits;
mod grpc;
mod http;
mod quota_headers;

use std::{fmt, sync::Arc, time::Duration};

use ::http::{Response, request};

pub(crate) use self::quota_headers::Stamp;
pub use self::quota_headers::{Draft, QuotaHeaders, Reset};
pub(crate) use self::{
    grpc::{is_grpc, violation},
    http::problem,
    quota_headers::policy_field,
};
use crate::{
    Policy, RateLimitBody,
    gcra::Excess,
    limiter::{SOON, retry_after},
    rules::{Rule, Ruleset, Ruling},
};

/// Turns a refusal into a response. Implemented by [`StandardAnswer`] and by [`Hook`].
pub trait Answer<B> {
    /// The response to a request whose head was `request`.
    fn answer(&self, limited: &Limited<'_>, request: request::Parts) -> Response<RateLimitBody<B>>;
}

/// The answers of the [module's table](self).
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

    /// Answers with one line of text instead of a problem document.
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
    quota: Option<(&'a Ruleset, &'a Ruling)>,
}

/// The kinds of refusal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// A quota is used up.
    Quota,
    /// As many requests of the key are in flight as may be.
    Inflight,
    /// The table is full and new keys are refused.
    NoRoom,
    /// The request has no key and such requests are refused.
    NoKey,
    /// The caller is on the deny list.
    Denied,
    /// Redis does not answer, and a policy admits nothing without it.
    Unavailable,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quota => "quota exceeded",
            Self::Inflight => "too many requests in flight",
            Self::NoRoom => "too many clients",
            Self::NoKey => "the request has nothing to be limited by",
            Self::Denied => "not allowed",
            Self::Unavailable => "quotas cannot be told at the moment",
        })
    }
}

impl<'a> Limited<'a> {
    pub(crate) fn quota(rules: &'a Ruleset, ruling: &'a Ruling) -> Self {
        Self {
            reason: Reason::Quota,
            quota: Some((rules, ruling)),
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

    /// After how long the same request would conform; `None` when waiting does not help.
    ///
    /// For quotas this is exact to the nanosecond; in a `retry-after` header it must be rounded
    /// *up*. For the rest it is one second.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match (self.quota, self.reason) {
            (Some((_, ruling)), _) => retry_after(ruling.excess),
            (None, Reason::NoKey | Reason::Denied) => None,
            (None, _) => Some(SOON),
        }
    }

    /// The policies that were exceeded.
    pub fn violated(&self) -> impl Iterator<Item = &'a Policy> {
        self.violated_rules().map(|rule| &rule.policy)
    }

    fn violated_rules(&self) -> impl Iterator<Item = &'a Rule> {
        self.quota.into_iter().flat_map(|(rules, ruling)| {
            let violates = |(index, _): &(usize, _)| ruling.violated.contains(*index);
            rules
                .rules()
                .iter()
                .enumerate()
                .filter(violates)
                .map(|(_, rule)| rule)
        })
    }

    /// Whether no wait would help, because the request is larger than a burst.
    fn never_conforms(&self) -> bool {
        self.quota
            .is_some_and(|(_, ruling)| ruling.excess == Some(Excess::Never))
    }
}
