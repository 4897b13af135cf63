//! 429 rate limiting as a Tower layer, on governor in one process and on Redis for a fleet.
//!
//! # The problem
//!
//! One caller that asks too often takes the service away from the others. A quota says how often
//! each may ask. Whoever stays within it notices nothing; whoever does not gets a 429 that says
//! when to come back, at a fraction of the cost of an answer.
//!
//! ```no_run
//! use std::net::SocketAddr;
//!
//! use axum::{Router, extract::ConnectInfo, routing::get};
//! use rate_limit::{MINUTE, Quota, RateLimitLayer, key};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let peer = key::peer_from(|request| {
//!         Some(request.extensions().get::<ConnectInfo<SocketAddr>>()?.0.ip())
//!     });
//!     let limit = RateLimitLayer::new(Quota::count(100).per(MINUTE).burst(20))?.key(peer);
//!     let app = Router::new().route("/", get(async || "hello")).layer(limit);
//!
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//!     let service = app.into_make_service_with_connect_info::<SocketAddr>();
//!     Ok(axum::serve(listener, service).await?)
//! }
//! ```
//!
//! With the `axum` feature the default key finds that address itself and `peer` can go. Without
//! `into_make_service_with_connect_info` there is no address to find, and all requests share one
//! quota, see [`MissingKey`](key::MissingKey).
//!
//! # What it keeps
//!
//! * A key never gets more than `burst + rate × time`, exactly, under any concurrency. Several
//!   quotas are charged all or none.
//! * Memory is taken when the limiter is built and never grows. A flood of new keys cannot reset
//!   an exhausted one, see [`OnFull`].
//! * Refusing costs less than serving: no allocation, no clock calibration, no log line each.
//! * A caller cannot choose its address: a forwarding header is read only from trusted proxies,
//!   from the right, see [`key::forwarded`].
//! * Errors of the inner service pass untouched; a refusal is a response.
//! * No panic, no 500: a request without a key has a [policy](key::MissingKey) too.
//!
//! # Where to find what
//!
//! | you want | see |
//! |---|---|
//! | a key other than the peer address | [`key`] |
//! | several quotas, costs, costs known only afterwards | [`Policy`] |
//! | plans, in-flight limits, room for keys | [`LimiterBuilder`] |
//! | quotas of a key's own, lists, shadow mode, headers | [`RateLimitLayer`] |
//! | to change quotas while running | [`Limiter::set_policies`] |
//! | other answers | [`answer`] |
//! | to stay within somebody else's limits | [`shaper`] |
//! | one quota for several processes | `fleet`, with the `redis` feature |
//!
//! # What you will see
//!
//! With the `metrics` feature, [counters](metrics) by policy and outcome, never by key. With the
//! `tracing` feature, an event at `debug` for refusals, at most one a second per limiter, and at
//! `trace` for every request; keys appear as seeded hashes only. Mistakes in the setup that show
//! in traffic are told once, see [`Warning`].
//!
//! # When not to use it
//!
//! * To protect a service from more load than it can bear, whoever sends it: that is capacity,
//!   not policy. Use `tower-capacity`, which answers 503.
//! * To share one quota among processes without a Redis or Valkey. By default each process counts
//!   for itself.
//! * For windows aligned with the calendar ("until midnight").
//!
//! # Features
//!
//! None is on by default.
//!
//! | feature | adds |
//! |---|---|
//! | `axum` | [`key::peer`] also finds axum's `ConnectInfo<SocketAddr>` |
//! | `tonic` | [`key::peer`] also finds tonic's `TcpConnectInfo` |
//! | `metrics` | [counters](metrics) through the `metrics` facade |
//! | `tracing` | events through `tracing` |
//! | `quanta` | `LimiterBuilder::counter_clock`, a clock that is cheaper to read |
//! | `redis` | `fleet`: one quota for several processes, on Redis or Valkey |
//!
//! # Minimum supported Rust version
//!
//! 1.88.

#![cfg_attr(docsrs, feature(doc_cfg))]

// The README is tested too: its program needs the `axum` feature.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../README.md")]
struct Readme;

// The reference that tests judge by is shared with those outside of the crate.
#[cfg(all(test, feature = "redis"))]
extern crate self as rate_limit;

pub mod answer;
mod builder;
mod caller;
mod clock;
#[cfg(feature = "tracing")]
mod events;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub mod fleet;
mod gcra;
mod inflight;
pub mod key;
mod layer;
mod limiter;
pub mod metrics;
mod plans;
mod policy;
mod quota;
mod receipt;
mod refusal;
mod rules;
pub mod shaper;
mod store;
mod text;
mod warning;

pub use self::{
    builder::LimiterBuilder,
    caller::Caller,
    clock::ManualClock,
    inflight::Inflight,
    layer::{RateLimit, RateLimitBody, RateLimitFuture, RateLimitLayer},
    limiter::{Decision, Limiter},
    plans::Mode,
    policy::{BuildError, MAX_POLICIES, Policy, ResponseHead},
    quota::{DAY, HOUR, MINUTE, Quota, QuotaCount, QuotaError, SECOND, Unit},
    receipt::{AnyLimiter, Reservation},
    refusal::LimitError,
    store::OnFull,
    text::ParseQuotaError,
    warning::Warning,
};
