//! The tasks that hold connections, and which nested checkout goes first.

use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;

fn here() -> &'static Location<'static> {
    #[track_caller]
    fn caller() -> &'static Location<'static> {
        Location::caller()
    }
    caller()
}

fn used(ns: u64) -> Used {
    Used {
        since: 0,
        ns,
        counts: true,
    }
}

fn all(holders: &Holders) -> Vec<Holder> {
    let mut all = Vec::new();
    holders.each(|&holder| all.push(holder));
    all
}

#[tokio::test]
async fn a_checkout_is_kept_with_its_task_and_its_call_site_until_it_leaves() {
    let holders = Holders::new();
    let site = here();
    let task = tokio::spawn(async move {
        let slot = holders.enter(site, 123, Arrival::Now);
        let held = all(&holders);
        assert_eq!(held.len(), 1);
        assert_eq!(held[0].call_site, site);
        assert_eq!(held[0].task, tokio::task::try_id());
        assert!(held[0].task.is_some(), "inside of a task");
        assert_eq!(held[0].since, 123);
        holders.leave(slot, used(1_000));
        assert_eq!(all(&holders).len(), 0);
    });
    task.await.expect("no panic");
}

#[test]
fn any_number_is_kept_and_a_slot_is_used_again() {
    let holders = Holders::new();
    let site = here();
    let enter = || holders.enter(site, 0, Arrival::Before);
    let mut slots: Vec<u32> = (0..10_000).map(|_| enter().0).collect();
    slots.sort_unstable();
    slots.dedup();
    assert_eq!(slots.len(), 10_000);
    holders.leave(Slot(slots[5]), used(1));
    assert_eq!(enter(), Slot(slots[5]));
    assert_eq!(all(&holders).len(), 10_000);
}

#[test]
fn threads_that_come_and_go_never_share_a_slot_and_lose_no_count() {
    let holders = Holders::new();
    let taken: Vec<AtomicBool> = (0..4 * LANES).map(|_| AtomicBool::new(false)).collect();
    let site = here();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    let slot = holders.enter(site, 0, Arrival::Now);
                    let taken = &taken[slot.0 as usize];
                    assert!(!taken.swap(true, Relaxed), "{slot:?}");
                    taken.store(false, Relaxed);
                    holders.leave(slot, used(2_000));
                }
            });
        }
    });
    assert_eq!(all(&holders).len(), 0);
    let counts = holders.counts();
    assert_eq!((counts.arrivals, counts.completions), (80_000, 80_000));
    assert_eq!(
        (counts.use_ns, counts.use_us_squared),
        (160_000_000, 320_000)
    );
}

#[test]
fn a_connection_may_come_back_on_another_thread() {
    let holders = Holders::new();
    let slot = holders.enter(here(), 0, Arrival::Now);
    std::thread::scope(|scope| {
        scope.spawn(|| holders.leave(slot, used(1)));
    });
    assert_eq!(all(&holders).len(), 0);
    assert_eq!(holders.completions(), 1);
}

#[test]
fn a_connection_still_held_is_busy_up_to_now() {
    let holders = Holders::new();
    let busy = |now| holders.counts().busy_ns(now);
    let slot = holders.enter(here(), 1_000, Arrival::Now);
    assert_eq!(busy(2_500) - busy(1_500), 1_000);
    assert_eq!(holders.in_hand(), 1);
    holders.part(slot);
    assert_eq!(busy(2_500), 1_500, "until it is back");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (since, ns, counts) = (1_000, 2_000, false);
            holders.returned(Used { since, ns, counts });
        });
    });
    assert_eq!((holders.in_hand(), holders.completions()), (0, 0));
    assert_eq!(busy(9_000), 2_000);
}

proptest! {
    #[test]
    fn busy_time_is_the_sum_of_uses(
        uses in prop::collection::vec((0..1u64 << 60, 0..1u64 << 40), 1..50),
    ) {
        let holders = Holders::new();
        let slots: Vec<Slot> = uses
            .iter()
            .map(|&(since, _)| holders.enter(here(), since, Arrival::Now))
            .collect();
        for (&(since, ns), slot) in uses.iter().zip(slots) {
            holders.leave(slot, Used { since, ns, counts: true });
        }
        let sum: u64 = uses.iter().map(|&(_, ns)| ns).sum();
        prop_assert_eq!(holders.counts().busy_ns(1 << 61), sum as i64);
    }
}
