//! The limiter against exact arithmetic, through everything that can happen to a key.

#[path = "support/reference.rs"]
mod reference;

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::Full;
use proptest::prelude::*;
use rate_limit::{
    DAY, HOUR, LimitError, Limiter, MINUTE, ManualClock, OnFull, Policy, Quota, RateLimitLayer,
    Reservation, SECOND, answer::Reason, key,
};
use reference::{Reference, Refusal};
use tower::{Layer, ServiceExt, service_fn};

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
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

/// Byte quotas in powers of two, rates from five an hour to ten million a second: in whole
/// nanoseconds a cell and not.
fn quota(index: usize) -> Quota {
    let quotas = [
        Quota::count(5).per(HOUR),
        Quota::count(10).per(SECOND).burst(3),
        Quota::count(60).per(MINUTE),
        Quota::count(6_000).per(MINUTE),
        Quota::count(1_000).per(DAY),
        Quota::count(1_000).per(MINUTE),
        Quota::count(100).per(MINUTE),
        Quota::count(1_000_000).per(SECOND),
        // These are not a whole number of nanoseconds a cell.
        Quota::count(1 << 20).per(SECOND),
        Quota::count(10 << 20).per(SECOND),
        Quota::count(7_000_000).per(MINUTE),
        Quota::count(300_000).per(SECOND).burst(100),
    ];
    quotas[index % quotas.len()]
}

const QUOTAS: usize = 12;
const PLANS: usize = 3;

/// The policies of each plan, as the judge knows them.
type Plan = Vec<(&'static str, Quota)>;

struct Judge {
    clock: ManualClock,
    limiter: Limiter,
    plans: [Plan; PLANS],
    keys: BTreeMap<&'static str, Reference>,
    reservations: Vec<(Reservation, Plan, u64)>,
    flooded: u64,
}

const KEY: &[u8] = b"key";

fn policies(plan: &Plan) -> Vec<Policy> {
    plan.iter()
        .map(|(name, quota)| Policy::new(*name, *quota))
        .collect()
}

impl Judge {
    fn new(quotas: [usize; 4], shared: bool) -> Self {
        let clock = ManualClock::new();
        clock.set(10 * DAY);
        let second = if shared { "a" } else { "b" };
        let plans: [Plan; PLANS] = [
            vec![("a", quota(quotas[0]))],
            vec![(second, quota(quotas[1]))],
            vec![("a", quota(quotas[2])), ("b", quota(quotas[3]))],
        ];
        let limiter = policies(&plans[0])
            .into_iter()
            .fold(Limiter::builder(), |builder, policy| builder.policy(policy))
            .plan("1", policies(&plans[1]))
            .plan("2", policies(&plans[2]))
            .clock(clock.clone())
            .max_keys(8)
            .on_full(OnFull::RefuseNew)
            .build()
            .unwrap();
        let keys = ["a", "b"].map(|name| (name, Reference::with_tick(1)));
        let mut judge = Self {
            clock,
            limiter,
            plans,
            keys: keys.into(),
            reservations: Vec::new(),
            flooded: 0,
        };
        judge.advance(0);
        judge
    }

    fn limiter(&self, plan: usize) -> Limiter {
        match plan {
            0 => self.limiter.clone(),
            _ => self.limiter.plan(&plan.to_string()).unwrap(),
        }
    }

    fn advance(&mut self, nanos: u64) {
        self.clock.advance(Duration::from_nanos(nanos));
        let now = self.clock.elapsed().as_nanos() as u64;
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
                for (name, quota) in plan {
                    if cells > 0 {
                        self.keys.get_mut(name).unwrap().open(quota);
                    }
                }
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Advance(nanos) => self.advance(nanos),
            Step::Check { plan, cells } => {
                let outcome = self.limiter(plan).check_n(KEY, cells);
                if self.has_no_room(outcome.as_ref().err().map(|error| error.reason())) {
                    return;
                }
                let outcome = outcome.map(drop).map_err(|error| error.retry_after());
                self.judge(&self.plans[plan].clone(), cells, outcome);
            }
            Step::Own { plan, quota: own } => {
                let own = quota(own);
                let name = plan.to_string();
                let layer = RateLimitLayer::from_limiter(self.limiter.clone())
                    .key(key::header("x-key"))
                    .plan(move |request| {
                        (request.uri().path() != "/0").then(|| match request.uri().path() {
                            "/1" => "1",
                            _ => "2",
                        })
                    })
                    .quota_from(move |_| Some(own))
                    .explain_refusals(true);
                let inner = service_fn(async |_: Request<()>| {
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
                });
                let request = Request::get(format!("/{name}"))
                    .header("x-key", "key")
                    .body(())
                    .unwrap();
                let response = layer
                    .layer(inner)
                    .oneshot(request)
                    .now_or_never()
                    .unwrap()
                    .unwrap();
                let mut policies = self.plans[plan].clone();
                policies[0].1 = own;
                let outcome = match response.extensions().get::<LimitError>() {
                    None => Ok(()),
                    Some(refusal) if self.has_no_room(Some(refusal.reason())) => return,
                    Some(refusal) => Err(refusal.retry_after()),
                };
                self.judge(&policies, 1, outcome);
            }
            Step::Reserve { plan, cells } => match self.limiter(plan).reserve(KEY, cells) {
                Ok(reservation) => {
                    let plan = self.plans[plan].clone();
                    self.judge(&plan, cells, Ok(()));
                    self.reservations.push((reservation, plan, cells));
                }
                Err(error) if self.has_no_room(Some(error.reason())) => {}
                Err(error) => {
                    self.judge(&self.plans[plan].clone(), cells, Err(error.retry_after()))
                }
            },
            Step::Settle { which, actual } => {
                if let Some((reservation, plan, cells)) = self.take(which) {
                    reservation.settle(actual);
                    self.settle(&plan, cells, actual);
                }
            }
            Step::Drop { which } => {
                if let Some((reservation, plan, cells)) = self.take(which) {
                    drop(reservation);
                    self.settle(&plan, cells, 0);
                }
            }
            Step::Refund { plan, cells } => {
                self.limiter(plan).refund(KEY, cells);
                for (name, _) in &self.plans[plan] {
                    self.keys.get_mut(name).unwrap().refund(cells);
                }
            }
            Step::Penalize { plan, cells } => {
                // A new key may find no room.
                if self.flooded > 0 && self.owes_nothing() {
                    return;
                }
                self.limiter(plan).penalize(KEY, cells);
                for (name, quota) in &self.plans[plan] {
                    self.keys.get_mut(name).unwrap().charge(quota, cells);
                }
            }
            Step::Peek { plan } => {
                let left = self.limiter(plan).peek(KEY);
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
                self.limiter(plan).set_policies(policies(&new)).unwrap();
                self.plans[plan] = new;
            }
            Step::Flood { plan, keys } => {
                if self.owes_nothing() {
                    return;
                }
                let limiter = self.limiter(plan);
                for key in self.flooded..self.flooded + keys {
                    let _ = limiter.check(key);
                }
                self.flooded += keys;
            }
        }
    }

    fn take(&mut self, which: usize) -> Option<(Reservation, Plan, u64)> {
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
    fn is_exact(&self) -> bool {
        self.keys
            .values()
            .all(|key| key.accounts.len() <= 4 && !key.is_on_the_brink())
    }
}

fn cells() -> impl Strategy<Value = u64> {
    prop_oneof![6 => Just(1u64), 2 => 0u64..12, 2 => 1u64..2_000, 1 => 0u64..12_000_000, 1 => Just(u64::MAX)]
}

fn nanos() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => Just(0u64),
        3 => 0u64..2_000_000_000,
        2 => 0u64..600_000_000_000,
        1 => 0u64..200_000_000_000_000,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let plan = || 0..PLANS;
    prop_oneof![
        5 => nanos().prop_map(Step::Advance),
        8 => (plan(), cells()).prop_map(|(plan, cells)| Step::Check { plan, cells }),
        2 => (plan(), 0..QUOTAS).prop_map(|(plan, quota)| Step::Own { plan, quota }),
        2 => (plan(), cells()).prop_map(|(plan, cells)| Step::Reserve { plan, cells }),
        1 => (0usize..8, cells()).prop_map(|(which, actual)| Step::Settle { which, actual }),
        1 => (0usize..8).prop_map(|which| Step::Drop { which }),
        1 => (plan(), cells()).prop_map(|(plan, cells)| Step::Refund { plan, cells }),
        1 => (plan(), cells()).prop_map(|(plan, cells)| Step::Penalize { plan, cells }),
        4 => plan().prop_map(|plan| Step::Peek { plan }),
        1 => (plan(), (0..QUOTAS, 0..QUOTAS), 0u8..3)
            .prop_map(|(plan, quotas, with)| Step::Reload { plan, quotas, with }),
        1 => (plan(), 1u64..40).prop_map(|(plan, keys)| Step::Flood { plan, keys }),
    ]
}

/// A million steps where tests are optimised; `PROPTEST_CASES` sets another number.
fn cases() -> u32 {
    let cases = std::env::var("PROPTEST_CASES").ok();
    let default = if cfg!(debug_assertions) { 300 } else { 12_000 };
    cases
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(default)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    /// Nothing is admitted that exact arithmetic would refuse, nothing is refused for longer, and
    /// nothing else is reported, through plan switches, quotas of a request's own, reloads, late
    /// settlements, floods and a clock that stands still.
    #[test]
    fn no_history_admits_more_or_refuses_longer_than_exact_arithmetic(
        quotas in [0..QUOTAS, 0..QUOTAS, 0..QUOTAS, 0..QUOTAS],
        shared in any::<bool>(),
        steps in proptest::collection::vec(step(), 20..180),
    ) {
        let mut judge = Judge::new(quotas, shared);
        for step in &steps {
            judge.step(step);
            if !judge.is_exact() {
                break;
            }
        }
        // What is left is given back, unjudged.
        judge.reservations.clear();
    }
}
