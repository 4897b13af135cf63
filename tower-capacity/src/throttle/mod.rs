//! The client's side: asking less of a backend that rejects.
//!
//! A backend that sheds still pays for every request that it refuses, and a client that retries
//! makes it pay more. [`ThrottleLayer`] goes around the client that calls it and counts what the
//! backend accepts; once it rejects more than half, the client refuses a share of its own requests
//! before they are sent, so that the backend sees about twice what it accepts, whatever is asked
//! for. The algorithm and its constants are those of [`AdaptiveThrottle`].
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
//!     None => println!("the backend answered {}", response.status()),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! - **One layer for each backend.** What it counts lives in the layer and is shared by all its
//!   services, clones and connections: a layer around a client that talks to several backends
//!   would throttle them all for the fault of one.
//! - **A request that is not sent is answered**, not failed: the error type is the inner one. The
//!   answer is what a server that sheds would have said (503, or a trailers-only gRPC status 14),
//!   marked with a [`Throttled`] in its extensions and the header [`THROTTLED_HEADER`], so that
//!   callers can tell. [`ThrottleLayer::on_shed`] answers in other words.
//! - **It leaves a backend alone when told to.** A rejection with `Retry-After` (seconds or a date)
//!   or `grpc-retry-pushback-ms` pauses the client for so long, at most
//!   [`ThrottleConfig::max_pause`].
//! - **Nothing waits and nothing is held.** Admission happens in `call`, without a permit.
//! - **Retries have a budget**, asked by the retry policy: see [`RetryBudget`]. Put the retries
//!   *around* the throttle, so that each attempt is counted.
//!
//! How it differs from a circuit breaker: it has no states, and never stops asking altogether, so
//! that it finds out by itself that the backend is back.

mod adaptive;
mod answer;
mod budget;
mod config;
mod counts;
mod future;
mod layer;
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
    throttled::{THROTTLED_HEADER, Throttled, ThrottledReason},
    throttler::{Attempt, ThrottleSnapshot, Throttler},
};
