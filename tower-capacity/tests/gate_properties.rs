//! Random sequences of operations against a plain model of the gate.
#![cfg(not(loom))]

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use proptest::prelude::*;
use tower_capacity::gate::{Acquire, Gate, GateConfig, Permit, RefusedReason};

#[derive(Clone, Debug)]
enum Operation {
    TryAcquire,
    Acquire,
    AcquireAnyway,
    Release(prop::sample::Index),
    Cancel(prop::sample::Index),
    Resize(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        2 => Just(Operation::TryAcquire),
        4 => Just(Operation::Acquire),
        1 => Just(Operation::AcquireAnyway),
        4 => any::<prop::sample::Index>().prop_map(Operation::Release),
        2 => any::<prop::sample::Index>().prop_map(Operation::Cancel),
        1 => (0_usize..6).prop_map(Operation::Resize),
    ]
}

/// The gate, and what is known of it from outside.
struct Bench {
    gate: Gate,
    permits: Vec<Permit>,
    /// In order of arrival.
    line: VecDeque<Pin<Box<Acquire>>>,
    max_queue: usize,
    /// Permits ever obtained and returned, counted where they change hands.
    taken: usize,
    returned: usize,
}

impl Bench {
    fn new(limit: usize, max_queue: usize) -> Self {
        let config = GateConfig::new(limit)
            .max_queue(max_queue)
            .max_wait(Duration::MAX);
        Self {
            gate: Gate::new(config),
            permits: Vec::new(),
            line: VecDeque::new(),
            max_queue,
            taken: 0,
            returned: 0,
        }
    }

    fn take(&mut self, permit: Permit) {
        self.taken += 1;
        self.permits.push(permit);
    }

    fn apply(&mut self, operation: &Operation) -> Result<(), TestCaseError> {
        let before = self.gate.snapshot();
        let free = before.inflight() < before.limit() && self.line.is_empty();
        match operation {
            Operation::TryAcquire => match self.gate.try_acquire() {
                Ok(permit) => {
                    prop_assert!(free, "entered a full gate or overtook a waiter");
                    self.take(permit);
                }
                Err(refused) => {
                    prop_assert!(!free, "refused while a permit was free");
                    prop_assert_eq!(refused.reason(), RefusedReason::Full);
                }
            },
            Operation::Acquire => {
                let mut acquire = Box::pin(self.gate.acquire());
                match poll(&mut acquire) {
                    Poll::Ready(Ok(permit)) => {
                        prop_assert!(free, "entered a full gate or overtook a waiter");
                        self.take(permit);
                    }
                    Poll::Ready(Err(refused)) => {
                        prop_assert_eq!(refused.reason(), RefusedReason::QueueFull);
                        prop_assert_eq!(self.line.len(), self.max_queue);
                    }
                    Poll::Pending => {
                        prop_assert!(!free, "waits while a permit is free");
                        self.line.push_back(acquire);
                    }
                }
            }
            Operation::AcquireAnyway => {
                let (permit, would) = self.gate.acquire_anyway();
                prop_assert_eq!(would.is_ok(), free);
                self.take(permit);
            }
            Operation::Release(index) => {
                if !self.permits.is_empty() {
                    let permit = self.permits.swap_remove(index.index(self.permits.len()));
                    drop(permit);
                    self.returned += 1;
                }
            }
            Operation::Cancel(index) => {
                if !self.line.is_empty() {
                    drop(self.line.remove(index.index(self.line.len())));
                }
            }
            Operation::Resize(limit) => self.gate.set_limit(*limit),
        }
        self.settle()?;
        self.check()
    }

    /// Whoever was admitted stands at the front, in order of arrival.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        let mut still_waiting = false;
        for mut acquire in std::mem::take(&mut self.line) {
            match poll(&mut acquire) {
                Poll::Ready(entered) => {
                    prop_assert!(!still_waiting, "a later waiter was admitted first");
                    self.take(entered.expect("waits without bound"));
                }
                Poll::Pending => {
                    still_waiting = true;
                    self.line.push_back(acquire);
                }
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let now = self.gate.snapshot();
        prop_assert_eq!(now.inflight(), self.permits.len());
        prop_assert_eq!(now.queued(), self.line.len());
        prop_assert_eq!(self.taken - self.returned, self.permits.len());
        prop_assert!(now.inflight() <= now.limit() + now.debt());
        prop_assert!(
            now.queued() == 0 || now.inflight() >= now.limit(),
            "somebody waits for a free permit"
        );
        Ok(())
    }
}

fn poll(acquire: &mut Pin<Box<Acquire>>) -> Poll<<Acquire as Future>::Output> {
    let waker = futures_util::task::noop_waker();
    acquire.as_mut().poll(&mut Context::from_waker(&waker))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_sequence_of_operations_breaks_the_gate(
        limit in 0_usize..6,
        max_queue in 0_usize..6,
        operations in prop::collection::vec(operation(), 1..80),
    ) {
        let mut bench = Bench::new(limit, max_queue);
        for operation in &operations {
            bench.apply(operation)?;
        }
        bench.line.clear();
        bench.permits.clear();
        prop_assert_eq!((bench.gate.inflight(), bench.gate.queued()), (0, 0));
    }
}
