//! The three runs, and what the server says of them.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pool_autotune::fleet::{MIGRATION, grants};
use private_servers::Postgres;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_postgres::{Client, NoTls};

use crate::{MAX_CONNECTIONS, Options, PROCESSES, WANTED, Way, chart};

/// What happened in one second.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Second {
    /// The most connections at once, by the server's count.
    pub(crate) connections: usize,
    pub(crate) done: u64,
    pub(crate) failed: u64,
}

/// One way, second by second.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) way: Way,
    pub(crate) seconds: Vec<Second>,
}

impl Run {
    pub(crate) fn done(&self) -> u64 {
        self.seconds.iter().map(|second| second.done).sum()
    }

    pub(crate) fn failed(&self) -> u64 {
        self.seconds.iter().map(|second| second.failed).sum()
    }

    pub(crate) fn most(&self) -> usize {
        let connections = self.seconds.iter().map(|second| second.connections);
        connections.max().unwrap_or(0)
    }
}

/// The process that is killed.
const KILLED: usize = 3;

/// When, as a part of the run.
const KILLED_AT: f64 = 0.65;

pub(crate) fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let most = MAX_CONNECTIONS.to_string();
        let postgres = Postgres::start_with(&[("max_connections", &most)]).await?;
        let admin = connect(&postgres.url()).await?;
        admin.batch_execute("create role app login").await?;
        admin.batch_execute(MIGRATION).await?;
        admin.batch_execute(&grants("app")).await?;
        let installed = Instant::now();
        println!(
            "{PROCESSES} processes that would take {} connections; the server has {MAX_CONNECTIONS}. \
             The load moves after {:.0} s, and a busy process is killed after {:.0} s.",
            PROCESSES * WANTED,
            0.4 * f64::from(options.seconds),
            KILLED_AT * f64::from(options.seconds),
        );
        let ways = options.only.map_or_else(|| Way::ALL.to_vec(), |way| vec![way]);
        let mut runs = Vec::new();
        for way in ways {
            if way == Way::Ours {
                // On a server that has just started, a new table gives no rights for one lease.
                sleep_until(installed + Duration::from_secs(16)).await;
            }
            runs.push(play(options, &postgres, &admin, way).await?);
        }
        println!("\n        queries done   errors   most connections");
        for run in &runs {
            let (done, failed, most) = (run.done(), run.failed(), run.most());
            println!("{:>7} {done:>12} {failed:>8} {most:>18}", run.way.as_str());
        }
        std::fs::write(&options.svg, chart::svg(&runs))?;
        println!("picture: {}", options.svg.display());
        Ok(())
    })
}

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// A process, which ends with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn play(
    options: &Options,
    postgres: &Postgres,
    admin: &Client,
    way: Way,
) -> Result<Run, Box<dyn Error>> {
    let (done, failed) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let url = postgres.url().replace("postgres@", "app@");
    let program = std::env::current_exe()?;
    let mut processes = Vec::new();
    for number in 0..PROCESSES {
        let mut child = Command::new(&program)
            .args(["--node", &number.to_string(), "--url", &url])
            .args([
                "--only",
                way.as_str(),
                "--seconds",
                &options.seconds.to_string(),
            ])
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("the process has no output")?;
        processes.push(Process(child));
        let (done, failed) = (Arc::clone(&done), Arc::clone(&failed));
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let counts: Vec<u64> = line.split(' ').filter_map(|n| n.parse().ok()).collect();
                if let [its_done, its_failed] = counts[..] {
                    done.fetch_add(its_done, Relaxed);
                    failed.fetch_add(its_failed, Relaxed);
                }
            }
        });
    }
    let most = Arc::<AtomicUsize>::default();
    let watching = tokio::spawn(watch(connect(&postgres.url()).await?, Arc::clone(&most)));
    println!(
        "\n{}\n  second  connections     done   errors",
        way.as_str()
    );
    let start = Instant::now();
    let seconds: Mutex<Vec<Second>> = Mutex::default();
    let killed_at = (KILLED_AT * f64::from(options.seconds)) as u16;
    for number in 1..=options.seconds {
        sleep_until(start + Duration::from_secs(number.into())).await;
        let second = Second {
            connections: most.swap(0, Relaxed),
            done: done.swap(0, Relaxed),
            failed: failed.swap(0, Relaxed),
        };
        let Second {
            connections,
            done,
            failed,
        } = second;
        println!("{number:>8} {connections:>12} {done:>8} {failed:>8}");
        seconds
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(second);
        if number == killed_at {
            processes[KILLED].0.kill()?;
        }
    }
    watching.abort();
    drop(processes);
    // The next run begins on an empty server.
    let left = "select count(*) from pg_stat_activity where usename = 'app'";
    while admin.query_one(left, &[]).await?.get::<_, i64>(0) > 0 {
        sleep(Duration::from_millis(50)).await;
    }
    let seconds = seconds.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Run { way, seconds })
}

/// Counts the sessions of the processes every 10 ms.
async fn watch(client: Client, most: Arc<AtomicUsize>) -> Result<(), tokio_postgres::Error> {
    let count = "select count(*) from pg_stat_activity where usename = 'app'
        and backend_type = 'client backend'";
    let count = client.prepare(count).await?;
    loop {
        let row = client.query_one(&count, &[]).await?;
        most.fetch_max(row.get::<_, i64>(0) as usize, Relaxed);
        sleep(Duration::from_millis(10)).await;
    }
}
