//! Benches, the simulator and the comparison suites.
