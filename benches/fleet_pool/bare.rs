//! A pool as deadpool has it.

use std::error::Error;
use std::time::Duration;

use deadpool_postgres::{Manager, Pool, Runtime};
use tokio_postgres::{Config, NoTls};

/// How long a user waits for a connection.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn pool(config: Config, most: usize) -> Result<Pool, Box<dyn Error>> {
    let builder = Pool::builder(Manager::new(config, NoTls))
        .max_size(most)
        .wait_timeout(Some(PATIENCE))
        .runtime(Runtime::Tokio1);
    Ok(builder.build()?)
}
