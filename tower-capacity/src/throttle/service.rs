use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::{ThrottleFuture, Throttled, layer::Config};
use crate::{
    accessors::inner_service_accessors,
    layer::CapacityBody,
    reject::{DefaultReject, Reject},
};

/// Service that withholds requests from a backend that accepts none.
///
/// Made by [`ThrottleLayer`](super::ThrottleLayer). See the [module docs](super).
#[derive(Debug)]
pub struct Throttle<S, R = DefaultReject> {
    inner: S,
    config: Arc<Config<R>>,
}

impl<S, R> Throttle<S, R> {
    pub(super) const fn new(inner: S, config: Arc<Config<R>>) -> Self {
        Self { inner, config }
    }

    inner_service_accessors!();
}

impl<S: Clone, R> Clone for Throttle<S, R> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), Arc::clone(&self.config))
    }
}

impl<S, R, ReqBody, ResBody> Service<Request<ReqBody>> for Throttle<S, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body,
    R: Reject<ResBody, Throttled>,
{
    type Response = Response<CapacityBody<ResBody>>;
    type Error = S::Error;
    type Future = ThrottleFuture<S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let config = &self.config;
        let (parts, body) = request.into_parts();
        let attempt = if config.bypasses(&parts) {
            None
        } else {
            match config.admit(&parts) {
                Ok(attempt) => Some(attempt),
                Err(throttled) => return ThrottleFuture::refused(config.refuse(throttled, &parts)),
            }
        };
        let future = self.inner.call(Request::from_parts(parts, body));
        ThrottleFuture::sent(future, attempt, config.classify.clone())
    }
}
