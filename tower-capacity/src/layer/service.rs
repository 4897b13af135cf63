use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::{
    CapacityBody, CapacityFuture, UpgradePermit, layer::Config, upgrade::asks_for_upgrade,
};
use crate::{
    Limiter,
    gate::{Ask, Refused, RefusedReason},
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

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let mut ask = Ask::new();
        if self.config.request.reads() {
            let (parts, body) = request.into_parts();
            let bypasses = self.config.request.bypasses(&parts);
            if !bypasses {
                ask = self.config.request.ask(&parts);
            }
            request = Request::from_parts(parts, body);
            if bypasses {
                return CapacityFuture::bypassed(self.inner.call(request));
            }
        }
        let upgrade = match self.config.admit_upgrade(&request) {
            Ok(upgrade) => upgrade,
            Err(shed) => return CapacityFuture::refused(self.config.reject(&shed, request)),
        };
        let config = &self.config;
        if config.shadow {
            let (admission, _would) = config.limiter.admit_anyway();
            return CapacityFuture::admitted(&mut self.inner, request, admission, upgrade, config);
        }
        match config.limiter.try_enter(ask.parts().0) {
            Ok(admission) => {
                CapacityFuture::admitted(&mut self.inner, request, admission, upgrade, config)
            }
            Err(refused) if refused.reason() == RefusedReason::Full => {
                // The instance that was polled ready goes into the future, not a clone of it.
                let clone = self.inner.clone();
                let ready = mem::replace(&mut self.inner, clone);
                let ask = config.request.with_grpc_timeout(ask, request.headers());
                let admit = config.limiter.admit_with(ask);
                CapacityFuture::waiting(ready, request, admit, upgrade, Arc::clone(config))
            }
            Err(refused) => {
                config.limiter.note_refusal(&refused);
                CapacityFuture::refused(config.answer(refused, request))
            }
        }
    }
}

impl<R> Config<R> {
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

fn shed_by(limiter: &Limiter, refused: Refused) -> Shed {
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
