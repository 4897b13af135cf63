//! Random sequences of operations against a plain model of the gate.
#![cfg(not(loom))]

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use proptest::prelude::*;
use tower_capacity::gate::{Acquire, Ask, Gate, GateConfig, Permit, Priority, RefusedReason};

#[derive(Clone, Debug)]
enum Operation {
    TryAcquire(Priority),
    Acquire(Priority),
    AcquireAnyway,
    Release(prop::sample::Index),
    Cancel(prop::sample::Index),
    Resize(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        2 => class().prop_map(Operation::TryAcquire),
        4 => class().prop_map(Operation::Acquire),
        1 => Just(Operation::AcquireAnyway),
        4 => any::<prop::sample::Index>().prop_map(Operation::Release),
        2 => any::<prop::sample::Index>().prop_map(Operation::Cancel),
        1 => (0_usize..30).prop_map(Operation::Resize),
    ]
}

/// Mostly of one class, so that order within a class is seen too.
fn class() -> impl Strategy<Value = Priority> {
    prop_oneof![
        4 => Just(Priority::Default),
        1 => prop::sample::select(Priority::ALL.to_vec()),
    ]
}

/// Permits that a class may fill, from its published share.
fn room(class: Priority, limit: usize) -> usize {
    limit - limit * ((1.0 - class.share()) * 20.0).round() as usize / 20
}

/// The gate, and what is known of it from outside.
struct Bench {
    gate: Gate,
    permits: Vec<Permit>,
    /// In order of arrival.
    line: Vec<(Priority, Pin<Box<Acquire>>)>,
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
            line: Vec::new(),
            max_queue,
            taken: 0,
            returned: 0,
        }
    }

    fn take(&mut self, permit: Permit) {
        self.taken += 1;
        self.permits.push(permit);
    }

    /// Whether a newcomer of this class should find its way in.
    fn is_free(&self, class: Priority) -> bool {
        let now = self.gate.snapshot();
        let outranked = self.line.iter().any(|(waiting, _)| *waiting >= class);
        now.inflight() < room(class, now.limit()) && !outranked
    }

    fn apply(&mut self, operation: &Operation) -> Result<(), TestCaseError> {
        match operation {
            Operation::TryAcquire(class) => {
                let free = self.is_free(*class);
                match self.gate.try_acquire_as(*class) {
                    Ok(permit) => {
                        prop_assert!(free, "entered a full gate or overtook its own class");
                        self.take(permit);
                    }
                    Err(refused) => {
                        prop_assert!(!free, "refused while a permit was free");
                        prop_assert_eq!(refused.reason(), RefusedReason::Full);
                    }
                }
            }
            Operation::Acquire(class) => {
                let free = self.is_free(*class);
                let full = self.line.len() >= self.max_queue;
                let outranks = self.line.iter().any(|(waiting, _)| waiting < class);
                let mut acquire = Box::pin(self.gate.acquire_with(Ask::new().priority(*class)));
                match poll(&mut acquire) {
                    Poll::Ready(Ok(permit)) => {
                        prop_assert!(free, "entered a full gate or overtook its own class");
                        self.take(permit);
                    }
                    Poll::Ready(Err(refused)) => {
                        prop_assert_eq!(refused.reason(), RefusedReason::QueueFull);
                        prop_assert!(full && !outranks);
                    }
                    Poll::Pending => {
                        prop_assert!(!free, "waits while a permit is free");
                        self.line.push((*class, acquire));
                    }
                }
            }
            Operation::AcquireAnyway => {
                let free = self.is_free(Priority::Default);
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

    /// Whoever was admitted stood before all of its class who still wait; whoever was displaced
    /// stood behind them.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        let mut waiting: Vec<(Priority, Pin<Box<Acquire>>)> = Vec::new();
        let mut displaced: Vec<Priority> = Vec::new();
        for (class, mut acquire) in std::mem::take(&mut self.line) {
            match poll(&mut acquire) {
                Poll::Ready(Ok(permit)) => {
                    let overtaken = waiting.iter().any(|(other, _)| *other == class);
                    prop_assert!(!overtaken, "a later waiter was admitted first");
                    self.take(permit);
                }
                Poll::Ready(Err(refused)) => {
                    prop_assert_eq!(refused.reason(), RefusedReason::Displaced);
                    displaced.push(class);
                }
                Poll::Pending => {
                    let stayed = displaced.contains(&class);
                    let newest = self.gate.queued() == waiting.len() + 1;
                    prop_assert!(
                        !stayed || newest,
                        "not the newest of its class was displaced"
                    );
                    waiting.push((class, acquire));
                }
            }
        }
        for class in displaced {
            let lower = waiting.iter().any(|(other, _)| *other < class);
            prop_assert!(!lower, "somebody who matters less stayed");
        }
        self.line = waiting;
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let now = self.gate.snapshot();
        prop_assert_eq!(now.inflight(), self.permits.len());
        prop_assert_eq!(now.queued(), self.line.len());
        prop_assert_eq!(self.taken - self.returned, self.permits.len());
        prop_assert!(now.inflight() <= now.limit() + now.debt());
        let highest = self.line.iter().map(|(class, _)| *class).max();
        prop_assert!(
            highest.is_none_or(|class| now.inflight() >= room(class, now.limit())),
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
        limit in 0_usize..30,
        max_queue in 0_usize..8,
        operations in prop::collection::vec(operation(), 1..120),
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
