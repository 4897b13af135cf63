//! Pools that are counted from the side.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use deadpool_sqlite::{Config, Runtime};
use futures_util::future::join_all;
use pool_autotune::{BuildError, Counts, Observe, Observed};
use tokio::time::sleep;

#[derive(Clone, Default)]
struct Fake(Arc<AtomicUsize>);

impl Observe for Fake {
    fn count(&self) -> Counts {
        Counts::new(100, self.0.load(Ordering::SeqCst))
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_too_large_is_told_what_would_do() {
    let fake = Fake::default();
    let observed = Observed::new(fake.clone()).expect("a runtime");
    for in_use in [2, 6, 4, 8].repeat(10) {
        fake.0.store(in_use, Ordering::SeqCst);
        sleep(Duration::from_millis(250)).await;
    }
    let report = observed.report();
    assert_eq!((report.peak(), report.max_size()), (8, 100));
    assert!((report.mean() - 5.0).abs() < 0.5, "{}", report.mean());
    assert_eq!(report.wanted(), Some(8));
    assert!(report.to_string().contains("8 would do"), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_pool_at_its_maximum_is_told_that_counts_do_not_say_what_it_lacks() {
    let fake = Fake::default();
    let observed = Observed::new(fake.clone()).expect("a runtime");
    fake.0.store(100, Ordering::SeqCst);
    sleep(Duration::from_secs(10)).await;
    let report = observed.report();
    assert!(report.is_bound());
    assert_eq!(report.wanted(), None);
    assert!(report.to_string().starts_with("all 100"), "{report}");

    // Five minutes later that is forgotten.
    fake.0.store(1, Ordering::SeqCst);
    sleep(Duration::from_secs(331)).await;
    assert_eq!(observed.report().wanted(), Some(3));
}

#[tokio::test(start_paused = true)]
async fn the_pool_is_let_go_with_the_last_handle() {
    let fake = Fake::default();
    let observed = Observed::new(fake.clone()).expect("a runtime");
    sleep(Duration::from_secs(1)).await;
    drop(observed.clone());
    assert_eq!(Arc::strong_count(&fake.0), 2);
    drop(observed);
    assert_eq!(Arc::strong_count(&fake.0), 1);
}

#[test]
fn without_a_runtime_nothing_is_observed() {
    let refused = Observed::new(Fake::default());
    assert!(matches!(refused, Err(BuildError::NoRuntime)));
}

#[tokio::test]
async fn connections_and_waiting_checkouts_of_deadpool_are_counted() {
    let config = Config::new(":memory:");
    let builder = config.builder(Runtime::Tokio1).expect("valid");
    let pool = builder.max_size(2).build().expect("valid");
    let observed = Observed::new(pool.clone()).expect("a runtime");
    observed.sample();
    assert_eq!(observed.report().peak(), 0);
    let held = join_all([pool.get(), pool.get()]).await;
    let mut waiting = Box::pin(pool.get());
    assert!(futures_util::poll!(&mut waiting).is_pending());
    observed.sample();
    let report = observed.report();
    assert_eq!((report.peak(), report.max_size()), (2, 2));
    assert!(report.is_bound());
    drop(held);
}

#[tokio::test]
async fn connections_of_bb8_are_counted() {
    let builder = bb8::Pool::builder().max_size(3);
    let pool = builder
        .build(support::SqliteManager)
        .await
        .expect("it opens");
    let observed = Observed::new(pool.clone()).expect("a runtime");
    let held = join_all([pool.get(), pool.get()]).await;
    observed.sample();
    let report = observed.report();
    assert_eq!((report.peak(), report.max_size()), (2, 3));
    drop(held);
}
