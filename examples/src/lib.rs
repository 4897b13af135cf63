//! Runnable examples of graceful degradation. Each opens with the command that runs it.

/// The program of the workspace's README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
