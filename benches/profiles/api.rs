//! The API of another service, which pods call beside their requests.

use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use tokio::time::{Instant, sleep};

use crate::profile::Outbound;

/// The API of another service: a bucket of a minute's calls that fills again within a minute, and
/// so many calls at once.
pub(crate) struct Api {
    pub(crate) url: String,
    pub(crate) seen: Arc<Seen>,
}

pub(crate) struct Seen {
    grants: Outbound,
    state: Mutex<Ledger>,
}

#[derive(Debug)]
struct Ledger {
    since: Instant,
    left: f64,
    read: Instant,
    at_once: usize,
    served: u64,
    refused_late: u64,
}

/// What the API did since a run began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calls {
    pub(crate) served: u64,
    /// Refused after the first minute.
    pub(crate) refused_late: u64,
    pub(crate) elapsed: Duration,
}

impl Api {
    pub(crate) async fn start(grants: Outbound) -> Result<Self, Box<dyn Error>> {
        let seen = Arc::new(Seen {
            grants,
            state: Mutex::new(Ledger::new(&grants)),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/", listener.local_addr()?);
        let app = Router::new()
            .route("/", get(call))
            .with_state(Arc::clone(&seen));
        tokio::spawn(axum::serve(listener, app).into_future());
        Ok(Self { url, seen })
    }
}

impl Ledger {
    fn new(grants: &Outbound) -> Self {
        let now = Instant::now();
        Self {
            since: now,
            left: grants.per_minute as f64,
            read: now,
            at_once: 0,
            served: 0,
            refused_late: 0,
        }
    }
}

impl Seen {
    /// Begins a run: all calls are granted again.
    pub(crate) fn restart(&self) {
        *self.state() = Ledger::new(&self.grants);
    }

    pub(crate) fn calls(&self) -> Calls {
        let state = self.state();
        Calls {
            served: state.served,
            refused_late: state.refused_late,
            elapsed: state.since.elapsed(),
        }
    }

    fn state(&self) -> MutexGuard<'_, Ledger> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After how long to call again, if the call is refused.
    fn admit(&self) -> Result<(), f64> {
        let per_second = self.grants.per_minute as f64 / 60.0;
        let mut state = self.state();
        let now = Instant::now();
        let more = (now - state.read).as_secs_f64() * per_second;
        state.left = (state.left + more).min(self.grants.per_minute as f64);
        state.read = now;
        if state.left >= 1.0 && state.at_once < self.grants.at_once {
            state.left -= 1.0;
            state.at_once += 1;
            state.served += 1;
            return Ok(());
        }
        if state.since.elapsed() > Duration::from_secs(60) {
            state.refused_late += 1;
        }
        Err(((1.0 - state.left) / per_second).max(1.0).ceil())
    }
}

async fn call(State(api): State<Arc<Seen>>) -> Response {
    if let Err(after) = api.admit() {
        return (
            StatusCode::TOO_MANY_REQUESTS,
            [(RETRY_AFTER, after.to_string())],
        )
            .into_response();
    }
    let running = Running(api);
    sleep(Duration::from_secs_f64(running.0.grants.call_ms / 1e3)).await;
    StatusCode::OK.into_response()
}

/// A call that is under way, also when its client has gone.
struct Running(Arc<Seen>);

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.at_once = state.at_once.saturating_sub(1);
    }
}
