//! The right to be inside.

use std::fmt;

use super::{Gate, GateSnapshot, Partition};

/// The right of one request to be inside a [`Gate`].
///
/// Dropping it returns it, to the next waiter unless the limit was lowered meanwhile.
#[must_use = "dropping a permit returns it"]
pub struct Permit {
    gate: Gate,
    entered: GateSnapshot,
    partition: Partition,
    is_counted: bool,
}

impl Permit {
    pub(super) const fn new(gate: Gate, entered: GateSnapshot, partition: Partition) -> Self {
        Self {
            gate,
            entered,
            partition,
            is_counted: true,
        }
    }

    /// A permit of a gate that cannot count one more.
    pub(super) const fn uncounted(gate: Gate, entered: GateSnapshot) -> Self {
        Self {
            gate,
            entered,
            partition: Partition::NONE,
            is_counted: false,
        }
    }

    /// The gate that the permit belongs to.
    #[must_use]
    pub const fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The gate as it stood when this request had just entered.
    #[must_use]
    pub const fn entered(&self) -> GateSnapshot {
        self.entered
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.is_counted {
            self.gate.shared.leave(self.partition);
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("gate", &self.gate).finish()
    }
}
