//! The gate: which request enters now.
//!
//! A [`Gate`] is a counter of requests inside, with a limit that can be moved at any time and one
//! bounded waiting room in front of it. It knows no control law, no HTTP and no pool; the limiter
//! of this crate and the pools of `pool-autotune` both stand behind one.
//!
//! ```
//! use std::time::Duration;
//! use tower_capacity::gate::{Gate, GateConfig};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let gate = Gate::new(GateConfig::new(2).max_queue(8).max_wait(Duration::from_millis(50)));
//!
//! let first = gate.acquire().await?;
//! let second = gate.acquire().await?;
//! assert!(gate.try_acquire().is_err(), "two are inside, no other enters");
//!
//! gate.set_limit(1);
//! assert_eq!(gate.debt(), 1, "a permit is never revoked: the gate is owed one");
//! drop(first);
//! assert_eq!((gate.inflight(), gate.debt()), (1, 0));
//! # drop(second);
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! - **Fast path.** Entering and leaving an uncontended gate is one compare-and-swap and one
//!   subtraction on a single atomic word: no lock, no allocation.
//! - **Order.** Waiters of a [class](Priority) and [partition](Partition) are admitted in order of
//!   arrival, those of a higher class first, and a new request never overtakes its own class: while
//!   one of it waits, [`try_acquire`](Gate::try_acquire) refuses and [`acquire`](Gate::acquire)
//!   waits in line.
//!   Only a line that is [overloaded](Codel) is served from its end.
//! - **Resize.** A limit lowered below the requests inside leaves a *debt*: the next permits that
//!   return are not handed on until it is paid. So inflight ≤ limit + debt, always.
//! - **Cost.** A request that [costs](Ask::cost) more than one permit counts as that many, inside
//!   and in line. It enters when all of them are free; what comes free meanwhile is kept for it. One
//!   that costs more than the limit enters an empty gate.
//! - **Cancel safety.** A waiter dropped at any point gives back its place, or the permit that it
//!   was just handed.
//!
//! How it differs from `tokio::sync::Semaphore`: the limit can be lowered while permits are out
//! and waiters queue (`forget_permits` cannot take back a permit that a release has already given
//! to a waiter), and the line is bounded in length and in time.

mod acquire;
mod ask;
mod claim;
mod codel;
mod config;
mod entry;
#[expect(
    clippy::module_inception,
    reason = "the type that gives the module its name"
)]
mod gate;
mod partition;
mod permit;
mod priority;
mod queue;
mod refused;
mod shared;
mod snapshot;
mod word;

#[cfg(not(loom))]
pub(crate) use self::acquire::Enter;
pub(crate) use self::claim::Claim;
pub(crate) use self::word::MAX;
pub use self::{
    acquire::Acquire,
    ask::Ask,
    codel::Codel,
    config::GateConfig,
    gate::Gate,
    partition::Partition,
    permit::{Entered, Permit},
    priority::Priority,
    refused::{Refused, RefusedReason},
    snapshot::GateSnapshot,
};
