//! Requests at fixed moments, to the servers in turn, whether or not earlier ones were answered.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::{cli::Problem, node::Status};

/// What became of the requests of one second.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) offered: u64,
    pub(crate) admitted: u64,
    pub(crate) limited: u64,
    /// Neither: errors, other statuses, no answer within two seconds.
    pub(crate) failed: u64,
    latencies: Vec<Duration>,
}

impl Tally {
    /// The latency that 99 of 100 responses stayed within.
    pub(crate) fn p99(&mut self) -> Duration {
        self.latencies.sort_unstable();
        let at = self.latencies.len() * 99 / 100;
        self.latencies.get(at).copied().unwrap_or_default()
    }
}

/// Sends requests until it is dropped.
pub(crate) struct Load {
    client: HttpClient,
    servers: Vec<SocketAddr>,
    tally: Arc<Mutex<Tally>>,
}

type HttpClient = Client<HttpConnector, Empty<Bytes>>;

impl Load {
    pub(crate) fn new(servers: Vec<SocketAddr>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            servers,
            tally: Arc::default(),
        }
    }

    /// Sends `rate` requests a second, spread evenly, until `end`.
    pub(crate) async fn send(&self, rate: u32, end: Instant) -> Result<(), Problem> {
        let uris: Vec<_> = self
            .servers
            .iter()
            .map(|server| {
                format!("http://{server}/")
                    .parse::<Uri>()
                    .map_err(Problem::new)
            })
            .collect::<Result<_, _>>()?;
        let start = Instant::now();
        let mut tick = interval(Duration::from_millis(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut sent = 0u64;
        while Instant::now() < end {
            tick.tick().await;
            let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u64;
            while sent < due {
                let uri = uris[sent as usize % uris.len()].clone();
                tokio::spawn(request(self.client.clone(), uri, Arc::clone(&self.tally)));
                sent += 1;
            }
        }
        Ok(())
    }

    /// What has happened since the last call.
    pub(crate) fn take(&self) -> Tally {
        std::mem::take(&mut *lock(&self.tally))
    }

    /// What the servers report of themselves.
    pub(crate) async fn statuses(&self) -> Result<Vec<Status>, Problem> {
        let mut statuses = Vec::new();
        for server in &self.servers {
            let uri = format!("http://{server}/status")
                .parse()
                .map_err(Problem::new)?;
            let ask = async {
                let response = self.client.get(uri).await.map_err(Problem::new)?;
                let body = response.into_body().collect().await.map_err(Problem::new)?;
                serde_json::from_slice(&body.to_bytes()).map_err(Problem::new)
            };
            let status = timeout(STATUS_WITHIN, ask).await;
            statuses
                .push(status.map_err(|_| {
                    Problem::new(format_args!("server {server} does not answer"))
                })??);
        }
        Ok(statuses)
    }
}

async fn request(client: HttpClient, uri: Uri, tally: Arc<Mutex<Tally>>) {
    let start = Instant::now();
    lock(&tally).offered += 1;
    let answer = timeout(PATIENCE, client.get(uri)).await;
    let took = start.elapsed();
    let mut tally = lock(&tally);
    tally.latencies.push(took);
    match answer {
        Ok(Ok(response)) if response.status() == StatusCode::OK => tally.admitted += 1,
        Ok(Ok(response)) if response.status() == StatusCode::TOO_MANY_REQUESTS => {
            tally.limited += 1;
        }
        _ => tally.failed += 1,
    }
}

fn lock(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    // Nothing panics while it is held.
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For a request; what comes later has failed.
const PATIENCE: Duration = Duration::from_secs(2);

/// A server that has not reported by then is gone, and not merely busy.
const STATUS_WITHIN: Duration = Duration::from_secs(10);
