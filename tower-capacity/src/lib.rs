//! Adaptive concurrency limiting and load shedding as Tower layers, with no hand-tuned numbers.

pub mod gate;
pub mod limit;
mod sync;
