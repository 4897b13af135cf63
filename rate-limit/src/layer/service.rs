use std::{
    hash::BuildHasher,
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response, header::RETRY_AFTER, request};
use tower_service::Service;

use super::{RateLimitBody, RateLimitFuture, layer::Settings};
use crate::{
    Inflight,
    answer::{Answer, Limited, Reason, Stamp, StandardAnswer, is_grpc},
    gcra::Gcra,
    key::{MissingKey, RequestHead},
    limiter::{Receipt, Settle, fingerprint},
    metrics::Outcome,
    rules::Charge,
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

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        match self.decide(&mut request) {
            Ok(extras) => RateLimitFuture::admitted(self.inner.call(request), extras),
            Err(response) => RateLimitFuture::refused(response),
        }
    }
}

/// What an admitted request takes along, if it has anything to. In a box, because most have not,
/// and futures are moved about.
#[derive(Debug)]
pub(super) struct Extras {
    /// What was charged and may be settled once the response is known.
    pub(super) receipt: Option<Receipt>,
    /// The count of this request among those of its key in flight.
    pub(super) inflight: Option<Inflight>,
    /// Headers for the response.
    pub(super) stamp: Option<Stamp>,
    /// Whether they go on redirects too.
    pub(super) stamp_redirects: bool,
}

impl<S, A> RateLimit<S, A> {
    /// The response to `request` if it is refused; its head goes into the answer.
    #[expect(
        clippy::result_large_err,
        reason = "it moves straight on into the future"
    )]
    #[inline]
    fn decide<ReqBody, ResBody>(
        &self,
        request: &mut Request<ReqBody>,
    ) -> Result<Option<Box<Extras>>, Response<RateLimitBody<ResBody>>>
    where
        A: Answer<ResBody>,
    {
        let settings = &*self.settings;
        let limiter = &settings.limiter;
        let head = RequestHead::of(request);
        let rules = match &settings.plan {
            Some(plan) => limiter.rules_of(plan(&head)),
            None => limiter.rules(),
        };
        let count = |outcome| rules.meter().count(outcome);
        let refuse =
            |request: &mut Request<ReqBody>, limited: &Limited<'_>, stamp: Option<&Stamp>| {
                if settings.shadow {
                    return Ok(None);
                }
                let mut response = self.answer.answer(limited, take_parts(request));
                if let Some(stamp) = stamp {
                    stamp_refusal(&mut response, stamp);
                }
                Err(response)
            };
        let refuse_for =
            |request: &mut Request<ReqBody>, reason| refuse(request, &Limited::other(reason), None);

        if settings.bypass.as_ref().is_some_and(|bypass| bypass(&head)) {
            count(Outcome::Bypassed);
            return Ok(None);
        }
        let seed = limiter.seed();
        let key = settings.key.find(&head, seed);
        if settings.has_lists() {
            if settings.lists(&settings.deny, &head, key) {
                count(Outcome::Denied);
                return refuse_for(request, Reason::Denied);
            }
            if settings.lists(&settings.allow, &head, key) {
                count(Outcome::Bypassed);
                return Ok(None);
            }
        }
        limiter.watch().request(
            settings.key.keyed_by(),
            &head,
            || settings.key.client_ip(&head),
            key.unwrap_or(0),
        );
        let key = match key {
            Some(key) => key,
            None => {
                count(Outcome::NoKey);
                match settings.missing_key {
                    MissingKey::Share => seed.hash_one(NO_KEY),
                    MissingKey::Allow => return Ok(None),
                    MissingKey::Deny => return refuse_for(request, Reason::NoKey),
                }
            }
        };
        let fingerprint = fingerprint(key);

        let mut inflight = None;
        if let Some(counts) = limiter.inflight_counts() {
            inflight = counts.enter(fingerprint);
            if inflight.is_none() {
                count(Outcome::Limited);
                return refuse_for(request, Reason::Inflight);
            }
        }
        // A quota that cannot be kept does not replace the policy's.
        let own = settings.own_quota.as_ref().and_then(|own| own(&head));
        let charge = Charge::of(&rules, &head, own.and_then(|quota| Gcra::new(&quota).ok()));
        let Some(ruling) = limiter.charge(&rules, fingerprint, &charge) else {
            return refuse_for(request, Reason::NoRoom);
        };
        let stamp = match &settings.headers {
            Some(headers) if !is_grpc(head.headers()) => {
                Some(headers.render(limiter, &rules, &ruling, &charge, fingerprint))
            }
            _ => None,
        };
        if !ruling.admits() {
            return refuse(request, &Limited::quota(&rules, &ruling), stamp.as_ref());
        }
        if stamp.is_none() && inflight.is_none() && !rules.settles() {
            return Ok(None);
        }
        let receipt = rules.settles().then(|| {
            let charge = charge.waive(ruling.shadowed);
            Receipt::new(limiter, &rules, fingerprint, charge, Settle::ByResponse)
        });
        let stamp_redirects = settings
            .headers
            .as_ref()
            .is_some_and(|h| h.also_on_redirects());
        Ok(Some(Box::new(Extras {
            receipt,
            inflight,
            stamp,
            stamp_redirects,
        })))
    }
}

/// The head of a request that will not be needed any more.
fn take_parts<B>(request: &mut Request<B>) -> request::Parts {
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = mem::take(request.method_mut());
    parts.uri = mem::take(request.uri_mut());
    parts.version = request.version();
    parts.headers = mem::take(request.headers_mut());
    parts.extensions = mem::take(request.extensions_mut());
    parts
}

fn stamp_refusal<B>(response: &mut Response<B>, stamp: &Stamp) {
    let headers = response.headers_mut();
    for (name, value) in &stamp.headers {
        headers.append(name, value.clone());
    }
    let wait = headers
        .get(RETRY_AFTER)
        .and_then(|wait| wait.to_str().ok()?.parse::<u64>().ok());
    if wait.is_some_and(|wait| wait < stamp.retry_after) {
        headers.insert(RETRY_AFTER, HeaderValue::from(stamp.retry_after));
    }
}

/// What requests without a key are charged to; a string no other key hashes like.
const NO_KEY: &str = "requests without a key";
