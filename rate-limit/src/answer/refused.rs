//! The marker of a refusal.

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
