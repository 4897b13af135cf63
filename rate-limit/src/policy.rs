//! A named quota, and what each request is charged for it.

use std::{fmt, sync::Arc};

use http::{Extensions, HeaderMap, StatusCode, response};

use crate::{Quota, QuotaError, key::RequestHead};

/// A quota with a name: the name goes into metrics, events and responses, never the key.
///
/// ```
/// use rate_limit::{DAY, Limiter, Policy, Quota, SECOND, Unit};
///
/// let limiter = Limiter::builder()
///     .policy(Policy::new("burst", Quota::count(10).per(SECOND)))
///     .policy(Policy::new("daily", Quota::count(50_000).per(DAY)))
///     .policy(
///         Policy::new("upload", Quota::count(1 << 20).per(SECOND).unit(Unit::ContentBytes))
///             // A body of undeclared length is refused.
///             .cost(|request| request.body_length().unwrap_or(u64::MAX)),
///     )
///     .build()?;
/// # Ok::<(), rate_limit::BuildError>(())
/// ```
///
/// # One key, several quotas
///
/// Plans, quotas of a request's own and reloads put different quotas under one name. Each judges a
/// key by what the key has used, *as if it alone had always been in force*: everything that is
/// charged, given back or settled counts by all of them, in cells, and comes back at the pace of
/// each.
///
/// * A quota that decides on a key for the first time starts from the most that the key owes by any
///   other, at most its own burst. So raising 10 a week to 1000 leaves 990 to a key that has used
///   10, and going down from 6000 a minute to 60 refuses it for a second, not for the rest of what
///   it owed before.
/// * What other quotas admit is charged up to one burst. So no quota refuses a key for longer than
///   its own whole burst takes to come back.
/// * Nothing is forgiven: a debt by one quota is the same after a visit to another.
///
/// Up to four quotas of a name are kept apart for each key; of more, the one that is paid off first
/// starts anew from the others. All of this holds alike in one process and in a fleet.
#[derive(Clone)]
pub struct Policy {
    name: Arc<str>,
    quota: Quota,
    shadow: bool,
    cost: Option<Arc<CostFn>>,
    settle: Option<Arc<SettleFn>>,
    #[cfg(feature = "redis")]
    on_outage: crate::fleet::OnOutage,
}

pub(crate) type CostFn = dyn Fn(&RequestHead<'_>) -> u64 + Send + Sync;
pub(crate) type SettleFn = dyn Fn(&ResponseHead<'_>) -> Option<u64> + Send + Sync;

impl Policy {
    /// A policy that enforces `quota` under `name`.
    ///
    /// The name must be 1 to 64 printable ASCII characters without `"` and `\`, so that it can
    /// stand in a header and a metric label as it is; building the limiter checks that.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, quota: Quota) -> Self {
        Self {
            name: name.into(),
            quota,
            shadow: false,
            cost: None,
            settle: None,
            #[cfg(feature = "redis")]
            on_outage: crate::fleet::OnOutage::default(),
        }
    }

    /// Only counts and reports what the policy would limit, and lets it through.
    ///
    /// Defaults to `false`.
    #[must_use]
    pub fn shadow(mut self, shadow: bool) -> Self {
        self.shadow = shadow;
        self
    }

    /// Sets how many cells a request is charged when it arrives. One that costs more than the
    /// burst is always refused.
    ///
    /// Defaults to 1.
    #[must_use]
    pub fn cost(mut self, cost: impl Fn(&RequestHead<'_>) -> u64 + Send + Sync + 'static) -> Self {
        self.cost = Some(Arc::new(cost));
        self
    }

    /// Sets how many cells a request turns out to have cost, once the response is known. What was
    /// charged on arrival is then a reservation: the difference is charged or given back, `None`
    /// leaves it, and a request that is cancelled before it has a response gets all of it back.
    /// The debt of a key stops at twice the burst. A gRPC response that has no status yet is settled
    /// with its trailers among the headers, or as it is when its body is dropped before them.
    ///
    /// Without this, requests keep what they were charged even when they fail or are cancelled.
    ///
    /// Defaults to none.
    ///
    /// ```
    /// use rate_limit::{MINUTE, Policy, Quota, Unit};
    ///
    /// #[derive(Clone)]
    /// struct TokensUsed(u64);
    ///
    /// let quota = Quota::count(100_000).per(MINUTE).unit(Unit::Custom("tokens"));
    /// let tokens = Policy::new("tokens", quota)
    ///     .cost(|_| 2_000)
    ///     .settle(|response| Some(response.extensions().get::<TokensUsed>()?.0));
    /// let failures_are_free = Policy::new("requests", Quota::count(60).per(MINUTE))
    ///     .settle(|response| response.is_failure().then_some(0));
    /// ```
    #[must_use]
    pub fn settle(
        mut self,
        settle: impl Fn(&ResponseHead<'_>) -> Option<u64> + Send + Sync + 'static,
    ) -> Self {
        self.settle = Some(Arc::new(settle));
        self
    }

    /// Sets what the policy does while Redis does not reply. It means nothing to a limiter that
    /// counts in one process.
    ///
    /// Defaults to a [local share](crate::fleet::OnOutage::LocalShare) of 100 percent.
    #[cfg(feature = "redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    #[must_use]
    pub fn on_outage(mut self, on_outage: crate::fleet::OnOutage) -> Self {
        self.on_outage = on_outage;
        self
    }

    #[cfg(feature = "redis")]
    pub(crate) fn outage(&self) -> crate::fleet::OnOutage {
        self.on_outage
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The quota.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// Whether the policy only reports.
    #[inline]
    #[must_use]
    pub fn is_shadow(&self) -> bool {
        self.shadow
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// What `request` costs; 1 unless the policy says otherwise.
    #[inline]
    pub(crate) fn cost_of(&self, request: &RequestHead<'_>) -> u64 {
        self.cost.as_ref().map_or(1, |cost| cost(request))
    }

    #[inline]
    pub(crate) fn settlement(&self) -> Option<&SettleFn> {
        self.settle.as_deref()
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("name", &self.name)
            .field("quota", &self.quota)
            .field("shadow", &self.shadow)
            .field("cost", &self.cost.is_some())
            .field("settle", &self.settle.is_some())
            .finish()
    }
}

/// A response without its body.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    parts: &'a response::Parts,
}

impl<'a> ResponseHead<'a> {
    pub(crate) fn new(parts: &'a response::Parts) -> Self {
        Self { parts }
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.parts.status
    }

    /// Whether the server failed: a 5xx, or in gRPC a status that says so (unknown, deadline exceeded,
    /// unimplemented, internal, unavailable, data loss).
    #[must_use]
    pub fn is_failure(&self) -> bool {
        let grpc = self.parts.headers.get("grpc-status");
        let failed = |code: &[u8]| matches!(code, b"2" | b"4" | b"12" | b"13" | b"14" | b"15");
        self.parts.status.is_server_error() || grpc.is_some_and(|code| failed(code.as_bytes()))
    }

    /// The headers.
    #[must_use]
    pub fn headers(&self) -> &'a HeaderMap {
        &self.parts.headers
    }

    /// The extensions, where handlers can leave what the work has cost.
    #[must_use]
    pub fn extensions(&self) -> &'a Extensions {
        &self.parts.extensions
    }
}

/// Policies that cannot be enforced as they are.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum BuildError {
    /// No policy was given.
    NoPolicy,
    /// More policies were given than can be decided together.
    TooManyPolicies {
        /// How many names there are over all plans; at most [`MAX_POLICIES`] can be.
        count: usize,
    },
    /// Two policies of a plan, or two plans, have the same name.
    DuplicateName(Arc<str>),
    /// A policy, plan or unit has a name that cannot stand in a header as it is.
    InvalidName(Arc<str>),
    /// A plan has no policy.
    EmptyPlan(Arc<str>),
    /// More different quotas than one limiter can tell apart, about 16 000.
    TooManyQuotas(Arc<str>),
    /// A name that the limiter was not built with and has no room for.
    UnknownName(Arc<str>),
    /// The table would be empty or would not fit into memory.
    InvalidMaxKeys(usize),
    /// No request at all could be in flight.
    ZeroMaxInflight,
    /// A limiter on Redis was built outside of a tokio runtime.
    NoRuntime,
    /// This process has a limiter of the same name on the same Redis with other policies.
    NameInUse(Arc<str>),
    /// A quota means nothing or cannot be kept.
    Quota {
        /// The policy it belongs to.
        policy: Arc<str>,
        /// What is wrong with it.
        error: QuotaError,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPolicy => f.write_str("no policy, expected at least one"),
            Self::TooManyPolicies { count } => {
                write!(f, "{count} policies, expected at most {MAX_POLICIES}")
            }
            Self::DuplicateName(name) => {
                write!(
                    f,
                    "two policies or two plans named {name:?}, expected distinct names \
                     (`quota` adds a policy named \"default\")"
                )
            }
            Self::EmptyPlan(name) => {
                write!(f, "no policy in plan {name:?}, expected at least one")
            }
            Self::TooManyQuotas(name) => {
                write!(
                    f,
                    "too many different quotas at policy {name:?}, expected at most 16000"
                )
            }
            Self::InvalidName(name) => write!(
                f,
                "name {name:?}, expected 1 to {MAX_NAME} printable ASCII characters without \
                 quote and backslash"
            ),
            Self::UnknownName(name) => {
                write!(
                    f,
                    "name {name:?}, expected one that the limiter was built with"
                )
            }
            Self::InvalidMaxKeys(keys) => {
                write!(f, "room for {keys} keys, expected 1 to {MAX_KEYS}")
            }
            Self::ZeroMaxInflight => f.write_str("0 requests in flight, expected at least 1"),
            Self::NameInUse(name) => write!(
                f,
                "another limiter of this process is named {name:?} on the same redis and has other \
                 policies, expected a name for each limiter"
            ),
            Self::NoRuntime => f.write_str("no tokio runtime, expected to be built inside of one"),
            Self::Quota { policy, .. } => write!(f, "invalid quota of policy {policy:?}"),
        }
    }
}

impl std::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Quota { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// A name by value: a shared one is counted, and a count is what threads contend for.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) struct Name {
    bytes: [u8; MAX_NAME],
    length: u8,
}

impl Name {
    /// `name` has passed [`check_name`]; of another, what fits.
    pub(crate) fn new(name: &str) -> Self {
        let mut bytes = [0; MAX_NAME];
        let length = name.len().min(MAX_NAME);
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        Self {
            bytes,
            length: length as u8,
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length.into()]).unwrap_or_default()
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// Whether `name` can stand in a structured field, a JSON text and a metric label as it is.
pub(crate) fn check_name(name: &str) -> Result<(), BuildError> {
    let printable = |b: u8| matches!(b, b' '..=b'~') && b != b'"' && b != b'\\';
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(printable) {
        return Err(BuildError::InvalidName(name.into()));
    }
    Ok(())
}

/// How many policies one limiter decides together.
pub const MAX_POLICIES: usize = 8;

pub(crate) const MAX_KEYS: usize = 1_000_000_000;
const MAX_NAME: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_that_is_valid_is_kept_whole() {
        for length in [1, MAX_NAME] {
            let name = "n".repeat(length);
            assert_eq!(check_name(&name), Ok(()));
            assert_eq!(Name::new(&name).as_str(), name);
        }
        assert!(check_name(&"n".repeat(MAX_NAME + 1)).is_err());
    }
}
