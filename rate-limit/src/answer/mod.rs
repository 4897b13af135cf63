//! What a refused caller gets.
//!
//! | request | status | headers | body |
//! |---|---|---|---|
//! | HTTP | 429 | `retry-after` in whole seconds, rounded up | problem+json (RFC 9457) |
//! | gRPC | 200, `grpc-status: 8` | `grpc-retry-pushback-ms` | none (trailers-only) |
//!
//! A refusal allocates nothing: the request's own header map is emptied and sent back, bodies are
//! rendered when the limiter is built, and the digits of a wait are a slice of a constant.
//!
//! Everything can be replaced, see [`RateLimitLayer::on_limited`](crate::RateLimitLayer::on_limited).

mod digits;
mod grpc;
mod http;

use std::{sync::Arc, time::Duration};

use ::http::{Response, request};

pub(crate) use self::http::Problem;
use crate::{
    Policy, RateLimitBody,
    gcra::Excess,
    limiter::{TABLE_FULL_RETRY, retry_after},
    policy::{Rule, Ruleset, Ruling},
};

/// Turns a refusal into a response. Implemented by [`StandardAnswer`] and by [`Hook`].
pub trait Answer<B> {
    /// The response to a request whose head was `request`.
    fn answer(&self, limited: &Limited<'_>, request: request::Parts) -> Response<RateLimitBody<B>>;
}

/// The answers of the [module's table](self).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StandardAnswer {}

impl<B> Answer<B> for StandardAnswer {
    fn answer(&self, limited: &Limited<'_>, request: request::Parts) -> Response<RateLimitBody<B>> {
        if grpc::is_grpc(&request.headers) {
            grpc::answer(limited, request.headers)
        } else {
            http::answer(limited, request.headers)
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

impl<F> std::fmt::Debug for Hook<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

/// Why a request is refused, and the numbers.
#[derive(Debug)]
pub struct Limited<'a> {
    why: Why<'a>,
}

#[derive(Debug)]
enum Why<'a> {
    Quota {
        rules: &'a Ruleset,
        ruling: &'a Ruling,
    },
    NoRoom,
    NoKey,
}

/// The kinds of refusal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// A quota is used up: 429, or `RESOURCE_EXHAUSTED`.
    Quota,
    /// The table is full and new keys are refused: 429, or `RESOURCE_EXHAUSTED`.
    NoRoom,
    /// The request has no key and such requests are refused: 400, or `INVALID_ARGUMENT`.
    NoKey,
}

impl<'a> Limited<'a> {
    pub(crate) fn quota(rules: &'a Ruleset, ruling: &'a Ruling) -> Self {
        Self {
            why: Why::Quota { rules, ruling },
        }
    }

    pub(crate) fn no_room() -> Self {
        Self { why: Why::NoRoom }
    }

    pub(crate) fn no_key() -> Self {
        Self { why: Why::NoKey }
    }

    /// The kind of refusal.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self.why {
            Why::Quota { .. } => Reason::Quota,
            Why::NoRoom => Reason::NoRoom,
            Why::NoKey => Reason::NoKey,
        }
    }

    /// After how long the same request would conform; `None` when waiting does not help.
    ///
    /// This is exact to the nanosecond. In a `retry-after` header it must be rounded *up*.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self.why {
            Why::Quota { ruling, .. } => retry_after(ruling.excess),
            Why::NoRoom => Some(TABLE_FULL_RETRY),
            Why::NoKey => None,
        }
    }

    /// The policies that were exceeded.
    pub fn violated(&self) -> impl Iterator<Item = &'a Policy> {
        self.violated_rules().map(|rule| &rule.policy)
    }

    fn violated_rules(&self) -> impl Iterator<Item = &'a Rule> {
        let (rules, violated) = match self.why {
            Why::Quota { rules, ruling } => (rules.rules(), ruling.violated),
            Why::NoRoom | Why::NoKey => (&[][..], Default::default()),
        };
        let violates = move |(index, _): &(usize, &Rule)| violated.contains(*index);
        rules
            .iter()
            .enumerate()
            .filter(violates)
            .map(|(_, rule)| rule)
    }

    /// Whether no wait would help, because the request is larger than a burst.
    fn never_conforms(&self) -> bool {
        matches!(
            self.why,
            Why::Quota {
                ruling: Ruling {
                    excess: Some(Excess::Never),
                    ..
                },
                ..
            }
        )
    }
}
