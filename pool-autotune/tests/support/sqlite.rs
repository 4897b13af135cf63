//! SQLite as a database behind bb8.

/// bb8 over SQLite in memory.
#[derive(Debug)]
pub(crate) struct SqliteManager;

impl bb8::ManageConnection for SqliteManager {
    type Connection = rusqlite::Connection;
    type Error = rusqlite::Error;

    async fn connect(&self) -> Result<rusqlite::Connection, rusqlite::Error> {
        // As a server would answer: not at once.
        tokio::task::yield_now().await;
        rusqlite::Connection::open_in_memory()
    }

    async fn is_valid(&self, connection: &mut rusqlite::Connection) -> Result<(), rusqlite::Error> {
        tokio::task::yield_now().await;
        connection.query_row("SELECT 1", [], |_| Ok(()))
    }

    fn has_broken(&self, _: &mut rusqlite::Connection) -> bool {
        false
    }
}
