//! A real Redis, through deadpool and through bb8.

use std::time::Duration;

use bb8_redis::RedisConnectionManager;
use deadpool_redis::redis::cmd;
use futures_util::future::join_all;
use pool_autotune::Autotuned;
use pool_autotune::adapter::Adapter;
use pool_autotune::adapter::bb8::Bb8;
use pool_autotune::tuner::Verdict;
use private_servers::Redis;
use tokio::time::{Instant, sleep};

/// Connections that the server sees, less the one that asks.
async fn clients(url: &str) -> usize {
    let client = redis::Client::open(url).expect("a valid url");
    let mut connection = client
        .get_multiplexed_async_connection()
        .await
        .expect("it accepts");
    let info: String = cmd("INFO")
        .arg("clients")
        .query_async(&mut connection)
        .await
        .expect("INFO");
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("connected_clients:"));
    line.and_then(|count| count.trim().parse::<usize>().ok())
        .expect("a count")
        - 1
}

async fn settles_at(url: &str, expected: usize) {
    let end = Instant::now() + Duration::from_secs(10);
    while clients(url).await != expected {
        assert!(
            Instant::now() < end,
            "{} connections, not {expected}",
            clients(url).await
        );
        sleep(Duration::from_millis(5)).await;
    }
}

/// Opens as many connections as it may, then is made smaller.
async fn grows_and_shrinks<P: Adapter>(url: &str, pool: P, answers: impl AsyncFn(&Autotuned<P>)) {
    let pool = Autotuned::builder(pool)
        .bounds(8..=8)
        .build()
        .expect("valid settings");
    answers(&pool).await;
    let held = join_all((0..8).map(|_| pool.get())).await;
    assert!(held.iter().all(Result::is_ok));
    assert_eq!(clients(url).await, 8);
    drop(held);
    pool.set_bounds(3..=3).expect("within the pool's maximum");
    settles_at(url, 3).await;
    answers(&pool).await;
    pool.failover();
    settles_at(url, 0).await;
    answers(&pool).await;
    settles_at(url, 1).await;
}

#[tokio::test]
async fn deadpool_over_redis_grows_shrinks_and_fails_over() {
    let redis = Redis::start().await.expect("Redis starts");
    let config = deadpool_redis::Config::from_url(redis.url());
    let pool = config
        .builder()
        .expect("a valid url")
        .max_size(16)
        .build()
        .expect("no timeouts");
    grows_and_shrinks(&redis.url(), pool, async |pool| {
        let mut connection = pool.get().await.expect("in time");
        let answer: String = cmd("PING")
            .query_async(&mut *connection)
            .await
            .expect("an answer");
        assert_eq!(answer, "PONG");
    })
    .await;
}

/// Sixteen tasks that each take a connection for one command at a time.
async fn is_told_to_share<P: Adapter>(pool: P, ping: impl AsyncFn(&Autotuned<P>)) {
    let pool = Autotuned::builder(pool).bounds(2..=16).build();
    let pool = pool.expect("valid settings");
    assert_eq!(pool.verdict(), Verdict::Healthy);
    let start = Instant::now();
    let users = (0..16).map(|_| async {
        while start.elapsed() < Duration::from_secs(2) {
            ping(&pool).await;
        }
    });
    join_all(users).await;
    assert_eq!(pool.verdict(), Verdict::UseMultiplexed { n: 1 });
    assert!(pool.report().to_string().contains("share 1 instead"));
}

#[tokio::test]
async fn exclusive_use_of_multiplexed_connections_is_told() {
    let redis = Redis::start().await.expect("Redis starts");
    let config = deadpool_redis::Config::from_url(redis.url());
    let builder = config.builder().expect("a valid url").max_size(16);
    let pool = builder.runtime(deadpool_redis::Runtime::Tokio1).build();
    is_told_to_share(pool.expect("valid settings"), async |pool| {
        let mut connection = pool.get().await.expect("in time");
        let pong: Result<String, _> = cmd("PING").query_async(&mut *connection).await;
        pong.expect("an answer");
    })
    .await;

    let manager = RedisConnectionManager::new(redis.url()).expect("a valid url");
    let pool = Bb8::new(bb8::Pool::builder().max_size(16), manager);
    is_told_to_share(pool, async |pool| {
        let mut connection = pool.get().await.expect("in time");
        let ping = cmd("PING");
        let pong: Result<String, _> = ping.query_async(&mut **connection).await;
        pong.expect("an answer");
    })
    .await;
}

#[tokio::test]
async fn bb8_over_redis_grows_shrinks_and_fails_over() {
    let redis = Redis::start().await.expect("Redis starts");
    let manager = RedisConnectionManager::new(redis.url()).expect("a valid url");
    let pool = Bb8::new(bb8::Pool::builder().max_size(16), manager);
    grows_and_shrinks(&redis.url(), pool, async |pool| {
        let mut connection = pool.get().await.expect("in time");
        let ping = cmd("PING");
        let answer: String = ping
            .query_async(&mut **connection)
            .await
            .expect("an answer");
        assert_eq!(answer, "PONG");
    })
    .await;
}
