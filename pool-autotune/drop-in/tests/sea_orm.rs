//! Sea-orm takes a pool of sqlx by value and has no hook before a query, so its pool cannot be tuned. A
//! clone of it can be observed.

use pool_autotune::Observed;
use private_servers::Postgres;
use sea_orm::entity::prelude::*;
use sea_orm::{ActiveValue::Set, ConnectionTrait, Schema, SqlxPostgresConnector, TransactionTrait};
use sqlx::postgres::PgPoolOptions;

mod account {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "account")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i32,
        pub balance: i32,
    }

    #[derive(Clone, Copy, Debug, DeriveRelation, EnumIter)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

#[tokio::test]
async fn a_pool_of_sea_orm_is_observed() -> Result<(), Box<dyn std::error::Error>> {
    let postgres = Postgres::start().await?;
    let options = PgPoolOptions::new().max_connections(3);
    let pool = options.connect_lazy(&postgres.url())?;
    let observed = Observed::new(pool.clone())?;
    let database = SqlxPostgresConnector::from_sqlx_postgres_pool(pool);

    let table =
        Schema::new(database.get_database_backend()).create_table_from_entity(account::Entity);
    database.execute(&table).await?;
    let first = account::ActiveModel {
        id: Set(1),
        balance: Set(100),
    };
    first.insert(&database).await?;
    let transactions = [
        database.begin().await?,
        database.begin().await?,
        database.begin().await?,
    ];
    for transaction in &transactions {
        account::Entity::find_by_id(1).one(transaction).await?;
    }
    // All are in use, and what the pool lacks is not seen.
    observed.sample();
    let report = observed.report();
    assert_eq!((report.peak(), report.max_size()), (3, 3));
    assert!(report.is_bound(), "{report}");
    assert_eq!(report.wanted(), None);

    for transaction in transactions {
        transaction.commit().await?;
    }
    assert_eq!(account::Entity::find().count(&database).await?, 1);
    Ok(())
}
