//! What do exclusive connections to Redis cost, where one is multiplexed anyway?
//!
//! `cargo bench -p overload-benches --bench redis_sharing`
//!
//! 64 tasks send GETs, one at a time each: over an [`Autotuned`] pool of n exclusive connections,
//! and over one connection that all share. Needs a `redis-server` on this machine, and starts a
//! private one.

use std::time::Duration;

use deadpool_redis::{
    Config, Runtime,
    redis::{Client, aio::MultiplexedConnection, cmd},
};
use futures_util::future::join_all;
use pool_autotune::Autotuned;
use private_servers::Redis;
use tokio::time::Instant;

const TASKS: usize = 64;
const ROUND: Duration = Duration::from_secs(1);
const ROUNDS: usize = 3;

/// Commands a second of as many tasks.
async fn commands(send: impl AsyncFn()) -> f64 {
    let end = Instant::now() + ROUND;
    let tasks = (0..TASKS).map(|_| async {
        let mut sent = 0_u32;
        while Instant::now() < end {
            send().await;
            sent += 1;
        }
        f64::from(sent)
    });
    join_all(tasks).await.into_iter().sum::<f64>() / ROUND.as_secs_f64()
}

async fn get(connection: &mut MultiplexedConnection) {
    let value: Option<String> = cmd("GET")
        .arg("key")
        .query_async(connection)
        .await
        .expect("an answer");
    assert!(value.is_none());
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let redis = Redis::start().await.expect("a private Redis");
    let client = Client::open(redis.url()).expect("a valid url");
    let shared = client.get_multiplexed_async_connection().await;
    let shared = shared.expect("it accepts");
    let sizes = [1, 2, 4, 8, 16, 32, 64];
    let pools = sizes.map(|size| {
        let builder = Config::from_url(redis.url())
            .builder()
            .expect("a valid url");
        let builder = builder.max_size(size).runtime(Runtime::Tokio1);
        let pool = builder.build().expect("valid settings");
        let pool = Autotuned::builder(pool).bounds(size..=size).build();
        pool.expect("valid settings")
    });
    let mut best = [0.0_f64; 7];
    let mut best_shared = 0.0_f64;
    for _ in 0..ROUNDS {
        for (best, pool) in best.iter_mut().zip(&pools) {
            let rate = commands(async || {
                let mut connection = pool.get().await.expect("in time");
                get(&mut connection).await;
            });
            *best = best.max(rate.await);
        }
        let rate = commands(async || get(&mut shared.clone()).await).await;
        best_shared = best_shared.max(rate);
    }
    println!("{TASKS} tasks, commands a second, best of {ROUNDS} interleaved rounds");
    for (size, rate) in sizes.iter().zip(best) {
        println!("exclusive, {size:>2} connections {rate:>10.0}");
    }
    println!("shared, one connection    {best_shared:>10.0}");
    println!("verdict of the pool of 64: {}", pools[6].verdict());
}
