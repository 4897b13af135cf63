//! [sqlx](https://docs.rs/sqlx) pools, with any database, version 0.8.
//!
//! Pass the pool itself to [`Autotuned::new`](crate::Autotuned::new), and check connections out
//! through it only. `max_connections` is the most connections it may ever have; the wait timeout of
//! the gate is its `acquire_timeout`. `min_connections` has to be 0, or the tuned pool is not built:
//! sqlx would reopen in a task of its own what the tuner closes. Switch its `idle_timeout` off for
//! [`Builder::idle_timeout`](crate::Builder::idle_timeout). Its `max_lifetime` stays, since it tells no
//! ages.
//!
//! ```no_run
//! # use sqlx_0_8 as sqlx;
//! use pool_autotune::Autotuned;
//! use sqlx::postgres::PgPoolOptions;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let postgres = PgPoolOptions::new().max_connections(50).connect_lazy("postgres:///orders")?;
//! let pool = Autotuned::new(postgres)?;
//! sqlx::query("SELECT 1").execute(&pool).await?;
//! let mut transaction = pool.begin().await?;
//! sqlx::query("UPDATE orders SET paid = true").execute(&mut *transaction).await?;
//! transaction.commit().await?;
//! let mut connection = pool.get().await?;
//! sqlx::query("SELECT 1").execute(&mut **connection).await?;
//! # Ok(())
//! # }
//! ```
//!
//! `sqlx::Acquire` cannot be implemented for `&Autotuned`: its `begin` has to return sqlx's own
//! `Transaction`, which has no room for the permit. What asks for it takes a connection that was
//! checked out: `sqlx::migrate!().run(&mut **pool.get().await?)` instead of `.run(&pool)`.
//!
//! Sea-orm takes a pool by value and has no hook before a query, so its pool cannot be tuned; a clone of it
//! can be [`Observed`](crate::Observed).
//!
//! `PgListener::connect_with` takes the pool itself: give it [`Autotuned::inner`](crate::Autotuned::inner),
//! its connections are told apart from those of the gate; or a pool of its own.
//!
//! sqlx puts a connection back in a task of its own, after a ping; its permit goes with it, so the
//! next checkout finds it idle. [`Connection::close_on_drop`] closes it instead, and its permit is
//! returned when the socket is closed.

use ::sqlx_0_8 as sqlx;
use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use sqlx::pool::Pool;
use sqlx::{Database, Describe, Either, Error, Execute, Executor, TransactionManager};

use crate::Autotuned;

#[allow(clippy::duplicate_mod, reason = "one source for each version of sqlx")]
#[path = "sqlx/mod.rs"]
mod shared;

pub use self::shared::{Connection, Transaction};

/// Runs a query on a connection that is checked out for it, like `&Pool` does. A stream of rows keeps
/// its connection until it ends or is dropped.
///
/// `sqlx::Acquire` is not implemented, because a `sqlx::Transaction` has no room for the permit: call
/// [`Autotuned::begin`](Autotuned::begin), or pass `&mut **checkout` where `Acquire` is asked for.
impl<'p, DB: Database> Executor<'p> for &'_ Autotuned<Pool<DB>>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    type Database = DB;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<DB::QueryResult, DB::Row>, Error>>
    where
        E: 'q + Execute<'q, DB>,
    {
        shared::executor::fetch_many(self.clone(), query)
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<DB::Row>, Error>>
    where
        E: 'q + Execute<'q, DB>,
    {
        let pool = self.clone();
        Box::pin(async move { (**pool.get().await?).fetch_optional(query).await })
    }

    fn prepare_with<'e, 'q: 'e>(
        self,
        sql: &'q str,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, Result<DB::Statement<'q>, Error>> {
        let pool = self.clone();
        Box::pin(async move { (**pool.get().await?).prepare_with(sql, parameters).await })
    }

    fn describe<'e, 'q: 'e>(self, sql: &'q str) -> BoxFuture<'e, Result<Describe<DB>, Error>> {
        let pool = self.clone();
        Box::pin(async move { (**pool.get().await?).describe(sql).await })
    }
}
