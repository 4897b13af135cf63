use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response, header::RETRY_AFTER, request};
use tower_service::Service;

use super::{AnyLimiter, RateLimitBody, RateLimitFuture, layer::Settings};
use crate::{
    Inflight, Limiter,
    answer::{Answer, Limited, Reason, Stamp, StandardAnswer, is_grpc},
    gcra::Gcra,
    key::{MissingKey, RequestHead},
    limiter::{Receipt, Rules, Settle, fingerprint},
    metrics::Outcome,
    policy::ResponseHead,
    rules::{Charge, Ruleset, Ruling},
};
#[cfg(feature = "redis")]
use crate::{Quota, fleet::FleetReceipt};

/// The service made by [`RateLimitLayer`](crate::RateLimitLayer).
///
/// `poll_ready` only forwards to the inner service, and the decision is made in `call`: a clone
/// that is ready but idle holds nothing. A refused request never reaches the inner service.
#[derive(Debug)]
pub struct RateLimit<S, A = StandardAnswer, L = Limiter> {
    inner: S,
    settings: Arc<Settings<L>>,
    answer: A,
}

impl<S, A, L> RateLimit<S, A, L> {
    pub(super) fn new(inner: S, settings: Arc<Settings<L>>, answer: A) -> Self {
        Self {
            inner,
            settings,
            answer,
        }
    }

    #[cfg(feature = "redis")]
    pub(super) fn limiter(&self) -> &L {
        &self.settings.limiter
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
    pub(super) receipt: Option<AnyReceipt>,
    /// The count of this request among those of its key in flight.
    pub(super) inflight: Option<Inflight>,
    /// Headers for the response.
    pub(super) stamp: Option<Stamp>,
    /// Whether they go on redirects too.
    pub(super) stamp_redirects: bool,
}

/// A receipt of either limiter.
#[derive(Debug)]
pub(super) enum AnyReceipt {
    Local(Receipt),
    #[cfg(feature = "redis")]
    Fleet(FleetReceipt),
}

impl AnyReceipt {
    pub(super) fn settle(self, response: &ResponseHead<'_>) {
        match self {
            Self::Local(receipt) => receipt.settle(response),
            #[cfg(feature = "redis")]
            Self::Fleet(receipt) => receipt.settle(response),
        }
    }
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
        let limiter = &self.settings.limiter;
        let candidate = match self.screen(request) {
            Screened::Through => return Ok(None),
            Screened::Refused(reason) => return self.refuse_for(request, reason),
            Screened::Charge(candidate) => candidate,
        };
        let (rules, charge) = (&candidate.rules, &candidate.charge);
        let fingerprint = candidate.fingerprint;
        let Some(ruling) = limiter.charge(rules, fingerprint, charge) else {
            return self.refuse_for(request, Reason::NoRoom);
        };
        let stamp = match candidate.stamps {
            true => self.stamp(rules, &ruling, charge, fingerprint),
            false => None,
        };
        if !ruling.admits() {
            return self.refuse(request, &Limited::quota(rules, &ruling), stamp.as_ref());
        }
        let receipt = rules.settles().then(|| {
            let charge = charge.waive(ruling.shadowed);
            let receipt = Receipt::new(limiter, rules, fingerprint, charge, Settle::ByResponse);
            AnyReceipt::Local(receipt)
        });
        Ok(self.extras(receipt, candidate.inflight, stamp))
    }
}

/// What is known of a request before it is charged.
#[cfg_attr(
    feature = "redis",
    expect(
        clippy::large_enum_variant,
        reason = "nearly all are of the large one, and none is kept"
    )
)]
pub(super) enum Screened<'a> {
    /// It passes uncharged.
    Through,
    /// It is refused uncharged.
    Refused(Reason),
    Charge(Candidate<'a>),
}

/// A request that is to be charged.
pub(super) struct Candidate<'a> {
    pub(super) rules: Rules<'a>,
    /// The number of its plan.
    #[cfg(feature = "redis")]
    pub(super) plan: usize,
    pub(super) fingerprint: u64,
    pub(super) charge: Charge,
    /// A quota of its own in place of the first policy's.
    #[cfg(feature = "redis")]
    pub(super) own_quota: Option<Quota>,
    pub(super) inflight: Option<Inflight>,
    /// Whether its response gets headers.
    pub(super) stamps: bool,
}

impl<S, A, L: AnyLimiter> RateLimit<S, A, L> {
    /// All that comes before the charge.
    #[inline]
    pub(super) fn screen<ReqBody>(&self, request: &Request<ReqBody>) -> Screened<'_> {
        let settings = &*self.settings;
        let limiter = settings.limiter.local();
        let head = RequestHead::of(request);
        let name = settings.plan.as_ref().and_then(|plan| plan(&head));
        let plan = limiter.plan_number(name);
        let rules = limiter.rules_at(plan);
        let count = |outcome| rules.meter().count(outcome);

        if settings.bypass.as_ref().is_some_and(|bypass| bypass(&head)) {
            count(Outcome::Bypassed);
            return Screened::Through;
        }
        let seed = limiter.seed();
        let key = settings.key.find(&head, seed);
        if settings.has_lists() {
            if settings.lists(&settings.deny, &head, key) {
                count(Outcome::Denied);
                return Screened::Refused(Reason::Denied);
            }
            if settings.lists(&settings.allow, &head, key) {
                count(Outcome::Bypassed);
                return Screened::Through;
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
                    MissingKey::Allow => return Screened::Through,
                    MissingKey::Deny => return Screened::Refused(Reason::NoKey),
                }
            }
        };
        let fingerprint = fingerprint(key);

        let mut inflight = None;
        if let Some(counts) = limiter.inflight_counts() {
            inflight = counts.enter(fingerprint);
            if inflight.is_none() {
                count(Outcome::Limited);
                return Screened::Refused(Reason::Inflight);
            }
        }
        // A quota that cannot be kept does not replace the policy's.
        let own = settings.own_quota.as_ref().and_then(|own| own(&head));
        let own_gcra = own.as_ref().and_then(|quota| Gcra::new(quota).ok());
        Screened::Charge(Candidate {
            charge: Charge::of(&rules, &head, own_gcra),
            rules,
            #[cfg(feature = "redis")]
            plan,
            fingerprint,
            #[cfg(feature = "redis")]
            own_quota: own,
            inflight,
            stamps: settings.headers.is_some() && !is_grpc(head.headers()),
        })
    }

    /// The headers for the response, if it gets any.
    pub(super) fn stamp(
        &self,
        rules: &Ruleset,
        ruling: &Ruling,
        charge: &Charge,
        fingerprint: u64,
    ) -> Option<Stamp> {
        let settings = &*self.settings;
        let headers = settings.headers.as_ref()?;
        let limiter = settings.limiter.local();
        Some(headers.render(limiter, rules, ruling, charge, fingerprint))
    }

    /// What an admitted request takes along.
    #[inline]
    pub(super) fn extras(
        &self,
        receipt: Option<AnyReceipt>,
        inflight: Option<Inflight>,
        stamp: Option<Stamp>,
    ) -> Option<Box<Extras>> {
        if stamp.is_none() && inflight.is_none() && receipt.is_none() {
            return None;
        }
        let headers = self.settings.headers.as_ref();
        Some(Box::new(Extras {
            receipt,
            inflight,
            stamp,
            stamp_redirects: headers.is_some_and(|headers| headers.also_on_redirects()),
        }))
    }

    /// The answer to a request that is refused, unless it is let through in shadow mode.
    #[expect(
        clippy::result_large_err,
        reason = "it moves straight on into the future"
    )]
    pub(super) fn refuse<ReqBody, ResBody>(
        &self,
        request: &mut Request<ReqBody>,
        limited: &Limited<'_>,
        stamp: Option<&Stamp>,
    ) -> Result<Option<Box<Extras>>, Response<RateLimitBody<ResBody>>>
    where
        A: Answer<ResBody>,
    {
        if self.settings.shadow {
            return Ok(None);
        }
        let mut response = self.answer.answer(limited, take_parts(request));
        if let Some(stamp) = stamp {
            stamp_refusal(&mut response, stamp);
        }
        Err(response)
    }

    #[expect(
        clippy::result_large_err,
        reason = "it moves straight on into the future"
    )]
    pub(super) fn refuse_for<ReqBody, ResBody>(
        &self,
        request: &mut Request<ReqBody>,
        reason: Reason,
    ) -> Result<Option<Box<Extras>>, Response<RateLimitBody<ResBody>>>
    where
        A: Answer<ResBody>,
    {
        self.refuse(request, &Limited::other(reason), None)
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
