//! Holds what a limiter decides against exact arithmetic, step by step.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use rate_limit::{LimitError, Policy, Quota, answer::Reason};

use crate::reference::{Reference, Refusal};

/// What happens next; a server has no `Advance` and no `Flood`.
#[allow(dead_code, reason = "each test constructs its own")]
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Advance(u64),
    Check {
        plan: usize,
        cells: u64,
    },
    /// A request with a quota of its own in place of the first policy's.
    Own {
        plan: usize,
        quota: usize,
    },
    Reserve {
        plan: usize,
        cells: u64,
    },
    Settle {
        which: usize,
        actual: u64,
    },
    Drop {
        which: usize,
    },
    Refund {
        plan: usize,
        cells: u64,
    },
    Penalize {
        plan: usize,
        cells: u64,
    },
    Peek {
        plan: usize,
    },
    Reload {
        plan: usize,
        quotas: (usize, usize),
        with: u8,
    },
    /// New keys, under a plan, that each ask once.
    Flood {
        plan: usize,
        keys: u64,
    },
}

pub(crate) const PLANS: usize = 3;

/// What is judged: a limiter with the plans `1` and `2` beside its own.
pub(crate) trait Subject {
    type Held;

    /// Lets time pass, if it can be, and returns the time, in nanoseconds.
    fn advance(&self, nanos: u64) -> u64;
    async fn check(&self, plan: usize, cells: u64) -> Result<(), LimitError>;
    /// A request with a quota of its own in place of the first policy's.
    async fn own(&self, plan: usize, quota: Quota) -> Result<(), LimitError>;
    async fn reserve(&self, plan: usize, cells: u64) -> Result<Self::Held, LimitError>;
    async fn settle(&self, held: Self::Held, actual: u64);
    async fn give_back(&self, held: Self::Held);
    async fn refund(&self, plan: usize, cells: u64);
    async fn penalize(&self, plan: usize, cells: u64);
    async fn peek(&self, plan: usize) -> u64;
    fn reload(&self, plan: usize, policies: Vec<Policy>);
    /// Others keys that each ask once.
    fn flood(&self, plan: usize, keys: std::ops::Range<u64>);
}

/// Sends a request to a layer on a limiter, with a quota of its own, and returns its refusal.
macro_rules! send {
    ($limiter:expr, $plan:expr, $own:expr) => {{
        let own = $own;
        let layer = RateLimitLayer::from_limiter($limiter)
            .key(key::header("x-key"))
            .plan(|request| match request.uri().path() {
                "/0" => None,
                "/1" => Some("1"),
                _ => Some("2"),
            })
            .quota_from(move |_| Some(own))
            .explain_refusals(true);
        let inner = service_fn(async |_: Request<()>| {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        });
        let request = Request::get(format!("/{}", $plan)).header("x-key", "key");
        let response = layer.layer(inner).oneshot(request.body(()).unwrap());
        let response = response.await.unwrap();
        response.extensions().get().cloned().map_or(Ok(()), Err)
    }};
}

pub(crate) use send;

/// The policies of each plan, as the judge knows them.
pub(crate) type Plan = Vec<(&'static str, Quota)>;

pub(crate) struct Judge<S: Subject> {
    subject: S,
    plans: [Plan; PLANS],
    keys: BTreeMap<&'static str, Reference>,
    reservations: Vec<(S::Held, Plan, u64)>,
    flooded: u64,
}

pub(crate) const KEY: &[u8] = b"key";

pub(crate) fn policies(plan: &Plan) -> Vec<Policy> {
    plan.iter()
        .map(|(name, quota)| Policy::new(*name, *quota))
        .collect()
}

/// The plans of a subject with these quotas; with `shared`, all have a policy of one name.
pub(crate) fn plans(quotas: [Quota; 4], shared: bool) -> [Plan; PLANS] {
    let second = if shared { "a" } else { "b" };
    [
        vec![("a", quotas[0])],
        vec![(second, quotas[1])],
        vec![("a", quotas[2]), ("b", quotas[3])],
    ]
}

impl<S: Subject> Judge<S> {
    /// For a subject with debts that are whole numbers of what drains in `tick` nanoseconds.
    pub(crate) fn new(subject: S, plans: [Plan; PLANS], tick: i128) -> Self {
        let keys = ["a", "b"].map(|name| (name, Reference::with_tick(tick)));
        let mut judge = Self {
            subject,
            plans,
            keys: keys.into(),
            reservations: Vec::new(),
            flooded: 0,
        };
        judge.advance(0);
        judge
    }

    fn advance(&mut self, nanos: u64) {
        let now = self.subject.advance(nanos);
        self.keys.values_mut().for_each(|key| key.advance(now));
    }

    /// Holds a decision against the reference, and has that follow it.
    fn judge(&mut self, plan: &Plan, cells: u64, outcome: Result<(), Option<Duration>>) {
        let worst = |cautious: bool| {
            let refusals = plan.iter().filter_map(|(name, quota)| {
                let key = &self.keys[name];
                if cautious {
                    key.decide_cautiously(quota, cells)
                } else {
                    key.decide(quota, cells)
                }
            });
            refusals.max_by_key(|refusal| match refusal {
                Refusal::Wait(nanos) => *nanos,
                Refusal::Never => u64::MAX,
            })
        };
        match outcome {
            Ok(()) => {
                assert_eq!(
                    worst(false),
                    None,
                    "admitted {cells} by {plan:?}, with {:?}",
                    self.keys
                );
                for (name, quota) in plan {
                    self.keys.get_mut(name).unwrap().charge(quota, cells);
                }
            }
            Err(wait) => {
                let most = worst(true);
                let within = match (wait, most) {
                    (None, Some(Refusal::Never)) => true,
                    (Some(wait), Some(Refusal::Wait(most))) => wait.as_nanos() as u64 <= most,
                    _ => false,
                };
                assert!(
                    within,
                    "refused {cells} for {wait:?}, at most {most:?}, by {plan:?}, with {:?}",
                    self.keys
                );
                // What can never fit is refused without a look at the key.
                for (name, quota) in plan {
                    if cells > 0 && most != Some(Refusal::Never) {
                        self.keys.get_mut(name).unwrap().open(quota);
                    }
                }
            }
        }
    }

    pub(crate) async fn step(&mut self, step: &Step, quota: fn(usize) -> Quota) {
        match *step {
            Step::Advance(nanos) => self.advance(nanos),
            Step::Check { plan, cells } => {
                let outcome = self.subject.check(plan, cells).await;
                self.decided(self.plans[plan].clone(), cells, outcome);
            }
            Step::Own { plan, quota: own } => {
                let own = quota(own);
                let outcome = self.subject.own(plan, own).await;
                let mut policies = self.plans[plan].clone();
                policies[0].1 = own;
                self.decided(policies, 1, outcome);
            }
            Step::Reserve { plan, cells } => {
                let (held, outcome) = match self.subject.reserve(plan, cells).await {
                    Ok(held) => (Some(held), Ok(())),
                    Err(error) => (None, Err(error)),
                };
                let plan = self.plans[plan].clone();
                self.decided(plan.clone(), cells, outcome);
                let held = held.map(|held| (held, plan, cells));
                self.reservations.extend(held);
            }
            Step::Settle { which, actual } => {
                if let Some((reservation, plan, cells)) = self.take(which) {
                    self.subject.settle(reservation, actual).await;
                    self.settle(&plan, cells, actual);
                }
            }
            Step::Drop { which } => {
                if let Some((reservation, plan, cells)) = self.take(which) {
                    self.subject.give_back(reservation).await;
                    self.settle(&plan, cells, 0);
                }
            }
            Step::Refund { plan, cells } => {
                self.subject.refund(plan, cells).await;
                for (name, _) in &self.plans[plan] {
                    self.keys.get_mut(name).unwrap().refund(cells);
                }
            }
            Step::Penalize { plan, cells } => {
                // A new key may find no room.
                if self.flooded > 0 && self.owes_nothing() {
                    return;
                }
                self.subject.penalize(plan, cells).await;
                for (name, quota) in &self.plans[plan] {
                    self.keys.get_mut(name).unwrap().charge(quota, cells);
                }
            }
            Step::Peek { plan } => {
                let left = self.subject.peek(plan).await;
                let bounds = self.plans[plan]
                    .iter()
                    .map(|(name, quota)| self.keys[name].left(quota));
                let (most, least) = bounds.reduce(|a, b| (a.0.min(b.0), a.1.min(b.1))).unwrap();
                assert!(
                    (least..=most).contains(&left),
                    "peek {left}, not {least} to {most}, with {:?}",
                    self.keys
                );
            }
            Step::Reload { plan, quotas, with } => {
                let mut new = Plan::new();
                if with != 1 {
                    new.push(("a", quota(quotas.0)));
                }
                if with != 0 {
                    new.push(("b", quota(quotas.1)));
                }
                self.subject.reload(plan, policies(&new));
                self.plans[plan] = new;
            }
            Step::Flood { plan, keys } => {
                if self.owes_nothing() {
                    return;
                }
                self.subject.flood(plan, self.flooded..self.flooded + keys);
                self.flooded += keys;
            }
        }
    }

    fn decided(&mut self, plan: Plan, cells: u64, outcome: Result<(), LimitError>) {
        if !self.has_no_room(outcome.as_ref().err().map(LimitError::reason)) {
            self.judge(&plan, cells, outcome.map_err(|error| error.retry_after()));
        }
    }

    fn take(&mut self, which: usize) -> Option<(S::Held, Plan, u64)> {
        if self.reservations.is_empty() || (self.flooded > 0 && self.owes_nothing()) {
            return None;
        }
        let which = which % self.reservations.len();
        Some(self.reservations.swap_remove(which))
    }

    fn settle(&mut self, plan: &Plan, cells: u64, actual: u64) {
        for (name, quota) in plan {
            let key = self.keys.get_mut(name).unwrap();
            if actual > cells {
                key.charge(quota, actual - cells);
            } else {
                key.refund(cells - actual);
            }
        }
    }

    fn owes_nothing(&self) -> bool {
        self.keys.values().all(Reference::owes_nothing)
    }

    /// Whether the request found no room, which only a key without debt may.
    fn has_no_room(&self, reason: Option<Reason>) -> bool {
        if reason != Some(Reason::NoRoom) {
            return false;
        }
        assert!(
            self.owes_nothing() && self.flooded > 0,
            "no room, with {:?}",
            self.keys
        );
        true
    }

    /// Beyond as many quotas as are kept apart, debts are carried and no longer exact; and whether
    /// a debt of less than a tick is left is not either.
    pub(crate) fn is_exact(&self) -> bool {
        self.keys
            .values()
            .all(|key| key.accounts.len() <= 4 && !key.is_on_the_brink())
    }
}

fn cells(most: u64) -> impl Strategy<Value = u64> {
    prop_oneof![6 => Just(1u64), 2 => 0u64..12, 2 => 1u64..2_000, 1 => 0..most, 1 => Just(u64::MAX)]
}

/// A step that takes no time and has to do with one key, for so many quotas and costs.
pub(crate) fn step(quotas: usize, most: u64) -> impl Strategy<Value = Step> {
    let plan = || 0..PLANS;
    prop_oneof![
        8 => (plan(), cells(most)).prop_map(|(plan, cells)| Step::Check { plan, cells }),
        2 => (plan(), 0..quotas).prop_map(|(plan, quota)| Step::Own { plan, quota }),
        2 => (plan(), cells(most)).prop_map(|(plan, cells)| Step::Reserve { plan, cells }),
        1 => (0usize..8, cells(most)).prop_map(|(which, actual)| Step::Settle { which, actual }),
        1 => (0usize..8).prop_map(|which| Step::Drop { which }),
        1 => (plan(), cells(most)).prop_map(|(plan, cells)| Step::Refund { plan, cells }),
        1 => (plan(), cells(most)).prop_map(|(plan, cells)| Step::Penalize { plan, cells }),
        4 => plan().prop_map(|plan| Step::Peek { plan }),
        1 => (plan(), (0..quotas, 0..quotas), 0u8..3)
            .prop_map(|(plan, quotas, with)| Step::Reload { plan, quotas, with }),
    ]
}
