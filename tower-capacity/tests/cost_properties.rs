//! Random sequences of requests of different costs against an exact model of what is inside.
#![cfg(not(loom))]

#[path = "cases/gate.rs"]
mod cases;

use std::{collections::VecDeque, pin::Pin, task::Poll, time::Duration};

use proptest::prelude::*;
use tower_capacity::gate::{Acquire, Ask, Gate, GateConfig, Permit, Priority, RefusedReason};

use self::cases::{class, config, poll, room};

#[derive(Clone, Copy, Debug)]
struct Request {
    id: usize,
    class: Priority,
    cost: usize,
}

impl Request {
    fn ask(self) -> Ask {
        Ask::new().priority(self.class).cost(self.cost as u32)
    }
}

#[derive(Clone, Debug)]
enum Operation {
    TryAcquire(Priority, usize),
    Acquire(Priority, usize),
    Release(prop::sample::Index),
    Cancel(prop::sample::Index),
    Resize(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    let cost = || prop_oneof![4 => Just(1_usize), 4 => 2_usize..8, 1 => 20_usize..=64];
    prop_oneof![
        2 => (class(), cost()).prop_map(|(class, cost)| Operation::TryAcquire(class, cost)),
        5 => (class(), cost()).prop_map(|(class, cost)| Operation::Acquire(class, cost)),
        4 => any::<prop::sample::Index>().prop_map(Operation::Release),
        2 => any::<prop::sample::Index>().prop_map(Operation::Cancel),
        1 => (0_usize..30).prop_map(Operation::Resize),
    ]
}

/// What the gate promises, in the plainest words: one list of those inside, one of those that wait.
#[derive(Debug, Default)]
struct Model {
    limit: usize,
    max_queue: usize,
    inside: Vec<Request>,
    waiting: VecDeque<Request>,
    /// The waiter that is next, where it costs more than is free.
    gathering: Option<usize>,
}

/// What becomes of a newcomer.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Enters,
    Waits { displaced: Option<usize> },
    Refused,
}

impl Model {
    fn inflight(&self) -> usize {
        self.inside.iter().map(|request| request.cost).sum()
    }

    fn queued(&self) -> usize {
        self.waiting.iter().map(|request| request.cost).sum()
    }

    fn fits(&self, request: Request) -> bool {
        let room = room(request.class, self.limit);
        room > 0 && self.inflight() + request.cost.min(room) <= room
    }

    fn enters(&self, request: Request) -> bool {
        let class = request.class;
        self.fits(request) && self.waiting.iter().all(|waiting| waiting.class < class)
    }

    fn try_acquire(&mut self, request: Request) -> bool {
        let enters = self.enters(request);
        if enters {
            self.inside.push(request);
        }
        enters
    }

    fn acquire(&mut self, request: Request) -> Fate {
        if self.try_acquire(request) {
            return Fate::Enters;
        }
        let mut displaced = None;
        if self.queued() >= self.max_queue {
            let lowest = self.waiting.iter().map(|waiting| waiting.class).min();
            let Some(lowest) = lowest.filter(|lowest| *lowest < request.class) else {
                return Fate::Refused;
            };
            let newest = (self.waiting.iter()).rposition(|waiting| waiting.class == lowest);
            displaced = newest.and_then(|newest| self.remove(newest));
        }
        self.waiting.push_back(request);
        self.admit();
        Fate::Waits { displaced }
    }

    /// Takes a waiter out of the line.
    fn remove(&mut self, index: usize) -> Option<usize> {
        let id = self.waiting.remove(index)?.id;
        self.gathering = self.gathering.filter(|gathering| *gathering != id);
        Some(id)
    }

    /// The highest class first and in order of arrival, but whatever comes free is kept for a waiter
    /// that was next and did not find enough.
    fn admit(&mut self) {
        while let Some(highest) = self.waiting.iter().map(|waiting| waiting.class).max() {
            let first = |id: Option<usize>| {
                self.waiting.iter().position(|waiting| {
                    waiting.class == highest && id.is_none_or(|id| waiting.id == id)
                })
            };
            let kept = self.gathering.and_then(|id| first(Some(id)));
            let Some(next) = kept.or_else(|| first(None)) else {
                return;
            };
            let request = self.waiting[next];
            if self.inflight() >= room(highest, self.limit) {
                return;
            }
            if !self.fits(request) {
                self.gathering = Some(request.id);
                return;
            }
            self.remove(next);
            self.inside.push(request);
        }
    }
}

struct Bench {
    gate: Gate,
    model: Model,
    permits: Vec<(usize, Permit)>,
    line: Vec<(usize, Pin<Box<Acquire>>)>,
    next_id: usize,
}

impl Bench {
    fn new(limit: usize, max_queue: usize) -> Self {
        let config = GateConfig::new(limit).max_queue(max_queue);
        Self {
            gate: Gate::new(config.max_wait(Duration::MAX)),
            model: Model {
                limit,
                max_queue,
                ..Model::default()
            },
            permits: Vec::new(),
            line: Vec::new(),
            next_id: 0,
        }
    }

    fn request(&mut self, class: Priority, cost: usize) -> Request {
        self.next_id += 1;
        let id = self.next_id;
        Request { id, class, cost }
    }

    fn apply(&mut self, operation: &Operation) -> Result<(), TestCaseError> {
        match operation {
            Operation::TryAcquire(class, cost) => {
                let request = self.request(*class, *cost);
                let expected = self.model.try_acquire(request);
                let entered = self.gate.try_acquire_with(request.ask());
                prop_assert_eq!(entered.is_ok(), expected, "{:?}", request);
                self.permits
                    .extend(entered.map(|permit| (request.id, permit)));
            }
            Operation::Acquire(class, cost) => self.acquire(*class, *cost)?,
            Operation::Release(index) if !self.permits.is_empty() => {
                self.release(index.index(self.permits.len()));
            }
            Operation::Cancel(index) if !self.line.is_empty() => {
                let (id, acquire) = self.line.remove(index.index(self.line.len()));
                let of = |request: &Request| request.id == id;
                if let Some(index) = self.model.waiting.iter().position(of) {
                    let was_next = self.model.gathering == Some(id);
                    self.model.remove(index);
                    if was_next {
                        self.model.admit();
                    }
                }
                drop(acquire);
            }
            Operation::Release(_) | Operation::Cancel(_) => {}
            Operation::Resize(limit) => {
                self.model.limit = *limit;
                self.model.admit();
                self.gate.set_limit(*limit);
            }
        }
        self.check()
    }

    fn acquire(&mut self, class: Priority, cost: usize) -> Result<(), TestCaseError> {
        let request = self.request(class, cost);
        let expected = self.model.acquire(request);
        let mut acquire = Box::pin(self.gate.acquire_with(request.ask()));
        match poll(&mut acquire) {
            Poll::Ready(Ok(permit)) => {
                let is_inside = self.model.inside.iter().any(|of| of.id == request.id);
                prop_assert!(is_inside, "{:?} entered: {:?}", request, expected);
                self.permits.push((request.id, permit));
            }
            Poll::Ready(Err(refused)) => {
                prop_assert_eq!(refused.reason(), RefusedReason::QueueFull);
                prop_assert_eq!(&expected, &Fate::Refused, "{:?}", request);
            }
            Poll::Pending => {
                prop_assert!(matches!(expected, Fate::Waits { .. }), "{:?}", request);
                self.line.push((request.id, acquire));
            }
        }
        if let Fate::Waits {
            displaced: Some(id),
        } = expected
        {
            let index = self.line.iter().position(|(waiting, _)| *waiting == id);
            let (_, mut acquire) = self.line.remove(index.expect("it waited"));
            let Poll::Ready(Err(refused)) = poll(&mut acquire) else {
                return Err(TestCaseError::fail("it was to be displaced"));
            };
            prop_assert_eq!(refused.reason(), RefusedReason::Displaced);
        }
        Ok(())
    }

    fn release(&mut self, index: usize) {
        let (id, permit) = self.permits.swap_remove(index);
        self.model.inside.retain(|request| request.id != id);
        self.model.admit();
        drop(permit);
    }

    /// The same are inside as in the model, and the same wait.
    fn check(&mut self) -> Result<(), TestCaseError> {
        for (id, mut acquire) in std::mem::take(&mut self.line) {
            let waits = self.model.waiting.iter().any(|request| request.id == id);
            match poll(&mut acquire) {
                Poll::Ready(Ok(permit)) => {
                    prop_assert!(!waits, "{} entered too soon", id);
                    self.permits.push((id, permit));
                }
                Poll::Ready(Err(refused)) => {
                    return Err(TestCaseError::fail(format!("{id} left: {refused}")));
                }
                Poll::Pending => {
                    prop_assert!(waits, "{} is still waiting", id);
                    self.line.push((id, acquire));
                }
            }
        }
        let now = self.gate.snapshot();
        prop_assert_eq!(now.inflight(), self.model.inflight());
        prop_assert_eq!(now.queued(), self.model.queued());
        let mut inside: Vec<_> = self.permits.iter().map(|(id, _)| *id).collect();
        let mut expected: Vec<_> = self.model.inside.iter().map(|of| of.id).collect();
        inside.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(inside, expected);
        Ok(())
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn requests_of_any_cost_enter_in_the_order_of_the_model_and_none_is_locked_out(
        limit in 0_usize..30,
        max_queue in 0_usize..12,
        operations in prop::collection::vec(operation(), 1..120),
    ) {
        let mut bench = Bench::new(limit, max_queue);
        for operation in &operations {
            bench.apply(operation)?;
        }
        bench.apply(&Operation::Resize(limit.max(1)))?;
        while !bench.permits.is_empty() {
            bench.release(0);
            bench.check()?;
        }
        prop_assert_eq!((bench.gate.inflight(), bench.gate.queued()), (0, 0));
    }
}
