//! Real servers, started, killed, restarted and gone.

use std::path::Path;

use private_servers::{Postgres, Redis, RedisCluster};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::{Client, NoTls};

async fn connect(postgres: &Postgres) -> Client {
    let (client, connection) = tokio_postgres::connect(&postgres.url(), NoTls)
        .await
        .expect("the server accepts");
    tokio::spawn(connection);
    client
}

async fn ask_redis(redis: &Redis, command: &str, answer: &str) {
    let mut stream = TcpStream::connect(("127.0.0.1", redis.port()))
        .await
        .expect("it accepts");
    stream
        .write_all(command.as_bytes())
        .await
        .expect("it reads");
    let mut got = vec![0; answer.len()];
    stream.read_exact(&mut got).await.expect("it answers");
    assert_eq!(String::from_utf8_lossy(&got), answer);
}

fn is_running(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

#[tokio::test]
async fn postgres_serves_survives_a_kill_with_its_data_and_is_gone_after_drop() {
    let mut postgres = Postgres::start_with(&[("max_connections", "20")])
        .await
        .expect("it starts");
    let port = postgres.port();
    let client = connect(&postgres).await;
    let max: String = client
        .query_one("SHOW max_connections", &[])
        .await
        .expect("a row")
        .get(0);
    assert_eq!(max, "20");
    client
        .batch_execute("CREATE TABLE kept (n int)")
        .await
        .expect("it creates");
    // Commits are asynchronous here; a checkpoint writes them out.
    client.batch_execute("CHECKPOINT").await.expect("it writes");

    postgres.kill();
    assert!(
        client.simple_query("SELECT 1").await.is_err(),
        "its backends died with it"
    );
    assert_eq!(postgres.pid(), None);

    postgres.restart().await.expect("it starts again");
    assert_eq!(postgres.port(), port);
    let client = connect(&postgres).await;
    let rows: i64 = client
        .query_one("SELECT count(*) FROM kept", &[])
        .await
        .expect("a row")
        .get(0);
    assert_eq!(rows, 0);

    let pid = postgres.pid().expect("it runs");
    let directory: String = client
        .query_one("SHOW data_directory", &[])
        .await
        .expect("a row")
        .get(0);
    drop(postgres);
    assert!(!is_running(pid));
    assert!(!Path::new(&directory).exists());
}

#[tokio::test]
async fn a_setting_postgres_does_not_know_is_an_error_in_its_own_words() {
    let error = Postgres::start_with(&[("max_connection", "20")])
        .await
        .expect_err("a typo");
    let message = error.to_string();
    assert!(
        message.contains("unrecognized configuration parameter \"max_connection\""),
        "{message}"
    );
    assert!(!message.contains('\n'), "{message}");
}

#[tokio::test]
async fn redis_serves_restarts_empty_after_a_kill_and_is_gone_after_drop() {
    let mut redis = Redis::start().await.expect("it starts");
    assert_eq!(redis.url(), format!("redis://127.0.0.1:{}", redis.port()));
    ask_redis(&redis, "SET key value\r\n", "+OK\r\n").await;

    redis.kill();
    assert!(
        TcpStream::connect(("127.0.0.1", redis.port()))
            .await
            .is_err()
    );

    redis.restart().await.expect("it starts again");
    ask_redis(&redis, "EXISTS key\r\n", ":0\r\n").await;

    let pid = redis.pid().expect("it runs");
    drop(redis);
    assert!(!is_running(pid));
}

#[tokio::test]
async fn two_servers_run_side_by_side() {
    let (one, two) = (
        Redis::start().await.expect("one"),
        Redis::start().await.expect("two"),
    );
    assert_ne!(one.port(), two.port());
    ask_redis(&one, "SET key value\r\n", "+OK\r\n").await;
    ask_redis(&two, "EXISTS key\r\n", ":0\r\n").await;
}

#[tokio::test]
async fn a_suspended_redis_holds_its_connections_and_answers_when_it_is_resumed() {
    let redis = Redis::start().await.expect("it starts");
    redis.suspend();
    let ask = redis.ask(&["ECHO", "here"]);
    let early = tokio::time::timeout(std::time::Duration::from_millis(100), ask).await;
    assert!(early.is_err(), "{early:?}");
    redis.resume();
    assert_eq!(
        redis.ask(&["ECHO", "here"]).await.expect("an answer"),
        "here"
    );
    let error = redis.ask(&["NONSENSE"]).await.expect_err("not a command");
    assert!(error.to_string().contains("unknown command"), "{error}");
}

#[tokio::test]
async fn a_cluster_is_whole_and_each_server_holds_its_part() {
    let cluster = RedisCluster::start(3).await.expect("it starts");
    let [first, _, last] = cluster.servers() else {
        panic!("three servers");
    };
    // The slot of `foo` is 12182, in the last third.
    assert_eq!(
        last.ask(&["SET", "foo", "bar"]).await.expect("it is here"),
        "OK"
    );
    let error = first
        .ask(&["GET", "foo"])
        .await
        .expect_err("it is not here");
    assert!(
        error.to_string().starts_with("MOVED 12182 127.0.0.1:"),
        "{error}"
    );
}

#[tokio::test]
async fn a_replica_follows_its_primary_and_refuses_to_write() {
    let primary = Postgres::start().await.expect("it starts");
    let replica = primary.replica().await.expect("it starts");
    let (writer, reader) = (connect(&primary).await, connect(&replica).await);
    writer
        .batch_execute("SET synchronous_commit = on")
        .await
        .expect("it sets");
    writer
        .batch_execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)")
        .await
        .expect("it writes");
    let end: String = writer
        .query_one("SELECT pg_current_wal_flush_lsn()::text", &[])
        .await
        .expect("a row")
        .get(0);
    // The write is there when the replica has replayed what the primary had written by then.
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    while !reader
        .query_one(&replayed, &[])
        .await
        .expect("a row")
        .get::<_, bool>(0)
    {
        tokio::task::yield_now().await;
    }
    let row = reader.query_one("SELECT n FROM kept", &[]).await;
    assert_eq!(row.expect("a row").get::<_, i32>(0), 7);
    assert!(
        reader
            .batch_execute("INSERT INTO kept VALUES (8)")
            .await
            .is_err()
    );
}
