//! One process: a pool and its users; it reports twice a second.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use deadpool_postgres::Pool;
use pool_autotune::Autotuned;
use pool_autotune::fleet::{Budget, Config as BudgetConfig};
use tokio::time::{Instant, interval, sleep};
use tokio_postgres::Config;
use tokio_postgres::error::SqlState;

use crate::bare::pool;
use crate::rules::{self, Swapped};
use crate::{BUSY, IDLE, MOVES_AT, Options, Scenario, TOTAL, WANTED, Way};

/// What a user does with a connection: 50 ms of waiting for the database. Unprepared, which is what all
/// poolers forward.
const QUERY: &str = "select pg_sleep(0.05)";

/// What a user does where the processor is what is scarce: about 3 ms of it.
const WORK: &str = "select count(*) from generate_series(1, 30000)";

/// What a user does where queries make each other slower: see [`CONTENTION`].
const CONTEND: &str = "select contend()";

/// 10 ms, and with more than eight under way the power 1.5 of how many times as many there are.
pub(crate) const CONTENTION: &str = "create function contend() returns void language plpgsql as $$
    declare n int;
    begin
      select count(*) into n from pg_stat_get_activity(null)
        where state = 'active' and application_name <> 'watch';
      perform pg_sleep(0.01 * power(greatest(1, n / 8.0), 1.5));
    end $$";

/// Processes with load, of so many.
pub(crate) fn busy(processes: u16) -> u16 {
    (processes / 3).max(1)
}

fn is_busy(options: &Options, number: u16, part: f64) -> bool {
    let busy = busy(options.processes);
    match options.scenario {
        Scenario::Load if part >= MOVES_AT => (busy..2 * busy).contains(&number),
        Scenario::Knee | Scenario::Contention => true,
        _ => number < busy,
    }
}

pub(crate) enum Kind {
    Bare(Pool),
    Swapped(Swapped),
    Tuned(Autotuned<Pool>),
}

/// Why a query was not done.
enum Failure {
    /// The server has no place: SQLSTATE 53300.
    Full,
    Other,
}

fn read(error: &tokio_postgres::Error) -> Failure {
    match error.code() {
        Some(&SqlState::TOO_MANY_CONNECTIONS) => Failure::Full,
        _ => Failure::Other,
    }
}

impl Kind {
    async fn query(&self, sql: &str) -> Result<(), Failure> {
        use deadpool_postgres::PoolError;
        let read_pool = |error: &PoolError| match error {
            PoolError::Backend(error) => read(error),
            _ => Failure::Other,
        };
        let bare = async |pool: &Pool| {
            let client = pool.get().await.map_err(|error| read_pool(&error))?;
            let done = client.simple_query(sql).await;
            done.map(drop).map_err(|error| read(&error))
        };
        match self {
            Self::Bare(pool) => bare(pool).await,
            Self::Swapped(pool) => bare(&pool.now()).await,
            Self::Tuned(pool) => {
                let client = pool.get().await.map_err(|error| match error {
                    pool_autotune::Error::Backend(error) => read_pool(&error),
                    _ => Failure::Other,
                })?;
                let done = client.simple_query(sql).await;
                done.map(drop).map_err(|error| {
                    pool.note_error(&error);
                    read(&error)
                })
            }
        }
    }
}

async fn build(options: &Options, url: &str, way: Way) -> Result<Kind, Box<dyn Error>> {
    let mut config: Config = url.parse()?;
    let bounds = 1..=WANTED;
    let share = |budget: BudgetConfig| budget.reserve((options.processes / 4).max(2).into());
    let budget = match way {
        Way::Uncoordinated => {
            let pool = Autotuned::builder(pool(config, WANTED)?).bounds(bounds);
            return Ok(Kind::Tuned(pool.build()?));
        }
        Way::Static => {
            let most = usize::from(options.processes) * 5 / 4;
            return Ok(Kind::Bare(pool(config, (TOTAL / most).max(1))?));
        }
        Way::Pgbouncer => return Ok(Kind::Bare(pool(config, WANTED)?)),
        Way::Userver => return Ok(Kind::Tuned(rules::userver(config).await?)),
        Way::ControlLayer => return Ok(Kind::Swapped(rules::control_layer(config).await?)),
        Way::Postgres => Budget::postgres(config.clone()),
        Way::PostgresNoKnee => Budget::postgres(config.clone()).knee(false),
        Way::Redis => {
            let client = redis::Client::open(options.redis.as_str())?;
            Budget::redis(client, "bench", config.clone())
        }
    };
    let budget = share(budget).spawn()?;
    budget.tag(&mut config);
    let pool = Autotuned::builder(pool(config, WANTED)?).budget(&budget);
    Ok(Kind::Tuned(pool.bounds(bounds).build()?))
}

pub(crate) fn serve(
    options: &Options,
    number: u16,
    url: &str,
    way: Way,
) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let start = Instant::now();
        // A process that is refused at the start begins anew, as under a supervisor.
        let kind = loop {
            match build(options, url, way).await {
                Ok(kind) => break Arc::new(kind),
                Err(_) => println!("0 0 1"),
            }
            sleep(Duration::from_millis(500)).await;
        };
        let counts: Arc<[AtomicU64; 3]> = Arc::default();
        let (length, late) = (f64::from(options.seconds), options.late);
        let (users, sql) = match options.scenario {
            Scenario::Knee => (BUSY / 5, WORK),
            Scenario::Contention => (BUSY / 5, CONTEND),
            _ => (BUSY, QUERY),
        };
        let options = options.clone();
        let options = Arc::new(options);
        for user in 0..users {
            let options = Arc::clone(&options);
            let (kind, counts) = (Arc::clone(&kind), Arc::clone(&counts));
            tokio::spawn(async move {
                loop {
                    let part = (late + start.elapsed().as_secs_f64()) / length;
                    if user >= IDLE && !is_busy(&options, number, part) {
                        sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                    let count = match kind.query(sql).await {
                        Ok(()) => 0,
                        Err(Failure::Other) => 1,
                        Err(Failure::Full) => 2,
                    };
                    counts[count].fetch_add(1, Relaxed);
                    if count > 0 || user < IDLE {
                        sleep(Duration::from_millis(100)).await;
                    }
                }
            });
        }
        let mut ticks = interval(Duration::from_millis(500));
        ticks.tick().await;
        while late + start.elapsed().as_secs_f64() < length + 5.0 {
            ticks.tick().await;
            let [done, failed, full] = &*counts;
            println!(
                "{} {} {}",
                done.swap(0, Relaxed),
                failed.swap(0, Relaxed),
                full.swap(0, Relaxed)
            );
        }
        Ok(())
    })
}
