//! One quota for all processes of a fleet, kept by Redis or Valkey.
//!
//! ```no_run
//! use std::net::SocketAddr;
//!
//! use axum::{Router, routing::get};
//! use rate_limit::{Limiter, MINUTE, Quota, RateLimitLayer, fleet::FleetBackend};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let limiter = Limiter::builder()
//!         .quota(Quota::count(1_000).per(MINUTE).burst(200))
//!         .build_on(FleetBackend::new("redis://10.0.0.7", "public-api")?)?; // or `.build()?`
//!     let limit = RateLimitLayer::from_limiter(limiter);
//!     let app = Router::new().route("/", get(async || "hello")).layer(limit);
//!
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//!     let service = app.into_make_service_with_connect_info::<SocketAddr>();
//!     Ok(axum::serve(listener, service).await?)
//! }
//! ```
//!
//! Policies, plans, costs, settlement, headers, answers and the layer are those of one process,
//! and so are the decisions: both kinds of limiter are held to one set of test vectors and to one
//! model in exact arithmetic. What becomes of a debt when a key's quota changes is on
//! [`Policy`](crate::Policy); nodes with old and new policies can run side by side.
//!
//! # How it decides
//!
//! Redis runs one Lua script on one key for each caller: all policies are charged in one round
//! trip, all or none, by Redis's own clock, in integers. A refusal writes nothing, unless it is the
//! first by a quota of a key in debt. The requests of a process that wait for the same key share a
//! call, and all keys share one connection. A refusal is remembered for half a second to a second
//! and no longer than it lasts, so a refused key costs about one call a second on each node, and
//! cells that are given back elsewhere, or a key that is deleted in Redis, take effect within that
//! second.
//!
//! With a [`Lease`] a process draws cells ahead of need and spends them without asking. It is sized
//! by how often the key was asked for in the last moments; when a quota is used up, less than a
//! whole lease is not drawn, and the processes come back for it at random moments. What is not
//! spent within half a second is given back, and so is everything on
//! [`shutdown`](FleetLimiter::shutdown). A process that dies takes at most its lease along. Plans
//! lease for themselves: those that have a policy of one name divide what may be leased by the
//! smallest of their bursts.
//!
//! # How exact it is
//!
//! Let a quota have the burst `B` and the rate `R`. Let `G(a, b)` be the cells that Redis granted
//! from `a` to `b`, `V(a, b)` those that were given back, `A(a, b)` those that were admitted and
//! `O(t)` those that were granted and neither used nor given back at `t`. Only granted cells are
//! admitted, so `A(a, b) = O(a) − O(b) + G(a, b) − V(a, b)`. The level in Redis is between 0 and
//! `B`, rises by what is granted, and falls by what is given back and by at most `R (b − a)`, so
//! `G(a, b) − V(a, b) ≤ B + R (b − a)`. Therefore
//!
//! * over all time nothing is admitted that the quota does not allow:
//!   `A(0, t) ≤ B + R t`, leases or not;
//! * in any window, `A(a, b) ≤ B + R (b − a) + O(a)`. In exact mode `O(a)` is what is on its way
//!   from Redis at that moment. With leases it is at most half of `B` on top (of the smallest `B`
//!   among the plans that have the policy), or the number of nodes times [`Lease::at_most`] if
//!   that is less;
//! * with [`strict_windows`](FleetBackend::strict_windows) Redis grants that much less in a burst,
//!   and `A(a, b) ≤ B + R (b − a)`.
//!
//! This holds while Redis replies and keeps its data. An asynchronous failover that loses the last
//! writes gives that much back to each key, at most `B`.
//!
//! # When Redis is slow or gone
//!
//! A request waits for Redis no longer than the [`deadline`](FleetBackend::deadline), and nothing
//! is sent twice: a call without a reply counts as charged. After five failed calls in a
//! row, or more failures than replies among the calls of a second (twenty or more), Redis is no
//! longer asked. A probe on a new connection, after 50 to 100 ms and then up to 1 s apart, finds
//! out when it can be again. Meanwhile
//! nothing is sent, no request waits, and each policy does as its [`OnOutage`] says; by default
//! each process goes on with its share of the quota. When Redis is back it gets what was
//! admitted and, in case it has lost its data, what was owed before. It charges that beyond the
//! burst, too, up to a second one: a process that now and then waits for a call in vain has its
//! share of the quota for that moment, and pays back what is more than the quota allows.
//!
//! What remains is time in which both the quota and a share of it are in use, and the account of a
//! process that was away has already been paid off: a process that cannot reach a Redis that others
//! use adds its share of the rate for as long as that lasts.
//!
//! Scripts that were flushed are loaded again, and keys of a cluster that have moved are followed.
//! Errors that any key would meet (out of memory, loading, read-only, no permission) count as
//! failures. What is wrong with one key does not: a value that cannot be read owes nothing and is
//! written anew.
//!
//! A node that knows more keys than [`max_keys`](crate::LimiterBuilder::max_keys) forgets the half
//! that owes least. What it forgets in an outage is lost: what such a key was admitted without
//! Redis (at most its local share of one burst, and of what came back since) is not charged to it
//! afterwards, and it starts again with a local share of a whole burst.
//!
//! # What the server must allow
//!
//! These commands, on keys that start with the name of the limiter; `info` is only to warn of an
//! eviction policy that forgets debts, and `cluster|slots` only for a cluster:
//!
//! ```text
//! +eval +evalsha +script|load +time +get +set +del +zadd +zremrangebyscore +pexpire +zcard +info +cluster|slots
//! ```
//!
//! # What you will see
//!
//! [Metrics](crate::metrics) of decisions by source, of calls and their times, of leases, nodes and
//! servers that are not asked; with the `tracing` feature one event at `warn` when a server stops
//! being asked, with the reason, and one when it is asked again.
//!
//! # In tests
//!
//! Under `tokio::time::pause` the clock jumps to the deadline while Redis is being asked, so that
//! every decision is made without it. Use real time in tests that have a Redis.
//!
//! # When not to use it
//!
//! * When each process may count for itself: that takes 100 ns and no network.
//! * Across regions, where a round trip is longer than a request may wait: give each region its
//!   own share.
//! * For one decision on several different keys (by address, by tenant and for all): policies of
//!   one limiter share a key. Stack layers instead: an outer one gives back what an inner one
//!   refuses, see [`RateLimitLayer::refund_if`](crate::RateLimitLayer::refund_if).

pub(crate) mod account;
mod backend;
mod breaker;
#[cfg(test)]
#[path = "../../tests/inside/clock_steps.rs"]
mod clock_steps;
mod compile;
mod exchange;
mod failure;
#[cfg(test)]
#[path = "../../tests/inside/golden.rs"]
mod golden;
mod job;
mod level;
mod limiter;
mod link;
#[cfg(test)]
#[path = "../../tests/inside/model.rs"]
mod model;
pub(crate) mod node;
mod outage;
mod question;
mod reports;
mod router;
pub(crate) mod script;
mod server;

pub(crate) use self::{
    account::Verdict,
    node::Asked,
    question::{Question, Waiting},
};
pub use self::{
    backend::{FleetBackend, FleetError, Lease},
    limiter::{FleetLimiter, FleetReservation},
    outage::OnOutage,
};
pub use crate::layer::FleetFuture;
