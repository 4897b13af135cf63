//! The trap: a database that gets slower with every connection, to which a pool that waits should
//! not give more. On a real Postgres, with a row that every transaction updates.

use std::time::Duration;

use deadpool_postgres::{Manager, Pool};
use futures_util::future::join_all;
use pool_autotune::tuner::{Cause, Reason, Verdict};
use pool_autotune::{Autotuned, Error};
use private_servers::Postgres;
use tokio::time::{sleep, timeout};
use tokio_postgres::NoTls;

/// Two experiments up and two down take about 30 s, with a disk of a few commits a second a minute and
/// a half; on a busy machine some have no clear result, and are made again.
const BOUNDED: Duration = Duration::from_secs(600);

/// Holds the lock of the row for a millisecond.
const ADD_ONE: &str = "BEGIN; UPDATE counter SET n = n + 1; SELECT pg_sleep(0.001); COMMIT";

async fn add_one(pool: &Autotuned<Pool>) {
    match pool.get().await {
        Ok(connection) => connection.batch_execute(ADD_ONE).await.expect("it adds"),
        // At the knee a line that does not get shorter is shed from.
        Err(Error::Shed(_)) => {}
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_row_ends_at_fewer_connections_than_it_started_with_and_the_report_says_why() {
    let postgres = Postgres::start().await.unwrap();
    let manager = Manager::new(postgres.url().parse().unwrap(), NoTls);
    let inner = Pool::builder(manager).max_size(40).build().unwrap();
    let builder = Autotuned::builder(inner).wait_timeout(Duration::from_secs(30));
    let pool = builder.build().unwrap();
    let create = "CREATE TABLE counter (n bigint); INSERT INTO counter VALUES (0)";
    let connection = pool.get().await.unwrap();
    connection.batch_execute(create).await.unwrap();
    drop(connection);
    let start = pool.snapshot().target();

    // A calm while, in which all connections are opened.
    let calm = async {
        for _ in 0..100 {
            join_all((0..start).map(|_| add_one(&pool))).await;
            sleep(Duration::from_millis(20)).await;
        }
    };
    calm.await;
    assert_eq!(pool.snapshot().target(), start, "{:?}", pool.decisions());

    // All that wait could run at once, as far as the pool can tell.
    let callers = (0..64).map(|_| async {
        while pool.snapshot().target() >= start {
            add_one(&pool).await;
        }
    });
    let smaller = timeout(BOUNDED, join_all(callers)).await;
    let decisions = pool.decisions();
    assert!(smaller.is_ok(), "not within ten minutes: {decisions:?}");
    let tried = decisions.iter().any(|decision| decision.to() > start);
    // Where the machine is so slow that growth cannot be judged, a probe downwards shows it.
    let failed = decisions
        .iter()
        .any(|decision| matches!(decision.reason(), Reason::NoGain | Reason::Useless));
    assert!(tried && failed, "{decisions:?}");
    assert_eq!(
        pool.verdict(),
        Verdict::AtKnee(Cause::Lock),
        "{decisions:?}"
    );
    let report = pool.report().to_string();
    assert!(
        report.contains("at the knee of the database (lock)"),
        "{report}"
    );
}
