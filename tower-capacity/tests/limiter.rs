//! The limiter as its users hold it: windows, bounds, history, metrics and events.
#![cfg(not(loom))]

use std::time::Duration;

use tokio::time::{Instant, advance};
use tower_capacity::{
    Admission, Admit, ConfigError, Limiter, LimiterBuilder, LimiterSettings, LimiterSnapshot, Mode,
    Outcome, Pressure, Priority, SavedLimit,
    gate::{Ask, Gate, RefusedReason},
    limit::{Aimd, Fixed, Limit, Window},
};

const MS: Duration = Duration::from_millis(1);

/// Runs `requests` one after the other, each `service_time` long.
async fn one_by_one(limiter: &Limiter, requests: usize, service_time: Duration) {
    for _ in 0..requests {
        let mut admission = limiter.try_admit().unwrap();
        advance(service_time).await;
        admission.complete(Outcome::Success);
    }
}

fn window(limiter: &Limiter) -> Window {
    *limiter.snapshot().window().expect("a window has closed")
}

/// As [`one_by_one`], but every other request takes four times as long, so that 32 of them say
/// little about their mean.
async fn unsteady(limiter: &Limiter, requests: usize) {
    for request in 0..requests {
        one_by_one(limiter, 1, if request % 2 == 0 { MS } else { 4 * MS }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_closes_with_enough_completions_and_says_what_happened() {
    let limiter = Limiter::builder().law(Fixed::new(4)).build().unwrap();
    unsteady(&limiter, 127).await;
    assert!(limiter.snapshot().window().is_none());
    unsteady(&limiter, 1).await;
    let window = window(&limiter);
    assert_eq!(window.duration, (64 + 63 * 4 + 1) * MS);
    assert_eq!((window.completions, window.samples), (128, 128));
    assert!(
        (window.mean_inflight - 1.0).abs() < 1e-9,
        "{}",
        window.mean_inflight
    );
    let service_time = window.service_time.unwrap();
    assert!((service_time / 2e-3 - 1.0).abs() < 0.02, "{service_time}");
    assert_eq!(window.longest_gap, 4 * MS);
    assert!(!window.limited);
}

#[tokio::test(start_paused = true)]
async fn a_window_of_equal_service_times_closes_sooner() {
    let limiter = Limiter::builder().law(Fixed::new(4)).build().unwrap();
    one_by_one(&limiter, 49, MS).await;
    assert!(limiter.snapshot().window().is_none(), "50 ms at least");
    one_by_one(&limiter, 1, MS).await;
    assert_eq!(window(&limiter).completions, 50);
    one_by_one(&limiter, 31, 4 * MS).await;
    assert_eq!(window(&limiter).completions, 50);
    one_by_one(&limiter, 1, 4 * MS).await;
    assert_eq!(window(&limiter).completions, 32);
}

#[tokio::test(start_paused = true)]
async fn thin_traffic_closes_a_window_after_a_second_with_eight_completions() {
    let limiter = Limiter::adaptive();
    one_by_one(&limiter, 7, 200 * MS).await;
    assert!(
        limiter.snapshot().window().is_none(),
        "1.4 s old, but only 7 completions"
    );
    one_by_one(&limiter, 1, 200 * MS).await;
    assert_eq!(window(&limiter).completions, 8);
}

#[tokio::test(start_paused = true)]
async fn very_thin_traffic_closes_a_window_after_ten_seconds() {
    let limiter = Limiter::adaptive();
    for _ in 0..4 {
        one_by_one(&limiter, 1, 20 * MS).await;
        advance(3 * Duration::from_secs(1)).await;
    }
    assert!(limiter.snapshot().window().is_none());
    // The next arrival finds no request inside and a stale window: it opens a new one.
    one_by_one(&limiter, 1, 20 * MS).await;
    assert!(limiter.snapshot().window().is_none());
}

#[tokio::test(start_paused = true)]
async fn an_hour_without_traffic_leaves_limit_and_baseline_alone() {
    let limiter = Limiter::adaptive();
    one_by_one(&limiter, 1000, MS).await;
    let before = limiter.snapshot();
    advance(Duration::from_secs(3600)).await;
    one_by_one(&limiter, 200, MS).await;
    let after = limiter.snapshot();
    assert_eq!(after.limit(), before.limit());
    let baseline = |snapshot: &LimiterSnapshot| snapshot.explanation().baseline.unwrap();
    assert!((baseline(&after) / baseline(&before) - 1.0).abs() < 1e-6);
    let window = after.window().unwrap();
    assert!(
        window.duration < Duration::from_secs(1),
        "the idle hour is in no window"
    );
}

#[tokio::test(start_paused = true)]
async fn inflight_is_averaged_over_time() {
    let limiter = Limiter::builder().law(Fixed::new(10)).build().unwrap();
    let mut long = limiter.try_admit().unwrap();
    one_by_one(&limiter, 50, MS).await;
    assert!((window(&limiter).mean_inflight - 2.0).abs() < 1e-9);
    one_by_one(&limiter, 20, MS).await;
    long.complete(Outcome::Success);
    drop(long);
    one_by_one(&limiter, 80, MS).await;
    // Two inside for the first 20 ms of the window, one for the rest of it.
    let window = window(&limiter);
    let millis = window.duration.as_secs_f64() * 1e3;
    assert!((window.mean_inflight - (millis + 20.0) / millis).abs() < 1e-9);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_marks_the_window_as_limited() {
    let limiter = Limiter::builder()
        .law(Fixed::new(2))
        .max_queue(0)
        .build()
        .unwrap();
    let held = [limiter.try_admit().unwrap(), limiter.try_admit().unwrap()];
    limiter.try_admit().unwrap_err();
    drop(held);
    one_by_one(&limiter, 50, MS).await;
    let window = window(&limiter);
    assert!(window.limited);
    assert_eq!((window.refusals, window.cancelled), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_request_is_evidence_of_slowness_never_of_speed() {
    let limiter = Limiter::builder().law(Fixed::new(10)).build().unwrap();
    one_by_one(&limiter, 50, MS).await;
    for _ in 0..100 {
        drop(limiter.try_admit().unwrap());
    }
    one_by_one(&limiter, 50, MS).await;
    let quick = window(&limiter);
    assert_eq!((quick.cancelled, quick.samples), (100, 50));

    let slow = limiter.try_admit().unwrap();
    one_by_one(&limiter, 20, MS).await;
    drop(slow);
    one_by_one(&limiter, 80, MS).await;
    let slow = window(&limiter);
    assert_eq!((slow.cancelled, slow.samples), (1, slow.completions + 1));
}

#[tokio::test(start_paused = true)]
async fn a_success_can_be_taken_back_once() {
    let limiter = Limiter::adaptive();
    let mut admission = limiter.try_admit().unwrap();
    admission.complete(Outcome::Success);
    admission.complete(Outcome::Dropped);
    admission.complete(Outcome::Success);
    admission.complete(Outcome::Dropped);
    drop(admission);
    let snapshot = limiter.snapshot();
    assert_eq!(
        (
            snapshot.completions(),
            snapshot.drops(),
            snapshot.cancelled()
        ),
        (0, 1, 0)
    );
}

#[tokio::test]
async fn impossible_bounds_are_refused_and_named() {
    for (min, max) in [(0, 10), (20, 10), (1, Gate::MAX_LIMIT + 1)] {
        let error = Limiter::builder().bounds(min..=max).build().unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "limit bounds {min}..={max} are not possible: expected 1 <= min <= max <= 2097151"
            )
        );
        let limiter = Limiter::adaptive();
        assert_eq!(limiter.set_bounds(min..=max).unwrap_err(), error);
        assert_eq!(limiter.snapshot().bounds(), 1..=16_384);
    }
}

#[tokio::test]
async fn a_law_that_starts_outside_its_bounds_is_refused() {
    let error = Limiter::builder()
        .law(Fixed::new(50))
        .bounds(1..=10)
        .build()
        .unwrap_err();
    assert!(matches!(
        error,
        ConfigError::InitialOutOfBounds { initial: 50, .. }
    ));
    let limiter = Limiter::builder().bounds(1..=10).build().unwrap();
    assert_eq!(
        limiter.snapshot().limit(),
        10,
        "the default law starts at the nearest bound"
    );
}

#[tokio::test]
async fn new_bounds_move_the_limit_at_once_and_are_explained() {
    let limiter = Limiter::adaptive();
    limiter.set_bounds(1..=8).unwrap();
    assert_eq!(limiter.snapshot().limit(), 8);
    limiter.set_bounds(12..=30).unwrap();
    assert_eq!(limiter.snapshot().limit(), 12);
    let history = limiter.history();
    assert_eq!(
        history.len(),
        1,
        "changes in a row for one reason are one change"
    );
    assert_eq!(
        (history[0].old, history[0].new, history[0].windows),
        (20, 12, 2)
    );
    assert_eq!(
        history[0].to_string(),
        "limit 20 -> 12: bounds over 2 windows"
    );
}

#[tokio::test]
async fn pressure_is_a_half_when_the_limit_is_reached_and_one_behind_a_queue_as_long() {
    let limiter = Limiter::builder().law(Fixed::new(4)).build().unwrap();
    assert_eq!(limiter.pressure(), Pressure::IDLE);
    let _one = limiter.try_admit().unwrap();
    assert_eq!(limiter.pressure().value(), 0.125);
    let _rest: Vec<_> = (0..3).map(|_| limiter.try_admit().unwrap()).collect();
    assert_eq!(limiter.pressure(), Pressure::ALL_IN_USE);
    let mut waiting: Vec<_> = (0..4)
        .map(|_| tokio_test::task::spawn(limiter.admit()))
        .collect();
    for waiter in &mut waiting {
        tokio_test::assert_pending!(waiter.poll());
    }
    assert_eq!(limiter.pressure().value(), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_turn_would_come_too_late_is_refused_at_once() {
    let limiter = Limiter::builder()
        .law(Fixed::new(1))
        .max_queue(8)
        .build()
        .unwrap();
    one_by_one(&limiter, 32, 10 * MS).await;
    let ask = |left: u32| Ask::new().time_left(left * MS);
    let free = limiter.admit_with(ask(1)).await;
    let held =
        free.expect("a request that does not wait is admitted, however little time it has left");
    let start = Instant::now();
    // 10 ms for the one inside, 10 ms of its own.
    let refused = limiter.admit_with(ask(19)).await.unwrap_err();
    assert_eq!(refused.reason(), RefusedReason::Deadline);
    assert_eq!(start.elapsed(), Duration::ZERO);

    // This one might make it, and waits no longer than it has left.
    let refused = limiter.admit_with(ask(25)).await.unwrap_err();
    assert_eq!(refused.reason(), RefusedReason::WaitTimeout);
    assert_eq!(start.elapsed(), 25 * MS);
    drop(held);
    assert_eq!(limiter.snapshot().refusals(), 2);
}

#[tokio::test]
async fn critical_requests_pass_those_that_wait_and_matter_less() {
    let limiter = Limiter::builder().law(Fixed::new(20)).build().unwrap();
    let background = || limiter.try_admit_as(Priority::Background);
    let held: Vec<_> = std::iter::from_fn(|| background().ok()).collect();
    assert_eq!(held.len(), 15);
    let ask = Ask::new().priority(Priority::Background);
    let mut waiting = tokio_test::task::spawn(limiter.admit_with(ask));
    tokio_test::assert_pending!(waiting.poll());
    assert!(limiter.try_admit_as(Priority::Critical).is_ok());
}

/// A limiter of ten permits that one request leaves every 10 ms, all of them held by
/// one tenant.
async fn busy(tenant: &str) -> (Limiter, Vec<Admission>) {
    let limiter = Limiter::builder()
        .law(Fixed::new(10))
        .max_queue(100)
        .codel(None)
        .build()
        .unwrap();
    for _ in 0..30 {
        let mut admissions: Vec<_> = (0..10).map(|_| limiter.try_admit().unwrap()).collect();
        advance(100 * MS).await;
        admissions
            .iter_mut()
            .for_each(|a| a.complete(Outcome::Success));
    }
    let throughput = window(&limiter).throughput();
    assert!((95.0..105.0).contains(&throughput), "{throughput}/s");
    let ask = Ask::new().partition(limiter.partition(tenant));
    let admissions = (0..10).map(|_| limiter.try_admit_with(ask).unwrap());
    let admissions = admissions.collect();
    (limiter, admissions)
}

/// Requests that stand in the waiting room.
fn queue(limiter: &Limiter, ask: Ask, count: usize) -> Vec<tokio_test::task::Spawn<Admit>> {
    let admits = (0..count).map(|_| tokio_test::task::spawn(limiter.admit_with(ask)));
    let mut waiting: Vec<_> = admits.collect();
    for waiter in &mut waiting {
        tokio_test::assert_pending!(waiter.poll());
    }
    waiting
}

/// Whether the limiter expects a request to be in time.
fn may_wait(limiter: &Limiter, ask: Ask) -> bool {
    let mut admit = tokio_test::task::spawn(limiter.admit_with(ask));
    match admit.poll() {
        std::task::Poll::Pending => true,
        std::task::Poll::Ready(Err(refused)) => {
            assert_eq!(refused.reason(), RefusedReason::Deadline);
            false
        }
        std::task::Poll::Ready(Ok(_)) => panic!("all permits are out"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_counts_only_the_waiters_that_go_first() {
    let (limiter, _inside) = busy("greedy").await;
    let of_tenant = Ask::new().partition(limiter.partition("greedy"));
    let background = of_tenant.priority(Priority::Background);
    let _waiting = queue(&limiter, background, 20);
    // 10 ms until the next permit and 100 ms of its own; behind all twenty, 210 ms more.
    let left = |ask: Ask, millis: u32| may_wait(&limiter, ask.time_left(millis * MS));
    let critical = of_tenant.priority(Priority::Critical);
    assert!(left(critical, 120));
    assert!(!left(critical, 105));
    assert!(!left(background, 300));
    assert!(left(background, 320));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_of_an_entitled_partition_is_not_behind_the_queue_of_another() {
    let (limiter, _inside) = busy("greedy").await;
    let of = |tenant| Ask::new().partition(limiter.partition(tenant));
    let _waiting = queue(&limiter, of("greedy"), 20);
    let left = |ask: Ask, millis: u32| may_wait(&limiter, ask.time_left(millis * MS));
    assert!(left(of("polite"), 120));
    assert!(!left(of("greedy"), 300));
    assert!(left(of("greedy"), 320));
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_class_has_free_permits_is_admitted_however_little_time_it_has_left() {
    let limiter = Limiter::builder()
        .law(Fixed::new(20))
        .max_queue(100)
        .build()
        .unwrap();
    one_by_one(&limiter, 32, 10 * MS).await;
    let background = Ask::new().priority(Priority::Background);
    let _inside: Vec<_> = (0..15)
        .map(|_| limiter.try_admit_with(background).unwrap())
        .collect();
    let _waiting = queue(&limiter, background, 10);
    let ask = Ask::new().priority(Priority::Critical).time_left(MS);
    assert!(limiter.admit_with(ask).await.is_ok());
}

#[test]
fn settings_are_changed_all_at_once_or_not_at_all() {
    let limiter = Limiter::builder()
        .settings(LimiterSettings::new().bounds(5..=50))
        .build()
        .unwrap();
    assert_eq!(limiter.snapshot().bounds(), 5..=50);
    let settings = LimiterSettings::new().bounds(1..=10).mode(Mode::Shadow);
    limiter.reconfigure(settings.clone()).unwrap();
    assert_eq!(
        (limiter.snapshot().limit(), limiter.mode()),
        (10, Mode::Shadow)
    );
    let invalid = settings.bounds(0..=2).mode(Mode::Off);
    limiter.reconfigure(invalid).unwrap_err();
    assert_eq!(
        (limiter.snapshot().bounds(), limiter.mode()),
        (1..=10, Mode::Shadow)
    );
}

#[tokio::test(start_paused = true)]
async fn the_saved_limit_of_a_fast_service_is_read_again() {
    let limiter = Limiter::adaptive();
    for _ in 0..4_000 {
        one_by_one(&limiter, 1, Duration::from_nanos(300)).await;
        advance(MS).await;
    }
    let saved = limiter.saved_limit();
    assert_eq!(saved.to_string().parse(), Ok(saved));
}

/// A law that returns the limit it was given.
#[derive(Debug)]
struct Script(Vec<usize>);

impl Limit for Script {
    fn initial(&self) -> usize {
        10
    }

    fn on_window(&mut self, _now: Instant, window: &Window) -> usize {
        self.0.pop().unwrap_or(window.limit)
    }

    fn name(&self) -> &'static str {
        "script"
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_a_law_answers_stays_within_the_bounds() {
    let law = Script(vec![0, usize::MAX]);
    let limiter = Limiter::builder().law(law).bounds(2..=100).build().unwrap();
    one_by_one(&limiter, 50, MS).await;
    assert_eq!(limiter.snapshot().limit(), 100);
    one_by_one(&limiter, 50, MS).await;
    assert_eq!(limiter.snapshot().limit(), 2);
}

#[test]
fn laws_start_where_they_say() {
    assert_eq!(Limiter::adaptive().snapshot().limit(), 20);
    assert_eq!(Aimd::new().initial(), 20);
}

#[tokio::test(start_paused = true)]
async fn an_expensive_request_is_one_request_and_as_much_load_as_it_costs() {
    let law = Fixed::new(10);
    let limiter = Limiter::builder().law(law).max_queue(0).build().unwrap();
    for _ in 0..128 {
        let mut export = limiter.try_admit_with(Ask::new().cost(4)).unwrap();
        let tenant = Ask::new().partition(limiter.partition("a")).cost(5);
        let mut tenants = limiter.try_admit_with(tenant).unwrap();
        assert_eq!(limiter.snapshot().inflight(), 9);
        assert_eq!(limiter.inflight_of(limiter.partition("a")), 5);
        assert!((limiter.pressure().value() - 0.45).abs() < 1e-9);
        limiter.try_admit_with(Ask::new().cost(2)).unwrap_err();
        advance(10 * MS).await;
        export.complete(Outcome::Success);
        tenants.complete(Outcome::Success);
    }
    let snapshot = limiter.snapshot();
    assert_eq!((snapshot.inflight(), snapshot.completions()), (0, 256));
    assert_eq!(snapshot.refusals(), 128);
    let window = window(&limiter);
    let mean = window.mean_inflight;
    assert!((mean - 9.0).abs() < 1e-6, "{mean}");
    assert_eq!(2 * window.completions, 9 * window.samples);
    let service_time = window.service_time.unwrap();
    assert!((service_time / 10e-3 - 1.0).abs() < 1e-3, "{service_time}");
    // By Little's law the throughput is what is inside over the service time.
    let throughput = window.throughput() * service_time;
    assert!((throughput / mean - 1.0).abs() < 0.02, "{throughput}");
}

#[tokio::test(start_paused = true)]
async fn held_streams_do_not_lock_out_a_request_that_costs_more_than_the_limit() {
    let limiter = Limiter::builder().bounds(1..=2).build().unwrap();
    one_by_one(&limiter, 100, 10 * MS).await;
    let open: Vec<_> = std::iter::from_fn(|| limiter.try_admit_with(Ask::new()).ok()).collect();
    let open = open.into_iter().map(|mut stream| {
        stream.complete(Outcome::Success);
        stream
    });
    let open: Vec<_> = open.collect();
    while limiter.snapshot().held() < open.len() {
        advance(100 * MS).await;
        drop(limiter.try_admit());
    }
    let snapshot = limiter.snapshot();
    assert_eq!((snapshot.inflight(), snapshot.limit()), (2, 2));
    let whole = limiter.try_admit_with(Ask::new().cost(50)).unwrap();
    assert_eq!(limiter.snapshot().inflight(), 52);
    drop((whole, open));
    assert_eq!(limiter.snapshot().inflight(), 0);
}

#[cfg(feature = "metrics")]
mod published {
    use metrics_util::{
        MetricKind,
        debugging::{DebugValue, DebuggingRecorder},
    };
    use tower_capacity::metrics as names;

    use super::*;

    #[tokio::test]
    async fn those_who_wait_are_counted_until_they_enter_or_go_away() {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        let _local = metrics::set_default_local_recorder(&recorder);
        let limiter = Limiter::builder().law(Fixed::new(1)).build().unwrap();
        let watched = limiter.clone();
        let queued = || {
            let find = |name| {
                let all = snapshotter.snapshot().into_vec();
                let found = all.into_iter().find(|(key, ..)| key.key().name() == name);
                found.map(|(.., value)| value)
            };
            (watched.snapshot().queued(), find(names::QUEUED))
        };
        let held = limiter.try_admit().unwrap();
        limiter.set_waiting(Some(2), Duration::MAX);
        let mut first = tokio_test::task::spawn(limiter.admit());
        let mut second = tokio_test::task::spawn(limiter.admit());
        tokio_test::assert_pending!(first.poll());
        tokio_test::assert_pending!(second.poll());
        assert_eq!(queued(), (2, Some(DebugValue::Gauge(2.0.into()))));
        drop(second);
        // A snapshot starts the gauge anew.
        assert_eq!(queued(), (1, Some(DebugValue::Gauge((-1.0).into()))));
        drop(held);
        drop(tokio_test::assert_ready_ok!(first.poll()));
        assert_eq!(queued(), (0, Some(DebugValue::Gauge((-1.0).into()))));
    }

    #[tokio::test(start_paused = true)]
    async fn demand_is_what_is_refused_too_and_nothing_once_all_have_left() {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        let _local = metrics::set_default_local_recorder(&recorder);
        let limiter = Limiter::builder().law(Fixed::new(5)).max_queue(0);
        let limiter = limiter.build().unwrap();
        let stays = limiter.try_admit().unwrap();
        let published = || {
            let all = snapshotter.snapshot().into_vec().into_iter();
            let mut demand = all.filter(|(key, ..)| key.key().name() == names::DEMAND_RATIO);
            match demand.next().map(|(.., value)| value) {
                Some(DebugValue::Gauge(demand)) => demand.into_inner(),
                other => panic!("{other:?}"),
            }
        };
        // Sixteen at a time, where there is room for four.
        let mut demand = 0.0;
        for _ in 0..50 {
            let inside: Vec<_> = (0..4).map(|_| limiter.try_admit().unwrap()).collect();
            for _ in 0..12 {
                limiter.try_admit().unwrap_err();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            let pressure = limiter.pressure();
            assert_eq!(pressure.value(), 0.5, "all are in use and nothing waits");
            demand = pressure.demand_ratio();
            for mut admission in inside {
                admission.complete(Outcome::Success);
            }
        }
        assert!((3.5..4.5).contains(&demand), "{demand}");
        // As of the last window, at the end of which one to five were inside.
        let published_then = published();
        assert!((0.7..4.5).contains(&published_then), "{published_then}");
        drop(stays);
        assert_eq!(published(), 0.0);
    }

    #[test]
    fn requests_that_left_are_counted_by_how_they_ended() {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        metrics::with_local_recorder(&recorder, || {
            let limiter = Limiter::builder().name("api").build().unwrap();
            let outcomes = [Outcome::Success, Outcome::Ignored, Outcome::Dropped];
            for (count, outcome) in (2..).zip(outcomes) {
                for _ in 0..count {
                    limiter.try_admit().unwrap().complete(outcome);
                }
            }
            let mut failed_late = limiter.try_admit().unwrap();
            failed_late.complete(Outcome::Success);
            failed_late.complete(Outcome::Dropped);
            drop(failed_late);
            drop(limiter.try_admit().unwrap());
        });
        let all = snapshotter.snapshot().into_vec().into_iter();
        let left = all.filter(|(key, ..)| key.key().name() == names::OUTCOMES);
        let mut left: Vec<_> = left
            .map(|(key, .., value)| {
                let labels = key.key().labels().map(|label| label.value().to_owned());
                (labels.collect::<Vec<_>>().join(" "), value)
            })
            .collect();
        left.sort_by(|a, b| a.0.cmp(&b.0));
        let expected = [
            ("api cancelled", 1),
            ("api dropped", 5),
            ("api ignored", 3),
            ("api success", 2),
        ];
        let expected =
            expected.map(|(labels, count)| (labels.to_owned(), DebugValue::Counter(count)));
        assert_eq!(left, expected);
    }

    #[test]
    fn decisions_are_counted_by_reason_and_gauges_follow() {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        metrics::with_local_recorder(&recorder, || {
            let limiter = Limiter::builder()
                .law(Fixed::new(1))
                .max_queue(0)
                .name("api")
                .build()
                .unwrap();
            // Before anything is registered, and shown all the same.
            limiter.set_mode(Mode::Shadow);
            let _held = limiter.try_admit().unwrap();
            limiter.try_admit().unwrap_err();
            limiter.try_admit().unwrap_err();
        });
        let mut seen: Vec<_> = snapshotter
            .snapshot()
            .into_vec()
            .into_iter()
            .map(|(key, _unit, _text, value)| {
                let labels: Vec<_> = key
                    .key()
                    .labels()
                    .map(|label| label.value().to_owned())
                    .collect();
                (key.kind(), key.key().name().to_owned(), labels, value)
            })
            .collect();
        seen.sort_by(|a, b| (&a.1, &a.2).cmp(&(&b.1, &b.2)));
        let value = |kind, name: &str, labels: &[&str]| {
            seen.iter()
                .find(|(k, n, l, _)| (*k, n.as_str()) == (kind, name) && l.iter().eq(labels))
                .map(|(.., value)| value)
        };
        let requests = |labels: &[&str]| value(MetricKind::Counter, names::REQUESTS, labels);
        assert_eq!(
            requests(&["api", "admitted", "none"]),
            Some(&DebugValue::Counter(1))
        );
        assert_eq!(
            requests(&["api", "shed", "full"]),
            Some(&DebugValue::Counter(2))
        );
        let gauge = |name| value(MetricKind::Gauge, name, &["api"]);
        assert_eq!(gauge(names::INFLIGHT), Some(&DebugValue::Gauge(0.0.into())));
        assert_eq!(gauge(names::LIMIT), Some(&DebugValue::Gauge(1.0.into())));
        assert_eq!(
            gauge(names::LIMIT_MIN),
            Some(&DebugValue::Gauge(1.0.into()))
        );
        let mode = |mode| value(MetricKind::Gauge, names::MODE, &["api", mode]);
        assert_eq!(mode("shadow"), Some(&DebugValue::Gauge(1.0.into())));
        assert_eq!(mode("enforce"), Some(&DebugValue::Gauge(0.0.into())));
        assert!(gauge(names::LIMIT_MAX).is_some());
    }
}

#[cfg(feature = "tracing")]
mod events {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::{Layer, layer::SubscriberExt};

    use super::*;

    /// Collects level and message of each event.
    #[derive(Clone, Debug, Default)]
    struct Collector(Arc<Mutex<Vec<String>>>);

    impl<S: tracing::Subscriber> Layer<S> for Collector {
        fn on_event(
            &self,
            event: &tracing::Event<'_>,
            _context: tracing_subscriber::layer::Context<'_, S>,
        ) {
            struct Message(String);
            impl tracing::field::Visit for Message {
                fn record_debug(
                    &mut self,
                    field: &tracing::field::Field,
                    value: &dyn std::fmt::Debug,
                ) {
                    if field.name() == "message" {
                        self.0 = format!("{value:?}");
                    }
                }
            }
            let mut message = Message(String::new());
            event.record(&mut message);
            let text = format!("{} {}", event.metadata().level(), message.0);
            self.0.lock().unwrap().push(text);
        }
    }

    fn warnings(collector: &Collector) -> Vec<String> {
        let events = collector.0.lock().unwrap();
        let warnings = events.iter().filter(|event| event.starts_with("WARN"));
        warnings.cloned().collect()
    }

    #[tokio::test(start_paused = true)]
    async fn shedding_is_announced_while_nothing_ends_and_over_when_traffic_stops() {
        let collector = Collector::default();
        let subscriber = tracing_subscriber::registry().with(collector.clone());
        let _guard = tracing::subscriber::set_default(subscriber);
        let limiter = Limiter::builder().law(Fixed::new(1)).max_queue(0);
        let limiter = limiter.build().unwrap();
        let _hangs = limiter.try_admit().unwrap();
        for _ in 0..100 {
            limiter.try_admit().unwrap_err();
            advance(10 * MS).await;
        }
        assert_eq!(warnings(&collector), ["WARN overloaded: shedding starts"]);
        // From here on nothing happens at all.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(
            warnings(&collector),
            [
                "WARN overloaded: shedding starts",
                "WARN no longer overloaded: shedding is over"
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn shedding_is_announced_once_when_it_starts_and_once_when_it_is_over() {
        let collector = Collector::default();
        let subscriber = tracing_subscriber::registry().with(collector.clone());
        let _guard = tracing::subscriber::set_default(subscriber);
        let limiter = Limiter::builder()
            .law(Fixed::new(1))
            .max_queue(0)
            .build()
            .unwrap();
        for _ in 0..3 {
            let held = limiter.try_admit().unwrap();
            limiter.try_admit().unwrap_err();
            drop(held);
            one_by_one(&limiter, 128, MS).await;
        }
        for _ in 0..20 {
            one_by_one(&limiter, 128, MS).await;
        }
        assert_eq!(
            warnings(&collector),
            [
                "WARN overloaded: shedding starts",
                "WARN no longer overloaded: shedding is over"
            ]
        );
    }
}

#[test]
fn impossible_shares_are_refused_with_the_key_that_does_not_fit() {
    let refused = |shares: &[(&str, f64)]| {
        let builder = Limiter::builder();
        let add = |builder: LimiterBuilder, (key, share): &(&str, f64)| builder.share(key, *share);
        shares.iter().fold(builder, add).build().unwrap_err()
    };
    for (shares, why) in [
        (&[("checkout", 0.0)][..], "is 0"),
        (&[("checkout", -0.1)], "is -0.1"),
        (&[("checkout", f64::NAN)], "is NaN"),
        (&[("search", 0.7), ("checkout", 0.4)], "add up to 1.1"),
        (&[("checkout", 0.1), ("checkout", 0.2)], "has two shares"),
    ] {
        let error = refused(shares).to_string();
        assert!(error.contains("\"checkout\""), "{error}");
        assert!(error.contains(why), "{error}");
    }
    let tenths = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let builder = tenths
        .iter()
        .fold(Limiter::builder(), |builder, key| builder.share(key, 0.1));
    builder.build().expect("ten tenths are a whole");
}

#[test]
fn an_empty_name_is_refused() {
    let error = Limiter::builder().name("").build().unwrap_err();
    assert_eq!(error, ConfigError::Name);
}

#[test]
fn keys_keep_their_partition_and_named_ones_share_theirs_with_nobody() {
    let limiter = Limiter::builder().share("checkout", 0.5).build().unwrap();
    let named = limiter.partition("checkout");
    assert_eq!(limiter.partition("tenant-7"), limiter.partition("tenant-7"));
    for tenant in 0..5_000 {
        assert_ne!(limiter.partition(&format!("tenant-{tenant}")), named);
    }
}

#[test]
fn a_limiter_starts_with_what_another_had_learned() {
    let saved: SavedLimit = "limit=48 baseline_us=12500".parse().unwrap();
    let limiter = Limiter::builder().warm_start(saved).build().unwrap();
    assert_eq!(limiter.snapshot().limit(), 48);
    assert_eq!(limiter.saved_limit(), saved);
    let narrow = Limiter::builder().bounds(1..=20).warm_start(saved).build();
    assert_eq!(narrow.unwrap().snapshot().limit(), 20);
    let error = Limiter::builder()
        .law(Fixed::new(5))
        .warm_start(saved)
        .build()
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "warm_start is for the default law: expected it without the law fixed"
    );
}

#[test]
fn a_latency_objective_is_above_zero_and_of_the_default_law() {
    let zero = Limiter::builder().latency_objective(Duration::ZERO).build();
    assert_eq!(zero.unwrap_err(), ConfigError::LatencyObjective);
    let other = Limiter::builder()
        .law(Aimd::new())
        .latency_objective(MS)
        .build();
    assert_eq!(
        other.unwrap_err().to_string(),
        "latency_objective is for the default law: expected it without the law aimd"
    );
}

#[test]
fn pressure_downstream_sheds_the_least_important_first_and_the_critical_never() {
    let permille = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let read = std::sync::Arc::clone(&permille);
    let limiter = Limiter::builder()
        .downstream(move || f64::from(read.load(std::sync::atomic::Ordering::Relaxed)) / 1e3)
        .build()
        .unwrap();
    let shed = |pressure: u32| -> Vec<Priority> {
        permille.store(pressure, std::sync::atomic::Ordering::Relaxed);
        let refused = |class: &Priority| match limiter.try_admit_as(*class) {
            Ok(_) => false,
            Err(refused) => refused.reason() == RefusedReason::Downstream,
        };
        Priority::ALL.into_iter().filter(refused).collect()
    };
    assert_eq!(shed(499), []);
    assert_eq!(shed(500), [Priority::Background]);
    assert_eq!(shed(750), [Priority::Sheddable, Priority::Background]);
    let below_critical = &Priority::ALL[1..];
    assert_eq!(shed(1_000), below_critical);
    assert_eq!(limiter.snapshot().refusals(), 6);
}
