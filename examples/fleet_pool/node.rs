//! One process: a pool and its users; it reports once a second.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool_postgres::{Manager, Pool, Runtime};
use pool_autotune::Autotuned;
use pool_autotune::fleet::Budget;
use tokio::time::{Instant, interval, sleep};
use tokio_postgres::{Config, NoTls};

use crate::{MAX_CONNECTIONS, PROCESSES, WANTED, Way};

/// What a user does with a connection: 50 ms of waiting for the database.
const QUERY: &str = "select pg_sleep(0.05)";

/// How long a user waits for a connection.
const PATIENCE: Duration = Duration::from_secs(2);

/// Users of a process with load, and of one without.
const BUSY: usize = 60;
const IDLE: usize = 2;

/// Whether a process has load at that part of the run, from 0 to 1.
pub(crate) fn is_busy(number: usize, part: f64) -> bool {
    match part < 0.4 {
        true => number < 3,
        false => (3..6).contains(&number),
    }
}

enum Kind {
    Bare(Pool),
    Ours(Autotuned<Pool>),
}

impl Kind {
    /// Does one query, or returns in a few words why it failed.
    async fn query(&self) -> Result<(), String> {
        match self {
            Self::Bare(pool) => {
                let client = pool.get().await.map_err(|error| why(&error))?;
                client
                    .query(QUERY, &[])
                    .await
                    .map_err(|error| why(&error))?;
            }
            Self::Ours(pool) => {
                let client = pool.get().await.map_err(|error| why(&error))?;
                let done = client.query(QUERY, &[]).await;
                done.map_err(|error| {
                    pool.note_error(&error);
                    why(&error)
                })?;
            }
        }
        Ok(())
    }
}

/// An error and its causes, without the numbers that differ from one to the next.
fn why(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let own = error.to_string();
        if !text.contains(&own) {
            text = format!("{text}: {own}");
        }
        source = error.source();
    }
    let numbers = |c: char| c.is_ascii_digit();
    let end = text.find(numbers).unwrap_or(text.len());
    text[..end].trim().replace('\n', " ")
}

fn pool(config: Config, most: usize) -> Result<Pool, Box<dyn Error>> {
    let builder = Pool::builder(Manager::new(config, NoTls))
        .max_size(most)
        .wait_timeout(Some(PATIENCE))
        .runtime(Runtime::Tokio1);
    Ok(builder.build()?)
}

async fn build(url: &str, way: Way) -> Result<Kind, Box<dyn Error>> {
    let mut config: Config = url.parse()?;
    Ok(match way {
        Way::Bare => Kind::Bare(pool(config, WANTED)?),
        // Three are for superusers.
        Way::Static => Kind::Bare(pool(config, (MAX_CONNECTIONS - 3) / PROCESSES)?),
        Way::Ours => {
            // All start at once, each with one connection.
            let budget = Budget::postgres(config.clone())
                .reserve(PROCESSES)
                .spawn()?;
            budget.tag(&mut config);
            let pool = pool(config, WANTED)?;
            let pool = Autotuned::builder(pool).budget(&budget).bounds(1..=WANTED);
            Kind::Ours(pool.build()?)
        }
    })
}

pub(crate) fn serve(
    number: usize,
    url: &str,
    way: Way,
    seconds: u16,
) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let kind = Arc::new(build(url, way).await?);
        let done = Arc::<AtomicU64>::default();
        let failed = Arc::<Mutex<BTreeMap<String, u64>>>::default();
        let start = Instant::now();
        let length = Duration::from_secs(seconds.into());
        for user in 0..BUSY {
            let (kind, done, failed) = (Arc::clone(&kind), Arc::clone(&done), Arc::clone(&failed));
            tokio::spawn(async move {
                loop {
                    let part = start.elapsed().as_secs_f64() / length.as_secs_f64();
                    if user >= IDLE && !is_busy(number, part) {
                        sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                    let result = kind.query().await;
                    let is_ok = result.is_ok();
                    match result {
                        Ok(()) => _ = done.fetch_add(1, Relaxed),
                        Err(why) => {
                            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                            *failed.entry(why).or_default() += 1;
                        }
                    }
                    if !is_ok || user < IDLE {
                        sleep(Duration::from_millis(100)).await;
                    }
                }
            });
        }
        let mut seconds = interval(Duration::from_secs(1));
        seconds.tick().await;
        while start.elapsed() < length + Duration::from_secs(5) {
            seconds.tick().await;
            println!("done {}", done.swap(0, Relaxed));
            let failed =
                std::mem::take(&mut *failed.lock().unwrap_or_else(PoisonError::into_inner));
            for (why, count) in failed {
                println!("failed {count} {why}");
            }
        }
        Ok(())
    })
}
