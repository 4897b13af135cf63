//! A limiter as instruments of an OpenTelemetry meter, behind the feature `otel`.
//!
//! ```
//! use opentelemetry::metrics::MeterProvider;
//! use opentelemetry_sdk::metrics::SdkMeterProvider;
//! use tower_capacity::Limiter;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // As the service builds it, with a reader for its exporter.
//! let provider = SdkMeterProvider::builder().build();
//!
//! let limiter = Limiter::builder().name("api").build()?;
//! tower_capacity::otel::observe(&provider.meter("shop"), &limiter);
//! # Ok(())
//! # }
//! ```
//!
//! The limiter is read when the meter's reader collects, and not at requests. Names and labels are those
//! of [`metrics`](crate::metrics); every instrument has the attribute `limiter`, the name of the
//! limiter.
//!
//! | instrument | kind | unit | attributes |
//! |---|---|---|---|
//! | `tower_capacity_limit` | gauge | `{request}` | |
//! | `tower_capacity_limit_min`, `tower_capacity_limit_max` | gauge | `{request}` | |
//! | `tower_capacity_inflight`, `tower_capacity_held`, `tower_capacity_queued` | gauge | `{request}` | |
//! | `tower_capacity_demand_ratio` | gauge | `1` | |
//! | `tower_capacity_baseline_seconds`, if the law keeps one | gauge | `s` | |
//! | `tower_capacity_mode` | gauge | `1` | `mode` |
//! | `tower_capacity_info` | gauge | `1` | `version` |
//! | `tower_capacity_requests_total` | counter | `{request}` | `decision`, `reason` |
//! | `tower_capacity_outcomes_total` | counter | `{request}` | `outcome` |
//!
//! An admitted request is counted here when it leaves. Waits (`tower_capacity_wait_seconds`) and the
//! throttles of clients are not in a snapshot: with the feature `metrics` they reach a meter through a
//! recorder such as that of `metrics-exporter-otel`.

mod observed;

use std::sync::Arc;

use opentelemetry::{KeyValue, metrics::Meter};

use self::observed::{Observed, Reading};
use crate::{
    Limiter, LimiterSnapshot, Mode,
    accounting::Progress,
    gate::RefusedReason,
    metrics::{
        BASELINE, DEMAND_RATIO, HELD, INFLIGHT, INFO, LIMIT, LIMIT_MAX, LIMIT_MIN, MODE, OUTCOMES,
        QUEUED, REQUESTS,
    },
};

/// Registers the instruments of a limiter with `meter`.
///
/// To be called once for each limiter: callbacks of a meter cannot be taken back. They keep nothing
/// alive, and a limiter without a handle is no longer observed.
pub fn observe(meter: &Meter, limiter: &Limiter) {
    let shared = Arc::downgrade(&limiter.shared);
    let observed = Observed {
        handle: move || shared.upgrade().map(|shared| Limiter { shared }),
        attributes: vec![KeyValue::new("limiter", limiter.name().to_owned())],
    };
    let gauge = |name| meter.f64_observable_gauge(name);
    let counter = |name| meter.u64_observable_counter(name);
    for (name, read) in LEVELS {
        let level = move |limiter: &Limiter| vec![(read(&limiter.snapshot()) as f64, vec![])];
        observed.by(gauge(name), "{request}", level).build();
    }
    let demand = |limiter: &Limiter| vec![(limiter.pressure().demand_ratio(), vec![])];
    observed.by(gauge(DEMAND_RATIO), "1", demand).build();
    observed.by(gauge(BASELINE), "s", baseline).build();
    observed.by(gauge(MODE), "1", modes).build();
    observed.by(gauge(INFO), "1", |_| info()).build();
    observed
        .by(counter(REQUESTS), "{request}", requests)
        .build();
    observed
        .by(counter(OUTCOMES), "{request}", outcomes)
        .build();
}

type Level = (&'static str, fn(&LimiterSnapshot) -> usize);

const LEVELS: [Level; 6] = [
    (LIMIT, LimiterSnapshot::limit),
    (LIMIT_MIN, |snapshot| *snapshot.bounds().start()),
    (LIMIT_MAX, |snapshot| *snapshot.bounds().end()),
    (INFLIGHT, LimiterSnapshot::inflight),
    (HELD, LimiterSnapshot::held),
    (QUEUED, LimiterSnapshot::queued),
];

fn baseline(limiter: &Limiter) -> Vec<Reading<f64>> {
    let baseline = limiter.snapshot().explanation().baseline;
    baseline
        .into_iter()
        .map(|seconds| (seconds, vec![]))
        .collect()
}

fn modes(limiter: &Limiter) -> Vec<Reading<f64>> {
    let in_force = |mode| f64::from(u8::from(mode == limiter.mode()));
    let label = |mode: Mode| vec![KeyValue::new("mode", mode.as_str())];
    Mode::ALL.map(|mode| (in_force(mode), label(mode))).into()
}

fn info() -> Vec<Reading<f64>> {
    let version = KeyValue::new("version", env!("CARGO_PKG_VERSION"));
    vec![(1.0, vec![version])]
}

fn requests(limiter: &Limiter) -> Vec<Reading<u64>> {
    let snapshot = limiter.snapshot();
    let labels = |decision, reason| {
        vec![
            KeyValue::new("decision", decision),
            KeyValue::new("reason", reason),
        ]
    };
    let admitted = Progress::ALL.map(|progress| left(&snapshot, progress));
    let mut readings = vec![(admitted.iter().sum(), labels("admitted", "none"))];
    readings.extend(RefusedReason::ALL.map(|reason| {
        (
            snapshot.refusals_for(reason),
            labels("shed", reason.as_str()),
        )
    }));
    readings
}

fn outcomes(limiter: &Limiter) -> Vec<Reading<u64>> {
    let snapshot = limiter.snapshot();
    let label = |progress: Progress| vec![KeyValue::new("outcome", progress.outcome())];
    let reading = |progress| (left(&snapshot, progress), label(progress));
    Progress::ALL.map(reading).into()
}

/// Requests that left with this progress.
const fn left(snapshot: &LimiterSnapshot, progress: Progress) -> u64 {
    match progress {
        Progress::Running => snapshot.cancelled(),
        Progress::Succeeded => snapshot.completions(),
        Progress::Ignored => snapshot.ignored(),
        Progress::Dropped => snapshot.drops(),
    }
}
