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
    service::{AnyReceipt, Extras, Screened},
};
use crate::{
    Inflight, Limiter,
    answer::{Answer, Limited, Reason},
    fleet::{Asked, FleetLimiter, FleetReceipt, Question, Verdict, Waiting},
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

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let limiter = self.limiter();
        let candidate = match self.screen(&request) {
            Screened::Through => return FleetFuture::decided(self.go_on(request, Ok(None))),
            Screened::Refused(reason) => {
                let refused = self.refuse_for(&mut request, reason);
                return FleetFuture::decided(self.go_on(request, refused));
            }
            Screened::Charge(candidate) => candidate,
        };
        let rules = candidate.rules.keep();
        let (plan, key) = (candidate.plan, candidate.fingerprint);
        let mut question = limiter.question(rules, plan, key, candidate.charge);
        if let Some(quota) = &candidate.own_quota {
            question.own_quota(quota, limiter);
        }
        let asked = limiter.ask(&question);
        let pending = Pending {
            question,
            inflight: candidate.inflight,
            stamps: candidate.stamps,
        };
        match asked {
            Asked::Decided(verdict) => {
                let decided = self.conclude(&mut request, pending, verdict);
                FleetFuture::decided(self.go_on(request, decided))
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
    /// What becomes of a request by this verdict.
    #[expect(
        clippy::result_large_err,
        reason = "it moves straight on into the future"
    )]
    fn conclude<ReqBody, ResBody>(
        &self,
        request: &mut Request<ReqBody>,
        pending: Pending,
        verdict: Verdict,
    ) -> Result<Option<Box<Extras>>, Response<RateLimitBody<ResBody>>>
    where
        A: Answer<ResBody>,
    {
        let Pending {
            question,
            inflight,
            stamps,
        } = pending;
        let limiter = self.limiter();
        let Some(ruling) = limiter.rule(&question, verdict) else {
            return self.refuse_for(request, Reason::Unavailable);
        };
        let (rules, charge) = (&*question.rules, &question.charge);
        let stamp = match stamps {
            true => self.stamp(rules, &ruling, charge, question.key()),
            false => None,
        };
        if !ruling.admits() {
            return self.refuse(request, &Limited::quota(rules, &ruling), stamp.as_ref());
        }
        let settles = rules.settles();
        let receipt = settles
            .then(|| AnyReceipt::Fleet(FleetReceipt::new(limiter, question.waive(&ruling), false)));
        Ok(self.extras(receipt, inflight, stamp))
    }

    /// Calls the inner service, or answers in its place.
    fn go_on<ReqBody, ResBody>(
        &mut self,
        request: Request<ReqBody>,
        decided: Result<Option<Box<Extras>>, Response<RateLimitBody<ResBody>>>,
    ) -> RateLimitFuture<S::Future, ResBody>
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    {
        match decided {
            Ok(extras) => RateLimitFuture::admitted(self.get_mut().call(request), extras),
            Err(response) => RateLimitFuture::refused(response),
        }
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
                    let limiter = service.limiter();
                    let verdict = ready!(waiting.poll_verdict(limiter, &pending.question, cx));
                    let (mut service, mut request, pending) =
                        call.take().expect("polled after completion");
                    let decided = service.conclude(&mut request, pending, verdict);
                    let future = service.go_on(request, decided);
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
