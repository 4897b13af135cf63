//! Where the debts are kept: a fixed table that a flood of keys can neither grow nor reset.
//!
//! An entry is a seeded 64-bit fingerprint of the key and one TAT per policy: 16 bytes for one
//! policy. Entries live in sets of eight. A key can only be in the set its fingerprint names, so
//! a lookup reads at most eight fingerprints, two cache lines. The first TAT is right behind its
//! fingerprint, so that with one policy nothing else is fetched from memory.
//!
//! When a new key finds its set full, it takes the entry of a key without debt (forgetting such a
//! key changes nothing). If every key in the set owes something, [`OnFull`] decides; by default
//! the *least* indebted key is forgotten, which gives at most its debt back to that one key.
//! An exhausted key is the last to go, so flooding the table with new keys does not free it, as
//! it would with least-recently-used eviction.
//!
//! Finding a key and charging one policy takes no lock. Inserting takes the lock of the set's
//! stripe, and so does charging several policies, which must happen all or not at all.

mod governor;

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

pub(crate) use self::governor::{Probe, Store, Tick, ToldClock};
use crate::metrics::Meter;

/// What happens to a new key when all eight keys it could replace are in debt.
///
/// This only matters when far more keys are active at once than the table was built for
/// ([`LimiterBuilder::max_keys`](crate::LimiterBuilder::max_keys)).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum OnFull {
    /// Forgets the key with the smallest debt, which gets at most that debt back.
    #[default]
    EvictLeastIndebted,
    /// Refuses the new key until one of the eight has paid its debt.
    RefuseNew,
    /// Lets all such keys share one quota until there is room.
    ShareOne,
}

pub(crate) struct Table {
    lines: Box<[Line]>,
    sets: usize,
    columns: usize,
    stripes: Box<[Mutex<()>]>,
    on_full: OnFull,
    resident: AtomicUsize,
    live_evictions: AtomicU64,
    meter: Meter,
}

/// The number of an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Slot(usize);

/// Two cache lines: exactly one set when there is one policy.
#[derive(Default)]
#[repr(align(128))]
struct Line([AtomicU64; WORDS]);

impl Table {
    /// A table with room for `keys` keys at half load, with `columns` TATs each.
    pub(crate) fn new(keys: usize, columns: usize, on_full: OnFull, meter: Meter) -> Self {
        let sets = (2 * keys).div_ceil(WAYS).max(1);
        // One set more: its first entry is the one that `ShareOne` shares.
        let words = (sets + 1) * WAYS * (1 + columns);
        let lines = (0..words.div_ceil(WORDS))
            .map(|_| Line::default())
            .collect();
        let stripes = (0..sets.min(STRIPES)).map(|_| Mutex::new(())).collect();
        Self {
            lines,
            sets,
            columns,
            stripes,
            on_full,
            resident: AtomicUsize::new(0),
            live_evictions: AtomicU64::new(0),
            meter,
        }
    }

    /// The word that holds the TAT of `slot` in `column`.
    #[inline]
    pub(crate) fn tat(&self, slot: Slot, column: usize) -> &AtomicU64 {
        debug_assert!(column < self.columns);
        let (set, way) = (slot.0 / WAYS, slot.0 % WAYS);
        let further = self.columns - 1;
        self.word(match column {
            0 => self.start(set) + 2 * way + 1,
            _ => self.start(set) + 2 * WAYS + way * further + column - 1,
        })
    }

    /// The TAT of `slot` in `column`.
    #[inline]
    pub(crate) fn read(&self, slot: Slot, column: usize) -> u64 {
        self.tat(slot, column).load(Ordering::Acquire)
    }

    /// Where `fingerprint` is, if it is anywhere.
    #[inline]
    pub(crate) fn find(&self, fingerprint: u64) -> Option<Slot> {
        let set = self.set_of(fingerprint);
        (0..WAYS)
            .find(|&way| self.fingerprint(set, way).load(Ordering::Acquire) == fingerprint)
            .map(|way| Self::slot(set, way))
    }

    /// Where `fingerprint` is, making room if it is new. Only then is `debt` asked what entries
    /// owe, in nanoseconds; `None` means that the table is full and new keys are refused.
    #[inline]
    pub(crate) fn claim(&self, fingerprint: u64, debt: impl Fn(Slot) -> u64) -> Option<Slot> {
        self.find(fingerprint)
            .or_else(|| self.insert(fingerprint, debt))
    }

    #[cold]
    fn insert(&self, fingerprint: u64, debt: impl Fn(Slot) -> u64) -> Option<Slot> {
        let set = self.set_of(fingerprint);
        // All insertions into a set happen under one lock, so a key is never in it twice.
        let _guard = self.lock_set(set);
        let (mut victim, mut least) = (0, u64::MAX);
        for way in 0..WAYS {
            let slot = Self::slot(set, way);
            match self.fingerprint(set, way).load(Ordering::Acquire) {
                found if found == fingerprint => return Some(slot),
                EMPTY => {
                    self.fingerprint(set, way)
                        .store(fingerprint, Ordering::Release);
                    self.meter
                        .resident(self.resident.fetch_add(1, Ordering::Relaxed) + 1);
                    return Some(slot);
                }
                _ => {
                    let debt = debt(slot);
                    if debt < least {
                        (victim, least) = (way, debt);
                    }
                }
            }
        }
        if least > 0 {
            match self.on_full {
                OnFull::EvictLeastIndebted => {
                    self.live_evictions.fetch_add(1, Ordering::Relaxed);
                    self.meter.live_eviction();
                }
                OnFull::RefuseNew => return None,
                OnFull::ShareOne => return Some(Self::slot(self.sets, 0)),
            }
        }
        // A charge of the old key that found its entry just before this either loses its
        // compare-and-swap to the zero below, or leaves one request's worth of debt to the new
        // key. Neither admits anything twice.
        let slot = Self::slot(set, victim);
        self.fingerprint(set, victim)
            .store(EMPTY, Ordering::Release);
        for column in 0..self.columns {
            self.tat(slot, column).store(0, Ordering::Release);
        }
        self.fingerprint(set, victim)
            .store(fingerprint, Ordering::Release);
        Some(slot)
    }

    /// Locks the set of `slot` against insertions and other lockers.
    #[inline]
    pub(crate) fn lock(&self, slot: Slot) -> MutexGuard<'_, ()> {
        self.lock_set(slot.0 / WAYS)
    }

    /// Calls `visit` with every entry in use.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(Slot)) {
        for set in 0..=self.sets {
            for way in 0..WAYS {
                // The shared entry has no fingerprint.
                let shared = set == self.sets && way == 0;
                if shared || self.fingerprint(set, way).load(Ordering::Acquire) != EMPTY {
                    visit(Self::slot(set, way));
                }
            }
        }
    }

    #[inline]
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Entries in use, with or without debt.
    pub(crate) fn resident(&self) -> usize {
        self.resident.load(Ordering::Relaxed)
    }

    /// Entries there are.
    pub(crate) fn capacity(&self) -> usize {
        self.sets * WAYS
    }

    /// How many keys were forgotten while they owed something.
    pub(crate) fn live_evictions(&self) -> u64 {
        self.live_evictions.load(Ordering::Relaxed)
    }

    #[inline]
    fn set_of(&self, fingerprint: u64) -> usize {
        // The high bits, spread over any number of sets (Lemire, arXiv:1805.10941).
        ((u128::from(fingerprint) * self.sets as u128) >> 64) as usize
    }

    #[inline]
    fn slot(set: usize, way: usize) -> Slot {
        Slot(set * WAYS + way)
    }

    /// Where the words of a set start: for each way its fingerprint and its first TAT, then for
    /// each way its further TATs.
    #[inline]
    fn start(&self, set: usize) -> usize {
        set * WAYS * (1 + self.columns)
    }

    #[inline]
    fn fingerprint(&self, set: usize, way: usize) -> &AtomicU64 {
        self.word(self.start(set) + 2 * way)
    }

    #[inline]
    fn word(&self, index: usize) -> &AtomicU64 {
        &self.lines[index / WORDS].0[index % WORDS]
    }

    #[inline]
    fn lock_set(&self, set: usize) -> MutexGuard<'_, ()> {
        // The lock guards no data of its own, so a panic under it leaves nothing inconsistent.
        self.stripes[set % self.stripes.len()]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table")
            .field("capacity", &self.capacity())
            .field("resident", &self.resident())
            .field("columns", &self.columns)
            .field("live_evictions", &self.live_evictions())
            .finish_non_exhaustive()
    }
}

/// Entries in a set.
const WAYS: usize = 8;

/// Words in a [`Line`].
const WORDS: usize = 16;

/// Locks for insertions and for charging several policies. More than cores can contend for.
const STRIPES: usize = 1024;

/// The fingerprint that no key has.
const EMPTY: u64 = 0;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn table(keys: usize, columns: usize, on_full: OnFull) -> Table {
        Table::new(keys, columns, on_full, Meter::new("test"))
    }

    fn nobody_owes(_: Slot) -> u64 {
        0
    }

    /// Fingerprints of one set: those whose high bits are zero.
    fn same_set(n: u64) -> u64 {
        n
    }

    #[test]
    fn an_entry_of_one_policy_takes_sixteen_bytes() {
        let table = table(1_000_000, 1, OnFull::default());
        assert_eq!(size_of_val(&*table.lines) / (table.capacity() + WAYS), 16);
        assert!(table.capacity() >= 2_000_000);
    }

    #[test]
    fn a_key_keeps_its_place() {
        let table = table(100, 2, OnFull::default());
        let slot = table.claim(7, nobody_owes).unwrap();
        assert_eq!(table.claim(7, nobody_owes), Some(slot));
        assert_eq!(table.find(7), Some(slot));
        assert_eq!(table.find(8), None);
        assert_eq!(table.resident(), 1);
    }

    #[test]
    fn a_full_set_forgets_the_least_indebted_key_and_counts_it() {
        let table = table(4, 1, OnFull::EvictLeastIndebted);
        let owed = |slot: Slot| table.tat(slot, 0).load(Ordering::Relaxed);
        for key in 1..=8 {
            let slot = table.claim(same_set(key), owed).unwrap();
            table.tat(slot, 0).store(100 + key, Ordering::Relaxed);
        }
        let newcomer = table.claim(same_set(9), owed).unwrap();
        assert_eq!(owed(newcomer), 0);
        assert_eq!(table.find(same_set(1)), None, "the smallest debt was 101");
        assert!((2..=9).all(|key| table.find(same_set(key)).is_some()));
        assert_eq!(table.live_evictions(), 1);
    }

    #[test]
    fn a_key_without_debt_makes_room_without_a_live_eviction() {
        let table = table(4, 1, OnFull::RefuseNew);
        for key in 1..=8 {
            table.claim(same_set(key), nobody_owes).unwrap();
        }
        assert!(table.claim(same_set(9), nobody_owes).is_some());
        assert_eq!(table.live_evictions(), 0);
        assert_eq!(table.resident(), 8);
    }

    #[test]
    fn a_full_set_refuses_new_keys_or_shares_one_entry_when_told_to() {
        let refusing = table(4, 1, OnFull::RefuseNew);
        let sharing = table(4, 1, OnFull::ShareOne);
        for key in 1..=8 {
            refusing.claim(same_set(key), |_| 5).unwrap();
            sharing.claim(same_set(key), |_| 5).unwrap();
        }
        assert_eq!(refusing.claim(same_set(9), |_| 5), None);
        let shared = sharing.claim(same_set(9), |_| 5);
        assert!(shared.is_some());
        assert_eq!(sharing.claim(same_set(10), |_| 5), shared);
        assert_eq!(
            refusing.claim(same_set(8), |_| 5),
            refusing.find(same_set(8))
        );
    }

    proptest! {
        /// No two keys share an entry and no key has two, whatever is inserted.
        #[test]
        fn entries_are_never_shared(
            keys in proptest::collection::vec(1u64..u64::MAX, 1..500),
            columns in 1usize..5,
        ) {
            let table = table(64, columns, OnFull::EvictLeastIndebted);
            for &key in &keys {
                prop_assert!(table.claim(key, |_| 1).is_some());
            }
            let mut owners = HashMap::new();
            for &key in &keys {
                if let Some(Slot(slot)) = table.find(key) {
                    prop_assert_eq!(*owners.entry(slot).or_insert(key), key);
                }
            }
            prop_assert_eq!(owners.len(), table.resident());
        }
    }

    #[test]
    fn threads_that_insert_the_same_keys_agree_on_one_entry_each() {
        let table = table(64, 1, OnFull::EvictLeastIndebted);
        let places: Vec<Vec<Option<Slot>>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        (1..=64u64)
                            .map(|n| table.claim(n << 57 | n, |_| 1))
                            .collect()
                    })
                })
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap())
                .collect()
        });
        assert!(places.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(table.resident(), 64);
    }
}
