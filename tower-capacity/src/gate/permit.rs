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

    /// Lets go of the gate, for an owner that holds it already. The request stays inside.
    pub fn into_entered(mut self) -> Entered {
        let is_counted = std::mem::replace(&mut self.is_counted, false);
        Entered {
            partition: is_counted.then_some(self.partition),
            inflight: self.entered.inflight() as u32,
        }
    }

    /// The gate as it stood when this request had just entered.
    #[must_use]
    pub const fn entered(&self) -> GateSnapshot {
        self.entered
    }
}

/// The right of one request to be inside a [`Gate`] that its owner holds anyway: a [`Permit`] without a
/// handle of its own.
///
/// Has to be given back with [`Gate::exit`]. Dropping it leaves the request inside for good.
#[derive(Debug)]
#[must_use = "dropping it leaves the request inside: return it with `Gate::exit`"]
pub struct Entered {
    /// `None` if the gate could not count it.
    pub(super) partition: Option<Partition>,
    /// Requests inside when this one had entered.
    inflight: u32,
}

impl Entered {
    #[inline]
    pub(super) const fn new(entered: GateSnapshot, partition: Partition) -> Self {
        Self {
            partition: Some(partition),
            inflight: entered.inflight() as u32,
        }
    }

    /// Requests inside when this one had entered.
    #[inline]
    #[must_use]
    pub const fn inflight(&self) -> usize {
        self.inflight as usize
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
