//! Which key belongs to which partition.

use std::hash::{BuildHasher, RandomState};

use crate::gate::Partition;

/// The keys that have a share of their own, and where all others go.
#[derive(Debug)]
pub(crate) struct PartitionNames {
    /// Of the partitions from 1 on.
    named: Vec<Box<str>>,
    hasher: RandomState,
}

impl PartitionNames {
    pub(crate) fn new(named: Vec<Box<str>>) -> Self {
        Self {
            named,
            hasher: RandomState::new(),
        }
    }

    pub(crate) fn find(&self, key: &str) -> Partition {
        if let Some(index) = self.named.iter().position(|name| **name == *key) {
            return Partition::new(index + 1);
        }
        let first = self.named.len() + 1;
        let count = Partition::MAX + 1 - first;
        if count == 0 {
            return Partition::NONE;
        }
        Partition::new(first + self.hasher.hash_one(key) as usize % count)
    }
}
