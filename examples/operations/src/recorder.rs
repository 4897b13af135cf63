use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Installs the Prometheus exporter as the process' recorder, with the settings that all rules and panels assume:
/// histograms with the buckets that each crate proposes (else they would be summaries, and could
/// not be added up over pods), no unit suffixes, every crate's metrics described.
///
/// # Errors
///
/// Fails if the process has a recorder.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let buckets: [(&str, &[f64]); 5] = [
        (
            tower_capacity::metrics::WAIT,
            &tower_capacity::metrics::WAIT_BUCKETS,
        ),
        (
            pool_autotune::metrics::CREATE_TIME,
            &pool_autotune::metrics::BUCKETS,
        ),
        (
            pool_autotune::metrics::WAIT_TIME,
            &pool_autotune::metrics::BUCKETS,
        ),
        (
            pool_autotune::metrics::USE_TIME,
            &pool_autotune::metrics::BUCKETS,
        ),
        (
            rate_limit::metrics::FLEET_CALL_SECONDS,
            &rate_limit::metrics::FLEET_CALL_BUCKETS,
        ),
    ];
    let builder =
        buckets
            .into_iter()
            .try_fold(PrometheusBuilder::new(), |builder, (name, buckets)| {
                builder.set_buckets_for_metric(Matcher::Full(prometheus_name(name)), buckets)
            })?;
    let recorder = builder.install_recorder()?;
    tower_capacity::metrics::describe_and_buckets();
    pool_autotune::metrics::describe_and_buckets();
    rate_limit::metrics::describe_and_buckets();
    let upkeep = recorder.clone();
    tokio::spawn(async move {
        // Or what is recorded is kept until the next scrape, which may never come.
        loop {
            tokio::time::sleep(UPKEEP_EVERY).await;
            upkeep.run_upkeep();
        }
    });
    Ok(recorder)
}

/// A name as the exporter shows it.
fn prometheus_name(name: &str) -> String {
    name.replace('.', "_")
}

const UPKEEP_EVERY: Duration = Duration::from_secs(5);
