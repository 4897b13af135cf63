//! A wire to Redis that can be cut or made long.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, sleep_until},
};

/// Passes bytes between clients and a server, late or not at all by its settings.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    /// Milliseconds that bytes take; [`SILENT`] for ever.
    delay: Arc<AtomicU64>,
}

const SILENT: u64 = u64::MAX;

impl Proxy {
    pub(crate) async fn start(server: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let delay = Arc::new(AtomicU64::new(0));
        let shared = Arc::clone(&delay);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let delay = Arc::clone(&shared);
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
                        return;
                    };
                    // A wire adds nothing of its own.
                    let _ = (client.set_nodelay(true), server.set_nodelay(true));
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    tokio::join!(
                        pass(from_client, to_server, Arc::clone(&delay)),
                        pass(from_server, to_client, delay),
                    );
                });
            }
        });
        Ok(Self { address, delay })
    }

    /// Loses everything from now on, without closing anything.
    pub(crate) fn silence(&self) {
        self.delay.store(SILENT, Relaxed);
    }

    /// Takes so long each way.
    pub(crate) fn slow_down(&self, delay: Duration) {
        self.delay.store(delay.as_millis() as u64, Relaxed);
    }

    pub(crate) fn heal(&self) {
        self.delay.store(0, Relaxed);
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    delay: Arc<AtomicU64>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let arrives = Instant::now();
        let millis = delay.load(Relaxed);
        if millis == SILENT {
            // What is lost is lost; the connection stays.
            loop {
                sleep(Duration::from_secs(1)).await;
                if delay.load(Relaxed) != SILENT {
                    return;
                }
            }
        }
        if millis > 0 {
            sleep_until(arrives + Duration::from_millis(millis)).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
