//! What a limiter on Redis does when Redis is slow, gone, empty, full or confused.
#![cfg(feature = "redis")]

use std::time::Duration;

use private_servers::Redis;
use rate_limit::{
    DAY, HOUR, Limiter, LimiterBuilder, Policy, Quota,
    answer::Reason,
    fleet::{FleetBackend, FleetLimiter, OnOutage},
};
use tokio::time::{Instant, sleep, timeout};

/// Longer than any of this may take.
const BOUNDED: Duration = Duration::from_secs(20);

/// The promise.
const RECOVERY: Duration = Duration::from_secs(5);

/// A deadline that a busy machine keeps while all is well, and not too long to wait for.
const DEADLINE: Duration = Duration::from_millis(200);

fn on(redis: &Redis, builder: LimiterBuilder) -> FleetLimiter {
    let backend = FleetBackend::new(redis.url(), "test").unwrap();
    builder.build_on(backend.deadline(DEADLINE)).unwrap()
}

fn yearly(count: u64) -> LimiterBuilder {
    Limiter::builder().quota(Quota::count(count).per(365 * DAY))
}

/// Asks until Redis is given up, and returns how many requests were admitted.
async fn until_degraded(limiter: &FleetLimiter, key: &'static str) -> u64 {
    let mut admitted = 0;
    timeout(BOUNDED, async {
        while !limiter.is_degraded() {
            admitted += u64::from(limiter.check(key).await.is_ok());
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it is given up");
    admitted
}

async fn until_recovered(limiter: &FleetLimiter) {
    timeout(RECOVERY, async {
        while limiter.is_degraded() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it recovers within five seconds");
}

/// How many of so many requests, one after another, are admitted.
async fn admitted(limiter: &FleetLimiter, key: &'static str, requests: u64) -> u64 {
    let mut admitted = 0;
    for _ in 0..requests {
        admitted += u64::from(limiter.check(key).await.is_ok());
    }
    admitted
}

#[tokio::test]
async fn flushed_scripts_are_loaded_again_without_anybody_noticing() {
    let redis = Redis::start().await.unwrap();
    let limiter = on(&redis, yearly(100));
    for left in (0..100).rev() {
        if left % 10 == 0 {
            redis.ask(&["SCRIPT", "FLUSH"]).await.unwrap();
        }
        assert_eq!(limiter.check("alice").await.unwrap().remaining(), left);
    }
    assert!(limiter.check("alice").await.is_err());
    assert!(!limiter.is_degraded());
}

#[tokio::test]
async fn a_paused_server_delays_nobody_beyond_the_deadline_and_is_found_again() {
    let redis = Redis::start().await.unwrap();
    let limiter = on(&redis, yearly(1_000));
    assert!(limiter.check("alice").await.is_ok());
    redis.ask(&["CLIENT", "PAUSE", "3000"]).await.unwrap();
    let start = Instant::now();
    assert!(
        limiter.check("alice").await.is_ok(),
        "nothing fails because Redis does"
    );
    let waited = start.elapsed();
    // Generous to a busy machine; `benches/fleet` measures it on a quiet one.
    assert!(waited < 2 * DEADLINE, "{waited:?}");
    until_degraded(&limiter, "alice").await;
    let calls = limiter.calls();
    assert_eq!(admitted(&limiter, "alice", 100).await, 100);
    assert_eq!(
        limiter.calls(),
        calls,
        "nothing is sent while it is left alone"
    );
    until_recovered(&limiter).await;
    assert!(
        start.elapsed() >= Duration::from_secs(2),
        "it was paused until now"
    );
    assert!(limiter.check("alice").await.is_ok());
    assert!(limiter.calls() > calls);
}

#[tokio::test]
async fn a_suspended_server_is_given_up_and_found_again_when_it_goes_on() {
    let redis = Redis::start().await.unwrap();
    let limiter = on(&redis, yearly(1_000));
    assert!(limiter.check("alice").await.is_ok());
    redis.suspend();
    until_degraded(&limiter, "alice").await;
    redis.resume();
    until_recovered(&limiter).await;
}

#[tokio::test]
async fn a_killed_server_that_comes_back_empty_is_told_what_was_owed() {
    let mut redis = Redis::start().await.unwrap();
    let limiter = on(&redis, yearly(100));
    let other = on(&redis, yearly(100));
    let mut all = admitted(&limiter, "alice", 30).await + admitted(&other, "alice", 30).await;
    assert_eq!(limiter.check("alice").await.unwrap().remaining(), 39);
    all += 1;
    redis.kill();
    all += until_degraded(&limiter, "alice").await;
    all += admitted(&limiter, "alice", 7).await;
    redis.restart().await.unwrap();
    until_recovered(&limiter).await;
    until_recovered(&other).await;
    let left = timeout(BOUNDED, async {
        loop {
            match limiter.peek("alice").await {
                Some(left) if left == 100 - all => break left,
                _ => tokio::task::yield_now().await,
            }
        }
    });
    let left = left
        .await
        .expect("what was admitted without it, and before it, is charged to it");
    assert_eq!(admitted(&other, "alice", 200).await, left);
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_no_error_and_is_found_when_it_comes() {
    let mut redis = Redis::start().await.unwrap();
    redis.kill();
    let limiter = on(&redis, yearly(10));
    until_degraded(&limiter, "alice").await;
    assert!(admitted(&limiter, "alice", 20).await <= 10);
    assert_eq!(limiter.peek("alice").await, None);
    redis.restart().await.unwrap();
    until_recovered(&limiter).await;
    timeout(BOUNDED, async {
        while limiter.peek("alice").await != Some(0) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("what was admitted without it is charged to it");
}

#[tokio::test]
async fn a_server_without_memory_still_refuses_and_counts_as_failed_for_the_rest() {
    let redis = Redis::start_with(&[("maxmemory-policy", "noeviction")])
        .await
        .unwrap();
    let limiter = on(&redis, yearly(5));
    assert_eq!(admitted(&limiter, "alice", 10).await, 5);
    redis
        .ask(&["CONFIG", "SET", "maxmemory", "1"])
        .await
        .unwrap();
    assert!(limiter.check("alice").await.is_err());
    assert!(
        limiter.check("bob").await.is_ok(),
        "an answer of OOM is an outage"
    );
    until_degraded(&limiter, "bob").await;
    redis
        .ask(&["CONFIG", "SET", "maxmemory", "0"])
        .await
        .unwrap();
    until_recovered(&limiter).await;
    assert!(
        admitted(&limiter, "bob", 10).await < 5,
        "what was admitted meanwhile counts"
    );
}

#[tokio::test]
async fn a_server_that_turns_into_a_replica_counts_as_failed() {
    let (redis, primary) = (Redis::start().await.unwrap(), Redis::start().await.unwrap());
    let limiter = on(&redis, yearly(100));
    assert!(limiter.check("alice").await.is_ok());
    let port = primary.port().to_string();
    redis.ask(&["REPLICAOF", "127.0.0.1", &port]).await.unwrap();
    until_degraded(&limiter, "alice").await;
    redis.ask(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
    until_recovered(&limiter).await;
}

#[tokio::test]
async fn a_lost_connection_is_made_again_at_once() {
    let redis = Redis::start().await.unwrap();
    let limiter = on(&redis, yearly(100));
    for left in (0..20).rev() {
        assert_eq!(limiter.check("alice").await.unwrap().remaining(), left + 80);
        redis.ask(&["CLIENT", "KILL", "TYPE", "normal"]).await.ok();
        // The client finds out by itself; a request before that would be an outage of one call.
        timeout(BOUNDED, async {
            while limiter.peek("alice").await != Some(left + 80) {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("it is connected again");
    }
    assert!(!limiter.is_degraded());
}

#[tokio::test]
async fn each_policy_does_as_it_is_told_while_redis_is_away() {
    let mut redis = Redis::start().await.unwrap();
    let quota = Quota::count(10).per(365 * DAY);
    let with = |on_outage| {
        let policy = Policy::new("default", quota).on_outage(on_outage);
        on(&redis, Limiter::builder().policy(policy))
    };
    let share = with(OnOutage::LocalShare { percent: 50 });
    let open = with(OnOutage::FailOpen);
    let closed = with(OnOutage::FailClosed);
    for limiter in [&share, &open, &closed] {
        assert!(limiter.check("bob").await.is_ok());
    }
    // They hear of each other once a second.
    timeout(BOUNDED, async {
        while share.nodes() < 3 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it hears of the others");
    redis.kill();
    for limiter in [&share, &open, &closed] {
        until_degraded(limiter, "carol").await;
    }
    assert_eq!(admitted(&open, "alice", 1_000).await, 1_000);
    let unavailable = closed.check("alice").await.unwrap_err();
    assert_eq!(unavailable.reason(), Reason::Unavailable);
    assert_eq!(unavailable.retry_after(), Some(Duration::from_secs(1)));
    // Three nodes were seen, and each has half of a third: one of ten, and what is left of it.
    assert_eq!(share.nodes(), 3);
    assert_eq!(admitted(&share, "alice", 1_000).await, 1);
    let limited = share.check("alice").await.unwrap_err();
    assert_eq!(
        (limited.reason(), limited.policy()),
        (Reason::Quota, Some("default"))
    );
}

#[tokio::test]
async fn shares_go_on_from_what_redis_last_said() {
    let mut redis = Redis::start().await.unwrap();
    let limiter = on(&redis, yearly(100));
    assert_eq!(admitted(&limiter, "alice", 90).await, 90);
    redis.kill();
    let more = until_degraded(&limiter, "alice").await + admitted(&limiter, "alice", 1_000).await;
    assert_eq!(more, 10, "not a fresh burst");
}

#[tokio::test]
async fn what_a_closed_policy_says_is_a_503_with_the_registered_type() {
    use axum::body::Body;
    use http::{Request, Response, StatusCode};
    use http_body_util::BodyExt;
    use rate_limit::{RateLimitLayer, key};
    use tower::{Layer, Service};

    let mut redis = Redis::start().await.unwrap();
    redis.kill();
    let policy = Policy::new("default", Quota::count(10).per(HOUR)).on_outage(OnOutage::FailClosed);
    let limiter = on(&redis, Limiter::builder().policy(policy));
    until_degraded(&limiter, "alice").await;
    let layer = RateLimitLayer::from_limiter(limiter).key(key::global());
    let mut service = layer.layer(tower::service_fn(async |_: Request<Body>| {
        Ok::<_, std::convert::Infallible>(Response::new(Body::empty()))
    }));
    let response = service.call(Request::new(Body::empty())).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "1");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(problem["status"], 503);
    let kind = problem["type"].as_str().unwrap();
    assert!(kind.ends_with("#temporary-reduced-capacity"), "{kind}");

    let mut grpc = Request::new(Body::empty());
    grpc.headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    let response = service.call(grpc).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "14");
}
