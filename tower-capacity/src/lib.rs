//! Adaptive concurrency limiting and load shedding as Tower layers, with no hand-tuned numbers.
//!
//! # The problem
//!
//! A service that is offered more than it can do does not do as much as it can: requests queue, the
//! queue outlives its callers' patience, and everything it answers comes too late. A limit on the
//! requests inside prevents that, but the right limit depends on the machine, the mix of requests
//! and the database behind it, and is wrong again after the next deployment. [`CapacityLayer`]
//! finds it while the service runs, lets short bursts wait in a bounded room, and refuses the rest
//! at once.
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use tower_capacity::CapacityLayer;
//!
//! #[tokio::main]
//! async fn main() -> std::io::Result<()> {
//!     let capacity = CapacityLayer::adaptive().bypass(|request| request.uri.path() == "/livez");
//!     let limiter = capacity.limiter().clone(); // watch it, bound it, drain it
//!     let app = Router::new()
//!         .route("/", get(async || "hello"))
//!         .route("/livez", get(async || "alive"))
//!         .layer(capacity);
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//!     println!("{:?}", limiter.snapshot());
//!     axum::serve(listener, app).await
//! }
//! ```
//!
//! In a tonic server it is `Server::builder().layer(CapacityLayer::adaptive())`.
//!
//! # How it decides
//!
//! - [`gate`]: which request enters now. A counter with a movable limit and a bounded waiting room.
//! - [`limit`]: how many may be inside. Control laws, and the one that is the default.
//! - [`Limiter`]: both, with the accounting in between; the handle that a service keeps.
//! - [`layer`]: the Tower middleware, and what it promises.
//! - `throttle` (feature `client`): the other side, a client that spares a backend which accepts
//!   nothing.
//!
//! # What you will see
//!
//! With the feature `metrics`, the limit, the requests inside, decisions by reason and waits (see
//! [`metrics`]). With the feature `tracing`, an event at `warn` when shedding starts and when
//! it is over (also when no request comes any more), at `debug` for each move of the limit with its
//! reason, at `trace` for each request shed. Without either, [`LimiterBuilder::on_event`],
//! [`Limiter::snapshot`] and [`Limiter::history`].
//!
//! [`guide`] says more: rolling out, why a request was refused, streams and WebSockets, load
//! tests, migrating.
//!
//! # When not to use it
//!
//! - To hold one caller to what it is entitled to: that is policy, and `rate-limit` answers 429.
//! - To bound the connections to a database: use `pool-autotune`, and this layer in front.
//! - On a service that fans out to a single client which retries at once and without bound: shedding
//!   then only moves the load into the retries.
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `layer` (default) | the Tower middleware |
//! | `client` | for clients: throttling, retry budgets, a limit that shows in readiness |
//! | `signals` | what the kernel and the runtime say, as brakes |
//! | `metrics` | metrics through the `metrics` facade |
//! | `otel` | `otel::observe`: a limiter as instruments of an OpenTelemetry meter |
//! | `serde` | [`LimiterSettings`] and [`Mode`] from configuration |
//! | `tracing` | events through `tracing` |
//!
//! # Minimum supported Rust version
//!
//! 1.88, with every feature.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(all(feature = "layer", not(loom)))]
mod accessors;
#[cfg(not(loom))]
mod accounting;
#[cfg(not(loom))]
mod admission;
#[cfg(not(loom))]
mod builder;
#[cfg(not(loom))]
mod change;
#[cfg(all(feature = "layer", not(loom)))]
mod classify;
#[cfg(not(loom))]
mod closing;
#[cfg(not(loom))]
mod error;
#[cfg(not(loom))]
mod event;
pub mod gate;
#[cfg(all(feature = "layer", not(loom)))]
mod grpc;
#[cfg(all(feature = "layer", not(loom)))]
pub mod guide;
#[cfg(all(feature = "layer", not(loom)))]
pub mod layer;
pub mod limit;
#[cfg(not(loom))]
mod limiter;
#[cfg(not(loom))]
pub mod metrics;
#[cfg(not(loom))]
mod mode;
#[cfg(all(feature = "otel", not(loom)))]
pub mod otel;
#[cfg(not(loom))]
mod partitions;
#[cfg(not(loom))]
mod pressure;
#[cfg(all(feature = "layer", not(loom)))]
mod reject;
#[cfg(not(loom))]
mod saved;
#[cfg(all(feature = "signals", not(loom)))]
pub mod signals;
#[cfg(not(loom))]
mod snapshot;
mod sync;
#[cfg(not(loom))]
mod text;
#[cfg(all(feature = "client", not(loom)))]
pub mod throttle;
#[cfg(not(loom))]
mod windows;

pub use crate::gate::Priority;
#[cfg(all(feature = "signals", not(loom)))]
pub use crate::signals::Signals;
#[cfg(not(loom))]
pub use crate::{
    accounting::Outcome,
    admission::{Admission, Admit},
    builder::LimiterBuilder,
    change::LimitChange,
    error::{ConfigError, DrainError},
    event::LimiterEvent,
    limiter::Limiter,
    mode::{LimiterSettings, Mode},
    pressure::Pressure,
    saved::{ParseSavedLimitError, SavedLimit},
    snapshot::LimiterSnapshot,
    text::ParseSettingsError,
};
#[cfg(all(feature = "layer", not(loom)))]
pub use crate::{
    classify::by_status,
    layer::{
        BoxError, Capacity, CapacityError, CapacityLayer, PlainCapacity, PlainCapacityLayer,
        UpgradePermit, priority_header,
    },
    reject::{DefaultReject, Reject, Shed, ShedHook},
};

#[cfg(all(feature = "client", not(loom)))]
pub use crate::layer::{ReadyCapacity, ReadyCapacityLayer};

// The README is tested too.
#[cfg(all(doctest, feature = "layer"))]
#[doc = include_str!("../README.md")]
struct Readme;
