use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header::RETRY_AFTER, response,
};
use pin_project_lite::pin_project;

use super::RateLimitBody;
use crate::{
    AnyLimiter, Inflight,
    answer::{Refused, Stamp},
    charged::{Charged, give_back},
    grpc::is_grpc,
    policy::ResponseHead,
    receipt::Receipt,
};

pin_project! {
    /// The response future of [`RateLimit`](crate::RateLimit).
    ///
    /// # Cancel safety
    ///
    /// Dropping it before it is ready gives back what policies with
    /// [`settle`](crate::Policy::settle) have charged, and the count in flight. What other policies
    /// have charged stays charged.
    pub struct RateLimitFuture<F, B> {
        #[pin]
        state: State<F, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, B> {
        Admitted {
            #[pin]
            future: F,
            extras: Option<Box<dyn Finish>>,
            refund: Option<Refund>,
        },
        Refused { response: Option<Response<RateLimitBody<B>>> },
    }
}

/// What to give back if the service turns out not to have served the request.
pub(super) struct Refund {
    /// The number of the limiter.
    pub(super) limiter: u64,
    pub(super) charged: Charged,
    /// Which responses say so, unless it is the default.
    pub(super) when: Option<Arc<RefundFn>>,
}

pub(super) type RefundFn = dyn Fn(&ResponseHead<'_>) -> bool + Send + Sync;

impl Refund {
    /// A quick look at what most responses are.
    #[inline]
    fn may_apply<B>(&self, response: &Response<B>) -> bool {
        let status = response.status();
        self.when.is_some()
            || !status.is_success()
            || response.extensions().get::<Refused>().is_some()
            || (status == StatusCode::OK && is_grpc(response.headers()))
    }

    /// Gives back what was charged if the response says so, and returns whether it does.
    fn settle(&self, response: &ResponseHead<'_>) -> bool {
        let applies = match &self.when {
            Some(when) => when(response),
            None => was_not_served(response),
        };
        if applies {
            give_back(self.limiter, &self.charged);
        }
        applies
    }
}

/// Whether a response says that the request was not served and when to come back: a 503 with
/// `retry-after`, as load shedders send it, the same in gRPC, or a refusal by a limit further in.
fn was_not_served(response: &ResponseHead<'_>) -> bool {
    let headers = response.headers();
    let status = response.status();
    if response.extensions().get::<Refused>().is_some() {
        return true;
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        return headers.contains_key(RETRY_AFTER);
    }
    let code = || headers.get("grpc-status").map(HeaderValue::as_bytes);
    status == StatusCode::OK
        && headers.contains_key("grpc-retry-pushback-ms")
        && matches!(code(), Some(b"8" | b"14"))
}

/// What an admitted request takes along if it has anything to. In a box, because most have not, and
/// futures are moved about.
pub(super) struct Extras<L: AnyLimiter> {
    /// What was charged and may be settled once the response is known.
    pub(super) receipt: Option<Receipt<L>>,
    /// The count of this request among those of its key in flight.
    pub(super) inflight: Option<Inflight>,
    /// Headers for the response.
    pub(super) stamp: Option<Stamp>,
    /// Whether they go on redirects too.
    pub(super) stamp_redirects: bool,
}

pub(super) trait Finish: Send + Sync {
    /// Whether a policy settles by the response.
    fn settles(&self) -> bool;

    /// Settles by what is known of the response.
    fn settle(&mut self, response: &ResponseHead<'_>, refunded: bool);

    /// Adds what the response has to say to its headers.
    fn stamp(&self, parts: &mut response::Parts);

    /// Whether the request counts as in flight until the body of its response ends.
    fn is_inflight(&self) -> bool;
}

impl<L: AnyLimiter> Finish for Extras<L> {
    fn settles(&self) -> bool {
        self.receipt.is_some()
    }

    fn settle(&mut self, response: &ResponseHead<'_>, refunded: bool) {
        match self.receipt.take() {
            // All that was charged is back already.
            Some(receipt) if refunded => receipt.settle_by(|_| None),
            Some(receipt) => receipt.settle(response),
            None => {}
        }
    }

    fn stamp(&self, parts: &mut response::Parts) {
        let redirects = parts.status.is_redirection() && parts.status != StatusCode::NOT_MODIFIED;
        if let Some(stamp) = &self.stamp
            && (self.stamp_redirects || !redirects)
        {
            for (name, value) in &stamp.headers {
                parts.headers.append(name, value.clone());
            }
        }
    }

    fn is_inflight(&self) -> bool {
        self.inflight.is_some()
    }
}

/// What the body of a response keeps until it ends.
pub(super) enum Held {
    /// A request in flight.
    #[expect(dead_code, reason = "held until it is dropped")]
    Inflight(Box<dyn Finish>),
    Open(Box<Open>),
}

impl Held {
    pub(super) fn trailers(&mut self, trailers: &HeaderMap) {
        if let Self::Open(open) = self
            && let Some(head) = &mut open.head
        {
            head.headers.extend(trailers.clone());
            open.settle();
        }
    }
}

/// A gRPC call with an outcome that its trailers will tell.
pub(super) struct Open {
    /// What is known of the response, until it is settled by.
    head: Option<response::Parts>,
    refund: Option<Refund>,
    extras: Option<Box<dyn Finish>>,
}

impl Open {
    fn settle(&mut self) {
        if let Some(head) = self.head.take() {
            settle(&head, self.refund.take(), &mut self.extras);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.settle();
    }
}

fn settle(head: &response::Parts, refund: Option<Refund>, extras: &mut Option<Box<dyn Finish>>) {
    let head = ResponseHead::new(head);
    let refunded = refund.is_some_and(|refund| refund.settle(&head));
    if let Some(extras) = extras {
        extras.settle(&head, refunded);
    }
}

impl<F, B> RateLimitFuture<F, B> {
    #[inline]
    pub(super) fn admitted(
        future: F,
        extras: Option<Box<dyn Finish>>,
        refund: Option<Refund>,
    ) -> Self {
        Self {
            state: State::Admitted {
                future,
                extras,
                refund,
            },
        }
    }

    pub(super) fn refused(response: Response<RateLimitBody<B>>) -> Self {
        Self {
            state: State::Refused {
                response: Some(response),
            },
        }
    }
}

impl<F, B, E> Future for RateLimitFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<RateLimitBody<B>>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Admitted {
                future,
                extras,
                refund,
            } => {
                // Without a response there is nothing to settle by: a reservation goes back, as
                // it does when this future is dropped.
                let response = match ready!(future.poll(cx)) {
                    Ok(response) => response,
                    Err(error) => {
                        *extras = None;
                        return Poll::Ready(Err(error));
                    }
                };
                let is_plain = extras.is_none()
                    && refund
                        .as_ref()
                        .is_none_or(|refund| !refund.may_apply(&response));
                if is_plain {
                    return Poll::Ready(Ok(response.map(RateLimitBody::inner)));
                }
                Poll::Ready(Ok(finish(response, extras.take(), refund.take())))
            }
            StateProj::Refused { response } => Poll::Ready(Ok(response
                .take()
                .expect("RateLimitFuture polled after completion"))),
        }
    }
}

/// Kept apart, so that the many without extras are not moved around for them.
#[inline(never)]
fn finish<B>(
    response: Response<B>,
    mut extras: Option<Box<dyn Finish>>,
    mut refund: Option<Refund>,
) -> Response<RateLimitBody<B>> {
    let (mut parts, body) = response.into_parts();
    let is_open = parts.status == StatusCode::OK
        && is_grpc(&parts.headers)
        && !parts.headers.contains_key(GRPC_STATUS)
        && parts.extensions.get::<Refused>().is_none();
    let settles = extras.as_ref().is_some_and(|extras| extras.settles());
    let head = if is_open && (settles || refund.is_some()) {
        Some(head_of(
            &parts,
            settles || refund.as_ref().is_some_and(|refund| refund.when.is_some()),
        ))
    } else {
        settle(&parts, refund.take(), &mut extras);
        None
    };
    if let Some(extras) = &extras {
        extras.stamp(&mut parts);
    }
    let held = match head {
        Some(_) => Some(Held::Open(Box::new(Open {
            head,
            refund,
            extras,
        }))),
        None => extras
            .filter(|extras| extras.is_inflight())
            .map(Held::Inflight),
    };
    Response::from_parts(parts, RateLimitBody::admitted(body, held))
}

/// What is known of a response, without its headers and extensions where its trailers are enough.
fn head_of(parts: &response::Parts, whole: bool) -> response::Parts {
    let (mut head, ()) = Response::new(()).into_parts();
    head.status = parts.status;
    head.version = parts.version;
    if whole {
        head.headers = parts.headers.clone();
        head.extensions = parts.extensions.clone();
    }
    head
}

impl<F, B> std::fmt::Debug for RateLimitFuture<F, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match self.state {
            State::Admitted { .. } => "admitted",
            State::Refused { .. } => "refused",
        };
        f.debug_tuple("RateLimitFuture").field(&state).finish()
    }
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
