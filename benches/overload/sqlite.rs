//! Embedded SQLite, with the table and the query of the example `graceful_degradation`.

use std::{fmt, sync::Arc};

use deadpool_sqlite::{Config, Pool, Runtime, rusqlite};
use tempfile::TempDir;

/// Rows that the query reads, since no index serves it.
const ROWS: u32 = 200_000;
/// More than any limit of the sweep, so that no request waits here.
const CONNECTIONS: usize = 64;
const QUERY: &str =
    "SELECT count(*), coalesce(sum(cents), 0) FROM orders WHERE note LIKE '%' || ?1 || '%'";

#[derive(Clone)]
pub(crate) struct Sqlite {
    pool: Pool,
    _directory: Arc<TempDir>,
}

impl Sqlite {
    pub(crate) fn create() -> Self {
        let directory = tempfile::tempdir().expect("a directory for the database");
        let path = directory.path().join("orders.sqlite");
        rusqlite::Connection::open(&path)
            .and_then(|mut connection| fill(&mut connection))
            .expect("a new database");
        let builder = Config::new(path).builder(Runtime::Tokio1);
        let pool = builder.expect("a valid path").max_size(CONNECTIONS).build();
        Self {
            pool: pool.expect("a valid pool"),
            _directory: Arc::new(directory),
        }
    }

    pub(crate) async fn query(&self) {
        let connection = self.pool.get().await.expect("a connection");
        let counted = connection.interact(|connection| {
            let mut query = connection.prepare_cached(QUERY)?;
            query.query_row(["express"], |row| row.get::<_, i64>(0))
        });
        // A caller that gives up leaves its query to run to its end.
        counted.await.expect("no panic").expect("a count");
    }
}

impl Sqlite {
    /// Waits until no query runs, with all connections open.
    pub(crate) async fn open_all(&self) {
        let mut open = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            open.push(self.pool.get().await.expect("a connection"));
        }
        for connection in open {
            // A connection runs one after the other.
            let idle = connection.interact(|_| ());
            idle.await.expect("no panic");
        }
    }
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqlite").finish_non_exhaustive()
    }
}

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
