//! The table itself, see the [module](super).

use std::sync::{
    Mutex, MutexGuard, OnceLock,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use super::{
    accounts::{ACCOUNTS, Account, Debts},
    scales::{Scale, Scales},
};
use crate::{gcra::Gcra, metrics::Metrics, sync::lock};

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
    /// The first quota of each column; the TATs in `lines` are its.
    columns: Box<[Gcra]>,
    /// The accounts of the further quotas, if there are any: for each entry and column, the
    /// numbers of four quotas in one word, and their TATs.
    further: OnceLock<Box<[AtomicU64]>>,
    scales: Scales,
    stripes: Box<[Mutex<()>]>,
    on_full: OnFull,
    resident: AtomicUsize,
    live_evictions: AtomicU64,
    metrics: Metrics,
}

/// The number of an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Slot(pub(super) usize);

/// Two cache lines: exactly one set when there is one policy.
#[derive(Default)]
#[repr(align(128))]
struct Line([AtomicU64; WORDS]);

impl Table {
    /// The fingerprint of the keys that share one entry; no key has it.
    pub(crate) const SHARED: u64 = EMPTY;

    /// A table with room for `keys` keys at half load, with one TAT for each of `columns`.
    pub(crate) fn new(
        keys: usize,
        columns: Box<[Gcra]>,
        on_full: OnFull,
        metrics: Metrics,
    ) -> Self {
        let sets = (2 * keys).div_ceil(WAYS).max(1);
        // One set more: its first entry is the one that `ShareOne` shares.
        let words = (sets + 1) * WAYS * (1 + columns.len());
        let lines = (0..words.div_ceil(WORDS))
            .map(|_| Line::default())
            .collect();
        let stripes = (0..sets.min(STRIPES)).map(|_| Mutex::new(())).collect();
        Self {
            lines,
            sets,
            columns,
            further: OnceLock::new(),
            scales: Scales::default(),
            stripes,
            on_full,
            resident: AtomicUsize::new(0),
            live_evictions: AtomicU64::new(0),
            metrics,
        }
    }

    /// The quota as accounts in `column` name it, after making room for such accounts; `None` when
    /// there are too many quotas.
    pub(crate) fn scale(&self, column: usize, gcra: Gcra) -> Option<Scale> {
        if self.columns[column] == gcra {
            return Some(self.first_scale(column));
        }
        let scale = self.scales.number(gcra)?;
        self.further.get_or_init(|| {
            let words = (self.sets + 1) * WAYS * self.columns.len() * ACCOUNTS;
            (0..words).map(|_| AtomicU64::new(0)).collect()
        });
        Some(scale)
    }

    /// Whether `scale` is the only quota of all columns' own, so that a TAT is all there is.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.further.get().is_none()
    }

    /// The word that holds the TAT of `slot` in `column`.
    #[inline]
    pub(crate) fn tat(&self, slot: Slot, column: usize) -> &AtomicU64 {
        let (set, way) = (slot.0 / WAYS, slot.0 % WAYS);
        let further = self.columns.len() - 1;
        self.word(match column {
            0 => self.start(set) + 2 * way + 1,
            _ => self.start(set) + 2 * WAYS + way * further + column - 1,
        })
    }

    /// What `slot` owes in `column`.
    pub(crate) fn debts(&self, slot: Slot, column: usize) -> Debts {
        let account = |scale, tat| (tat != 0).then_some(Account { scale, tat });
        let mut debts = Debts::default();
        let tat = self.tat(slot, column).load(Ordering::Acquire);
        debts.0[0] = account(self.first_scale(column), tat);
        if let Some(words) = self.further(slot, column) {
            let mut numbers = words[0].load(Ordering::Acquire);
            for (index, word) in words.iter().enumerate().skip(1) {
                if numbers == 0 {
                    break;
                }
                let number = numbers as u16;
                numbers >>= 16;
                let gcra = self.scales.get(number);
                let scale = gcra.map(|&gcra| Scale { gcra, number });
                let tat = word.load(Ordering::Acquire);
                debts.0[index] = scale.and_then(|scale| account(scale, tat));
            }
        }
        debts
    }

    /// Replaces what `slot` owes in `column` by what `change` makes of it, and returns that. Where
    /// there are several columns or quotas, the caller holds the [lock](Self::lock).
    pub(crate) fn change(&self, slot: Slot, column: usize, change: impl Fn(&mut Debts)) -> Debts {
        let word = self.tat(slot, column);
        loop {
            let old = self.debts(slot, column);
            let mut new = old;
            change(&mut new);
            let tat = |debts: &Debts| debts.0[0].map_or(0, |account| account.tat);
            // Requests that began before there was a second quota still charge without the lock.
            let swap = word.compare_exchange_weak(
                tat(&old),
                tat(&new),
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            if swap.is_err() {
                continue;
            }
            if new != old
                && let Some(words) = self.further(slot, column)
            {
                let mut numbers = 0;
                for (index, word) in words.iter().enumerate().skip(1) {
                    let (number, tat) =
                        new.0[index].map_or((0, 0), |account| (account.scale.number, account.tat));
                    numbers |= u64::from(number) << (16 * (index - 1));
                    word.store(tat, Ordering::Release);
                }
                words[0].store(numbers, Ordering::Release);
            }
            return new;
        }
    }

    /// Where `fingerprint` is, if it is anywhere.
    #[inline]
    pub(crate) fn find(&self, fingerprint: u64) -> Option<Slot> {
        let set = self.set_of(fingerprint);
        (0..WAYS)
            .find(|&way| self.fingerprint(set, way).load(Ordering::Acquire) == fingerprint)
            .map(|way| Self::slot(set, way))
    }

    /// Where what `fingerprint` owes is: its own entry, or the shared one if a new key would get
    /// that, or if it is [`SHARED`](Self::SHARED).
    pub(crate) fn find_or_shared(&self, fingerprint: u64, now: u64) -> Option<Slot> {
        if fingerprint == Self::SHARED {
            return Some(self.shared());
        }
        self.find(fingerprint).or_else(|| {
            let set = self.set_of(fingerprint);
            let full = self.on_full == OnFull::ShareOne && self.victim(set, now).1 > 0.0;
            full.then(|| self.shared())
        })
    }

    /// The entry of the keys that share one.
    fn shared(&self) -> Slot {
        Self::slot(self.sets, 0)
    }

    #[inline]
    pub(crate) fn is_shared(&self, slot: Slot) -> bool {
        slot.0 == self.sets * WAYS
    }

    /// Where `fingerprint` is, making room at `now` if it is new; `None` when the table is full and
    /// new keys are refused.
    #[inline]
    pub(crate) fn claim(&self, fingerprint: u64, now: u64) -> Option<Slot> {
        self.find(fingerprint)
            .or_else(|| self.insert(fingerprint, now))
    }

    #[cold]
    fn insert(&self, fingerprint: u64, now: u64) -> Option<Slot> {
        let set = self.set_of(fingerprint);
        // All insertions into a set happen under one lock, so a key is never in it twice.
        let _guard = self.lock_set(set);
        if let Some(slot) = self.find(fingerprint) {
            return Some(slot);
        }
        let (way, rank) = self.victim(set, now);
        let slot = Self::slot(set, way);
        if self.fingerprint(set, way).load(Ordering::Acquire) == EMPTY {
            self.fingerprint(set, way)
                .store(fingerprint, Ordering::Release);
            self.metrics
                .resident(self.resident.fetch_add(1, Ordering::Relaxed) + 1);
            return Some(slot);
        }
        if rank > 0.0 {
            match self.on_full {
                OnFull::EvictLeastIndebted => {
                    self.live_evictions.fetch_add(1, Ordering::Relaxed);
                    self.metrics.live_eviction();
                }
                OnFull::RefuseNew => return None,
                OnFull::ShareOne => return Some(self.shared()),
            }
        }
        // A charge of the old key that found its entry just before this either loses its
        // compare-and-swap to the zero below, or leaves one request's worth of debt to the new
        // key. Neither admits anything twice.
        self.fingerprint(set, way).store(EMPTY, Ordering::Release);
        for column in 0..self.columns.len() {
            self.tat(slot, column).store(0, Ordering::Release);
            let further = self.further(slot, column).into_iter().flatten();
            further.for_each(|word| word.store(0, Ordering::Release));
        }
        self.fingerprint(set, way)
            .store(fingerprint, Ordering::Release);
        Some(slot)
    }

    /// The place in `set` that costs least to lose, and its [rank](Gcra::rank): 0 if it is free or
    /// owes nothing. What a key owes under any policy and quota counts, whatever the newcomer's.
    fn victim(&self, set: usize, now: u64) -> (usize, f64) {
        let (mut victim, mut least) = (0, f64::INFINITY);
        for way in 0..WAYS {
            if self.fingerprint(set, way).load(Ordering::Acquire) == EMPTY {
                return (way, 0.0);
            }
            let rank = self.rank(Self::slot(set, way), now);
            // Of equals the last, which came after the others.
            if rank <= least {
                (victim, least) = (way, rank);
            }
        }
        (victim, least)
    }

    fn rank(&self, slot: Slot, now: u64) -> f64 {
        let columns = 0..self.columns.len();
        let rank = |column: usize| {
            let tat = self.tat(slot, column).load(Ordering::Acquire);
            let mut rank = self.columns[column].rank(tat, now);
            if let Some(words) = self.further(slot, column) {
                let mut numbers = words[0].load(Ordering::Acquire);
                for word in &words[1..] {
                    if numbers == 0 {
                        break;
                    }
                    if let Some(gcra) = self.scales.get(numbers as u16) {
                        rank = rank.max(gcra.rank(word.load(Ordering::Acquire), now));
                    }
                    numbers >>= 16;
                }
            }
            rank
        };
        columns.map(rank).fold(0.0, f64::max)
    }

    /// Locks the set of `slot` against insertions and other lockers.
    #[inline]
    pub(crate) fn lock(&self, slot: Slot) -> MutexGuard<'_, ()> {
        self.lock_set(slot.0 / WAYS)
    }

    /// As [`lock`](Self::lock), if there is anything that must change together.
    pub(crate) fn lock_if_needed(&self, slot: Slot) -> Option<MutexGuard<'_, ()>> {
        (self.columns.len() > 1 || !self.is_plain()).then(|| self.lock(slot))
    }

    #[inline]
    pub(crate) fn columns(&self) -> usize {
        self.columns.len()
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
        set * WAYS * (1 + self.columns.len())
    }

    /// The words for the further quotas of an entry.
    #[inline]
    fn further(&self, slot: Slot, column: usize) -> Option<&[AtomicU64]> {
        let start = (slot.0 * self.columns.len() + column) * ACCOUNTS;
        self.further.get()?.get(start..start + ACCOUNTS)
    }

    fn first_scale(&self, column: usize) -> Scale {
        Scale {
            gcra: self.columns[column],
            number: 0,
        }
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
        lock(&self.stripes[set % self.stripes.len()])
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table")
            .field("capacity", &self.capacity())
            .field("resident", &self.resident())
            .field("columns", &self.columns.len())
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
#[path = "../../tests/inside/table.rs"]
mod tests;
