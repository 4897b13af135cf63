//! What the kernel and the runtime say as inputs of a limiter, from files that the tests write and
//! from handlers that block.
#![cfg(all(feature = "signals", not(loom)))]

use std::{fs, path::Path, time::Duration};

use tokio::time::{Instant, advance};
use tower_capacity::{Limiter, Signals, limit::Fixed};

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
    let watch = Signals::none()
        .cpu_pressure_of(&path)
        .unwrap()
        .watch(&limiter);
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
    let missing = Signals::none()
        .cpu_pressure_of(&path)
        .unwrap_err()
        .to_string();
    assert!(missing.contains("cpu.pressure"), "{missing}");
    fs::write(&path, "some total=1\n").unwrap();
    let wrong = Signals::none()
        .cpu_pressure_of(&path)
        .unwrap_err()
        .to_string();
    assert!(wrong.contains("`full … total=`"), "{wrong}");
}

/// On every Linux with PSI; elsewhere the error says what is missing.
#[test]
fn the_pressure_of_this_machine_is_found_or_the_error_names_the_file() {
    if let Err(error) = Signals::none().cpu_pressure() {
        assert!(error.to_string().contains("/proc/pressure/cpu"), "{error}");
    }
}

fn limiter() -> Limiter {
    Limiter::builder().law(Fixed::new(100)).build().unwrap()
}

fn last_change(limiter: &Limiter) -> (usize, &'static str) {
    let change = limiter.history().pop().expect("the limit moved");
    (change.new, change.why.reason)
}

#[tokio::test(start_paused = true)]
async fn a_cgroup_that_is_throttled_in_most_periods_lowers_the_limit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cpu.stat");
    let write = |periods: u64, throttled: u64| {
        let stat = format!("usage_usec 5\nnr_periods {periods}\nnr_throttled {throttled}\n");
        fs::write(&path, stat).unwrap();
    };
    write(1_000, 1_000);
    let limiter = limiter();
    let signals = Signals::none().cpu_throttling_of(&path).unwrap();
    let _watch = signals.watch(&limiter);
    tokio::task::yield_now().await;
    // What was before the watch is past.
    write(1_005, 1_003);
    advance(TICK).await;
    tokio::task::yield_now().await;
    assert_eq!(limiter.snapshot().limit(), 100, "three of five periods");
    write(1_010, 1_008);
    advance(TICK).await;
    tokio::task::yield_now().await;
    assert_eq!(last_change(&limiter), (90, "cpu throttling"));
}

#[tokio::test(start_paused = true)]
async fn memory_that_has_to_be_reclaimed_lowers_the_limit_at_a_lower_share() {
    let directory = tempfile::tempdir().unwrap();
    let (memory, cpu) = (
        directory.path().join("memory.pressure"),
        directory.path().join("cpu"),
    );
    let (mut stalled, mut waited) = (Duration::ZERO, Duration::ZERO);
    write(&memory, stalled);
    write(&cpu, waited);
    let limiter = limiter();
    let signals = Signals::none().memory_pressure_of(&memory).unwrap();
    let signals = signals.cpu_pressure_of(&cpu).unwrap();
    assert_eq!(
        signals.names().collect::<Vec<_>>(),
        ["memory pressure", "cpu pressure"]
    );
    let _watch = signals.watch(&limiter);
    tokio::task::yield_now().await;
    waited += TICK / 5;
    write(&cpu, waited);
    tick(&memory, &mut stalled, TICK / 5).await;
    assert_eq!(last_change(&limiter), (90, "memory pressure"));
}

#[tokio::test(start_paused = true)]
async fn handlers_that_block_the_runtime_lower_the_limit() {
    let limiter = limiter();
    let _watch = Signals::none().runtime_lag().watch(&limiter);
    let work = |blocks: Duration| async move {
        for _ in 0..TICK.as_millis() / (blocks.as_millis() + 10) + 2 {
            // Nothing else runs while a handler blocks, and then all that is ready does.
            advance(blocks).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    work(Duration::from_millis(5)).await;
    assert_eq!(limiter.snapshot().limit(), 100, "short steps are no lag");
    work(Duration::from_millis(200)).await;
    let (limit, reason) = last_change(&limiter);
    assert!(limit < 100 && reason == "runtime lag", "{limit}: {reason}");
}

/// A runtime with one worker, a limiter that listens to `signals`, and `work` on it for as long as they
/// need to lower the limit.
fn lowered_by(signals: Signals, work: impl Fn() + Send + 'static) -> (usize, &'static str) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .unwrap();
    let limiter = limiter();
    let watch = runtime.block_on(async { signals.watch(&limiter) });
    let end = Instant::now() + Duration::from_secs(30);
    while limiter.history().is_empty() && Instant::now() < end {
        // Whatever it does, it does on the worker.
        runtime.block_on(async { work() });
    }
    drop(watch);
    runtime.shutdown_background();
    last_change(&limiter)
}

/// A task that computes for a millisecond.
async fn compute() {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1) {
        std::hint::spin_loop();
    }
}

#[test]
fn a_runtime_with_more_ready_tasks_than_workers_lowers_the_limit() {
    let signals = Signals::none().runtime_queue();
    let (limit, reason) = lowered_by(signals, || {
        // Spawned from outside, and more than the worker takes into its own queue at a time.
        let tasks: Vec<_> = (0..1_000).map(|_| tokio::spawn(compute())).collect();
        while !tasks.iter().all(tokio::task::JoinHandle::is_finished) {
            std::thread::yield_now();
        }
    });
    assert!(
        limit < 100 && reason == "runtime queue",
        "{limit}: {reason}"
    );
}

#[test]
fn workers_that_are_busy_lower_the_limit() {
    let signals = Signals::none().runtime_busy();
    let (limit, reason) = lowered_by(signals, || {
        let task = tokio::spawn(async {
            // Between two tasks a worker says how long it was busy.
            for _ in 0..100 {
                compute().await;
                tokio::task::yield_now().await;
            }
        });
        while !task.is_finished() {
            std::thread::yield_now();
        }
    });
    assert!(limit < 100 && reason == "runtime busy", "{limit}: {reason}");
}

#[tokio::test]
async fn what_this_machine_has_is_found() {
    let signals = Signals::detect();
    assert!(signals.names().any(|name| name == "runtime lag"));
    let _watch = signals.watch(&limiter());
}
