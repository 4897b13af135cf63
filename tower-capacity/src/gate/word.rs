//! The state of a gate in one atomic word.

use super::Priority;
use crate::sync::{AtomicU64, Ordering};

/// Bits of each of the three counts; the sixty-fourth bit says whether the gate is closed.
const BITS: u32 = 21;
const MASK: u64 = (1 << BITS) - 1;

/// Largest limit and longest queue that a gate can hold: 2,097,151.
pub(crate) const MAX: usize = MASK as usize;

/// One request inside.
const INFLIGHT: u64 = 1;
/// One waiter in the waiting room.
const QUEUED: u64 = 1 << BITS;
/// Where the limit starts.
const LIMIT_SHIFT: u32 = 2 * BITS;
/// The gate admits no new request.
const CLOSED: u64 = 1 << (3 * BITS);

/// What a gate has to have room for.
#[derive(Clone, Copy)]
pub(super) struct Class {
    pub(super) priority: Priority,
    /// Permits that the gate reserves for the highest class.
    pub(super) reserved: usize,
}

/// `closed:1 | limit:21 | queued:21 | inflight:21`, read in one load.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(u64);

impl Word {
    #[inline]
    pub(super) const fn inflight(self) -> usize {
        (self.0 & MASK) as usize
    }

    #[inline]
    pub(super) const fn queued(self) -> usize {
        (self.0 >> BITS & MASK) as usize
    }

    #[inline]
    pub(super) const fn limit(self) -> usize {
        (self.0 >> LIMIT_SHIFT & MASK) as usize
    }

    #[inline]
    pub(super) const fn is_closed(self) -> bool {
        self.0 & CLOSED != 0
    }

    /// Whether a permit is free for this class.
    #[inline]
    pub(super) const fn has_room(self, class: Class) -> bool {
        self.inflight() < class.priority.room_in(self.limit(), class.reserved)
    }

    /// Whether a new request may enter: a permit is free and no waiter is to have it.
    #[inline]
    const fn admits_newcomer(self, class: Class) -> bool {
        self.has_room(class) && self.queued() == 0 && !self.is_closed()
    }

    /// Whether none is inside and none waits.
    pub(super) const fn is_idle(self) -> bool {
        self.0 & (MASK | MASK << BITS) == 0
    }

    const fn with_limit(self, limit: usize) -> Self {
        Self(self.0 & !(MASK << LIMIT_SHIFT) | (limit as u64) << LIMIT_SHIFT)
    }
}

/// The word, shared.
///
/// # Memory ordering
///
/// All four parts change in one modification order, so "is a permit free" and "does a request wait"
/// are never read at two different moments: that alone is what rules out a lost wake-up.
/// Entering acquires and leaving releases, so what a request wrote before it returned its permit
/// is visible to the request that gets the permit next.
pub(super) struct AtomicWord(AtomicU64);

impl AtomicWord {
    pub(super) fn new(limit: usize) -> Self {
        Self(AtomicU64::new((limit as u64) << LIMIT_SHIFT))
    }

    #[inline]
    pub(super) fn load(&self) -> Word {
        Word(self.0.load(Ordering::Acquire))
    }

    /// Enters as a new request. Returns the word as it then was, or the word that refused.
    #[inline]
    pub(super) fn try_enter(&self, class: Class) -> Result<Word, Word> {
        self.update(|word| {
            word.admits_newcomer(class)
                .then_some(Word(word.0.wrapping_add(INFLIGHT)))
        })
    }

    /// Enters past a line that holds none of this class or a higher one.
    pub(super) fn try_overtake(&self, class: Class) -> Result<Word, Word> {
        self.update(|word| {
            (word.has_room(class) && !word.is_closed())
                .then_some(Word(word.0.wrapping_add(INFLIGHT)))
        })
    }

    /// Enters whatever the limit says, unless one more inside could not be counted.
    pub(super) fn enter(&self) -> Result<Word, Word> {
        self.update(|word| (word.inflight() < MAX).then_some(Word(word.0.wrapping_add(INFLIGHT))))
    }

    /// Leaves. Returns the word as it then was.
    #[inline]
    pub(super) fn leave(&self) -> Word {
        Word(self.0.fetch_sub(INFLIGHT, Ordering::AcqRel) - INFLIGHT)
    }

    /// Stands in line.
    pub(super) fn queue(&self) -> Word {
        Word(self.0.fetch_add(QUEUED, Ordering::AcqRel) + QUEUED)
    }

    /// Steps out of line without having entered.
    pub(super) fn unqueue(&self) -> Word {
        Word(self.0.fetch_sub(QUEUED, Ordering::AcqRel) - QUEUED)
    }

    /// Moves one waiter of this class inside, if a permit is free for it.
    pub(super) fn admit_waiter(&self, class: Class) -> Result<Word, Word> {
        self.update(|word| {
            (word.has_room(class) && word.queued() > 0)
                .then_some(Word(word.0.wrapping_sub(QUEUED).wrapping_add(INFLIGHT)))
        })
    }

    /// Sets the limit. Returns the word as it was before.
    pub(super) fn set_limit(&self, limit: usize) -> Word {
        let mut word = self.load();
        loop {
            match self.exchange(word, word.with_limit(limit)) {
                Ok(()) => return word,
                Err(now) => word = now,
            }
        }
    }

    pub(super) fn close(&self) -> Word {
        Word(self.0.fetch_or(CLOSED, Ordering::AcqRel))
    }

    pub(super) fn reopen(&self) -> Word {
        Word(self.0.fetch_and(!CLOSED, Ordering::AcqRel))
    }

    #[inline]
    fn update(&self, next: impl Fn(Word) -> Option<Word>) -> Result<Word, Word> {
        let mut word = self.load();
        loop {
            let Some(new) = next(word) else {
                return Err(word);
            };
            match self.exchange(word, new) {
                Ok(()) => return Ok(new),
                Err(now) => word = now,
            }
        }
    }

    #[inline]
    fn exchange(&self, current: Word, new: Word) -> Result<(), Word> {
        self.0
            .compare_exchange_weak(current.0, new.0, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
            .map_err(Word)
    }
}
