//! The Tower middleware.
//!
//! [`CapacityLayer`] puts a [`Limiter`](crate::Limiter) in front of a service:
//!
//! - **The limiter lives in the layer.** `layer()` called twice, as `axum::serve` does for each
//!   connection, or a service cloned a thousand times, is still one limiter.
//! - **Admission happens in `call`**, never in `poll_ready`, so that an idle clone holds nothing;
//!   the wait in the waiting room happens inside the returned future.
//! - **The error type is the inner one.** A refusal is an `Ok` response, see
//!   [`DefaultReject`](crate::DefaultReject), so `Router::layer` needs no `HandleErrorLayer`. It has
//!   a [`Shed`](crate::Shed) in its extensions, so that logs and other layers can tell it from a 503
//!   of the service.
//! - **The permit rides in the future and then in the response body**, and returns on end, error
//!   or drop. The service time ends with it, so that work in the body is seen; a reader that takes
//!   ten times as long as usual is held apart from the limit. A dropped future was cancelled: neither a success nor a failure.
//! - **A request is counted once.** A limiter that stands twice in a stack, around a router and
//!   around one of its routes, counts a request in the outer layer, and what a limiter further in
//!   refuses is no overload of the outer. A request that a handler sends through a layer that its
//!   own request passed is part of that request, unless another task sends it.
//!
//! # Where it goes
//!
//! - **axum**: `Router::layer`, inside `TraceLayer` and inside `CorsLayer`. Outside the latter a
//!   browser sees a network error instead of the 503, and cannot read its `Retry-After`.
//! - **tonic**: `Server::builder().layer(..)` for all services together. Around one service it has
//!   to keep the service's name, which tonic's `LayerExt::named_layer` does:
//!
//!   ```
//!   use tonic::service::LayerExt as _;
//!   use tower_capacity::CapacityLayer;
//!
//!   # #[tokio::main(flavor = "current_thread")]
//!   # async fn main() {
//!   # let (_reporter, health_service) = tonic_health::server::health_reporter();
//!   let limited = CapacityLayer::named("health").named_layer(health_service);
//!   let server = tonic::transport::Server::builder().add_service(limited);
//!   # }
//!   ```
//! - **In a handler** the limiter is an extension like any other: `.layer(Extension(limiter))`
//!   outside, `Extension<Limiter>` as an argument. The layer does not insert it, nor how long a
//!   request waited, since that would cost every request three allocations; the waits are in the
//!   metrics.
//! - **A runtime with tokio's timers** is needed: a request that waits for a permit sets one. On a
//!   runtime without, all goes well until the first request has to wait, and then panics. With
//!   [`max_queue(0)`](crate::LimiterBuilder::max_queue) nothing waits.
//!
//! A request counts as one, whatever it costs. Give requests of very different costs a limiter of
//! their own, or a [class](crate::Priority).
//!
//! # How it differs from tower's own
//!
//! `tower::limit::ConcurrencyLimit`, `GlobalConcurrencyLimit` and `tower::load_shed` take the permit
//! in `poll_ready`, where clones that were polled and never called keep it; they return it when the
//! response head is ready; and they change the error type.

mod ask;
mod body;
mod future;
mod held;
#[expect(
    clippy::module_inception,
    reason = "a middleware for HTTP is always the same files"
)]
mod layer;
mod nesting;
mod plain;
#[cfg(feature = "client")]
mod ready;
mod service;
mod slot;
mod upgrade;

#[cfg(feature = "client")]
pub use self::ready::{ReadyCapacity, ReadyCapacityLayer};
pub use self::{
    ask::priority_header,
    body::CapacityBody,
    future::CapacityFuture,
    layer::CapacityLayer,
    plain::{
        Alike, AskOf, BoxError, ByResult, CapacityError, ClassifyResult, PlainCapacity,
        PlainCapacityFuture, PlainCapacityLayer,
    },
    service::Capacity,
    upgrade::UpgradePermit,
};
