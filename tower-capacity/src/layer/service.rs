use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::{CapacityBody, CapacityFuture, layer::Config};
use crate::{
    gate::{Refused, RefusedReason},
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
        if self.config.bypass.is_some() {
            let (parts, body) = request.into_parts();
            let bypasses = self.config.bypasses(&parts);
            request = Request::from_parts(parts, body);
            if bypasses {
                return CapacityFuture::bypassed(self.inner.call(request));
            }
        }
        let limiter = &self.config.limiter;
        if self.config.shadow {
            let (admission, _would) = limiter.admit_anyway();
            return CapacityFuture::admitted(&mut self.inner, request, admission, &self.config);
        }
        match limiter.try_enter() {
            Ok(admission) => {
                CapacityFuture::admitted(&mut self.inner, request, admission, &self.config)
            }
            Err(refused) if refused.reason() == RefusedReason::Full => {
                // The instance that was polled ready goes into the future, not a clone of it.
                let clone = self.inner.clone();
                let ready = mem::replace(&mut self.inner, clone);
                CapacityFuture::waiting(ready, request, limiter.admit(), Arc::clone(&self.config))
            }
            Err(refused) => {
                limiter.note_refusal(&refused);
                CapacityFuture::refused(self.config.answer(refused, request))
            }
        }
    }
}

impl<R> Config<R> {
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
        let ahead = refused.inflight() + refused.queued();
        let shed = Shed::new(refused, self.limiter.expected_drain(ahead));
        let (parts, _body) = request.into_parts();
        self.reject.reject(&shed, &parts)
    }
}

impl<S: fmt::Debug, R: fmt::Debug> fmt::Debug for Capacity<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capacity")
            .field("inner", &self.inner)
            .field("config", &self.config)
            .finish()
    }
}
