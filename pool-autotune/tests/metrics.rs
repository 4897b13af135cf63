//! The names, labels and numbers that a dashboard reads.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use pool_autotune::Autotuned;
use support::Memory;
use tokio::time::sleep;

#[tokio::test(start_paused = true)]
async fn a_pool_reports_under_opentelemetry_names() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let memory = Memory::new(8, Duration::from_millis(10));
    let pool = Autotuned::builder(memory)
        .bounds(1..=1)
        .name("orders")
        .wait_timeout(Duration::from_millis(100))
        .build()
        .expect("valid settings");

    let held = pool.get().await.expect("free");
    assert!(pool.get().await.is_err(), "it waits 100 ms");
    sleep(Duration::from_millis(200)).await;
    drop(held);
    pool.set_bounds(3..=8).expect("within the maximum");
    let _held = pool.get().await.expect("free");
    sleep(Duration::from_millis(300)).await;

    let seen: BTreeMap<String, DebugValue> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .map(|(key, _, description, value)| {
            let (_, key) = key.into_parts();
            assert!(description.is_some(), "{key} is described");
            let mut labels: Vec<_> = key
                .labels()
                .map(|label| format!("{}={}", label.key(), label.value()))
                .collect();
            labels.sort();
            (format!("{} {}", key.name(), labels.join(" ")), value)
        })
        .collect();
    let name = "db.client.connection.pool.name=orders";
    let gauge = |value: f64| DebugValue::Gauge(value.into());
    let histogram =
        |values: &[f64]| DebugValue::Histogram(values.iter().map(|&value| value.into()).collect());
    let expected = [
        (
            format!("db.client.connection.count {name} db.client.connection.state=idle"),
            gauge(0.0),
        ),
        (
            format!("db.client.connection.count {name} db.client.connection.state=used"),
            gauge(1.0),
        ),
        (
            format!("db.client.connection.create_time {name}"),
            histogram(&[0.010]),
        ),
        (format!("db.client.connection.max {name}"), gauge(1.0)),
        (
            format!("db.client.connection.pending_requests {name}"),
            gauge(0.0),
        ),
        (
            format!("db.client.connection.timeouts {name}"),
            DebugValue::Counter(1),
        ),
        (
            format!("db.client.connection.use_time {name}"),
            histogram(&[0.300]),
        ),
        (
            format!("db.client.connection.wait_time {name}"),
            histogram(&[0.0, 0.1, 0.0]),
        ),
        (
            format!("pool_autotune_resizes_total {name} direction=up reason=bounds"),
            DebugValue::Counter(1),
        ),
        (format!("pool_autotune_target_size {name}"), gauge(3.0)),
        (format!("pool_autotune_held {name}"), gauge(0.0)),
        // One of three checkouts timed out, and the only connection is in use.
        (
            format!("pool_autotune_demand_ratio {name}"),
            gauge(1.0 / (1.0 - 1.0 / 3.0)),
        ),
        (format!("pool_autotune_min_size {name}"), gauge(3.0)),
        (format!("pool_autotune_max_size {name}"), gauge(8.0)),
        (
            format!(
                "pool_autotune_info {name} mode=enforce version={}",
                env!("CARGO_PKG_VERSION")
            ),
            gauge(1.0),
        ),
    ];
    let verdicts = [
        "healthy",
        "underprovisioned",
        "at_knee",
        "budget_bound",
        "budget_too_small",
        "budget_lost",
        "use_multiplexed",
        "connect_bound",
        "leaking",
        "nested_acquire",
    ];
    let verdicts = verdicts.map(|verdict| {
        let key = format!("pool_autotune_verdict {name} verdict={verdict}");
        (key, gauge(f64::from(u8::from(verdict == "healthy"))))
    });
    let unserved = ["timeout", "shed", "cancelled", "closed", "failed"].map(|reason| {
        let count = u64::from(reason == "timeout");
        let key = format!("pool_autotune_unserved_total {name} reason={reason}");
        (key, DebugValue::Counter(count))
    });
    let expected = expected.into_iter().chain(unserved).chain(verdicts);
    assert_eq!(seen, expected.collect::<BTreeMap<_, _>>());
}
