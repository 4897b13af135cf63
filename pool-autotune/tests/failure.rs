//! A Postgres that is killed and comes back, through deadpool and through bb8.

mod support;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bb8_postgres::PostgresConnectionManager;
use pool_autotune::adapter::Adapter;
use pool_autotune::adapter::bb8::Bb8;
use pool_autotune::tuner::TunerConfig;
use pool_autotune::{Autotuned, Checkout, Error};
use private_servers::Postgres;
use support::{Census, Counting};
use tokio::time::{Instant, sleep};
use tokio_postgres::NoTls;

const MAX: usize = 16;

/// Load before, during and after a SIGKILL of the whole server.
async fn killed_and_restarted<P, Q, F>(mut postgres: Postgres, pool: P, census: Census, query: Q)
where
    P: Adapter,
    Q: Fn(Checkout<P>) -> F + Send + Sync + 'static,
    F: Future<Output = bool> + Send + 'static,
{
    let mut tuner = TunerConfig::default();
    // With a lower limit than connections, an experiment would look like a violation.
    tuner.experiments = false;
    let pool = Autotuned::builder(pool)
        .tuner(tuner)
        .bounds(2..=MAX)
        .wait_timeout(Duration::from_secs(2))
        .open_timeout(Duration::from_secs(2))
        .build()
        .expect("valid settings");
    census.watch(&pool);
    let (good, bad, late) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
        AtomicUsize::new(0),
    );
    let late = Arc::new(late);
    let stop = Arc::new(AtomicBool::new(false));
    let query = Arc::new(query);
    let tasks: Vec<_> = (0..40)
        .map(|_| {
            let (pool, query, stop) = (pool.clone(), Arc::clone(&query), Arc::clone(&stop));
            let (good, bad, late) = (Arc::clone(&good), Arc::clone(&bad), Arc::clone(&late));
            tokio::spawn(async move {
                while !stop.load(Relaxed) {
                    let start = Instant::now();
                    let done = match pool.get().await {
                        Ok(connection) => query(connection).await,
                        Err(Error::Backend(_) | Error::Timeout(_) | Error::OpenTimeout(_)) => false,
                        Err(error) => panic!("{error}"),
                    };
                    if done {
                        good.fetch_add(1, Relaxed);
                    } else {
                        bad.fetch_add(1, Relaxed);
                        sleep(Duration::from_millis(1)).await;
                    }
                    // Two seconds in line and two to open are what a checkout may take.
                    if start.elapsed() > Duration::from_secs(5) {
                        late.fetch_add(1, Relaxed);
                    }
                }
            })
        })
        .collect();

    let until = async |count: &AtomicUsize, more: usize| {
        let (goal, deadline) = (
            count.load(Relaxed) + more,
            Instant::now() + Duration::from_secs(20),
        );
        while count.load(Relaxed) < goal {
            assert!(
                Instant::now() < deadline,
                "only {} of {goal}",
                count.load(Relaxed)
            );
            sleep(Duration::from_millis(1)).await;
        }
    };
    until(&good, 500).await;
    postgres.kill();
    until(&bad, 100).await;
    let opened = census.opened();
    postgres.restart().await.expect("it starts again");
    let back = Instant::now();
    until(&good, 500).await;
    let recovery = back.elapsed();
    println!(
        "500 queries {recovery:?} after the restart, {} dials",
        census.opened() - opened
    );
    assert!(recovery < Duration::from_secs(10), "{recovery:?}");

    stop.store(true, Relaxed);
    for task in tasks {
        task.await.expect("no task panics");
    }
    assert_eq!(
        late.load(Relaxed),
        0,
        "no checkout is stuck past its deadline"
    );
    assert_eq!(census.violations(), Vec::<String>::new());
    let now = pool.snapshot();
    assert_eq!((now.in_use(), now.pending()), (0, 0));
    assert!(census.open() <= now.limit());
    for _ in 0..now.limit() {
        drop(pool.get().await.expect("no permit was lost"));
    }
}

fn config(postgres: &Postgres) -> tokio_postgres::Config {
    postgres.url().parse().expect("a valid url")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadpool_recovers_from_a_killed_postgres() {
    let postgres = Postgres::start().await.expect("Postgres starts");
    let census = Census::default();
    let manager = deadpool_postgres::Manager::new(config(&postgres), NoTls);
    let manager = Counting {
        manager,
        census: census.clone(),
    };
    let pool = deadpool::managed::Pool::<_>::builder(manager)
        .max_size(MAX)
        .build();
    let pool = pool.expect("no timeouts are set");
    killed_and_restarted(postgres, pool, census, |connection| async move {
        connection.simple_query("SELECT 1").await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bb8_recovers_from_a_killed_postgres() {
    let postgres = Postgres::start().await.expect("Postgres starts");
    let census = Census::default();
    let manager = PostgresConnectionManager::new(config(&postgres), NoTls);
    let manager = Counting {
        manager,
        census: census.clone(),
    };
    let pool = Bb8::new(bb8::Pool::builder().max_size(MAX as u32), manager);
    killed_and_restarted(postgres, pool, census, |connection| async move {
        connection.simple_query("SELECT 1").await.is_ok()
    })
    .await;
}
