use std::ops::RangeInclusive;

use crate::{
    accounting::Totals,
    gate::{GateSnapshot, RefusedReason},
    limit::{Explanation, Window},
};

/// The state of a [`Limiter`](crate::Limiter) at one moment.
#[derive(Clone, Debug)]
pub struct LimiterSnapshot {
    pub(crate) gate: GateSnapshot,
    pub(crate) limit: usize,
    pub(crate) held: usize,
    pub(crate) law: &'static str,
    pub(crate) explanation: Explanation,
    pub(crate) bounds: RangeInclusive<usize>,
    pub(crate) window: Option<Window>,
    pub(crate) totals: Totals,
}

impl LimiterSnapshot {
    /// Requests allowed inside, those that are [held](Self::held) apart.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// Requests inside, held ones included, each as often as it [costs](crate::gate::Ask::cost).
    #[must_use]
    pub const fn inflight(&self) -> usize {
        self.gate.inflight()
    }

    /// Requests inside that have been there for so much longer than usual that they are no measure
    /// of load: open streams, long polls, handlers that hang. They do not count against the limit.
    /// Each as often as it costs.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.held
    }

    /// Requests that wait, each as often as it costs.
    #[must_use]
    pub const fn queued(&self) -> usize {
        self.gate.queued()
    }

    /// Requests inside above the limit.
    #[must_use]
    pub const fn debt(&self) -> usize {
        self.gate.debt()
    }

    /// Whether the limiter was told to drain.
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.gate.is_closed()
    }

    /// Name of the control law.
    #[must_use]
    pub const fn law(&self) -> &'static str {
        self.law
    }

    /// Why the law took its last decision.
    #[must_use]
    pub const fn explanation(&self) -> Explanation {
        self.explanation
    }

    /// Bounds of the limit.
    #[must_use]
    pub fn bounds(&self) -> RangeInclusive<usize> {
        self.bounds.clone()
    }

    /// The last closed window; `None` before the first.
    #[must_use]
    pub const fn window(&self) -> Option<&Window> {
        self.window.as_ref()
    }

    /// Requests that completed well since the limiter was built.
    #[must_use]
    pub const fn completions(&self) -> u64 {
        self.totals.completions
    }

    /// Requests that ended in a way that signals overload since the limiter was built.
    #[must_use]
    pub const fn drops(&self) -> u64 {
        self.totals.drops
    }

    /// Requests that said nothing about capacity since the limiter was built.
    #[must_use]
    pub const fn ignored(&self) -> u64 {
        self.totals.ignored
    }

    /// Requests that their callers gave up since the limiter was built.
    #[must_use]
    pub const fn cancelled(&self) -> u64 {
        self.totals.cancelled
    }

    /// Requests refused since the limiter was built.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.totals.refusals()
    }

    /// Requests refused for this reason since the limiter was built.
    #[must_use]
    pub const fn refusals_for(&self, reason: RefusedReason) -> u64 {
        self.totals.refused[reason as usize]
    }
}
