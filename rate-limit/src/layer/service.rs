use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use super::{
    RateLimitBody, RateLimitFuture,
    screen::{PlanOf, Settings, Stop},
};
use crate::{
    Limiter,
    accessors::inner_service_accessors,
    answer::{Answer, Reason, StandardAnswer},
    key::RequestHead,
    limiter::NoRoom,
    receipt::Ledger,
    rules::{Charge, Ruling},
};

/// The service made by [`RateLimitLayer`](crate::RateLimitLayer).
///
/// `poll_ready` only forwards to the inner service, and the decision is made in `call`: a clone
/// that is ready but idle holds nothing. A refused request never reaches the inner service.
#[derive(Debug)]
pub struct RateLimit<S, A = StandardAnswer, L = Limiter> {
    pub(super) inner: S,
    pub(super) settings: Arc<Settings<L>>,
    pub(super) answer: A,
}

impl<S, A, L> RateLimit<S, A, L> {
    pub(super) fn new(inner: S, settings: Arc<Settings<L>>, answer: A) -> Self {
        Self {
            inner,
            settings,
            answer,
        }
    }

    inner_service_accessors!();
}

impl<S: Clone, A: Clone, L> Clone for RateLimit<S, A, L> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            settings: Arc::clone(&self.settings),
            answer: self.answer.clone(),
        }
    }
}

impl<S, A, ReqBody, ResBody> Service<Request<ReqBody>> for RateLimit<S, A>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    A: Answer<ResBody>,
{
    type Response = Response<RateLimitBody<ResBody>>;
    type Error = S::Error;
    type Future = RateLimitFuture<S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let Self {
            inner,
            settings,
            answer,
        } = self;
        let (request, is_bypassed) = settings.bypasses(request);
        let limiter = &settings.limiter;
        let head = RequestHead::of(&request);
        let plan = limiter.plans().at(settings.plan_of(&head));
        let mut charge = Charge::each(1);
        let screened = match settings.screen(&head, is_bypassed, &plan, &mut charge) {
            Ok(screened) => screened,
            Err(stop) => return settings.stop((inner, answer), request, stop),
        };
        let mut ruling = Ruling::at(limiter.now(), screened.key);
        let shadow = settings.is_shadow();
        if let Err(NoRoom) = limiter.charge(&plan, &charge, &mut ruling, shadow) {
            let stop = Stop::Refused(Reason::NoRoom);
            return settings.stop((inner, answer), request, stop);
        }
        let plan = (&PlanOf::Current(&plan), screened);
        settings.conclude((inner, answer), request, plan, &charge, &ruling)
    }
}
