//! Everything at once: 500 tasks, resizes 4 ↔ 32 every 50 ms, one checkout in five cancelled, and
//! in the middle of it Postgres dies by SIGKILL and comes back.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use pool_autotune::tuner::TunerConfig;
use pool_autotune::{Autotuned, Error};
use private_servers::Postgres;
use support::{Census, Counting, Dice};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::NoTls;

const SMALL: usize = 4;
const LARGE: usize = 32;
const TASKS: u64 = 500;
const WAIT: Duration = Duration::from_secs(2);
const OPEN: Duration = Duration::from_secs(2);
const APPLICATION: &str = "pool-autotune-torture";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_permit_is_lost_no_connection_leaks_and_no_task_is_stuck() {
    let mut postgres = Postgres::start().await.expect("Postgres starts");
    let mut config: tokio_postgres::Config = postgres.url().parse().expect("a valid url");
    config.application_name(APPLICATION);
    let census = Census::default();
    let manager = deadpool_postgres::Manager::new(config, NoTls);
    let manager = Counting {
        manager,
        census: census.clone(),
    };
    let inner = deadpool::managed::Pool::<_>::builder(manager)
        .max_size(LARGE)
        .build();
    let mut tuner = TunerConfig::default();
    // Resizes as fast as they come, and no experiments between them.
    tuner.experiments = false;
    tuner.dial.per_second = 1e9;
    tuner.dial.burst = 1e9;
    tuner.dial.at_once = LARGE;
    let pool = Autotuned::builder(inner.expect("no timeouts are set"))
        .bounds(SMALL..=SMALL)
        .tuner(tuner)
        .wait_timeout(WAIT)
        .open_timeout(OPEN)
        .build()
        .expect("valid settings");
    census.watch(&pool);

    let stop = Arc::new(AtomicBool::new(false));
    let (good, bad) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let slowest_ms = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..TASKS)
        .map(|seed| {
            let (pool, stop) = (pool.clone(), Arc::clone(&stop));
            let (good, bad) = (Arc::clone(&good), Arc::clone(&bad));
            let slowest_ms = Arc::clone(&slowest_ms);
            tokio::spawn(async move {
                let mut dice = Dice(seed);
                while !stop.load(Relaxed) {
                    let start = Instant::now();
                    if dice.roll(5) == 0 {
                        let patience = Duration::from_micros(dice.roll(50_000) as u64);
                        let _ = timeout(patience, pool.get()).await;
                        continue;
                    }
                    let checkout = pool.get().await;
                    slowest_ms.fetch_max(start.elapsed().as_millis() as usize, Relaxed);
                    let done = match checkout {
                        Ok(connection) => connection.simple_query("SELECT 1").await.is_ok(),
                        Err(Error::Backend(_) | Error::Timeout(_) | Error::OpenTimeout(_)) => false,
                        Err(error) => panic!("{error}"),
                    };
                    if done { &good } else { &bad }.fetch_add(1, Relaxed);
                    if !done {
                        sleep(Duration::from_millis(2)).await;
                    }
                }
            })
        })
        .collect();
    let resizing = tokio::spawn({
        let (pool, stop) = (pool.clone(), Arc::clone(&stop));
        async move {
            for size in [LARGE, SMALL].into_iter().cycle() {
                sleep(Duration::from_millis(50)).await;
                if stop.load(Relaxed) {
                    break;
                }
                pool.set_bounds(size..=size)
                    .expect("within the pool's maximum");
            }
        }
    });

    let until = async |count: &AtomicUsize, more: usize| {
        let (goal, end) = (
            count.load(Relaxed) + more,
            Instant::now() + Duration::from_secs(60),
        );
        while count.load(Relaxed) < goal {
            assert!(
                Instant::now() < end,
                "only {} of {goal}",
                count.load(Relaxed)
            );
            sleep(Duration::from_millis(5)).await;
        }
    };
    until(&good, 3_000).await;
    postgres.kill();
    until(&bad, 300).await;
    postgres.restart().await.expect("it starts again");
    until(&good, 3_000).await;
    stop.store(true, Relaxed);
    let end = timeout(Duration::from_secs(30), async {
        for task in tasks {
            task.await.expect("no task panics");
        }
        resizing.await.expect("no panic");
    });
    end.await.expect("no task is stuck");

    let slowest = Duration::from_millis(slowest_ms.load(Relaxed) as u64);
    println!("slowest checkout {slowest:?}, {} dials", census.opened());
    // A second on top of the two deadlines, for two cores that five hundred tasks share.
    assert!(
        slowest < WAIT + OPEN + Duration::from_secs(1),
        "{slowest:?}"
    );
    assert_eq!(census.violations(), Vec::<String>::new());
    assert!(census.peak() <= LARGE, "{}", census.peak());

    pool.set_bounds(SMALL..=SMALL)
        .expect("within the pool's maximum");
    let now = pool.snapshot();
    assert_eq!((now.in_use(), now.pending()), (0, 0));
    let mut held = Vec::new();
    for _ in 0..SMALL {
        held.push(pool.get().await.expect("no permit was lost"));
    }
    assert_eq!(census.open(), SMALL);
    let sessions = async || {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1";
        let row = held[0]
            .query_one(query, &[&APPLICATION])
            .await
            .expect("a row");
        row.get::<_, i64>(0) as usize
    };
    let end = Instant::now() + Duration::from_secs(10);
    while sessions().await != SMALL {
        assert!(
            Instant::now() < end,
            "{} sessions for {SMALL} connections",
            sessions().await
        );
        sleep(Duration::from_millis(10)).await;
    }
}
