//! CPU pressure as an input of a limiter, from a pressure file that the test writes.
#![cfg(all(feature = "cpu-pressure", not(loom)))]

use std::{fs, path::Path, time::Duration};

use tokio::time::advance;
use tower_capacity::{CpuPressure, Limiter, limit::Fixed};

const TICK: Duration = Duration::from_millis(500);

fn write(path: &Path, total: Duration) {
    let micros = total.as_micros();
    let line = format!("avg10=0.00 avg60=0.00 avg300=0.00 total={micros}");
    fs::write(path, format!("some {line}\nfull {line}\n")).unwrap();
}

/// Lets the watch see an interval in which tasks waited for so long.
async fn tick(path: &Path, total: &mut Duration, stalled: Duration) {
    *total += stalled;
    write(path, *total);
    advance(TICK).await;
    tokio::task::yield_now().await;
}

#[tokio::test(start_paused = true)]
async fn pressure_lowers_the_limit_within_its_bounds_and_dropping_the_watch_lets_it_go() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cpu.pressure");
    let mut total = Duration::from_secs(7);
    write(&path, total);
    let law = Fixed::new(100);
    let limiter = Limiter::builder()
        .law(law)
        .bounds(60..=100)
        .build()
        .unwrap();
    let watch = CpuPressure::of_cgroup(&path).unwrap().watch(&limiter);
    tokio::task::yield_now().await;

    tick(&path, &mut total, TICK / 2).await;
    assert_eq!(
        limiter.snapshot().limit(),
        100,
        "half of the time is no pressure"
    );
    tick(&path, &mut total, TICK).await;
    assert_eq!(limiter.snapshot().limit(), 90);
    let change = limiter.history().pop().unwrap();
    assert_eq!(
        (change.old, change.new, change.why.reason),
        (100, 90, "cpu pressure")
    );
    for _ in 0..20 {
        tick(&path, &mut total, TICK).await;
    }
    assert_eq!(limiter.snapshot().limit(), 60, "the bounds hold");

    drop(watch);
    assert_eq!(limiter.snapshot().limit(), 60, "raising is up to the law");
    for _ in 0..8 {
        let mut admission = limiter.try_admit().unwrap();
        advance(TICK).await;
        admission.complete(tower_capacity::Outcome::Success);
    }
    assert_eq!(limiter.snapshot().limit(), 100);
}

#[test]
fn a_file_without_pressure_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cpu.pressure");
    let missing = CpuPressure::of_cgroup(&path).unwrap_err().to_string();
    assert!(missing.contains("cpu.pressure"), "{missing}");
    fs::write(&path, "some total=1\n").unwrap();
    let wrong = CpuPressure::of_cgroup(&path).unwrap_err().to_string();
    assert!(wrong.contains("`full … total=`"), "{wrong}");
}

/// On every Linux with PSI; elsewhere the error says what is missing.
#[test]
fn the_pressure_of_this_machine_is_found_or_the_error_names_the_file() {
    if let Err(error) = CpuPressure::detect() {
        assert!(error.to_string().contains("/proc/pressure/cpu"), "{error}");
    }
}
