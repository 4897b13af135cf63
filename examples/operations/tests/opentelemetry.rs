//! The metrics of the three crates arrive in OpenTelemetry, with units, labels and buckets.

use std::time::Duration;

use axum::{body::Body, http::Request};
use metrics::KeyName;
use metrics_exporter_otel::OpenTelemetryRecorder;
use metrics_exporter_prometheus::PrometheusBuilder;
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, PeriodicReader, SdkMeterProvider,
    data::{AggregatedMetrics, Metric, MetricData, ResourceMetrics, ScopeMetrics, SumDataPoint},
};
use overload_operations::{Settings, app};
use tokio::time::{Instant, sleep};
use tower::ServiceExt;

/// What a service does at its start; the rest of it does not know where its metrics go.
fn install(provider: &SdkMeterProvider) {
    let recorder = OpenTelemetryRecorder::new(provider.meter("overload"));
    metrics::with_local_recorder(&recorder, || {
        let capacity = tower_capacity::metrics::describe_and_buckets();
        let pools = pool_autotune::metrics::describe_and_buckets();
        let quotas = rate_limit::metrics::describe_and_buckets();
        for (name, buckets) in capacity.into_iter().chain(pools).chain(quotas) {
            recorder.set_histogram_bounds(&KeyName::from(name), buckets.to_vec());
        }
    });
    metrics::set_global_recorder(recorder).unwrap();
}

/// The metrics exported last.
struct Exported(Vec<ResourceMetrics>);

impl Exported {
    fn now(provider: &SdkMeterProvider, exporter: &InMemoryMetricExporter) -> Self {
        exporter.reset();
        provider.force_flush().unwrap();
        Self(exporter.get_finished_metrics().unwrap())
    }

    fn get(&self, name: &str) -> Option<&Metric> {
        let scopes = self.0.iter().flat_map(ResourceMetrics::scope_metrics);
        let mut metrics = scopes.flat_map(ScopeMetrics::metrics);
        metrics.find(|metric| metric.name() == name)
    }

    fn find(&self, name: &str) -> &Metric {
        let found = self.get(name);
        found.unwrap_or_else(|| panic!("{name} is not exported"))
    }

    /// The value of a counter where it has all these labels.
    fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let AggregatedMetrics::U64(MetricData::Sum(sum)) = self.find(name).data() else {
            panic!("{name} is no counter");
        };
        let has = |point: &SumDataPoint<u64>, (name, value): (&str, &str)| {
            let mut attributes = point.attributes();
            attributes.any(|label| label.key.as_str() == name && label.value.as_str() == value)
        };
        sum.data_points()
            .filter(|point| labels.iter().all(|&label| has(point, label)))
            .map(SumDataPoint::value)
            .sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_crate_exports_through_an_opentelemetry_meter() {
    let exporter = InMemoryMetricExporter::default();
    let reader = PeriodicReader::builder(exporter.clone())
        .with_interval(Duration::from_secs(3600))
        .build();
    let provider = SdkMeterProvider::builder().with_reader(reader).build();
    install(&provider);

    let mut settings = Settings::default();
    settings.quota = 3;
    let unused = PrometheusBuilder::new().build_recorder().handle();
    let app = app(&settings, unused).unwrap();
    for _ in 0..5 {
        let request = Request::get("/orders/1").header("x-api-key", "alice");
        let request = request.body(Body::empty()).unwrap();
        app.clone().oneshot(request).await.unwrap();
    }

    // Levels of a pool are set four times a second.
    let deadline = Instant::now() + Duration::from_secs(10);
    let metrics = loop {
        let metrics = Exported::now(&provider, &exporter);
        let has_levels = metrics.get(pool_autotune::metrics::MAX).is_some();
        if has_levels || Instant::now() > deadline {
            break metrics;
        }
        sleep(Duration::from_millis(20)).await;
    };

    let decided = |outcome| {
        let labels = [("policy", "default"), ("outcome", outcome)];
        metrics.count(rate_limit::metrics::REQUESTS, &labels)
    };
    let allowed = decided("allowed");
    assert!((3..=5).contains(&allowed), "{allowed}");
    assert_eq!(allowed + decided("limited"), 5);
    let admitted = [("limiter", "api"), ("decision", "admitted")];
    assert_eq!(
        metrics.count("tower_capacity_requests_total", &admitted),
        allowed
    );
    assert_eq!(metrics.find("tower_capacity_limit").unit(), "1");
    assert!(
        !metrics
            .find("tower_capacity_limit")
            .description()
            .is_empty()
    );

    let use_time = metrics.find(pool_autotune::metrics::USE_TIME);
    assert_eq!(use_time.unit(), "s");
    let AggregatedMetrics::F64(MetricData::Histogram(histogram)) = use_time.data() else {
        panic!("the use time is no histogram");
    };
    let point = histogram.data_points().next().unwrap();
    assert_eq!(point.count(), allowed);
    assert!(point.bounds().eq(pool_autotune::metrics::BUCKETS));
}
