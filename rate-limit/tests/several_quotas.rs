//! One key under several quotas of one name: plans, quotas of a request's own, reloads.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use rate_limit::{
    DAY, HOUR, Limiter, MINUTE, ManualClock, OnFull, Policy, Quota, RateLimitLayer, SECOND, key,
};
use tower::{Layer, ServiceExt, service_fn};

const ALICE: &[u8] = b"alice";

fn api(quota: Quota) -> [Policy; 1] {
    [Policy::new("api", quota)]
}

/// A limiter with the plan "pro" beside its own policies, ten days after its start.
fn two_plans(own: Quota, pro: Quota) -> (Limiter, Limiter, ManualClock) {
    let clock = ManualClock::new();
    clock.set(10 * DAY);
    let [policy] = api(own);
    let limiter = Limiter::builder()
        .policy(policy)
        .plan("pro", api(pro))
        .clock(clock.clone())
        .build()
        .unwrap();
    let pro = limiter.plan("pro").unwrap();
    (limiter, pro, clock)
}

/// A request of alice's, and what it gets.
async fn get(layer: &RateLimitLayer, path: &str) -> (u16, Option<String>) {
    let inner = service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let request = Request::get(path).header("x-api-key", "alice");
    let response = layer.layer(inner).oneshot(request.body(()).unwrap()).await;
    let response = response.unwrap();
    let wait = response.headers().get("retry-after");
    let wait = wait.map(|wait| wait.to_str().unwrap().to_owned());
    (response.status().as_u16(), wait)
}

#[test]
fn a_caller_that_alternates_between_plans_gets_no_more_than_the_larger_one() {
    for (small, large) in [(1 << 20, 10 << 20), (1_000_000, 10_000_000)] {
        let (basic, pro, _clock) = two_plans(
            Quota::count(small).per(SECOND),
            Quota::count(large).per(SECOND),
        );
        let (mut by_basic, mut by_pro) = (0, 0);
        for turn in 0..2_000 {
            let (limiter, cells) = if turn % 2 == 0 {
                (&basic, small / 2)
            } else {
                (&pro, large / 2)
            };
            let admitted = limiter.check_n(ALICE, cells).is_ok();
            let bytes = if admitted { cells } else { 0 };
            *if turn % 2 == 0 {
                &mut by_basic
            } else {
                &mut by_pro
            } += bytes;
        }
        assert!(
            by_basic + by_pro <= large,
            "{by_basic} and {by_pro} of {large}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn uploads_by_a_quota_of_their_own_are_limited_by_it() {
    let limiter = Limiter::builder()
        .policy(Policy::new("upload", Quota::count(1 << 20).per(SECOND)).cost(|_| 1 << 19))
        .build()
        .unwrap();
    let layer = RateLimitLayer::from_limiter(limiter)
        .key(key::header("x-api-key"))
        .quota_from(|request| {
            let bulk = request.uri().path() == "/bulk";
            bulk.then_some(Quota::count(10 << 20).per(SECOND))
        });
    let (mut bulk, mut other) = (0, 0);
    for _ in 0..200 {
        bulk += u32::from(get(&layer, "/bulk").await.0 == 200);
        other += u32::from(get(&layer, "/").await.0 == 200);
    }
    assert_eq!(
        (bulk, other),
        (19, 1),
        "20 halves of a MiB in all, one of them elsewhere"
    );
}

#[test]
fn a_quota_with_finer_ticks_does_not_make_a_debt_of_the_uptime() {
    let (basic, pro, _clock) = two_plans(
        Quota::count(1_000_000).per(MINUTE),
        Quota::count(7_000_000).per(MINUTE),
    );
    assert!(pro.check_n(ALICE, 7).is_ok());
    assert_eq!(basic.check(ALICE).unwrap().remaining(), 1_000_000 - 8);
    assert!(basic.check_n("bob", 1_000_000).is_ok());
    assert_eq!(pro.peek("bob"), 6_000_000);
}

#[tokio::test(start_paused = true)]
async fn a_request_with_a_quota_of_its_own_does_not_lock_the_next_one_out() {
    let limiter = Limiter::new(Quota::count(100).per(MINUTE)).unwrap();
    tokio::time::advance(DAY).await;
    let layer = RateLimitLayer::from_limiter(limiter)
        .key(key::header("x-api-key"))
        .quota_from(|request| {
            let bulk = request.uri().path() == "/bulk";
            bulk.then_some(Quota::count(300_000).per(SECOND))
        });
    assert_eq!(get(&layer, "/bulk").await, (200, None));
    assert_eq!(get(&layer, "/").await, (200, None));
}

#[test]
fn a_smaller_plan_refuses_for_a_cell_of_its_own_and_the_larger_debt_is_there_on_the_way_back() {
    let (basic, pro, clock) = two_plans(
        Quota::count(60).per(MINUTE),
        Quota::count(6_000).per(MINUTE),
    );
    pro.check_n(ALICE, 3_000).unwrap();
    let limited = basic.check(ALICE).unwrap_err();
    assert_eq!(limited.retry_after(), Some(SECOND), "not 49 minutes");
    assert_eq!(pro.peek(ALICE), 3_000, "nothing is forgiven");
    clock.advance(SECOND);
    assert_eq!(basic.check(ALICE).unwrap().remaining(), 0);
    assert_eq!(pro.peek(ALICE), 3_000 + 100 - 1);
    clock.advance(MINUTE);
    assert_eq!(basic.peek(ALICE), 60);

    basic.check_n("bob", 60).unwrap();
    assert_eq!(pro.peek("bob"), 5_940);
}

#[test]
fn waiting_on_a_fast_plan_does_not_pay_the_debt_of_a_slow_one() {
    let (daily, fast, clock) = two_plans(
        Quota::count(1_000).per(DAY),
        Quota::count(1_000).per(MINUTE),
    );
    daily.check_n(ALICE, 1_000).unwrap();
    assert!(fast.check(ALICE).is_err());
    clock.advance(MINUTE);
    assert_eq!(fast.peek(ALICE), 1_000);
    assert!(daily.check(ALICE).is_err());
    assert_eq!(daily.peek(ALICE), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_under_way_during_a_reload_settles_as_if_there_had_been_none() {
    #[derive(Clone)]
    struct Used(u64);
    let tokens = |quota| {
        Policy::new("tokens", quota)
            .cost(|_| 100)
            .settle(|response| Some(response.extensions().get::<Used>()?.0))
    };
    let limiter = Limiter::builder()
        .policy(tokens(Quota::count(1_000).per(DAY)))
        .build()
        .unwrap();
    let layer = RateLimitLayer::from_limiter(limiter.clone()).key(key::header("x-api-key"));
    let reloaded = limiter.clone();
    let inner = service_fn(move |_: Request<()>| {
        let reloaded = reloaded.clone();
        async move {
            let relaxed = tokens(Quota::count(1_000).per(MINUTE));
            reloaded.set_policies([relaxed]).unwrap();
            assert_eq!(reloaded.peek(ALICE), 900);
            let mut response = Response::new(Full::<Bytes>::default());
            response.extensions_mut().insert(Used(600));
            Ok::<_, Infallible>(response)
        }
    });
    let request = Request::get("/").header("x-api-key", "alice");
    layer
        .layer(inner)
        .oneshot(request.body(()).unwrap())
        .await
        .unwrap();
    assert_eq!(limiter.peek(ALICE), 400);
    assert_eq!(get(&layer, "/").await.0, 200);
}

#[test]
fn a_reservation_gives_back_as_much_after_a_quota_was_tightened() {
    let clock = ManualClock::new();
    let limiter = Limiter::builder()
        .quota(Quota::count(1_000).per(MINUTE))
        .clock(clock)
        .build()
        .unwrap();
    let reservation = limiter.reserve(ALICE, 900).unwrap();
    let tightened = Policy::new("default", Quota::count(1_000).per(DAY));
    limiter.set_policies([tightened]).unwrap();
    assert_eq!(limiter.peek(ALICE), 100);
    reservation.settle(100);
    assert_eq!(limiter.peek(ALICE), 900);
}

#[test]
fn a_reload_of_one_plan_leaves_the_debts_of_the_others_alone() {
    let (free, pro, _clock) = two_plans(
        Quota::count(60).per(MINUTE),
        Quota::count(6_000).per(MINUTE),
    );
    pro.check_n(ALICE, 3_000).unwrap();
    for quota in [
        Quota::count(30).per(MINUTE),
        Quota::count(60).per(HOUR),
        Quota::count(60).per(SECOND),
    ] {
        free.set_policies(api(quota)).unwrap();
        assert_eq!(pro.peek(ALICE), 3_000);
    }

    let (free, pro, _clock) = two_plans(Quota::count(60).per(HOUR), Quota::count(6_000).per(HOUR));
    pro.check_n(ALICE, 6_000).unwrap();
    free.set_policies(api(Quota::count(60).per(MINUTE)))
        .unwrap();
    assert_eq!(pro.peek(ALICE), 0);
}

#[test]
fn a_policy_that_is_taken_out_and_put_back_with_another_quota_keeps_its_debts_in_cells() {
    let daily = || Policy::new("daily", Quota::count(1_000).per(DAY));
    let other = || Policy::new("other", Quota::count(5).per(HOUR));
    let limiter = Limiter::builder()
        .policy(daily())
        .policy(other())
        .clock(ManualClock::new())
        .build()
        .unwrap();
    limiter.set_policies([daily()]).unwrap();
    limiter.check_n(ALICE, 1_000).unwrap();
    limiter.set_policies([other()]).unwrap();
    assert!(limiter.check(ALICE).is_ok());
    let fast = Policy::new("daily", Quota::count(1_000).per(SECOND));
    limiter.set_policies([fast]).unwrap();
    let limited = limiter.check(ALICE).unwrap_err();
    assert_eq!(limited.retry_after(), Some(SECOND / 1_000));
    limiter.set_policies([daily()]).unwrap();
    assert_eq!(limiter.peek(ALICE), 0, "and nothing is forgiven");
}

#[tokio::test(start_paused = true)]
async fn an_override_that_is_raised_takes_effect_on_an_exhausted_key() {
    let week = 7 * DAY;
    for by_reload in [false, true] {
        let limiter = Limiter::new(Quota::count(10).per(week)).unwrap();
        let raised = Quota::count(1_000).per(week);
        let layer = RateLimitLayer::from_limiter(limiter.clone())
            .key(key::header("x-api-key"))
            .quota_from(move |request| (request.uri().path() == "/raised").then_some(raised));
        for _ in 0..10 {
            assert_eq!(get(&layer, "/").await.0, 200);
        }
        assert_eq!(get(&layer, "/").await.0, 429);
        if by_reload {
            limiter
                .set_policies([Policy::new("default", raised)])
                .unwrap();
            assert_eq!(get(&layer, "/").await.0, 200);
            assert_eq!(limiter.peek(ALICE), 989);
        } else {
            assert_eq!(get(&layer, "/raised").await.0, 200);
            assert_eq!(get(&layer, "/").await.0, 429);
        }
    }
}

/// Logins and searches are different policies of different plans, as in the documentation of
/// `RateLimitLayer::plan`.
fn logins_and_searches(on_full: OnFull, search: Quota) -> Limiter {
    Limiter::builder()
        .policy(Policy::new("login", Quota::count(5).per(HOUR)))
        .plan("search", [Policy::new("search", search)])
        .max_keys(1_000)
        .on_full(on_full)
        .clock(ManualClock::new())
        .build()
        .unwrap()
}

#[test]
fn a_flood_under_one_plan_frees_no_key_that_is_exhausted_under_another() {
    let quotas = [
        Quota::count(30).per(HOUR),
        // One request exhausts these, for longer than the logins are.
        Quota::count(1).per(DAY),
        Quota::count(1_000_000).per(SECOND),
    ];
    for search in quotas {
        for on_full in [OnFull::EvictLeastIndebted, OnFull::RefuseNew] {
            let limiter = logins_and_searches(on_full, search);
            let logins: Vec<_> = (0..200).map(|n| ("login", n)).collect();
            for key in &logins {
                assert!(limiter.check_n(key, 5).is_ok());
            }
            let flood = limiter.plan("search").unwrap();
            for key in 0..50_000 {
                let _ = flood.check(key);
            }
            let free = logins.iter().filter(|key| limiter.check(key).is_ok());
            assert_eq!(free.count(), 0, "{search} with {on_full:?}");
            if on_full == OnFull::RefuseNew {
                assert_eq!(limiter.live_evictions(), 0);
            } else {
                assert!(limiter.live_evictions() > 40_000, "every loss counts");
            }
        }
    }
}

#[test]
fn keys_that_share_an_entry_are_settled_refunded_and_shown_like_others() {
    let limiter = Limiter::builder()
        .quota(Quota::count(100).per(HOUR))
        .max_keys(1)
        .on_full(OnFull::ShareOne)
        .clock(ManualClock::new())
        .build()
        .unwrap();
    for key in 0..8 {
        limiter.check(("resident", key)).unwrap();
    }
    assert_eq!(limiter.check_n("a", 1).unwrap().remaining(), 99);
    limiter.reserve("b", 10).unwrap().settle(60);
    assert_eq!(limiter.peek("c"), 39, "one of a's and sixty of b's");
    drop(limiter.reserve("b", 30).unwrap());
    assert_eq!(limiter.peek("c"), 39);
    limiter.refund("a", 1);
    assert_eq!(limiter.peek("a"), 40);
    limiter.penalize("d", 40);
    assert!(limiter.check("a").is_err());
    assert_eq!(limiter.peek(("resident", 0)), 99);
}

#[test]
fn a_cost_that_is_charged_afterwards_is_owed_although_the_key_was_forgotten() {
    let limiter = Limiter::builder()
        .quota(Quota::count(100).per(HOUR))
        .clock(ManualClock::new())
        .build()
        .unwrap();
    let reservation = limiter.reserve("alice", 0).unwrap();
    reservation.settle(70);
    assert_eq!(limiter.peek("alice"), 30);
    let wait = Duration::from_secs(36);
    assert_eq!(
        limiter.check_n("alice", 31).unwrap_err().retry_after(),
        Some(wait)
    );
}
