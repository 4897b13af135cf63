use std::{fmt, sync::Arc};

use http::{HeaderValue, Response, request, response};
use http_body::Body;
use tower_layer::Layer;

use super::{Answer, Attempt, THROTTLED_HEADER, Throttle, Throttled, Throttler};
use crate::{
    layer::CapacityBody,
    reject::{DefaultReject, Reject, ShedHook, fit_to_method},
};

/// Layer that applies [`Throttle`]: it withholds requests from a backend that accepts none.
///
/// See the [module docs](super). `R` makes the responses to requests that are not sent; see
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
    key: Option<Arc<Key>>,
    pub(super) classify: Option<Arc<Classify>>,
    pub(super) shadow: bool,
}

type Bypass = dyn Fn(&request::Parts) -> bool + Send + Sync;
type Key = dyn Fn(&request::Parts) -> Option<String> + Send + Sync;
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
                key: None,
                classify: None,
                shadow: false,
            },
        }
    }
}

impl<R> ThrottleLayer<R> {
    /// The throttler: keep a clone to watch it and to change its settings.
    pub const fn throttler(&self) -> &Throttler {
        &self.config.throttler
    }

    /// Sends requests uncounted if `predicate` says so.
    ///
    /// Defaults to none. Called again, it replaces the predicate.
    pub fn bypass(
        mut self,
        predicate: impl Fn(&request::Parts) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.config.bypass = Some(Arc::new(predicate));
        self
    }

    /// Says of what kind a request is: what a backend does with requests of one kind says nothing
    /// about those of another.
    ///
    /// Set it where the backend tells requests apart by more than their path, such as by tenant or
    /// by priority, and where a tenant may ask less than once in
    /// [`patience`](super::ThrottleConfig::patience) while the requests of another are all
    /// rejected. Kinds are told apart by a hash with 1,024 values. Defaults to the path of the URI.
    ///
    /// ```
    /// use tower_capacity::throttle::ThrottleLayer;
    ///
    /// let layer = ThrottleLayer::adaptive()
    ///     .key(|request| Some(request.headers.get("x-tenant")?.to_str().ok()?.to_owned()));
    /// ```
    pub fn key(
        mut self,
        key: impl Fn(&request::Parts) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.config.key = Some(Arc::new(key));
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

    /// Makes the responses to requests that are not sent with `hook`, which gets the numbers and the
    /// head of the request, and returns a response with the body type of the inner service.
    ///
    /// The response is marked as that of this client in any case. Defaults to [`DefaultReject`]. With
    /// a hook there is no bound on the body's data type.
    pub fn on_shed<B>(
        self,
        hook: impl Fn(&Throttled, &request::Parts) -> Response<B> + Send + Sync + 'static,
    ) -> ThrottleLayer<ShedHook<B, Throttled>> {
        let Config {
            throttler,
            reject: _,
            bypass,
            key,
            classify,
            shadow,
        } = self.config;
        ThrottleLayer {
            config: Config {
                throttler,
                reject: ShedHook::new(hook),
                bypass,
                key,
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

    /// Decides whether a request is sent.
    pub(super) fn admit(&self, request: &request::Parts) -> Result<Attempt, Throttled> {
        let computed;
        let key = match &self.key {
            Some(key) => {
                computed = key(request);
                computed.as_deref()
            }
            None => Some(request.uri.path()),
        };
        if self.shadow {
            return Ok(self.throttler.admit_anyway(key).0);
        }
        self.throttler.admit(key)
    }

    /// Responds to a request that is not sent.
    pub(super) fn refuse<B>(
        &self,
        throttled: Throttled,
        request: &request::Parts,
    ) -> Response<CapacityBody<B>>
    where
        B: Body,
        R: Reject<B, Throttled>,
    {
        let mut response = self.reject.reject(&throttled, request);
        fit_to_method(&request.method, &mut response);
        let mark = HeaderValue::from_static("adaptive");
        response.headers_mut().insert(THROTTLED_HEADER, mark);
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
            .field("key", &self.key.is_some())
            .field("classify", &self.classify.is_some())
            .field("shadow", &self.shadow)
            .finish()
    }
}
