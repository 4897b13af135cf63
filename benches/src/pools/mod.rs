//! A deterministic discrete-event model of a database behind a connection pool.
//!
//! The shipped [`Tuner`](pool_autotune::tuner::Tuner) and
//! [`DialBudget`](pool_autotune::tuner::DialBudget) are driven as the pure values they are; only
//! the clock, the callers, the gate and the database are models. Callers come at random moments
//! (Poisson) whatever becomes of them, stand in one line, and give up after two seconds.
//!
//! - [`Database`]: cores shared by all that work (processor sharing, slowed by a coherency
//!   coefficient), what a new connection costs, and one hot row.
//! - [`Phase`]: what callers do, and what the database has, from one moment on.
//! - [`run`]: a scenario under one policy; [`sweep`]: under all static sizes, for the oracle.
//! - [`Rule`]: the policies that are compared, also used by `pool_strategies` on a real Postgres.

mod database;
mod engine;
mod hill_climbing;
mod judge;
mod rule;
pub mod scenarios;

pub use self::{
    database::{Class, Database, Stage},
    engine::{PhaseReport, Report, run},
    hill_climbing::HillClimbing,
    judge::{Oracle, Score, oracle, sweep},
    rule::{Contender, Rule, Seen},
    scenarios::{Phase, Scenario},
};
