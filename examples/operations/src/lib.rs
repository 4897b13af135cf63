//! A server with all three crates and their metrics, for the files beside it: Prometheus rules,
//! alerts with their tests and runbook, a Grafana dashboard, Kubernetes manifests.

mod app;
mod recorder;

pub use app::{Settings, app};
pub use recorder::install;
