//! The Tower middleware.

mod body;
#[cfg(feature = "redis")]
mod fleet;
mod future;
#[expect(
    clippy::module_inception,
    reason = "a middleware for HTTP is always the same files"
)]
mod layer;
mod screen;
mod service;

#[cfg(feature = "redis")]
pub use self::fleet::FleetFuture;
pub use self::{
    body::RateLimitBody, future::RateLimitFuture, layer::RateLimitLayer, service::RateLimit,
};
