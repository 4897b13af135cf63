use std::hash::{BuildHasher, Hasher, RandomState};

/// A number from 0 to 1 by which processes that started together beat apart.
pub(super) fn jitter() -> f64 {
    RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}
