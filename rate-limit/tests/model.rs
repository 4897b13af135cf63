//! The limiter against exact arithmetic, through everything that can happen to a key.

#[path = "support/judge.rs"]
mod judge;
#[path = "support/reference.rs"]
mod reference;

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::Full;
use judge::{Judge, KEY, PLANS, Step, Subject, plans, policies, send};
use proptest::prelude::*;
use rate_limit::{
    DAY, HOUR, LimitError, Limiter, MINUTE, ManualClock, OnFull, Policy, Quota, RateLimitLayer,
    Reservation, SECOND, key,
};
use tower::{Layer, ServiceExt, service_fn};

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
struct Local {
    clock: ManualClock,
    limiter: Limiter,
}

impl Local {
    fn new(plans: &[judge::Plan; PLANS]) -> Self {
        let clock = ManualClock::new();
        clock.set(10 * DAY);
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
        Self { clock, limiter }
    }

    fn plan(&self, plan: usize) -> Limiter {
        match plan {
            0 => self.limiter.clone(),
            _ => self.limiter.plan(&plan.to_string()).unwrap(),
        }
    }
}

impl Subject for Local {
    type Held = Reservation;

    fn advance(&self, nanos: u64) -> u64 {
        self.clock.advance(Duration::from_nanos(nanos));
        self.clock.elapsed().as_nanos() as u64
    }

    async fn check(&self, plan: usize, cells: u64) -> Result<(), LimitError> {
        self.plan(plan).check_n(KEY, cells).map(drop)
    }

    async fn own(&self, plan: usize, quota: Quota) -> Result<(), LimitError> {
        send!(self.limiter.clone(), plan, quota)
    }

    async fn reserve(&self, plan: usize, cells: u64) -> Result<Reservation, LimitError> {
        self.plan(plan).reserve(KEY, cells)
    }

    async fn settle(&self, held: Reservation, actual: u64) {
        held.settle(actual);
    }

    async fn give_back(&self, held: Reservation) {
        drop(held);
    }

    async fn refund(&self, plan: usize, cells: u64) {
        self.plan(plan).refund(KEY, cells);
    }

    async fn penalize(&self, plan: usize, cells: u64) {
        self.plan(plan).penalize(KEY, cells);
    }

    async fn peek(&self, plan: usize) -> u64 {
        self.plan(plan).peek(KEY)
    }

    fn reload(&self, plan: usize, policies: Vec<Policy>) {
        self.plan(plan).set_policies(policies).unwrap();
    }

    fn flood(&self, plan: usize, keys: std::ops::Range<u64>) {
        let limiter = self.plan(plan);
        for key in keys {
            let _ = limiter.check(key);
        }
    }
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
    prop_oneof![
        5 => nanos().prop_map(Step::Advance),
        21 => judge::step(QUOTAS, 12_000_000),
        1 => (0..PLANS, 1u64..40).prop_map(|(plan, keys)| Step::Flood { plan, keys }),
    ]
}

/// A million steps; `PROPTEST_CASES` sets another number of histories.
fn cases() -> u32 {
    let cases = std::env::var("PROPTEST_CASES").ok();
    cases.and_then(|cases| cases.parse().ok()).unwrap_or(12_000)
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
        let plans = plans(quotas.map(quota), shared);
        let mut judge = Judge::new(Local::new(&plans), plans, 1);
        for step in &steps {
            judge.step(step, quota).now_or_never().unwrap();
            if !judge.is_exact() {
                break;
            }
        }
        // What is left is given back, unjudged.
        drop(judge);
    }
}
