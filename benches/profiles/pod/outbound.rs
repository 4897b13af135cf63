//! Calls to the API of another service, within what it grants.

use std::time::Duration;

use axum::body::Body;
use http::Request;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rate_limit::fleet::{FleetBackend, FleetLimiter, Lease};
use rate_limit::shaper::{Shaper, ShaperLayer};
use rate_limit::{Limiter, MINUTE, Quota};
use tokio::time::{Instant, sleep, sleep_until};
use tower::{Layer, ServiceExt};

use super::Spec;

type Failed = Box<dyn std::error::Error>;

/// Makes this pod's part of the calls that are wanted, for ever.
///
/// Documented, each pod keeps the numbers for itself, as they are copied. Ours: one quota for the
/// fleet, and of the calls at once each pod's part.
pub(super) fn start(spec: &Spec) -> Result<(), Failed> {
    let (Some(outbound), Some(api), Some(redis)) =
        (spec.profile.outbound, spec.api.clone(), &spec.redis)
    else {
        return Ok(());
    };
    let shaper = Shaper::builder();
    let (shaper, fleet) = match spec.is_ours() {
        false => {
            let quota = Quota::count(outbound.per_minute).per(MINUTE);
            (shaper.quota(quota).concurrency(outbound.at_once), None)
        }
        true => {
            let part = (outbound.at_once / spec.most_pods).max(1);
            (
                shaper.concurrency(part),
                Some(fleet(outbound.per_minute, outbound.at_once, redis)?),
            )
        }
    };
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let client = ShaperLayer::new(shaper.build()?).layer(client);
    let every = Duration::from_secs_f64(60.0 * spec.pods as f64 / outbound.wanted_per_minute);
    tokio::spawn(async move {
        let mut next = Instant::now();
        loop {
            next += every;
            sleep_until(next).await;
            let (client, fleet, api) = (client.clone(), fleet.clone(), api.clone());
            tokio::spawn(async move {
                if let Some(fleet) = fleet {
                    while let Err(error) = fleet.check("transcription").await {
                        let Some(wait) = error.retry_after() else {
                            return;
                        };
                        sleep(wait).await;
                    }
                }
                let Ok(request) = Request::get(api).body(Body::empty()) else {
                    return;
                };
                // The API counts what it served and refused.
                let _ = client.oneshot(request).await;
            });
        }
    });
    Ok(())
}

/// One quota for all pods, with a burst of what may be under way at once.
fn fleet(per_minute: u64, at_once: usize, redis: &str) -> Result<FleetLimiter, Failed> {
    let quota = Quota::count(per_minute).per(MINUTE).burst(at_once as u64);
    let backend = FleetBackend::new(redis, "transcription")?.lease(Lease::none());
    Ok(Limiter::builder().quota(quota).build_on(backend)?)
}
