//! The bottleneck: one query that costs some milliseconds of one core.

use std::{env, error::Error};

use deadpool_postgres::Status;
use deadpool_postgres::{Manager, ManagerConfig, RecyclingMethod};
use deadpool_sqlite::rusqlite;
use pool_autotune::{Autotuned, Mode, PoolSnapshot, adapter::Adapter, tuner::Decision};
use private_servers::Postgres;
use tempfile::TempDir;
use tokio_postgres::NoTls;

use crate::cli::{Bounds, Problem};

/// Rows that the query reads, since no index serves it.
const ROWS: u32 = 200_000;

/// SQLite: how much one customer has spent on orders that mention a word in their note.
const SQLITE_QUERY: &str =
    "SELECT count(*), coalesce(sum(cents), 0) FROM orders WHERE note LIKE '%' || ?1 || '%'";

/// Postgres: the same work without a table, so that nothing is left in a database of yours.
const POSTGRES_QUERY: &str =
    "SELECT count(*) FROM generate_series(1, 40000) n WHERE md5(n::text) LIKE '%' || $1 || '%'";

/// A database that is ready to be queried. Whatever was made for it is gone once it is dropped.
pub(crate) enum Database {
    Sqlite {
        path: String,
        _directory: TempDir,
    },
    Postgres {
        config: Box<tokio_postgres::Config>,
        _private: Option<Postgres>,
    },
}

impl Database {
    pub(crate) fn sqlite() -> Result<Self, Problem> {
        let directory = tempfile::tempdir().map_err(|error| {
            Problem::new(format_args!(
                "cannot make a directory for the database: {error}"
            ))
        })?;
        let path = directory.path().join("orders.sqlite").display().to_string();
        rusqlite::Connection::open(&path)
            .and_then(|mut connection| fill(&mut connection))
            .map_err(|error| Problem::new(format_args!("cannot create {path}: {error}")))?;
        Ok(Self::Sqlite {
            path,
            _directory: directory,
        })
    }

    pub(crate) async fn postgres() -> Result<Self, Problem> {
        let (url, private) = match env::var("DATABASE_URL") {
            Ok(url) => (url, None),
            Err(_) => {
                let server = Postgres::start().await.map_err(Problem::new)?;
                (server.url(), Some(server))
            }
        };
        let config: tokio_postgres::Config = url.parse().map_err(|error| {
            Problem::new(format_args!(
                "DATABASE_URL is `{}`: {error}; expected postgres://user@host:port/database",
                without_password(&url)
            ))
        })?;
        // Here, and not at the first request.
        let connected = config.connect(NoTls).await.map_err(|error| {
            let cause = error
                .source()
                .map(|cause| format!(": {cause}"))
                .unwrap_or_default();
            Problem::new(format_args!(
                "no Postgres answers at `{}`: {error}{cause}",
                without_password(&url)
            ))
        })?;
        drop(connected);
        Ok(Self::Postgres {
            config: Box::new(config),
            _private: private,
        })
    }

    /// Whether its work is done in this process.
    pub(crate) const fn is_embedded(&self) -> bool {
        matches!(self, Self::Sqlite { .. })
    }

    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "embedded SQLite",
            Self::Postgres { .. } => "Postgres",
        }
    }

    /// A pool as the library's defaults make it.
    pub(crate) fn bare(&self) -> Result<Pool, Problem> {
        Ok(match self {
            Self::Sqlite { path, .. } => Pool::BareSqlite(sqlite_pool(path, None)?),
            Self::Postgres { config, .. } => Pool::BarePostgres(postgres_pool(config, None)?),
        })
    }

    /// A pool that sizes itself within `bounds`.
    pub(crate) fn autotuned(&self, bounds: Bounds) -> Result<Pool, Problem> {
        let max = Some(bounds.max());
        Ok(match self {
            Self::Sqlite { path, .. } => {
                Pool::Sqlite(tuned("sqlite", sqlite_pool(path, max)?, bounds)?)
            }
            Self::Postgres { config, .. } => {
                Pool::Postgres(tuned("postgres", postgres_pool(config, max)?, bounds)?)
            }
        })
    }
}

/// The URL, or the list of keys and values, as it may be printed.
fn without_password(url: &str) -> String {
    let mut shown = url.to_owned();
    if let Some(start) = url.find("://").map(|scheme| scheme + 3)
        && let Some(at) = url[start..].rfind('@').map(|at| start + at)
        && let Some(colon) = url[start..at].find(':').map(|colon| start + colon)
    {
        shown.replace_range(colon + 1..at, "***");
    }
    if let Some(value) = shown.find("password=").map(|key| key + "password=".len()) {
        let ends = |character: char| character == '&' || character.is_whitespace();
        let end = shown[value..]
            .find(ends)
            .map_or(shown.len(), |end| value + end);
        shown.replace_range(value..end, "***");
    }
    shown
}

fn tuned<P: Adapter>(name: &str, pool: P, bounds: Bounds) -> Result<Autotuned<P>, Problem> {
    Autotuned::builder(pool)
        .name(name)
        .bounds(bounds.range())
        .mode(Mode::Enforce)
        .build()
        .map_err(Problem::new)
}

fn sqlite_pool(path: &str, max: Option<usize>) -> Result<deadpool_sqlite::Pool, Problem> {
    let config = deadpool_sqlite::Config::new(path);
    let mut builder = config
        .builder(deadpool_sqlite::Runtime::Tokio1)
        .map_err(Problem::new)?;
    if let Some(max) = max {
        builder = builder.max_size(max);
    }
    builder.build().map_err(Problem::new)
}

fn postgres_pool(
    config: &tokio_postgres::Config,
    max: Option<usize>,
) -> Result<deadpool_postgres::Pool, Problem> {
    let recycling_method = RecyclingMethod::Fast;
    let manager = Manager::from_config(config.clone(), NoTls, ManagerConfig { recycling_method });
    let mut builder = deadpool_postgres::Pool::builder(manager);
    if let Some(max) = max {
        builder = builder.max_size(max);
    }
    builder.build().map_err(Problem::new)
}

/// Orders with notes of a few words.
fn fill(connection: &mut rusqlite::Connection) -> rusqlite::Result<()> {
    const WORDS: [&str; 8] = [
        "express", "gift", "fragile", "return", "priority", "insured", "pickup", "evening",
    ];
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
         CREATE TABLE orders (id INTEGER PRIMARY KEY, cents INTEGER NOT NULL, note TEXT NOT NULL);",
    )?;
    let transaction = connection.transaction()?;
    {
        let mut insert = transaction.prepare("INSERT INTO orders (cents, note) VALUES (?1, ?2)")?;
        for row in 0..ROWS {
            let word = |shift: u32| WORDS[(row.wrapping_mul(2_654_435_761) >> shift) as usize % 8];
            let note = format!("{} {} {} no. {row}", word(29), word(26), word(23));
            insert.execute((row % 10_000, note))?;
        }
    }
    transaction.commit()
}

type Answer = Result<i64, Box<dyn Error + Send + Sync>>;

/// Connections to the database, as a handler holds them.
#[derive(Clone)]
pub(crate) enum Pool {
    BareSqlite(deadpool_sqlite::Pool),
    BarePostgres(deadpool_postgres::Pool),
    Sqlite(Autotuned<deadpool_sqlite::Pool>),
    Postgres(Autotuned<deadpool_postgres::Pool>),
}

/// What is known of a pool at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct PoolState {
    pub(crate) size: usize,
    pub(crate) in_use: usize,
    pub(crate) pending: usize,
    pub(crate) target: Option<usize>,
    pub(crate) wait_p95_ms: Option<f64>,
    pub(crate) use_mean_ms: Option<f64>,
}

impl Pool {
    /// Counts the orders that mention `word` in their note.
    pub(crate) async fn count(&self, word: String) -> Answer {
        match self {
            Self::BareSqlite(pool) => in_sqlite(&pool.get().await?, word).await,
            Self::BarePostgres(pool) => in_postgres(&pool.get().await?, word).await,
            Self::Sqlite(pool) => in_sqlite(&*pool.get().await?, word).await,
            Self::Postgres(pool) => in_postgres(&*pool.get().await?, word).await,
        }
    }

    pub(crate) fn state(&self) -> PoolState {
        match self {
            Self::BareSqlite(pool) => bare_state(&pool.status()),
            Self::BarePostgres(pool) => bare_state(&pool.status()),
            Self::Sqlite(pool) => tuned_state(&pool.snapshot()),
            Self::Postgres(pool) => tuned_state(&pool.snapshot()),
        }
    }

    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::BareSqlite(_) | Self::Sqlite(_) => "sqlite",
            Self::BarePostgres(_) | Self::Postgres(_) => "postgres",
        }
    }

    pub(crate) fn decisions(&self) -> Vec<Decision> {
        match self {
            Self::BareSqlite(_) | Self::BarePostgres(_) => Vec::new(),
            Self::Sqlite(pool) => pool.decisions(),
            Self::Postgres(pool) => pool.decisions(),
        }
    }
}

/// On the thread that owns the connection, as SQLite blocks.
async fn in_sqlite(connection: &deadpool_sqlite::Object, word: String) -> Answer {
    let count = connection
        .interact(move |connection| {
            connection
                .prepare_cached(SQLITE_QUERY)?
                .query_row([word], |row| row.get(0))
        })
        .await
        .map_err(|error| error.to_string())?;
    Ok(count?)
}

async fn in_postgres(connection: &deadpool_postgres::Object, word: String) -> Answer {
    let statement = connection.prepare_cached(POSTGRES_QUERY).await?;
    Ok(connection
        .query_one(&statement, &[&word])
        .await?
        .try_get(0)?)
}

fn bare_state(status: &Status) -> PoolState {
    PoolState {
        size: status.size,
        in_use: status.size.saturating_sub(status.available),
        pending: status.waiting,
        ..PoolState::default()
    }
}

fn tuned_state(pool: &PoolSnapshot) -> PoolState {
    PoolState {
        size: pool.size(),
        in_use: pool.in_use(),
        pending: pool.pending(),
        target: Some(pool.target()),
        wait_p95_ms: Some(1e3 * pool.wait_p95().as_secs_f64()),
        use_mean_ms: pool.use_mean().map(|mean| 1e3 * mean.as_secs_f64()),
    }
}
