//! Situations that once locked a service out, let it go, or stopped a thread.
#![cfg(not(loom))]

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::time::{Instant, advance};
use tower_capacity::{
    Admission, Limiter, LimiterEvent, LimiterSettings, Outcome,
    limit::{Fixed, Limit, Window},
};

const MS: Duration = Duration::from_millis(1);

/// Requests that are answered and stay open.
fn streams(limiter: &Limiter, count: usize) -> Vec<Admission> {
    let open = || {
        let mut admission = limiter.try_admit().ok()?;
        admission.complete(Outcome::Success);
        Some(admission)
    };
    (0..count).filter_map(|_| open()).collect()
}

/// Serves one request after the other; returns how many were refused.
async fn one_by_one(limiter: &Limiter, requests: usize, outcome: Outcome) -> usize {
    let mut refused = 0;
    for _ in 0..requests {
        match limiter.try_admit() {
            Ok(mut admission) => {
                advance(10 * MS).await;
                admission.complete(outcome);
            }
            Err(_) => {
                refused += 1;
                advance(10 * MS).await;
            }
        }
    }
    refused
}

#[tokio::test(start_paused = true)]
async fn streams_that_fill_the_limit_from_the_start_do_not_lock_out_short_requests() {
    let limiter = Limiter::adaptive();
    let open = streams(&limiter, 20);
    assert_eq!(open.len(), 20);
    limiter.try_admit().unwrap_err();
    // The first refusals count them as held once they have been open for a few seconds.
    for _ in 0..50 {
        advance(100 * MS).await;
        drop(limiter.try_admit());
    }
    assert_eq!(one_by_one(&limiter, 500, Outcome::Success).await, 0);
    let snapshot = limiter.snapshot();
    assert_eq!((snapshot.held(), snapshot.inflight()), (20, 20));
}

#[tokio::test(start_paused = true)]
async fn streams_are_held_after_ten_lifetimes_of_short_requests_and_forgotten_when_they_end() {
    let limiter = Limiter::adaptive();
    one_by_one(&limiter, 300, Outcome::Success).await;
    let open = streams(&limiter, 15);
    one_by_one(&limiter, 60, Outcome::Success).await;
    assert_eq!(limiter.snapshot().held(), 15, "after 600 ms");
    drop(open);
    one_by_one(&limiter, 1, Outcome::Success).await;
    assert_eq!(limiter.snapshot().held(), 0);
}

#[tokio::test(start_paused = true)]
async fn held_streams_press_nothing() {
    let limiter = Limiter::adaptive();
    one_by_one(&limiter, 300, Outcome::Success).await;
    let _open = streams(&limiter, 15);
    assert!(limiter.pressure().value() > 0.3);
    one_by_one(&limiter, 60, Outcome::Success).await;
    assert!(limiter.pressure().value() < 1e-9);
}

/// How many of ten waiters are shed for having waited too long, once all have waited for a second.
async fn shed_by_codel(limiter: &Limiter) -> usize {
    let mut inside: Vec<_> = std::iter::from_fn(|| limiter.try_admit().ok()).collect();
    let waiting = (0..10).map(|_| tokio::spawn(limiter.admit()));
    let waiting: Vec<_> = waiting.collect();
    tokio::task::yield_now().await;
    for _ in 0..10 {
        advance(100 * MS).await;
        inside.pop();
        tokio::task::yield_now().await;
    }
    let mut shed = 0;
    for waiter in waiting {
        let admitted = waiter.await.unwrap();
        shed += usize::from(admitted.is_err_and(|refused| {
            refused.reason() == tower_capacity::gate::RefusedReason::Overloaded
        }));
    }
    shed
}

#[tokio::test(start_paused = true)]
async fn codel_that_was_turned_off_stays_off_when_windows_close() {
    let build = || {
        let builder = Limiter::builder().max_wait(Duration::from_secs(60));
        builder.bounds(20..=20).build().unwrap()
    };
    let follows = build();
    one_by_one(&follows, 300, Outcome::Success).await;
    assert!(shed_by_codel(&follows).await > 0);
    let off = build();
    off.set_codel(None);
    one_by_one(&off, 300, Outcome::Success).await;
    assert_eq!(shed_by_codel(&off).await, 0);
    let settings = LimiterSettings::new().max_wait(Duration::from_secs(60));
    let reconfigured = build();
    let off = settings.clone().bounds(20..=20).codel(None);
    reconfigured.reconfigure(off).unwrap();
    one_by_one(&reconfigured, 300, Outcome::Success).await;
    assert_eq!(shed_by_codel(&reconfigured).await, 0);
    reconfigured.reconfigure(settings.bounds(20..=20)).unwrap();
    one_by_one(&reconfigured, 300, Outcome::Success).await;
    assert!(shed_by_codel(&reconfigured).await > 0);
}

#[tokio::test(start_paused = true)]
async fn a_fixed_limit_counts_streams_too() {
    let law = Fixed::new(3);
    let limiter = Limiter::builder().law(law).max_queue(0).build().unwrap();
    let _open = streams(&limiter, 3);
    advance(Duration::from_secs(3600)).await;
    assert_eq!(one_by_one(&limiter, 50, Outcome::Success).await, 50);
}

#[tokio::test(start_paused = true)]
async fn a_service_of_nothing_but_ignored_outcomes_adapts() {
    let limiter = Limiter::builder().max_queue(0).build().unwrap();
    // 200 callers at once, 50 ms each.
    for _ in 0..100 {
        let mut inside: Vec<_> = (0..200).filter_map(|_| limiter.try_admit().ok()).collect();
        advance(50 * MS).await;
        for admission in &mut inside {
            admission.complete(Outcome::Ignored);
        }
    }
    let limit = limiter.snapshot().limit();
    assert!(limit >= 200, "{limit}");
}

#[tokio::test(start_paused = true)]
async fn refusals_alone_show_that_shedding_has_started() {
    let limiter = Limiter::builder().max_queue(0).build().unwrap();
    let hung: Vec<_> = (0..20).map(|_| limiter.try_admit().unwrap()).collect();
    let mut refused = 0;
    for _ in 0..4000 {
        refused += usize::from(limiter.try_admit().map(drop).is_err());
        advance(2 * MS).await;
    }
    // Handlers that hang are held in the end, and let others in.
    assert!(refused > 500 && refused < 2500, "{refused}");
    drop(hung);
}

/// Panics once, then wants 10.
#[derive(Debug)]
struct PanicsOnce(Arc<AtomicU32>);

impl Limit for PanicsOnce {
    fn initial(&self) -> usize {
        5
    }

    fn on_window(&mut self, _: Instant, _: &Window) -> usize {
        assert!(self.0.fetch_add(1, SeqCst) > 0, "a fault in a law");
        10
    }

    fn name(&self) -> &'static str {
        "panics_once"
    }
}

#[tokio::test(start_paused = true)]
async fn a_law_that_panics_costs_its_window_and_no_permit() {
    let calls = Arc::new(AtomicU32::new(0));
    let law = PanicsOnce(Arc::clone(&calls));
    let limiter = Limiter::builder().law(law).build().unwrap();
    one_by_one(&limiter, 400, Outcome::Success).await;
    assert!(calls.load(SeqCst) > 5);
    let snapshot = limiter.snapshot();
    assert_eq!((snapshot.limit(), snapshot.inflight()), (10, 0));
    limiter.drain(Duration::from_secs(1)).await.unwrap();
}

#[cfg(feature = "tracing")]
mod observed {
    use tracing::{Event, Metadata, Subscriber, span};

    use super::*;

    static LIMITER: OnceLock<Limiter> = OnceLock::new();

    /// Reads the limiter at each event.
    struct Curious(Arc<AtomicU32>);

    impl Subscriber for Curious {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, _: &Event<'_>) {
            if let Some(limiter) = LIMITER.get() {
                let seen = (limiter.snapshot(), limiter.history(), limiter.saved_limit());
                assert!(seen.0.limit() > 0);
                self.0.fetch_add(1, SeqCst);
            }
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn a_subscriber_may_read_the_limiter_at_every_event() {
        let limiter = LIMITER.get_or_init(Limiter::adaptive);
        let events = Arc::new(AtomicU32::new(0));
        let curious = Curious(Arc::clone(&events));
        tracing::subscriber::with_default(curious, || {
            limiter.set_bounds(5..=10).expect("possible bounds");
        });
        assert!(events.load(SeqCst) > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_sees_what_a_limiter_does_and_its_panic_stays_its_own() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let limiter = Limiter::builder().law(Fixed::new(1)).max_queue(0);
    let limiter = limiter.on_event({
        let seen = Arc::clone(&seen);
        move |event| {
            seen.lock().unwrap().push(event.to_string());
            assert!(
                !matches!(event, LimiterEvent::Limit(_)),
                "an observer's own mistake"
            );
        }
    });
    let limiter = limiter.build().unwrap();
    advance(Duration::from_secs(1)).await;
    let mut held = limiter.try_admit().unwrap();
    limiter.try_admit().unwrap_err();
    advance(100 * MS).await;
    held.complete(Outcome::Success);
    drop(held);
    advance(Duration::from_secs(5)).await;
    drop(limiter.try_admit().unwrap());
    limiter.set_bounds(3..=5).unwrap();
    assert_eq!(limiter.snapshot().limit(), 3);
    let seen = seen
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .clone();
    assert_eq!(
        seen,
        [
            "overloaded: shedding starts",
            "no longer overloaded: shedding is over after 5.1s",
            "limit 1 -> 3: bounds",
        ]
    );
}
