//! Witnesses beside the service time, each of which can only lower a limit.
//!
//! A control law sees that requests got slower, not why. The kernel and the runtime say directly
//! that work waits for a core, for memory or for a worker, and before throughput falls. Each signal
//! is a share of the time, read twice a second. While one is high the limit is lowered by a tenth
//! each time; once it is low, the limit is let go again and grows as the law sees fit. No signal
//! raises a limit, and none goes below the limiter's bounds, or below half of the limit that it found:
//! others may be its cause, and then refusing more would change nothing. The reason of each change is the name of
//! the signal, in [`Limiter::history`](crate::Limiter::history) and in the events.
//!
//! | signal | what it is a share of | high | low |
//! |---|---|---|---|
//! | `cpu pressure` | time in which tasks waited for a core (PSI) | 0.8 | 0.6 |
//! | `cpu throttling` | periods in which the cgroup had used up its quota | 0.8 | 0.6 |
//! | `memory pressure` | time in which a task waited for memory (PSI) | 0.15 | 0.07 |
//! | `runtime lag` | time in which a task of this runtime was ready and did not run | 0.8 | 0.6 |
//! | `runtime queue` | moments at which more tasks wait in the runtime's queue than it has workers | 0.8 | 0.6 |
//! | `runtime busy` | time in which the runtime's workers were busy | 0.8 | 0.6 |
//!
//! The last two are only heeded if asked for: a runtime that is busy, or has a queue, may still serve all
//! it is asked for in time.
//!
//! 80 and 60 % are those of CPU-based load shedding at Netflix ("Enhancing Netflix Reliability with
//! Service-Level Prioritized Load Shedding", 2024); 15 % of memory pressure is the example of the
//! kernel's documentation (`Documentation/accounting/psi.rst`), and half of it the way back.

mod brake;
mod error;
mod kernel;
mod runtime;
mod watch;

pub use self::{
    error::SignalError,
    watch::{Signals, SignalsWatch},
};
