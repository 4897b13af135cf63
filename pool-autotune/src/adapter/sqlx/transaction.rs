//! Transactions that own their checkout.

use std::fmt;
use std::future::Future;
use std::ops::{Deref, DerefMut};

use super::super::TransactionManager;
use super::sqlx::Error;
use super::sqlx::database::Database;
use super::sqlx::pool::Pool;
use crate::{Autotuned, Checkout};

impl<DB: Database> Autotuned<Pool<DB>> {
    /// Checks a connection out and begins a transaction on it.
    ///
    /// ```no_run
    /// # use sqlx_0_9 as sqlx;
    /// # async fn pay(pool: pool_autotune::Autotuned<sqlx::PgPool>) -> Result<(), sqlx::Error> {
    /// let mut transaction = pool.begin().await?;
    /// sqlx::query("UPDATE account SET balance = balance - 1").execute(&mut *transaction).await?;
    /// transaction.commit().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`get`](Self::get), as bare sqlx would have said it, and those of `BEGIN`.
    ///
    /// # Cancel safety
    ///
    /// Like [`get`](Self::get).
    #[track_caller]
    pub fn begin(
        &self,
    ) -> impl Future<Output = Result<Transaction<DB>, Error>> + Send + use<'_, DB> {
        let checkout = self.get();
        async move {
            let mut checkout = checkout.await?;
            DB::TransactionManager::begin(&mut checkout, None).await?;
            Ok(Transaction {
                checkout,
                is_open: true,
            })
        }
    }
}

/// A transaction on a connection of a tuned pool; derefs to the connection.
///
/// Owns its connection, so it can be kept and moved to another task. Dropping it rolls back. For a
/// savepoint, call `sqlx::Connection::begin` on the connection.
#[must_use = "dropping a transaction rolls it back"]
pub struct Transaction<DB: Database> {
    checkout: Checkout<Pool<DB>>,
    is_open: bool,
}

impl<DB: Database> Transaction<DB> {
    /// Commits, and puts the connection back.
    ///
    /// # Errors
    ///
    /// Those of `COMMIT`.
    pub async fn commit(mut self) -> Result<(), Error> {
        DB::TransactionManager::commit(&mut self.checkout).await?;
        self.is_open = false;
        Ok(())
    }

    /// Rolls back, and puts the connection back.
    ///
    /// # Errors
    ///
    /// Those of `ROLLBACK`.
    pub async fn rollback(mut self) -> Result<(), Error> {
        DB::TransactionManager::rollback(&mut self.checkout).await?;
        self.is_open = false;
        Ok(())
    }
}

impl<DB: Database> Drop for Transaction<DB> {
    fn drop(&mut self) {
        if self.is_open {
            // Done before the connection is put back.
            DB::TransactionManager::start_rollback(&mut self.checkout);
        }
    }
}

impl<DB: Database> Deref for Transaction<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        &self.checkout
    }
}

impl<DB: Database> DerefMut for Transaction<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        &mut self.checkout
    }
}

impl<DB: Database> fmt::Debug for Transaction<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("checkout", &self.checkout)
            .field("is_open", &self.is_open)
            .finish()
    }
}
