use std::path::Path;
use std::time::Duration;

use pool_autotune::Autotuned;
use private_servers::Postgres;

use super::sqlx;
use super::sqlx::migrate::Migrator;
use super::sqlx::{Connection, PgPool, QueryBuilder};

type Tested = Result<(), Box<dyn std::error::Error>>;

#[tokio::test]
async fn migrations_run_on_a_checkout() -> Tested {
    let postgres = Postgres::start().await?;
    let pool = Autotuned::new(PgPool::connect_lazy(&postgres.url())?)?;
    let migrator = Migrator::new(Path::new("./migrations")).await?;
    migrator.run(&mut **pool.get().await?).await?;
    migrator.run(&mut **pool.get().await?).await?;

    let mut builder = QueryBuilder::new("INSERT INTO account ");
    builder.push_values([(2, 10), (3, 20)], |mut row, (id, balance)| {
        row.push_bind(id).push_bind(balance);
    });
    builder.build().execute(&pool).await?;

    let mut transaction = pool.begin().await?;
    sqlx::query("UPDATE account SET balance = 0")
        .execute(&mut *transaction)
        .await?;
    let mut savepoint = transaction.begin().await?;
    sqlx::query("DELETE FROM account")
        .execute(&mut *savepoint)
        .await?;
    savepoint.rollback().await?;
    transaction.commit().await?;

    let row: (i64, i64) = sqlx::query_as("SELECT count(*), sum(balance) FROM account")
        .fetch_one(&pool)
        .await?;
    assert_eq!(row, (3, 0));
    assert!(pool.drain(Duration::from_secs(5)).await, "all came back");
    Ok(())
}
