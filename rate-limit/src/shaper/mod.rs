//! The client's side: staying within the limits of another service.
//!
//! An API that allows "50 requests a minute and 10 at once" refuses more with 429, and some ban
//! clients that keep trying. [`ShaperLayer`] goes around the client that calls it and lets
//! requests wait: first come, first served, in a queue of bounded length.
//!
//! ```
//! use rate_limit::{MINUTE, Quota, shaper::{Shaper, ShaperLayer}};
//!
//! let shaper = Shaper::builder()
//!     .quota(Quota::count(50).per(MINUTE))
//!     .concurrency(10)
//!     .build()?;
//! let layer = ShaperLayer::new(shaper);
//! // tower::ServiceBuilder::new().layer(layer).service(http_client)
//! # Ok::<(), rate_limit::shaper::ShaperError>(())
//! ```
//!
//! For requests that are not HTTP there is [`PlainShaperLayer`]. Without Tower, [`Shaper::acquire`]
//! is all there is to it: it waits, and the [`Permit`] it returns is dropped when the request is
//! over.
//!
//! * A request that would have to wait longer than [`max_wait`](ShaperBuilder::max_wait) or than
//!   its own deadline is refused when it arrives, not when it has waited for nothing.
//! * A request is charged when its turn comes. One that is dropped while it waits has cost
//!   nothing, and the queue moves up.
//! * The shaper listens: `retry-after`, `retry-after-ms` and `grpc-retry-pushback-ms` of refusals;
//!   of every response `ratelimit` (requests only: what other units mean is in `ratelimit-policy`),
//!   `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` and
//!   `anthropic-ratelimit-{requests,tokens}-{remaining,reset}`; and whatever
//!   [`feedback`](ShaperLayer::feedback) makes of other headers. It slows down below its quotas
//!   on request, and never goes above them.
//!
//! The server measures when requests arrive, not when they leave. Where the network delays some
//! of them more than others, a client at the very limit of its quota will be over it now and
//! then; give it a burst a little below the server's.

mod body;
mod builder;
mod feedback;
mod future;
mod heed;
mod layer;
mod line;
mod plain;
mod retry_after;
mod service;
#[expect(
    clippy::module_inception,
    reason = "the handle has the name of what the module is about"
)]
mod shaper;
mod ticket;

pub use self::{
    body::ShapedBody,
    builder::{ShaperBuilder, ShaperError},
    future::ShapedFuture,
    layer::ShaperLayer,
    line::Shaper,
    plain::{PlainShaped, PlainShapedFuture, PlainShaperLayer},
    service::{Shaped, ShapedError, WaitRefused},
    ticket::Permit,
};
