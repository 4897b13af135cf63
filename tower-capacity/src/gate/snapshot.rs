//! The state of a gate at one moment.

use std::fmt;

use super::word::Word;

/// The state of a gate at one moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct GateSnapshot(pub(super) Word);

impl GateSnapshot {
    /// Requests allowed inside.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.0.limit()
    }

    /// Requests inside, each as often as it costs.
    #[must_use]
    pub const fn inflight(&self) -> usize {
        self.0.inflight()
    }

    /// Requests that wait, each as often as it costs.
    #[must_use]
    pub const fn queued(&self) -> usize {
        self.0.queued()
    }

    /// Requests inside above the limit.
    #[must_use]
    pub const fn debt(&self) -> usize {
        self.0.inflight().saturating_sub(self.0.limit())
    }

    /// Whether the gate refuses every request.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    pub(super) fn fields(self, f: &mut fmt::DebugStruct<'_, '_>) -> fmt::Result {
        f.field("limit", &self.limit())
            .field("inflight", &self.inflight())
            .field("queued", &self.queued())
            .field("closed", &self.is_closed())
            .finish()
    }
}

impl fmt::Debug for GateSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fields(&mut f.debug_struct("GateSnapshot"))
    }
}
