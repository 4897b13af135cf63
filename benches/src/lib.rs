//! Benches, the simulator and the comparison suites.

#![expect(
    clippy::exhaustive_enums,
    clippy::exhaustive_structs,
    reason = "nothing outside this package depends on it"
)]

pub mod cli;
pub mod pools;
pub mod sim;
