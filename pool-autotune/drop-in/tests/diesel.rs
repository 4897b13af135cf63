//! diesel-async on a pool that is tuned, through deadpool and through bb8.

use diesel::prelude::*;
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, deadpool};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use pool_autotune::Autotuned;
use pool_autotune::adapter::Adapter;
use pool_autotune::adapter::bb8::Bb8;
use private_servers::Postgres;

type Tested = Result<(), Box<dyn std::error::Error>>;

diesel::table! {
    account (id) {
        id -> Integer,
        balance -> Integer,
    }
}

fn manager(postgres: &Postgres) -> AsyncDieselConnectionManager<AsyncPgConnection> {
    AsyncDieselConnectionManager::new(postgres.url())
}

/// What a service does with a connection: statements, rows, a transaction that commits and one that does not.
async fn spend<C>(connection: &mut C) -> QueryResult<()>
where
    C: AsyncConnection<Backend = diesel::pg::Pg>,
{
    let create = "CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL)";
    diesel::sql_query(create).execute(connection).await?;
    diesel::insert_into(account::table)
        .values((account::id.eq(1), account::balance.eq(100)))
        .execute(connection)
        .await?;
    let less = diesel::update(account::table).set(account::balance.eq(account::balance - 30));
    connection
        .transaction(async |connection| less.execute(connection).await.map(drop))
        .await?;
    let rolled_back: QueryResult<()> = connection
        .transaction(async |connection| {
            diesel::delete(account::table).execute(connection).await?;
            Err(diesel::result::Error::RollbackTransaction)
        })
        .await;
    assert!(rolled_back.is_err());
    let rows: Vec<(i32, i32)> = account::table.load(connection).await?;
    assert_eq!(rows, [(1, 70)]);
    Ok(())
}

#[tokio::test]
async fn diesel_runs_on_a_tuned_pool_of_deadpool() -> Tested {
    let postgres = Postgres::start().await?;
    let inner = deadpool::Pool::builder(manager(&postgres))
        .max_size(4)
        .build()?;
    let pool = Autotuned::new(inner)?;
    spend(&mut *pool.get().await?).await?;
    assert_eq!(pool.snapshot().size(), 1);
    Ok(())
}

#[tokio::test]
async fn diesel_runs_on_a_tuned_pool_of_bb8() -> Tested {
    let postgres = Postgres::start().await?;
    let inner = Bb8::new(bb8::Pool::builder().max_size(4), manager(&postgres));
    assert_eq!(inner.max_size(), 4);
    let pool = Autotuned::new(inner)?;
    spend(&mut *pool.get().await?).await?;
    assert_eq!(pool.snapshot().size(), 1);
    Ok(())
}
