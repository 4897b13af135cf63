use std::{
    fmt, mem,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use http::{HeaderMap, Method, Request, Response, Version, request};
use http_body::Body;
use tower_service::Service;

use super::{
    CapacityBody, CapacityFuture, UpgradePermit,
    held::Held,
    layer::Config,
    nesting::{self, Inside},
    slot::Slot,
    upgrade::asks_for_upgrade,
};
use crate::{
    Limiter, Mode,
    accessors::inner_service_accessors,
    gate::{Ask, Claim, Refused, RefusedReason},
    reject::{Reject, Shed, fit_to_method},
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

    inner_service_accessors!();
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
        if !config.is_usual(&request) {
            return self.call_unusual(request);
        }
        // Most requests; each is moved once, into the inner service.
        if let Some(admission) = (config.limiter).try_enter(Claim::ONE) {
            let inside = Inside::of(config.limiter.id());
            let future = self.inner.call(request);
            drop(inside);
            let response = config.response.clone();
            return CapacityFuture::running(future, Held::Alone(admission), response);
        }
        self.call_refused(request)
    }
}

impl<S, R> Capacity<S, R> {
    /// Refuses a request that found no permit, unless it may wait for one.
    #[cold]
    #[inline(never)]
    fn call_refused<ReqBody, ResBody>(
        &mut self,
        request: Request<ReqBody>,
    ) -> CapacityFuture<S, R, ReqBody, ResBody>
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
        ResBody: Body,
        R: Reject<ResBody>,
    {
        let config = &self.config;
        let limiter = &config.limiter;
        let Some(refused) = limiter.turn_away(Claim::ONE) else {
            let ask = (config.request).with_grpc_timeout(Ask::new(), request.headers());
            return self.wait(request, ask, None);
        };
        let (parts, _body) = request.into_parts();
        CapacityFuture::refused(config.refuse(refused, parts))
    }

    /// Waits for a permit.
    fn wait<ReqBody, ResBody>(
        &mut self,
        request: Request<ReqBody>,
        ask: Ask,
        apart: Option<UpgradePermit>,
    ) -> CapacityFuture<S, R, ReqBody, ResBody>
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
        ResBody: Body,
        R: Reject<ResBody>,
    {
        // The instance that was polled ready goes into the future, not a clone of it.
        let clone = self.inner.clone();
        let ready = mem::replace(&mut self.inner, clone);
        let admit = self.config.limiter.admit_with(ask);
        CapacityFuture::waiting(ready, request, admit, apart, Arc::clone(&self.config))
    }

    /// Serves a request that has to be read first.
    #[cold]
    #[inline(never)]
    fn call_unusual<ReqBody, ResBody>(
        &mut self,
        request: Request<ReqBody>,
    ) -> CapacityFuture<S, R, ReqBody, ResBody>
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
        ResBody: Body,
        R: Reject<ResBody>,
    {
        let (parts, body) = request.into_parts();
        match self.config.admit(&parts) {
            Entry::Admitted(held, apart) => {
                let request = Request::from_parts(parts, body);
                CapacityFuture::admitted(&mut self.inner, request, held, apart, &self.config)
            }
            Entry::Refused(shed) => CapacityFuture::refused(self.config.reject(&shed, parts)),
            Entry::MayWait(ask, apart) => self.wait(Request::from_parts(parts, body), ask, apart),
        }
    }
}

/// What becomes of a request. Each with the permit of the connection that it wants upgraded, if
/// such are counted apart.
enum Entry {
    Admitted(Held, Option<UpgradePermit>),
    Refused(Shed),
    MayWait(Ask, Option<UpgradePermit>),
}

impl<R> Config<R> {
    /// Whether nothing of the request has to be read, and the limiter decides alone.
    #[inline]
    fn is_usual<B>(&self, request: &Request<B>) -> bool {
        self.reads_nothing
            && self.limiter.mode() == Mode::Enforce
            && !self.is_upgrade(request.method(), request.version(), request.headers())
            && !nesting::is_counted_by(self.limiter.id())
    }

    fn admit(&self, request: &request::Parts) -> Entry {
        let limiter = &self.limiter;
        if nesting::is_counted_by(limiter.id()) || self.request.bypasses(request) {
            return Entry::Admitted(Held::NOTHING, None);
        }
        let mode = limiter.mode();
        let apart = match self.admit_upgrade(request, mode) {
            Ok(apart) => apart,
            Err(shed) => return Entry::Refused(shed),
        };
        if mode == Mode::Off {
            return match Held::uncounted(limiter) {
                Ok(held) => Entry::Admitted(held, apart),
                Err(refused) => Entry::Refused(shed_by(limiter, refused)),
            };
        }
        let ask = self.request.ask(request, limiter);
        if mode == Mode::Shadow {
            let ask = self.request.with_grpc_timeout(ask, &request.headers);
            return match Held::shadow(limiter, ask) {
                Ok(held) => Entry::Admitted(held, apart),
                Err(refused) => Entry::Refused(shed_by(limiter, refused)),
            };
        }
        if let Some(admission) = limiter.try_enter(ask.claim()) {
            return Entry::Admitted(Held::Alone(admission), apart);
        }
        match limiter.turn_away(ask.claim()) {
            Some(refused) => Entry::Refused(shed_by(limiter, refused)),
            None => {
                let ask = self.request.with_grpc_timeout(ask, &request.headers);
                Entry::MayWait(ask, apart)
            }
        }
    }

    #[inline]
    pub(super) fn is_upgrade(
        &self,
        method: &Method,
        version: Version,
        headers: &HeaderMap,
    ) -> bool {
        asks_for_upgrade(method, version, headers, self.protocols.as_ref())
    }

    /// Admits the connection that the request wants upgraded, if such are counted apart.
    fn admit_upgrade(
        &self,
        request: &request::Parts,
        mode: Mode,
    ) -> Result<Option<UpgradePermit>, Shed> {
        let Some(upgrades) = &self.upgrades else {
            return Ok(None);
        };
        if !self.is_upgrade(&request.method, request.version, &request.headers) {
            return Ok(None);
        }
        let slot = match upgrades.try_admit() {
            Ok(admission) => Slot::from(admission),
            Err(refused) if mode == Mode::Enforce || refused.reason() == RefusedReason::Closed => {
                return Err(shed_by(upgrades, refused));
            }
            Err(_) => upgrades
                .enter_uncounted()
                .map_or_else(|_| Slot::default(), Slot::from),
        };
        Ok(Some(UpgradePermit::new(Arc::new(Mutex::new(slot)))))
    }

    /// Refuses a request.
    #[inline]
    pub(super) fn refuse<ResBody>(
        &self,
        refused: Refused,
        request: request::Parts,
    ) -> Response<CapacityBody<ResBody>>
    where
        ResBody: Body,
        R: Reject<ResBody>,
    {
        self.reject(&shed_by(&self.limiter, refused), request)
    }

    #[inline]
    fn reject<ResBody>(
        &self,
        shed: &Shed,
        mut request: request::Parts,
    ) -> Response<CapacityBody<ResBody>>
    where
        ResBody: Body,
        R: Reject<ResBody>,
    {
        let mut response = self.reject.reject(shed, &request);
        fit_to_method(&request.method, &mut response);
        // If the request has extensions, their table is there already.
        let mut extensions = mem::take(&mut request.extensions);
        extensions.clear();
        extensions.insert(*shed);
        if !response.extensions().is_empty() {
            extensions.extend(mem::take(response.extensions_mut()));
        }
        *response.extensions_mut() = extensions;
        response
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
