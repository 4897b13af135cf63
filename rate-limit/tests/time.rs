//! Quotas over time, with tokio's clock paused.

use std::{convert::Infallible, time::Duration};

use http::{Request, Response, StatusCode, header};
use rate_limit::{
    DAY, HOUR, Limiter, MINUTE, ManualClock, OnFull, Policy, Quota, RateLimitLayer, SECOND, key,
};
use tokio::time::advance;
use tower::{Layer, ServiceExt, service_fn};

/// Takes cells one by one until refused.
fn drain(limiter: &Limiter, key: &str) -> u64 {
    std::iter::repeat_with(|| limiter.check(key))
        .take_while(Result::is_ok)
        .count() as u64
}

#[tokio::test(start_paused = true)]
async fn fifty_a_second_admits_fifty_in_one_second_and_not_one_per_fifty_seconds() {
    let limiter = Limiter::new(Quota::count(50).per(SECOND)).unwrap();
    assert_eq!(drain(&limiter, "a"), 50);
    advance(SECOND).await;
    assert_eq!(drain(&limiter, "a"), 50);
}

#[tokio::test(start_paused = true)]
async fn cells_come_back_one_by_one() {
    let limiter = Limiter::new(Quota::count(60).per(MINUTE).burst(3)).unwrap();
    assert_eq!(drain(&limiter, "a"), 3);
    advance(Duration::from_millis(999)).await;
    assert_eq!(drain(&limiter, "a"), 0);
    advance(Duration::from_millis(1)).await;
    assert_eq!(drain(&limiter, "a"), 1);
    advance(DAY).await;
    assert_eq!(drain(&limiter, "a"), 3, "never more than a burst");
}

#[tokio::test(start_paused = true)]
async fn a_refused_caller_is_told_the_exact_wait_and_the_header_rounds_it_up() {
    let layer = RateLimitLayer::new(Quota::count(2).per(SECOND).burst(1))
        .unwrap()
        .key(key::global());
    let call = async || {
        let ok =
            service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(String::new())));
        layer.layer(ok).oneshot(Request::new(())).await.unwrap()
    };
    assert_eq!(call().await.status(), StatusCode::OK);
    advance(Duration::from_millis(100)).await;
    let limited = layer.limiter().check(()).unwrap_err();
    assert_eq!(limited.retry_after(), Some(Duration::from_millis(400)));
    let refused = call().await;
    assert_eq!(refused.headers()[header::RETRY_AFTER], "1", "never 0");
    advance(Duration::from_millis(400)).await;
    assert_eq!(call().await.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn being_refused_costs_nothing() {
    let limiter = Limiter::new(Quota::count(1).per(SECOND)).unwrap();
    assert_eq!(drain(&limiter, "a"), 1);
    for _ in 0..1_000 {
        assert!(limiter.check("a").is_err());
    }
    advance(SECOND).await;
    assert!(limiter.check("a").is_ok());
}

#[tokio::test(start_paused = true)]
async fn several_quotas_are_charged_all_or_none() {
    let limiter = Limiter::builder()
        .policy(Policy::new("burst", Quota::count(2).per(SECOND)))
        .policy(Policy::new("daily", Quota::count(3).per(DAY)))
        .build()
        .unwrap();
    assert_eq!(drain(&limiter, "a"), 2);
    advance(SECOND).await;
    assert_eq!(drain(&limiter, "a"), 1, "the day has one left");
    let limited = limiter.check("a").unwrap_err();
    assert_eq!(limited.policy(), Some("daily"));
    // Refused by the day, nothing was taken from the burst.
    advance(SECOND).await;
    for _ in 0..10 {
        assert!(limiter.check("a").is_err());
    }
    limiter.refund("a", 2);
    assert_eq!(limiter.peek("a"), 2);
    assert_eq!(drain(&limiter, "a"), 2);
}

#[tokio::test(start_paused = true)]
async fn several_cells_are_charged_all_or_none() {
    let limiter = Limiter::new(Quota::count(10).per(SECOND)).unwrap();
    assert_eq!(limiter.check_n("a", 7).unwrap().remaining(), 3);
    let limited = limiter.check_n("a", 4).unwrap_err();
    assert_eq!(limited.retry_after(), Some(Duration::from_millis(100)));
    assert_eq!(limiter.check_n("a", 3).unwrap().remaining(), 0);
    let hopeless = limiter.check_n("a", 11).unwrap_err();
    assert_eq!(hopeless.retry_after(), None);
}

#[tokio::test(start_paused = true)]
async fn peeking_charges_nothing_and_refunds_stop_at_a_full_burst() {
    let limiter = Limiter::new(Quota::count(5).per(HOUR)).unwrap();
    assert_eq!(limiter.peek("a"), 5);
    assert_eq!(
        limiter.resident_keys(),
        0,
        "peeking at a stranger remembers no key"
    );
    limiter.check_n("a", 4).unwrap();
    assert_eq!(limiter.peek("a"), 1);
    limiter.refund("a", 100);
    assert_eq!(limiter.peek("a"), 5);
}

#[tokio::test(start_paused = true)]
async fn a_penalty_puts_a_key_into_debt() {
    let limiter = Limiter::new(Quota::count(1).per(SECOND).burst(4)).unwrap();
    limiter.penalize("a", 6);
    let limited = limiter.check("a").unwrap_err();
    assert_eq!(limited.retry_after(), Some(3 * SECOND));
    advance(3 * SECOND).await;
    assert!(limiter.check("a").is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_keys_neither_grows_the_table_nor_frees_the_exhausted() {
    let limiter = Limiter::builder()
        .quota(Quota::count(100).per(HOUR))
        .max_keys(1_000)
        .build()
        .unwrap();
    assert_eq!(drain(&limiter, "victim"), 100);
    for stranger in 0..100_000u64 {
        limiter.check(stranger).unwrap();
    }
    assert!(limiter.check("victim").is_err(), "flooded out of its debt");
    assert!(limiter.resident_keys() <= limiter.key_capacity());
    assert!(limiter.live_evictions() > 90_000);
}

#[tokio::test(start_paused = true)]
async fn keys_that_share_one_entry_share_its_quota() {
    let limiter = Limiter::builder()
        .quota(Quota::count(10).per(HOUR))
        .max_keys(1)
        .on_full(OnFull::ShareOne)
        .build()
        .unwrap();
    for resident in 0..limiter.key_capacity() {
        limiter.check(resident).unwrap();
    }
    let strangers = (1_000..1_100).filter(|stranger| limiter.check(stranger).is_ok());
    assert_eq!(strangers.count(), 10);
}

#[test]
fn a_clock_that_stops_jumps_or_runs_backward_never_gives_more_than_the_quota() {
    let clock = ManualClock::new();
    let quota = Quota::count(10).per(SECOND);
    let limiter = Limiter::builder()
        .quota(quota)
        .clock(clock.clone())
        .build()
        .unwrap();
    let hour = Duration::from_secs(3_600);
    clock.set(hour);
    assert_eq!(drain(&limiter, "a"), 10);
    assert_eq!(drain(&limiter, "a"), 0, "stopped");
    clock.set(hour / 2);
    assert_eq!(drain(&limiter, "a"), 0, "half an hour backward");
    clock.set(hour);
    assert_eq!(drain(&limiter, "a"), 0, "and forward again");
    clock.set(hour + Duration::from_millis(500));
    assert_eq!(drain(&limiter, "a"), 5);
    clock.set(Duration::MAX);
    assert_eq!(drain(&limiter, "a"), 10, "jumped to the end of time");
}

#[test]
fn threads_on_one_key_never_get_more_than_burst_plus_rate_times_time() {
    for policies in [1, 3] {
        let clock = ManualClock::new();
        let mut builder = Limiter::builder().clock(clock.clone());
        for n in 0..policies {
            let quota = Quota::count(1_000_000).per(SECOND).burst(1_000);
            builder = builder.policy(Policy::new(n.to_string(), quota));
        }
        let limiter = builder.build().unwrap();
        let taken: u64 = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut taken = 0;
                        for _ in 0..20_000 {
                            taken += u64::from(limiter.check("hot").is_ok());
                            clock.advance(Duration::from_nanos(100));
                        }
                        taken
                    })
                })
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap())
                .sum()
        });
        let bound = 1_000 + clock.elapsed().as_nanos() as u64 / 1_000;
        assert!(taken <= bound, "{taken} over {bound}");
        assert!(
            taken + 10 >= bound.min(80_000) * 999 / 1_000,
            "{taken} of {bound}"
        );
    }
}

#[test]
fn a_key_never_seen_has_its_whole_burst_at_any_time() {
    // Found by fuzzing: finer quotas than a nanosecond keep times that wrap around, and just before
    // they do a key without an account looked indebted.
    let clock = ManualClock::new();
    let period = Duration::from_nanos(2_564_967_768_940_090_883);
    let quota = Quota::count(1_099_513_974_219).per(period).burst(1_254_179);
    let limiter = Limiter::builder()
        .clock(clock.clone())
        .quota(quota)
        .build()
        .unwrap();
    clock.set(Duration::MAX);
    assert_eq!(limiter.peek("key"), 1_254_179);
    assert!(limiter.check("key").is_ok());
    assert_eq!(limiter.peek("key"), 1_254_178);

    let cells = 3_182_967_604_875_373_612;
    let quota = Quota::count(cells)
        .per(Duration::from_nanos(cells))
        .burst(cells);
    let limiter = Limiter::builder()
        .clock(clock.clone())
        .quota(quota)
        .build()
        .unwrap();
    assert!(limiter.check_n("key", 65_535).is_ok());
}
