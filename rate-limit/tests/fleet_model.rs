//! A limiter on Redis, each decision asked of it, against exact arithmetic.
#![cfg(feature = "redis")]

#[path = "support/judge.rs"]
mod judge;
#[path = "support/reference.rs"]
mod reference;

use std::{
    convert::Infallible,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use judge::{Judge, KEY, PLANS, Plan, Step, Subject, plans, policies, send};
use private_servers::Redis;
use proptest::prelude::*;
use rate_limit::{
    DAY, LimitError, Limiter, Policy, Quota, RateLimitLayer,
    fleet::{FleetBackend, FleetLimiter, FleetReservation},
    key,
};
use tokio::runtime::Runtime;
use tower::{Layer, ServiceExt, service_fn};

/// So slow that less than a cell drains while a history is played, since Redis' clock cannot be
/// held: to exact arithmetic no time passes at all.
fn quota(index: usize) -> Quota {
    let quotas = [
        Quota::count(5).per(DAY),
        Quota::count(10).per(DAY).burst(3),
        Quota::count(24).per(DAY),
        Quota::count(100).per(DAY).burst(1_000),
        Quota::count(300).per(DAY),
        Quota::count(12).per(DAY).burst(400),
    ];
    quotas[index % quotas.len()]
}

const QUOTAS: usize = 6;

struct OnRedis(FleetLimiter);

impl OnRedis {
    fn new(redis: &Redis, plans: &[Plan; PLANS]) -> Self {
        static LIMITERS: AtomicU64 = AtomicU64::new(0);
        let name = format!("limiter-{}", LIMITERS.fetch_add(1, Ordering::Relaxed));
        let backend = FleetBackend::new(redis.url(), name).unwrap();
        let limiter = policies(&plans[0])
            .into_iter()
            .fold(Limiter::builder(), |builder, policy| builder.policy(policy))
            .plan("1", policies(&plans[1]))
            .plan("2", policies(&plans[2]))
            .build_on(backend.deadline(Duration::from_secs(10)))
            .unwrap();
        Self(limiter)
    }

    fn plan(&self, plan: usize) -> FleetLimiter {
        match plan {
            0 => self.0.clone(),
            _ => self.0.plan(&plan.to_string()).unwrap(),
        }
    }

    /// Waits until Redis has what was sent to it in the background.
    async fn sent(&self) {
        self.0.peek(KEY).await.expect("Redis replies");
    }
}

impl Subject for OnRedis {
    type Held = FleetReservation;

    fn advance(&self, _nanos: u64) -> u64 {
        0
    }

    async fn check(&self, plan: usize, cells: u64) -> Result<(), LimitError> {
        self.plan(plan).check_n(KEY, cells).await.map(drop)
    }

    async fn own(&self, plan: usize, quota: Quota) -> Result<(), LimitError> {
        send!(self.0.clone(), plan, quota)
    }

    async fn reserve(&self, plan: usize, cells: u64) -> Result<FleetReservation, LimitError> {
        self.plan(plan).reserve(KEY, cells).await
    }

    async fn settle(&self, held: FleetReservation, actual: u64) {
        held.settle(actual);
        self.sent().await;
    }

    async fn give_back(&self, held: FleetReservation) {
        drop(held);
        self.sent().await;
    }

    async fn refund(&self, plan: usize, cells: u64) {
        self.plan(plan).refund(KEY, cells);
        self.sent().await;
    }

    async fn penalize(&self, plan: usize, cells: u64) {
        self.plan(plan).penalize(KEY, cells);
        self.sent().await;
    }

    async fn peek(&self, plan: usize) -> u64 {
        self.plan(plan).peek(KEY).await.expect("Redis replies")
    }

    fn reload(&self, plan: usize, policies: Vec<Policy>) {
        self.plan(plan).set_policies(policies).unwrap();
    }

    fn flood(&self, _plan: usize, _keys: Range<u64>) {
        unreachable!("no step of one key");
    }
}

/// A hundred thousand steps; `PROPTEST_CASES` sets another number of histories.
fn cases() -> u32 {
    let cases = std::env::var("PROPTEST_CASES").ok();
    cases.and_then(|cases| cases.parse().ok()).unwrap_or(1_700)
}

fn histories() -> impl Strategy<Value = ([usize; 4], bool, Vec<Step>)> {
    let quotas = [0..QUOTAS, 0..QUOTAS, 0..QUOTAS, 0..QUOTAS];
    let steps = proptest::collection::vec(judge::step(QUOTAS, 2_000), 20..100);
    (quotas, any::<bool>(), steps)
}

/// The same as in one process: nothing is admitted that exact arithmetic would refuse, nothing is
/// refused for longer, and nothing else is reported, whichever plan or quota decides.
#[test]
fn no_history_on_redis_admits_more_or_refuses_longer_than_exact_arithmetic() {
    let runtime = Runtime::new().unwrap();
    let redis = runtime.block_on(Redis::start()).unwrap();
    let config = ProptestConfig {
        cases: cases(),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let outcome = runner.run(&histories(), |(quotas, shared, steps)| {
        let plans = plans(quotas.map(quota), shared);
        runtime.block_on(async {
            let subject = OnRedis::new(&redis, &plans);
            subject.sent().await;
            let mut judge = Judge::new(subject, plans, 1_000);
            for step in &steps {
                judge.step(step, quota).await;
                if !judge.is_exact() {
                    break;
                }
            }
        });
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}
