//! A pool in memory, and managers that count every connection they open and close.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fmt::Debug;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use pool_autotune::Autotuned;
use pool_autotune::adapter::{Adapter, Checked, PutBack};
use tokio::time::Instant;

/// A pool in memory: opening a connection takes `dial`.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    max_size: usize,
    dial: Duration,
    refusing: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    state: Arc<Mutex<MemoryState>>,
}

#[derive(Debug, Default)]
struct MemoryState {
    idle: Vec<usize>,
    /// When each was opened.
    born: Vec<Instant>,
    opened: usize,
    closed: usize,
    dialing: usize,
    peak_dialing: usize,
}

impl Memory {
    pub(crate) fn new(max_size: usize, dial: Duration) -> Self {
        Self {
            max_size,
            dial,
            refusing: Arc::default(),
            refused: Arc::default(),
            state: Arc::default(),
        }
    }

    /// How old a connection is.
    pub(crate) fn age(&self, id: usize) -> Duration {
        self.state.lock().unwrap().born[id - 1].elapsed()
    }

    pub(crate) fn opened(&self) -> usize {
        self.state.lock().unwrap().opened
    }

    /// Dials that were refused.
    pub(crate) fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }

    /// From now on refuses to open connections, or not.
    pub(crate) fn refuse(&self, refuse: bool) {
        self.refusing.store(refuse, Ordering::SeqCst);
    }

    pub(crate) fn peak_dialing(&self) -> usize {
        self.state.lock().unwrap().peak_dialing
    }
}

impl Adapter for Memory {
    type Connection = MemoryConnection;
    type Error = std::io::Error;

    fn max_size(&self) -> usize {
        self.max_size
    }

    fn size(&self) -> usize {
        let state = self.state.lock().unwrap();
        state.opened - state.closed
    }

    async fn checkout(&self) -> Result<Checked<MemoryConnection>, std::io::Error> {
        let connection = |id| MemoryConnection {
            id,
            state: Arc::clone(&self.state),
        };
        let idle = self.state.lock().unwrap().idle.pop();
        if let Some(id) = idle {
            return Ok(Checked::reused(connection(id)));
        }
        let dial = Dial::begin(&self.state);
        tokio::time::sleep(self.dial).await;
        drop(dial);
        if self.refusing.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        let mut state = self.state.lock().unwrap();
        state.opened += 1;
        state.born.push(Instant::now());
        Ok(Checked::opened(connection(state.opened)))
    }

    fn close_idle(&self, count: usize) -> PutBack {
        let mut state = self.state.lock().unwrap();
        let surplus = state.idle.len().min(count);
        state.idle.drain(..surplus);
        state.closed += surplus;
        PutBack::Done
    }

    fn knows_ages(&self) -> bool {
        true
    }

    fn close_aged(&self, is_due: &mut dyn FnMut(Instant) -> bool) -> PutBack {
        let mut state = self.state.lock().unwrap();
        let MemoryState { idle, born, .. } = &mut *state;
        let before = idle.len();
        idle.retain(|&id| !is_due(born[id - 1]));
        let closed = before - idle.len();
        state.closed += closed;
        PutBack::Done
    }
}

#[derive(Debug)]
pub(crate) struct MemoryConnection {
    pub(crate) id: usize,
    state: Arc<Mutex<MemoryState>>,
}

impl Drop for MemoryConnection {
    fn drop(&mut self) {
        self.state.lock().unwrap().idle.push(self.id);
    }
}

struct Dial<'a>(&'a Mutex<MemoryState>);

impl<'a> Dial<'a> {
    fn begin(state: &'a Mutex<MemoryState>) -> Self {
        let mut locked = state.lock().unwrap();
        locked.dialing += 1;
        locked.peak_dialing = locked.peak_dialing.max(locked.dialing);
        drop(locked);
        Self(state)
    }
}

impl Drop for Dial<'_> {
    fn drop(&mut self) {
        self.0.lock().unwrap().dialing -= 1;
    }
}

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

/// bb8 over SQLite in memory.
#[derive(Debug)]
pub(crate) struct SqliteManager;

impl bb8::ManageConnection for SqliteManager {
    type Connection = rusqlite::Connection;
    type Error = rusqlite::Error;

    async fn connect(&self) -> Result<rusqlite::Connection, rusqlite::Error> {
        // As a server would answer: not at once.
        tokio::task::yield_now().await;
        rusqlite::Connection::open_in_memory()
    }

    async fn is_valid(&self, connection: &mut rusqlite::Connection) -> Result<(), rusqlite::Error> {
        tokio::task::yield_now().await;
        connection.query_row("SELECT 1", [], |_| Ok(()))
    }

    fn has_broken(&self, _: &mut rusqlite::Connection) -> bool {
        false
    }
}

/// The same numbers every time.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        // Knuth's MMIX constants.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}
