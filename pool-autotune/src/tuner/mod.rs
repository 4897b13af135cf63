//! How many connections a pool should have: a pure value, driven by windows.
//!
//! A [`Tuner`] reads no clock, takes no lock and does no I/O: [`Tuner::on_window`] is given the
//! time and what happened, and returns a [`Decision`]. So a simulator drives the very code
//! that runs in production, and every decision can be reproduced from its inputs.
//!
//! # Demand
//!
//! By Little's law λ arrivals per second that hold a connection for S seconds keep L = λ·S
//! connections busy. Square-root staffing adds slack for variation: D = ⌈L + 1.3·√(L(1 + c²)/2)⌉,
//! with c² the squared coefficient of variation of use times.
//!
//! The trap is S. When the database saturates, use times grow, so waits grow, so λ·S grows; a rule
//! that follows any of them grows the pool, which makes the database slower still. Here S is S0,
//! use time measured while the pool was *not* saturated. A database that gets slower by itself
//! does not raise D.
//!
//! # Knee
//!
//! A saturated pool may still be too small, or the database may be doing all it can: use times
//! cannot tell, throughput can. So growth of a saturated pool is an *experiment*, kept only if it
//! pays, and at the knee K where it stops paying the pool now and then tries whether fewer would do
//! (on the gate, opening and closing nothing). What is not known is no reason to let checkouts wait:
//! growth stays until an experiment speaks against it. An experiment that shows slower queries not to be
//! our doing moves S0.
//!
//! # When the target moves
//!
//! - **Up, at once**: more checkouts wait than connections are allowed, and use times are near S0
//!   (so more connections will help): demand plus what it takes to work off the backlog in half a
//!   second, within one 250 ms window, to at most 8n + 8.
//! - **Up, at once**: checkouts wait longer than a connection takes to open, or give up. Doubled at
//!   first, and again once throughput has shown that the last doubling paid; two at a time while that
//!   is not known; not at all once it has shown that more do not pay.
//! - **Up**, after one saturated window: to demand, or, if the pool was full all the time, to as
//!   many as wait and run, by at most the factor on trial (2 at first), and back if it does not pay.
//! - **Down**, 5 s after a backlog was worked off: to demand, at once.
//! - **Down**, to what the database makes use of.
//! - **Down**: to the highest demand of the last 300 s, by at most 20 % every 60 s, and not at all
//!   within a dead band of 15 %.

mod config;
mod decision;
mod demand;
mod dial;
mod knee;
#[cfg(feature = "json")]
mod log;
mod recording;
#[expect(
    clippy::module_inception,
    reason = "the type that gives the module its name"
)]
mod tuner;
mod verdict;
mod window;

pub use self::config::TunerConfig;
pub use self::decision::{Decision, Inputs, Reason};
pub use self::dial::{DialBudget, DialConfig, DialState};
pub use self::knee::{Elasticity, KneeConfig};
#[cfg(feature = "json")]
pub use self::log::{DecisionLog, DecisionLogError};
#[cfg(feature = "json")]
pub(crate) use self::log::{Given, LogWriter};
pub use self::recording::Recording;
pub use self::tuner::Tuner;
pub use self::verdict::{Cause, Leak, NestedAcquire, Verdict};
pub use self::window::PoolWindow;

#[cfg(test)]
#[path = "../../tests/inside/tuner.rs"]
mod tests;
