//! The throttle as a value, in virtual time.

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;
use tower_capacity::throttle::{AdaptiveThrottle, ThrottleConfig, ThrottledReason};

const SECOND: Duration = Duration::from_secs(1);

fn throttle(config: ThrottleConfig) -> AdaptiveThrottle {
    AdaptiveThrottle::new(config).unwrap()
}

fn as_in_the_book() -> ThrottleConfig {
    ThrottleConfig::new()
        .window(120 * SECOND)
        .padding(1.0)
        .max_probability(1.0)
}

#[test]
fn the_probability_is_that_of_the_book() {
    let (mut throttle, now) = (throttle(as_in_the_book()), Instant::now());
    assert_eq!(throttle.probability(now), 0.0);
    for request in 0..100 {
        throttle.record(now, request % 4 == 0);
    }
    // (100 − 2 · 25) / (100 + 1)
    assert!((throttle.probability(now) - 50.0 / 101.0).abs() < 1e-12);
    assert_eq!((throttle.requests(now), throttle.accepts(now)), (100, 25));
}

#[test]
fn a_backend_that_accepts_half_is_sent_everything() {
    let (mut throttle, now) = (throttle(ThrottleConfig::new()), Instant::now());
    for request in 0..1000 {
        throttle.record(now, request % 2 == 0);
        assert!(throttle.admit(now, 0.05).is_ok());
    }
}

#[test]
fn refusals_count_as_requests() {
    let (mut throttle, now) = (throttle(as_in_the_book()), Instant::now());
    for _ in 0..9 {
        throttle.record(now, false);
    }
    let throttled = throttle.admit(now, 0.0).unwrap_err();
    assert_eq!(throttled.reason(), ThrottledReason::Adaptive);
    assert_eq!(
        throttled.to_string(),
        "the backend accepted 0 of 9 requests"
    );
    assert_eq!(throttle.requests(now), 10);
    assert!(throttle.consider(now, 0.0).is_err());
    assert_eq!(throttle.requests(now), 10, "to consider counts nothing");
}

#[test]
fn the_window_forgets() {
    let (mut throttle, start) = (throttle(ThrottleConfig::new()), Instant::now());
    for _ in 0..100 {
        throttle.record(start, false);
    }
    assert!(throttle.probability(start + 29 * SECOND) > 0.8);
    assert_eq!(throttle.probability(start + 30 * SECOND), 0.0);
}

#[test]
fn a_pause_refuses_everything_until_it_is_over_and_counts_nothing() {
    let (mut throttle, start) = (throttle(ThrottleConfig::new()), Instant::now());
    throttle.pause(start, 5 * SECOND);
    throttle.pause(start, 2 * SECOND);
    let throttled = throttle.admit(start + 2 * SECOND, 0.99).unwrap_err();
    assert_eq!(throttled.reason(), ThrottledReason::Paused);
    assert_eq!(throttled.retry_after(), 3 * SECOND);
    assert_eq!(throttle.requests(start + 2 * SECOND), 0);
    assert!(throttle.admit(start + 5 * SECOND, 0.0).is_ok());
}

#[test]
fn a_pause_is_capped_and_may_be_switched_off() {
    let start = Instant::now();
    let mut capped = throttle(ThrottleConfig::new().max_pause(10 * SECOND));
    capped.pause(start, Duration::MAX);
    assert_eq!(capped.paused_for(start), Some(10 * SECOND));
    let mut off = throttle(ThrottleConfig::new().max_pause(Duration::ZERO));
    off.pause(start, 10 * SECOND);
    assert_eq!(off.paused_for(start), None);
    let mut endless = throttle(ThrottleConfig::new().max_pause(Duration::MAX));
    endless.pause(start, Duration::MAX);
    assert_eq!(endless.paused_for(start), None, "it would never end");
}

/// A uniform sequence: the same in each run.
fn uniform() -> impl FnMut() -> f64 {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    }
}

const PER_SECOND: u32 = 100;

/// One hundred requests a second to a backend that accepts everything but for three minutes, in
/// which it accepts `accepts_per_second`. Answers the requests sent per second in the last minute
/// of these, and the seconds after them until fewer than a twentieth is refused.
fn ride(config: ThrottleConfig, accepts_per_second: u32) -> (f64, f64) {
    const GOOD: u32 = 150 * PER_SECOND;
    const BAD: u32 = 180 * PER_SECOND;
    let mut throttle = throttle(config);
    let mut random = uniform();
    let start = Instant::now();
    let (mut sent, mut left) = (0, 0);
    for request in 0.. {
        let now = start + request * (SECOND / PER_SECOND);
        if request % PER_SECOND == 0 {
            left = accepts_per_second;
        }
        let bad = (GOOD..GOOD + BAD).contains(&request);
        if request >= GOOD + BAD && throttle.probability(now) < 0.05 {
            let recovery = f64::from(request - GOOD - BAD) / f64::from(PER_SECOND);
            return (f64::from(sent) / 60.0, recovery);
        }
        if throttle.admit(now, random()).is_ok() {
            sent += u32::from(bad && request >= GOOD + BAD - 60 * PER_SECOND);
            throttle.record(now, !bad || left > 0);
            left = left.saturating_sub(1);
        }
    }
    unreachable!("the loop has no end")
}

#[test]
fn an_overloaded_backend_sees_twice_what_it_accepts() {
    for config in [ThrottleConfig::new(), as_in_the_book()] {
        let (sent, _recovery) = ride(config, 20);
        assert!((38.0..44.0).contains(&sent), "{sent}/s of 100/s at 20/s");
    }
}

#[test]
fn recovery_from_an_outage_takes_a_minute_and_not_ten() {
    let (sent, recovery) = ride(ThrottleConfig::new(), 0);
    let (book_sent, book_recovery) = ride(as_in_the_book(), 0);
    println!("defaults: {sent:.1}/s sent, {recovery:.0} s to recover");
    println!("the book: {book_sent:.1}/s sent, {book_recovery:.0} s to recover");
    assert!((45.0..65.0).contains(&recovery), "{recovery} s");
    assert!(book_recovery > 400.0, "{book_recovery} s");
    assert!((8.0..12.0).contains(&sent), "{sent}/s of 100/s");
}

#[test]
fn one_rejection_costs_a_quiet_client_little() {
    // One request a second, of which only the first is rejected.
    let refused = |config: ThrottleConfig| {
        let mut random = uniform();
        let runs = 200;
        let mut refused = 0;
        for _ in 0..runs {
            let (mut throttle, start) = (throttle(config.clone()), Instant::now());
            throttle.record(start, false);
            for second in 1..60 {
                let now = start + second * SECOND;
                if throttle.admit(now, random()).is_ok() {
                    throttle.record(now, true);
                } else {
                    refused += 1;
                }
            }
        }
        f64::from(refused) / f64::from(runs)
    };
    let (ours, book) = (refused(ThrottleConfig::new()), refused(as_in_the_book()));
    println!("refused of the next 59 requests: {ours:.2}, with the book's constants {book:.2}");
    assert!(ours < 0.5, "{ours}");
    assert!(book > 2.0, "{book}");
}

#[test]
fn settings_change_without_losing_what_was_counted() {
    let (mut throttle, now) = (throttle(ThrottleConfig::new()), Instant::now());
    for _ in 0..100 {
        throttle.record(now, false);
    }
    let error = throttle.reconfigure(ThrottleConfig::new().multiplier(0.0));
    assert_eq!(error.unwrap_err().field(), "multiplier");
    throttle
        .reconfigure(ThrottleConfig::new().max_probability(0.5))
        .unwrap();
    assert_eq!(throttle.probability(now), 0.5);
}

proptest! {
    #[test]
    fn the_probability_stays_within_its_bounds(
        multiplier in 1.0..10.0_f64,
        padding in 1.0..100.0_f64,
        max_probability in 0.0..=1.0_f64,
        window in 1_u32..200,
        steps in proptest::collection::vec((0..5_000_u64, 0..4_u8, 0.0..1.0_f64), 1..300),
    ) {
        let config = ThrottleConfig::new()
            .multiplier(multiplier)
            .padding(padding)
            .max_probability(max_probability)
            .window(window * SECOND);
        let mut throttle = throttle(config);
        let mut now = Instant::now();
        for (millis, what, random) in steps {
            now += Duration::from_millis(millis);
            match what {
                0 => throttle.record(now, true),
                1 => throttle.record(now, false),
                2 => throttle.pause(now, Duration::from_millis(millis)),
                _ => {
                    let (probability, paused) = (throttle.probability(now), throttle.paused_for(now));
                    let admitted = throttle.admit(now, random);
                    prop_assert_eq!(admitted.is_ok(), paused.is_none() && random >= probability);
                }
            }
            let probability = throttle.probability(now);
            prop_assert!((0.0..=max_probability).contains(&probability), "{}", probability);
            prop_assert!(throttle.accepts(now) <= throttle.requests(now));
            prop_assert!(throttle.paused_for(now).is_none_or(|left| left <= 60 * SECOND));
        }
    }
}
