//! What a pool counts.

use proptest::prelude::*;

use super::*;

#[test]
fn a_connection_still_held_counts_up_to_now() {
    let integral = TimeIntegral::default();
    integral.enter(1_000);
    let then = integral.read(1_500);
    let now = integral.read(2_500);
    assert_eq!(
        TimeIntegral::between(then, now),
        Duration::from_micros(1_000)
    );
    integral.leave(3_000, 1_000);
    assert_eq!(
        TimeIntegral::between(0, integral.read(9_000)),
        Duration::from_micros(2_000)
    );
}

#[test]
fn quantiles_count_those_that_did_not_wait() {
    let mut waits = Waits {
        counts: [0; BUCKETS],
        arrivals: 100,
    };
    assert_eq!(waits.quantile(0.95), Duration::ZERO);
    let histogram = WaitHistogram::default();
    (0..10).for_each(|_| histogram.record(Duration::from_millis(40)));
    waits.counts = histogram.read();
    assert_eq!(waits.quantile(0.5), Duration::ZERO);
    let p95 = waits.quantile(0.95).as_secs_f64();
    assert!((0.040..0.050).contains(&p95), "{p95}");
}

proptest! {
    #[test]
    fn integral_equals_the_sum_of_stays(
        stays in prop::collection::vec((0..1u64 << 40, 0..1u64 << 20), 1..50),
    ) {
        let integral = TimeIntegral::default();
        for &(at, _) in &stays {
            integral.enter(at);
        }
        for &(at, stay) in &stays {
            integral.leave(at + stay, at);
        }
        let sum = stays.iter().map(|&(_, stay)| stay).sum();
        let read = integral.read(1 << 41);
        prop_assert_eq!(TimeIntegral::between(0, read), Duration::from_micros(sum));
    }

    #[test]
    fn a_wait_is_at_most_a_quarter_below_the_edge_of_its_bucket(us in 4..20_000_000u64) {
        let histogram = WaitHistogram::default();
        let wait = Duration::from_micros(us);
        histogram.record(wait);
        let waits = Waits { counts: histogram.read(), arrivals: 1 };
        let edge = waits.quantile(0.5);
        prop_assert!(wait <= edge + Duration::from_micros(1), "{wait:?} {edge:?}");
        prop_assert!(edge.as_secs_f64() <= wait.as_secs_f64() * 1.25 + 1e-6, "{wait:?} {edge:?}");
    }
}
