//! The state of a gate in one atomic word.

use super::Priority;
use crate::sync::{AtomicU64, Ordering};

/// Bits of each of the three counts, in permits; the sixty-fourth bit says whether the gate is
/// closed.
const BITS: u32 = 21;
const MASK: u64 = (1 << BITS) - 1;

/// Largest limit and longest queue that a gate can hold: 2,097,151.
pub(crate) const MAX: usize = MASK as usize;

/// One permit that is out.
const INFLIGHT: u64 = 1;
/// One permit that a waiter wants.
const QUEUED: u64 = 1 << BITS;
/// Where the limit starts.
const LIMIT_SHIFT: u32 = 2 * BITS;
/// The gate admits no new request.
const CLOSED: u64 = 1 << (3 * BITS);

/// What a gate has to have room for.
#[derive(Clone, Copy)]
pub(super) struct Need {
    pub(super) priority: Priority,
    /// Permits that the gate reserves for the highest class.
    pub(super) reserved: usize,
    /// Permits that the request takes.
    pub(super) cost: usize,
    /// Permits of the limit that are out for good. Read only where `cost` is above one.
    pub(super) held: usize,
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

    /// Whether at least one permit is free for the class of the request.
    #[inline(always)]
    pub(super) const fn has_permit(self, need: Need) -> bool {
        self.inflight() < need.priority.room_in(self.limit(), need.reserved)
    }

    /// Whether all permits that the request takes are free for its class, or all that its class
    /// may fill: a request that costs more than those enters once it has the class to itself.
    #[inline(always)]
    pub(super) fn has_room(self, need: Need) -> bool {
        self.has_permit(need) && (need.cost == 1 || self.has_room_for_costly(need))
    }

    #[cold]
    #[inline(never)]
    fn has_room_for_costly(self, need: Need) -> bool {
        let room = need.priority.room_in(self.limit(), need.reserved);
        let most = room.saturating_sub(need.held);
        self.inflight() + need.cost.min(most) <= room
    }

    /// Whether a new request may enter: there is room and no waiter is to have it.
    #[inline(always)]
    fn admits_newcomer(self, need: Need) -> bool {
        self.has_room(need) && self.queued() == 0 && !self.is_closed()
    }

    #[inline]
    const fn entered(self, cost: usize) -> Self {
        Self(self.0.wrapping_add(INFLIGHT * cost as u64))
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
    #[inline(always)]
    pub(super) fn try_enter(&self, need: Need) -> Result<Word, Word> {
        self.update(|word| {
            word.admits_newcomer(need)
                .then_some(word.entered(need.cost))
        })
    }

    /// Enters past a line that holds none of this class or a higher one.
    pub(super) fn try_overtake(&self, need: Need) -> Result<Word, Word> {
        self.update(|word| {
            (word.has_room(need) && !word.is_closed()).then_some(word.entered(need.cost))
        })
    }

    /// Enters whatever the limit says, unless one more inside could not be counted.
    pub(super) fn enter(&self) -> Result<Word, Word> {
        self.update(|word| (word.inflight() < MAX).then_some(word.entered(1)))
    }

    /// Leaves. Returns the word as it then was.
    #[inline]
    pub(super) fn leave(&self, cost: usize) -> Word {
        let permits = INFLIGHT * cost as u64;
        Word(self.0.fetch_sub(permits, Ordering::AcqRel) - permits)
    }

    /// Joins the queue.
    pub(super) fn queue(&self, cost: usize) -> Word {
        let wanted = QUEUED * cost as u64;
        Word(self.0.fetch_add(wanted, Ordering::AcqRel) + wanted)
    }

    /// Leaves the queue without having entered.
    pub(super) fn unqueue(&self, cost: usize) -> Word {
        let wanted = QUEUED * cost as u64;
        Word(self.0.fetch_sub(wanted, Ordering::AcqRel) - wanted)
    }

    /// Moves a waiter inside, if there is room for it.
    pub(super) fn admit_waiter(&self, need: Need) -> Result<Word, Word> {
        let wanted = QUEUED * need.cost as u64;
        self.update(|word| {
            (word.has_room(need) && word.queued() >= need.cost)
                .then_some(Word(word.0.wrapping_sub(wanted)).entered(need.cost))
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

    #[inline(always)]
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
