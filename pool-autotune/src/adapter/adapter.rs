//! What the tuned pool asks of the pool behind it.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;

/// A connection pool that can be tuned. See the [module docs](super) for how to write one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a connection pool that pool-autotune can tune",
    note = "enable the feature of your pool: `deadpool` for deadpool 0.13, `bb8` for bb8 0.9, `sqlx-0_8` or `sqlx-0_9` for sqlx of that version",
    note = "pool-autotune = {{ version = \"..\", features = [\"deadpool\"] }}"
)]
pub trait Adapter: Send + Sync + 'static {
    /// A connection checked out.
    type Connection: Send + 'static;

    /// Why opening or checking a connection failed.
    type Error: StdError + Send + Sync + 'static;

    /// The most connections the pool can hold: what it was built with.
    fn max_size(&self) -> usize;

    /// Connections that exist, idle or not.
    fn size(&self) -> usize;

    /// Connections that are idle, if the pool can tell. With it, connections that others take from
    /// the pool behind are told from those of the tuned pool. Defaults to `None`.
    fn idle(&self) -> Option<usize> {
        None
    }

    /// Reuses an idle connection, or opens one. Never called more often at once than
    /// [`max_size`](Self::max_size) allows.
    fn checkout(
        &self,
    ) -> impl Future<Output = Result<Checked<Self::Connection>, Self::Error>> + Send;

    /// Reuses an idle connection, and opens none, where a connection may be opened only with a right to it
    /// (feature `fleet`). Returns `None` if there is none that is good.
    ///
    /// The default is [`checkout`](Self::checkout), for pools that cannot keep from opening one: if it was
    /// opened, it is counted then.
    fn checkout_idle(
        &self,
    ) -> impl Future<Output = Result<Option<Checked<Self::Connection>>, Self::Error>> + Send {
        async { self.checkout().await.map(Some) }
    }

    /// When this idle connection was checked out, if the pool has just read the system's clock itself:
    /// saves reading it again. Defaults to `None`.
    #[inline]
    fn handed_out(connection: &Self::Connection) -> Option<Instant> {
        let _ = connection;
        None
    }

    /// Puts a connection back. The default drops it, for pools that have the connection back then.
    ///
    /// There is one; what is left of it is dropped. (Passed in place, since moving it costs more than a
    /// lock.)
    #[inline]
    fn put_back(&self, connection: &mut Option<Self::Connection>) -> PutBack {
        *connection = None;
        PutBack::Done
    }

    /// Closes a connection that comes back, and may close idle ones opened before `before` as well.
    /// The default puts it back and closes all that are idle.
    fn discard(&self, connection: Self::Connection, before: Instant) -> PutBack {
        let _ = before;
        // Whether it is back at once or not: what is idle by then is closed.
        drop(connection);
        self.close_idle(usize::MAX)
    }

    /// Fails with the reason if the pool has settings that work against the tuner, such as
    /// connections that it opens by itself. Called once, when the tuned pool is built.
    ///
    /// # Errors
    ///
    /// Names the setting and what to do instead.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// Whether the pool was closed, so that a failed [`checkout`](Self::checkout) means that.
    fn is_closed(&self) -> bool {
        false
    }

    /// Finds out why a connection does not open, by opening and closing one, for a pool that tries again
    /// by itself and does not say why. Called while a checkout waits for long; returns `None` if
    /// there is nothing wrong. Defaults to `None`.
    fn why_not(&self) -> impl Future<Output = Option<Self::Error>> + Send {
        std::future::ready(None)
    }

    /// Closes up to `count` idle connections, best the longest idle.
    fn close_idle(&self, count: usize) -> PutBack;

    /// Whether [`close_aged`](Self::close_aged) knows how old connections are. Defaults to `false`.
    fn knows_ages(&self) -> bool {
        false
    }

    /// Closes the idle connections for which `is_due` returns `true` when called with the time at which
    /// they were opened. Defaults to none.
    fn close_aged(&self, is_due: &mut dyn FnMut(Instant) -> bool) -> PutBack {
        let _ = is_due;
        PutBack::Done
    }

    /// Whether one connection serves many tasks at once, so that handing each out to a single task
    /// wastes it: as redis-rs' multiplexed connections, which pools of Redis hand out nevertheless.
    ///
    /// A pool that needs more than one of those is told
    /// [`Verdict::UseMultiplexed`](crate::tuner::Verdict::UseMultiplexed). Defaults to looking for
    /// `Multiplexed` in the name of the connection's type, and of what it wraps.
    fn is_multiplexed(&self) -> bool {
        std::any::type_name::<Self::Connection>().contains("Multiplexed")
    }

    /// How long the pool itself is configured to let a checkout wait, if it is.
    fn wait_timeout(&self) -> Option<Duration> {
        None
    }
}

/// A connection that was checked out of a pool.
#[derive(Clone, Copy, Debug)]
pub struct Checked<C> {
    pub(crate) connection: C,
    pub(crate) is_new: bool,
}

impl<C> Checked<C> {
    /// It was opened for this checkout.
    #[inline]
    pub const fn opened(connection: C) -> Self {
        Self {
            connection,
            is_new: true,
        }
    }

    /// It was idle.
    #[inline]
    pub const fn reused(connection: C) -> Self {
        Self {
            connection,
            is_new: false,
        }
    }
}

/// Whether connections are back, or gone.
#[must_use = "the future has to be run"]
#[non_exhaustive]
pub enum PutBack {
    /// They are idle, or closed.
    Done,
    /// They will be when this future is done. Their permits are kept until then, for at most 5 s.
    /// Dropped before that, it should close the connections.
    Later(Pin<Box<dyn Future<Output = ()> + Send>>),
}

impl fmt::Debug for PutBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "Done",
            Self::Later(_) => "Later",
        })
    }
}
