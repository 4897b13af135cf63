//! The throttle as a value, in virtual time.

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;
use tower_capacity::throttle::{AdaptiveThrottle, ThrottleConfig};

const SECOND: Duration = Duration::from_secs(1);

fn throttle(config: ThrottleConfig) -> AdaptiveThrottle {
    AdaptiveThrottle::new(config).unwrap()
}

/// A throttle of a backend that has rejected 100 requests a second for `seconds`, and the time.
fn rejected_for(seconds: u32) -> (AdaptiveThrottle, Instant) {
    let (mut throttle, start) = (throttle(ThrottleConfig::new()), Instant::now());
    for request in 0..=100 * seconds {
        throttle.record(start + request * SECOND / 100, false);
    }
    (throttle, start + seconds * SECOND)
}

#[test]
fn everything_is_sent_until_nothing_was_accepted_for_ten_seconds() {
    let (mut throttle, now) = rejected_for(9);
    assert!(throttle.admit(now, 0.99).is_ok());
    let (mut throttle, now) = rejected_for(10);
    assert!(throttle.admit(now, 0.99).is_ok(), "one a second is sent");
    let throttled = throttle.admit(now, 0.99).unwrap_err();
    assert_eq!(
        (throttled.rejections(), throttled.lasts()),
        (1_001, 10 * SECOND)
    );
    assert_eq!(
        throttled.to_string(),
        "the backend accepted none of 1001 requests in 10s"
    );
}

#[test]
fn one_acceptance_sends_everything_again() {
    let (mut throttle, now) = rejected_for(60);
    throttle.admit(now, 0.99).unwrap();
    throttle.admit(now, 0.99).unwrap_err();
    throttle.record(now, true);
    assert!(!throttle.is_withholding(now));
    assert!(throttle.admit(now, 0.99).is_ok());
    assert_eq!(throttle.rejections(), 0);
}

#[test]
fn a_tenth_is_sent_and_at_least_one_a_second() {
    let (mut throttle, now) = rejected_for(10);
    let sent = |throttle: &mut AdaptiveThrottle, now: Instant| {
        let draws = (0..1_000).map(|draw| f64::from(draw) / 1_000.0);
        draws
            .filter(|&random| throttle.admit(now, random).is_ok())
            .count()
    };
    assert_eq!(sent(&mut throttle, now), 100);
    let mut unlucky = 0;
    for tenth in 0..100 {
        unlucky += u32::from(throttle.admit(now + tenth * SECOND / 10, 0.99).is_ok());
        throttle.record(now + tenth * SECOND / 10, false);
    }
    assert_eq!(unlucky, 9);
}

#[test]
fn few_rejections_withhold_nothing_however_long_they_last() {
    let (mut throttle, start) = (throttle(ThrottleConfig::new()), Instant::now());
    for second in 0..31 {
        throttle.record(start + second * SECOND, false);
    }
    let now = start + 31 * SECOND;
    assert!((0..100).all(|_| throttle.admit(now, 0.99).is_ok()));
}

#[test]
fn rejections_are_forgotten_after_a_silence() {
    let (mut throttle, now) = rejected_for(60);
    let later = now + 10 * SECOND;
    assert!((0..100).all(|_| throttle.admit(later, 0.99).is_ok()));
    throttle.record(later, false);
    assert_eq!(throttle.rejections(), 1);
}

#[test]
fn a_backend_that_accepts_one_in_ten_seconds_by_nature_is_sent_everything() {
    let (mut throttle, start) = (throttle(ThrottleConfig::new()), Instant::now());
    for request in 0..30_000 {
        let now = start + request * SECOND / 100;
        // At 9, 18, 27, … 297 s, except at 153.
        let accepts = request > 0 && request % 900 == 0 && request != 15_300;
        if request > 4_000 {
            throttle.admit(now, 0.99).unwrap();
        }
        throttle.record(now, accepts);
    }
}

#[test]
fn to_consider_sends_nothing() {
    let (throttle, now) = rejected_for(10);
    for _ in 0..3 {
        assert!(throttle.consider(now, 0.99).is_ok(), "nothing was sent yet");
    }
}

#[test]
fn settings_change_without_losing_what_was_counted() {
    let (mut throttle, now) = rejected_for(10);
    let error = throttle.reconfigure(ThrottleConfig::new().share(2.0));
    assert_eq!(error.unwrap_err().field(), "share");
    throttle
        .reconfigure(ThrottleConfig::new().share(0.5))
        .unwrap();
    throttle.admit(now, 0.99).unwrap();
    assert!(throttle.admit(now, 0.49).is_ok());
    assert!(throttle.admit(now, 0.51).is_err());
}

proptest! {
    #[test]
    fn nothing_is_withheld_within_ten_seconds_of_an_acceptance(
        steps in proptest::collection::vec((0..2_000_u64, any::<bool>(), 0.0..1.0_f64), 1..400),
    ) {
        let mut throttle = throttle(ThrottleConfig::new());
        let mut now = Instant::now();
        let mut accepted = now;
        let mut rejections = 0;
        for (millis, accepts, random) in steps {
            now += Duration::from_millis(millis);
            let sent = throttle.admit(now, random);
            if now - accepted < 10 * SECOND || rejections < 32 {
                prop_assert!(sent.is_ok());
            }
            if sent.is_ok() {
                throttle.record(now, accepts);
                if accepts {
                    (accepted, rejections) = (now, 0);
                } else {
                    rejections += 1;
                }
            }
        }
    }
}
