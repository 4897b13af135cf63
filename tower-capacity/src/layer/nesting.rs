//! Which limiters count the request that this thread works on.
//!
//! A limiter that stands twice in a stack, such as around a router and around one of its routes,
//! counts a request once: the inner layer sees that the outer one counts it already. The mark is
//! set while a layer calls or polls what is inside it, and so costs no allocation, as a mark in the
//! request's extensions would. A task that is spawned inside is not marked.

use std::cell::Cell;

/// Limiters that are told apart in one stack; one further out is forgotten.
const DEPTH: usize = 4;

thread_local! {
    /// [`Limiter::id`](crate::Limiter::id)s, the innermost first; zero for none.
    static COUNTING: Cell<[usize; DEPTH]> = const { Cell::new([0; DEPTH]) };
}

/// Whether the request is inside a layer that counts it with this limiter.
#[inline]
pub(super) fn is_counted_by(limiter: usize) -> bool {
    // Zero for a request that passes its first layer, as most do.
    let [first, others @ ..] = COUNTING.get();
    first != 0 && (first == limiter || others.contains(&limiter))
}

/// Marks what happens until it is dropped as inside a layer that counts with a limiter, or with
/// none: zero.
pub(super) struct Inside {
    outer: [usize; DEPTH],
}

impl Inside {
    #[inline]
    pub(super) fn of(limiter: usize) -> Self {
        let outer = COUNTING.get();
        let [first, second, third, _forgotten] = outer;
        if limiter != 0 {
            COUNTING.set([limiter, first, second, third]);
        }
        Self { outer }
    }
}

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        COUNTING.set(self.outer);
    }
}
