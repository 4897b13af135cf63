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
    RateLimit, RateLimitBody, RateLimitFuture,
    screen::{PlanOf, Screened, Stop},
};
use crate::{
    answer::{Answer, Reason},
    fleet::{Asked, FleetLimiter, Question, Verdict, Waiting},
    key::RequestHead,
    receipt::Ledger,
    rules::Charge,
};

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
        let (request, is_bypassed) = settings.bypasses(request);
        let limiter = &settings.limiter;
        let head = RequestHead::of(&request);
        let plan = limiter.plans().at(settings.plan_of(&head)).keep();
        let mut charge = Charge::each(1);
        let screened = match settings.screen(&head, is_bypassed, &plan, &mut charge) {
            Ok(screened) => screened,
            Err(stop) => {
                return FleetFuture::decided(settings.stop((inner, answer), request, stop));
            }
        };
        let question = limiter.question(plan, screened.key, charge);
        let asked = limiter.ask(&question);
        let pending = Pending { question, screened };
        match asked {
            Asked::Decided(verdict) => {
                FleetFuture::decided(self.conclude(request, pending, verdict))
            }
            Asked::Waits(told) => {
                let waiting = Waiting::new(limiter.node(), told);
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
    screened: Screened,
}

impl<S, A> RateLimit<S, A, FleetLimiter> {
    /// Does by `verdict` with a request: calls the inner service, or refuses in its place.
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
        let Pending { question, screened } = pending;
        let limiter = &settings.limiter;
        let Some(ruling) = limiter.rule(&question, verdict, settings.is_shadow()) else {
            let stop = Stop::Refused(Reason::Unavailable);
            return settings.stop((inner, answer), request, stop);
        };
        let plan = (&PlanOf::Kept(question.plan), screened);
        settings.conclude((inner, answer), request, plan, &question.charge, &ruling)
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
                    let verdict =
                        ready!(waiting.poll_verdict(limiter.node(), &pending.question, cx));
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
