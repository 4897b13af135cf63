//! Other projects' published laws, for comparison.
//!
//! Written from their descriptions and documented defaults, none of their code is here. Each sees
//! every request that ends, as in its own project, and moves the limit of the shipped gate; none
//! has a waiting room unless its project has one.

mod bbr;
mod envoy;
mod failsafe;
mod little;
mod netflix;
mod prototype;

use std::fmt;

pub use self::{
    bbr::Bbr,
    envoy::Envoy,
    failsafe::Failsafe,
    little::Little,
    netflix::{Aimd, Gradient2, Vegas},
    prototype::Prototype,
};

/// An admitted request that ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Seconds since the start of the run.
    pub now: f64,
    /// Seconds from admission to the end.
    pub took: f64,
    /// Requests inside when it entered, itself included.
    pub inflight: usize,
    /// Requests inside now.
    pub inflight_now: usize,
    /// Answered. Otherwise its client went away first.
    pub success: bool,
}

/// A law that another project published.
pub trait Peer: fmt::Debug + Send {
    /// The limit before the first request.
    fn initial(&self) -> usize;

    /// A request was admitted; `inflight` counts it.
    fn on_start(&mut self, _now: f64, _inflight: usize) {}

    /// A request was refused.
    fn on_refuse(&mut self) {}

    /// Reads how a request ended and returns the limit.
    fn on_end(&mut self, ended: Ended) -> usize;

    /// Ten times a second; `cpu` is the share of the cores that was busy since the last time.
    fn on_tick(&mut self, now: f64, cpu: f64) -> usize;

    /// How many may wait.
    fn queue(&self) -> usize {
        0
    }
}

/// The value below which a share of the values lies.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    let index = ((values.len() as f64 * share) as usize).min(values.len() - 1);
    *values.select_nth_unstable_by(index, f64::total_cmp).1
}
