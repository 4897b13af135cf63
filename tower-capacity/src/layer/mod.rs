//! The Tower middleware.
//!
//! [`CapacityLayer`] puts a [`Limiter`](crate::Limiter) in front of a service:
//!
//! - **The limiter lives in the layer.** `layer()` called twice, as `axum::serve` does for each
//!   connection, or a service cloned a thousand times, is still one limiter.
//! - **Admission happens in `call`**, never in `poll_ready`, so that an idle clone holds nothing;
//!   the wait in the waiting room happens inside the returned future.
//! - **The error type is the inner one.** A refusal is an `Ok` response, see
//!   [`DefaultReject`](crate::DefaultReject), so `Router::layer` needs no `HandleErrorLayer`.
//! - **The permit rides in the future and then in the response body**, and returns on end, error
//!   or drop. The service time ends at the headers, so that a slow reader does not look like
//!   overload. A dropped future was cancelled: neither a success nor a failure.
//!
//! How it differs from `tower::limit::ConcurrencyLimit`, `GlobalConcurrencyLimit` and
//! `tower::load_shed`: those take the permit in `poll_ready`, where clones that were polled and
//! never called keep it; they return it when the response head is ready; and they change the error
//! type.

mod ask;
mod body;
mod future;
#[expect(
    clippy::module_inception,
    reason = "a middleware is always the same five files"
)]
mod layer;
mod plain;
#[cfg(feature = "client")]
mod ready;
mod service;
mod upgrade;

#[cfg(feature = "client")]
pub use self::ready::{ReadyCapacity, ReadyCapacityLayer};
pub use self::{
    ask::priority_header,
    body::CapacityBody,
    future::CapacityFuture,
    layer::CapacityLayer,
    plain::{
        Alike, AskOf, ByResult, CapacityError, ClassifyResult, PlainCapacity, PlainCapacityFuture,
        PlainCapacityLayer,
    },
    service::Capacity,
    upgrade::UpgradePermit,
};
