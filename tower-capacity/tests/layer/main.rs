//! The middleware contract: at the level of polls, under `axum::serve` and in a tonic server.
#![cfg(not(loom))]

mod axum;
mod contract;
mod modes;
mod nesting;
mod optional;
mod plain;
mod refusals;
mod support;
mod tonic;
mod upgrades;
