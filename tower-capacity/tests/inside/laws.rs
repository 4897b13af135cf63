//! What holds of every law.

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;

fn any_window() -> impl Strategy<Value = Window> {
    let counts = (0..100_000_u64, 0..100_u64, 0..100_u64, 0..100_000_u64);
    let times = (
        0..60_000_u64,
        0..60_000_u64,
        proptest::option::of(prop_oneof![
            0.0..1e4_f64,
            Just(0.0),
            Just(f64::MIN_POSITIVE),
            Just(f64::INFINITY),
            Just(f64::NAN),
        ]),
    );
    let inflight = prop_oneof![0.0..1e5_f64, Just(0.0), Just(f64::NAN)];
    (
        counts,
        times,
        inflight,
        1..50_usize,
        1..20_000_usize,
        any::<bool>(),
    )
        .prop_map(
            |(counts, (lasted, gap, service_time), mean_inflight, min_limit, width, limited)| {
                let (completions, drops, cancelled, refusals) = counts;
                Window {
                    completions,
                    drops,
                    cancelled,
                    refusals,
                    mean_inflight,
                    service_time,
                    samples: completions,
                    longest_gap: Duration::from_millis(gap),
                    min_limit,
                    max_limit: min_limit + width,
                    limited,
                    ..Window::new(Duration::from_millis(lasted), 20)
                }
            },
        )
}

proptest! {
    #[test]
    fn every_law_stays_within_the_bounds_whatever_it_reads(
        windows in proptest::collection::vec(any_window(), 1..60)
    ) {
        let laws: [Box<dyn Limit>; 2] = [Box::new(Aimd::new()), Box::new(Knee::new())];
        for mut law in laws {
            let mut now = Instant::now();
            for window in &windows {
                now += window.duration;
                let limit = law.on_window(now, window);
                prop_assert!(
                    (window.min_limit..=window.max_limit).contains(&limit),
                    "{law:?} returned {limit} for {window:?}"
                );
                let why = law.explain();
                prop_assert!(why.baseline.is_none_or(f64::is_finite), "{law:?}");
                prop_assert!(why.elasticity.is_none_or(f64::is_finite), "{law:?}");
            }
        }
    }

    #[test]
    fn no_law_moves_in_a_window_without_evidence(
        windows in proptest::collection::vec(any_window(), 1..30)
    ) {
        let laws: [Box<dyn Limit>; 2] =
            [Box::new(Aimd::new()), Box::new(Knee::new())];
        for mut law in laws {
            let initial = law.initial();
            for window in &windows {
                let idle = Window {
                    min_limit: 1,
                    max_limit: 1000,
                    drops: 0,
                    limited: false,
                    ..*window
                };
                prop_assert_eq!(law.on_window(Instant::now(), &idle), initial);
            }
        }
    }
}
