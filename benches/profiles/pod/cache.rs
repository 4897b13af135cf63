//! Redis in front of the database: a documented pool, or a tuned one.

use deadpool_redis::{Config, Pool, Runtime};
use pool_autotune::Autotuned;
use redis::AsyncCommands;

pub(super) enum Cache {
    Plain(Pool),
    Tuned(Autotuned<Pool>),
}

impl Cache {
    /// A pool of `size`; without one, a tuned pool.
    pub(super) fn open(url: &str, size: Option<usize>) -> Result<Self, Box<dyn std::error::Error>> {
        let builder = Config::from_url(url).builder()?.runtime(Runtime::Tokio1);
        Ok(match size {
            Some(size) => Self::Plain(builder.max_size(size).build()?),
            None => Self::Tuned(Autotuned::builder(builder.build()?).name("redis").build()?),
        })
    }

    /// Whether it is there. A Redis that does not reply is a cache that has nothing.
    pub(super) async fn get(&self, key: &str) -> bool {
        let found: redis::RedisResult<Option<String>> = match self {
            Self::Plain(pool) => match pool.get().await {
                Ok(mut connection) => connection.get(key).await,
                Err(_) => return false,
            },
            Self::Tuned(pool) => match pool.get().await {
                Ok(mut connection) => connection.get(key).await,
                Err(_) => return false,
            },
        };
        matches!(found, Ok(Some(_)))
    }

    pub(super) async fn set(&self, key: &str, ttl_s: u32) {
        let value = "x".repeat(200);
        // What cannot be stored is read from the database again.
        let _: redis::RedisResult<()> = match self {
            Self::Plain(pool) => match pool.get().await {
                Ok(mut connection) => connection.set_ex(key, value, ttl_s.into()).await,
                Err(_) => return,
            },
            Self::Tuned(pool) => match pool.get().await {
                Ok(mut connection) => connection.set_ex(key, value, ttl_s.into()).await,
                Err(_) => return,
            },
        };
    }

    pub(super) async fn invalidate(&self, key: &str) {
        let _: redis::RedisResult<()> = match self {
            Self::Plain(pool) => match pool.get().await {
                Ok(mut connection) => connection.del(key).await,
                Err(_) => return,
            },
            Self::Tuned(pool) => match pool.get().await {
                Ok(mut connection) => connection.del(key).await,
                Err(_) => return,
            },
        };
    }
}
