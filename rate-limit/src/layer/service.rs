use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response, header::RETRY_AFTER};
use tower_service::Service;

use super::{AnyLimiter, RateLimitBody, RateLimitFuture, layer::Settings};
#[cfg(feature = "redis")]
use crate::fleet::FleetReceipt;
use crate::{
    Inflight, Limiter, Quota,
    answer::{Answer, Limited, Reason, Stamp, StandardAnswer, is_grpc},
    key::{MissingKey, RequestHead},
    limiter::{NoRoom, Receipt, Settle, fingerprint},
    metrics::Outcome,
    policy::ResponseHead,
    rules::{Charge, Ruleset, Ruling},
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

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let Self {
            inner,
            settings,
            answer,
        } = self;
        let limiter = &settings.limiter;
        let head = RequestHead::of(&request);
        let rules = limiter.rules_at(settings.plan_of(&head));
        let fingerprint = match settings.screen(&head, &rules) {
            Screened::Through => return RateLimitFuture::admitted(inner.call(request), None),
            Screened::Refused(reason) => {
                let limited = Limited::other(reason);
                return settings.refuse(inner, answer, request, &limited, None);
            }
            Screened::Charge(fingerprint) => fingerprint,
        };
        let Ok(inflight) = settings.enter(fingerprint, &rules) else {
            let limited = Limited::other(Reason::Inflight);
            return settings.refuse(inner, answer, request, &limited, None);
        };
        let mut charge = Charge::each(1);
        charge.price(&rules, &head);
        if let Some(quota) = settings.own_quota(&head) {
            charge.put_own(&quota);
        }
        let stamps = settings.stamps(&head);
        let mut ruling = Ruling::at(limiter.now());
        if let Err(NoRoom) = limiter.charge(&rules, fingerprint, &charge, &mut ruling) {
            let limited = Limited::other(Reason::NoRoom);
            return settings.refuse(inner, answer, request, &limited, None);
        }
        let stamp = if stamps {
            settings.stamp(&rules, &ruling, &charge, fingerprint)
        } else {
            None
        };
        if !ruling.admits() {
            let limited = Limited::quota(&rules, &ruling);
            return settings.refuse(inner, answer, request, &limited, stamp.as_ref());
        }
        let receipt = rules.settles().then(|| {
            let charge = charge.waive(ruling.shadowed);
            let receipt = Receipt::new(limiter, &rules, fingerprint, charge, Settle::ByResponse);
            AnyReceipt::Local(receipt)
        });
        let extras = settings.extras(receipt, inflight, stamp);
        RateLimitFuture::admitted(inner.call(request), extras)
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

/// What is known of a request before it is charged.
pub(super) enum Screened {
    /// It passes uncharged.
    Through,
    /// It is refused uncharged.
    Refused(Reason),
    /// It is charged to this key.
    Charge(u64),
}

/// As many requests of the key are in flight as may be.
pub(super) struct Full;

impl<L: AnyLimiter> Settings<L> {
    /// The number of the plan that decides a request.
    #[inline]
    pub(super) fn plan_of(&self, head: &RequestHead<'_>) -> usize {
        let name = self.plan.as_ref().and_then(|plan| plan(head));
        self.limiter.local().plan_number(name)
    }

    /// All that comes before the charge.
    #[inline]
    pub(super) fn screen(&self, head: &RequestHead<'_>, rules: &Ruleset) -> Screened {
        let limiter = self.limiter.local();
        let count = |outcome| rules.meter().count(outcome);

        if self.bypass.as_ref().is_some_and(|bypass| bypass(head)) {
            count(Outcome::Bypassed);
            return Screened::Through;
        }
        let seed = limiter.seed();
        let key = self.key.find(head, seed);
        if self.has_lists() {
            if self.lists(&self.deny, head, key) {
                count(Outcome::Denied);
                return Screened::Refused(Reason::Denied);
            }
            if self.lists(&self.allow, head, key) {
                count(Outcome::Bypassed);
                return Screened::Through;
            }
        }
        limiter.watch().request(
            self.key.keyed_by(),
            head,
            || self.key.client_ip(head),
            key.unwrap_or(0),
        );
        let key = match key {
            Some(key) => key,
            None => {
                count(Outcome::NoKey);
                match self.missing_key {
                    MissingKey::Share => seed.hash_one(NO_KEY),
                    MissingKey::Allow => return Screened::Through,
                    MissingKey::Deny => return Screened::Refused(Reason::NoKey),
                }
            }
        };
        Screened::Charge(fingerprint(key))
    }

    /// Counts a request in flight, if those of a key are limited.
    #[inline]
    pub(super) fn enter(&self, key: u64, rules: &Ruleset) -> Result<Option<Inflight>, Full> {
        let Some(counts) = self.limiter.local().inflight_counts() else {
            return Ok(None);
        };
        let inflight = counts.enter(key);
        if inflight.is_none() {
            rules.meter().count(Outcome::Limited);
            return Err(Full);
        }
        Ok(inflight)
    }

    /// A quota of the request's own in place of the first policy's.
    #[inline]
    pub(super) fn own_quota(&self, head: &RequestHead<'_>) -> Option<Quota> {
        self.own_quota.as_ref()?(head)
    }

    /// Whether the response gets headers.
    #[inline]
    pub(super) fn stamps(&self, head: &RequestHead<'_>) -> bool {
        self.headers.is_some() && !is_grpc(head.headers())
    }

    /// The headers for the response, if it gets any.
    pub(super) fn stamp(
        &self,
        rules: &Ruleset,
        ruling: &Ruling,
        charge: &Charge,
        fingerprint: u64,
    ) -> Option<Stamp> {
        let headers = self.headers.as_ref()?;
        let limiter = self.limiter.local();
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
        let headers = self.headers.as_ref();
        Some(Box::new(Extras {
            receipt,
            inflight,
            stamp,
            stamp_redirects: headers.is_some_and(|headers| headers.also_on_redirects()),
        }))
    }

    /// Answers in the place of `inner`, unless in shadow mode.
    pub(super) fn refuse<S, A, ReqBody, ResBody>(
        &self,
        inner: &mut S,
        answer: &A,
        request: Request<ReqBody>,
        limited: &Limited<'_>,
        stamp: Option<&Stamp>,
    ) -> RateLimitFuture<S::Future, ResBody>
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>>,
        A: Answer<ResBody>,
    {
        if self.shadow {
            return RateLimitFuture::admitted(inner.call(request), None);
        }
        let (head, _) = request.into_parts();
        let mut response = answer.answer(limited, head);
        if let Some(stamp) = stamp {
            stamp_refusal(&mut response, stamp);
        }
        RateLimitFuture::refused(response)
    }
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
