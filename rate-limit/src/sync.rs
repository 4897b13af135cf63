//! Locks that outlive a panic. This file is the same in `rate-limit` and `pool-autotune`.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, whether or not a thread panicked while it held it.
///
/// No critical section in this crate leaves its data half-written, so the flag says nothing that
/// a caller could act on.
#[inline]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
