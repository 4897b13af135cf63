//! Why a request is refused, and for how long.

use std::{fmt, time::Duration};

use crate::{
    gcra::Excess,
    policy::Name,
    rules::{Ruleset, Ruling},
};

/// The kinds of refusal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// A quota is used up.
    Quota,
    /// The key has as many requests in flight as it may.
    Inflight,
    /// The table is full and new keys are refused.
    NoRoom,
    /// The request has no key and such requests are refused.
    NoKey,
    /// The caller is on the deny list.
    Denied,
    /// Redis does not reply, and a policy admits nothing without it.
    Unavailable,
}

impl Reason {
    /// How long to wait, unless a quota says.
    pub(crate) fn retry_after(self) -> Option<Duration> {
        match self {
            Self::NoKey | Self::Denied => None,
            _ => Some(SOON),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quota => "quota exceeded",
            Self::Inflight => "too many requests in flight",
            Self::NoRoom => "too many clients",
            Self::NoKey => "no rate-limit key",
            Self::Denied => "not allowed",
            Self::Unavailable => "quota service unavailable",
        })
    }
}

/// A request that is refused. In the extensions of a response, it is why the request was, see
/// [`RateLimitLayer::explain_refusals`](crate::RateLimitLayer::explain_refusals).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LimitError {
    reason: Reason,
    policy: Option<Name>,
    retry_after: Option<Duration>,
}

impl LimitError {
    pub(crate) fn quota(rules: &Ruleset, ruling: &Ruling) -> Self {
        let first = ruling.violated.first();
        Self {
            reason: Reason::Quota,
            policy: first.map(|index| rules.rules()[index].name),
            retry_after: retry_after(ruling.excess),
        }
    }

    /// A refusal for another reason than a quota.
    pub(crate) fn other(reason: Reason) -> Self {
        Self {
            reason,
            policy: None,
            retry_after: reason.retry_after(),
        }
    }

    /// The kind of refusal.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The first policy that was exceeded, if a quota was.
    #[must_use]
    pub fn policy(&self) -> Option<&str> {
        self.policy.as_ref().map(Name::as_str)
    }

    /// After how long the same request would conform, if nothing else is charged until then;
    /// `None` if waiting does not help, because it asks for more than a burst, for one.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.policy {
            Some(policy) => write!(f, "over the quota of policy {policy:?}")?,
            None => write!(f, "{}", self.reason)?,
        }
        match self.retry_after {
            Some(wait) => write!(f, ", retry after {wait:?}"),
            None if self.reason == Reason::Quota => f.write_str(", and larger than its burst"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for LimitError {}

pub(crate) fn retry_after(excess: Option<Excess>) -> Option<Duration> {
    match excess {
        Some(Excess::Wait(nanos)) => Some(Duration::from_nanos(nanos)),
        _ => None,
    }
}

/// The wait to name when it is unknown: which of eight debts is paid first, or when one of the
/// key's own requests ends.
const SOON: Duration = Duration::from_secs(1);
