//! The right to be inside.

use std::{fmt, num::NonZeroU64};

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
        Entered::with(self.entered, self.partition, is_counted)
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
#[must_use = "dropping it leaves the request inside: return it with `Gate::exit`"]
pub struct Entered(NonZeroU64);

/// In one word, which moves without a stall: `inflight:32 | counted:1 | partition:16`, and a one to make
/// room for `None`.
impl Entered {
    const COUNTED: u64 = 1 << 17;
    const PARTITION_SHIFT: u32 = 1;
    const INFLIGHT_SHIFT: u32 = 32;

    #[inline]
    pub(super) fn new(entered: GateSnapshot, partition: Partition) -> Self {
        Self::with(entered, partition, true)
    }

    #[inline]
    fn with(entered: GateSnapshot, partition: Partition, is_counted: bool) -> Self {
        let counted = if is_counted { Self::COUNTED } else { 0 };
        let partition = (partition.index() as u64) << Self::PARTITION_SHIFT;
        let inflight = (entered.inflight() as u64) << Self::INFLIGHT_SHIFT;
        Self(NonZeroU64::MIN | counted | partition | inflight)
    }

    /// Requests inside when this one had entered.
    #[inline]
    #[must_use]
    pub const fn inflight(&self) -> usize {
        (self.0.get() >> Self::INFLIGHT_SHIFT) as usize
    }

    /// `None` if the gate could not count it.
    #[inline]
    pub(super) fn partition(&self) -> Option<Partition> {
        let word = self.0.get();
        let index = word >> Self::PARTITION_SHIFT & u64::from(u16::MAX);
        (word & Self::COUNTED != 0).then(|| Partition::new(index as usize))
    }
}

impl fmt::Debug for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entered")
            .field("inflight", &self.inflight())
            .field("partition", &self.partition())
            .finish()
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
