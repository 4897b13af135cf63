//! Every instrument of the feature `otel`, read through the SDK.

#![cfg(feature = "otel")]

use std::{collections::BTreeMap, time::Duration};

use opentelemetry::{KeyValue, metrics::MeterProvider};
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, PeriodicReader, SdkMeterProvider,
    data::{AggregatedMetrics, MetricData, ScopeMetrics},
};
use rate_limit::{
    HOUR, Limiter, Policy, Quota, RateLimitLayer,
    key::{self, MissingKey},
};
use tower::{Layer, Service, service_fn};

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

fn policies(tight: u64) -> [Policy; 2] {
    [
        Policy::new("tight", Quota::count(tight).per(HOUR)),
        Policy::new("trial", Quota::count(1).per(HOUR)).shadow(true),
    ]
}

/// Five requests of one caller, one without a key, and one past the layer.
fn drive(limiter: &Limiter) {
    let layer = RateLimitLayer::from_limiter(limiter.clone())
        .key(key::header("x-api-key"))
        .missing_key(MissingKey::Allow)
        .bypass(|head| head.uri.path() == "/livez");
    let mut service = layer.layer(service_fn(async |_: http::Request<()>| {
        Ok::<_, std::convert::Infallible>(http::Response::new(()))
    }));
    for _ in 0..5 {
        let request = http::Request::get("/").header("x-api-key", "alice");
        drop(service.call(request.body(()).unwrap()));
    }
    drop(service.call(http::Request::get("/livez").body(()).unwrap()));
    drop(service.call(http::Request::new(())));
}

/// The series of one policy, whose counts are in the order of the names.
fn of_policy(policy: &str, counts: [f64; 6]) -> Vec<(String, f64, &'static str)> {
    let outcomes = [
        "allowed", "limited", "shadow", "no_key", "bypassed", "denied",
    ];
    let counts = outcomes.into_iter().zip(counts).map(|(outcome, count)| {
        let series = format!("rate_limit_requests_total{{outcome={outcome},policy={policy}}}");
        (series, count, "{request}")
    });
    let version = env!("CARGO_PKG_VERSION");
    let info = format!("rate_limit_info{{policy={policy},version={version}}}");
    counts.chain([(info, 1.0, "1")]).collect()
}

fn table(all: &[(String, f64, &'static str)]) -> Collected {
    series(
        all.iter()
            .map(|(series, value, unit)| (series.as_str(), *value, *unit)),
    )
}

#[test]
fn every_instrument_has_its_value_and_its_labels() {
    let (provider, exporter) = provider();
    let limiter = policies(2)
        .into_iter()
        .fold(Limiter::builder(), |builder, policy| builder.policy(policy));
    let limiter = limiter.build().unwrap();
    rate_limit::otel::observe(&provider.meter("shop"), &limiter);
    drive(&limiter);

    let mut expected = of_policy("tight", [2.0, 3.0, 0.0, 1.0, 1.0, 0.0]);
    expected.extend(of_policy("trial", [1.0, 0.0, 4.0, 0.0, 0.0, 0.0]));
    expected.push(("rate_limit_keys{policy=tight}".to_owned(), 1.0, "{key}"));
    expected.push((
        "rate_limit_live_evictions_total{policy=tight}".to_owned(),
        0.0,
        "{key}",
    ));
    assert_eq!(collect(&provider, &exporter), table(&expected));

    // Counters go on when the policies change.
    limiter.set_policies(policies(20)).unwrap();
    limiter.check("bob").unwrap();
    let seen = collect(&provider, &exporter);
    assert_eq!(
        seen["rate_limit_requests_total{outcome=allowed,policy=tight}"].0,
        3.0
    );
    assert_eq!(
        seen["rate_limit_requests_total{outcome=limited,policy=tight}"].0,
        3.0
    );

    drop(limiter);
    assert_eq!(collect(&provider, &exporter), Collected::new());
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn a_limiter_of_a_fleet_is_observed_with_its_redis() {
    use rate_limit::fleet::{FleetBackend, Lease};

    let redis = private_servers::Redis::start().await.unwrap();
    let (provider, exporter) = provider();
    let backend = FleetBackend::new(redis.url(), "otel")
        .unwrap()
        .lease(Lease::none());
    let policy = Policy::new("tight", Quota::count(2).per(HOUR));
    let limiter = Limiter::builder().policy(policy).build_on(backend).unwrap();
    rate_limit::otel::observe(&provider.meter("shop"), &limiter);
    limiter.check("alice").await.unwrap();
    limiter.check("alice").await.unwrap();
    limiter.check("alice").await.unwrap_err();

    let mut seen = collect(&provider, &exporter);
    let mut count = |series: &str| seen.remove(&format!("rate_limit_fleet_{series}"));
    let requests = |count: f64| Some((count, "{request}".to_owned()));
    let by_redis = count("decisions_total{policy=tight,source=redis}")
        .unwrap()
        .0;
    let by_memory = count("decisions_total{policy=tight,source=memory}")
        .unwrap()
        .0;
    assert!(by_redis >= 2.0, "{by_redis}");
    assert_eq!(by_redis + by_memory, 3.0);
    assert_eq!(
        count("decisions_total{policy=tight,source=lease}"),
        requests(0.0)
    );
    assert_eq!(
        count("decisions_total{policy=tight,source=outage}"),
        requests(0.0)
    );
    let answered = count("calls_total{outcome=answered,policy=tight}").unwrap();
    assert!(
        answered.0 >= by_redis && answered.1 == "{call}",
        "{answered:?}"
    );
    for failed in ["timeout", "error"] {
        let series = format!("calls_total{{outcome={failed},policy=tight}}");
        assert_eq!(count(&series), Some((0.0, "{call}".to_owned())));
    }
    assert_eq!(count("leased_requests{policy=tight}"), requests(0.0));
    assert_eq!(
        count("nodes{policy=tight}"),
        Some((1.0, "{node}".to_owned()))
    );
    assert_eq!(
        count("open{policy=tight}"),
        Some((0.0, "{server}".to_owned()))
    );
    // No key of Redis is in a table here.
    assert_eq!(
        seen,
        table(&of_policy("tight", [2.0, 1.0, 0.0, 0.0, 0.0, 0.0]))
    );
}
