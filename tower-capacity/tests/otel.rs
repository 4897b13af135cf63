//! Every instrument of the feature `otel`, read through the SDK.

#![cfg(feature = "otel")]

use std::{collections::BTreeMap, time::Duration};

use opentelemetry::{KeyValue, metrics::MeterProvider};
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, PeriodicReader, SdkMeterProvider,
    data::{AggregatedMetrics, MetricData, ScopeMetrics},
};
use tower_capacity::{Limiter, Mode, Outcome, limit::Fixed};

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

fn limiter(name: &str) -> Limiter {
    let limiter = Limiter::builder().name(name).law(Fixed::new(2));
    limiter.bounds(1..=8).max_queue(0).build().unwrap()
}

#[test]
fn every_instrument_has_its_value_and_its_labels() {
    let (provider, exporter) = provider();
    let limiter = limiter("api");
    tower_capacity::otel::observe(&provider.meter("shop"), &limiter);
    limiter.set_mode(Mode::Shadow);

    let _first = limiter.try_admit().unwrap();
    for outcome in [Outcome::Success, Outcome::Ignored, Outcome::Dropped] {
        limiter.try_admit().unwrap().complete(outcome);
    }
    drop(limiter.try_admit().unwrap());
    let _second = limiter.try_admit().unwrap();
    for _ in 0..3 {
        limiter.try_admit().unwrap_err();
    }

    let shed = |reason, count| {
        let series =
            format!("tower_capacity_requests_total{{decision=shed,limiter=api,reason={reason}}}");
        (series, (count, "{request}".to_owned()))
    };
    let version = env!("CARGO_PKG_VERSION");
    let info = format!("tower_capacity_info{{limiter=api,version={version}}}");
    // A fixed limit keeps no baseline.
    let mut expected = series([
        ("tower_capacity_limit{limiter=api}", 2.0, "{request}"),
        ("tower_capacity_limit_min{limiter=api}", 1.0, "{request}"),
        ("tower_capacity_limit_max{limiter=api}", 8.0, "{request}"),
        ("tower_capacity_inflight{limiter=api}", 2.0, "{request}"),
        ("tower_capacity_held{limiter=api}", 0.0, "{request}"),
        ("tower_capacity_queued{limiter=api}", 0.0, "{request}"),
        ("tower_capacity_demand_ratio{limiter=api}", 1.0, "1"),
        ("tower_capacity_mode{limiter=api,mode=enforce}", 0.0, "1"),
        ("tower_capacity_mode{limiter=api,mode=shadow}", 1.0, "1"),
        ("tower_capacity_mode{limiter=api,mode=off}", 0.0, "1"),
        (&info, 1.0, "1"),
        (
            "tower_capacity_requests_total{decision=admitted,limiter=api,reason=none}",
            4.0,
            "{request}",
        ),
        (
            "tower_capacity_outcomes_total{limiter=api,outcome=success}",
            1.0,
            "{request}",
        ),
        (
            "tower_capacity_outcomes_total{limiter=api,outcome=ignored}",
            1.0,
            "{request}",
        ),
        (
            "tower_capacity_outcomes_total{limiter=api,outcome=dropped}",
            1.0,
            "{request}",
        ),
        (
            "tower_capacity_outcomes_total{limiter=api,outcome=cancelled}",
            1.0,
            "{request}",
        ),
    ]);
    expected.extend([shed("full", 3.0)]);
    let others = [
        "queue_full",
        "wait_timeout",
        "overloaded",
        "displaced",
        "deadline",
        "downstream",
        "closed",
    ];
    expected.extend(others.map(|reason| shed(reason, 0.0)));
    assert_eq!(collect(&provider, &exporter), expected);
}

#[test]
fn limiters_of_one_meter_are_told_apart_by_their_names() {
    let (provider, exporter) = provider();
    let meter = provider.meter("shop");
    let (api, batch) = (limiter("api"), limiter("batch"));
    for limiter in [&api, &batch] {
        tower_capacity::otel::observe(&meter, limiter);
    }
    let _inside = batch.try_admit().unwrap();
    let seen = collect(&provider, &exporter);
    assert_eq!(seen["tower_capacity_inflight{limiter=api}"].0, 0.0);
    assert_eq!(seen["tower_capacity_inflight{limiter=batch}"].0, 1.0);
}

#[tokio::test(start_paused = true)]
async fn the_baseline_of_a_law_is_in_seconds() {
    let (provider, exporter) = provider();
    let limiter = Limiter::builder().name("api").build().unwrap();
    tower_capacity::otel::observe(&provider.meter("shop"), &limiter);
    for _ in 0..200 {
        let mut admission = limiter.try_admit().unwrap();
        tokio::time::advance(Duration::from_millis(10)).await;
        admission.complete(Outcome::Success);
    }
    let seen = collect(&provider, &exporter);
    let (seconds, unit) = &seen["tower_capacity_baseline_seconds{limiter=api}"];
    assert!((0.009..0.012).contains(seconds), "{seconds}");
    assert_eq!(unit, "s");
}

#[test]
fn a_limiter_without_handles_is_no_longer_observed() {
    let (provider, exporter) = provider();
    let limiter = limiter("api");
    tower_capacity::otel::observe(&provider.meter("shop"), &limiter);
    assert!(!collect(&provider, &exporter).is_empty());
    drop(limiter);
    assert_eq!(collect(&provider, &exporter), Collected::new());
}
