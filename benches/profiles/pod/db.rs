//! The pools of a pod: documented or tuned, deadpool for the primary and sqlx for replicas.

use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use deadpool_postgres::{Manager, Pool, Runtime};
use pool_autotune::fleet::Budget;
use pool_autotune::{Autotuned, Pressure};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx_0_9 as sqlx;
use tokio::time::Instant;
use tokio_postgres::{Config, NoTls};

use super::stats::Stats;
use super::{SUPERUSERS, Spec};

/// Why a request got nothing from the database.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    /// No connection in time.
    NoConnection,
    /// The query failed.
    Query,
}

enum Deadpool {
    Plain(Pool),
    Tuned(Autotuned<Pool>),
}

enum Sqlx {
    Plain(PgPool),
    Tuned(Autotuned<PgPool>),
}

/// What a request does with the database.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) queries: Vec<String>,
    pub(super) writes: bool,
}

/// The primary, and the replicas that reads go to in turn.
pub(super) struct Db {
    primary: Deadpool,
    replicas: Vec<Sqlx>,
    next: AtomicUsize,
    budget: Option<Budget>,
}

impl Db {
    pub(super) async fn open(spec: &Spec) -> Result<Self, Box<dyn Error>> {
        let mut config: Config = spec.primary.parse()?;
        let timeout = Duration::from_secs_f64(
            spec.profile
                .scale
                .ms(spec.profile.documented.pool_timeout_ms)
                / 1e3,
        );
        let limit = spec
            .profile
            .scale
            .count(spec.profile.servers.max_connections);
        let superusers = spec.profile.scale.count(SUPERUSERS);
        if !spec.is_ours() {
            let primary = Deadpool::Plain(deadpool(config, spec.pool, Some(timeout))?);
            let options = PgPoolOptions::new()
                .max_connections(u32::try_from(spec.pool)?)
                .acquire_timeout(timeout);
            let replicas = spec.replicas.iter();
            let replicas = replicas.map(|url| Ok(Sqlx::Plain(options.clone().connect_lazy(url)?)));
            return Ok(Self {
                primary,
                replicas: replicas.collect::<Result<_, sqlx::Error>>()?,
                next: AtomicUsize::new(spec.index),
                budget: None,
            });
        }
        let budget = Budget::postgres(config.clone()).spawn()?;
        budget.tag(&mut config);
        // The hard maximum is the server's own: the budget says what is there for this pod.
        let primary = Autotuned::builder(deadpool(config, limit, None)?)
            .budget(&budget)
            .name("primary")
            .build()?;
        let mut replicas = Vec::new();
        for (number, url) in spec.replicas.iter().enumerate() {
            // A replica cannot keep the table of a budget, so each pod has a fixed share of it, as
            // many as there may be pods while one is being replaced.
            let share = Budget::fixed(limit - superusers, spec.most_pods + 1)?;
            let options: PgConnectOptions = url.parse()?;
            let pool = PgPoolOptions::new()
                .max_connections(u32::try_from(limit)?)
                .connect_lazy_with(options);
            let pool = Autotuned::builder(pool)
                .budget(&share)
                .name(format!("replica{number}"));
            replicas.push(Sqlx::Tuned(pool.build()?));
        }
        Ok(Self {
            primary: Deadpool::Tuned(primary),
            replicas,
            next: AtomicUsize::new(spec.index),
            budget: Some(budget),
        })
    }

    /// What presses hardest on requests: the primary, as every request may need it; or the least
    /// pressed replica, where there are any.
    pub(super) fn pressure(&self) -> Pressure {
        let replicas = self.replicas.iter().filter_map(|replica| match replica {
            Sqlx::Tuned(pool) => Some(pool.pressure()),
            Sqlx::Plain(_) => None,
        });
        let least = replicas.min_by(|a, b| a.value().total_cmp(&b.value()));
        match (&self.primary, least) {
            (_, Some(least)) => least,
            (Deadpool::Tuned(pool), None) => pool.pressure(),
            (Deadpool::Plain(_), None) => Pressure::IDLE,
        }
    }

    pub(super) async fn run(&self, work: &Work, stats: &Stats) -> Result<(), Failure> {
        if work.queries.is_empty() {
            return Ok(());
        }
        if work.writes || self.replicas.is_empty() {
            return self.on_primary(&work.queries, stats).await;
        }
        let next = self.next.fetch_add(1, Relaxed) % self.replicas.len();
        on_replica(&self.replicas[next], &work.queries, stats).await
    }

    async fn on_primary(&self, queries: &[String], stats: &Stats) -> Result<(), Failure> {
        match &self.primary {
            Deadpool::Plain(pool) => {
                let client = pool
                    .get()
                    .await
                    .map_err(|error| no_connection(stats, &error))?;
                run(&client, queries, stats)
                    .await
                    .map_err(|_| Failure::Query)
            }
            Deadpool::Tuned(pool) => {
                let client = pool
                    .get()
                    .await
                    .map_err(|error| no_connection(stats, &error))?;
                let done = run(&client, queries, stats).await;
                done.map_err(|error| {
                    pool.note_error(&error);
                    Failure::Query
                })
            }
        }
    }

    /// Connections that exist, are in use, and checkouts that wait.
    pub(super) fn sizes(&self) -> [usize; 3] {
        let mut sum = match &self.primary {
            Deadpool::Plain(pool) => {
                let status = pool.status();
                [
                    status.size,
                    status.size - status.available.min(status.size),
                    status.waiting,
                ]
            }
            Deadpool::Tuned(pool) => tuned(&pool.snapshot()),
        };
        for replica in &self.replicas {
            let sizes = match replica {
                Sqlx::Plain(pool) => [
                    pool.size() as usize,
                    (pool.size() as usize).saturating_sub(pool.num_idle()),
                    0,
                ],
                Sqlx::Tuned(pool) => tuned(&pool.snapshot()),
            };
            for (sum, size) in sum.iter_mut().zip(sizes) {
                *sum += size;
            }
        }
        sum
    }

    /// Whether the last dial of a tuned pool was refused by the server: no request reports such a dial.
    pub(super) fn is_refused(&self) -> bool {
        let primary = match &self.primary {
            Deadpool::Tuned(pool) => pool.snapshot().dial_error().is_some_and(is_refusal),
            Deadpool::Plain(_) => false,
        };
        let replica = |replica: &Sqlx| match replica {
            Sqlx::Tuned(pool) => pool.snapshot().dial_error().is_some_and(is_refusal),
            Sqlx::Plain(_) => false,
        };
        primary || self.replicas.iter().any(replica)
    }

    /// Connections granted by the budget.
    pub(super) fn granted(&self) -> Option<usize> {
        self.budget
            .as_ref()
            .map(|budget| budget.snapshot().granted())
    }

    pub(super) fn explain(&self) -> String {
        match &self.primary {
            Deadpool::Tuned(pool) => format!("{}\n{:?}", pool.report(), self.budget),
            Deadpool::Plain(pool) => format!("{:?}", pool.status()),
        }
    }

    pub(super) async fn close(&self) {
        match &self.primary {
            Deadpool::Plain(pool) => pool.close(),
            Deadpool::Tuned(pool) => {
                // Rights are free at once only when the server shows no session of them.
                pool.drain(LATE).await;
            }
        }
        for replica in &self.replicas {
            match replica {
                Sqlx::Plain(pool) => pool.close().await,
                Sqlx::Tuned(pool) => {
                    pool.drain(LATE).await;
                }
            }
        }
        if let Some(budget) = &self.budget {
            budget.leave(Duration::from_secs(1)).await;
        }
    }
}

/// How long a pod that ends waits for connections that are still out.
const LATE: Duration = Duration::from_secs(2);

fn deadpool(
    config: Config,
    most: usize,
    timeout: Option<Duration>,
) -> Result<Pool, Box<dyn Error>> {
    Ok(Pool::builder(Manager::new(config, NoTls))
        .max_size(most)
        .wait_timeout(timeout)
        .create_timeout(timeout)
        .runtime(Runtime::Tokio1)
        .build()?)
}

fn tuned(snapshot: &pool_autotune::PoolSnapshot) -> [usize; 3] {
    [snapshot.size(), snapshot.in_use(), snapshot.pending()]
}

/// Counts what the server refused for lack of a place, whatever crate reports it.
fn no_connection(stats: &Stats, error: &(dyn Error + 'static)) -> Failure {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if is_refusal(&error.to_string()) {
            stats.refused.fetch_add(1, Relaxed);
            break;
        }
        cause = error.source();
    }
    Failure::NoConnection
}

fn is_refusal(text: &str) -> bool {
    text.contains("too many") || text.contains("remaining connection slots")
}

async fn run(
    client: &tokio_postgres::Client,
    queries: &[String],
    stats: &Stats,
) -> Result<(), tokio_postgres::Error> {
    for query in queries {
        let start = Instant::now();
        client.simple_query(query).await?;
        stats.query(start.elapsed());
    }
    Ok(())
}

async fn on_replica(replica: &Sqlx, queries: &[String], stats: &Stats) -> Result<(), Failure> {
    match replica {
        Sqlx::Plain(pool) => {
            let mut client = pool
                .acquire()
                .await
                .map_err(|error| no_connection(stats, &error))?;
            let done = sqlx_run(&mut client, queries, stats).await;
            done.map_err(|_| Failure::Query)
        }
        Sqlx::Tuned(pool) => {
            let mut client = pool
                .get()
                .await
                .map_err(|error| no_connection(stats, &error))?;
            let done = sqlx_run(&mut client, queries, stats).await;
            done.map_err(|error| {
                pool.note_error(&error);
                Failure::Query
            })
        }
    }
}

async fn sqlx_run(
    client: &mut sqlx::PgConnection,
    queries: &[String],
    stats: &Stats,
) -> Result<(), sqlx::Error> {
    for query in queries {
        let start = Instant::now();
        sqlx::raw_sql(sqlx::AssertSqlSafe(query.as_str()))
            .execute(&mut *client)
            .await?;
        stats.query(start.elapsed());
    }
    Ok(())
}
