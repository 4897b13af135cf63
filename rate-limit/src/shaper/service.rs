use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tower_service::Service;

use super::{ShapedBody, ShapedFuture, layer::Settings};
use crate::accessors::inner_service_accessors;

/// The service made by [`ShaperLayer`](super::ShaperLayer).
///
/// Waiting happens in the response future. The inner service is readied before a request joins
/// the line, so it must not hold anything scarce while it is ready (hyper's and reqwest's clients
/// do not).
#[derive(Clone, Debug)]
pub struct Shaped<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S> Shaped<S> {
    pub(super) fn new(inner: S, settings: Arc<Settings>) -> Self {
        Self { inner, settings }
    }

    inner_service_accessors!();
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Shaped<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
{
    type Response = Response<ShapedBody<ResBody>>;
    type Error = ShapedError<S::Error>;
    type Future = ShapedFuture<S, ReqBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(ShapedError::Inner)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        // The service that is ready moves into the future; a clone takes its place.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        ShapedFuture::new(inner, request, Arc::clone(&self.settings))
    }
}

/// Why a request was not sent, or what the client made of it.
#[derive(Debug)]
#[non_exhaustive]
pub enum ShapedError<E> {
    /// It would have had to wait too long.
    Refused(WaitRefused),
    /// The inner service failed.
    Inner(E),
}

impl<E> fmt::Display for ShapedError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused(_) => "request not sent",
            Self::Inner(_) => "request failed",
        })
    }
}

impl<E: std::error::Error + 'static> std::error::Error for ShapedError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Refused(refused) => Some(refused),
            Self::Inner(error) => Some(error),
        }
    }
}

/// Why a request may not wait for its turn.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum WaitRefused {
    /// As many requests wait as may.
    QueueFull,
    /// Its turn would come too late.
    TooLong {
        /// How long it would have had to wait, at least.
        expected: Duration,
    },
    /// It costs more than a burst and its turn would never come.
    TooLarge,
}

impl fmt::Display for WaitRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QueueFull => f.write_str("too many requests are waiting already"),
            Self::TooLong { expected } => write!(f, "the wait would be {expected:?} or longer"),
            Self::TooLarge => f.write_str("the request costs more than the burst"),
        }
    }
}

impl std::error::Error for WaitRefused {}
