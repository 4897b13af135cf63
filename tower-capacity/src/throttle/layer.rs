use std::{fmt, sync::Arc};

use http::{Response, request, response};
use http_body::Body;
use tower_layer::Layer;

use super::{Answer, THROTTLED_HEADER, Throttle, Throttled, Throttler};
use crate::{
    layer::CapacityBody,
    reject::{DefaultReject, Reject, ShedHook},
};

/// Layer that applies [`Throttle`]: it refuses requests to a backend that rejects too many.
///
/// See the [module docs](super). `R` answers requests that are not sent; see
/// [`on_shed`](Self::on_shed).
#[derive(Clone, Debug)]
#[must_use]
pub struct ThrottleLayer<R = DefaultReject> {
    config: Config<R>,
}

/// What the services of a layer share.
#[derive(Clone)]
pub(super) struct Config<R> {
    pub(super) throttler: Throttler,
    reject: R,
    bypass: Option<Arc<Bypass>>,
    pub(super) classify: Option<Arc<Classify>>,
    pub(super) shadow: bool,
}

type Bypass = dyn Fn(&request::Parts) -> bool + Send + Sync;
pub(super) type Classify = dyn Fn(&response::Parts) -> Answer + Send + Sync;

impl ThrottleLayer {
    /// Creates a layer that needs no numbers, around a [`Throttler`] of its own.
    pub fn adaptive() -> Self {
        Self::new(Throttler::default())
    }

    /// Creates a layer around a throttler. Layers around clones of one throttler share it, and
    /// should lead to the same backend.
    pub const fn new(throttler: Throttler) -> Self {
        Self {
            config: Config {
                throttler,
                reject: DefaultReject,
                bypass: None,
                classify: None,
                shadow: false,
            },
        }
    }
}

impl<R> ThrottleLayer<R> {
    /// The throttler: keep a clone to watch it, to pause it and to change its settings.
    pub const fn throttler(&self) -> &Throttler {
        &self.config.throttler
    }

    /// Sends requests uncounted if `predicate` says so, even during a pause.
    ///
    /// Defaults to none. Called again, it replaces the predicate.
    pub fn bypass(
        mut self,
        predicate: impl Fn(&request::Parts) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.config.bypass = Some(Arc::new(predicate));
        self
    }

    /// Decides, counts and explains, but sends every request.
    ///
    /// Defaults to off.
    pub const fn shadow(mut self, shadow: bool) -> Self {
        self.config.shadow = shadow;
        self
    }

    /// Says whether a response means that the backend accepted the request. Defaults to
    /// [`Answer::of_parts`].
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower_capacity::throttle::{Answer, RetryAdvice, ThrottleLayer};
    ///
    /// let layer = ThrottleLayer::adaptive().classify(|response| {
    ///     if response.status == StatusCode::INTERNAL_SERVER_ERROR {
    ///         Answer::Rejected(RetryAdvice::Untold)
    ///     } else {
    ///         Answer::of_parts(response)
    ///     }
    /// });
    /// ```
    pub fn classify(
        mut self,
        classify: impl Fn(&response::Parts) -> Answer + Send + Sync + 'static,
    ) -> Self {
        self.config.classify = Some(Arc::new(classify));
        self
    }

    /// Answers requests that are not sent with `hook`, which gets the reason, the numbers and the
    /// head of the request, and answers with the body type of the inner service.
    ///
    /// The answer is marked as that of this client in any case. Defaults to [`DefaultReject`]. With
    /// a hook there is no bound on the body's data type.
    pub fn on_shed<B>(
        self,
        hook: impl Fn(&Throttled, &request::Parts) -> Response<B> + Send + Sync + 'static,
    ) -> ThrottleLayer<ShedHook<B, Throttled>> {
        let Config {
            throttler,
            reject: _,
            bypass,
            classify,
            shadow,
        } = self.config;
        ThrottleLayer {
            config: Config {
                throttler,
                reject: ShedHook::new(hook),
                bypass,
                classify,
                shadow,
            },
        }
    }
}

impl<S, R: Clone> Layer<S> for ThrottleLayer<R> {
    type Service = Throttle<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        Throttle::new(inner, Arc::new(self.config.clone()))
    }
}

impl<R> Config<R> {
    pub(super) fn bypasses(&self, request: &request::Parts) -> bool {
        self.bypass.as_ref().is_some_and(|bypass| bypass(request))
    }

    /// Answers a request that is not sent.
    pub(super) fn answer<B>(
        &self,
        throttled: Throttled,
        request: &request::Parts,
    ) -> Response<CapacityBody<B>>
    where
        B: Body,
        R: Reject<B, Throttled>,
    {
        let mut response = self.reject.reject(&throttled, request);
        let reason = http::HeaderValue::from_static(throttled.reason().as_str());
        response.headers_mut().insert(THROTTLED_HEADER, reason);
        response.extensions_mut().insert(throttled);
        response
    }
}

impl<R: fmt::Debug> fmt::Debug for Config<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("throttler", &self.throttler)
            .field("reject", &self.reject)
            .field("bypass", &self.bypass.is_some())
            .field("classify", &self.classify.is_some())
            .field("shadow", &self.shadow)
            .finish()
    }
}
