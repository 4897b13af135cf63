//! [bb8](https://docs.rs/bb8) pools, with any connection manager.
//!
//! bb8 cannot be resized, opens connections in tasks of its own (which go on when the checkout that
//! needed them is gone), and lets a checkout wait out its whole timeout when the server refuses
//! connections. So [`Bb8`] leaves it the part it does well, keeping and ageing idle connections:
//! a connection is opened within the checkout that needs it, then added to the pool; a surplus one
//! is reported broken, which is how bb8 closes it.
//!
//! ```no_run
//! use bb8_postgres::PostgresConnectionManager;
//! use pool_autotune::{Autotuned, adapter::bb8::Bb8};
//! use tokio_postgres::NoTls;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let manager = PostgresConnectionManager::new_from_stringlike("host=/run/postgresql", NoTls)?;
//! let pool = Autotuned::new(Bb8::new(bb8::Pool::builder().max_size(50), manager))?;
//! let connection = pool.get().await?;
//! connection.execute("SELECT 1", &[]).await?;
//! # Ok(())
//! # }
//! ```

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::iter;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bb8::{AddError, Builder, ManageConnection, Pool, PooledConnection};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::{Adapter, Checked, PutBack};
use crate::sync::lock;

/// A bb8 pool that can be tuned.
#[derive(Clone)]
pub struct Bb8<M: ManageConnection> {
    pool: Pool<Managed<M>>,
    manager: Arc<M>,
    test_on_checkout: bool,
    /// Held while looking for an idle connection and taking it, so that bb8 is never asked for one
    /// that it does not have.
    taking: Arc<Mutex<()>>,
    /// Connections that are broken from birth and in use.
    used_once: Arc<AtomicUsize>,
}

impl<M: ManageConnection> Bb8<M> {
    /// Builds the pool. `max_size` is the most connections it may ever have; the wait timeout of
    /// the gate is its `connection_timeout`. Lifetime and idle timeout had better be those of the
    /// [`Builder`](crate::Builder), and `min_idle` has to be. Order and customizer are bb8's; `retry_connection` and `test_on_check_out` are switched off, the last in
    /// favour of [`test_on_checkout`](Self::test_on_checkout).
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime: bb8 spawns a task.
    #[must_use]
    pub fn new(builder: Builder<Managed<M>>, manager: M) -> Self {
        let manager = Arc::new(manager);
        let pool = builder
            .retry_connection(false)
            .test_on_check_out(false)
            .build_unchecked(Managed(Arc::clone(&manager)));
        Self {
            pool,
            manager,
            test_on_checkout: true,
            taking: Arc::default(),
            used_once: Arc::default(),
        }
    }

    /// Sets whether an idle connection is tested before it is handed out. Defaults to `true`, as
    /// in bb8.
    #[must_use]
    pub fn test_on_checkout(mut self, test: bool) -> Self {
        self.test_on_checkout = test;
        self
    }

    fn count_idle(&self) -> usize {
        self.pool.state().idle_connections as usize
    }

    /// Takes an idle connection, if there is one.
    fn take_idle(&self) -> Option<Connection<M>> {
        let _taking = lock(&self.taking);
        if self.count_idle() == 0 {
            None
        } else {
            take(&self.pool)
        }
    }

    /// Opens a connection and makes it the pool's. One that is broken from birth, as managers for
    /// connections to be used once have them, is used once.
    async fn open(&self) -> Result<Connection<M>, M::Error> {
        loop {
            let mut opened = match DIALLING.scope((), self.pool.dedicated_connection()).await {
                Ok(opened) => opened,
                Err(DialError::Manager(error)) => return Err(error),
                // Only outside of the scope.
                Err(DialError::NotAsked) => continue,
            };
            loop {
                opened = {
                    let _taking = lock(&self.taking);
                    match self.pool.add(opened) {
                        Ok(()) => match take(&self.pool) {
                            Some(connection) => return Ok(connection),
                            None => break,
                        },
                        Err(AddError::NoCapacity(opened)) => opened,
                        Err(AddError::Broken(opened)) => {
                            let once = Once::new(opened, &self.used_once);
                            return Ok(Connection(Kept::Once(once)));
                        }
                    }
                };
                // bb8 counts a dial of its own that is about to be refused.
                tokio::task::yield_now().await;
            }
            // Never in a loop without a pause.
            tokio::task::yield_now().await;
        }
    }
}

/// Takes an idle connection that is there. (bb8 may have closed it for its age since: then it begins
/// to open another, which [`Managed`] refuses.)
fn take<M: ManageConnection>(pool: &Pool<Managed<M>>) -> Option<Connection<M>> {
    let mut get = pin!(pool.get_owned());
    match get.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(pooled)) => Some(Connection(Kept::Pooled(pooled))),
        Poll::Ready(Err(_)) | Poll::Pending => None,
    }
}

impl<M> Adapter for Bb8<M>
where
    M: ManageConnection<Error: StdError + Sync>,
{
    type Connection = Connection<M>;
    type Error = M::Error;

    fn max_size(&self) -> usize {
        self.pool.config().max_size as usize
    }

    fn size(&self) -> usize {
        self.pool.state().connections as usize + self.used_once.load(Relaxed)
    }

    fn idle(&self) -> Option<usize> {
        Some(self.count_idle())
    }

    async fn checkout(&self) -> Result<Checked<Connection<M>>, M::Error> {
        match self.checkout_idle().await? {
            Some(checked) => Ok(checked),
            None => self.open().await.map(Checked::opened),
        }
    }

    async fn checkout_idle(&self) -> Result<Option<Checked<Connection<M>>>, M::Error> {
        while let Some(mut connection) = self.take_idle() {
            if !self.test_on_checkout || self.manager.is_valid(&mut connection).await.is_ok() {
                return Ok(Some(Checked::reused(connection)));
            }
            connection.close();
        }
        Ok(None)
    }

    fn discard(&self, connection: Connection<M>, _before: Instant) -> PutBack {
        connection.close();
        PutBack::Done
    }

    fn close_idle(&self, count: usize) -> PutBack {
        // bb8's `get` starts a timer. Without a runtime, the tuner's task will do it.
        if Handle::try_current().is_ok() {
            let surplus = iter::from_fn(|| self.take_idle()).take(count);
            surplus.for_each(Connection::close);
        }
        PutBack::Done
    }

    fn knows_ages(&self) -> bool {
        true
    }

    fn close_aged(&self, is_due: &mut dyn FnMut(Instant) -> bool) -> PutBack {
        if Handle::try_current().is_err() {
            return PutBack::Done;
        }
        // All are taken before the first goes back, and no checkout looks meanwhile.
        let _taking = lock(&self.taking);
        let take_next = || (self.count_idle() > 0).then(|| take(&self.pool)).flatten();
        let idle: Vec<_> = iter::from_fn(take_next).collect();
        for mut connection in idle {
            if is_due(connection.member().born) {
                connection.close();
            }
        }
        PutBack::Done
    }

    fn check(&self) -> Result<(), String> {
        match self.pool.config().min_idle {
            None | Some(0) => Ok(()),
            Some(min) => Err(format!(
                "min_idle is {min}: bb8 would reopen what the tuner closes; leave it out, and use \
                 `Builder::keep_open`"
            )),
        }
    }

    fn is_multiplexed(&self) -> bool {
        std::any::type_name::<M::Connection>().contains("Multiplexed")
    }

    fn wait_timeout(&self) -> Option<Duration> {
        Some(self.pool.config().connection_timeout)
    }
}

impl<M: ManageConnection> fmt::Debug for Bb8<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bb8")
            .field("state", &self.pool.state())
            .finish_non_exhaustive()
    }
}

/// A connection checked out of a [`Bb8`] pool; derefs to that of its manager.
pub struct Connection<M: ManageConnection>(Kept<M>);

enum Kept<M: ManageConnection> {
    Pooled(PooledConnection<'static, Managed<M>>),
    /// Closed when it is dropped.
    Once(Once<M::Connection>),
}

/// A connection that is broken from birth.
struct Once<C> {
    member: Member<C>,
    count: Arc<AtomicUsize>,
}

impl<C> Once<C> {
    fn new(member: Member<C>, count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        let count = Arc::clone(count);
        Self { member, count }
    }
}

impl<C> Drop for Once<C> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
    }
}

impl<M: ManageConnection> Connection<M> {
    /// Closes the connection instead of putting it back.
    fn close(mut self) {
        self.member().surplus = true;
    }

    fn member(&mut self) -> &mut Member<M::Connection> {
        match &mut self.0 {
            Kept::Pooled(pooled) => pooled,
            Kept::Once(once) => &mut once.member,
        }
    }
}

impl<M: ManageConnection> Deref for Connection<M> {
    type Target = M::Connection;

    fn deref(&self) -> &Self::Target {
        match &self.0 {
            Kept::Pooled(pooled) => &pooled.connection,
            Kept::Once(once) => &once.member.connection,
        }
    }
}

impl<M: ManageConnection> DerefMut for Connection<M> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.member().connection
    }
}

impl<M: ManageConnection<Connection: fmt::Debug>> fmt::Debug for Connection<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// A manager that opens connections only when [`Bb8`] asks for one, and closes the surplus.
#[derive(Debug)]
pub struct Managed<M>(Arc<M>);

impl<M: ManageConnection> ManageConnection for Managed<M> {
    type Connection = Member<M::Connection>;
    type Error = DialError<M::Error>;

    async fn connect(&self) -> Result<Self::Connection, Self::Error> {
        // bb8 asks from a task of its own, which is not in the scope.
        if DIALLING.try_with(|_| ()).is_err() {
            return Err(DialError::NotAsked);
        }
        let connection = self.0.connect().await.map_err(DialError::Manager)?;
        Ok(Member {
            connection,
            surplus: false,
            born: Instant::now(),
        })
    }

    async fn is_valid(&self, member: &mut Self::Connection) -> Result<(), Self::Error> {
        self.0
            .is_valid(&mut member.connection)
            .await
            .map_err(DialError::Manager)
    }

    fn has_broken(&self, member: &mut Self::Connection) -> bool {
        member.surplus || self.0.has_broken(&mut member.connection)
    }
}

/// A connection of the pool, as its customizer is given it; derefs to that of the manager.
#[derive(Debug)]
pub struct Member<C> {
    connection: C,
    surplus: bool,
    born: Instant,
}

impl<C> Deref for Member<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.connection
    }
}

impl<C> DerefMut for Member<C> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.connection
    }
}

/// Why [`Managed`] opened no connection. Seen by an `error_sink` only.
#[derive(Debug)]
#[non_exhaustive]
pub enum DialError<E> {
    /// The manager could not open it.
    Manager(E),
    /// bb8 wanted to open one in the background, and no checkout needs it.
    NotAsked,
}

tokio::task_local! {
    /// Present while a checkout opens a connection.
    static DIALLING: ();
}
