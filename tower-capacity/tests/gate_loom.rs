//! Every interleaving of a few threads at one gate, on the gate's own code.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p tower-capacity --no-default-features --release --test gate_loom`
#![cfg(loom)]

use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll},
    time::Duration,
};

use loom::{future::block_on, thread};
use tower_capacity::gate::{Ask, Gate, GateConfig, Permit, Priority, RefusedReason};

/// Model time does not pass, so no waiter gives up.
fn gate(limit: usize) -> Gate {
    Gate::new(GateConfig::new(limit).max_queue(8).max_wait(Duration::MAX))
}

fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

fn enter(gate: &Gate) -> Permit {
    block_on(gate.acquire()).expect("an open gate with no bound on the wait admits each request")
}

fn assert_idle(gate: &Gate) {
    assert_eq!((gate.inflight(), gate.queued()), (0, 0));
}

#[test]
fn releases_wake_every_waiter() {
    model(|| {
        let gate = gate(1);
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let gate = gate.clone();
                thread::spawn(move || {
                    let permit = enter(&gate);
                    assert_eq!(permit.gate().inflight(), 1);
                })
            })
            .collect();
        drop(enter(&gate));
        for thread in threads {
            thread.join().unwrap();
        }
        assert_idle(&gate);
    });
}

#[test]
fn a_newcomer_that_does_not_wait_never_exceeds_the_limit() {
    model(|| {
        let gate = gate(1);
        let held = gate.try_acquire().unwrap();
        let newcomer = {
            let gate = gate.clone();
            thread::spawn(move || gate.try_acquire().map(|permit| permit.gate().inflight()))
        };
        let waiter = {
            let gate = gate.clone();
            thread::spawn(move || enter(&gate).gate().inflight())
        };
        drop(held);
        assert_eq!(waiter.join().unwrap(), 1);
        match newcomer.join().unwrap() {
            Ok(inflight) => assert_eq!(inflight, 1),
            Err(refused) => assert_eq!(refused.reason(), RefusedReason::Full),
        }
        assert_idle(&gate);
    });
}

#[test]
fn growth_that_races_with_a_waiter_is_not_lost() {
    model(|| {
        let gate = gate(0);
        let waiter = {
            let gate = gate.clone();
            thread::spawn(move || drop(enter(&gate)))
        };
        gate.set_limit(1);
        waiter.join().unwrap();
        assert_idle(&gate);
    });
}

#[test]
fn a_shrink_that_races_with_a_release_is_paid_first() {
    model(|| {
        let gate = gate(2);
        let first = gate.try_acquire().unwrap();
        let second = gate.try_acquire().unwrap();
        let shrink = {
            let gate = gate.clone();
            thread::spawn(move || gate.set_limit(1))
        };
        let waiter = {
            let gate = gate.clone();
            thread::spawn(move || drop(enter(&gate)))
        };
        drop(first);
        shrink.join().unwrap();
        let now = gate.snapshot();
        assert!(now.inflight() <= now.limit() + now.debt());
        drop(second);
        waiter.join().unwrap();
        assert_idle(&gate);
        assert!(gate.try_acquire().is_ok());
    });
}

#[test]
fn a_waiter_cancelled_while_a_permit_is_on_its_way_passes_it_on() {
    model(|| {
        let gate = gate(1);
        let held = gate.try_acquire().unwrap();
        let cancelled = {
            let gate = gate.clone();
            thread::spawn(move || {
                let mut acquire = pin!(gate.acquire());
                let waker = futures_util::task::noop_waker();
                match acquire.as_mut().poll(&mut Context::from_waker(&waker)) {
                    Poll::Ready(entered) => drop(entered.unwrap()),
                    Poll::Pending => {}
                }
                // Dropped here: still in line, or just admitted.
            })
        };
        let waiter = {
            let gate = gate.clone();
            thread::spawn(move || drop(enter(&gate)))
        };
        drop(held);
        cancelled.join().unwrap();
        waiter.join().unwrap();
        assert_idle(&gate);
    });
}

#[test]
fn a_gate_closed_while_somebody_leaves_refuses_the_next() {
    model(|| {
        let gate = gate(1);
        let held = gate.try_acquire().unwrap();
        let closer = {
            let gate = gate.clone();
            thread::spawn(move || gate.close())
        };
        drop(held);
        closer.join().unwrap();
        assert_eq!(
            gate.try_acquire().unwrap_err().reason(),
            RefusedReason::Closed
        );
        assert_idle(&gate);
    });
}

#[test]
fn a_critical_newcomer_that_races_with_a_release_loses_nobody() {
    model(|| {
        let gate = gate(1);
        let held = gate.try_acquire().unwrap();
        let background = {
            let gate = gate.clone();
            thread::spawn(move || {
                let ask = Ask::new().priority(Priority::Background);
                drop(block_on(gate.acquire_with(ask)).unwrap());
            })
        };
        let critical = {
            let gate = gate.clone();
            thread::spawn(move || {
                let ask = Ask::new().priority(Priority::Critical);
                drop(block_on(gate.acquire_with(ask)).unwrap());
            })
        };
        drop(held);
        background.join().unwrap();
        critical.join().unwrap();
        assert_idle(&gate);
    });
}

#[test]
fn a_displaced_waiter_is_told_and_its_place_is_taken() {
    model(|| {
        let config = GateConfig::new(1).max_queue(1).max_wait(Duration::MAX);
        let gate = Gate::new(config);
        let held = gate.try_acquire().unwrap();
        let background = {
            let gate = gate.clone();
            thread::spawn(move || {
                let ask = Ask::new().priority(Priority::Background);
                block_on(gate.acquire_with(ask)).map(drop)
            })
        };
        let critical = {
            let gate = gate.clone();
            thread::spawn(move || {
                let ask = Ask::new().priority(Priority::Critical);
                drop(block_on(gate.acquire_with(ask)).unwrap());
            })
        };
        drop(held);
        critical.join().unwrap();
        if let Err(refused) = background.join().unwrap() {
            let reason = refused.reason();
            assert!(matches!(
                reason,
                RefusedReason::Displaced | RefusedReason::QueueFull
            ));
        }
        assert_idle(&gate);
    });
}

#[test]
fn an_expensive_waiter_that_leaves_gives_up_what_was_kept_for_it() {
    model(|| {
        let gate = gate(2);
        let held = gate.try_acquire().unwrap();
        let expensive = {
            let gate = gate.clone();
            thread::spawn(move || {
                let mut acquire = pin!(gate.acquire_with(Ask::new().cost(2)));
                let waker = futures_util::task::noop_waker();
                match acquire.as_mut().poll(&mut Context::from_waker(&waker)) {
                    Poll::Ready(entered) => drop(entered.unwrap()),
                    Poll::Pending => {}
                }
                // Dropped here: in the queue with one permit kept for it, or not at all.
            })
        };
        // Never returned before it is in.
        let behind = enter(&gate);
        expensive.join().unwrap();
        drop((held, behind));
        assert_idle(&gate);
    });
}

#[test]
fn permits_that_return_one_by_one_add_up_for_an_expensive_waiter() {
    model(|| {
        let gate = gate(2);
        let first = gate.try_acquire().unwrap();
        let second = gate.try_acquire().unwrap();
        let other = thread::spawn(move || drop(first));
        let expensive = {
            let gate = gate.clone();
            thread::spawn(move || {
                let permit = block_on(gate.acquire_with(Ask::new().cost(2))).unwrap();
                assert_eq!(gate.inflight(), 2);
                drop(permit);
            })
        };
        drop(second);
        other.join().unwrap();
        expensive.join().unwrap();
        assert_idle(&gate);
    });
}
