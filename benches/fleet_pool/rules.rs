//! The rules of others, with the intervals they have.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool_postgres::Pool;
use pool_autotune::Autotuned;
use tokio::time::{interval, sleep};
use tokio_postgres::{Client, Config, NoTls};

use crate::bare::pool;
use crate::{TOTAL, WANTED};

/// The table that both keep, which the runner creates.
pub(crate) const TABLE: &str =
    "create unlogged table live(id bigint primary key, at timestamptz not null);
    grant all on live to app;";

async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Says that this process lives, and returns how many do.
async fn count(client: &Client, id: i64, dead_after: f64) -> Result<usize, tokio_postgres::Error> {
    let beat = "insert into live values ($1, now()) on conflict (id) do update set at = now()";
    client.execute(beat, &[&id]).await?;
    let live = "select count(*) from live where at > now() - $1 * interval '1 s'";
    let row = client.query_one(live, &[&dead_after]).await?;
    Ok(row.get::<_, i64>(0).max(1) as usize)
}

/// An equal share, one connection of it for the beat.
fn share(live: usize) -> usize {
    (TOTAL / live).saturating_sub(1).max(1)
}

/// `connlimit_mode: auto`: a step every two seconds, dead after 15 s; the size follows the share at once.
pub(crate) async fn userver(config: Config) -> Result<Autotuned<Pool>, Box<dyn Error>> {
    let client = connect(&config).await?;
    let id = rand::random();
    let first = share(count(&client, id, 15.0).await?);
    let pool = Autotuned::builder(pool(config.clone(), WANTED)?);
    let pool = pool.bounds(1..=first.min(WANTED)).build()?;
    let its_pool = pool.clone();
    tokio::spawn(async move {
        let mut client = client;
        let mut steps = interval(Duration::from_secs(2));
        loop {
            steps.tick().await;
            match count(&client, id, 15.0).await {
                Ok(live) => {
                    let share = share(live).min(WANTED);
                    // A share of one or more is within every bound.
                    let _ = its_pool.set_bounds(1..=share);
                }
                Err(_) => {
                    if let Ok(again) = connect(&config).await {
                        client = again;
                    }
                }
            }
        }
    });
    Ok(pool)
}

/// A pool that is replaced by another of a new size. Connections of the old one end when they come back.
#[derive(Clone)]
pub(crate) struct Swapped(Arc<Mutex<Pool>>);

impl Swapped {
    pub(crate) fn now(&self) -> Pool {
        let pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pool.clone()
    }

    fn swap(&self, with: Pool) {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *pool, with);
        // Checkouts that wait for the old one are served by it first.
        tokio::spawn(async move {
            sleep(Duration::from_secs(2)).await;
            old.close();
        });
    }
}

/// The replica governor: a beat every ten seconds, dead after 30 s, a new pool for each new share.
pub(crate) async fn control_layer(config: Config) -> Result<Swapped, Box<dyn Error>> {
    let client = connect(&config).await?;
    let id = rand::random();
    let mut size = share(count(&client, id, 30.0).await?);
    let swapped = Swapped(Arc::new(Mutex::new(pool(config.clone(), size)?)));
    let its = swapped.clone();
    tokio::spawn(async move {
        let mut beats = interval(Duration::from_secs(10));
        loop {
            beats.tick().await;
            // Its share stays as it was where the count fails.
            if let Ok(live) = count(&client, id, 30.0).await
                && share(live) != size
                && let Ok(pool) = pool(config.clone(), share(live))
            {
                size = share(live);
                its.swap(pool);
            }
        }
    });
    Ok(swapped)
}
