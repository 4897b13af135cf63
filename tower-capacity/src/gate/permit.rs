//! The right to be inside.

use std::{fmt, num::NonZeroU64};

use super::{Claim, Gate, GateSnapshot, Partition};

/// The right of one request to be inside a [`Gate`], where it counts as often as it
/// [costs](super::Ask::cost).
///
/// Dropping it returns it, to the next waiter unless the limit was lowered meanwhile.
#[must_use = "dropping a permit returns it"]
pub struct Permit {
    gate: Gate,
    entered: GateSnapshot,
    claim: Claim,
}

impl Permit {
    pub(super) const fn new(gate: Gate, entered: GateSnapshot, claim: Claim) -> Self {
        Self {
            gate,
            entered,
            claim,
        }
    }

    /// A permit of a gate that cannot count one more.
    pub(super) const fn uncounted(gate: Gate, entered: GateSnapshot) -> Self {
        Self {
            gate,
            entered,
            claim: Claim::ONE.with_cost(0),
        }
    }

    /// The gate that the permit belongs to.
    #[must_use]
    pub const fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Lets go of the gate, for an owner that holds it already. The request stays inside.
    pub fn into_entered(mut self) -> Entered {
        let claim = self.claim;
        self.claim = claim.with_cost(0);
        Entered::new(self.entered, claim)
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

/// In one word, which moves without a stall: `inflight:32 | cost:8 | partition:16`, and a one to make
/// room for `None`.
impl Entered {
    const PARTITION_SHIFT: u32 = 1;
    const COST_SHIFT: u32 = 17;
    const INFLIGHT_SHIFT: u32 = 32;

    #[inline]
    pub(super) fn new(entered: GateSnapshot, claim: Claim) -> Self {
        let partition = (claim.partition().index() as u64) << Self::PARTITION_SHIFT;
        let cost = (claim.cost() as u64) << Self::COST_SHIFT;
        let inflight = (entered.inflight() as u64) << Self::INFLIGHT_SHIFT;
        Self(NonZeroU64::MIN | cost | partition | inflight)
    }

    /// Requests inside when this one had entered, each as often as it costs.
    #[inline]
    #[must_use]
    pub const fn inflight(&self) -> usize {
        (self.0.get() >> Self::INFLIGHT_SHIFT) as usize
    }

    #[inline]
    pub(super) const fn partition(&self) -> Partition {
        let index = self.0.get() >> Self::PARTITION_SHIFT & u16::MAX as u64;
        Partition::new(index as usize)
    }

    /// Zero if the gate could not count it.
    #[inline]
    pub(super) const fn cost(&self) -> usize {
        (self.0.get() >> Self::COST_SHIFT & u8::MAX as u64) as usize
    }
}

impl fmt::Debug for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entered")
            .field("inflight", &self.inflight())
            .field("partition", &self.partition())
            .field("cost", &self.cost())
            .finish()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let claim = self.claim;
        if claim.cost() > 0 {
            self.gate.shared.leave(claim.partition(), claim.cost());
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("gate", &self.gate).finish()
    }
}
