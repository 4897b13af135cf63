//! Which part of the limit each partition is entitled to.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
};

use super::word::Word;

/// A part of a gate's requests, such as those of one tenant or of one route, that is guaranteed a
/// share of the limit.
///
/// A partition may fill what others leave idle. When permits are short, one that holds less than
/// its guarantee is served first, and those that borrow wait: so one tenant's surge costs the
/// others at most the time until the next permit comes free. Requests inside are never interrupted.
///
/// A partition that has no share of its own ([`GateConfig::shares`](super::GateConfig::shares)) is
/// guaranteed an equal part of what is not given away, among those of its kind that are in use.
///
/// Max-min fairness over the permits held, which is what fair queueing does for packets (Demers,
/// Keshav & Shenker 1989), with the drop from the longest queue (McKenney 1990) for a full room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition(u16);

impl Partition {
    /// All requests that belong to no other partition.
    pub const NONE: Self = Self(0);

    /// How many partitions a gate tells apart, besides [`NONE`](Self::NONE): 1,023.
    pub const MAX: usize = Self::COUNT - 1;

    /// Bits that an index needs.
    pub(crate) const BITS: u32 = 10;
    const COUNT: usize = 1 << Self::BITS;

    /// The partition with this index, of 1 to [`MAX`](Self::MAX); larger ones wrap around, zero is
    /// [`NONE`](Self::NONE).
    #[must_use]
    pub const fn new(index: usize) -> Self {
        if index == 0 {
            return Self::NONE;
        }
        Self(((index - 1) % Self::MAX) as u16 + 1)
    }

    /// Position among the partitions of a gate.
    #[must_use]
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Permits out, by partition. Costs nothing until the first partition is used.
#[derive(Debug)]
pub(super) struct Partitions {
    /// Guaranteed shares of the limit, of the partitions from 1 on.
    shares: Box<[f64]>,
    /// What is left for those without one.
    rest: f64,
    cells: OnceLock<Box<[AtomicU32]>>,
    /// Partitions without a share of their own that have requests inside.
    sharing_rest: AtomicUsize,
}

/// How much of the limit a partition is entitled to and holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) inflight: usize,
    pub(super) guarantee: f64,
}

impl Standing {
    /// Whether one more would still be within the guarantee.
    pub(super) fn is_entitled(&self) -> bool {
        (self.inflight as f64) < self.guarantee
    }

    /// How much it would hold with `more`, as a multiple of its guarantee.
    pub(super) fn load(&self, more: usize) -> f64 {
        // A partition with nothing guaranteed comes last, not nowhere.
        (self.inflight + more) as f64 / self.guarantee.max(1e-9)
    }
}

impl Partitions {
    pub(super) fn new(shares: &[f64]) -> Self {
        Self {
            shares: shares.into(),
            rest: (1.0 - shares.iter().sum::<f64>()).max(0.0),
            cells: OnceLock::new(),
            sharing_rest: AtomicUsize::new(0),
        }
    }

    #[inline]
    pub(super) fn enter(&self, partition: Partition, cost: usize) {
        if partition != Partition::NONE {
            self.count_in(partition, cost as u32);
        }
    }

    #[inline]
    pub(super) fn leave(&self, partition: Partition, cost: usize) {
        if partition != Partition::NONE {
            self.count_out(partition, cost as u32);
        }
    }

    fn count_in(&self, partition: Partition, cost: u32) {
        let cells = self.cells.get_or_init(|| {
            let cells = (0..Partition::COUNT).map(|_| AtomicU32::new(0));
            cells.collect()
        });
        if cells[partition.index()].fetch_add(cost, Relaxed) == 0 && !self.has_share(partition) {
            self.sharing_rest.fetch_add(1, Relaxed);
        }
    }

    fn count_out(&self, partition: Partition, cost: u32) {
        let Some(cells) = self.cells.get() else {
            return;
        };
        if cells[partition.index()].fetch_sub(cost, Relaxed) == cost && !self.has_share(partition) {
            self.sharing_rest.fetch_sub(1, Relaxed);
        }
    }

    const fn has_share(&self, partition: Partition) -> bool {
        partition.index() != 0 && partition.index() <= self.shares.len()
    }

    /// Permits that requests of a partition hold.
    pub(super) fn inflight(&self, partition: Partition, word: Word) -> usize {
        let inside = |cell: &AtomicU32| cell.load(Relaxed) as usize;
        let cells = self.cells.get().map_or(&[][..], |cells| cells);
        if partition == Partition::NONE {
            let others = cells.iter().map(inside).sum();
            return word.inflight().saturating_sub(others);
        }
        cells.get(partition.index()).map_or(0, inside)
    }

    /// `newcomers`: partitions without a share that wait and have none inside.
    pub(super) fn standing(&self, partition: Partition, word: Word, newcomers: usize) -> Standing {
        let inflight = self.inflight(partition, word);
        let share = if self.has_share(partition) {
            self.shares[partition.index() - 1]
        } else {
            // NONE is not counted when it enters.
            let nobodies = usize::from(partition == Partition::NONE && inflight > 0);
            let sharing = self.sharing_rest.load(Relaxed) + newcomers + nobodies;
            self.rest / sharing.max(1) as f64
        };
        Standing {
            inflight,
            guarantee: share * word.limit() as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_wrap_around_and_never_become_none() {
        assert_eq!(Partition::new(0), Partition::NONE);
        for index in [1, 2, Partition::MAX, Partition::MAX + 1, usize::MAX] {
            let partition = Partition::new(index);
            assert!((1..=Partition::MAX).contains(&partition.index()));
        }
        assert_eq!(Partition::new(Partition::MAX + 1), Partition::new(1));
    }
}
