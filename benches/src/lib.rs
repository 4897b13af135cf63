//! Benches, the simulator and the comparison suites.

#![expect(
    clippy::exhaustive_enums,
    clippy::exhaustive_structs,
    reason = "nobody depends on it"
)]

pub mod pools;
pub mod sim;
