//! A `PgBouncer` between the pool and Postgres: full, slow, and with statements of other sessions.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use deadpool_postgres::{Manager, Pool};
use futures_util::future::join_all;
use pool_autotune::tuner::Reason;
use pool_autotune::{Autotuned, Error};
use private_servers::{PgBouncer, Postgres};
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, NoTls};

const SECOND: Duration = Duration::from_secs(1);

async fn bouncer(settings: &[(&str, &str)]) -> (Postgres, PgBouncer) {
    let postgres = Postgres::start().await.expect("Postgres starts");
    let bouncer = PgBouncer::start_with(&postgres, settings).await;
    (postgres, bouncer.expect("PgBouncer starts"))
}

fn inner(bouncer: &PgBouncer, max: usize) -> Pool {
    let manager = Manager::new(bouncer.url().parse().expect("a valid url"), NoTls);
    let builder = Pool::builder(manager).max_size(max);
    builder.build().expect("no timeouts are set")
}

async fn connect(bouncer: &PgBouncer) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(&bouncer.url(), NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn failovers(pool: &Autotuned<Pool>) -> usize {
    let decisions = pool.decisions();
    let failovers = decisions
        .iter()
        .filter(|decision| decision.reason() == Reason::Failover);
    failovers.count()
}

/// Twenty tasks that query for as long; returns queries done, and what failed.
async fn load(
    pool: &Autotuned<Pool>,
    sql: &str,
    lasts: Duration,
) -> (usize, BTreeMap<String, usize>) {
    let failed = Mutex::new(BTreeMap::new());
    let start = Instant::now();
    let users = (0..20).map(|_| async {
        let mut done = 0;
        while start.elapsed() < lasts {
            let error = match pool.get().await {
                Ok(connection) => match connection.simple_query(sql).await {
                    Ok(_) => {
                        done += 1;
                        None
                    }
                    Err(error) => {
                        pool.note_error(&error);
                        let code = error.code().map_or("none", |code| code.code());
                        Some(code.to_owned())
                    }
                },
                Err(Error::Backend(_)) => Some("dial".to_owned()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(error) = error {
                *failed.lock().expect("no panic").entry(error).or_default() += 1;
            }
            sleep(Duration::from_millis(5)).await;
        }
        done
    });
    let done = join_all(users).await.into_iter().sum();
    (done, failed.into_inner().expect("no panic"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bouncer_without_room_for_more_clients_is_used_with_the_connections_there_are() {
    let settings = [("max_client_conn", "12"), ("default_pool_size", "5")];
    let (_postgres, bouncer) = bouncer(&settings).await;
    let pool = Autotuned::new(inner(&bouncer, 50)).expect("valid settings");
    pool.prewarm(4).await.expect("there is room");
    let own = pool.snapshot().size();
    assert_eq!(own, 4);
    let mut others = Vec::new();
    let full = loop {
        match connect(&bouncer).await {
            Ok(other) => others.push(other),
            Err(error) => break error,
        }
    };
    assert_eq!(full.code().map(|code| code.code()), Some("08P01"));

    let (done, failed) = load(&pool, "SELECT 1", 6 * SECOND).await;
    assert_eq!(failovers(&pool), 0, "{:?}", pool.decisions());
    assert_eq!(pool.snapshot().size(), own, "none of its own was closed");
    assert!(done > 1_000, "{done} done, {failed:?}");
    // One at once, and then after a second, two, four.
    let dials: usize = failed.values().sum();
    assert!(dials <= 8, "{failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_the_bouncer_kept_waiting_for_too_long_is_no_failover() {
    let settings = [("default_pool_size", "2"), ("query_wait_timeout", "1")];
    let (_postgres, bouncer) = bouncer(&settings).await;
    let builder = Autotuned::builder(inner(&bouncer, 50)).bounds(8..=50);
    let pool = builder.build().expect("valid settings");
    let (done, failed) = load(&pool, "SELECT pg_sleep(0.6)", 10 * SECOND).await;
    assert!(failed.contains_key("08P01"), "{failed:?}");
    assert_eq!(failovers(&pool), 0, "{:?}", pool.decisions());
    assert!(done > 0, "{failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_of_another_server_connection_is_no_failover() {
    let (_postgres, bouncer) = bouncer(&[("default_pool_size", "2")]).await;
    let pool = Autotuned::new(inner(&bouncer, 16)).expect("valid settings");
    let connection = pool.get().await.expect("it opens");
    let statement = connection.prepare("SELECT $1::int4").await;
    let statement = statement.expect("it is prepared");
    // One client keeps the server connection that knows the statement, and another program prepares
    // statements of the same names on the second.
    let keeper = connect(&bouncer).await.expect("it accepts");
    keeper.batch_execute("BEGIN").await.expect("it begins");
    let other = connect(&bouncer).await.expect("it accepts");
    for number in 0..40 {
        let prepare = format!("PREPARE s{number} AS SELECT 1");
        other.batch_execute(&prepare).await.expect("it is prepared");
    }
    let error = connection
        .query(&statement, &[&1i32])
        .await
        .expect_err("another statement");
    pool.note_error(&error);
    pool.note_error(&error);
    assert_eq!(failovers(&pool), 0, "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bouncer_by_session_serves_as_many_as_it_has_server_connections() {
    let settings = [("pool_mode", "session"), ("default_pool_size", "4")];
    let (_postgres, bouncer) = bouncer(&settings).await;
    let pool = Autotuned::new(inner(&bouncer, 4)).expect("valid settings");
    let (done, failed) = load(&pool, "SELECT pg_sleep(0.01)", 4 * SECOND).await;
    assert!(failed.is_empty(), "{failed:?}");
    assert!(done > 500, "{done}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bouncer_that_is_started_again_is_dialled_anew() {
    let (_postgres, mut bouncer) = bouncer(&[]).await;
    let pool = Autotuned::new(inner(&bouncer, 16)).expect("valid settings");
    let (done, failed) = load(&pool, "SELECT 1", SECOND).await;
    assert!(failed.is_empty() && done > 0, "{failed:?}");
    bouncer.kill();
    let failed = match pool.get().await {
        Ok(connection) => connection.simple_query("SELECT 1").await.is_err(),
        Err(_) => true,
    };
    assert!(failed, "there is nothing to dial");
    bouncer.restart().await.expect("PgBouncer starts");
    let start = Instant::now();
    while pool.get().await.is_err() {
        assert!(start.elapsed() < SECOND, "{:?}", pool.verdict());
        sleep(Duration::from_millis(10)).await;
    }
    let (done, failed) = load(&pool, "SELECT 1", 2 * SECOND).await;
    assert!(failed.is_empty(), "{failed:?}");
    assert!(done > 500, "{done}");
}
