//! [sqlx](https://docs.rs/sqlx) pools, with any database.
//!
//! Hand the pool itself to [`Autotuned::new`](crate::Autotuned::new), and check connections out
//! through it only. `max_connections` is the most connections it may ever have; the wait timeout of
//! the gate is its `acquire_timeout`. Leave `min_connections` at 0, and switch `idle_timeout` and
//! `max_lifetime` off where one connection more than the limit would hurt: sqlx opens and ages
//! connections in a task that knows nothing of the gate.
//!
//! ```no_run
//! use pool_autotune::Autotuned;
//! use sqlx::postgres::PgPoolOptions;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let postgres = PgPoolOptions::new().max_connections(50).connect_lazy("postgres:///orders")?;
//! let pool = Autotuned::new(postgres)?;
//! let mut connection = pool.get().await?;
//! sqlx::query("SELECT 1").execute(&mut **connection).await?;
//! # Ok(())
//! # }
//! ```
//!
//! sqlx puts a connection back in a task of its own, after a ping; its permit goes with it, so the
//! next checkout finds it idle.

use std::iter;
use std::time::Duration;

use sqlx::pool::{Pool, PoolConnection};
use sqlx::{Database, Error};
use tokio::time::Instant;

use super::{Adapter, Checked, PutBack};

impl<DB: Database> Adapter for Pool<DB> {
    type Connection = PoolConnection<DB>;
    type Error = Error;

    fn max_size(&self) -> usize {
        self.options().get_max_connections() as usize
    }

    fn size(&self) -> usize {
        Self::size(self) as usize
    }

    async fn checkout(&self) -> Result<Checked<PoolConnection<DB>>, Error> {
        // sqlx does not say which it did. Without an idle one it can only open one.
        let opens = self.num_idle() == 0;
        let connection = self.acquire().await?;
        Ok(if opens {
            Checked::Opened(connection)
        } else {
            Checked::Reused(connection)
        })
    }

    fn put_back(&self, mut connection: PoolConnection<DB>) -> PutBack {
        // What its `Drop` would spawn.
        PutBack::Later(Box::pin(connection.return_to_pool()))
    }

    fn discard(&self, connection: PoolConnection<DB>, _before: Instant) {
        drop(connection.detach());
    }

    fn close_idle(&self, count: usize) -> usize {
        // A detached connection is closed by its drop; `close` would have to be awaited.
        let surplus = iter::from_fn(|| self.try_acquire()).take(count);
        surplus.map(|connection| drop(connection.detach())).count()
    }

    fn wait_timeout(&self) -> Option<Duration> {
        Some(self.options().get_acquire_timeout())
    }
}
