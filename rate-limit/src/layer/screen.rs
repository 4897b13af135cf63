//! What both kinds of layer do before the charge and after the decision.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use http::{HeaderValue, Request, Response, header::RETRY_AFTER, request};
use tower_service::Service;

use super::{
    RateLimitFuture,
    future::{Extras, Finish, Refund, RefundFn},
};
use crate::{
    AnyLimiter, Inflight, Mode, Quota,
    answer::{Answer, Limited, OverQuota, QuotaHeaders, Reason, Refused, Stamp},
    caller::Caller,
    charged::Charged,
    grpc::is_grpc,
    key::{Key, Lists, MissingKey, RequestHead},
    metrics::Outcome,
    plans::{Plan, fingerprint},
    receipt::{Receipt, Settle},
    rules::{Charge, Ruling},
};

/// Everything about a layer except its response to refused requests.
#[derive(Clone)]
pub(super) struct Settings<L> {
    pub(super) limiter: L,
    pub(super) key: Key,
    pub(super) missing_key: MissingKey,
    pub(super) bypass: Option<Arc<Predicate>>,
    pub(super) shadow: bool,
    pub(super) plan: Option<Arc<PlanFn>>,
    pub(super) own_quota: Option<Arc<QuotaFn>>,
    pub(super) headers: Option<QuotaHeaders>,
    pub(super) lists: Option<Arc<ArcSwap<Lists>>>,
    pub(super) refunds: bool,
    pub(super) refund_if: Option<Arc<RefundFn>>,
    pub(super) tells_caller: bool,
    pub(super) explains: bool,
}

/// Calls the second argument with the name of a request's plan, and returns its number.
type PlanFn = dyn Fn(&RequestHead<'_>, &dyn Fn(Option<&str>) -> usize) -> usize + Send + Sync;
type QuotaFn = dyn Fn(&RequestHead<'_>) -> Option<Quota> + Send + Sync;
type Predicate = dyn Fn(&request::Parts) -> bool + Send + Sync;

/// How a request is to be decided.
pub(super) struct Screened {
    pub(super) key: u64,
    pub(super) inflight: Option<Inflight>,
    /// Whether its response gets quota headers.
    pub(super) stamps: bool,
}

/// Why a request is not charged.
pub(super) enum Stop {
    /// It passes uncharged.
    Through,
    /// It is refused uncharged.
    Refused(Reason),
}

impl<L: AnyLimiter> Settings<L> {
    /// The number of the plan that decides a request.
    #[inline]
    pub(super) fn plan_of(&self, head: &RequestHead<'_>) -> usize {
        match &self.plan {
            Some(plan) => plan(head, &|name| self.limiter.plan_named(name)),
            None => self.limiter.plan_number(),
        }
    }

    /// Whether `request` passes unlimited. Predicates are given the head that all of `http` has a name
    /// for, so that other layers can take the same.
    #[inline]
    pub(super) fn bypasses<B>(&self, request: Request<B>) -> (Request<B>, bool) {
        let Some(bypass) = &self.bypass else {
            return (request, false);
        };
        let (head, body) = request.into_parts();
        let is_bypassed = bypass(&head);
        (Request::from_parts(head, body), is_bypassed)
    }

    /// Whether requests over their quota are let through.
    #[inline]
    pub(super) fn is_shadow(&self) -> bool {
        self.shadow || self.limiter.plans().mode() == Mode::Shadow
    }

    /// All that comes before the charge, and what to charge.
    #[inline]
    pub(super) fn screen(
        &self,
        head: &RequestHead<'_>,
        is_bypassed: bool,
        plan: &Plan<L::Terms>,
        charge: &mut Charge,
    ) -> Result<Screened, Stop> {
        let plans = self.limiter.plans();
        let count = |outcome| plan.rules.metrics().count(outcome);

        if is_bypassed || plans.mode() == Mode::Off {
            count(Outcome::Bypassed);
            return Err(Stop::Through);
        }
        let key = self.key.find(head, plans.seed());
        if let Some(lists) = &self.lists {
            let lists = lists.load();
            if lists.deny.contains(&self.key, head, key) {
                count(Outcome::Denied);
                return Err(Stop::Refused(Reason::Denied));
            }
            if lists.allow.contains(&self.key, head, key) {
                count(Outcome::Bypassed);
                return Err(Stop::Through);
            }
        }
        plans.watch().request(&self.key, head, key.unwrap_or(0));
        let key = match key {
            Some(key) => key,
            None => {
                count(Outcome::NoKey);
                match self.missing_key {
                    MissingKey::Share => plans.seed().hash_one(NO_KEY),
                    MissingKey::Allow => return Err(Stop::Through),
                    MissingKey::Deny => return Err(Stop::Refused(Reason::NoKey)),
                }
            }
        };
        let key = fingerprint(key);
        let inflight = match plans
            .inflight_counts()
            .map(|counts| counts.enter(plan.number, key))
        {
            Some(None) => {
                count(match self.is_shadow() {
                    true => Outcome::Shadow,
                    false => Outcome::Limited,
                });
                return Err(Stop::Refused(Reason::Inflight));
            }
            inflight => inflight.flatten(),
        };
        charge.price(&plan.rules, head);
        if let Some(quota) = self.own_quota.as_ref().and_then(|own| own(head))
            && let Some(own) = self.limiter.own(plan, &quota)
        {
            charge.put_own(own);
        }
        Ok(Screened {
            key,
            inflight,
            stamps: self.headers.is_some() && !is_grpc(head.headers()),
        })
    }

    /// Calls `inner` for an admitted request, or refuses in its place. The usual request takes
    /// nothing along but what it may get back, and is moved once, into `inner`.
    #[inline]
    pub(super) fn conclude<S, A, ReqBody, ResBody>(
        &self,
        (inner, answer): (&mut S, &A),
        request: Request<ReqBody>,
        (plan, screened): (&PlanOf<'_, L>, Screened),
        charge: &Charge,
        ruling: &Ruling,
    ) -> RateLimitFuture<S::Future, ResBody>
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>>,
        A: Answer<ResBody>,
    {
        let rules = &plan.get().rules;
        if ruling.admits()
            && !(rules.settles() || screened.inflight.is_some() || screened.stamps)
            && !self.tells_caller
        {
            // Put together behind the call, where the future is: it is not moved then.
            let future = inner.call(request);
            let refund = self.refund_of(plan.get(), charge, ruling);
            return RateLimitFuture::admitted(future, None, refund);
        }
        self.conclude_unusual((inner, answer), request, (plan, screened), charge, ruling)
    }

    #[inline(never)]
    fn conclude_unusual<S, A, ReqBody, ResBody>(
        &self,
        (inner, answer): (&mut S, &A),
        mut request: Request<ReqBody>,
        (plan, screened): (&PlanOf<'_, L>, Screened),
        charge: &Charge,
        ruling: &Ruling,
    ) -> RateLimitFuture<S::Future, ResBody>
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>>,
        A: Answer<ResBody>,
    {
        if ruling.admits() {
            if self.tells_caller {
                let caller = Caller::new(&self.limiter, plan.keep(), charge, ruling);
                request.extensions_mut().insert(caller);
            }
            let extras = self.extras(plan, screened, charge, ruling);
            let refund = self.refund_of(plan.get(), charge, ruling);
            return RateLimitFuture::admitted(inner.call(request), extras, refund);
        }
        if self.is_shadow() {
            let extras = self.extras(plan, screened, charge, ruling);
            return RateLimitFuture::admitted(inner.call(request), extras, None);
        }
        let stamp = self.stamp(plan, &screened, charge, ruling);
        let Plan {
            rules, rendered, ..
        } = plan.get();
        let limited = Limited::quota(OverQuota {
            rules,
            rendered,
            charge,
            ruling,
        });
        self.refuse(answer, request, &limited, stamp.as_ref())
    }

    /// What the request gets back if it turns out not to have been served.
    #[inline]
    fn refund_of(&self, plan: &Plan<L::Terms>, charge: &Charge, ruling: &Ruling) -> Option<Refund> {
        self.refunds.then(|| Refund {
            limiter: self.limiter.numbered().number(),
            charged: Charged::new(plan.number, &plan.rules, charge, ruling),
            when: self.refund_if.clone(),
        })
    }

    /// Does with a request that is not charged what `stop` says; in shadow mode it passes.
    #[cold]
    #[inline(never)]
    pub(super) fn stop<S, A, ReqBody, ResBody>(
        &self,
        (inner, answer): (&mut S, &A),
        request: Request<ReqBody>,
        stop: Stop,
    ) -> RateLimitFuture<S::Future, ResBody>
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>>,
        A: Answer<ResBody>,
    {
        match stop {
            Stop::Refused(reason) if !self.is_shadow() => {
                self.refuse(answer, request, &Limited::other(reason), None)
            }
            _ => RateLimitFuture::admitted(inner.call(request), None, None),
        }
    }

    fn stamp(
        &self,
        plan: &PlanOf<'_, L>,
        screened: &Screened,
        charge: &Charge,
        ruling: &Ruling,
    ) -> Option<Stamp> {
        let headers = self.headers.as_ref().filter(|_| screened.stamps)?;
        let Plan {
            rules, rendered, ..
        } = plan.get();
        let seed = self.limiter.plans().seed();
        Some(headers.render(seed, (rules, rendered), ruling, charge))
    }

    /// What a request takes along, if anything.
    #[inline(never)]
    fn extras(
        &self,
        plan: &PlanOf<'_, L>,
        screened: Screened,
        charge: &Charge,
        ruling: &Ruling,
    ) -> Option<Box<dyn Finish>> {
        let stamp = self.stamp(plan, &screened, charge, ruling);
        let receipt = (ruling.admits() && plan.get().rules.settles()).then(|| {
            let charge = charge.waive(ruling.shadowed);
            let plan = plan.keep();
            Receipt::new(&self.limiter, plan, ruling.key, charge, Settle::ByResponse)
        });
        if stamp.is_none() && screened.inflight.is_none() && receipt.is_none() {
            return None;
        }
        let headers = self.headers.as_ref();
        Some(Box::new(Extras {
            receipt,
            inflight: screened.inflight,
            stamp,
            stamp_redirects: headers.is_some_and(|headers| headers.also_on_redirects()),
        }))
    }

    #[inline]
    fn refuse<F, A, ReqBody, ResBody>(
        &self,
        answer: &A,
        request: Request<ReqBody>,
        limited: &Limited<'_>,
        stamp: Option<&Stamp>,
    ) -> RateLimitFuture<F, ResBody>
    where
        A: Answer<ResBody>,
    {
        let (mut head, _) = request.into_parts();
        let mut extensions = std::mem::take(&mut head.extensions);
        let mut response = answer.answer(limited, head);
        if let Some(stamp) = stamp {
            stamp_refusal(&mut response, stamp);
        }
        // The table of the request's extensions is there already, so the marker costs nothing.
        extensions.clear();
        extensions.insert(Refused);
        if self.explains {
            extensions.insert(limited.explain());
        }
        extensions.extend(std::mem::take(response.extensions_mut()));
        *response.extensions_mut() = extensions;
        RateLimitFuture::refused(response)
    }
}

impl<L: fmt::Debug> fmt::Debug for Settings<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("limiter", &self.limiter)
            .field("key", &self.key)
            .field("missing_key", &self.missing_key)
            .field("bypass", &self.bypass.is_some())
            .field("shadow", &self.shadow)
            .field("plan", &self.plan.is_some())
            .field("quota_from", &self.own_quota.is_some())
            .field("headers", &self.headers)
            .field("lists", &self.lists)
            .finish_non_exhaustive()
    }
}

/// A plan that is borrowed until it has to be kept.
pub(super) enum PlanOf<'a, L: AnyLimiter> {
    Current(&'a crate::plans::Current<'a, L::Terms>),
    #[cfg(feature = "redis")]
    Kept(Arc<Plan<L::Terms>>),
}

impl<L: AnyLimiter> PlanOf<'_, L> {
    #[inline]
    fn get(&self) -> &Plan<L::Terms> {
        match self {
            Self::Current(plan) => plan,
            #[cfg(feature = "redis")]
            Self::Kept(plan) => plan,
        }
    }

    fn keep(&self) -> Arc<Plan<L::Terms>> {
        match self {
            Self::Current(plan) => plan.keep(),
            #[cfg(feature = "redis")]
            Self::Kept(plan) => Arc::clone(plan),
        }
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
