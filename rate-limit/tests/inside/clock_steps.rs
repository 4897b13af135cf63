//! What a step of the server's clock does to quotas: a real server, and the shipped script with
//! an offset that is added to the time it reads. (libfaketime, which would step the clock of the
//! whole process, does not survive the allocator that Redis is built with.)

use std::time::Duration;

use private_servers::Redis;
use tokio::time::sleep;

use super::{FleetBackend, FleetLimiter, script};
use crate::{HOUR, Limiter, Quota, SECOND};

const PATIENT: Duration = Duration::from_secs(5);

fn limiter(redis: &Redis, quota: Quota) -> FleetLimiter {
    let clock = "local time = redis.call('TIME')";
    assert_eq!(script::ACCOUNT.matches(clock).count(), 1);
    let stepped = format!("{clock} time[1] = time[1] + (redis.call('GET', 'step') or 0)");
    let backend = FleetBackend::new(redis.url(), "test").unwrap();
    let backend = backend
        .deadline(PATIENT)
        .script(&script::ACCOUNT.replace(clock, &stepped));
    Limiter::builder().quota(quota).build_on(backend).unwrap()
}

async fn step(redis: &Redis, seconds: &str) {
    redis.ask(&["SET", "step", seconds]).await.unwrap();
}

// The server forgets accounts by its own clock, which is not stepped here, so all debts last
// longer than the tests look at them.

#[tokio::test]
async fn a_clock_that_is_set_back_gives_nothing_away_and_does_not_stand_still_for_long() {
    let redis = Redis::start().await.unwrap();
    let limiter = limiter(&redis, Quota::count(20).per(SECOND).burst(100));
    for seconds in ["-0.5", "-100", "-3600"] {
        assert!(limiter.check_n(seconds, 100).await.is_ok());
        step(&redis, seconds).await;
        let left = limiter.peek(seconds).await.unwrap();
        assert!(left < 10, "{left} cells came back by a step of {seconds} s");
        // Less than a second is waited for; a longer step is not.
        let wait = if seconds == "-0.5" { 800 } else { 300 };
        sleep(Duration::from_millis(wait)).await;
        let later = limiter.peek(seconds).await.unwrap();
        assert!(
            (5..90).contains(&later),
            "{later} cells came back after {seconds} s"
        );
        step(&redis, "0").await;
    }
}

#[tokio::test]
async fn refusals_after_a_long_step_back_do_not_last_as_long_as_the_step() {
    let redis = Redis::start().await.unwrap();
    let quota = Quota::count(20).per(SECOND).burst(100);
    let first = limiter(&redis, quota);
    assert!(first.check_n("alice", 100).await.is_ok());
    step(&redis, "-3600").await;
    // A node that knows nothing asks at once, is refused, and asks again after the wait.
    let second = limiter(&redis, quota);
    let mut refusals = 0;
    while let Err(limited) = second.check("alice").await {
        refusals += 1;
        assert!(refusals < 5, "still refused");
        sleep(limited.retry_after().unwrap()).await;
    }
    assert!(refusals > 0);
}

#[tokio::test]
async fn a_clock_that_is_set_forward_gives_one_burst_and_takes_nothing_when_it_comes_back() {
    let redis = Redis::start().await.unwrap();
    let limiter = limiter(&redis, Quota::count(10).per(HOUR));
    for _ in 0..10 {
        assert!(limiter.check("alice").await.is_ok());
    }
    step(&redis, "7200").await;
    assert_eq!(
        limiter.peek("alice").await,
        Some(10),
        "no more than a burst"
    );
    limiter.penalize("alice", 10);
    assert_eq!(limiter.peek("alice").await, Some(0));
    step(&redis, "0").await;
    assert_eq!(limiter.peek("alice").await, Some(0));
}
