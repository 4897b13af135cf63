//! A pool in memory.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
