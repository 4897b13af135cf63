use std::{
    hash::BuildHasher,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use super::{RateLimitBody, RateLimitFuture, layer::Settings};
use crate::{
    answer::{Answer, Limited, StandardAnswer},
    key::{MissingKey, RequestHead},
    limiter::fingerprint,
    metrics::Outcome,
};

/// The service made by [`RateLimitLayer`](crate::RateLimitLayer).
///
/// `poll_ready` only forwards to the inner service, and the decision is made in `call`: a clone
/// that is ready but idle holds nothing. A refused request never reaches the inner service.
#[derive(Clone, Debug)]
pub struct RateLimit<S, A = StandardAnswer> {
    inner: S,
    settings: Arc<Settings>,
    answer: A,
}

impl<S, A> RateLimit<S, A> {
    pub(super) fn new(inner: S, settings: Arc<Settings>, answer: A) -> Self {
        Self {
            inner,
            settings,
            answer,
        }
    }

    /// The inner service.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service, mutably.
    #[must_use]
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Gives the inner service back.
    #[must_use]
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// The response to `request` if it is refused; the request itself if it is not.
    #[expect(
        clippy::result_large_err,
        reason = "both move straight on into the future"
    )]
    fn decide<ReqBody, ResBody>(
        &self,
        request: Request<ReqBody>,
    ) -> Result<Request<ReqBody>, Response<RateLimitBody<ResBody>>>
    where
        A: Answer<ResBody>,
    {
        let Settings {
            limiter,
            key,
            missing_key,
            bypass,
            shadow,
        } = &*self.settings;
        let head = RequestHead::of(&request);
        let rules = limiter.rules();
        let count = |outcome| rules.rules()[0].meter.count(outcome);
        let refuse = |limited: &Limited<'_>, request: Request<ReqBody>| {
            if *shadow {
                return Ok(request);
            }
            let (parts, _body) = request.into_parts();
            Err(self.answer.answer(limited, parts))
        };

        if bypass.as_ref().is_some_and(|bypass| bypass(&head)) {
            count(Outcome::Bypassed);
            return Ok(request);
        }
        let seed = limiter.seed();
        let key = match key.find(&head, seed) {
            Some(key) => key,
            None => {
                count(Outcome::NoKey);
                match missing_key {
                    MissingKey::Share => seed.hash_one(NO_KEY),
                    MissingKey::Allow => return Ok(request),
                    MissingKey::Deny => return refuse(&Limited::no_key(), request),
                }
            }
        };
        match limiter.charge(&rules, fingerprint(key), 1) {
            Some(ruling) if ruling.admits() => Ok(request),
            Some(ruling) => refuse(&Limited::quota(&rules, &ruling), request),
            None => refuse(&Limited::no_room(), request),
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

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        match self.decide(request) {
            Ok(request) => RateLimitFuture::admitted(self.inner.call(request)),
            Err(response) => RateLimitFuture::refused(response),
        }
    }
}

/// What requests without a key are charged to; a string no other key hashes like.
const NO_KEY: &str = "requests without a key";
