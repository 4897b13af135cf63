//! `WebSockets` that stay open beside the requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

use crate::fleet::Balancer;

/// Open sockets; they close when this is dropped.
pub(crate) struct Sockets {
    tasks: JoinSet<()>,
    open: Arc<AtomicUsize>,
    balancer: Arc<Balancer>,
}

/// How often each socket sends and waits for the echo.
const PING: Duration = Duration::from_secs(10);

/// How many open at the same time.
const OPENING: usize = 50;

impl Sockets {
    pub(crate) fn new(balancer: Arc<Balancer>) -> Self {
        Self {
            tasks: JoinSet::new(),
            open: Arc::default(),
            balancer,
        }
    }

    /// Sockets whose last echo came.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Opens more until there are `count`, fifty at a time; they are never fewer than before.
    pub(crate) async fn grow(&mut self, count: usize) {
        while self.tasks.try_join_next().is_some() {}
        for index in self.tasks.len()..count {
            let (balancer, open) = (Arc::clone(&self.balancer), Arc::clone(&self.open));
            self.tasks.spawn(async move {
                if let Err(error) = hold(&balancer, &open).await {
                    let _: tokio_tungstenite::tungstenite::Error = error;
                }
            });
            if index % OPENING == 0 {
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Counts an open socket.
struct Open<'a>(&'a AtomicUsize);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

async fn hold(
    balancer: &Balancer,
    open: &AtomicUsize,
) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    let Some(pod) = balancer.next() else {
        return Ok(());
    };
    let stream = tokio::net::TcpStream::connect(pod).await?;
    let (mut socket, _) = client_async(format!("ws://{pod}/socket"), stream).await?;
    open.fetch_add(1, Relaxed);
    let _open = Open(open);
    let mut tick = interval(PING);
    loop {
        tick.tick().await;
        socket.send(Message::text("ping")).await?;
        match socket.next().await {
            Some(echo) => echo?,
            None => return Ok(()),
        };
    }
}
