//! The processes of a run, what they connect to, and what the server shows of them.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pool_autotune::fleet::{MIGRATION, grants};
use private_servers::{PgBouncer, Postgres};
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, NoTls};

use crate::{Options, TOTAL, Way};

/// What one process did in each half second: queries done, failed, and refused for lack of a place.
type Reports = Arc<Mutex<Vec<(Instant, [u64; 3])>>>;

pub(crate) async fn install(admin: &Client) -> Result<(), tokio_postgres::Error> {
    admin.batch_execute(MIGRATION).await?;
    admin.batch_execute(&grants("app")).await
}

pub(crate) async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// A process, which ends with this.
pub(crate) struct Process {
    child: Child,
    reports: Reports,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) struct Start<'a> {
    pub(crate) options: &'a Options,
    pub(crate) way: Way,
    pub(crate) url: &'a str,
    pub(crate) redis: &'a str,
}

impl Start<'_> {
    pub(crate) fn process(&self, number: u16, late: f64) -> Result<Process, Box<dyn Error>> {
        let options = self.options;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--node", &number.to_string(), "--url", self.url])
            .args(["--only", &self.way.name(), "--redis", self.redis])
            .args(["--scenario", &options.scenario.name()])
            .args(["--seconds", &options.seconds.to_string()])
            .args(["--processes", &options.processes.to_string()])
            .args(["--late", &late.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("the process has no output")?;
        let reports = Reports::default();
        let its = Arc::clone(&reports);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let counts: Vec<u64> = line.split(' ').filter_map(|n| n.parse().ok()).collect();
                if let Ok(counts) = <[u64; 3]>::try_from(counts) {
                    let mut its = its.lock().unwrap_or_else(PoisonError::into_inner);
                    its.push((Instant::now(), counts));
                }
            }
        });
        Ok(Process { child, reports })
    }
}

impl Process {
    pub(crate) fn kill(&mut self) -> std::io::Result<()> {
        self.child.kill()
    }

    /// What it did from one moment to another.
    pub(crate) fn counts(&self, from: Instant, to: Instant) -> [u64; 3] {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let within = reports.iter().filter(|(at, _)| (from..to).contains(at));
        within.fold([0; 3], |sum, (_, counts)| add(sum, *counts))
    }
}

pub(crate) fn add(mut sum: [u64; 3], counts: [u64; 3]) -> [u64; 3] {
    sum.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
    sum
}

/// The most sessions at once, and samples above what is to be shared.
pub(crate) struct Seen {
    pub(crate) most: AtomicUsize,
    pub(crate) over: AtomicU64,
    /// Samples, and the sessions in all of them.
    pub(crate) samples: AtomicU64,
    pub(crate) sessions: AtomicU64,
    /// What is to be shared.
    pub(crate) total: AtomicUsize,
    pub(crate) ends: AtomicBool,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            most: AtomicUsize::new(0),
            over: AtomicU64::new(0),
            samples: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            total: AtomicUsize::new(TOTAL),
            ends: AtomicBool::new(false),
        }
    }
}

/// What the processes of a way connect to.
pub(crate) struct Front {
    _bouncer: Option<PgBouncer>,
    pub(crate) url: String,
    /// The role that its sessions have.
    pub(crate) role: &'static str,
}

impl Front {
    pub(crate) async fn of(way: Way, postgres: &Postgres) -> Result<Self, Box<dyn Error>> {
        if way != Way::Pgbouncer {
            return Ok(Self {
                _bouncer: None,
                url: postgres.url().replace("postgres@", "app@"),
                role: "app",
            });
        }
        let size = TOTAL.to_string();
        let settings = [
            ("default_pool_size", size.as_str()),
            ("max_client_conn", "10000"),
        ];
        let bouncer = PgBouncer::start_with(postgres, &settings).await?;
        Ok(Self {
            url: bouncer.url(),
            _bouncer: Some(bouncer),
            role: "postgres",
        })
    }
}

/// Waits until the server shows nothing of a run any more, and forgets it.
pub(crate) async fn clear(admin: &Client, role: &str) -> Result<(), tokio_postgres::Error> {
    let left =
        "select count(*) from pg_stat_activity where usename = $1 and pid <> pg_backend_pid()
        and backend_type = 'client backend' and application_name <> 'watch'";
    while admin.query_one(left, &[&role]).await?.get::<_, i64>(0) > 0 {
        sleep(Duration::from_millis(50)).await;
    }
    admin
        .batch_execute(
            "delete from pool_autotune.lease; delete from pool_autotune.budget; delete from live",
        )
        .await?;
    Ok(())
}

/// Waits until a Redis grants.
pub(crate) async fn settle(redis: &str, url: &str) -> Result<(), Box<dyn Error>> {
    let client = redis::Client::open(redis)?;
    let budget = pool_autotune::fleet::Budget::redis(client, "bench", url.parse()?);
    let budget = budget.start().await?;
    while budget.snapshot().lease_left().is_none() {
        sleep(Duration::from_millis(50)).await;
    }
    budget.leave(Duration::from_secs(5)).await;
    Ok(())
}

/// Counts the sessions of the processes every 10 ms, whatever happens to the server.
pub(crate) async fn watch(url: String, role: &'static str, seen: Arc<Seen>) {
    while !seen.ends.load(Relaxed) {
        if let Ok(client) = connect(&url).await {
            // It ends with the connection, and begins anew with another.
            let _ = count(&client, role, &seen).await;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

async fn count(
    client: &Client,
    role: &'static str,
    seen: &Seen,
) -> Result<(), tokio_postgres::Error> {
    client
        .batch_execute("set application_name = 'watch'")
        .await?;
    let count = "select count(*) from pg_stat_activity where usename = $1
        and backend_type = 'client backend' and application_name <> 'watch'";
    let count = client.prepare(count).await?;
    let idle = match role {
        // The one that looks on for the runner.
        "postgres" => 1,
        _ => 0,
    };
    while !seen.ends.load(Relaxed) {
        let row = client.query_one(&count, &[&role]).await?;
        let now = (row.get::<_, i64>(0) as usize).saturating_sub(idle);
        seen.most.fetch_max(now, Relaxed);
        let total = seen.total.load(Relaxed);
        seen.over.fetch_add(u64::from(now > total), Relaxed);
        seen.samples.fetch_add(1, Relaxed);
        seen.sessions.fetch_add(now as u64, Relaxed);
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
