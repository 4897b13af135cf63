//! What turns a refusal into a response.

use std::{fmt, sync::Arc};

use http::{Response, request};

use super::Limited;
use crate::RateLimitBody;

/// Turns a refusal into a response. Implemented by [`StandardAnswer`](super::StandardAnswer) and by [`Hook`].
pub trait Answer<B> {
    /// The response to the request with the head `request`.
    fn answer(&self, limited: &Limited<'_>, request: request::Parts) -> Response<RateLimitBody<B>>;
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
