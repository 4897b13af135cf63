//! What operators see.
#![cfg(feature = "metrics")]

use std::collections::HashMap;

use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use rate_limit::{
    HOUR, Limiter, Policy, Quota, RateLimitLayer,
    key::{self, MissingKey},
};
use tower::{Layer, Service, service_fn};

/// Runs `act` and returns every counter as `name{policy,outcome}`.
fn recorded(act: impl FnOnce()) -> HashMap<String, u64> {
    let recorder = DebuggingRecorder::new();
    metrics::with_local_recorder(&recorder, act);
    let value = |value| match value {
        DebugValue::Counter(count) => count,
        DebugValue::Gauge(gauge) => gauge.into_inner() as u64,
        DebugValue::Histogram(_) => unreachable!("there are no histograms"),
    };
    let metrics = recorder.snapshotter().snapshot().into_vec();
    metrics
        .into_iter()
        .map(|(key, _, _, found)| {
            let key = key.key();
            let labels: Vec<_> = key.labels().map(|label| label.value()).collect();
            (
                format!("{}{{{}}}", key.name(), labels.join(",")),
                value(found),
            )
        })
        .collect()
}

#[test]
fn requests_are_counted_by_policy_and_outcome() {
    let recorded = recorded(|| {
        let limiter = Limiter::builder()
            .policy(Policy::new("tight", Quota::count(2).per(HOUR)))
            .policy(Policy::new("trial", Quota::count(1).per(HOUR)).shadow(true))
            .build()
            .unwrap();
        let layer = RateLimitLayer::from_limiter(limiter)
            .key(key::header("x-api-key"))
            .missing_key(MissingKey::Allow)
            .bypass(|head| head.uri.path() == "/livez");
        let mut service = layer.layer(service_fn(async |_: http::Request<()>| {
            Ok::<_, std::convert::Infallible>(http::Response::new(()))
        }));
        for _ in 0..5 {
            let request = http::Request::builder()
                .header("x-api-key", "alice")
                .body(())
                .unwrap();
            drop(service.call(request));
        }
        drop(service.call(http::Request::get("/livez").body(()).unwrap()));
        drop(service.call(http::Request::new(())));
    });
    assert_eq!(recorded["rate_limit_requests_total{tight,allowed}"], 2);
    assert_eq!(recorded["rate_limit_requests_total{tight,limited}"], 3);
    assert_eq!(recorded["rate_limit_requests_total{trial,allowed}"], 1);
    assert_eq!(recorded["rate_limit_requests_total{trial,shadow}"], 4);
    assert_eq!(recorded["rate_limit_requests_total{tight,bypassed}"], 1);
    assert_eq!(recorded["rate_limit_requests_total{tight,no_key}"], 1);
    assert_eq!(recorded["rate_limit_keys{tight}"], 1);
}

#[test]
fn keys_forgotten_in_debt_are_counted() {
    let recorded = recorded(|| {
        let limiter = Limiter::builder()
            .quota(Quota::count(1).per(HOUR))
            .max_keys(1)
            .build()
            .unwrap();
        for stranger in 0..limiter.key_capacity() + 3 {
            limiter.check(stranger).unwrap();
        }
    });
    assert_eq!(recorded["rate_limit_live_evictions_total{default}"], 3);
    assert_eq!(recorded["rate_limit_keys{default}"], 8);
}

#[test]
fn what_a_layer_in_shadow_mode_lets_through_is_counted_as_shadow() {
    let recorded = recorded(|| {
        let layer = RateLimitLayer::new(Quota::count(1).per(HOUR))
            .unwrap()
            .key(key::global())
            .shadow(true);
        let mut service = layer.layer(service_fn(async |_: http::Request<()>| {
            Ok::<_, std::convert::Infallible>(http::Response::new(()))
        }));
        for _ in 0..3 {
            drop(service.call(http::Request::new(())));
        }
    });
    assert_eq!(recorded["rate_limit_requests_total{default,allowed}"], 1);
    assert_eq!(recorded["rate_limit_requests_total{default,shadow}"], 2);
    assert_eq!(recorded["rate_limit_requests_total{default,limited}"], 0);
}
