//! Every instrument of the feature `otel`, read through the SDK.

mod support;

use std::{collections::BTreeMap, time::Duration};

use opentelemetry::{KeyValue, metrics::MeterProvider};
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, PeriodicReader, SdkMeterProvider,
    data::{AggregatedMetrics, MetricData, ScopeMetrics},
};
use pool_autotune::Autotuned;
use support::Memory;
use tokio::time::sleep;

/// What a reader collects: `name{key=value,…}`, and the value with its unit.
type Collected = BTreeMap<String, (f64, String)>;

fn collect(provider: &SdkMeterProvider, exporter: &InMemoryMetricExporter) -> Collected {
    exporter.reset();
    provider.force_flush().unwrap();
    let mut collected = Collected::new();
    for resource in exporter.get_finished_metrics().unwrap() {
        for metric in resource.scope_metrics().flat_map(ScopeMetrics::metrics) {
            let name = metric.name();
            assert!(!metric.description().is_empty(), "{name}");
            let points: Vec<(f64, Vec<&KeyValue>)> = match metric.data() {
                AggregatedMetrics::F64(MetricData::Gauge(gauge)) => gauge
                    .data_points()
                    .map(|point| (point.value(), point.attributes().collect()))
                    .collect(),
                AggregatedMetrics::U64(MetricData::Sum(sum)) if sum.is_monotonic() => sum
                    .data_points()
                    .map(|point| (point.value() as f64, point.attributes().collect()))
                    .collect(),
                AggregatedMetrics::I64(MetricData::Sum(sum)) if !sum.is_monotonic() => sum
                    .data_points()
                    .map(|point| (point.value() as f64, point.attributes().collect()))
                    .collect(),
                other => panic!("{name}: {other:?}"),
            };
            for (value, attributes) in points {
                let labels = attributes.iter();
                let mut labels: Vec<_> = labels
                    .map(|label| format!("{}={}", label.key, label.value))
                    .collect();
                labels.sort();
                let series = format!("{name}{{{}}}", labels.join(","));
                collected.insert(series, (value, metric.unit().to_owned()));
            }
        }
    }
    collected
}

/// Series as a table has them: name and labels, value, unit.
fn series<'a>(expected: impl IntoIterator<Item = (&'a str, f64, &'a str)>) -> Collected {
    let expected = expected.into_iter();
    expected
        .map(|(series, value, unit)| (series.to_owned(), (value, unit.to_owned())))
        .collect()
}

fn provider() -> (SdkMeterProvider, InMemoryMetricExporter) {
    let exporter = InMemoryMetricExporter::default();
    let reader = PeriodicReader::builder(exporter.clone())
        .with_interval(Duration::from_secs(3600))
        .build();
    let provider = SdkMeterProvider::builder().with_reader(reader).build();
    (provider, exporter)
}

#[tokio::test(start_paused = true)]
async fn every_instrument_has_its_value_and_its_labels() {
    let (provider, exporter) = provider();
    let memory = Memory::new(8, Duration::from_millis(10));
    let pool = Autotuned::builder(memory)
        .bounds(1..=1)
        .name("orders")
        .wait_timeout(Duration::from_millis(100))
        .build()
        .expect("valid settings");
    pool_autotune::otel::observe(&provider.meter("shop"), &pool);

    let held = pool.get().await.expect("free");
    assert!(pool.get().await.is_err(), "it waits 100 ms");
    sleep(Duration::from_millis(200)).await;
    drop(held);
    pool.set_bounds(3..=8).expect("within the maximum");
    let _held = pool.get().await.expect("free");
    sleep(Duration::from_millis(300)).await;

    let version = env!("CARGO_PKG_VERSION");
    let name = "db.client.connection.pool.name=orders";
    // One of three checkouts timed out, and the only connection is in use.
    let expected = [
        (
            format!("db.client.connection.count{{{name},db.client.connection.state=idle}}"),
            0.0,
            "{connection}",
        ),
        (
            format!("db.client.connection.count{{{name},db.client.connection.state=used}}"),
            1.0,
            "{connection}",
        ),
        (
            format!("db.client.connection.max{{{name}}}"),
            1.0,
            "{connection}",
        ),
        (
            format!("db.client.connection.pending_requests{{{name}}}"),
            0.0,
            "{request}",
        ),
        (
            format!("db.client.connection.timeouts{{{name}}}"),
            1.0,
            "{timeout}",
        ),
        (
            format!("pool_autotune_target_size{{{name}}}"),
            3.0,
            "{connection}",
        ),
        (
            format!("pool_autotune_min_size{{{name}}}"),
            3.0,
            "{connection}",
        ),
        (
            format!("pool_autotune_max_size{{{name}}}"),
            8.0,
            "{connection}",
        ),
        (format!("pool_autotune_held{{{name}}}"), 0.0, "{connection}"),
        (
            format!("pool_autotune_demand_ratio{{{name}}}"),
            1.0 / (1.0 - 1.0 / 3.0),
            "1",
        ),
        (
            format!("pool_autotune_info{{{name},mode=enforce,version={version}}}"),
            1.0,
            "1",
        ),
        (
            format!("pool_autotune_resizes_total{{{name},direction=up,reason=bounds}}"),
            1.0,
            "{resize}",
        ),
    ];
    let expected = expected
        .iter()
        .map(|(series, value, unit)| (series.as_str(), *value, *unit));
    let mut expected = series(expected);
    for verdict in VERDICTS {
        let in_force = f64::from(u8::from(verdict == "healthy"));
        let series = format!("pool_autotune_verdict{{{name},verdict={verdict}}}");
        expected.insert(series, (in_force, "1".to_owned()));
    }
    for (reason, count) in [
        ("timeout", 1.0),
        ("shed", 0.0),
        ("cancelled", 0.0),
        ("closed", 0.0),
        ("failed", 0.0),
    ] {
        let series = format!("pool_autotune_unserved_total{{{name},reason={reason}}}");
        expected.insert(series, (count, "{request}".to_owned()));
    }
    assert_eq!(collect(&provider, &exporter), expected);
}

const VERDICTS: [&str; 10] = [
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

#[tokio::test(start_paused = true)]
async fn a_pool_without_handles_is_no_longer_observed() {
    let (provider, exporter) = provider();
    let pool = Autotuned::new(Memory::new(8, Duration::from_millis(10))).expect("valid settings");
    pool_autotune::otel::observe(&provider.meter("shop"), &pool);
    assert!(!collect(&provider, &exporter).is_empty());
    drop(pool);
    // Its driver looks up once more.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(collect(&provider, &exporter), Collected::new());
}
