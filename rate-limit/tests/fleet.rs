//! One quota for several nodes, on a real server.
#![cfg(feature = "redis")]

#[path = "support/node.rs"]
mod node;

use std::sync::Arc;

use axum::{Router, body::Body, routing::get};
use futures_util::StreamExt;
use http::{Request, StatusCode};
use private_servers::Redis;
use rate_limit::{
    BuildError, DAY, HOUR, Limiter, LimiterBuilder, MINUTE, Policy, Quota, RateLimitLayer,
    answer::{Draft, QuotaHeaders, Reason},
    fleet::{FleetBackend, FleetLimiter, Lease},
    key,
};
use tower::{Layer, Service, ServiceExt};

use node::{PATIENT, backend, on};

fn hourly(count: u64) -> LimiterBuilder {
    Limiter::builder().quota(Quota::count(count).per(HOUR))
}

/// How many of so many requests, all at once, are admitted.
async fn admitted(limiter: &FleetLimiter, key: &'static str, requests: usize) -> usize {
    let checks: Vec<_> = (0..requests)
        .map(|_| {
            let limiter = limiter.clone();
            tokio::spawn(async move { limiter.check(key).await.is_ok() })
        })
        .collect();
    let mut admitted = 0;
    for check in checks {
        admitted += usize::from(check.await.unwrap());
    }
    admitted
}

#[tokio::test]
async fn nodes_share_one_quota() {
    let redis = Redis::start().await.unwrap();
    let (a, b) = (on(&redis, hourly(10)), on(&redis, hourly(10)));
    for turn in 0..5 {
        assert_eq!(a.check("alice").await.unwrap().remaining(), 9 - 2 * turn);
        assert_eq!(b.check("alice").await.unwrap().remaining(), 8 - 2 * turn);
    }
    for node in [&a, &b] {
        let limited = node.check("alice").await.unwrap_err();
        assert_eq!(limited.reason(), Reason::Quota);
        assert_eq!(limited.policy(), Some("default"));
        let wait = limited.retry_after().unwrap();
        assert!(wait <= HOUR / 10 && wait > HOUR / 10 - MINUTE, "{wait:?}");
        assert!(node.check("bob").await.is_ok());
    }
    assert_eq!(a.peek("alice").await, Some(0));
    assert_eq!(b.peek("bob").await, Some(8));
}

#[tokio::test]
async fn limiters_of_other_names_share_nothing() {
    let redis = Redis::start().await.unwrap();
    let other = FleetBackend::new(redis.url(), "other")
        .unwrap()
        .deadline(PATIENT);
    let other = hourly(1).build_on(other).unwrap();
    assert!(on(&redis, hourly(1)).check("alice").await.is_ok());
    assert!(other.check("alice").await.is_ok());
}

#[tokio::test]
async fn requests_that_wait_for_one_key_share_a_call_and_refusals_are_remembered() {
    let redis = Redis::start().await.unwrap();
    let limiter = on(&redis, hourly(100));
    assert!(limiter.check("bob").await.is_ok());
    let before = limiter.calls();
    assert_eq!(admitted(&limiter, "alice", 500).await, 100);
    let calls = limiter.calls() - before;
    assert!(calls <= 4, "{calls} calls for 500 requests at once");
    let before = limiter.calls();
    assert_eq!(admitted(&limiter, "alice", 500).await, 0);
    assert_eq!(limiter.calls(), before);
    assert!(
        limiter.check("bob").await.is_ok(),
        "another key is asked for"
    );
}

#[tokio::test]
async fn what_one_policy_refuses_no_other_is_charged_for() {
    let redis = Redis::start().await.unwrap();
    let limiter = on(
        &redis,
        Limiter::builder()
            .policy(Policy::new("daily", Quota::count(100).per(DAY)))
            .policy(Policy::new("hourly", Quota::count(3).per(HOUR))),
    );
    assert_eq!(admitted(&limiter, "alice", 50).await, 3);
    limiter.refund("alice", 3);
    let generous = Policy::new("hourly", Quota::count(1_000).per(HOUR));
    let daily = Policy::new("daily", Quota::count(100).per(DAY));
    limiter.set_policies([daily, generous]).unwrap();
    assert_eq!(limiter.peek("alice").await, Some(100));
}

#[tokio::test]
async fn a_policy_in_shadow_mode_limits_nothing_and_is_charged_what_it_allows() {
    let redis = Redis::start().await.unwrap();
    let policies = |shadow| {
        [
            Policy::new("tried", Quota::count(3).per(DAY)).shadow(shadow),
            Policy::new("real", Quota::count(10).per(DAY)),
        ]
    };
    let [tried, real] = policies(true);
    let limiter = on(&redis, Limiter::builder().policy(tried).policy(real));
    assert_eq!(admitted(&limiter, "alice", 50).await, 10);
    limiter.set_policies(policies(false)).unwrap();
    assert_eq!(
        limiter.check("alice").await.unwrap_err().policy(),
        Some("tried")
    );
    limiter.refund("alice", 3);
    assert_eq!(limiter.peek("alice").await, Some(3));
}

#[tokio::test]
async fn a_reservation_settles_and_one_that_is_dropped_is_given_back() {
    let redis = Redis::start().await.unwrap();
    let limiter = on(&redis, hourly(100));
    limiter.reserve("alice", 40).await.unwrap().settle(15);
    assert_eq!(limiter.peek("alice").await, Some(85));
    limiter.reserve("alice", 10).await.unwrap().settle(30);
    assert_eq!(limiter.peek("alice").await, Some(55));
    drop(limiter.reserve("alice", 50).await.unwrap());
    assert_eq!(limiter.peek("alice").await, Some(55));
    limiter.reserve("alice", 5).await.unwrap().keep();
    assert_eq!(limiter.peek("alice").await, Some(50));
    limiter.penalize("alice", 70);
    assert_eq!(limiter.peek("alice").await, Some(0));
    let never = limiter.check_n("alice", 101).await.unwrap_err();
    assert_eq!(never.retry_after(), None);
}

#[tokio::test]
async fn nodes_with_an_old_quota_and_a_new_one_count_what_a_key_used_by_both() {
    let redis = Redis::start().await.unwrap();
    let (old, new) = (on(&redis, hourly(10)), on(&redis, hourly(10)));
    assert_eq!(admitted(&old, "alice", 9).await, 9);
    let small = || [Policy::new("default", Quota::count(4).per(HOUR))];
    new.set_policies(small()).unwrap();
    let limited = new.check("alice").await.unwrap_err();
    let wait = limited.retry_after().unwrap();
    assert!(
        wait <= HOUR / 4 && wait > HOUR / 4 - MINUTE,
        "one of four, not six of ten: {wait:?}"
    );
    new.refund("alice", 1);
    assert_eq!(new.peek("alice").await, Some(1));
    // A node that does not know of the new quota yet goes on by the old one.
    assert_eq!(old.peek("alice").await, Some(2));
    assert_eq!(admitted(&old, "alice", 20).await, 2);
    assert_eq!(new.peek("alice").await, Some(0));
    new.refund("alice", 7);
    assert_eq!(new.peek("alice").await, Some(4));
    assert_eq!(old.peek("alice").await, Some(7), "ten less seven");
    let unknown = [Policy::new("unknown", Quota::count(4).per(HOUR))];
    let error = new.set_policies(unknown).unwrap_err();
    assert_eq!(error, BuildError::UnknownName("unknown".into()));
}

#[tokio::test]
async fn ten_thousand_policies_are_kept_apart() {
    let redis = Redis::start().await.unwrap();
    let name = |plan: usize| format!("plan-{plan}");
    let mut builder = hourly(1);
    for plan in 0..10_000 {
        let quota = Quota::count(2 + plan as u64 % 7).per(HOUR);
        builder = builder.plan(name(plan), [Policy::new("default", quota)]);
    }
    let limiter = on(&redis, builder);
    // A server takes its time for ten thousand accounts: some hundreds at once.
    let check = async |plan: usize| {
        let limiter = limiter.plan(&name(plan)).unwrap();
        let allowed = 2 + plan % 7;
        for left in (0..allowed).rev() {
            let decision = limiter.check(("user", plan)).await.unwrap();
            assert_eq!(decision.remaining(), left as u64);
        }
        assert!(limiter.check(("user", plan)).await.is_err());
    };
    futures_util::stream::iter(0..10_000)
        .for_each_concurrent(200, check)
        .await;
    assert!(!limiter.is_degraded());
}

#[tokio::test]
async fn more_keys_than_a_node_remembers_are_still_exact() {
    let redis = Redis::start().await.unwrap();
    let limiter = on(&redis, hourly(2).max_keys(1));
    for round in 0..3 {
        for key in 0..2_000 {
            assert_eq!(limiter.check(key).await.is_ok(), round < 2, "key {key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_spent_without_asking_and_given_back() {
    let redis = Redis::start().await.unwrap();
    let quota = || Limiter::builder().quota(Quota::count(100_000).per(HOUR));
    let leasing = quota()
        .build_on(backend(&redis).lease(Lease::adaptive()))
        .unwrap();
    let exact = on(&redis, quota());
    let requests = 20_000;
    for _ in 0..requests {
        assert!(leasing.check("alice").await.is_ok());
    }
    let calls = leasing.calls();
    assert!(
        calls < requests / 10,
        "{calls} calls for {requests} requests"
    );
    leasing.shutdown().await;
    let left = exact.peek("alice").await.unwrap();
    // The hour's quota refills by 28 cells a second.
    assert!(
        (80_000..=81_000).contains(&left),
        "{left} of 80000 left after the lease came back"
    );
}

#[tokio::test]
async fn strict_windows_hold_back_what_may_be_leased_and_show_it() {
    let redis = Redis::start().await.unwrap();
    let quota = || Limiter::builder().quota(Quota::count(100).per(365 * DAY));
    let backend = |lease| backend(&redis).nodes(4).lease(lease).strict_windows(true);
    let half = quota().build_on(backend(Lease::adaptive())).unwrap();
    assert_eq!(half.check("alice").await.unwrap().remaining(), 49);
    let little = quota().build_on(backend(Lease::at_most(5))).unwrap();
    assert_eq!(little.check("bob").await.unwrap().remaining(), 79);
    let exact = quota().build_on(backend(Lease::none())).unwrap();
    assert_eq!(exact.check("carol").await.unwrap().remaining(), 99);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_lease_is_given_back_by_itself_and_one_that_is_dropped_too() {
    let redis = Redis::start().await.unwrap();
    let quota = || Limiter::builder().quota(Quota::count(10_000).per(365 * DAY));
    let exact = on(&redis, quota());
    let mut spent = 0;
    for how in ["idle", "dropped"] {
        let leasing = quota()
            .build_on(backend(&redis).lease(Lease::adaptive()))
            .unwrap();
        for _ in 0..2_000 {
            assert!(leasing.check("alice").await.is_ok());
        }
        spent += 2_000;
        let kept = (how == "idle").then_some(leasing);
        tokio::time::timeout(PATIENT, async {
            while exact.peek("alice").await != Some(10_000 - spent) {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("not given back when {how}"));
        drop(kept);
    }
}

#[test]
fn a_node_that_never_returns_its_lease_takes_nothing_else_along() {
    let server = tokio::runtime::Runtime::new().unwrap();
    let redis = server.block_on(Redis::start()).unwrap();
    let quota = || Limiter::builder().quota(Quota::count(1_000).per(365 * DAY));
    let doomed = tokio::runtime::Runtime::new().unwrap();
    let spent = doomed.block_on(async {
        let leasing = quota()
            .build_on(backend(&redis).lease(Lease::adaptive()))
            .unwrap();
        let mut spent = 0;
        while leasing.calls() < 20 && spent < 400 {
            assert!(leasing.check("alice").await.is_ok());
            spent += 1;
        }
        // Its tasks die with their runtime, before it says anything.
        std::mem::forget(leasing);
        spent
    });
    doomed.shutdown_background();
    server.block_on(async {
        let other = on(&redis, quota());
        let left = other.peek("alice").await.unwrap();
        assert!(left <= 1_000 - spent, "nothing is admitted twice");
        assert!(
            left >= 1_000 - spent - 500,
            "half a burst at most is lost, not {left}"
        );
        assert_eq!(admitted(&other, "alice", 2_000).await as u64, left);
    });
}

#[tokio::test]
async fn what_cannot_be_counted_is_refused_when_the_limiter_is_built() {
    let redis = Redis::start().await.unwrap();
    let quota = Quota::count(1).per(30 * DAY).burst(1_779);
    assert!(Limiter::builder().quota(quota).build().is_ok());
    let error = Limiter::builder()
        .quota(quota)
        .build_on(backend(&redis))
        .unwrap_err();
    let BuildError::Quota { error, .. } = error else {
        panic!("{error}");
    };
    assert!(
        error.to_string().contains("burst of at most 1737"),
        "{error}"
    );
}

#[test]
fn a_limiter_that_is_built_outside_of_a_runtime_is_refused() {
    let backend = FleetBackend::new("redis://127.0.0.1:1", "test").unwrap();
    assert_eq!(
        hourly(1).build_on(backend).unwrap_err(),
        BuildError::NoRuntime
    );
}

fn request(key: &str) -> Request<Body> {
    Request::builder()
        .uri("/")
        .header("x-api-key", key)
        .body(Body::empty())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_layer_is_the_same_and_forty_connections_of_four_nodes_get_one_quota() {
    let redis = Redis::start().await.unwrap();
    let mut addresses = Vec::new();
    for _ in 0..4 {
        let layer = RateLimitLayer::from_limiter(on(&redis, hourly(5)))
            .key(key::global())
            .bypass(|request| request.uri.path() == "/livez");
        let app = Router::new()
            .route("/", get(async || "ok"))
            .route("/livez", get(async || "ok"))
            .layer(layer);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, app).into_future());
    }
    let ask = |turn: usize, path: &'static str| {
        let address = addresses[turn % addresses.len()];
        async move {
            let executor = hyper_util::rt::TokioExecutor::new();
            let client = hyper_util::client::legacy::Client::builder(executor).build_http::<Body>();
            let uri = format!("http://{address}{path}").parse().unwrap();
            client.get(uri).await.unwrap()
        }
    };
    let asks = (0..40).map(|turn| tokio::spawn(ask(turn, "/")));
    let mut statuses = Vec::new();
    for response in asks.collect::<Vec<_>>() {
        let response = response.await.unwrap();
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            let wait = response.headers()["retry-after"].to_str().unwrap();
            // One is free each 720 s; a node's idea of the time of Redis may lag, so that it says one more.
            assert!((1..=721).contains(&wait.parse::<u32>().unwrap()), "{wait}");
        }
        statuses.push(response.status());
    }
    let ok = statuses
        .iter()
        .filter(|status| **status == StatusCode::OK)
        .count();
    assert_eq!(ok, 5, "{statuses:?}");
    assert_eq!(ask(0, "/livez").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn costs_settlement_plans_own_quotas_and_headers_go_through_the_layer() {
    let redis = Redis::start().await.unwrap();
    let limiter = on(
        &redis,
        Limiter::builder()
            .policy(
                Policy::new("tokens", Quota::count(100).per(DAY))
                    .cost(|_| 40)
                    .settle(|response| response.extensions().get::<u64>().copied()),
            )
            .plan("free", [Policy::new("free", Quota::count(1).per(DAY))]),
    );
    let layer = RateLimitLayer::from_limiter(limiter.clone())
        .key(key::header("x-api-key"))
        .plan(|request| request.headers().get("x-plan")?.to_str().ok())
        .quota_from(|request| {
            let large = request.headers().contains_key("x-large");
            large.then_some(Quota::count(1_000).per(DAY))
        })
        .headers(QuotaHeaders::draft(Draft::V10));
    let inner = tower::service_fn(async |_: Request<Body>| {
        let mut response = http::Response::new(Body::empty());
        response.extensions_mut().insert(10u64);
        Ok::<_, std::convert::Infallible>(response)
    });
    let mut service = layer.layer(inner);
    for left in [60, 50, 40, 30, 20, 10, 0] {
        let response = service
            .ready()
            .await
            .unwrap()
            .call(request("alice"))
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let field = response.headers()["ratelimit"].to_str().unwrap();
        assert!(
            field.starts_with(&format!("\"tokens\";r={left};")),
            "{field}"
        );
        // The settlement is on its way before this is asked.
        assert_eq!(limiter.peek(b"alice".as_slice()).await, Some(left + 30));
    }
    let response = service
        .ready()
        .await
        .unwrap()
        .call(request("alice"))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);

    let mut free = request("bob");
    free.headers_mut().insert("x-plan", "free".parse().unwrap());
    let mut again = request("bob");
    again
        .headers_mut()
        .insert("x-plan", "free".parse().unwrap());
    assert_eq!(service.call(free).await.unwrap().status(), StatusCode::OK);
    assert_eq!(
        service.call(again).await.unwrap().status(),
        StatusCode::TOO_MANY_REQUESTS
    );

    let mut large = request("carol");
    large.headers_mut().insert("x-large", "1".parse().unwrap());
    let response = service.call(large).await.unwrap();
    let field = response.headers()["ratelimit"].to_str().unwrap();
    assert!(field.starts_with("\"tokens\";r=960;"), "{field}");
}

#[tokio::test]
async fn a_service_is_called_when_the_answer_is_there_and_its_errors_pass() {
    let redis = Redis::start().await.unwrap();
    let layer = RateLimitLayer::from_limiter(on(&redis, hourly(1))).key(key::global());
    let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let inner = tower::service_fn(move |_: Request<Body>| {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async { Err::<http::Response<Body>, _>("broken") }
    });
    let mut service = layer.layer(inner);
    assert_eq!(
        service
            .ready()
            .await
            .unwrap()
            .call(request("a"))
            .await
            .unwrap_err(),
        "broken"
    );
    let refused = service
        .ready()
        .await
        .unwrap()
        .call(request("a"))
        .await
        .unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(calls.load(std::sync::atomic::Ordering::Relaxed), 1);
}
