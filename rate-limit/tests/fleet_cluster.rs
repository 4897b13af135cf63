//! A limiter on a Redis Cluster of three servers.
#![cfg(feature = "redis")]

use std::time::Duration;

use private_servers::{Redis, RedisCluster};
use rate_limit::{
    DAY, Limiter, Quota,
    fleet::{FleetBackend, FleetLimiter},
};
use tokio::time::{sleep, timeout};

const BOUNDED: Duration = Duration::from_secs(20);

/// A deadline that a busy machine keeps.
const PATIENT: Duration = Duration::from_secs(1);

fn on(server: &Redis, count: u64) -> FleetLimiter {
    let backend = FleetBackend::cluster([server.url()], "test").unwrap();
    let quota = Quota::count(count).per(365 * DAY);
    Limiter::builder()
        .quota(quota)
        .build_on(backend.deadline(PATIENT))
        .unwrap()
}

/// The server that holds the only account there is, its key in Redis, and its slot.
async fn whereabouts(cluster: &RedisCluster) -> (usize, String, String) {
    for (index, server) in cluster.servers().iter().enumerate() {
        let keys = server.ask(&["KEYS", "*"]).await.unwrap();
        // The nodes are counted in keys of three parts.
        if let Some(key) = keys.lines().find(|key| !key.ends_with(":nodes")) {
            let slot = server.ask(&["CLUSTER", "KEYSLOT", key]).await.unwrap();
            return (index, key.to_owned(), slot);
        }
    }
    panic!("no account");
}

#[tokio::test]
async fn keys_are_spread_over_all_servers_and_each_is_exact_from_every_node() {
    let cluster = RedisCluster::start(3).await.unwrap();
    let nodes: Vec<_> = cluster
        .servers()
        .iter()
        .map(|server| on(server, 3))
        .collect();
    for key in 0..300 {
        for (node, left) in nodes.iter().zip([2, 1, 0]) {
            assert_eq!(
                node.check(key).await.unwrap().remaining(),
                left,
                "key {key}"
            );
        }
        assert!(nodes[key % 3].check(key).await.is_err(), "key {key}");
    }
    for server in cluster.servers() {
        let keys: usize = server.ask(&["DBSIZE"]).await.unwrap().parse().unwrap();
        assert!((50..200).contains(&keys), "{keys} of 300 keys");
    }
    for node in &nodes {
        timeout(BOUNDED, async {
            while node.nodes() < 3 {
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("the nodes hear of each other");
        assert!(!node.is_degraded());
    }
}

#[tokio::test]
async fn a_key_that_moves_is_followed_and_charged_once() {
    let cluster = RedisCluster::start(3).await.unwrap();
    let limiter = on(&cluster.servers()[0], 100);
    assert_eq!(limiter.check("alice").await.unwrap().remaining(), 99);

    let (from, key, slot) = whereabouts(&cluster).await;
    let (source, target) = (&cluster.servers()[from], &cluster.servers()[(from + 1) % 3]);
    let source_id = source.ask(&["CLUSTER", "MYID"]).await.unwrap();
    let target_id = target.ask(&["CLUSTER", "MYID"]).await.unwrap();
    target
        .ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source_id])
        .await
        .unwrap();
    source
        .ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target_id])
        .await
        .unwrap();
    assert_eq!(
        limiter.check("alice").await.unwrap().remaining(),
        98,
        "it is still there"
    );

    let port = target.port().to_string();
    source
        .ask(&["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"])
        .await
        .unwrap();
    for left in [97, 96] {
        assert_eq!(
            limiter.check("alice").await.unwrap().remaining(),
            left,
            "ASK"
        );
    }
    for server in [target, source] {
        server
            .ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &target_id])
            .await
            .unwrap();
    }
    for left in [95, 94, 93] {
        assert_eq!(
            limiter.check("alice").await.unwrap().remaining(),
            left,
            "MOVED"
        );
    }
    let fresh = on(source, 100);
    assert_eq!(fresh.check("alice").await.unwrap().remaining(), 92);
    assert!(!limiter.is_degraded() && !fresh.is_degraded());
}

#[tokio::test]
async fn a_server_that_is_gone_takes_only_its_own_keys_along() {
    let mut cluster = RedisCluster::start(3).await.unwrap();
    let limiter = on(&cluster.servers()[0], 1_000);
    assert!(limiter.check("alice").await.is_ok());
    let (gone, ..) = whereabouts(&cluster).await;
    cluster.servers_mut()[gone].kill();
    timeout(BOUNDED, async {
        while !limiter.is_degraded() {
            assert!(limiter.check("alice").await.is_ok());
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it is given up");
    let mut exact = 0;
    for key in 0..90 {
        assert!(limiter.check(key).await.is_ok());
        exact += usize::from(limiter.peek(key).await == Some(999));
    }
    assert!(
        (30..90).contains(&exact),
        "{exact} of 90 keys are on the other servers"
    );
    cluster.servers_mut()[gone].restart().await.unwrap();
    timeout(BOUNDED, async {
        while limiter.is_degraded() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it is found again");
    assert!(limiter.check("alice").await.is_ok());
}
