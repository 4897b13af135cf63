//! What a request takes of a gate.

use super::{Partition, Priority};

/// The permits that a request takes, and as which class and of which partition.
///
/// `partition:16 | cost:8 | priority:8` in one word: it is written and read whole, so that a request that
/// is admitted at once waits for no store of a part of it.
#[derive(Clone, Copy)]
pub(crate) struct Claim(u32);

impl Claim {
    /// One permit of the default class.
    pub(crate) const ONE: Self = Self(1 << Self::COST_SHIFT | Priority::Default as u32);

    /// The most permits that one request can take.
    pub(super) const MAX_COST: u32 = 64;

    const BYTE: u32 = 0xFF;
    const COST_SHIFT: u32 = 8;
    const PARTITION_SHIFT: u32 = 16;

    pub(super) const fn with_priority(self, priority: Priority) -> Self {
        Self(self.0 & !Self::BYTE | priority as u32)
    }

    pub(super) const fn with_partition(self, partition: Partition) -> Self {
        let others = self.0 & !(u32::MAX << Self::PARTITION_SHIFT);
        Self(others | (partition.index() as u32) << Self::PARTITION_SHIFT)
    }

    /// From 1 to [`MAX_COST`](Self::MAX_COST); 0 of a permit that the gate does not count.
    pub(super) const fn with_cost(self, cost: u32) -> Self {
        let cost = if cost > Self::MAX_COST {
            Self::MAX_COST
        } else {
            cost
        };
        Self(self.0 & !(Self::BYTE << Self::COST_SHIFT) | cost << Self::COST_SHIFT)
    }

    #[inline]
    pub(crate) const fn priority(self) -> Priority {
        match self.0 & Self::BYTE {
            0 => Priority::Background,
            1 => Priority::Sheddable,
            2 => Priority::Default,
            _ => Priority::Critical,
        }
    }

    #[inline]
    pub(crate) const fn partition(self) -> Partition {
        Partition::new((self.0 >> Self::PARTITION_SHIFT) as usize)
    }

    #[inline]
    pub(crate) const fn cost(self) -> usize {
        (self.0 >> Self::COST_SHIFT & Self::BYTE) as usize
    }

    /// The line that it would wait in.
    pub(super) const fn line(self) -> LineKey {
        LineKey {
            priority: self.priority(),
            partition: self.partition(),
        }
    }
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claim")
            .field("priority", &self.priority())
            .field("partition", &self.partition())
            .field("cost", &self.cost())
            .finish()
    }
}

/// One of the lines of waiters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LineKey {
    pub(super) priority: Priority,
    pub(super) partition: Partition,
}
