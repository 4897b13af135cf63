use std::time::Duration;

use futures_util::TryStreamExt;
use pool_autotune::Autotuned;
use private_servers::Postgres;

use super::sqlx;
use super::sqlx::postgres::{PgPool, PgPoolOptions};
use super::sqlx::{Connection, Executor, QueryBuilder, Row};

async fn start() -> (Postgres, Autotuned<PgPool>) {
    let postgres = Postgres::start().await.expect("Postgres starts");
    let options = PgPoolOptions::new().max_connections(2);
    let inner = options.connect_lazy(&postgres.url()).expect("a valid url");
    let pool = Autotuned::builder(inner)
        .wait_timeout(Duration::from_millis(200))
        .build()
        .expect("valid settings");
    pool.execute("CREATE TABLE item (id int PRIMARY KEY)")
        .await
        .expect("it is executed");
    (postgres, pool)
}

async fn count(pool: &Autotuned<PgPool>) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT count(*) FROM item")
        .fetch_one(pool)
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_run_on_the_pool_as_they_are() -> Result<(), sqlx::Error> {
    let (_postgres, pool) = start().await;
    let done = sqlx::query("INSERT INTO item SELECT generate_series(1, $1)")
        .bind(500)
        .execute(&pool)
        .await?;
    assert_eq!(done.rows_affected(), 500);
    let mut builder = QueryBuilder::new("INSERT INTO item ");
    builder.push_values(501..=520, |mut row, id: i32| {
        row.push_bind(id);
    });
    builder.build().execute(&pool).await?;
    assert_eq!(count(&pool).await?, 520);
    let all = sqlx::query("SELECT id FROM item").fetch_all(&pool).await?;
    assert_eq!(all.len(), 520);
    let none = sqlx::query("SELECT id FROM item WHERE id = $1").bind(-1);
    assert!(none.fetch_optional(&pool).await?.is_none());
    let wrong = sqlx::query("SELECT nothing").execute(&pool).await;
    assert!(matches!(wrong, Err(sqlx::Error::Database(_))));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_rows_keeps_its_connection_until_it_is_dropped() -> Result<(), sqlx::Error> {
    let (_postgres, pool) = start().await;
    sqlx::query("INSERT INTO item SELECT generate_series(1, 1000)")
        .execute(&pool)
        .await?;
    let in_order = "SELECT id FROM item ORDER BY id";
    {
        let mut rows = sqlx::query(in_order).fetch(&pool);
        let first = rows.try_next().await?.expect("a thousand");
        assert_eq!(first.get::<i32, _>(0), 1);
        let mut others = sqlx::query(in_order).fetch(&pool);
        others.try_next().await?;
        let refused = count(&pool).await.expect_err("both are in use");
        assert!(matches!(refused, sqlx::Error::PoolTimedOut), "{refused:?}");
        assert_eq!(rows.try_collect::<Vec<_>>().await?.len(), 999);
        assert_eq!(count(&pool).await?, 1000);
    }
    assert_eq!(count(&pool).await?, 1000);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_owns_its_checkout() -> Result<(), sqlx::Error> {
    let (_postgres, pool) = start().await;
    let insert = |id: i32| sqlx::query("INSERT INTO item VALUES ($1)").bind(id);

    let mut transaction = pool.begin().await?;
    insert(1).execute(&mut *transaction).await?;
    assert_eq!(count(&pool).await?, 0, "not yet");
    // In another task, with a savepoint that is given up.
    let elsewhere = tokio::spawn(async move {
        let mut savepoint = transaction.begin().await?;
        insert(2).execute(&mut *savepoint).await?;
        savepoint.rollback().await?;
        transaction.commit().await
    });
    elsewhere.await.expect("no panic")?;
    assert_eq!(count(&pool).await?, 1);

    let mut rolled_back = pool.begin().await?;
    insert(3).execute(&mut *rolled_back).await?;
    rolled_back.rollback().await?;
    let mut dropped = pool.begin().await?;
    insert(4).execute(&mut *dropped).await?;
    drop(dropped);
    let mut failed = pool.begin().await?;
    assert!(insert(1).execute(&mut *failed).await.is_err());
    assert!(insert(5).execute(&mut *failed).await.is_err());
    drop(failed);
    assert_eq!(count(&pool).await?, 1);
    assert_eq!(pool.snapshot().size(), 2);

    assert!(pool.drain(Duration::from_secs(5)).await);
    assert!(matches!(pool.begin().await, Err(sqlx::Error::PoolClosed)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_asks_for_a_connection_of_its_own_gets_one_that_is_checked_out() {
    let (_postgres, pool) = start().await;
    async fn through_acquire<'a>(
        connection: impl sqlx::Acquire<'a, Database = sqlx::Postgres>,
    ) -> Result<i32, sqlx::Error> {
        let mut connection = connection.acquire().await?;
        sqlx::query_scalar("SELECT 7")
            .fetch_one(&mut *connection)
            .await
    }
    let mut checkout = pool.get().await.expect("free");
    assert_eq!(
        through_acquire(&mut **checkout).await.expect("it answers"),
        7
    );
}
