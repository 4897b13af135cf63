//! One budget of connections for all processes that share a Postgres.
//!
//! Ten processes with sixty connections each in front of a server with a hundred is an outage that each
//! of them causes alone. A [`Budget`] divides what the server has by what each process needs, so that
//! together they never exceed it, and none of it lies idle while another process waits.
//!
//! ```no_run
//! use deadpool_postgres::{Manager, Pool};
//! use pool_autotune::Autotuned;
//! use pool_autotune::fleet::Budget;
//! use tokio_postgres::NoTls;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut postgres: tokio_postgres::Config = "postgres://web@db/app".parse()?;
//! let budget = Budget::postgres(postgres.clone()).create(true).start().await?;
//! budget.tag(&mut postgres); // so that the server's count tells them from others
//!
//! let pool = Pool::builder(Manager::new(postgres, NoTls)).max_size(60).build()?;
//! let pool = Autotuned::builder(pool).budget(&budget).build()?;
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//!
//! Every process beats, every five seconds, or every one to two while it has too few: one statement, one
//! round trip, over a connection of its own. It says what it uses and what it could use, and is granted a
//! number of connections for the next 15 s. Processes that hold more than their part while another waits
//! for its own are notified, and beat at once: one that joins is served within three seconds, or where the
//! notification is lost, at their next beats. Grants are made from a table in the same Postgres, under the
//! lock of one row, by [water-filling](#shares). A process raises its connections only within its grant,
//! and what one gives up is granted to another only when the *server* no longer shows the session:
//!
//! - the sum of what is granted or open never exceeds the total, by the server's count, while processes
//!   join, crash, are stopped, lose replies, and the server fails over to any table;
//! - a process that was killed is counted until its lease has ended *and* its sessions are gone;
//! - a process that wakes past its lease opens nothing until it was granted something again;
//! - on a new server nothing is raised for one lease, so that processes with rights can register them.
//!
//! This is checked by a search through every order of these events, on the code that runs.
//!
//! # Shares
//!
//! Each process gets its floor, then what it needs by weight, then what it would like to keep by weight.
//! What a process needs is what it uses or has checkouts waiting for, up to what its tuner makes of it: a
//! database that gets slower does not raise it.
//!
//! # The knee
//!
//! A database that is saturated does not do more with more connections; beyond some number it does less. One
//! process cannot find that number: what it opens takes throughput from the others, and looks like a gain. So
//! all of them try it together, on the server's clock: for two of four *slots* (high, low, low, high; 1 s each,
//! up to 10 s where queries are few or long) every process lets out half of its connections, later four
//! fifths, and opens and closes none for it. Each reports what it did in the slots; where what was kept back
//! earned nothing, shares are made of that much less from then on.
//!
//! - It is tried only where most connections in use are of pools that are full and have a queue, and only
//!   where throughput is so high that the result will be clear: some 30 queries a second for the first step,
//!   400 for a fine one.
//! - An experiment may cost 1.5 % of what was served since the fleet is saturated, or since the last that
//!   cost something: the first comes after about a minute. Once something was found, it may cost 4 %.
//! - What was found holds for 200 s without another that confirms it. It is raised by half where the
//!   last part pays after all, raised by an eighth after half a minute where it is too few to keep any back,
//!   and forgotten after 20 s without saturation and on another server.
//! - It bounds what shares are made of, and nothing that the fleet is kept below the total by. Floors are
//!   given whatever it says: with forty processes, forty pools keep one connection each.
//! - Processes with four fifths of the work have to take part: [`Config::knee`] is the switch, and a process
//!   that only reports ([`Mode::Recommend`](crate::Mode::Recommend)) does not.
//!
//! [`BudgetSnapshot::knee`] says what was found. The experiments are run by the processes; a store keeps
//! numbers for them.
//!
//! # When the store is gone
//!
//! Grants hold until their lease ends. After that no connection is opened; those that are open stay open
//! and go on serving. Working connections are never closed for a blip. Where the server has no place for
//! a connection that was granted (SQLSTATE 53300), the process shrinks to what it has, at once.
//!
//! # What you will see
//!
//! [`Verdict::BudgetBound`](crate::tuner::Verdict) where a share keeps a pool from what it could use, and
//! `AtKnee` where that is because the database makes no use of more;
//! `BudgetTooSmall` where the floors of all exceed the total; `BudgetLost`, with the reason, where there are
//! no rights. [`Budget::snapshot`] and [`PoolSnapshot::budget`](crate::PoolSnapshot::budget) have the numbers,
//! [`metrics`] their names; the table `pool_autotune.lease` shows all processes to the server's operator.
//! [`Budget::set_mode`] is the switch: in [`Mode::Recommend`](crate::Mode::Recommend) the budget beats and
//! is counted, and binds nothing.
//!
//! At shutdown, drain the pools and call [`Budget::leave`], which frees the rights at once; a process that
//! just ends is counted for one lease more.
//!
//! Where Postgres cannot keep a table, `Budget::redis` keeps the budget in a Redis or a Valkey
//! (feature `fleet-redis`): the same rules, and every process asks Postgres what sessions it shows. A Redis
//! that was restarted, emptied or failed over gives no new rights for one lease. While Redis is gone and
//! Postgres is not, a connection that breaks is not replaced once the lease has ended.
//!
//! Where the number of processes is known and the server cannot keep a table, [`Budget::fixed`] divides evenly
//! without one.
//!
//! # What it needs
//!
//! - Postgres 14 or later, asked directly: behind a transaction pooler its numbers are the pooler's, which is
//!   found out and refused ([`BudgetError::Pooler`]).
//! - The schema `pool_autotune`: run [`MIGRATION`] as its owner and [`grants`] for the role of the service,
//!   or let the first process create it ([`Config::create`]).
//! - One role for all pools that share a budget, [tagged](Budget::tag) connections, and one database where
//!   the table is, whatever databases the pools use. A session of the role that no process accounts for
//!   takes from what there is to share.
//! - Each process listens for its notification (`LISTEN`, or a channel in Redis). Up to version 18, a Postgres
//!   wakes every listener in a database for every notification in it: where an application sends hundreds a
//!   second, keep the table in another database of the server.
//!
//! A machine that is frozen with a dial in flight, for so long that the server gives up its sessions, may
//! land that dial above the total: one connection for each such dial, for a moment; and one whose clock
//! stood still meanwhile, what its lease allowed. The role's limit refuses both: `ALTER ROLE web
//! CONNECTION LIMIT 90`, which is also where the total is looked up first. It does not bind superusers.

mod beats;
mod budget;
mod config;
mod error;
mod events;
#[cfg(test)]
mod fleet_tests;
mod jitter;
#[cfg(test)]
mod kernel;
mod knee;
#[cfg(test)]
mod knee_tests;
pub mod metrics;
#[cfg(test)]
mod model;
mod pod;
mod postgres;
#[cfg(feature = "fleet-redis")]
mod redis;
#[cfg(all(test, feature = "fleet-redis"))]
mod redis_tests;
mod schema;
mod shares;
mod snapshot;
#[cfg(test)]
mod sql_tests;
mod store;
#[cfg(test)]
mod store_tests;
mod trial;

pub use self::budget::{Budget, Place};
pub(crate) use self::budget::{Member, Right};
pub use self::config::Config;
pub use self::error::BudgetError;
pub use self::schema::{MIGRATION, grants};
pub use self::snapshot::BudgetSnapshot;
