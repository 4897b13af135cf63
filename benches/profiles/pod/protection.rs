//! The limit and the quota in front of a pod.

use std::error::Error;
use std::time::Duration;

use axum::Router;
use rate_limit::fleet::FleetBackend;
use rate_limit::{Limiter as Quotas, Quota, RateLimitLayer, key};
use tower_capacity::Limiter;
use tower_capacity::limit::Fixed;

use super::spec::{Spec, USER, Way};

pub(super) fn limiter(
    spec: &Spec,
    pressure: impl Fn() -> tower_capacity::Pressure + Send + Sync + 'static,
) -> Option<Limiter> {
    let fixed = |most| {
        let limiter = Limiter::builder().law(Fixed::new(most)).max_queue(0);
        limiter.build().ok()
    };
    match spec.way {
        // What the cache serves does not depend on the database, and is not to be shed for it.
        Way::Ours
            if spec
                .profile
                .endpoints
                .iter()
                .any(|endpoint| endpoint.cached) =>
        {
            Limiter::builder().build().ok()
        }
        Way::Ours => Limiter::builder().downstream(pressure).build().ok(),
        Way::Static => spec.profile.documented.concurrency.and_then(fixed),
        Way::Swept(most) => fixed(most),
    }
}

/// Puts the documented quota in front: of each pod for itself, or one for all.
pub(super) fn limited<S>(app: Router<S>, spec: &Spec) -> Result<Router<S>, Box<dyn Error>>
where
    S: Clone + Send + Sync + 'static,
{
    let (Some(of), Some(redis)) = (spec.profile.quota, &spec.redis) else {
        return Ok(app);
    };
    let scale = &spec.profile.scale;
    let period = Duration::from_secs_f64(of.per_s * scale.time);
    let key = match of.per_user {
        true => key::header(USER),
        false => key::global(),
    };
    let times = |cells: u64| match (of.per_user, spec.is_ours()) {
        (true, _) => cells,
        (false, false) => scale.count(cells as usize) as u64,
        (false, true) => scale.count(cells as usize * spec.most_pods) as u64,
    };
    let quota = Quota::count(times(of.count))
        .per(period)
        .burst(times(of.burst));
    let quotas = Quotas::builder().quota(quota);
    Ok(match spec.is_ours() {
        true => {
            let backend = FleetBackend::new(redis, format!("profile-{}", spec.profile.name))?;
            let quotas = quotas.build_on(backend)?;
            app.layer(RateLimitLayer::from_limiter(quotas).key(key))
        }
        false => app.layer(RateLimitLayer::from_limiter(quotas.build()?).key(key)),
    })
}
