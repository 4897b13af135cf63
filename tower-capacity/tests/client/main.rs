//! The layers of a client.
#![cfg(not(loom))]

mod answer;
mod ready;
mod situations;
mod support;
mod throttle_events;
mod throttle_layer;
mod throttle_metrics;
mod throttle_servers;
mod throttle_value;
