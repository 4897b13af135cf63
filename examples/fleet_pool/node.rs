//! One process: a pool and its users; it reports once a second.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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
    async fn query(&self) -> bool {
        match self {
            Self::Bare(pool) => match pool.get().await {
                Ok(client) => client.query(QUERY, &[]).await.is_ok(),
                Err(_) => false,
            },
            Self::Ours(pool) => match pool.get().await {
                Ok(client) => match client.query(QUERY, &[]).await {
                    Ok(_) => true,
                    Err(error) => {
                        pool.note_error(&error);
                        false
                    }
                },
                Err(_) => false,
            },
        }
    }
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
            // All start at once, and each asks with one connection.
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
        let (done, failed) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
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
                    let ok = kind.query().await;
                    let count = if ok { &done } else { &failed };
                    count.fetch_add(1, Relaxed);
                    if !ok || user < IDLE {
                        sleep(Duration::from_millis(100)).await;
                    }
                }
            });
        }
        let mut seconds = interval(Duration::from_secs(1));
        seconds.tick().await;
        while start.elapsed() < length + Duration::from_secs(5) {
            seconds.tick().await;
            println!("{} {}", done.swap(0, Relaxed), failed.swap(0, Relaxed));
        }
        Ok(())
    })
}
