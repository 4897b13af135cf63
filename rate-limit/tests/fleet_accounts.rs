//! What a fleet knows of a key: plans, refusals that others have lifted, values that cannot be read.
#![cfg(feature = "redis")]

#[path = "support/node.rs"]
mod node;

use std::time::Duration;

use allocation_counter::measure;
use http::{Request, Response};
use private_servers::Redis;
use rate_limit::{
    BuildError, Caller, DAY, HOUR, Limiter, LimiterBuilder, MINUTE, Mode, Policy, Quota,
    RateLimitLayer, SECOND, Warning,
    answer::{QuotaHeaders, Reset},
    fleet::{FleetBackend, FleetLimiter, Lease},
    key,
};
use tokio::time::{sleep, timeout};
use tower::{Layer, ServiceExt, service_fn};

use node::{PATIENT, backend, on};

fn daily(count: u64) -> LimiterBuilder {
    Limiter::builder().quota(Quota::count(count).per(DAY))
}

/// How long it takes until `key` is admitted; the test fails if it is more than two seconds.
async fn until_admitted(limiter: &FleetLimiter, key: &'static str) {
    let ask = async {
        while limiter.check(key).await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(2), ask)
        .await
        .expect("admitted within a second or so");
}

#[tokio::test]
async fn cells_that_are_given_back_on_one_node_are_there_on_all_within_a_second() {
    let redis = Redis::start().await.unwrap();
    let (a, b) = (on(&redis, daily(3)), on(&redis, daily(3)));
    for _ in 0..3 {
        a.check("customer").await.unwrap();
    }
    let limited = a.check("customer").await.unwrap_err();
    assert!(limited.retry_after().unwrap() > 7 * HOUR);
    b.refund("customer", 3);
    until_admitted(&a, "customer").await;
}

#[tokio::test]
async fn a_key_that_is_deleted_in_redis_is_admitted_within_a_second() {
    let redis = Redis::start().await.unwrap();
    let limiter = on(&redis, daily(1));
    limiter.check("customer").await.unwrap();
    assert!(limiter.check("customer").await.is_err());
    redis.ask(&["FLUSHALL"]).await.unwrap();
    until_admitted(&limiter, "customer").await;
}

#[tokio::test]
async fn a_failure_on_another_node_that_is_free_is_no_refusal_for_a_day() {
    let redis = Redis::start().await.unwrap();
    let free = || {
        let quota = Quota::count(1).per(DAY);
        let policy = Policy::new("p", quota).settle(|r| r.is_failure().then_some(0));
        Limiter::builder().policy(policy)
    };
    let (a, b) = (on(&redis, free()), on(&redis, free()));
    let refused = a.clone();
    let layer = RateLimitLayer::from_limiter(b).key(key::from_fn(|_| Some("customer")));
    let inner = service_fn(move |_: Request<()>| {
        let refused = refused.clone();
        async move {
            assert!(refused.check("customer").await.is_err());
            Ok::<_, std::convert::Infallible>(Response::builder().status(500).body(()).unwrap())
        }
    });
    layer.layer(inner).oneshot(Request::new(())).await.unwrap();
    until_admitted(&a, "customer").await;
}

#[tokio::test]
async fn a_refund_by_another_plan_of_the_same_node_is_noticed_at_once() {
    let redis = Redis::start().await.unwrap();
    let pro = [Policy::new("default", Quota::count(3).per(DAY))];
    let limiter = on(&redis, daily(3).plan("pro", pro));
    limiter.check_n("customer", 3).await.unwrap();
    assert!(limiter.check("customer").await.is_err());
    limiter.plan("pro").unwrap().refund("customer", 3);
    limiter.check("customer").await.unwrap();
}

#[tokio::test]
async fn a_refused_key_costs_about_a_call_a_second() {
    let redis = Redis::start().await.unwrap();
    let limiter = on(&redis, daily(1));
    limiter.check("customer").await.unwrap();
    let before = limiter.calls();
    let ask = async {
        loop {
            assert!(limiter.check("customer").await.is_err());
            tokio::task::yield_now().await;
        }
    };
    assert!(timeout(2 * SECOND, ask).await.is_err());
    let calls = limiter.calls() - before;
    assert!((2..=5).contains(&calls), "{calls} calls in two seconds");
}

#[tokio::test]
async fn plans_and_own_quotas_decide_as_they_do_in_one_process() {
    let redis = Redis::start().await.unwrap();
    let api = |quota| [Policy::new("api", quota)];
    let [policy] = api(Quota::count(60).per(MINUTE));
    let basic = on(
        &redis,
        Limiter::builder()
            .policy(policy)
            .plan("pro", api(Quota::count(6_000).per(MINUTE))),
    );
    let pro = basic.plan("pro").unwrap();
    pro.check_n("alice", 3_000).await.unwrap();
    let wait = basic
        .check("alice")
        .await
        .unwrap_err()
        .retry_after()
        .unwrap();
    assert!(wait <= SECOND, "{wait:?}, not 49 minutes");
    let left = pro.peek("alice").await.unwrap();
    assert!(
        (3_000..3_100).contains(&left),
        "{left}: nothing is forgiven"
    );
    basic.check_n("bob", 60).await.unwrap();
    let left = pro.peek("bob").await.unwrap();
    assert!((5_940..6_000).contains(&left), "{left}");

    let week = 7 * DAY;
    let other = FleetBackend::new(redis.url(), "weekly")
        .unwrap()
        .deadline(PATIENT);
    let weekly = Limiter::builder()
        .quota(Quota::count(10).per(week))
        .build_on(other)
        .unwrap();
    let raised = Quota::count(1_000).per(week);
    let layer = RateLimitLayer::from_limiter(weekly.clone())
        .key(key::from_fn(|_| Some("alice")))
        .quota_from(move |request| (request.uri().path() == "/raised").then_some(raised))
        .headers(QuotaHeaders::legacy_only(Reset::Delta));
    for _ in 0..10 {
        weekly.check("alice").await.unwrap();
    }
    let get = async |path: &str| {
        let inner =
            service_fn(async |_: Request<()>| Ok::<_, std::convert::Infallible>(Response::new(())));
        let request = Request::get(path).body(()).unwrap();
        layer.layer(inner).oneshot(request).await.unwrap()
    };
    assert_eq!(get("/").await.status(), 429);
    let response = get("/raised").await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-ratelimit-remaining"], "989");
    assert_eq!(response.headers()["x-ratelimit-limit"], "1000");
    assert_eq!(get("/").await.status(), 429);
    weekly
        .set_policies([Policy::new("default", raised)])
        .unwrap();
    assert_eq!(weekly.check("alice").await.unwrap().remaining(), 988);
}

#[tokio::test]
async fn an_own_quota_that_redis_cannot_keep_is_in_no_header() {
    let redis = Redis::start().await.unwrap();
    let limiter = on(
        &redis,
        Limiter::builder().quota(Quota::count(100).per(HOUR)),
    );
    let layer = RateLimitLayer::from_limiter(limiter)
        .key(key::global())
        .quota_from(|_| Some(Quota::count(1).per(30 * DAY).burst(1_779)))
        .headers(QuotaHeaders::legacy_only(Reset::Delta));
    let inner =
        service_fn(async |_: Request<()>| Ok::<_, std::convert::Infallible>(Response::new(())));
    let response = layer.layer(inner).oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.headers()["x-ratelimit-limit"], "100");
    assert_eq!(response.headers()["x-ratelimit-remaining"], "99");
}

#[tokio::test]
async fn a_reservation_settles_by_what_it_was_charged_by_after_a_reload() {
    let redis = Redis::start().await.unwrap();
    let limiter = on(
        &redis,
        Limiter::builder().quota(Quota::count(1_000).per(DAY)),
    );
    let reservation = limiter.reserve("alice", 900).await.unwrap();
    let relaxed = Policy::new("default", Quota::count(1_000).per(365 * DAY));
    limiter.set_policies([relaxed]).unwrap();
    assert_eq!(limiter.peek("alice").await, Some(100));
    reservation.settle(100);
    assert_eq!(limiter.peek("alice").await, Some(900));
}

#[tokio::test]
async fn a_value_that_cannot_be_read_is_replaced_and_no_other_key_notices() {
    let redis = Redis::start().await.unwrap();
    let limiter = on(&redis, daily(5));
    limiter.check("broken").await.unwrap();
    let keys = redis.ask(&["KEYS", "test:{*"]).await.unwrap();
    let name = keys
        .lines()
        .find(|line| line.starts_with("test:{"))
        .unwrap()
        .to_owned();
    for breaks in [
        vec!["SET", &name, "nonsense"],
        vec!["SET", &name, "2:17:1:x:1:1:1"],
        vec!["SET", &name, ""],
        vec!["DEL", &name],
    ] {
        redis.ask(&breaks).await.unwrap();
        if breaks[0] == "DEL" {
            redis.ask(&["LPUSH", &name, "a list"]).await.unwrap();
        }
        // It owes nothing from here on, and pays what it uses.
        assert_eq!(
            limiter.check("broken").await.unwrap().remaining(),
            4,
            "{breaks:?}"
        );
        assert_eq!(limiter.check("broken").await.unwrap().remaining(), 3);
        assert!(limiter.check("good").await.is_ok() || breaks[0] == "DEL");
        assert!(!limiter.is_degraded());
        limiter.refund("good", 1);
    }
    assert_eq!(limiter.admitted_without_redis(), 0);
}

#[tokio::test]
async fn debts_that_are_carried_to_a_far_slower_quota_stay_within_its_burst() {
    let redis = Redis::start().await.unwrap();
    let slow = [Policy::new("default", Quota::count(1).per(30 * DAY))];
    let fast = Limiter::builder().quota(Quota::count(10_000_000).per(SECOND).burst(100_000_000));
    let limiter = on(&redis, fast.plan("slow", slow));
    limiter.check_n("alice", 90_000_000).await.unwrap();
    let slow = limiter.plan("slow").unwrap();
    let wait = slow
        .check("alice")
        .await
        .unwrap_err()
        .retry_after()
        .unwrap();
    assert!(wait <= 30 * DAY, "{wait:?}");
    assert!(!limiter.is_degraded());
}

#[tokio::test]
async fn a_name_is_one_limiter() {
    let redis = Redis::start().await.unwrap();
    let api = on(
        &redis,
        Limiter::builder().quota(Quota::count(1_000).per(MINUTE)),
    );
    let login = || Limiter::builder().quota(Quota::count(5).per(MINUTE));
    let error = login().build_on(backend(&redis)).unwrap_err();
    assert_eq!(error, BuildError::NameInUse("test".into()));
    assert!(
        error
            .to_string()
            .contains("expected a name for each limiter")
    );
    // The same policies are another node, and a name that is free again can be used.
    drop(on(
        &redis,
        Limiter::builder().quota(Quota::count(1_000).per(MINUTE)),
    ));
    drop(api);
    let freed = async {
        while login().build_on(backend(&redis)).is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENT, freed).await.unwrap();
}

#[tokio::test]
async fn a_redis_that_evicts_accounts_is_warned_of() {
    let redis = Redis::start_with(&[("maxmemory-policy", "allkeys-lru")])
        .await
        .unwrap();
    let limiter = on(&redis, daily(1));
    limiter.check("alice").await.unwrap();
    assert_eq!(limiter.warnings(), [Warning::EvictingRedis]);
    let redis = Redis::start_with(&[("maxmemory-policy", "volatile-ttl")])
        .await
        .unwrap();
    let limiter = on(&redis, daily(1));
    limiter.check("alice").await.unwrap();
    assert_eq!(limiter.warnings(), []);
}

#[test]
fn a_runtime_that_has_ended_is_noticed() {
    let server = tokio::runtime::Runtime::new().unwrap();
    let redis = server.block_on(Redis::start()).unwrap();
    let first = tokio::runtime::Runtime::new().unwrap();
    let limiter = first.block_on(async {
        let limiter = on(&redis, daily(2));
        limiter.check("alice").await.unwrap();
        limiter
    });
    drop(first);
    server.block_on(async {
        let _ = limiter.check("bob").await;
        assert!(limiter.is_degraded());
        assert_eq!(limiter.warnings(), [Warning::RuntimeEnded]);
    });
}

#[tokio::test]
async fn the_commands_that_the_documentation_lists_are_all_that_is_needed() {
    let redis = Redis::start().await.unwrap();
    let commands = include_str!("../src/fleet/mod.rs")
        .lines()
        .find(|line| line.starts_with("//! +eval "))
        .unwrap();
    let mut user = vec!["ACL", "SETUSER", "limits", "on", ">secret", "~test:*"];
    user.extend(commands.trim_start_matches("//! ").split(' '));
    redis.ask(&user).await.unwrap();
    let url = format!("redis://limits:secret@127.0.0.1:{}", redis.port());
    let backend = FleetBackend::new(url, "test").unwrap().deadline(PATIENT);
    let limiter = daily(2).build_on(backend).unwrap();
    for left in [1, 0] {
        assert_eq!(limiter.check("alice").await.unwrap().remaining(), left);
    }
    limiter.refund("alice", 1);
    assert_eq!(limiter.peek("alice").await, Some(1));
    assert_eq!(limiter.nodes(), 1);
    assert!(!limiter.is_degraded());
    assert_eq!(limiter.admitted_without_redis(), 0);
}

#[tokio::test]
async fn limits_are_switched_off_and_to_shadow_and_callers_are_told_as_in_one_process() {
    let redis = Redis::start().await.unwrap();
    let limiter = on(&redis, daily(1));
    limiter.check("alice").await.unwrap();
    assert!(limiter.check("alice").await.is_err());
    limiter.set_mode(Mode::Shadow);
    assert!(limiter.check("alice").await.is_ok());
    limiter.set_mode(Mode::Off);
    drop(limiter.reserve("bob", 1).await.unwrap());
    assert_eq!(limiter.peek("bob").await, Some(1));
    limiter.set_mode(Mode::Enforce);
    assert!(limiter.check("alice").await.is_err());

    let layer = RateLimitLayer::from_limiter(limiter.clone())
        .key(key::from_fn(|_| Some("carol")))
        .tell_caller(true);
    let inner = service_fn(async |request: Request<()>| {
        let caller = request.extensions().get::<Caller<FleetLimiter>>().unwrap();
        assert_eq!(caller.remaining(), 0);
        caller.refund(1);
        Ok::<_, std::convert::Infallible>(Response::new(()))
    });
    layer.layer(inner).oneshot(Request::new(())).await.unwrap();
    assert_eq!(limiter.peek("carol").await, Some(1));
    // A shed request is given back here, too.
    let shed = service_fn(async |_: Request<()>| {
        let response = Response::builder().status(503).header("retry-after", "1");
        Ok::<_, std::convert::Infallible>(response.body(()).unwrap())
    });
    layer.layer(shed).oneshot(Request::new(())).await.unwrap();
    assert_eq!(limiter.peek("carol").await, Some(1));
}

#[tokio::test]
async fn policies_of_other_names_are_added_while_it_runs() {
    let redis = Redis::start().await.unwrap();
    let limiter = on(&redis, daily(100).spare_policies(1));
    limiter.check_n("alice", 3).await.unwrap();
    let policy = |name: &str, count| Policy::new(name, Quota::count(count).per(DAY));
    limiter
        .set_policies([policy("default", 100), policy("search", 5)])
        .unwrap();
    assert_eq!(limiter.check_n("alice", 4).await.unwrap().remaining(), 1);
    let refused = limiter.check_n("alice", 2).await.unwrap_err();
    assert_eq!(refused.policy(), Some("search"));
    let error = limiter.set_policies([policy("other", 5)]).unwrap_err();
    assert_eq!(error, BuildError::UnknownName("other".into()));
}

#[tokio::test]
async fn a_shed_request_gets_back_what_the_policies_of_its_own_plan_charged() {
    let redis = Redis::start().await.unwrap();
    let search = Policy::new("search", Quota::count(10).per(DAY));
    let limiter = on(&redis, daily(100).plan("search", [search]));
    let layer = RateLimitLayer::from_limiter(limiter.clone())
        .key(key::from_fn(|_| Some("carol")))
        .plan(|_| Some("search"));
    let shed = service_fn(async |_: Request<()>| {
        let response = Response::builder().status(503).header("retry-after", "1");
        Ok::<_, std::convert::Infallible>(response.body(()).unwrap())
    });
    layer.layer(shed).oneshot(Request::new(())).await.unwrap();
    let search = limiter.plan("search").unwrap();
    assert_eq!(search.peek("carol").await, Some(10));
    assert_eq!(limiter.peek("carol").await, Some(100));
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_that_have_one_policy_divide_what_may_be_leased() {
    let redis = Redis::start().await.unwrap();
    let api = || Policy::new("api", Quota::count(10_000).per(365 * DAY));
    let builder = Limiter::builder()
        .policy(api())
        .plan("b", [api()])
        .plan("c", [api()]);
    let limiter = builder
        .build_on(backend(&redis).lease(Lease::adaptive()))
        .unwrap();
    let plans = [
        limiter.clone(),
        limiter.plan("b").unwrap(),
        limiter.plan("c").unwrap(),
    ];
    let mut most = 0;
    // Half of the burst, less a little: the other half may be leased to other plans meanwhile, and a request
    // is refused for what they hold.
    for _ in 0..16 {
        for plan in &plans {
            for _ in 0..100 {
                assert!(plan.check("alice").await.is_ok());
            }
        }
        most = most.max(limiter.leased());
    }
    assert!(most <= 5_000, "{most} leased of a burst of 10000");
    limiter.shutdown().await;
    assert_eq!(limiter.peek("alice").await, Some(5_200));
}

#[test]
fn a_key_takes_at_most_six_hundred_bytes_on_a_node() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let redis = runtime.block_on(Redis::start()).unwrap();
    for keys in [7_000u32, 14_000] {
        let limiter = runtime.block_on(async {
            let name = format!("t{keys}");
            let backend = FleetBackend::new(redis.url(), name)
                .unwrap()
                .deadline(PATIENT);
            Limiter::builder()
                .quota(Quota::count(100).per(DAY))
                .max_keys(60_000)
                .build_on(backend)
                .unwrap()
        });
        runtime.block_on(async {
            for key in 0..50u32 {
                limiter.check(("warm", key)).await.unwrap();
            }
        });
        let held = measure(|| {
            runtime.block_on(async {
                for key in 0..keys {
                    limiter.check(key).await.unwrap();
                }
            });
        });
        let each = held.bytes_current / i64::from(keys);
        assert!(each <= 600, "{each} bytes for each of {keys} keys");
    }
}
