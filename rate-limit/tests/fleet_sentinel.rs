//! A limiter on a master and a replica that a sentinel looks after.
#![cfg(feature = "redis")]

#[path = "support/sentinel.rs"]
mod sentinel;

use std::time::Duration;

use private_servers::Redis;
use rate_limit::{DAY, Limiter, Quota, fleet::FleetBackend};
use sentinel::Sentinel;
use tokio::time::{sleep, timeout};

const BOUNDED: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_limiter_follows_the_master_and_the_debts_are_there() {
    let mut master = Redis::start().await.unwrap();
    let replica = Redis::start().await.unwrap();
    let port = master.port().to_string();
    replica
        .ask(&["REPLICAOF", "127.0.0.1", &port])
        .await
        .unwrap();
    let sentinel = Sentinel::start(master.port(), &[]);
    let urls = [
        "redis://127.0.0.1:1".to_owned(),
        format!("redis://127.0.0.1:{}", sentinel.port),
    ];
    let backend = FleetBackend::sentinel(urls, "redis://mymaster", "test").unwrap();
    let limiter = Limiter::builder()
        .quota(Quota::count(100).per(365 * DAY))
        .build_on(backend.deadline(Duration::from_secs(1)))
        .unwrap();
    // Until the sentinel is up, each decision is this node's own.
    let settled = async {
        while limiter.peek("probe").await.is_none() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(BOUNDED, settled)
        .await
        .expect("the master is found");
    limiter.check_n("alice", 60).await.unwrap();
    let replicated = async {
        while replica.ask(&["DBSIZE"]).await.unwrap() != master.ask(&["DBSIZE"]).await.unwrap()
            || !replica
                .ask(&["INFO", "replication"])
                .await
                .unwrap()
                .contains("link_status:up")
            || !replica
                .ask(&["KEYS", "test:{*"])
                .await
                .unwrap()
                .contains("test:{")
        {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(BOUNDED, replicated)
        .await
        .expect("the replica has it");
    let known = async {
        loop {
            let replicas = ask(sentinel.port, "SENTINEL replicas mymaster").await;
            if replicas.contains(&replica.port().to_string()) {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(BOUNDED, known)
        .await
        .expect("the sentinel knows the replica");
    master.kill();
    let followed = async {
        while limiter.peek("alice").await != Some(40) || limiter.is_degraded() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(BOUNDED, followed)
        .await
        .expect("the replica was followed");
    assert_eq!(limiter.check_n("alice", 40).await.unwrap().remaining(), 0);
}

/// What the server at `port` replies to one inline command, as far as it comes at once.
async fn ask(port: u16, command: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Ok(mut stream) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else {
        return String::new();
    };
    let mut reply = vec![0; 65_536];
    let line = format!("{command}\r\n");
    if stream.write_all(line.as_bytes()).await.is_err() {
        return String::new();
    }
    let length = stream.read(&mut reply).await.unwrap_or(0);
    String::from_utf8_lossy(&reply[..length]).into_owned()
}
