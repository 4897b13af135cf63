//! Our arithmetic and governor's, held against each other.

use std::{num::NonZeroU32, time::Duration};

use governor::{RateLimiter, clock::FakeRelativeClock};
use proptest::prelude::*;
use rate_limit::{Limiter, ManualClock, Policy, Quota};

#[derive(Clone, Debug)]
enum Step {
    Advance(Duration),
    Check(u64),
}

fn step(interval: Duration) -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..3 * interval.as_nanos() as u64)
            .prop_map(|nanos| Step::Advance(Duration::from_nanos(nanos))),
        (1u64..12).prop_map(Step::Check),
        Just(Step::Check(1)),
        Just(Step::Check(1)),
    ]
}

fn traces() -> impl Strategy<Value = (Duration, u32, Vec<Step>)> {
    (1u64..10_000_000_000, 1u32..50).prop_flat_map(|(nanos, burst)| {
        let interval = Duration::from_nanos(nanos);
        (
            Just(interval),
            Just(burst),
            proptest::collection::vec(step(interval), 1..100),
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// The same decisions, cell for cell, and the same waits, as governor itself. `two` decides
    /// by our own arithmetic alone, because it has two policies; `one` by governor on our table
    /// for single cells and by our own for several, mixed.
    #[test]
    fn every_decision_equals_governors((interval, burst, steps) in traces()) {
        let fake = FakeRelativeClock::default();
        let quota = governor::Quota::with_period(interval).unwrap()
            .allow_burst(NonZeroU32::new(burst).unwrap());
        let oracle = RateLimiter::direct_with_clock(quota, fake.clone());

        let clock = ManualClock::new();
        let quota = Quota::count(1).per(interval).burst(u64::from(burst));
        let one = Limiter::builder().quota(quota).clock(clock.clone()).build().unwrap();
        let two = Limiter::builder()
            .policy(Policy::new("a", quota))
            .policy(Policy::new("b", quota))
            .clock(clock.clone())
            .build()
            .unwrap();

        for step in steps {
            match step {
                Step::Advance(by) => {
                    fake.advance(by);
                    clock.advance(by);
                }
                Step::Check(cells) => {
                    let n = NonZeroU32::new(cells as u32).unwrap();
                    let expected = oracle.check_n(n);
                    for limiter in [&one, &two] {
                        let found = limiter.check_n("key", cells);
                        match (&expected, found) {
                            (Ok(Ok(())), Ok(_)) => {}
                            (Ok(Err(not_until)), Err(limited)) => prop_assert_eq!(
                                limited.retry_after(),
                                Some(not_until.wait_time_from(clock.elapsed().into()))
                            ),
                            (Err(_), Err(limited)) => prop_assert_eq!(limited.retry_after(), None),
                            (expected, found) => {
                                prop_assert!(false, "governor {expected:?}, ours {found:?}");
                            }
                        }
                    }
                }
            }
        }
    }
}
