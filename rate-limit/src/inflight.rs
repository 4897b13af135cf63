//! How many requests of a key run at once.

use crate::sync::lock;
use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasherDefault, Hasher},
    sync::{Arc, Mutex, MutexGuard},
};

/// The right of one request of a key to run; gives it back when dropped.
///
/// Made by [`Limiter::enter`](crate::Limiter::enter). The layer keeps one until the response body
/// ends or is dropped. An upgraded connection (WebSocket) outlives its response: have the handler
/// `enter` for itself and keep this as long as the connection lives.
pub struct Inflight {
    counts: Arc<InflightCounts>,
    key: u64,
}

impl Drop for Inflight {
    fn drop(&mut self) {
        let mut shard = self.counts.shard(self.key);
        if let Some(count) = shard.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                shard.remove(&self.key);
            }
        }
    }
}

impl fmt::Debug for Inflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inflight")
    }
}

/// Counts by key. Only keys with requests in flight are in it, so it is as large as the server's
/// own concurrency and needs no eviction.
pub(crate) struct InflightCounts {
    /// Of each plan; the plans share the counts.
    limits: Box<[u32]>,
    shards: [Mutex<Shard>; SHARDS],
}

/// Keys are hashes already.
type Shard = HashMap<u64, u32, BuildHasherDefault<Identity>>;

impl InflightCounts {
    pub(crate) fn new(limits: Box<[u32]>) -> Arc<Self> {
        Arc::new(Self {
            limits,
            shards: std::array::from_fn(|_| Mutex::default()),
        })
    }

    /// Counts one more for `key`, if it is not at the limit of the plan with this number.
    pub(crate) fn enter(self: &Arc<Self>, plan: usize, key: u64) -> Option<Inflight> {
        let mut shard = self.shard(key);
        let count = shard.entry(key).or_insert(0);
        if *count >= self.limits[plan] {
            return None;
        }
        *count += 1;
        Some(Inflight {
            counts: Arc::clone(self),
            key,
        })
    }

    pub(crate) fn inflight(&self, key: u64) -> u32 {
        self.shard(key).get(&key).copied().unwrap_or(0)
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, Shard> {
        // Nothing panics while it is held; and a count is right after every statement.
        lock(&self.shards[key as usize % SHARDS])
    }
}

impl fmt::Debug for InflightCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InflightCounts")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
pub(crate) struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0 << 8 | u64::from(byte);
        }
    }

    fn write_u64(&mut self, key: u64) {
        // The low bits chose the shard.
        self.0 = key.rotate_right(SHARDS.trailing_zeros());
    }
}

/// Fewer threads than this contend, on any machine that we know of.
const SHARDS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_at_its_limit_is_refused_until_one_leaves_and_others_are_not() {
        let counts = InflightCounts::new([2, 3].into());
        let first = counts.enter(0, 1).unwrap();
        let _second = counts.enter(0, 1).unwrap();
        assert!(counts.enter(0, 1).is_none());
        assert!(
            counts.enter(0, 65).is_some(),
            "another key of the same shard"
        );
        let third = counts.enter(1, 1);
        assert!(third.is_some(), "by a plan that allows more");
        drop((first, third));
        assert!(counts.enter(0, 1).is_some());
    }

    #[test]
    fn nothing_is_left_behind() {
        let counts = InflightCounts::new([1].into());
        for key in 0..1_000 {
            drop(counts.enter(0, key));
        }
        assert!(
            counts
                .shards
                .iter()
                .all(|shard| shard.lock().unwrap().is_empty())
        );
    }
}
