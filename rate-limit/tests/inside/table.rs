use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::{HOUR, Quota, SECOND};

/// A quota of one cell a second.
fn table(keys: usize, columns: usize, on_full: OnFull) -> Table {
    let gcra = Gcra::new(&Quota::count(1).per(SECOND).burst(1_000)).unwrap();
    let columns = (0..columns).map(|_| gcra).collect();
    Table::new(keys, columns, on_full, Metrics::new("test"))
}

/// Makes `key` owe `cells` in `column` at `NOW`.
fn owe(table: &Table, key: u64, column: usize, cells: u64) {
    let slot = table.claim(key, NOW).unwrap();
    let scale = table.first_scale(column);
    table.change(slot, column, |debts| debts.charge(&scale, NOW, cells));
}

const NOW: u64 = 1_000_000_000_000;

/// Fingerprints of one set: those with zero high bits.
fn same_set(n: u64) -> u64 {
    n
}

#[test]
fn an_entry_of_one_policy_takes_sixteen_bytes() {
    let table = table(1_000_000, 1, OnFull::default());
    assert_eq!(size_of_val(&*table.lines) / (table.capacity() + WAYS), 16);
    assert!(table.capacity() >= 2_000_000);
    assert!(table.is_plain());
}

#[test]
fn a_key_keeps_its_place() {
    let table = table(100, 2, OnFull::default());
    let slot = table.claim(7, NOW).unwrap();
    assert_eq!(table.claim(7, NOW), Some(slot));
    assert_eq!(table.find(7), Some(slot));
    assert_eq!(table.find(8), None);
    assert_eq!(table.resident(), 1);
}

#[test]
fn a_full_set_forgets_the_least_indebted_key_and_counts_it() {
    let table = table(4, 1, OnFull::EvictLeastIndebted);
    for key in 1..=8 {
        owe(&table, same_set(key), 0, 100 + key);
    }
    let newcomer = table.claim(same_set(9), NOW).unwrap();
    assert_eq!(table.debts(newcomer, 0), Debts::default());
    assert_eq!(table.find(same_set(1)), None, "the smallest debt was 101");
    assert!((2..=9).all(|key| table.find(same_set(key)).is_some()));
    assert_eq!(table.live_evictions(), 1);
}

#[test]
fn what_a_key_owes_in_any_column_and_by_any_quota_keeps_it_in_the_table() {
    let table = table(4, 2, OnFull::EvictLeastIndebted);
    let other = Gcra::new(&Quota::count(5).per(HOUR)).unwrap();
    for key in 1..=8 {
        owe(&table, same_set(key), 0, 10);
    }
    owe(&table, same_set(1), 1, 20);
    let slot = table.find(same_set(2)).unwrap();
    let scale = table.scale(0, other).unwrap();
    table.change(slot, 0, |debts| debts.charge(&scale, NOW, 4));
    table.claim(same_set(9), NOW).unwrap();
    table.claim(same_set(10), NOW).unwrap();
    assert!(table.find(same_set(1)).is_some());
    assert!(table.find(same_set(2)).is_some());
}

#[test]
fn a_flood_of_exhausted_keys_replaces_its_own_and_never_an_older_one() {
    let table = table(4, 1, OnFull::EvictLeastIndebted);
    for key in 1..=7 {
        owe(&table, same_set(key), 0, 1_000);
    }
    for key in 100..200 {
        let later = NOW + (key - 99) * 1_000;
        let slot = table.claim(same_set(key), later).unwrap();
        let scale = table.first_scale(0);
        table.change(slot, 0, |debts| debts.charge(&scale, later, 1_000));
    }
    assert!((1..=7).all(|key| table.find(same_set(key)).is_some()));
    assert_eq!(table.live_evictions(), 99);
}

#[test]
fn a_key_without_debt_makes_room_without_a_live_eviction() {
    let table = table(4, 1, OnFull::RefuseNew);
    for key in 1..=8 {
        table.claim(same_set(key), NOW).unwrap();
    }
    assert!(table.claim(same_set(9), NOW).is_some());
    assert_eq!(table.live_evictions(), 0);
    assert_eq!(table.resident(), 8);
}

#[test]
fn a_full_set_refuses_new_keys_or_shares_one_entry_when_told_to() {
    let refusing = table(4, 1, OnFull::RefuseNew);
    let sharing = table(4, 1, OnFull::ShareOne);
    for key in 1..=8 {
        owe(&refusing, same_set(key), 0, 5);
        owe(&sharing, same_set(key), 0, 5);
    }
    assert_eq!(refusing.claim(same_set(9), NOW), None);
    let shared = sharing.claim(same_set(9), NOW);
    assert_eq!(shared, Some(sharing.shared()));
    assert_eq!(sharing.claim(same_set(10), NOW), shared);
    assert_eq!(sharing.find_or_shared(same_set(10), NOW), shared);
    assert_eq!(refusing.claim(same_set(8), NOW), refusing.find(same_set(8)));
}

#[test]
fn room_for_further_quotas_is_taken_when_there_is_a_second_one() {
    let table = table(4, 1, OnFull::default());
    assert!(table.scale(0, table.columns[0]).is_some());
    assert!(table.is_plain());
    let other = Gcra::new(&Quota::count(5).per(HOUR)).unwrap();
    assert!(table.scale(0, other).is_some());
    assert!(!table.is_plain());
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
            owe(&table, key, 0, 1);
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
            .map(|_| scope.spawn(|| (1..=64u64).map(|n| table.claim(n << 57 | n, NOW)).collect()))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .collect()
    });
    assert!(places.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(table.resident(), 64);
}
