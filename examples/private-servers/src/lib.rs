//! Starts a private Postgres, `PgBouncer` or Redis for an example, a test or a bench, and ends it on
//! drop.
//!
//! The server is one already installed on this machine. It listens on a free loopback port, keeps
//! its files in a temporary directory, and is ended together with that directory when the value is
//! dropped, or when the process that owns it dies, however it dies.
//!
//! ```no_run
//! # async fn example() -> Result<(), private_servers::StartError> {
//! let postgres = private_servers::Postgres::start().await?;
//! println!("DATABASE_URL={}", postgres.url());
//! # Ok(())
//! # }
//! ```
//!
//! # Settings
//!
//! Durability is off: these servers are for load, not for data. Postgres runs with `fsync`,
//! `synchronous_commit` and `full_page_writes` off, `max_connections = 100` and `trust`
//! authentication for the superuser `postgres`; Redis runs without persistence, alone or as a cluster. The `start_with`
//! constructors change any of it.

mod bouncer;
mod cluster;
mod error;
mod find;
mod postgres;
mod process;
mod redis;

pub use bouncer::PgBouncer;
pub use cluster::RedisCluster;
pub use error::StartError;
pub use postgres::Postgres;
pub use redis::Redis;
