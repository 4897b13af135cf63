//! Connection pools that size themselves from observed demand.
//!
//! # The problem
//!
//! No pool size is right for long. On one machine, the best sizes for four ordinary Postgres workloads
//! lie between 2 and 48 connections (`pool_strategies` in the benches measures yours). And the usual
//! cure, to grow the pool when checkouts wait, makes a slow database slower.
//!
//! [`Autotuned`] puts one fair, bounded line in front of a pool you already have, measures how long
//! checkouts wait and how long they use their connection, and keeps as many connections as the
//! demand needs and the database makes use of: a wait opens more, and stays without effect where
//! throughput does not rise with it. See [`tuner`] for the rules.
//!
//! ```
//! use std::time::Duration;
//!
//! use deadpool_sqlite::{Config, Hook, Runtime};
//! use pool_autotune::{Autotuned, Mode};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The pool as you build it today, at the most connections it may ever have.
//! let sqlite = Config::new(":memory:").builder(Runtime::Tokio1)?.max_size(16).build()?;
//!
//! let pool = Autotuned::builder(sqlite)
//!     .bounds(2..=16)
//!     .mode(Mode::Enforce) // or `Recommend`, which only reports
//!     .wait_timeout(Duration::from_millis(500))
//!     .name("orders")
//!     .build()?;
//!
//! let connection = pool.get().await?; // derefs to what deadpool would have given you
//! let one: i64 = connection.interact(|db| db.query_row("SELECT 1", [], |row| row.get(0))).await??;
//! assert_eq!(one, 1);
//! drop(connection);
//!
//! let now = pool.snapshot();
//! println!("{} connections of {} wanted, wait p95 {:?}", now.size(), now.target(), now.wait_p95());
//! for decision in pool.decisions() {
//!     println!("{decision}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What you will see
//!
//! OpenTelemetry's `db.client.connection.*` metrics plus the target and its changes (see
//! [`metrics`]); a `tracing` event for every decision; [`Autotuned::decisions`] with the numbers
//! each was based on; [`Autotuned::verdict`] with what is the matter, and [`Autotuned::report`] with
//! both in a paragraph. [`Autotuned::pressure`] says how hard the pool is pressed, for a limiter
//! upstream to shed a request before it waits for a connection it will not get:
//! `Limiter::builder().downstream(move || pool.pressure())` of `tower-capacity`. At the knee of the
//! database the queue is shed from by [`Codel`], since no size would serve it
//! ([`Builder::codel`]).
//!
//! [`guide`] says more: sizing the maximum, several processes, rolling out, why there was no
//! connection, migrating.
//!
//! # Words
//!
//! - *Wait time*, *use time*: how long a checkout waits for its turn; how long it holds its connection.
//! - *Demand*: connections that the arrivals need, by Little's law, with some slack.
//! - *Target*, *limit*: connections the tuner wants; connections allowed out now.
//! - *Saturated*: checkouts wait for connections. *Starving*: for longer than one takes to
//!   open, or than 25 ms, although more are allowed.
//! - *Knee*: the size beyond which the database does no more work. *Elasticity*: by which part
//!   throughput rises with connections: 1, each earns its share; 0, none does.
//! - *On trial*: a growth, while its throughput is compared with that before it.
//! - *Held*: out for 10 s and twenty times the usual use time, at least.
//!
//! # When not to use it
//!
//! - For a single writer: SQLite's, or one behind an advisory lock. Its size is 1.
//! - In front of a server that many processes share when together they may exceed its connection
//!   limit, unless they share a `fleet::Budget` (feature `fleet`): each tunes itself.
//! - Behind connections kept for life (`LISTEN`, a leader's lock), beyond a few: they are counted apart
//!   and leave the rest of the maximum to others, but each is one less. See [`Checkout::detach`].
//! - Together with another resizer of the same pool, or with checkouts that bypass the gate.
//!
//! # Features
//!
//! None is on by default.
//!
//! - `deadpool`: an [`adapter`] for deadpool's managed pools, with any manager.
//! - `bb8`: an [`adapter`] for bb8, with any connection manager.
//! - `sqlx-0_8`, `sqlx-0_9`: an [`adapter`] for sqlx of that version, with any database; `sqlx` is the
//!   newest, 0.9. Both can be on. `sqlx-0_9` needs Rust 1.94, as sqlx 0.9 does; every other feature 1.88.
//! - `postgres`: read SQLSTATEs from the errors of tokio-postgres, and so tell a failover. (The features
//!   for sqlx read those of sqlx.)
//! - `fleet`: one budget of connections for all processes that share a Postgres (`fleet`).
//! - `fleet-redis`: the same, with the budget kept in a Redis or a Valkey.
//! - `json`: a log of decisions as lines of JSON ([`Builder::decision_log`]), and its replay.
//! - `metrics`: report through the `metrics` facade.
//! - `otel`: the pool as instruments of an OpenTelemetry meter (`otel::observe`).
//! - `quanta`: [`Builder::counter_clock`], a clock that is cheaper to read.
//! - `serde`: [`PoolSettings`], [`Bounds`] and [`Mode`] from configuration.
//! - `tracing`: an event for every decision.
//!
//! The minimum supported Rust version is 1.88, and 1.94 with `sqlx-0_9` and `sqlx`.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod adapter;
mod ages;
mod aging;
mod autotuned;
mod bounds;
mod builder;
mod check;
mod checkout;
mod clock;
mod control;
mod driver;
mod error;
mod events;
#[cfg(feature = "fleet")]
pub mod fleet;
pub mod guide;
mod holders;
pub mod metrics;
mod observed;
mod opening;
#[cfg(feature = "otel")]
pub mod otel;
mod report;
mod rights;
mod settings;
mod shared;
mod snapshot;
mod sqlstate;
mod stats;
mod sync;
mod text;
pub mod tuner;

pub use crate::autotuned::Autotuned;
pub use crate::bounds::{Bounds, BoundsError, Plan, PlanError};
pub use crate::builder::{Builder, Mode};
pub use crate::checkout::{Checkout, Place};
pub use crate::error::{BuildError, Error, Overload};
pub use crate::observed::{Counts, Observation, Observe, Observed};
pub use crate::report::Report;
pub use crate::settings::PoolSettings;
pub use crate::snapshot::PoolSnapshot;
pub use crate::text::ParseSettingError;
pub use tower_capacity::Pressure;
pub use tower_capacity::gate::{Ask, Codel, Priority};
