//! What is the same for each version of sqlx: included once for each, with `super::sqlx` its crate.

mod connection;
pub(super) mod executor;
mod pool;
mod transaction;

use super::sqlx;

pub use self::connection::Connection;
pub use self::transaction::Transaction;
