//! The service on a limiter that several processes share: it may have to wait for the decision.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    AnyLimiter, RateLimit, RateLimitBody, RateLimitFuture,
    layer::Sealed,
    service::{AnyReceipt, Screened},
};
use crate::{
    Inflight, Limiter,
    answer::{Answer, Limited, Reason},
    fleet::{Asked, FleetLimiter, FleetReceipt, Question, Verdict, Waiting},
    key::RequestHead,
    rules::Charge,
};

impl AnyLimiter for FleetLimiter {}

impl Sealed for FleetLimiter {
    fn local(&self) -> &Limiter {
        self.local()
    }
}

impl<S, A, ReqBody, ResBody> Service<Request<ReqBody>> for RateLimit<S, A, FleetLimiter>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    A: Answer<ResBody> + Clone,
{
    type Response = Response<RateLimitBody<ResBody>>;
    type Error = S::Error;
    type Future = FleetFuture<S, A, ReqBody, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.get_mut().poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let Self {
            inner,
            settings,
            answer,
        } = self;
        let limiter = &settings.limiter;
        let head = RequestHead::of(&request);
        let plan = settings.plan_of(&head);
        let rules = limiter.local().rules_at(plan);
        let key = match settings.screen(&head, &rules) {
            Screened::Through => {
                let future = RateLimitFuture::admitted(inner.call(request), None);
                return FleetFuture::decided(future);
            }
            Screened::Refused(reason) => {
                let limited = Limited::other(reason);
                let future = settings.refuse(inner, answer, request, &limited, None);
                return FleetFuture::decided(future);
            }
            Screened::Charge(key) => key,
        };
        let Ok(inflight) = settings.enter(key, &rules) else {
            let limited = Limited::other(Reason::Inflight);
            let future = settings.refuse(inner, answer, request, &limited, None);
            return FleetFuture::decided(future);
        };
        let own = settings.own_quota(&head);
        let mut charge = Charge::each(1);
        charge.price(&rules, &head);
        if let Some(quota) = &own {
            charge.put_own(quota);
        }
        let stamps = settings.stamps(&head);
        let mut question = limiter.question(rules.keep(), plan, key, charge);
        if let Some(quota) = &own {
            question.own_quota(quota, limiter);
        }
        let asked = limiter.ask(&question);
        let pending = Pending {
            question,
            inflight,
            stamps,
        };
        match asked {
            Asked::Decided(verdict) => {
                FleetFuture::decided(self.conclude(request, pending, verdict))
            }
            Asked::Waits(told) => {
                let waiting = Waiting::new(limiter, told);
                // The service that is ready moves into the future; a clone takes its place.
                let clone = self.clone();
                let service = mem::replace(self, clone);
                FleetFuture {
                    state: State::Waiting {
                        waiting,
                        call: Some((service, request, pending)),
                    },
                }
            }
        }
    }
}

/// A request that waits for its decision.
struct Pending {
    question: Question,
    inflight: Option<Inflight>,
    stamps: bool,
}

impl<S, A> RateLimit<S, A, FleetLimiter> {
    /// Does by `verdict` with a request: calls the inner service, or answers in its place.
    fn conclude<ReqBody, ResBody>(
        &mut self,
        request: Request<ReqBody>,
        pending: Pending,
        verdict: Verdict,
    ) -> RateLimitFuture<S::Future, ResBody>
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>>,
        A: Answer<ResBody>,
    {
        let Self {
            inner,
            settings,
            answer,
        } = self;
        let Pending {
            question,
            inflight,
            stamps,
        } = pending;
        let limiter = &settings.limiter;
        let Some(ruling) = limiter.rule(&question, verdict) else {
            let limited = Limited::other(Reason::Unavailable);
            return settings.refuse(inner, answer, request, &limited, None);
        };
        let (rules, charge) = (&*question.rules, &question.charge);
        let stamp = match stamps {
            true => settings.stamp(rules, &ruling, charge, question.key()),
            false => None,
        };
        if !ruling.admits() {
            let limited = Limited::quota(rules, &ruling);
            return settings.refuse(inner, answer, request, &limited, stamp.as_ref());
        }
        let settles = rules.settles();
        let receipt = settles
            .then(|| AnyReceipt::Fleet(FleetReceipt::new(limiter, question.waive(&ruling), false)));
        let extras = settings.extras(receipt, inflight, stamp);
        RateLimitFuture::admitted(inner.call(request), extras)
    }
}

pin_project! {
    /// The response future of [`RateLimit`] on a [`FleetLimiter`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it while it waits for the decision leaves what is charged then charged. After that
    /// it is as with [`RateLimitFuture`].
    pub struct FleetFuture<S, A, ReqBody, ResBody>
    where
        S: Service<Request<ReqBody>>,
    {
        #[pin]
        state: State<S, A, ReqBody, ResBody>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, A, ReqBody, ResBody>
    where
        S: Service<Request<ReqBody>>,
    {
        Waiting {
            #[pin]
            waiting: Waiting,
            call: Option<(RateLimit<S, A, FleetLimiter>, Request<ReqBody>, Pending)>,
        },
        Decided { #[pin] future: RateLimitFuture<S::Future, ResBody> },
    }
}

impl<S, A, ReqBody, ResBody> FleetFuture<S, A, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>>,
{
    fn decided(future: RateLimitFuture<S::Future, ResBody>) -> Self {
        Self {
            state: State::Decided { future },
        }
    }
}

impl<S, A, ReqBody, ResBody> Future for FleetFuture<S, A, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    A: Answer<ResBody>,
{
    type Output = Result<Response<RateLimitBody<ResBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Waiting { waiting, call } => {
                    // Taken once: the state changes below.
                    let (service, _, pending) = call.as_ref().expect("polled after completion");
                    let limiter = &service.settings.limiter;
                    let verdict = ready!(waiting.poll_verdict(limiter, &pending.question, cx));
                    let (mut service, request, pending) =
                        call.take().expect("polled after completion");
                    let future = service.conclude(request, pending, verdict);
                    state.set(State::Decided { future });
                }
                StateProj::Decided { future } => return future.poll(cx),
            }
        }
    }
}

impl<S, A, ReqBody, ResBody> std::fmt::Debug for FleetFuture<S, A, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>>,
{
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match self.state {
            State::Waiting { .. } => "waiting",
            State::Decided { .. } => "decided",
        };
        f.debug_tuple("FleetFuture").field(&state).finish()
    }
}
