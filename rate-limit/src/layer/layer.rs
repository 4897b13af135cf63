use std::{fmt, sync::Arc};

use http::{Response, request};
use tower_layer::Layer;

use super::RateLimit;
use crate::{
    BuildError, Limiter, Quota,
    answer::{Hook, Limited, QuotaHeaders, StandardAnswer},
    key::{self, AccessList, CompiledList, Key, MissingKey, RequestHead},
};

/// Limits how often each caller may ask, and answers 429 to the rest.
///
/// The state lives in the layer, in its [`Limiter`]: calling [`Layer::layer`] twice, as
/// `axum::serve` does for every connection, or cloning the service makes no second limiter.
/// `tower::limit::RateLimitLayer` keeps its state in the service, so that in axum it limits
/// nothing, and it makes callers wait; this one answers at once.
///
/// ```
/// use rate_limit::{MINUTE, Quota, RateLimitLayer, key};
///
/// let layer = RateLimitLayer::new(Quota::count(100).per(MINUTE).burst(20))?
///     .key(key::header("x-api-key").or(key::peer()))
///     .bypass(|request| request.uri().path() == "/livez");
/// # Ok::<(), rate_limit::BuildError>(())
/// ```
///
/// On Redis, `L` is a [`FleetLimiter`](crate::fleet::FleetLimiter) and the inner service must be
/// `Clone`: it is called when the answer is there. All else is the same.
pub struct RateLimitLayer<A = StandardAnswer, L = Limiter> {
    settings: Arc<Settings<L>>,
    answer: A,
}

/// What a layer can ask: a [`Limiter`], for one process, or with the `redis` feature a
/// [`FleetLimiter`](crate::fleet::FleetLimiter), for several.
///
/// It cannot be implemented elsewhere.
pub trait AnyLimiter: Sealed {}

/// What they have in common.
#[expect(unnameable_types, reason = "so that nobody else implements it")]
pub trait Sealed: Clone {
    /// The limiter that knows the policies and hashes the keys.
    #[doc(hidden)]
    fn local(&self) -> &Limiter;
}

impl AnyLimiter for Limiter {}

impl Sealed for Limiter {
    #[inline]
    fn local(&self) -> &Limiter {
        self
    }
}

/// Everything about a layer but its answer.
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
    pub(super) allow: CompiledList,
    pub(super) deny: CompiledList,
    has_lists: bool,
}

type PlanFn = dyn for<'a> Fn(&RequestHead<'a>) -> Option<&'a str> + Send + Sync;
type QuotaFn = dyn Fn(&RequestHead<'_>) -> Option<Quota> + Send + Sync;
type Predicate = dyn Fn(&RequestHead<'_>) -> bool + Send + Sync;

impl RateLimitLayer {
    /// A layer that gives `quota` to each peer address.
    ///
    /// # Errors
    ///
    /// Fails when the quota means nothing or cannot be kept, see [`Quota::validate`].
    #[track_caller]
    pub fn new(quota: Quota) -> Result<Self, BuildError> {
        Ok(Self::from_limiter(Limiter::new(quota)?))
    }
}

impl<L: AnyLimiter> RateLimitLayer<StandardAnswer, L> {
    /// A layer that asks `limiter`, which may have other users.
    #[must_use]
    pub fn from_limiter(limiter: L) -> Self {
        let settings = Settings {
            limiter,
            key: key::peer().into(),
            missing_key: MissingKey::default(),
            bypass: None,
            shadow: false,
            plan: None,
            own_quota: None,
            headers: None,
            allow: CompiledList::default(),
            deny: CompiledList::default(),
            has_lists: false,
        };
        Self {
            settings: Arc::new(settings),
            answer: StandardAnswer::default(),
        }
    }
}

impl<A, L: AnyLimiter> RateLimitLayer<A, L> {
    /// Sets whose quota a request is charged to.
    ///
    /// Defaults to [`key::peer`].
    #[must_use]
    pub fn key(self, key: impl Into<Key>) -> Self {
        self.with(|settings| settings.key = key.into())
    }

    /// Sets what becomes of a request without a key.
    ///
    /// Defaults to [`MissingKey::Share`].
    #[must_use]
    pub fn missing_key(self, missing_key: MissingKey) -> Self {
        self.with(|settings| settings.missing_key = missing_key)
    }

    /// Lets the requests for which `predicate` holds through unlimited and uncharged: health
    /// probes, for one.
    ///
    /// Defaults to none.
    #[must_use]
    pub fn bypass(
        self,
        predicate: impl Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.bypass = Some(Arc::new(predicate)))
    }

    /// Lets the callers on `list` through unlimited and uncharged.
    ///
    /// Defaults to nobody.
    #[must_use]
    pub fn allow(self, list: AccessList) -> Self {
        self.with(|settings| {
            settings.allow = list.compile(settings.limiter.local().seed());
            settings.has_lists = true;
        })
    }

    /// Refuses the callers on `list`, even those on the other list: 403, or `PERMISSION_DENIED`
    /// for gRPC.
    ///
    /// Defaults to nobody.
    #[must_use]
    pub fn deny(self, list: AccessList) -> Self {
        self.with(|settings| {
            settings.deny = list.compile(settings.limiter.local().seed());
            settings.has_lists = true;
        })
    }

    /// Chooses the [plan](crate::LimiterBuilder::plan) that a request is decided by: by route, by
    /// what a customer pays for. `None`, or a name that is no plan, is the limiter's own policies.
    ///
    /// Defaults to none.
    ///
    /// ```
    /// use rate_limit::{Limiter, MINUTE, Policy, Quota, RateLimitLayer};
    ///
    /// let limiter = Limiter::builder()
    ///     .policy(Policy::new("api", Quota::count(600).per(MINUTE)))
    ///     .plan("search", [Policy::new("search", Quota::count(30).per(MINUTE))])
    ///     .build()?;
    /// let layer = RateLimitLayer::from_limiter(limiter)
    ///     .plan(|request| request.uri().path().starts_with("/search").then_some("search"));
    /// # Ok::<(), rate_limit::BuildError>(())
    /// ```
    #[must_use]
    pub fn plan(
        self,
        plan: impl for<'a> Fn(&RequestHead<'a>) -> Option<&'a str> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.plan = Some(Arc::new(plan)))
    }

    /// Gives requests a quota of their own in place of the first policy's, for example from the
    /// claims of a token. `None`, or a quota that cannot be kept, is the policy's.
    ///
    /// All requests of a key should have the same quota: the key has one debt, whatever quota it
    /// was run up under.
    ///
    /// Defaults to none.
    #[must_use]
    pub fn quota_from(
        self,
        quota: impl Fn(&RequestHead<'_>) -> Option<Quota> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.own_quota = Some(Arc::new(quota)))
    }

    /// Adds headers to responses that tell callers where they stand.
    ///
    /// Defaults to none but `retry-after` on refusals.
    #[must_use]
    pub fn headers(self, headers: QuotaHeaders) -> Self {
        self.with(|settings| settings.headers = Some(headers))
    }

    /// Decides, counts and reports, but lets every request through: for trying out a quota on
    /// live traffic. [`Policy::shadow`](crate::Policy::shadow) does so for one policy.
    ///
    /// Defaults to `false`.
    #[must_use]
    pub fn shadow(self, shadow: bool) -> Self {
        self.with(|settings| settings.shadow = shadow)
    }

    /// Replaces the answer to refused requests, for HTTP and gRPC alike.
    ///
    /// Defaults to the table in [`answer`](crate::answer).
    ///
    /// ```
    /// use http::{Response, StatusCode};
    /// use rate_limit::{Quota, RateLimitLayer, SECOND};
    ///
    /// let layer = RateLimitLayer::new(Quota::count(5).per(SECOND))?.on_limited(|limited, _| {
    ///     let mut response = Response::new(axum::body::Body::from("slow down"));
    ///     *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    ///     response
    /// });
    /// # Ok::<(), rate_limit::BuildError>(())
    /// ```
    #[must_use]
    pub fn on_limited<F, B>(self, hook: F) -> RateLimitLayer<Hook<F>, L>
    where
        F: Fn(&Limited<'_>, &request::Parts) -> Response<B>,
    {
        RateLimitLayer {
            settings: self.settings,
            answer: Hook::new(hook),
        }
    }

    /// Replaces the answer by one of a type that can be named.
    ///
    /// Defaults to [`StandardAnswer::new`].
    #[must_use]
    pub fn answer<B>(self, answer: B) -> RateLimitLayer<B, L> {
        RateLimitLayer {
            settings: self.settings,
            answer,
        }
    }

    /// The limiter that the layer asks.
    #[must_use]
    pub fn limiter(&self) -> &L {
        &self.settings.limiter
    }

    fn with(mut self, set: impl FnOnce(&mut Settings<L>)) -> Self {
        set(Arc::make_mut(&mut self.settings));
        self
    }
}

impl<L> Settings<L> {
    pub(super) fn has_lists(&self) -> bool {
        self.has_lists
    }

    /// Whether the caller is on `list`, by address or by key.
    pub(super) fn lists(
        &self,
        list: &CompiledList,
        head: &RequestHead<'_>,
        key: Option<u64>,
    ) -> bool {
        let by_ip = || {
            list.has_networks()
                && self
                    .key
                    .client_ip(head)
                    .is_some_and(|ip| list.contains_ip(ip))
        };
        key.is_some_and(|key| list.contains_key(key)) || by_ip()
    }
}

impl<S, A: Clone, L> Layer<S> for RateLimitLayer<A, L> {
    type Service = RateLimit<S, A, L>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit::new(inner, Arc::clone(&self.settings), self.answer.clone())
    }
}

impl<A: Clone, L> Clone for RateLimitLayer<A, L> {
    fn clone(&self) -> Self {
        Self {
            settings: Arc::clone(&self.settings),
            answer: self.answer.clone(),
        }
    }
}

impl<A: fmt::Debug, L: fmt::Debug> fmt::Debug for RateLimitLayer<A, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitLayer")
            .field("settings", &self.settings)
            .field("answer", &self.answer)
            .finish()
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
            .field("allow", &self.allow)
            .field("deny", &self.deny)
            .finish()
    }
}
