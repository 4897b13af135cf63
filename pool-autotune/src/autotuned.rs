use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::ops::RangeInclusive;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tower_capacity::Pressure;
use tower_capacity::gate::Ask;

use crate::adapter::{Adapter, PutBack};
use crate::opening::deadline;
use crate::shared::{DONE_WITHIN, Shared};
use crate::tuner::{Decision, Recording, Verdict};
use crate::{
    Bounds, BoundsError, BuildError, Builder, Checkout, Error, Mode, PoolSnapshot, Report,
};

/// A connection pool that sizes itself.
///
/// Checkouts line up at one gate, first come first served, and hold a permit for as long as they
/// hold the connection; how many permits there are is decided by a [`Tuner`](crate::tuner::Tuner).
/// The pool behind is built at its hard maximum and is never resized: connections above the limit
/// are closed as they come back.
///
/// Cloning is cheap and gives another handle to the same pool.
///
/// Differs from `bb8::Pool` and `deadpool::managed::Pool` in that the number of connections follows
/// demand, in that the line is fair and bounded, and in that wait and use times are measured
/// exactly: a checkout that is cancelled while it waits is counted, not lost.
pub struct Autotuned<P: Adapter> {
    shared: Arc<Shared<P>>,
}

impl<P: Adapter> Autotuned<P> {
    /// Tunes a pool with the defaults of the [`Builder`].
    ///
    /// # Errors
    ///
    /// Fails outside of a tokio runtime, if the pool was built for no connections at all, if its own
    /// wait timeout is zero, or if its settings work against the tuner
    /// ([`Adapter::check`](crate::adapter::Adapter::check)).
    pub fn new(pool: P) -> Result<Self, BuildError> {
        Self::builder(pool).build()
    }

    /// Sets bounds, mode, name and times before tuning a pool.
    #[must_use = "nothing is tuned until `build` is called"]
    pub fn builder(pool: P) -> Builder<P> {
        Builder::new(pool)
    }

    #[cfg(feature = "otel")]
    pub(crate) fn downgrade(&self) -> std::sync::Weak<Shared<P>> {
        Arc::downgrade(&self.shared)
    }

    #[cfg(feature = "otel")]
    pub(crate) fn shared(&self) -> &Shared<P> {
        &self.shared
    }

    pub(crate) fn from_shared(shared: Arc<Shared<P>>) -> Self {
        Self { shared }
    }

    /// Checks a connection out: an idle one, or a new one while the limit allows, waiting in line
    /// for at most the wait timeout.
    ///
    /// The connection goes back when the [`Checkout`] is dropped.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives its place in line, its permit or its connection back. A wait that
    /// ends so counts as cancelled.
    #[track_caller]
    pub fn get(
        &self,
    ) -> impl Future<Output = Result<Checkout<P>, Error<P::Error>>> + Send + use<'_, P> {
        let call_site = Location::caller();
        self.shared.checkout(call_site, Ask::new)
    }

    /// Checks a connection out for something that matters more or less than the rest, or that has
    /// less time. Otherwise as [`get`](Self::get).
    ///
    /// A checkout that would have to wait is refused at once, with [`Error::Shed`], if its turn is
    /// expected to come after the time it has left.
    ///
    /// ```
    /// use std::time::Duration;
    /// use pool_autotune::{Ask, Priority};
    /// # use pool_autotune::{Autotuned, adapter::Adapter};
    ///
    /// # async fn check<P: Adapter>(pool: Autotuned<P>) -> Result<(), Box<dyn std::error::Error>> {
    /// // A health check, which also may use what `Builder::reserved` keeps.
    /// let connection = pool.get_with(Ask::new().priority(Priority::Critical)).await?;
    /// // A request that its caller gives up in 80 ms.
    /// let connection = pool.get_with(Ask::new().time_left(Duration::from_millis(80))).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`Error`].
    ///
    /// # Cancel safety
    ///
    /// As [`get`](Self::get).
    #[track_caller]
    pub fn get_with(
        &self,
        ask: Ask,
    ) -> impl Future<Output = Result<Checkout<P>, Error<P::Error>>> + Send + use<'_, P> {
        let call_site = Location::caller();
        self.shared.checkout(call_site, move || ask)
    }

    /// Like [`get`](Self::get), except that the future owns the pool and can be spawned.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    ///
    /// # Cancel safety
    ///
    /// Like [`get`](Self::get).
    #[track_caller]
    pub fn get_owned(
        &self,
    ) -> impl Future<Output = Result<Checkout<P>, Error<P::Error>>> + Send + use<P> {
        let (shared, call_site) = (Arc::clone(&self.shared), Location::caller());
        async move { shared.checkout(call_site, Ask::new).await }
    }

    /// Opens connections in advance, within the dial budget, until there are as many or as many as the
    /// target; returns when all are open.
    ///
    /// Meant for a service that reports ready only then.
    ///
    /// # Errors
    ///
    /// See [`Error`]: the first that one of them failed with. Those that opened stay open.
    ///
    /// # Cancel safety
    ///
    /// What was begun goes on.
    pub async fn prewarm(&self, connections: usize) -> Result<(), Error<P::Error>> {
        let target = self.shared.target.load(Ordering::Relaxed);
        self.shared.warm(connections.min(target)).await
    }

    /// The state of the pool now.
    #[must_use]
    pub fn snapshot(&self) -> PoolSnapshot {
        self.shared.snapshot()
    }

    /// The last 256 decisions worth telling, oldest first: every resize, and every change of the
    /// reason not to.
    #[must_use]
    pub fn decisions(&self) -> Vec<Decision> {
        self.shared.control().decisions.iter().cloned().collect()
    }

    /// What the tuner was given in the last ten minutes, from which its decisions can be made again.
    #[must_use]
    pub fn recording(&self) -> Recording {
        self.shared.control().recording.clone()
    }

    /// One paragraph for an operator: the size the pool should have, why, and what it would take.
    /// Meant for [`Mode::Recommend`], true in both.
    #[must_use]
    pub fn report(&self) -> Report {
        Report::new(&self.snapshot(), &self.verdict(), self.shared.peak_demand())
    }

    /// What is the matter with the pool, if anything.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.shared.verdict(Instant::now())
    }

    /// How hard the pool is pressed: ½ when all connections are in use, 1 when as many checkouts
    /// wait as connections are allowed, so that the next waits for about one use time.
    ///
    /// Checkouts that wait do not count while they make the pool open more connections. The
    /// [demand](Pressure::demand_ratio) also has the checkouts that were refused or timed out in the
    /// last five to ten seconds.
    ///
    /// On the scale of `tower_capacity::Limiter::pressure`.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        self.shared.pressure()
    }

    /// Changes the bounds. The target moves into them at once; connections above it are closed as
    /// they come back.
    ///
    /// # Errors
    ///
    /// Bounds that cannot be, or in [`Mode::Enforce`] a maximum above that of the pool behind.
    /// Nothing is changed then.
    pub fn set_bounds(&self, bounds: RangeInclusive<usize>) -> Result<(), BoundsError> {
        let mut bounds = Bounds::new(bounds)?;
        if self.shared.mode == Mode::Enforce {
            bounds = bounds.within(self.shared.adapter.max_size())?;
        }
        self.shared.set_bounds(bounds);
        Ok(())
    }

    /// Closes every connection opened until now, the idle ones at once and those in use as they come
    /// back. In [`Mode::Recommend`] none is closed.
    ///
    /// To be called when the server has changed under connections that look alive: a primary that
    /// became read-only (SQLSTATE 25006), an address that now leads elsewhere. Connections that
    /// *are* dead need no call: the pool behind finds them out. New ones are opened within the dial
    /// budget, and the tuner forgets what it learned.
    pub fn failover(&self) {
        self.shared.failover();
    }

    /// Says what a query failed with, so that the pool can tell a server that has changed from one
    /// that is merely slow.
    ///
    /// Looks for a SQLSTATE in the error and its sources (feature `postgres` or `sqlx`), and acts as
    /// [`note_sqlstate`](Self::note_sqlstate). Errors of opening connections are looked at anyway.
    pub fn note_error(&self, error: &(dyn StdError + 'static)) {
        self.shared.note_error(error);
    }

    /// Says which SQLSTATE a query failed with.
    ///
    /// - `25006` (read-only transaction), `57P02`, `57P03` (crash, starting up): the server under the
    ///   connections has changed, so [`failover`](Self::failover), once in ten seconds at most.
    /// - `57P01` (ended by an operator or by a shutdown), `08000`, `08001`, `08003`, `08006`, `08007`
    ///   (connection lost): a failover too, if it is told twice within a second. Once is that
    ///   connection's affair.
    /// - `53300` (too many connections): no more are opened for a while, as after any failed dial.
    ///
    /// Others say nothing about the pool, nor does `08P01` (protocol violation), which `PgBouncer`
    /// sends when it has no place for another client.
    pub fn note_sqlstate(&self, code: &str) {
        self.shared.note_sqlstate(code);
    }

    /// Refuses every checkout from now on. Those that wait and those checked out are not affected.
    /// See [`drain`](Self::drain) to wait for them.
    pub fn close(&self) {
        self.shared.gate.close();
    }

    /// Closes the pool, waits until every checkout is back, for at most `within`, and closes the idle
    /// connections. Returns whether all of them came back.
    ///
    /// # Cancel safety
    ///
    /// The pool stays closed; the idle connections may still be open.
    pub async fn drain(&self, within: Duration) -> bool {
        self.close();
        let end = deadline(Instant::now(), within);
        let is_empty = timeout_at(end, self.shared.gate.emptied()).await.is_ok();
        if let PutBack::Later(closing) = self.shared.adapter.close_idle(usize::MAX) {
            let _ = timeout(DONE_WITHIN, closing).await;
        }
        is_empty
    }

    /// Whether checkouts are refused because the pool was closed: not ready any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.gate.is_closed() || self.shared.adapter.is_closed()
    }

    /// The pool behind. A checkout made there is invisible to the gate.
    #[must_use]
    pub fn inner(&self) -> &P {
        &self.shared.adapter
    }
}

impl<P: Adapter> Clone for Autotuned<P> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<P: Adapter> fmt::Debug for Autotuned<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Autotuned")
            .field("snapshot", &self.snapshot())
            .finish_non_exhaustive()
    }
}
