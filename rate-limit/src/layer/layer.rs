use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use http::{Response, request};
use tower_layer::Layer;

use super::{RateLimit, screen::Settings};
use crate::{
    AnyLimiter, BuildError, Limiter, Quota, ResponseHead,
    answer::{Hook, Limited, QuotaHeaders, StandardAnswer},
    key::{self, AccessList, AccessLists, Key, Lists, MissingKey, RequestHead},
};

/// Limits how often each caller may ask, and refuses the rest with 429.
///
/// The state lives in the layer, in its [`Limiter`]: calling [`Layer::layer`] twice, as
/// `axum::serve` does for every connection, or cloning the service makes no second limiter.
/// `tower::limit::RateLimitLayer` keeps its state in the service, so that in axum it limits
/// nothing, and it makes callers wait; this one decides at once.
///
/// ```
/// use rate_limit::{MINUTE, Quota, RateLimitLayer, key};
///
/// let layer = RateLimitLayer::new(Quota::count(100).per(MINUTE).burst(20))?
///     .key(key::header("x-api-key").or(key::peer()))
///     .bypass(|request| request.uri.path() == "/livez");
/// # Ok::<(), rate_limit::BuildError>(())
/// ```
///
/// # Several keys
///
/// The policies of one limiter share a key. For limits by address, by user and for all together,
/// stack layers: what an inner one refuses, with any status but a success, is given back by the
/// outer ones, see [`refund_if`](Self::refund_if). So a caller that is over its own quota takes
/// nothing from the others'.
///
/// ```
/// # use axum::{Router, routing::get};
/// # use rate_limit::{MINUTE, Quota, RateLimitLayer, SECOND, key};
/// let for_all = RateLimitLayer::new(Quota::count(1_000).per(SECOND))?.key(key::global());
/// let each = RateLimitLayer::new(Quota::count(20).per(MINUTE))?.key(key::header("x-api-key"));
/// // The last is the outermost.
/// let app: Router = Router::new().route("/", get(async || "hello")).layer(each).layer(for_all);
/// # Ok::<(), rate_limit::BuildError>(())
/// ```
///
/// On Redis, `L` is a [`FleetLimiter`](crate::fleet::FleetLimiter) and the inner service must be
/// `Clone`: it is called when the decision is there. Everything else is the same.
pub struct RateLimitLayer<A = StandardAnswer, L = Limiter> {
    settings: Arc<Settings<L>>,
    answer: A,
}

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
            lists: None,
            refunds: true,
            refund_if: None,
            tells_caller: false,
            explains: false,
        };
        Self {
            settings: Arc::new(settings),
            answer: StandardAnswer::default(),
        }
    }
}

impl<A, L: AnyLimiter> RateLimitLayer<A, L> {
    /// Sets the key that a request is charged to.
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
    /// probes, for one. The layers of `tower-capacity` take the same predicate.
    ///
    /// Defaults to none.
    #[must_use]
    pub fn bypass(
        self,
        predicate: impl Fn(&request::Parts) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.bypass = Some(Arc::new(predicate)))
    }

    /// Lets the callers on `list` through unlimited and uncharged.
    ///
    /// Defaults to none.
    #[must_use]
    pub fn allow(self, list: AccessList) -> Self {
        self.with_lists(|lists, seed| lists.allow = list.compile(seed))
    }

    /// Refuses the callers on `list`, even those on the other list: 403, or `PERMISSION_DENIED`
    /// for gRPC. Networks are compared with the client's address where the [key](Self::key) is
    /// made of one, and otherwise with the peer's, see [`key::peer`].
    ///
    /// Defaults to none.
    #[must_use]
    pub fn deny(self, list: AccessList) -> Self {
        self.with_lists(|lists, seed| lists.deny = list.compile(seed))
    }

    /// A handle that replaces the lists while the service runs: a blocklist that grows.
    ///
    /// ```
    /// use rate_limit::{MINUTE, Quota, RateLimitLayer, key::AccessList};
    ///
    /// let mut layer = RateLimitLayer::new(Quota::count(100).per(MINUTE))?;
    /// let lists = layer.lists();
    /// lists.set_deny(AccessList::networks(["192.0.2.0/24"])?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn lists(&mut self) -> AccessLists {
        let settings = Arc::make_mut(&mut self.settings);
        let shared = settings.lists.get_or_insert_with(Arc::default);
        AccessLists::new(Arc::clone(shared), settings.limiter.plans().seed().clone())
    }

    fn with_lists(self, set: impl FnOnce(&mut Lists, &key::Seed)) -> Self {
        self.with(|settings| {
            let mut lists = settings
                .lists
                .as_ref()
                .map_or_else(Lists::default, |shared| Lists::clone(&shared.load()));
            set(&mut lists, settings.limiter.plans().seed());
            match &settings.lists {
                Some(shared) => shared.store(Arc::new(lists)),
                None => settings.lists = Some(Arc::new(ArcSwap::from_pointee(lists))),
            }
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
        self.with(|settings| {
            settings.plan = Some(Arc::new(move |head, number| number(plan(head))));
        })
    }

    /// The same for names that are not borrowed from the request: those of a table of customers.
    ///
    /// ```
    /// # use std::{collections::HashMap, sync::Arc};
    /// # use rate_limit::{MINUTE, Quota, RateLimitLayer};
    /// let plans: HashMap<String, Arc<str>> = HashMap::from([("key-1".into(), "pro".into())]);
    /// let layer = RateLimitLayer::new(Quota::count(5).per(MINUTE))?.plan_owned(move |request| {
    ///     let key = request.headers().get("x-api-key")?.to_str().ok()?;
    ///     plans.get(key).cloned()
    /// });
    /// # Ok::<(), rate_limit::BuildError>(())
    /// ```
    #[must_use]
    pub fn plan_owned<N: AsRef<str>>(
        self,
        plan: impl Fn(&RequestHead<'_>) -> Option<N> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| {
            settings.plan = Some(Arc::new(move |head, number| {
                number(plan(head).as_ref().map(AsRef::as_ref))
            }));
        })
    }

    /// Gives requests a quota of their own in place of the first policy's, for example from the
    /// claims of a token. `None`, or a quota that cannot be kept, is the policy's.
    ///
    /// What a key has used counts by all its quotas, see [`Policy`](crate::Policy).
    ///
    /// Defaults to none.
    #[must_use]
    pub fn quota_from(
        self,
        quota: impl Fn(&RequestHead<'_>) -> Option<Quota> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.own_quota = Some(Arc::new(quota)))
    }

    /// Adds headers to responses that state what is left of the quota.
    ///
    /// Defaults to none but `retry-after` on refusals.
    #[must_use]
    pub fn headers(self, headers: QuotaHeaders) -> Self {
        self.with(|settings| settings.headers = Some(headers))
    }

    /// Decides, counts and reports, but lets every request through: for trying out a quota on
    /// live traffic. [`Policy::shadow`](crate::Policy::shadow) does so for one policy, and
    /// [`Limiter::set_mode`] while the service runs.
    ///
    /// Defaults to `false`.
    #[must_use]
    pub fn shadow(self, shadow: bool) -> Self {
        self.with(|settings| settings.shadow = shadow)
    }

    /// Sets which responses give their request's cells back, because the service did not do the
    /// work.
    ///
    /// Defaults to a 503 with `retry-after`, as a load shedder such as `tower-capacity` sends it
    /// (and the same in gRPC, in trailers too), and a refusal by another limit further in. So a
    /// request that is shed costs no quota, and neither does one that passes an outer limit in
    /// vain. Layers need no common type for that: the status says that the request was not served.
    /// A gRPC response that has no status yet takes an allocation to wait for it.
    #[must_use]
    pub fn refund_if(
        self,
        refund: impl Fn(&ResponseHead<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.refund_if = Some(Arc::new(refund)))
    }

    /// Gives nothing back, whatever the response is. Policies still [settle](crate::Policy::settle).
    #[must_use]
    pub fn no_refunds(self) -> Self {
        self.with(|settings| settings.refunds = false)
    }

    /// Leaves a [`Caller`](crate::Caller) in the extensions of admitted requests, with which
    /// handlers see what is left and correct what was charged. It takes an allocation or two.
    ///
    /// Defaults to `false`.
    #[must_use]
    pub fn tell_caller(self, tell: bool) -> Self {
        self.with(|settings| settings.tells_caller = tell)
    }

    /// Leaves a [`LimitError`](crate::LimitError) in the extensions of the responses to refused
    /// requests, beside the marker [`Refused`](crate::answer::Refused): reason, policy and wait. It
    /// takes an allocation.
    ///
    /// Defaults to `false`.
    #[must_use]
    pub fn explain_refusals(self, explain: bool) -> Self {
        self.with(|settings| settings.explains = explain)
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

    /// Replaces the response by one of a type that can be named.
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
