//! Managers that count every connection they open and close.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use pool_autotune::Autotuned;
use pool_autotune::adapter::Adapter;
use tokio::time::Instant;

/// Counts the connections that exist, from the moment one begins to be opened until it is dropped,
/// and at every opening holds the count against what the gate allows.
#[derive(Clone, Default)]
pub(crate) struct Census(Arc<CensusState>);

#[derive(Default)]
struct CensusState {
    open: AtomicUsize,
    peak: AtomicUsize,
    opened: AtomicUsize,
    /// The pool's own count of connections, where they cannot be wrapped.
    size: OnceLock<Box<dyn Fn() -> usize + Send + Sync>>,
    /// Limit in force plus debt, read from the gate.
    allowed: OnceLock<Box<dyn Fn() -> usize + Send + Sync>>,
    violations: Mutex<Vec<String>>,
}

impl Census {
    pub(crate) fn watch<P: Adapter>(&self, pool: &Autotuned<P>) {
        let pool = pool.clone();
        let allowed = Box::new(move || {
            let now = pool.snapshot();
            now.limit().max(now.in_use())
        });
        assert!(self.0.allowed.set(allowed).is_ok(), "watched once");
    }

    pub(crate) fn open(&self) -> usize {
        match self.0.size.get() {
            Some(size) => size(),
            None => self.0.open.load(Ordering::SeqCst),
        }
    }

    /// Counts as the pool does.
    pub(crate) fn trust(&self, size: impl Fn() -> usize + Send + Sync + 'static) {
        assert!(self.0.size.set(Box::new(size)).is_ok(), "trusted once");
    }

    /// A connection was opened, by a pool that counts itself.
    pub(crate) fn opened_one(&self) {
        self.0.opened.fetch_add(1, Ordering::SeqCst);
        self.check(self.open());
    }

    pub(crate) fn peak(&self) -> usize {
        self.0.peak.load(Ordering::SeqCst)
    }

    pub(crate) fn opened(&self) -> usize {
        self.0.opened.load(Ordering::SeqCst)
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.0.violations.lock().unwrap().clone()
    }

    fn begin(&self) -> Resident {
        let open = self.0.open.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.opened.fetch_add(1, Ordering::SeqCst);
        self.check(open);
        Resident(self.clone())
    }

    fn check(&self, open: usize) {
        self.0.peak.fetch_max(open, Ordering::SeqCst);
        if let Some(allowed) = self.0.allowed.get() {
            // Another thread may have lowered the limit a moment ago and be closing what is too
            // many. An opening that should not be is still one when it has finished.
            let patience = Instant::now() + Duration::from_millis(100);
            let excess = || self.open() > allowed();
            while excess() && Instant::now() < patience {
                std::thread::yield_now();
            }
            if excess() {
                let excess = format!("{} open, {} allowed", self.open(), allowed());
                self.0.violations.lock().unwrap().push(excess);
            }
        }
    }
}

struct Resident(Census);

impl Drop for Resident {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A connection in the census.
pub(crate) struct Counted<C> {
    connection: C,
    _resident: Resident,
}

impl<C> Deref for Counted<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.connection
    }
}

impl<C> DerefMut for Counted<C> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.connection
    }
}

/// A manager, of deadpool or bb8, with its connections in the census.
pub(crate) struct Counting<M> {
    pub(crate) manager: M,
    pub(crate) census: Census,
}

impl<M: deadpool::managed::Manager> deadpool::managed::Manager for Counting<M> {
    type Type = Counted<M::Type>;
    type Error = M::Error;

    async fn create(&self) -> Result<Self::Type, Self::Error> {
        let resident = self.census.begin();
        let connection = self.manager.create().await?;
        Ok(Counted {
            connection,
            _resident: resident,
        })
    }

    async fn recycle(
        &self,
        object: &mut Self::Type,
        metrics: &deadpool::managed::Metrics,
    ) -> deadpool::managed::RecycleResult<Self::Error> {
        self.manager.recycle(&mut object.connection, metrics).await
    }

    fn detach(&self, object: &mut Self::Type) {
        self.manager.detach(&mut object.connection);
    }
}

impl<M: bb8::ManageConnection> bb8::ManageConnection for Counting<M> {
    type Connection = Counted<M::Connection>;
    type Error = M::Error;

    async fn connect(&self) -> Result<Self::Connection, Self::Error> {
        let resident = self.census.begin();
        let connection = self.manager.connect().await?;
        Ok(Counted {
            connection,
            _resident: resident,
        })
    }

    async fn is_valid(&self, counted: &mut Self::Connection) -> Result<(), Self::Error> {
        self.manager.is_valid(&mut counted.connection).await
    }

    fn has_broken(&self, counted: &mut Self::Connection) -> bool {
        self.manager.has_broken(&mut counted.connection)
    }
}
