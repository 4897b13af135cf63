//! What a user of the gate sees: waiting, giving up, closing.
#![cfg(not(loom))]

use std::{sync::Arc, task::Poll, time::Duration};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::{task::JoinHandle, time::Instant};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower_capacity::gate::{Ask, Codel, Gate, GateConfig, Partition, Priority, RefusedReason};

const WAIT: Duration = Duration::from_millis(200);

fn gate(limit: usize, max_queue: usize) -> Gate {
    Gate::new(GateConfig::new(limit).max_queue(max_queue).max_wait(WAIT))
}

#[tokio::test(start_paused = true)]
async fn a_waiter_gives_up_when_its_wait_is_over() {
    let gate = gate(1, 4);
    let _held = gate.try_acquire().unwrap();
    let start = Instant::now();
    let refused = gate.acquire().await.unwrap_err();
    assert_eq!(refused.reason(), RefusedReason::WaitTimeout);
    assert_eq!(start.elapsed(), WAIT);
    assert_eq!(refused.waited(), WAIT);
    assert_eq!(gate.queued(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_may_bound_its_own_wait() {
    let gate = gate(1, 4);
    let _held = gate.try_acquire().unwrap();
    let start = Instant::now();
    gate.acquire_within(Duration::from_millis(30))
        .await
        .unwrap_err();
    assert_eq!(start.elapsed(), Duration::from_millis(30));
}

#[tokio::test]
async fn a_permit_without_a_handle_is_inside_until_it_is_returned() {
    let gate = gate(1, 4);
    let entered = gate.try_enter(Ask::new()).unwrap();
    assert!(gate.try_enter(Ask::new()).is_none());
    let mut next = task::spawn(gate.acquire());
    assert_pending!(next.poll());
    gate.exit(entered);
    let permit = assert_ready_ok!(next.poll());
    let entered = permit.into_entered();
    assert_eq!((gate.inflight(), entered.inflight()), (1, 1));
    gate.exit(entered);
    assert_eq!(gate.inflight(), 0);
}

#[test]
fn a_permit_without_a_handle_is_of_its_partition() {
    let gate = gate(4, 4);
    for partition in [0, 1, 700, Partition::MAX].map(Partition::new) {
        let ask = Ask::new().partition(partition);
        let _other = gate.try_acquire().unwrap();
        let before = gate.inflight_of(partition);
        let entered = gate.try_enter(ask).unwrap();
        assert_eq!((entered.inflight(), gate.inflight()), (2, 2));
        assert_eq!(gate.inflight_of(partition), before + 1);
        gate.exit(entered);
        assert_eq!(gate.inflight_of(partition), before);
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_of_zero_gives_up_at_once() {
    let gate = gate(1, 4);
    let _held = gate.try_acquire().unwrap();
    let start = Instant::now();
    let refused = gate.acquire_within(Duration::ZERO).await.unwrap_err();
    assert_eq!(refused.reason(), RefusedReason::WaitTimeout);
    assert!(start.elapsed() <= Duration::from_millis(1));
}

#[tokio::test(start_paused = true)]
async fn a_permit_released_as_the_wait_ends_is_not_lost() {
    let gate = gate(1, 4);
    let held = gate.try_acquire().unwrap();
    let mut waiter = task::spawn(gate.acquire());
    assert_pending!(waiter.poll());
    tokio::time::advance(WAIT * 2).await;
    drop(held);
    assert!(waiter.is_woken());
    let permit = assert_ready_ok!(waiter.poll());
    assert_eq!(gate.inflight(), 1);
    drop(permit);
    assert_eq!(gate.inflight(), 0);
}

#[tokio::test]
async fn a_full_room_refuses_at_once() {
    let gate = gate(1, 1);
    let _held = gate.try_acquire().unwrap();
    let mut waiter = task::spawn(gate.acquire());
    assert_pending!(waiter.poll());
    let refused = gate.acquire().await.unwrap_err();
    assert_eq!(refused.reason(), RefusedReason::QueueFull);
    assert_eq!(
        (refused.limit(), refused.inflight(), refused.queued()),
        (1, 1, 1)
    );
}

#[tokio::test]
async fn the_room_holds_as_many_as_the_limit_and_eight_at_least_unless_told_otherwise() {
    for (limit, room) in [(1, 8), (2, 8), (8, 8), (9, 9), (20, 20)] {
        let gate = Gate::new(GateConfig::new(limit));
        let _held: Vec<_> = (0..limit).map(|_| gate.try_acquire().unwrap()).collect();
        let mut waiters: Vec<_> = (0..room).map(|_| task::spawn(gate.acquire())).collect();
        for waiter in &mut waiters {
            assert_pending!(waiter.poll());
        }
        let refused = gate.acquire().await.unwrap_err();
        assert_eq!(refused.reason(), RefusedReason::QueueFull, "limit {limit}");
        assert_eq!(refused.queued(), room, "limit {limit}");
    }
}

#[tokio::test]
async fn waiters_enter_in_order_and_newcomers_do_not_overtake() {
    let gate = gate(1, 4);
    let held = gate.try_acquire().unwrap();
    let mut first = task::spawn(gate.acquire());
    let mut second = task::spawn(gate.acquire());
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    drop(held);
    assert!(
        gate.try_acquire().is_err(),
        "the permit belongs to the first in line"
    );
    assert!(first.is_woken() && !second.is_woken());
    drop(assert_ready_ok!(first.poll()));
    drop(assert_ready_ok!(second.poll()));
    assert!(gate.try_acquire().is_ok());
}

#[tokio::test]
async fn growth_admits_several_waiters_and_shrink_leaves_a_debt() {
    let gate = gate(1, 8);
    let held = gate.try_acquire().unwrap();
    let mut waiters: Vec<_> = (0..4).map(|_| task::spawn(gate.acquire())).collect();
    for waiter in &mut waiters {
        assert_pending!(waiter.poll());
    }
    gate.set_limit(4);
    let mut permits: Vec<_> = waiters[..3]
        .iter_mut()
        .map(|waiter| assert_ready_ok!(waiter.poll()))
        .collect();
    assert_pending!(waiters[3].poll());

    gate.set_limit(2);
    assert_eq!((gate.inflight(), gate.debt()), (4, 2));
    drop(held);
    permits.pop();
    assert_pending!(waiters[3].poll(), "the debt is paid before anybody enters");
    permits.pop();
    assert!(waiters[3].is_woken());
    let _last = assert_ready_ok!(waiters[3].poll());
    assert_eq!((gate.inflight(), gate.debt()), (2, 0));
}

#[tokio::test]
async fn a_closed_gate_refuses_newcomers_serves_its_line_and_tells_when_it_is_empty() {
    let gate = gate(1, 4);
    let held = gate.try_acquire().unwrap();
    let mut waiter = task::spawn(gate.acquire());
    assert_pending!(waiter.poll());
    let mut emptied = task::spawn({
        let gate = gate.clone();
        async move { gate.emptied().await }
    });
    gate.close();
    assert_pending!(emptied.poll());
    assert_eq!(
        gate.acquire().await.unwrap_err().reason(),
        RefusedReason::Closed
    );
    drop(held);
    let last = assert_ready_ok!(waiter.poll());
    assert_pending!(emptied.poll());
    drop(last);
    assert!(emptied.is_woken() && emptied.poll().is_ready());
    gate.reopen();
    assert!(gate.try_acquire().is_ok());
}

#[tokio::test]
async fn a_closed_gate_is_empty_once_its_last_waiter_leaves() {
    let gate = gate(0, 4);
    let mut waiter = task::spawn(gate.acquire());
    assert_pending!(waiter.poll());
    gate.close();
    let mut emptied = task::spawn({
        let gate = gate.clone();
        async move { gate.emptied().await }
    });
    assert_pending!(emptied.poll());
    drop(waiter);
    assert!(emptied.is_woken() && emptied.poll().is_ready());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_threads_resizing_and_cancelling_leave_the_gate_as_they_found_it() {
    let gate = Gate::new(GateConfig::new(8).max_queue(64).max_wait(Duration::MAX));
    let peak = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let tasks: Vec<_> = (0..64_u32)
        .map(|task| {
            let (gate, peak) = (gate.clone(), Arc::clone(&peak));
            tokio::spawn(async move {
                for round in 0..500_u32 {
                    if (task + round) % 97 == 0 {
                        gate.set_limit(2 + (round as usize) % 7);
                    }
                    let acquire = gate.acquire();
                    if (task * 31 + round) % 5 == 0 {
                        let mut acquire = std::pin::pin!(acquire);
                        // Polled once, then cancelled.
                        let _ = futures_util::poll!(acquire.as_mut());
                        continue;
                    }
                    if let Ok(permit) = acquire.await {
                        let inside = permit.gate().inflight();
                        peak.fetch_max(inside, std::sync::atomic::Ordering::Relaxed);
                        tokio::task::yield_now().await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!((gate.inflight(), gate.queued()), (0, 0));
    assert!(peak.load(std::sync::atomic::Ordering::Relaxed) <= 8);
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_line_sheds_the_oldest_and_serves_the_newest() {
    let config = GateConfig::new(1)
        .max_queue(64)
        .max_wait(Duration::from_secs(10));
    let gate = Gate::new(config.codel(Codel::REQUESTS));
    let mut held = Some(gate.try_acquire().unwrap());
    let mut waiters = Vec::new();
    let (mut served, mut shed) = (Vec::new(), Vec::new());
    // Two come for each that leaves, every 10 ms.
    for round in 0..60_usize {
        for newcomer in 0..2 {
            let mut waiter = task::spawn(gate.acquire());
            assert_pending!(waiter.poll());
            waiters.push((2 * round + newcomer, waiter));
        }
        tokio::time::advance(Duration::from_millis(10)).await;
        drop(held.take());
        waiters.retain_mut(|(number, waiter)| match waiter.poll() {
            Poll::Pending => true,
            Poll::Ready(Ok(permit)) => {
                served.push((round, *number));
                held = Some(permit);
                false
            }
            Poll::Ready(Err(refused)) => {
                assert_eq!(refused.reason(), RefusedReason::Overloaded);
                assert!(refused.waited() > 2 * Codel::REQUESTS.target());
                shed.push(*number);
                false
            }
        });
        assert!(held.is_some(), "a permit was free and somebody waited");
    }
    let newest_first = served
        .iter()
        .filter(|(round, number)| *number == 2 * round + 1)
        .count();
    assert_eq!(served[0], (0, 0), "in order of arrival while healthy");
    assert!(newest_first > 40, "{newest_first} of 60: {served:?}");
    assert!(shed.len() > 40, "{shed:?}");
}

#[tokio::test]
async fn a_permit_goes_to_the_highest_class_that_waits() {
    let gate = gate(1, 8);
    let mut held = gate.try_acquire().unwrap();
    let mut waiters: Vec<_> = Priority::ALL
        .into_iter()
        .rev()
        .map(|class| {
            (
                class,
                task::spawn(gate.acquire_with(Ask::new().priority(class))),
            )
        })
        .collect();
    for (_, waiter) in &mut waiters {
        assert_pending!(waiter.poll());
    }
    for class in Priority::ALL {
        drop(held);
        let (_, waiter) = waiters
            .iter_mut()
            .find(|(waiting, _)| *waiting == class)
            .unwrap();
        held = assert_ready_ok!(waiter.poll());
    }
}

#[tokio::test]
async fn lower_classes_stop_before_the_limit_and_higher_ones_pass_them() {
    let gate = gate(20, 20);
    let take = |class| gate.try_acquire_as(class);
    let background: Vec<_> = std::iter::from_fn(|| take(Priority::Background).ok()).collect();
    assert_eq!(background.len(), 15);
    let mut waiting = task::spawn(gate.acquire_with(Ask::new().priority(Priority::Background)));
    assert_pending!(waiting.poll());
    let sheddable: Vec<_> = std::iter::from_fn(|| take(Priority::Sheddable).ok()).collect();
    assert_eq!(sheddable.len(), 3);
    let usual: Vec<_> = std::iter::from_fn(|| take(Priority::Default).ok()).collect();
    assert_eq!(usual.len(), 2);
    drop((sheddable, usual));
    assert_pending!(waiting.poll(), "its class has filled its part");
    drop(background);
    let _last = assert_ready_ok!(waiting.poll());
}

#[tokio::test]
async fn a_full_room_makes_place_for_those_who_matter_more() {
    let gate = gate(1, 1);
    let held = gate.try_acquire().unwrap();
    let mut usual = task::spawn(gate.acquire());
    assert_pending!(usual.poll());
    let mut critical = task::spawn(gate.acquire_with(Ask::new().priority(Priority::Critical)));
    assert_pending!(critical.poll());
    assert!(usual.is_woken());
    let refused = assert_ready_err!(usual.poll());
    assert_eq!(refused.reason(), RefusedReason::Displaced);
    drop(held);
    drop(assert_ready_ok!(critical.poll()));
    assert_eq!((gate.inflight(), gate.queued()), (0, 0));
}

#[tokio::test]
async fn a_reserved_permit_is_for_the_critical_even_while_others_wait() {
    let gate = Gate::new(GateConfig::new(2).max_queue(4).reserved(1));
    let held = gate.try_acquire().unwrap();
    assert_eq!(
        gate.try_acquire().unwrap_err().reason(),
        RefusedReason::Full
    );
    let mut waiting = task::spawn(gate.acquire());
    assert_pending!(waiting.poll());
    let critical = gate.try_acquire_as(Priority::Critical).unwrap();
    assert_eq!((gate.inflight(), gate.queued()), (2, 1));
    drop(critical);
    assert_pending!(waiting.poll());
    drop(held);
    drop(assert_ready_ok!(waiting.poll()));
}

#[tokio::test]
async fn more_permits_than_a_gate_can_count_leave_its_other_counts_alone() {
    let gate = gate(1, 4);
    let permits: Vec<_> = (0..Gate::MAX_LIMIT + 3)
        .map(|_| gate.acquire_anyway().0)
        .collect();
    assert_eq!((gate.inflight(), gate.queued()), (Gate::MAX_LIMIT, 0));
    drop(permits);
    assert_eq!((gate.inflight(), gate.limit(), gate.queued()), (0, 1, 0));
}

fn of_cost(cost: u32) -> Ask {
    Ask::new().cost(cost).max_wait(Duration::MAX)
}

#[tokio::test(start_paused = true)]
async fn cheap_requests_do_not_starve_an_expensive_one() {
    let gate = gate(6, 100);
    let mut inside: Vec<_> = (0..6).map(|_| gate.try_acquire().unwrap()).collect();
    let mut export = task::spawn(gate.acquire_with(of_cost(4)));
    assert_pending!(export.poll());
    for returned in 1..4 {
        drop(inside.pop());
        assert_pending!(export.poll());
        // What came free is kept.
        gate.try_acquire().unwrap_err();
        let mut cheap = task::spawn(gate.acquire());
        assert_pending!(cheap.poll());
        assert_eq!(gate.inflight(), 6 - returned);
    }
    drop(inside.pop());
    let export = assert_ready_ok!(export.poll());
    assert_eq!((gate.inflight(), gate.queued()), (6, 0));
    drop(export);
    assert_eq!(gate.inflight(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_was_kept_for_an_expensive_request_that_leaves_goes_to_those_behind_it() {
    let gate = gate(4, 100);
    let _inside: Vec<_> = (0..3).map(|_| gate.try_acquire().unwrap()).collect();
    let export = gate.acquire_with(of_cost(3).max_wait(WAIT));
    let export = tokio::spawn(export);
    tokio::task::yield_now().await;
    let behind = tokio::spawn(gate.acquire_within(Duration::MAX));
    let refused = export.await.unwrap().unwrap_err();
    assert_eq!(refused.reason(), RefusedReason::WaitTimeout);
    let permit = behind.await.unwrap().unwrap();
    assert_eq!((gate.inflight(), gate.queued()), (4, 0));
    drop(permit);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_costs_more_than_the_limit_enters_an_empty_gate() {
    let gate = gate(3, 100);
    let inside = gate.try_acquire().unwrap();
    let mut whole = task::spawn(gate.acquire_with(of_cost(50)));
    assert_pending!(whole.poll());
    drop(inside);
    let whole = assert_ready_ok!(whole.poll());
    assert_eq!((gate.inflight(), gate.debt()), (50, 47));
    drop(whole);
    assert_eq!(gate.inflight(), 0);
    // Its class may fill less than the limit.
    let background = of_cost(50).priority(Priority::Background);
    drop(gate.try_acquire_with(background).unwrap());
    gate.set_limit(0);
    gate.try_acquire_with(of_cost(1)).unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_line_still_serves_an_expensive_request() {
    const MS: Duration = Duration::from_millis(1);
    let codel = Codel::new(2 * MS, 20 * MS);
    let config = GateConfig::new(4).max_queue(40).codel(codel);
    let gate = Gate::new(config.max_wait(Duration::from_secs(1)));
    let work = |cost: u32, takes: Duration| {
        let gate = gate.clone();
        async move {
            let permit = gate.acquire_with(Ask::new().cost(cost)).await.ok()?;
            tokio::time::sleep(takes).await;
            drop(permit);
            Some(())
        }
    };
    // More than twice what four permits of 10 ms do; one request in twenty takes three of them.
    let mut random = SmallRng::seed_from_u64(1);
    let (mut cheap, mut exports) = (Vec::new(), Vec::new());
    for _ in 0..1000 {
        let takes = random.random_range(5..15) * MS;
        if random.random_range(0..20) == 0 {
            exports.push(tokio::spawn(work(3, takes)));
        } else {
            cheap.push(tokio::spawn(work(1, takes)));
        }
        tokio::time::sleep(random.random_range(200..2000) * Duration::from_micros(1)).await;
    }
    let share = async |requests: Vec<JoinHandle<Option<()>>>| {
        let all = requests.len() as f64;
        let mut served = 0.0;
        for request in requests {
            served += f64::from(u8::from(request.await.unwrap().is_some()));
        }
        served / all
    };
    let (cheap, exports) = (share(cheap).await, share(exports).await);
    println!("{cheap:.2} of the cheap requests, {exports:.2} of the exports");
    assert!(exports >= 0.5 * cheap, "{exports:.2} against {cheap:.2}");
}
