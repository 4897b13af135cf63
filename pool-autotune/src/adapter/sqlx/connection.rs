//! A connection that is checked out.

use std::fmt;
use std::ops::{Deref, DerefMut};

use super::sqlx::Database;
use super::sqlx::pool::PoolConnection;

/// A connection checked out of a sqlx pool; derefs to that of the database.
pub struct Connection<DB: Database> {
    pub(super) pooled: PoolConnection<DB>,
    pub(super) close: bool,
}

impl<DB: Database> Connection<DB> {
    /// Closes the connection when it is dropped, instead of putting it back: to end what was set on
    /// its session.
    pub fn close_on_drop(&mut self) {
        self.close = true;
    }
}

impl<DB: Database> Deref for Connection<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        &self.pooled
    }
}

impl<DB: Database> DerefMut for Connection<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        &mut self.pooled
    }
}

impl<DB: Database> fmt::Debug for Connection<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("close", &self.close)
            .finish_non_exhaustive()
    }
}
