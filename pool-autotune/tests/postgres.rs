//! What services do with a connection of tokio-postgres, through deadpool and through bb8.

use bb8_postgres::PostgresConnectionManager;
use deadpool_postgres::{Manager, Pool};
use futures_util::try_join;
use pool_autotune::Autotuned;
use pool_autotune::adapter::bb8::Bb8;
use private_servers::Postgres;
use tokio_postgres::{Client, Config, Error, NoTls};

type Tested = Result<(), Box<dyn std::error::Error>>;

fn config(postgres: &Postgres) -> Config {
    postgres.url().parse().expect("a valid url")
}

async fn count(client: &Client) -> Result<i64, Error> {
    let row = client.query_one("SELECT count(*) FROM item", &[]).await?;
    Ok(row.get(0))
}

/// Three statements that are sent before the first result is there.
async fn pipelines(client: &Client) -> Result<(), Error> {
    let insert = "INSERT INTO item SELECT generate_series($1::int, $1 + 9)";
    let (one, two, three) = try_join!(
        client.execute(insert, &[&0]),
        client.execute(insert, &[&10]),
        count(client)
    )?;
    assert_eq!((one, two, three), (10, 10, 20));
    Ok(())
}

#[tokio::test]
async fn transactions_and_pipelines_of_deadpool_postgres_work_as_before() -> Tested {
    let postgres = Postgres::start().await?;
    let inner = Pool::builder(Manager::new(config(&postgres), NoTls)).max_size(2);
    let pool = Autotuned::new(inner.build()?)?;
    let mut client = pool.get().await?;
    client.batch_execute("CREATE TABLE item (id int)").await?;
    pipelines(&client).await?;

    let mut transaction = client.transaction().await?;
    transaction
        .execute("DELETE FROM item WHERE id < 5", &[])
        .await?;
    let savepoint = transaction.transaction().await?;
    savepoint.execute("DELETE FROM item", &[]).await?;
    savepoint.rollback().await?;
    transaction.commit().await?;
    assert_eq!(count(&client).await?, 15);

    let dropped = client.transaction().await?;
    dropped.execute("DELETE FROM item", &[]).await?;
    drop(dropped);
    // The statement cache of deadpool-postgres.
    let cached = client.prepare_cached("SELECT count(*) FROM item").await?;
    let left: i64 = client.query_one(&cached, &[]).await?.get(0);
    assert_eq!(left, 15);
    Ok(())
}

#[tokio::test]
async fn transactions_and_pipelines_of_bb8_postgres_work_as_before() -> Tested {
    let postgres = Postgres::start().await?;
    let manager = PostgresConnectionManager::new(config(&postgres), NoTls);
    let pool = Autotuned::new(Bb8::new(bb8::Pool::builder().max_size(2), manager))?;
    let mut client = pool.get().await?;
    client.batch_execute("CREATE TABLE item (id int)").await?;
    pipelines(&client).await?;

    let transaction = client.transaction().await?;
    transaction
        .execute("DELETE FROM item WHERE id < 5", &[])
        .await?;
    transaction.commit().await?;
    let dropped = client.transaction().await?;
    dropped.execute("DELETE FROM item", &[]).await?;
    drop(dropped);
    assert_eq!(count(&client).await?, 15);
    Ok(())
}
