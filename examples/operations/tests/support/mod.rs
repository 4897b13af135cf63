//! A Prometheus of a test's own, and requests.

mod http;
mod process;
mod prometheus;

pub(crate) use self::{
    http::{Http, send},
    process::{Running, free_port, kit, program},
    prometheus::Prometheus,
};
