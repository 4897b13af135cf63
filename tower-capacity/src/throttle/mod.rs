//! The client's side: sparing a backend that accepts nothing.
//!
//! A backend that rejects still pays for every request, and a client that retries makes it pay
//! more. [`ThrottleLayer`] goes around the client that calls it. Once the backend has accepted
//! nothing for a while, the client sends a tenth of its requests, and at least one a second, until
//! one is accepted again. A backend that accepts some requests and rejects others is sent them all,
//! since the client cannot know which it will accept: see [`AdaptiveThrottle`].
//!
//! ```
//! use std::convert::Infallible;
//!
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Empty;
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_capacity::throttle::{ThrottleLayer, Throttled};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Infallible> {
//! // In place of a hyper-util client or a tonic channel.
//! async fn client(_request: Request<()>) -> Result<Response<Empty<Bytes>>, Infallible> {
//!     Ok(Response::new(Empty::new()))
//! }
//!
//! let throttle = ThrottleLayer::adaptive();
//! let mut client = ServiceBuilder::new().layer(throttle).service(service_fn(client));
//!
//! let response = client.ready().await?.call(Request::new(())).await?;
//! match response.extensions().get::<Throttled>() {
//!     Some(throttled) => println!("never sent: {throttled}"),
//!     None => println!("the backend responded {}", response.status()),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! - **One layer for each backend.** What it counts lives in the layer and is shared by all its
//!   services, clones and connections: a layer around a client that talks to several backends
//!   would throttle them all for the fault of one.
//! - **A request that is not sent gets a response**, not an error: the error type is the inner
//!   one. It is that of a server that is not available (503, or a trailers-only gRPC status 14),
//!   marked with a [`Throttled`] in its extensions and the header [`THROTTLED_HEADER`], so that
//!   callers can tell. [`ThrottleLayer::on_shed`] makes another.
//! - **It costs no goodput.** What it withholds would have been rejected, for one client or a
//!   hundred, and what happens to requests of one path (or [`key`](ThrottleLayer::key)) says
//!   nothing about others. Quotas (429) do not count at all.
//! - **`Retry-After` and `grpc-retry-pushback-ms` are about repeating that request** (RFC 9110
//!   §10.2.3, gRFC A6), and no reason not to send others. They are for the retry policy:
//!   [`RetryAdvice`].
//! - **Nothing waits and nothing is held.** Admission happens in `call`, without a permit.
//! - **Retries have a budget**, asked by the retry policy: see [`RetryBudget`]. Put the retries
//!   *around* the throttle, so that each attempt is counted.
//!
//! How it differs from a circuit breaker: it never stops asking, needs no trial period, and one
//! request that is accepted ends it.

mod adaptive;
mod answer;
mod budget;
mod config;
mod counts;
mod future;
mod layer;
mod retry_after;
mod service;
mod throttled;
mod throttler;

pub use self::{
    adaptive::AdaptiveThrottle,
    answer::{Answer, RetryAdvice},
    budget::{RetryBudget, RetryBudgetConfig},
    config::{ThrottleConfig, ThrottleConfigError},
    future::ThrottleFuture,
    layer::ThrottleLayer,
    service::Throttle,
    throttled::{THROTTLED_HEADER, Throttled},
    throttler::{Attempt, ThrottleSnapshot, Throttler},
};
