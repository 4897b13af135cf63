//! A deterministic discrete-event simulator of a service behind a limiter.
//!
//! The limiter is the shipped one, with its gate, its waiting room, its accounting and its law;
//! only the clock, the clients and the server are models. Virtual time is tokio's paused clock,
//! moved from event to event, so that everything that reads it sees the same instant.
//!
//! - [`Server`]: cores shared by all requests inside (processor sharing, with a contention
//!   coefficient), then a dependency with a bounded pool and a delay.
//! - [`Phase`]: what the clients offer and what the server has, from one moment on.
//! - [`run`]: the scenario behind one guard; [`oracle`]: the best fixed limit, phase by phase.
//! - [`scenarios`]: the table of scenarios; [`Contender`]: what is compared; [`Score`]: how well.
//!
//! The measure is *goodput*: requests answered within the objective, counted from their arrival.

mod clients;
mod contenders;
mod engine;
mod judge;
pub mod peers;
mod plot;
mod report;
pub mod scenarios;
mod server;

pub use self::{
    clients::{Balance, Class, Load, Noise, Phase, Scenario},
    contenders::{Contender, built, fixed},
    engine::{Guard, run},
    judge::{Oracle, Score, in_parallel, oracle, oracle_of},
    plot::svg,
    report::{ClassReport, PhaseReport, Report, Sample},
    server::{Server, Time},
};
