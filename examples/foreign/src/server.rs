//! The server and its Postgres, and what is seen of them from outside.

use std::{
    net::{SocketAddr, TcpListener},
    process::Stdio,
    time::Duration,
};

use private_servers::Postgres;
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, interval, sleep, timeout},
};
use tokio_postgres::NoTls;

use crate::{Error, load};

/// A program that serves, with a private Postgres; both end when this is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    postgres: Postgres,
    process: Child,
    _config: TempDir,
}

impl Server {
    pub(crate) async fn start(program: &str) -> Result<Self, Error> {
        let postgres = Postgres::start_with(&[("max_connections", "120")]).await?;
        let config = tempfile::tempdir()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut process = Command::new(program)
            .args(["start", "--host", "127.0.0.1", "--port"])
            .arg(address.port().to_string())
            .env("ATUIN_DB_URI", postgres.url())
            .env("ATUIN_OPEN_REGISTRATION", "true")
            .env("ATUIN_CONFIG_DIR", config.path())
            .env("RUST_LOG", "off")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot start {program}: {error}"))?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while !load::is_healthy(address).await {
            if let Some(status) = process.try_wait()? {
                return Err(format!("{program} ended: {status}").into());
            }
            if Instant::now() > deadline {
                return Err(format!("{program} is not healthy after 30 seconds").into());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(Self {
            address,
            postgres,
            process,
            _config: config,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks for its health, and counts its connections by the server, ten times a second.
    pub(crate) fn watch(&self) -> Watch {
        let (stop, mut stopped) = oneshot::channel();
        let (address, url) = (self.address, self.postgres.url());
        let seen = tokio::spawn(async move {
            let (database, connection) = tokio_postgres::connect(&url, NoTls).await?;
            tokio::spawn(connection);
            let (mut checks, mut failed, mut most) = (0, 0, 0);
            let mut ticks = interval(Duration::from_millis(100));
            loop {
                tokio::select! {
                    _ = &mut stopped => return Ok(((checks, failed), most)),
                    _ = ticks.tick() => {}
                }
                let healthy = timeout(Duration::from_secs(1), load::is_healthy(address)).await;
                checks += 1;
                failed += usize::from(healthy != Ok(true));
                let row = database.query_one(CONNECTIONS, &[]).await?;
                most = most.max(row.get(0));
            }
        });
        Watch { stop, seen }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Before its database.
        let _ = self.process.start_kill();
    }
}

/// All except the one that runs the query.
const CONNECTIONS: &str = "SELECT count(*) FROM pg_stat_activity \
                           WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";

type Seen = ((usize, usize), i64);

/// What is seen until it is finished.
pub(crate) struct Watch {
    stop: oneshot::Sender<()>,
    seen: JoinHandle<Result<Seen, tokio_postgres::Error>>,
}

impl Watch {
    /// Health checks and those that failed, and the most connections.
    pub(crate) async fn finish(self) -> Result<Seen, Error> {
        drop(self.stop);
        Ok(self.seen.await??)
    }
}
