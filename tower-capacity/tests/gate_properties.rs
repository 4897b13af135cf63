//! Random sequences of operations against a plain model of the gate.
#![cfg(not(loom))]

#[path = "cases/gate.rs"]
mod cases;

use std::{pin::Pin, task::Poll, time::Duration};

use proptest::prelude::*;
use tower_capacity::gate::{
    Acquire, Ask, Gate, GateConfig, Partition, Permit, Priority, RefusedReason,
};

use self::cases::{class, config, poll, room};

#[derive(Clone, Debug)]
enum Operation {
    TryAcquire(Kind),
    Acquire(Kind),
    AcquireAnyway,
    Release(prop::sample::Index),
    Cancel(prop::sample::Index),
    Resize(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        2 => kind().prop_map(Operation::TryAcquire),
        4 => kind().prop_map(Operation::Acquire),
        1 => Just(Operation::AcquireAnyway),
        4 => any::<prop::sample::Index>().prop_map(Operation::Release),
        2 => any::<prop::sample::Index>().prop_map(Operation::Cancel),
        1 => (0_usize..30).prop_map(Operation::Resize),
    ]
}

/// The request that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    class: Priority,
    partition: Partition,
    cost: usize,
}

impl Kind {
    fn ask(self) -> Ask {
        let ask = Ask::new().priority(self.class).partition(self.partition);
        ask.cost(self.cost as u32)
    }

    /// Whether the two wait in the same line.
    fn is_in_line_with(self, other: Self) -> bool {
        (self.class, self.partition) == (other.class, other.partition)
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    (class(), partition(), cost()).prop_map(|(class, partition, cost)| Kind {
        class,
        partition,
        cost,
    })
}

/// Mostly one permit, and now and then more than any limit here.
fn cost() -> impl Strategy<Value = usize> {
    prop_oneof![
        8 => Just(1_usize),
        3 => 2_usize..10,
        1 => 30_usize..=64,
    ]
}

/// Guaranteed shares of the first partitions; the others have none of their own.
const SHARES: [f64; 3] = [0.5, 0.2, 0.1];

fn partition() -> impl Strategy<Value = Partition> {
    prop_oneof![
        2 => Just(Partition::NONE),
        3 => (1_usize..6).prop_map(Partition::new),
    ]
}

/// Whether a request finds all of its permits free, or all that its class may fill.
fn fits(class: Priority, cost: usize, inflight: usize, limit: usize) -> bool {
    let room = room(class, limit);
    inflight < room && inflight + cost.min(room) <= room
}

/// The gate, and what is known of it from outside.
struct Bench {
    gate: Gate,
    permits: Vec<(Kind, Permit)>,
    /// In order of arrival.
    line: Vec<(Kind, Pin<Box<Acquire>>)>,
    max_queue: usize,
    /// Permits ever obtained and returned, counted where they change hands.
    taken: usize,
    returned: usize,
}

impl Bench {
    fn new(limit: usize, max_queue: usize) -> Self {
        let config = GateConfig::new(limit)
            .max_queue(max_queue)
            .max_wait(Duration::MAX)
            .shares(SHARES);
        Self {
            gate: Gate::new(config),
            permits: Vec::new(),
            line: Vec::new(),
            max_queue,
            taken: 0,
            returned: 0,
        }
    }

    fn take(&mut self, kind: Kind, permit: Permit) {
        self.taken += kind.cost;
        self.permits.push((kind, permit));
    }

    /// Permits guaranteed to a partition, if it has a share of its own.
    fn guarantee(&self, partition: Partition) -> Option<f64> {
        let share = SHARES.get(partition.index().checked_sub(1)?)?;
        Some(share * self.gate.limit() as f64)
    }

    /// What a partition holds and asks for, as a multiple of its guarantee.
    fn load(&self, partition: Partition, more: usize) -> Option<f64> {
        let queued = self
            .line
            .iter()
            .filter(|(kind, _)| kind.partition == partition);
        let queued: usize = queued.map(|(kind, _)| kind.cost).sum();
        let asked = self.gate.inflight_of(partition) + queued + more;
        Some(asked as f64 / self.guarantee(partition)?)
    }

    /// Whether a newcomer should find its way in.
    fn is_free(&self, class: Priority, cost: usize) -> bool {
        let now = self.gate.snapshot();
        let outranked = self.line.iter().any(|(waiting, _)| waiting.class >= class);
        fits(class, cost, now.inflight(), now.limit()) && !outranked
    }

    /// Permits that the waiters want.
    fn queued(&self) -> usize {
        self.line.iter().map(|(kind, _)| kind.cost).sum()
    }

    fn apply(&mut self, operation: &Operation) -> Result<(), TestCaseError> {
        match operation {
            Operation::TryAcquire(kind) => {
                let free = self.is_free(kind.class, kind.cost);
                match self.gate.try_acquire_with(kind.ask()) {
                    Ok(permit) => {
                        prop_assert!(free, "entered a full gate or overtook its own class");
                        self.take(*kind, permit);
                    }
                    Err(refused) => {
                        prop_assert!(!free, "refused while a permit was free");
                        prop_assert_eq!(refused.reason(), RefusedReason::Full);
                    }
                }
            }
            Operation::Acquire(kind) => self.acquire(*kind)?,
            Operation::AcquireAnyway => {
                let kind = Kind {
                    class: Priority::Default,
                    partition: Partition::NONE,
                    cost: 1,
                };
                let free = self.is_free(kind.class, kind.cost);
                let (permit, would) = self.gate.acquire_anyway();
                prop_assert_eq!(would.is_ok(), free);
                self.take(kind, permit);
            }
            Operation::Release(index) => {
                if !self.permits.is_empty() {
                    let index = index.index(self.permits.len());
                    let (kind, permit) = self.permits.swap_remove(index);
                    drop(permit);
                    self.returned += kind.cost;
                    return self.settle_one();
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

    fn acquire(&mut self, kind: Kind) -> Result<(), TestCaseError> {
        let Kind {
            class,
            partition,
            cost,
        } = kind;
        let free = self.is_free(class, cost);
        let full = self.queued() >= self.max_queue;
        let outranks = self.line.iter().any(|(waiting, _)| waiting.class < class);
        let modest = self.load(partition, 1).is_some_and(|load| load <= 1.0);
        let is_greedy = |waiting: &Kind| {
            let load = self.load(waiting.partition, 0);
            waiting.partition != partition && load.is_some_and(|load| load > 1.0)
        };
        let entitled = modest && self.line.iter().any(|(waiting, _)| is_greedy(waiting));
        let mut acquire = Box::pin(self.gate.acquire_with(kind.ask()));
        match poll(&mut acquire) {
            Poll::Ready(Ok(permit)) => {
                // In the place of a waiter for which permits were gathered.
                let displaces = full && self.line.iter().any(|(kind, _)| kind.cost > 1);
                let may_enter = free || displaces;
                prop_assert!(may_enter, "entered a full gate or overtook its own class");
                self.take(kind, permit);
            }
            Poll::Ready(Err(refused)) => {
                prop_assert_eq!(refused.reason(), RefusedReason::QueueFull);
                prop_assert!(full && !outranks && !entitled);
            }
            Poll::Pending => {
                prop_assert!(!free, "waits while a permit is free");
                self.line.push((kind, acquire));
            }
        }
        Ok(())
    }

    /// One permit came free: it went to a waiter that is entitled to it, if one waited in a class that
    /// may fill the limit.
    fn settle_one(&mut self) -> Result<(), TestCaseError> {
        let before = self.permits.len();
        self.settle()?;
        self.check()?;
        let [(admitted, _)] = &self.permits[before..] else {
            return Ok(());
        };
        // A waiter for which permits are gathered was next before this one came free.
        let gathers = admitted.cost > 1 || self.line.iter().any(|(kind, _)| kind.cost > 1);
        let guarantee = self.guarantee(admitted.partition);
        let (Some(guarantee), false) = (guarantee, gathers) else {
            return Ok(());
        };
        let partition = admitted.partition;
        let was_entitled = ((self.gate.inflight_of(partition) - 1) as f64) < guarantee;
        let passed_over = self.line.iter().any(|(kind, _)| {
            let guarantee = self.guarantee(kind.partition);
            kind.class >= Priority::Default
                && kind.partition != partition
                && guarantee.is_some_and(|guarantee| {
                    (self.gate.inflight_of(kind.partition) as f64) < guarantee
                })
        });
        prop_assert!(was_entitled || !passed_over, "a borrower went first");
        Ok(())
    }

    /// A waiter that was admitted stood before all of its kind that still wait; one that was displaced
    /// stood behind them.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        let mut waiting: Vec<(Kind, Pin<Box<Acquire>>)> = Vec::new();
        let mut displaced: Vec<Kind> = Vec::new();
        for (kind, mut acquire) in std::mem::take(&mut self.line) {
            match poll(&mut acquire) {
                Poll::Ready(Ok(permit)) => {
                    let overtaken = waiting.iter().any(|(other, _)| other.is_in_line_with(kind));
                    prop_assert!(!overtaken, "a later waiter was admitted first");
                    self.take(kind, permit);
                }
                Poll::Ready(Err(refused)) => {
                    prop_assert_eq!(refused.reason(), RefusedReason::Displaced);
                    displaced.push(kind);
                }
                Poll::Pending => {
                    let stayed = displaced.iter().any(|other| other.is_in_line_with(kind));
                    let before: usize = waiting.iter().map(|(kind, _)| kind.cost).sum();
                    let newest = self.gate.queued() == before + kind.cost;
                    prop_assert!(
                        !stayed || newest,
                        "not the newest of its line was displaced"
                    );
                    waiting.push((kind, acquire));
                }
            }
        }
        for kind in displaced {
            let lower = waiting
                .iter()
                .any(|(other, _)| other.partition == kind.partition && other.class < kind.class);
            prop_assert!(!lower, "a waiter of the partition that matters less stayed");
        }
        self.line = waiting;
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let now = self.gate.snapshot();
        let held: usize = self.permits.iter().map(|(kind, _)| kind.cost).sum();
        prop_assert_eq!(now.inflight(), held);
        prop_assert_eq!(now.queued(), self.queued());
        prop_assert_eq!(self.taken - self.returned, held);
        prop_assert!(now.inflight() <= now.limit() + now.debt());
        for index in 0..8 {
            let partition = Partition::new(index);
            let held = self
                .permits
                .iter()
                .filter(|(kind, _)| kind.partition == partition);
            let held: usize = held.map(|(kind, _)| kind.cost).sum();
            prop_assert_eq!(self.gate.inflight_of(partition), held);
        }
        let highest = self.line.iter().map(|(kind, _)| kind.class).max();
        let Some(class) = highest else {
            return Ok(());
        };
        let is_gathering = self.line.iter().any(|(kind, _)| {
            kind.class == class && !fits(class, kind.cost, now.inflight(), now.limit())
        });
        prop_assert!(is_gathering, "every waiter would fit, and none enters");
        let is_one_each = self.line.iter().all(|(kind, _)| kind.cost == 1);
        prop_assert!(
            !is_one_each || now.inflight() >= room(class, now.limit()),
            "a request waits for a free permit"
        );
        Ok(())
    }
}

proptest! {
    #![proptest_config(config())]

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
