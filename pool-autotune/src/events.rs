//! What is told through `tracing`: every resize, and every change of the reason not to.

use crate::Mode;
use crate::tuner::{Decision, NestedAcquire};

#[cfg(feature = "tracing")]
pub(crate) fn decided(pool: &str, mode: Mode, decision: &Decision) {
    use crate::tuner::Reason;

    let inputs = decision.inputs();
    macro_rules! tell {
        ($level:expr) => {
            tracing::event!(
                $level,
                pool,
                mode = mode.as_str(),
                old = decision.from(),
                new = decision.to(),
                reason = decision.reason().as_str(),
                arrival_rate = inputs.arrival_rate,
                throughput = inputs.throughput,
                mean_wait_time = inputs.mean_wait_time,
                mean_use_time = inputs.mean_use_time,
                base_use_time = inputs.base_use_time,
                utilisation = inputs.utilisation,
                demand = inputs.demand,
                "{decision}"
            )
        };
    }
    match decision.reason() {
        Reason::AtMaximum => tell!(tracing::Level::WARN),
        _ => tell!(tracing::Level::DEBUG),
    }
}

#[cfg(not(feature = "tracing"))]
pub(crate) fn decided(_pool: &str, _mode: Mode, _decision: &Decision) {}

#[cfg(feature = "tracing")]
pub(crate) fn nested(pool: &str, nested: &NestedAcquire) {
    let (holds, asks) = (nested.holds(), nested.asks());
    tracing::warn!(pool, %holds, %asks, "every connection is held by a task that waits for another");
}

#[cfg(not(feature = "tracing"))]
pub(crate) fn nested(_pool: &str, _nested: &NestedAcquire) {}

#[cfg(all(feature = "json", feature = "tracing"))]
pub(crate) fn log_failed(error: &std::io::Error) {
    tracing::warn!(%error, "the decision log ends");
}

#[cfg(all(feature = "json", not(feature = "tracing")))]
pub(crate) fn log_failed(_error: &std::io::Error) {}

#[cfg(feature = "tracing")]
pub(crate) fn dial_failed(pool: &str, error: &str) {
    tracing::warn!(pool, error, "a connection does not open");
}

#[cfg(not(feature = "tracing"))]
pub(crate) fn dial_failed(_pool: &str, _error: &str) {}

#[cfg(feature = "tracing")]
pub(crate) fn revived(pool: &str) {
    tracing::warn!(
        pool,
        "the runtime that drove the pool has ended or stands still; driven from another"
    );
}

#[cfg(not(feature = "tracing"))]
pub(crate) fn revived(_pool: &str) {}
