//! What the pool says is the matter with it. In virtual time.

mod support;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use pool_autotune::tuner::{Reason, Verdict};
use pool_autotune::{Autotuned, Error};
use support::Memory;
use tokio::sync::Barrier;
use tokio::time::{Instant, sleep};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn pool(size: usize) -> Autotuned<Memory> {
    let builder = Autotuned::builder(Memory::new(size, ms(1))).bounds(size..=size);
    builder.build().expect("valid settings")
}

#[tokio::test(start_paused = true)]
async fn a_pool_at_rest_is_healthy() {
    assert_eq!(pool(2).verdict(), Verdict::Healthy);
}

#[tokio::test(start_paused = true)]
async fn tasks_that_each_hold_one_and_wait_for_another_are_told_with_both_call_sites() {
    let pool = pool(4);
    let all_hold = Arc::new(Barrier::new(4));
    let (first_line, second_line) = (line!() + 5, line!() + 7);
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (pool, all_hold) = (pool.clone(), Arc::clone(&all_hold));
            tokio::spawn(async move {
                let _first = pool.get().await.expect("one for each");
                all_hold.wait().await;
                pool.get().await.map(drop)
            })
        })
        .collect();
    sleep(ms(100)).await;
    let Verdict::NestedAcquire(nested) = pool.verdict() else {
        panic!("{}", pool.verdict())
    };
    assert_eq!(
        (nested.holds().line(), nested.asks().line()),
        (first_line, second_line)
    );
    assert!(nested.to_string().contains("verdict.rs"), "{nested}");
    for task in tasks {
        // The first to time out gives its own back.
        let second = task.await.expect("no panic");
        assert!(matches!(second, Ok(()) | Err(Error::Timeout(_))));
    }
    sleep(Duration::from_secs(61)).await;
    assert_eq!(pool.verdict(), Verdict::Healthy);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_may_grow_gives_tasks_that_wait_for_each_other_more() {
    let builder = Autotuned::builder(Memory::new(8, ms(1))).bounds(2..=8);
    let pool = builder.build().expect("valid settings");
    let size = pool.snapshot().target();
    assert!(size < 8, "it has room to grow: {size}");
    let all_hold = Arc::new(Barrier::new(size));
    let start = Instant::now();
    let tasks = (0..size).map(|_| {
        let (pool, all_hold) = (pool.clone(), Arc::clone(&all_hold));
        tokio::spawn(async move {
            let _first = pool.get().await.expect("one for each");
            all_hold.wait().await;
            pool.get().await.map(drop)
        })
    });
    for second in join_all(tasks).await {
        second.expect("no panic").expect("in time");
    }
    assert!(start.elapsed() < ms(500), "{:?}", start.elapsed());
    let decisions = pool.decisions();
    let grown = decisions
        .iter()
        .filter(|decision| decision.reason() == Reason::Starving)
        .map(|decision| (decision.from(), decision.to()));
    assert_eq!(grown.collect::<Vec<_>>(), [(size, 8.min(2 * size))]);
    assert!(matches!(pool.verdict(), Verdict::NestedAcquire(_)));
    let replayed = pool.recording().replay();
    assert!(decisions.iter().all(|decision| replayed.contains(decision)));
}

#[tokio::test(start_paused = true)]
async fn one_task_that_waits_for_a_second_is_no_deadlock_while_others_work() {
    let pool = pool(2);
    let worker = tokio::spawn({
        let pool = pool.clone();
        async move {
            let _one = pool.get().await.expect("free");
            sleep(ms(200)).await;
        }
    });
    let nested = tokio::spawn({
        let pool = pool.clone();
        async move {
            sleep(ms(50)).await;
            let _first = pool.get().await.expect("free");
            pool.get()
                .await
                .map(drop)
                .expect("the worker gives its own back");
        }
    });
    sleep(ms(100)).await;
    assert!(!matches!(pool.verdict(), Verdict::NestedAcquire(_)));
    worker.await.expect("no panic");
    nested.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_does_not_come_back_is_told_with_its_call_site() {
    let pool = pool(4);
    let line = line!() + 1;
    let forgotten = join_all((0..2).map(|_| pool.get())).await;
    for _ in 0..400 {
        let connection = pool.get().await.expect("two are left");
        sleep(ms(100)).await;
        drop(connection);
    }
    let Verdict::Leaking(leak) = pool.verdict() else {
        panic!("{}", pool.verdict())
    };
    assert_eq!((leak.call_site().line(), leak.count()), (line, 2));
    assert!(leak.held_for() > Duration::from_secs(30));
    drop(forgotten);
    assert_eq!(pool.verdict(), Verdict::Healthy);
}

#[tokio::test(start_paused = true)]
async fn long_use_is_no_leak_where_it_is_usual() {
    let pool = pool(4);
    let reports = (0..4).map(|_| async {
        let _connection = pool.get().await.expect("free");
        sleep(Duration::from_secs(45)).await;
    });
    join_all(reports).await;
    let _another = pool.get().await.expect("free");
    // The usual is known for five to ten seconds after a return.
    sleep(Duration::from_secs(4)).await;
    assert_eq!(pool.verdict(), Verdict::Healthy);
}

#[tokio::test(start_paused = true)]
async fn connections_that_do_not_open_are_told() {
    let memory = Memory::new(8, Duration::from_secs(3600));
    let builder = Autotuned::builder(memory)
        .bounds(8..=8)
        .open_timeout(Duration::from_secs(60));
    let pool = builder
        .wait_timeout(Duration::from_secs(60))
        .build()
        .expect("valid settings");
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.get().await.map(drop) })
        })
        .collect();
    sleep(Duration::from_secs(6)).await;
    assert_eq!(pool.verdict(), Verdict::ConnectBound);
    tasks.iter().for_each(|task| task.abort());
}

#[tokio::test(start_paused = true)]
async fn a_pool_too_small_for_its_traffic_is_bound_by_its_maximum() {
    let pool = pool(2);
    let users = (0..20).map(|_| async {
        for _ in 0..100 {
            let connection = pool.get().await.expect("in time");
            sleep(ms(10)).await;
            drop(connection);
        }
    });
    let mut seen = Vec::new();
    tokio::join!(join_all(users), async {
        for _ in 0..8 {
            sleep(Duration::from_secs(1)).await;
            seen.push(pool.verdict());
        }
    });
    assert!(seen.contains(&Verdict::BudgetBound), "{seen:?}");
}
