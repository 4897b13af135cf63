use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::{
    CapacityBody, CapacityFuture, UpgradePermit,
    layer::Config,
    upgrade::{Held, asks_for_upgrade},
};
use crate::{
    Limiter, Priority,
    gate::{Ask, Partition, Refused},
    reject::{Reject, Shed},
};

/// Service that admits requests within an adaptive limit, and sheds the rest.
///
/// Made by [`CapacityLayer`](crate::CapacityLayer). See the [module docs](crate::layer).
pub struct Capacity<S, R = crate::DefaultReject> {
    inner: S,
    config: Arc<Config<R>>,
}

impl<S, R> Capacity<S, R> {
    pub(super) const fn new(inner: S, config: Arc<Config<R>>) -> Self {
        Self { inner, config }
    }

    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service, mutably.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Takes the inner service out.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: Clone, R> Clone for Capacity<S, R> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), Arc::clone(&self.config))
    }
}

impl<S, R, ReqBody, ResBody> Service<Request<ReqBody>> for Capacity<S, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    ResBody: Body,
    R: Reject<ResBody>,
{
    type Response = Response<CapacityBody<ResBody>>;
    type Error = S::Error;
    type Future = CapacityFuture<S, R, ReqBody, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let config = &self.config;
        if !config.is_plain() || asks_for_upgrade(&request) {
            return self.call_configured(request);
        }
        match config.limiter.try_enter(Priority::Default, Partition::NONE) {
            Some(admission) => CapacityFuture::running(
                self.inner.call(request),
                Held::Alone(admission),
                config.response.clone(),
            ),
            None => self.wait(request, Ask::new(), None),
        }
    }
}

impl<S, R> Capacity<S, R> {
    /// Admits a request that has to be read first.
    #[inline(never)]
    fn call_configured<ReqBody, ResBody>(
        &mut self,
        request: Request<ReqBody>,
    ) -> CapacityFuture<S, R, ReqBody, ResBody>
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
        ResBody: Body,
        R: Reject<ResBody>,
    {
        let config = &self.config;
        let (parts, body) = request.into_parts();
        if config.request.bypasses(&parts) {
            let request = Request::from_parts(parts, body);
            return CapacityFuture::bypassed(self.inner.call(request));
        }
        let ask = config.request.ask(&parts, &config.limiter);
        let request = Request::from_parts(parts, body);
        let upgrade = match config.admit_upgrade(&request) {
            Ok(upgrade) => upgrade,
            Err(shed) => return CapacityFuture::refused(config.reject(&shed, request)),
        };
        if config.shadow {
            let (admission, _would) = config.limiter.admit_anyway();
            return CapacityFuture::admitted(&mut self.inner, request, admission, upgrade, config);
        }
        let (priority, partition, _) = ask.parts();
        match config.limiter.try_enter(priority, partition) {
            Some(admission) => {
                CapacityFuture::admitted(&mut self.inner, request, admission, upgrade, config)
            }
            None => self.wait(request, ask, upgrade),
        }
    }

    /// Waits for a permit, if whoever refused one might still give it.
    #[cold]
    fn wait<ReqBody, ResBody>(
        &mut self,
        request: Request<ReqBody>,
        ask: Ask,
        upgrade: Option<UpgradePermit>,
    ) -> CapacityFuture<S, R, ReqBody, ResBody>
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
        ResBody: Body,
        R: Reject<ResBody>,
    {
        let config = &self.config;
        let (priority, partition, _) = ask.parts();
        if let Some(refused) = config.limiter.turn_away(priority, partition) {
            return CapacityFuture::refused(config.answer(refused, request));
        }
        // The instance that was polled ready goes into the future, not a clone of it.
        let clone = self.inner.clone();
        let ready = mem::replace(&mut self.inner, clone);
        let ask = config.request.with_grpc_timeout(ask, request.headers());
        let admit = config.limiter.admit_with(ask);
        CapacityFuture::waiting(ready, request, admit, upgrade, Arc::clone(config))
    }
}

impl<R> Config<R> {
    /// Whether every request asks for the same, and nothing needs to be read of it.
    #[inline]
    fn is_plain(&self) -> bool {
        !self.shadow && self.upgrades.is_none() && !self.request.reads()
    }

    /// Admits the connection that the request wants upgraded, if such are counted apart.
    fn admit_upgrade<B>(&self, request: &Request<B>) -> Result<Option<UpgradePermit>, Shed> {
        let Some(upgrades) = &self.upgrades else {
            return Ok(None);
        };
        if !asks_for_upgrade(request) {
            return Ok(None);
        }
        let admitted = if self.shadow {
            Ok(upgrades.admit_anyway().0)
        } else {
            upgrades.try_admit()
        };
        match admitted {
            Ok(admission) => Ok(Some(UpgradePermit::new(admission))),
            Err(refused) => Err(shed_by(upgrades, refused)),
        }
    }

    /// Answers a request that was refused.
    pub(super) fn answer<ReqBody, ResBody>(
        &self,
        refused: Refused,
        request: Request<ReqBody>,
    ) -> Response<CapacityBody<ResBody>>
    where
        ResBody: Body,
        R: Reject<ResBody>,
    {
        self.reject(&shed_by(&self.limiter, refused), request)
    }

    fn reject<ReqBody, ResBody>(
        &self,
        shed: &Shed,
        request: Request<ReqBody>,
    ) -> Response<CapacityBody<ResBody>>
    where
        ResBody: Body,
        R: Reject<ResBody>,
    {
        let (parts, _body) = request.into_parts();
        self.reject.reject(shed, &parts)
    }
}

#[inline]
pub(super) fn shed_by(limiter: &Limiter, refused: Refused) -> Shed {
    let ahead = refused.inflight() + refused.queued();
    Shed::new(refused, limiter.expected_drain(ahead))
}

impl<S: fmt::Debug, R: fmt::Debug> fmt::Debug for Capacity<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capacity")
            .field("inner", &self.inner)
            .field("config", &self.config)
            .finish()
    }
}
