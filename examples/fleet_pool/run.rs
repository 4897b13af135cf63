//! The three runs, and what the server shows of them.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
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
    /// Errors by their causes.
    pub(crate) causes: BTreeMap<String, u64>,
}

/// What the processes reported and was not read yet.
#[derive(Debug, Default)]
struct Reports {
    done: u64,
    failed: BTreeMap<String, u64>,
}

impl Reports {
    fn add(&mut self, line: &str) {
        let mut words = line.splitn(3, ' ');
        let kind = words.next();
        let count = words.next().and_then(|count| count.parse::<u64>().ok());
        match (kind, count, words.next()) {
            (Some("done"), Some(count), None) => self.done += count,
            (Some("failed"), Some(count), Some(why)) => {
                *self.failed.entry(why.to_owned()).or_default() += count;
            }
            // A process that is killed may leave half a line.
            _ => {}
        }
    }
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
            for (why, count) in &run.causes {
                println!("        {count} × {why}");
            }
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
    let reports = Arc::<Mutex<Reports>>::default();
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
        let reports = Arc::clone(&reports);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let mut reports = reports.lock().unwrap_or_else(PoisonError::into_inner);
                reports.add(&line);
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
    let mut run = Run {
        way,
        seconds: Vec::new(),
        causes: BTreeMap::new(),
    };
    let killed_at = (KILLED_AT * f64::from(options.seconds)) as u16;
    for number in 1..=options.seconds {
        sleep_until(start + Duration::from_secs(number.into())).await;
        let reported = std::mem::take(&mut *reports.lock().unwrap_or_else(PoisonError::into_inner));
        let second = Second {
            connections: most.swap(0, Relaxed),
            done: reported.done,
            failed: reported.failed.values().sum(),
        };
        let Second {
            connections,
            done,
            failed,
        } = second;
        println!("{number:>8} {connections:>12} {done:>8} {failed:>8}");
        for (why, count) in reported.failed {
            *run.causes.entry(why).or_default() += count;
        }
        run.seconds.push(second);
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
    Ok(run)
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
