//! What a transaction costs, and the processors it runs on.

use std::{cmp::Reverse, collections::BinaryHeap};

/// A database.
#[derive(Clone, Copy, Debug)]
pub struct Database {
    /// Processors, shared equally by all that want one.
    pub cores: f64,
    /// κ: each other connection at work makes work take this part longer (coherency, as in the
    /// universal scalability law).
    pub contention: f64,
    /// Seconds a new connection takes without any CPU.
    pub dial_wait: f64,
    /// Seconds of CPU that a new connection costs the database.
    pub dial_cpu: f64,
}

impl Default for Database {
    /// Two cores; a connection costs the 8 ms that a SCRAM handshake with Postgres 15 took.
    fn default() -> Self {
        Self {
            cores: 2.0,
            contention: 0.002,
            dial_wait: 0.000_5,
            dial_cpu: 0.008,
        }
    }
}

/// A part of a transaction.
#[derive(Clone, Copy, Debug)]
pub enum Stage {
    /// Seconds of CPU in the database, exponential with this mean.
    Cpu(f64),
    /// Seconds without CPU, always as many: a disk, the network, the application.
    Wait(f64),
    /// Takes the hot row, first come first served; held until the transaction ends.
    Lock,
}

/// One kind of transaction.
#[derive(Clone, Debug)]
pub struct Class {
    /// How often, next to the others.
    pub weight: f64,
    /// What it does, in order.
    pub stages: Vec<Stage>,
}

impl Class {
    /// The only kind, or one as often as each other.
    #[must_use]
    pub fn of(stages: &[Stage]) -> Self {
        Self {
            weight: 1.0,
            stages: stages.to_vec(),
        }
    }
}

/// Processor sharing: everything inside advances at the same speed, so one clock of work done per
/// job, and a heap of where on it each job ends, is all there is to keep.
#[derive(Debug, Default)]
pub(super) struct Processors {
    /// Seconds of work that a job inside all along would have had.
    done: f64,
    /// Where on that clock jobs end. Positive floats are ordered as their bits are.
    ends: BinaryHeap<Reverse<(u64, usize)>>,
}

impl Processors {
    /// Seconds of work per second for each job, while `others` are at work without a processor.
    fn speed(&self, database: &Database, others: usize) -> f64 {
        let running = self.ends.len() as f64;
        let at_work = running + others as f64;
        (database.cores / running).min(1.0) / (1.0 + database.contention * (at_work - 1.0).max(0.0))
    }

    pub(super) fn advance(&mut self, seconds: f64, database: &Database, others: usize) {
        if self.ends.is_empty() {
            self.done = 0.0;
        } else {
            self.done += seconds * self.speed(database, others);
        }
    }

    pub(super) fn start(&mut self, job: usize, work: f64) {
        self.ends.push(Reverse(((self.done + work).to_bits(), job)));
    }

    /// Seconds until the next job ends, if nothing changes.
    pub(super) fn next_in(&self, database: &Database, others: usize) -> Option<f64> {
        let &Reverse((end, _)) = self.ends.peek()?;
        Some((f64::from_bits(end) - self.done).max(0.0) / self.speed(database, others))
    }

    /// The job that ends next.
    pub(super) fn finish(&mut self) -> Option<usize> {
        self.ends.pop().map(|Reverse((_, job))| job)
    }
}
