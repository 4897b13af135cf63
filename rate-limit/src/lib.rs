//! 429 rate limiting as a Tower layer, on governor in one process and on Redis for a fleet.
//!
//! # The problem
//!
//! One caller that asks too often takes the service away from the others. A quota says how often
//! each may ask. A caller within its quota notices nothing; one beyond it gets a 429 that says
//! when to come back, at a fraction of the cost of a response.
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
//! With the `axum` feature, [`key::connect_info`](crate::key) is that key, and the default. Without
//! `into_make_service_with_connect_info` there is no address to find, and all requests share one
//! quota, see [`MissingKey`](key::MissingKey); that is reported at the first request, on stderr if
//! nowhere else.
//!
//! # What it keeps
//!
//! * A key never gets more than `burst + rate × time`, exactly, under any concurrency, and is never
//!   refused for longer than that says. Several quotas are charged all or none. A model in exact
//!   arithmetic judges that in the tests, through plans, reloads, refunds and floods.
//! * Memory for keys is taken when the limiter is built and does not grow with them. A flood of new
//!   keys cannot reset an exhausted one, under whatever plan it comes, see [`OnFull`].
//!   ([`max_inflight`](LimiterBuilder::max_inflight) takes memory for each key in flight.)
//! * Refusing costs less than serving: over HTTP without quota headers no allocation, and never a
//!   clock calibration or a log line each.
//! * A client cannot choose its address: a forwarding header is read only from trusted proxies,
//!   from the right, see [`key::forwarded`].
//! * A request that was not served costs nothing: what a load shedder or an inner limit refuses is
//!   given back, see [`RateLimitLayer::refund_if`].
//! * Errors of the inner service pass untouched; a refusal is a response.
//! * No panic, no 500: a request without a key has a [policy](key::MissingKey) too.
//!
//! # Where to put it
//!
//! Trace, CORS, rate limit, load shedding, handlers, from the outside in. A 429 that is made outside
//! of the CORS layer has no CORS headers, and a browser shows it as a network error; and preflight
//! requests (`OPTIONS`) that the CORS layer answers itself are then never charged. Where that order
//! is impossible, let them pass:
//!
//! ```
//! use http::Method;
//! # use rate_limit::{MINUTE, Quota, RateLimitLayer};
//! let layer = RateLimitLayer::new(Quota::count(100).per(MINUTE))?
//!     .bypass(|request| request.method == Method::OPTIONS);
//! # Ok::<(), rate_limit::BuildError>(())
//! ```
//!
//! Never key by a token that nothing has checked: a client that invents tokens gets a quota for
//! each. Put a limit by address outside of authentication and one by user inside
//! (`examples/users_and_strangers.rs`). A limit that is only sometimes wanted is switched with
//! [`Limiter::set_mode`] rather than left out.
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
//! | guides: choosing a quota, proxies, rolling out, why it refused | [`guide`] |
//! | limits off, in shadow mode or on, while running | [`Limiter::set_mode`] |
//! | what a caller has left, in a handler | [`Caller`] |
//! | quotas from configuration | `Quota: FromStr`, and the `serde` feature |
//! | to stay within the limits of another service | [`shaper`] |
//! | one quota for several processes | `fleet`, with the `redis` feature |
//!
//! # What you will see
//!
//! With the `metrics` feature, [counters](metrics) by policy and outcome, never by key. With the
//! `tracing` feature, an event at `debug` for refusals, one of them a second with one event for each policy that it
//! violates, and at `trace` for every admitted request; keys appear as hashes only. Mistakes in the setup that
//! show in traffic are reported once, see [`Warning`]. The response to a refused request carries a
//! marker, see [`answer::Refused`].
//!
//! # When not to use it
//!
//! * To protect a service from more load than it can bear: that is capacity, not policy. Use
//!   `tower-capacity`, which refuses with 503.
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
//! | `axum` | [`key::peer`] also finds axum's `ConnectInfo<SocketAddr>`; `key::connect_info` |
//! | `tonic` | [`key::peer`] also finds tonic's `TcpConnectInfo` |
//! | `metrics` | [counters](metrics) through the `metrics` facade |
//! | `otel` | `otel::observe`: a limiter as instruments of an OpenTelemetry meter |
//! | `tracing` | events through `tracing` |
//! | `serde` | [`Quota`] and [`Policy`] from configuration |
//! | `quanta` | `LimiterBuilder::counter_clock`, a clock that is cheaper to read |
//! | `redis` | `fleet`: one quota for several processes, on Redis or Valkey |
//! | `redis-tls` | the same over TLS, with rustls (`ring`) and the system's root certificates |
//!
//! # Minimum supported Rust version
//!
//! 1.88, with every feature.

#![cfg_attr(docsrs, feature(doc_cfg))]

// The README is tested too: its program needs the `axum` feature.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../README.md")]
struct Readme;

// The reference that tests judge by is shared with those outside of the crate.
#[cfg(all(test, feature = "redis"))]
extern crate self as rate_limit;

mod accessors;
pub mod answer;
mod builder;
mod caller;
mod charged;
mod charging;
mod clock;
#[cfg(feature = "tracing")]
mod events;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub mod fleet;
mod gcra;
mod grpc;
pub mod guide;
mod inflight;
pub mod key;
mod layer;
mod limiter;
pub mod metrics;
#[cfg(feature = "otel")]
#[cfg_attr(docsrs, doc(cfg(feature = "otel")))]
pub mod otel;
mod plans;
mod policy;
mod quota;
mod receipt;
mod refusal;
mod rules;
pub mod shaper;
mod store;
mod sync;
mod text;
mod warning;

pub use self::{
    builder::LimiterBuilder,
    caller::Caller,
    clock::ManualClock,
    inflight::Inflight,
    layer::{RateLimit, RateLimitBody, RateLimitFuture, RateLimitLayer},
    limiter::{Decision, Limiter, Reservation},
    plans::Mode,
    policy::{BuildError, MAX_POLICIES, Policy, ResponseHead},
    quota::{DAY, HOUR, MINUTE, Quota, QuotaCount, QuotaError, SECOND, Unit},
    receipt::{AnyLimiter, Reserved},
    refusal::LimitError,
    store::OnFull,
    text::ParseSettingsError,
    warning::Warning,
};
