//! Adaptive concurrency limiting and load shedding as Tower layers, with no hand-tuned numbers.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(loom))]
mod accounting;
#[cfg(all(feature = "layer", not(loom)))]
mod classify;
pub mod gate;
#[cfg(all(feature = "layer", not(loom)))]
pub mod layer;
pub mod limit;
#[cfg(not(loom))]
mod limiter;
#[cfg(not(loom))]
pub mod metrics;
#[cfg(all(feature = "layer", not(loom)))]
mod reject;
mod sync;

#[cfg(not(loom))]
pub use crate::limiter::{
    Admission, Admit, ConfigError, DrainTimeout, LimitChange, Limiter, LimiterBuilder,
    LimiterSnapshot, Outcome,
};
#[cfg(all(feature = "layer", not(loom)))]
pub use crate::{
    classify::by_status,
    layer::{Capacity, CapacityLayer, UpgradePermit},
    reject::{DefaultReject, Reject, Shed, ShedHook},
};
