//! The private servers, how connections to them are made, and what goes wrong with them.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use deadpool::managed::{Manager, Metrics, RecycleError, RecycleResult};
use private_servers::Postgres;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_postgres::{Client, Config, NoTls};

use crate::Error;
use crate::scenarios::Dial;

pub(crate) type Pool = deadpool::managed::Pool<Dialer>;

/// Rows that callers choose from.
pub(crate) const ROWS: usize = 100;

const PASSWORD: &str = "not a secret";

/// A Postgres, another one to fail over to, and a proxy in front of both.
pub(crate) struct Database {
    postgres: Postgres,
    /// Started when it is first needed.
    other: Option<Postgres>,
    proxy: Proxy,
}

impl Database {
    pub(crate) async fn start() -> Result<Self, Error> {
        let postgres = start().await?;
        let proxy = Proxy::start(postgres.port()).await?;
        Ok(Self {
            postgres,
            other: None,
            proxy,
        })
    }

    /// A manager of connections as a scenario has them.
    pub(crate) fn dialer(&self, dial: Dial) -> Result<Dialer, Error> {
        let mut config: Config = self.postgres.url().parse()?;
        if dial.proxied {
            config = Config::new();
            config.host("127.0.0.1").port(self.proxy.port);
            config.user("postgres").dbname("postgres");
        }
        if dial.scram {
            config.user("app").password(PASSWORD);
        }
        Ok(Dialer {
            config,
            dial,
            dials: Arc::default(),
        })
    }

    async fn admin(&self) -> Result<Client, Error> {
        let admin = connect(&self.postgres.url()).await?;
        // Whatever the server has been told.
        admin
            .batch_execute("SET default_transaction_read_only = off")
            .await?;
        Ok(admin)
    }

    /// Makes a scenario that failed over possible once more.
    pub(crate) async fn reset(&mut self) -> Result<(), Error> {
        if self.postgres.pid().is_none() {
            self.postgres.restart().await?;
        }
        self.proxy.target.store(self.postgres.port(), Relaxed);
        let admin = self.admin().await?;
        // One by one: none of them may be part of a transaction.
        for statement in [
            "ALTER SYSTEM RESET default_transaction_read_only",
            "SELECT pg_reload_conf()",
            "TRUNCATE log",
            "VACUUM items",
            "CHECKPOINT",
        ] {
            admin.batch_execute(statement).await?;
        }
        Ok(())
    }

    /// The server to fail over to.
    pub(crate) async fn prepare_failover(&mut self) -> Result<(), Error> {
        if self.other.is_none() {
            self.other = Some(start().await?);
        }
        Ok(())
    }

    /// Kills the server, and has it back after `time`, the same for every contender.
    pub(crate) async fn restart(&mut self, time: Duration) -> Result<(), Error> {
        let back = Instant::now() + time;
        self.proxy.way.send_replace(Way::Closed);
        self.postgres.restart().await?;
        sleep_until(back).await;
        self.proxy.way.send_replace(Way::Open);
        Ok(())
    }

    pub(crate) async fn fail_over(&self) -> Result<(), Error> {
        let other = self.other.as_ref().ok_or("no server to fail over to")?;
        let admin = self.admin().await?;
        admin
            .batch_execute("ALTER SYSTEM SET default_transaction_read_only = on")
            .await?;
        admin.batch_execute("SELECT pg_reload_conf()").await?;
        self.proxy.target.store(other.port(), Relaxed);
        Ok(())
    }

    pub(crate) fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// Keeps the processors of the database busy for as long.
    pub(crate) async fn hog(&self, sessions: usize, time: Duration) -> Result<(), Error> {
        for _ in 0..sessions {
            let hog = self.admin().await?;
            // Ends by itself, whatever becomes of this program.
            let burn = format!(
                "DO $$ DECLARE stop timestamptz := clock_timestamp() + '{} ms'; BEGIN
                 WHILE clock_timestamp() < stop LOOP END LOOP; END $$",
                time.as_millis()
            );
            tokio::spawn(async move { hog.batch_execute(&burn).await });
        }
        Ok(())
    }
}

async fn start() -> Result<Postgres, Error> {
    // Durable, so that a commit that asks for it pays for it; the others do not ask.
    let settings = [("max_connections", "120"), ("fsync", "on")];
    let postgres = Postgres::start_with(&settings).await?;
    let admin = connect(&postgres.url()).await?;
    admin
        .batch_execute(&format!(
            "CREATE TABLE items (id int PRIMARY KEY, v int) WITH (fillfactor = 50);
             INSERT INTO items SELECT n, 0 FROM generate_series(1, 10000) n;
             CREATE TABLE log (id int);
             ANALYZE items;
             SET password_encryption = 'scram-sha-256';
             CREATE ROLE app LOGIN SUPERUSER PASSWORD '{PASSWORD}'"
        ))
        .await?;
    let file: String = admin.query_one("SHOW hba_file", &[]).await?.get(0);
    admin
        .batch_execute(&format!(
            "COPY (VALUES ('host all postgres 127.0.0.1/32 trust'),
                          ('host all app 127.0.0.1/32 scram-sha-256')) TO '{file}'"
        ))
        .await?;
    admin.batch_execute("SELECT pg_reload_conf()").await?;
    Ok(postgres)
}

async fn connect(url: &str) -> Result<Client, Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Opens connections as a scenario has it.
pub(crate) struct Dialer {
    config: Config,
    dial: Dial,
    pub(crate) dials: Arc<AtomicU64>,
}

impl Manager for Dialer {
    type Type = Client;
    type Error = tokio_postgres::Error;

    async fn create(&self) -> Result<Client, tokio_postgres::Error> {
        self.dials.fetch_add(1, Relaxed);
        if self.dial.takes_ms > 0 {
            sleep(Duration::from_millis(self.dial.takes_ms)).await;
        }
        let (client, connection) = self.config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    async fn recycle(
        &self,
        client: &mut Client,
        metrics: &Metrics,
    ) -> RecycleResult<tokio_postgres::Error> {
        if client.is_closed() {
            return Err(RecycleError::message("closed"));
        }
        let Some(lifetime) = self.dial.lifetime_ms else {
            return Ok(());
        };
        // Up to a fifth more or less, always the same for one connection.
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(metrics.created);
        let part = match self.dial.jitter {
            true => 0.8 + 0.4 * (hash % 1024) as f64 / 1024.0,
            false => 1.0,
        };
        if metrics.age().as_secs_f64() * 1e3 > lifetime as f64 * part {
            return Err(RecycleError::message("too old"));
        }
        Ok(())
    }
}

/// Forwards connections, until it does not.
pub(crate) struct Proxy {
    port: u16,
    /// Where new connections lead.
    target: Arc<AtomicU16>,
    way: Arc<watch::Sender<Way>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Open,
    /// Nothing comes through, and no error either.
    Blocked,
    /// The server is gone.
    Closed,
}

impl Proxy {
    async fn start(target: u16) -> Result<Self, Error> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let proxy = Self {
            port: listener.local_addr()?.port(),
            target: Arc::new(AtomicU16::new(target)),
            way: Arc::new(watch::Sender::new(Way::Open)),
        };
        let (target, way) = (Arc::clone(&proxy.target), Arc::clone(&proxy.way));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let port = target.load(Relaxed);
                tokio::spawn(forward(client, port, way.subscribe()));
            }
        });
        Ok(proxy)
    }

    /// Swallows everything for as long, then resets every connection.
    pub(crate) async fn black_hole(&self, time: Duration) {
        self.way.send_replace(Way::Blocked);
        sleep(time).await;
        self.way.send_replace(Way::Open);
    }
}

async fn forward(mut client: TcpStream, port: u16, mut way: watch::Receiver<Way>) {
    let changed = way.wait_for(|way| *way != Way::Open);
    let through = async {
        let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        copy_bidirectional(&mut client, &mut server).await
    };
    tokio::select! {
        biased;
        _ = changed => {}
        // Either side has ended it, or the server is not there.
        _ = through => return,
    }
    // The server's side is closed; the client's is, too, or hears nothing until the way is open.
    let _ = way.wait_for(|way| *way != Way::Blocked).await;
}
