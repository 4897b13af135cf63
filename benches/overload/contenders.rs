//! The limiters, each around the same backend.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use congestion_limiter::{
    limiter::{DefaultLimiter, Limiter as _, Outcome},
    limits::{Gradient, Vegas},
};
use little_loadshedder::LoadShedResponse;
use tower::{Layer, Service, ServiceExt, limit::GlobalConcurrencyLimitLayer, load_shed::LoadShed};
use tower_capacity::{Limiter, PlainCapacityLayer};
use tower_resilience_adaptive as resilience;

use crate::{backend::Backend, scenarios::OBJECTIVE};

/// What became of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reply {
    Done,
    Refused,
}

/// Sends one request.
pub(crate) type Call = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Reply> + Send>> + Send + Sync>;

/// Static limits among which the ideal is looked for; the backends have 8 workers or 2 cores.
pub(crate) const STATIC_LIMITS: [usize; 7] = [4, 8, 12, 16, 24, 36, 48];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    Ours,
    /// In order of arrival, as long as a request may wait.
    OursWithoutCodel,
    /// `LoadShed` over `ConcurrencyLimit`, with this limit.
    Tower(usize),
    LittleLoadshedder,
    CongestionVegas,
    CongestionGradient,
    AccVegas,
    AccGradient2,
    ResilienceAimd,
    ResilienceVegas,
    ResilienceGradient2,
    Nothing,
}

pub(crate) fn all() -> Vec<Contender> {
    let mut all = vec![
        Contender::Ours,
        Contender::OursWithoutCodel,
        Contender::LittleLoadshedder,
        Contender::CongestionVegas,
        Contender::CongestionGradient,
        Contender::AccVegas,
        Contender::AccGradient2,
        Contender::ResilienceAimd,
        Contender::ResilienceVegas,
        Contender::ResilienceGradient2,
        Contender::Nothing,
    ];
    all.extend(STATIC_LIMITS.map(Contender::Tower));
    all
}

impl Contender {
    pub(crate) const fn is_static(self) -> bool {
        matches!(self, Self::Tower(_))
    }

    pub(crate) fn name(self) -> String {
        match self {
            Self::Ours => "tower-capacity".to_owned(),
            Self::OursWithoutCodel => "tower-capacity, no CoDel".to_owned(),
            Self::Tower(limit) => format!("tower limit {limit}"),
            Self::LittleLoadshedder => "little-loadshedder".to_owned(),
            Self::CongestionVegas => "congestion-limiter Vegas".to_owned(),
            Self::CongestionGradient => "congestion-limiter Gradient".to_owned(),
            Self::AccVegas => "tower-acc Vegas".to_owned(),
            Self::AccGradient2 => "tower-acc Gradient2".to_owned(),
            Self::ResilienceAimd => "tower-resilience AIMD".to_owned(),
            Self::ResilienceVegas => "tower-resilience Vegas".to_owned(),
            Self::ResilienceGradient2 => "tower-resilience Gradient2".to_owned(),
            Self::Nothing => "nothing".to_owned(),
        }
    }

    /// Each with its own defaults. Where one has to be told what it is to reach, it is told: the
    /// objective, and a greatest limit that is not in the way.
    pub(crate) fn wrap(self, backend: Backend) -> Call {
        match self {
            Self::Ours => sent(PlainCapacityLayer::adaptive().layer(backend)),
            Self::OursWithoutCodel => {
                let limiter = Limiter::builder().codel(None).build();
                let limiter = limiter.expect("possible bounds");
                sent(PlainCapacityLayer::new(limiter).layer(backend))
            }
            Self::Tower(limit) => shed(GlobalConcurrencyLimitLayer::new(limit).layer(backend)),
            Self::LittleLoadshedder => {
                // A weight of the newest sample as in its own example; half of the objective as
                // average, since it says nothing about percentiles.
                let target = OBJECTIVE / 2;
                let service = little_loadshedder::LoadShed::new(backend, 0.01, target);
                sent(service.map_result(|result| match result {
                    Ok(LoadShedResponse::Inner(())) => Ok(()),
                    Ok(LoadShedResponse::Overload) => Err("overload".into()),
                    Err(error) => Err(tower::BoxError::from(error)),
                }))
            }
            Self::CongestionVegas => congestion(Vegas::new(INITIAL, 1..=GREATEST), backend),
            Self::CongestionGradient => congestion(Gradient::new(INITIAL, 1..=GREATEST), backend),
            Self::AccVegas => {
                let law = tower_acc::Vegas::builder();
                let law = law.initial_limit(INITIAL).max_limit(GREATEST).build();
                shed(tower_acc::ConcurrencyLimitLayer::new(law).layer(backend))
            }
            Self::AccGradient2 => {
                let law = tower_acc::Gradient2::builder();
                let law = law.initial_limit(INITIAL).max_limit(GREATEST).build();
                shed(tower_acc::ConcurrencyLimitLayer::new(law).layer(backend))
            }
            Self::ResilienceAimd => {
                let law = resilience::Aimd::builder().initial_limit(INITIAL);
                let law = law.max_limit(GREATEST).latency_threshold(OBJECTIVE / 2);
                let law = law.build().expect("possible numbers");
                shed(resilience::AdaptiveLimiterLayer::new(law).layer(backend))
            }
            Self::ResilienceVegas => {
                let law = resilience::Vegas::builder().initial_limit(INITIAL);
                let law = law.max_limit(GREATEST).build().expect("possible numbers");
                shed(resilience::AdaptiveLimiterLayer::new(law).layer(backend))
            }
            Self::ResilienceGradient2 => {
                let law = resilience::Gradient2::builder().initial_limit(INITIAL);
                let law = law.max_limit(GREATEST).build().expect("possible numbers");
                shed(resilience::AdaptiveLimiterLayer::new(law).layer(backend))
            }
            Self::Nothing => sent(backend),
        }
    }
}

/// Where those start that have to be told, and how far they may go.
const INITIAL: usize = 20;
const GREATEST: usize = 1_000;

/// One clone of the service for each request.
pub(crate) fn sent<S>(service: S) -> Call
where
    S: Service<()> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    Arc::new(move || {
        let service = service.clone();
        Box::pin(async move {
            match service.oneshot(()).await {
                Ok(_) => Reply::Done,
                Err(_) => Reply::Refused,
            }
        })
    })
}

/// Like [`sent`], for a service that would wait in `poll_ready` for as long as it takes.
fn shed<S>(service: S) -> Call
where
    S: Service<()> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<tower::BoxError>,
{
    sent(LoadShed::new(service))
}

/// It is no Tower layer: acquire, work, release.
fn congestion<L>(law: L, backend: Backend) -> Call
where
    L: congestion_limiter::limits::LimitAlgorithm + std::fmt::Debug + Send + Sync + 'static,
{
    let limiter = Arc::new(DefaultLimiter::new(law));
    Arc::new(move || {
        let limiter = Arc::clone(&limiter);
        let mut backend = backend.clone();
        Box::pin(async move {
            let Some(token) = limiter.try_acquire().await else {
                return Reply::Refused;
            };
            let Ok(()) = backend.call(()).await;
            limiter.release(token, Some(Outcome::Success)).await;
            Reply::Done
        })
    })
}

/// A client's own patience, longer than that of the load.
pub(crate) const CLIENT_TIMEOUT: Duration = Duration::from_secs(2);
