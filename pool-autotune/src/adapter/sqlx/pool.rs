//! The pool as an adapter.

use std::iter;
use std::time::Duration;

use tokio::time::Instant;

use super::Connection;
use super::sqlx::pool::{Pool, PoolConnection};
use super::sqlx::{ConnectOptions, Connection as _, Database, Error};
use crate::adapter::{Adapter, Checked, PutBack};

impl<DB: Database> Adapter for Pool<DB> {
    type Connection = Connection<DB>;
    type Error = Error;

    fn max_size(&self) -> usize {
        self.options().get_max_connections() as usize
    }

    fn size(&self) -> usize {
        Self::size(self) as usize
    }

    fn idle(&self) -> Option<usize> {
        // sqlx counts a connection that is taken before it has counted it as idle, so for a moment there
        // may be fewer than none.
        let idle = self.num_idle();
        Some(if idle > self.max_size() { 0 } else { idle })
    }

    async fn checkout(&self) -> Result<Checked<Connection<DB>>, Error> {
        // sqlx does not say which it did. Without an idle one it can only open one.
        let opens = self.num_idle() == 0;
        let connection = Connection {
            pooled: self.acquire().await?,
            close: false,
        };
        Ok(if opens {
            Checked::opened(connection)
        } else {
            Checked::reused(connection)
        })
    }

    async fn checkout_idle(&self) -> Result<Option<Checked<Connection<DB>>>, Error> {
        // `acquire` would replace a dead one at once. (sqlx calls no `before_acquire` here.)
        while let Some(mut pooled) = self.try_acquire() {
            if !self.options().get_test_before_acquire() || pooled.ping().await.is_ok() {
                let close = false;
                return Ok(Some(Checked::reused(Connection { pooled, close })));
            }
            // A connection that cannot be closed in good order is closed by its drop.
            let _ = pooled.close().await;
        }
        Ok(None)
    }

    fn put_back(&self, connection: &mut Option<Connection<DB>>) -> PutBack {
        let Some(mut connection) = connection.take() else {
            return PutBack::Done;
        };
        if connection.close {
            return close(connection);
        }
        // What its `Drop` would spawn.
        PutBack::Later(Box::pin(connection.pooled.return_to_pool()))
    }

    fn discard(&self, connection: Connection<DB>, _before: Instant) -> PutBack {
        close(connection)
    }

    fn check(&self) -> Result<(), String> {
        match self.options().get_min_connections() {
            0 => Ok(()),
            min => Err(format!(
                "min_connections is {min}: sqlx would reopen what the tuner closes; set it to 0, and \
                 use `Builder::keep_open`"
            )),
        }
    }

    /// sqlx goes on dialling where it is refused, where the server is full or starting.
    async fn why_not(&self) -> Option<Error> {
        let options = self.connect_options();
        match options.connect().await {
            Ok(connection) => {
                // A connection that cannot be closed in good order is closed by its drop.
                let _ = connection.close().await;
                None
            }
            Err(error) => Some(error),
        }
    }

    fn is_closed(&self) -> bool {
        Self::is_closed(self)
    }

    fn close_idle(&self, count: usize) -> PutBack {
        let surplus = iter::from_fn(|| self.try_acquire()).take(count);
        let closing: Vec<_> = surplus.map(PoolConnection::close).collect();
        if closing.is_empty() {
            return PutBack::Done;
        }
        PutBack::Later(Box::pin(async move {
            for closed in closing {
                // A connection that cannot be closed in good order is closed by its drop.
                let _ = closed.await;
            }
        }))
    }

    fn wait_timeout(&self) -> Option<Duration> {
        Some(self.options().get_acquire_timeout())
    }
}

/// Says goodbye to the server; sqlx keeps the place of the connection until then.
fn close<DB: Database>(connection: Connection<DB>) -> PutBack {
    PutBack::Later(Box::pin(async move {
        // A connection that cannot be closed in good order is closed by its drop.
        let _ = connection.pooled.close().await;
    }))
}
