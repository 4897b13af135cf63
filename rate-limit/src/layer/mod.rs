//! The Tower middleware.

mod body;
mod future;
#[expect(
    clippy::module_inception,
    reason = "a middleware is always the same five files"
)]
mod layer;
mod service;

pub use self::{
    body::RateLimitBody, future::RateLimitFuture, layer::RateLimitLayer, service::RateLimit,
};
