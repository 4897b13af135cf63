//! What operators see of a limiter on Redis.
#![cfg(all(feature = "redis", feature = "metrics", feature = "tracing"))]

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use private_servers::Redis;
use rate_limit::{
    HOUR, Limiter, Quota,
    fleet::{FleetBackend, FleetLimiter, Lease},
};
use tokio::time::{sleep, timeout};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a recorder was told, summed over several looks at it: a look sets all to zero.
#[derive(Debug, Default)]
struct Seen(HashMap<String, f64>);

impl Seen {
    fn look(&mut self, recorder: &Snapshotter) {
        for (key, _, _, value) in recorder.snapshot().into_vec() {
            let key = key.key();
            let labels: Vec<_> = key.labels().map(|label| label.value()).collect();
            assert_eq!(labels[0], "default", "the policy comes first");
            let name = format!("{}{{{}}}", key.name(), labels[1..].join(","));
            let old = self.0.entry(name).or_default();
            match value {
                DebugValue::Counter(count) => *old += count as f64,
                DebugValue::Gauge(gauge) => *old = gauge.into_inner(),
                DebugValue::Histogram(values) => *old += values.len() as f64,
            }
        }
    }

    fn at(&self, name: &str) -> f64 {
        let value = self.0.get(name);
        *value.unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }
}

/// What happens to a node when its Redis goes and comes back twice.
async fn two_outages(mut redis: Redis, limiter: FleetLimiter, recorder: &Snapshotter) -> Seen {
    for _ in 0..1_000 {
        assert!(limiter.check("alice@example.org").await.is_ok());
    }
    for _ in 0..2 {
        redis.kill();
        wait_until(|| limiter.is_degraded(), &limiter).await;
        assert!(limiter.check("bob@example.org").await.is_ok());
        redis.restart().await.unwrap();
        wait_until(|| !limiter.is_degraded(), &limiter).await;
    }
    // Gauges are set with the next count of the nodes.
    let mut seen = Seen::default();
    let gauges = || {
        seen.look(recorder);
        seen.0.get("rate_limit_fleet_nodes{}") == Some(&1.0)
    };
    wait_until(gauges, &limiter).await;
    seen
}

async fn wait_until(mut done: impl FnMut() -> bool, limiter: &FleetLimiter) {
    timeout(Duration::from_secs(10), async {
        while !done() {
            limiter.check("alice@example.org").await.unwrap();
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("it is noticed");
}

#[test]
fn one_event_for_each_transition_and_metrics_by_policy() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let recorder = DebuggingRecorder::new();
    // Everything happens on this thread.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let snapshotter = recorder.snapshotter();
    let seen = tracing::subscriber::with_default(subscriber, || {
        metrics::with_local_recorder(&recorder, || {
            runtime.block_on(async {
                let redis = Redis::start().await.unwrap();
                let backend = FleetBackend::new(redis.url(), "test").unwrap();
                let backend = backend
                    .deadline(Duration::from_secs(1))
                    .lease(Lease::adaptive());
                let quota = Quota::count(1_000_000).per(HOUR);
                let limiter = Limiter::builder().quota(quota).build_on(backend).unwrap();
                two_outages(redis, limiter, &snapshotter).await
            })
        })
    });

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let with = |words: &str| log.lines().filter(|line| line.contains(words)).count();
    assert_eq!(with("redis unavailable, applying on_outage"), 2, "{log}");
    assert_eq!(with("redis is asked again"), 2, "{log}");
    assert_eq!(log.lines().count(), 4, "{log}");
    assert!(
        log.contains("reason=\"it does not accept the connection\""),
        "{log}"
    );
    assert!(
        log.contains("server=127.0.0.1:") && log.contains("nodes=1"),
        "{log}"
    );
    assert!(!log.contains("example.org"), "{log}");

    let at = |name: &str| seen.at(name);
    assert!(at("rate_limit_fleet_decisions_total{lease}") > 500.0);
    assert!(at("rate_limit_fleet_decisions_total{redis}") > 0.0);
    assert!(at("rate_limit_fleet_decisions_total{outage}") > 0.0);
    let answered = at("rate_limit_fleet_calls_total{answered}");
    assert!(answered > 0.0);
    assert!(at("rate_limit_fleet_call_seconds{}") >= answered);
    assert_eq!(at("rate_limit_fleet_open{}"), 0.0);
    assert_eq!(at("rate_limit_fleet_nodes{}"), 1.0);
    at("rate_limit_fleet_leased_requests{}");
    assert!(at("rate_limit_requests_total{allowed}") > 1_000.0);
}
