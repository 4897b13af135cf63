//! What a law of another project is asked.

use std::fmt;

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
