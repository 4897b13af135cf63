use std::{fmt, sync::Arc, time::Duration};

use http::{Response, request, response};
use tower_layer::Layer;

use super::{
    Capacity,
    ask::{ReadKey, RequestConfig},
    upgrade::Protocols,
};
use crate::{
    Limiter, Mode, Outcome, Priority,
    reject::{DefaultReject, Shed, ShedHook},
};

/// Layer that applies [`Capacity`]: an adaptive limit on the requests inside a service.
///
/// ```
/// use axum::{Router, routing::get};
/// use tower_capacity::CapacityLayer;
///
/// let capacity = CapacityLayer::adaptive();
/// let limiter = capacity.limiter().clone();
/// let app: Router = Router::new()
///     .route("/work", get(|| async { "done" }))
///     .layer(capacity.bypass(|request| request.uri.path() == "/livez"))
///     .route("/readyz", get(move || async move { (!limiter.is_draining()).to_string() }));
/// ```
///
/// `R` makes the responses of refused requests; see [`on_shed`](Self::on_shed). Needs a runtime with
/// tokio's timers: see [where it goes](super#where-it-goes).
#[derive(Clone, Debug)]
#[must_use]
pub struct CapacityLayer<R = DefaultReject> {
    pub(super) config: Config<R>,
}

/// What the services of a layer share.
#[derive(Clone)]
pub(super) struct Config<R> {
    pub(super) limiter: Limiter,
    pub(super) upgrades: Option<Limiter>,
    /// `None`: WebSockets.
    pub(super) protocols: Option<Protocols>,
    pub(super) reject: R,
    pub(super) request: RequestConfig,
    /// Whether requests are admitted without being read; set when the layer is applied.
    pub(super) reads_nothing: bool,
    /// `None`: nothing that differs from the defaults, and nothing to copy for each request.
    pub(super) response: Option<Arc<ResponseConfig>>,
}

/// What a future needs once its request was admitted.
#[derive(Clone, Default)]
pub(super) struct ResponseConfig {
    pub(super) classify: Option<Arc<Classify>>,
    pub(super) release_on_headers: bool,
}

type Classify = dyn Fn(&response::Parts) -> Outcome + Send + Sync;

impl CapacityLayer {
    /// Creates a layer that needs no numbers, around [`Limiter::adaptive`].
    pub fn adaptive() -> Self {
        Self::new(Limiter::adaptive())
    }

    /// Like [`adaptive`](Self::adaptive), with a name for metrics and events: two limiters of one
    /// process need two names.
    pub fn named(name: &str) -> Self {
        Self::new(Limiter::named(name))
    }

    /// Creates a layer around a limiter. Layers around clones of one limiter share its limit.
    pub fn new(limiter: Limiter) -> Self {
        Self {
            config: Config {
                limiter,
                upgrades: None,
                protocols: None,
                reject: DefaultReject,
                request: RequestConfig::default(),
                reads_nothing: false,
                response: None,
            },
        }
    }
}

impl<R> CapacityLayer<R> {
    /// The limiter: keep a clone to watch it, to change its bounds and to drain it.
    pub const fn limiter(&self) -> &Limiter {
        &self.config.limiter
    }

    /// Lets requests past the limiter, uncounted, if `predicate` says so: health probes above all.
    ///
    /// Defaults to none. Called again, it replaces the predicate.
    pub fn bypass(
        mut self,
        predicate: impl Fn(&request::Parts) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.config.request.bypass = Some(Arc::new(predicate));
        self
    }

    /// Says how much a request matters, see [`Priority`].
    ///
    /// A permit that comes free goes to the highest class that waits, a full waiting room makes
    /// place for it, and the lower classes stop before the limit is reached.
    /// [`priority_header`](crate::priority_header) reads it from a header. Defaults to
    /// [`Priority::Default`] for all.
    ///
    /// ```
    /// use tower_capacity::{CapacityLayer, Priority};
    ///
    /// let layer = CapacityLayer::adaptive().priority(|request| match request.uri.path() {
    ///     "/checkout" => Priority::Critical,
    ///     path if path.starts_with("/reports") => Priority::Background,
    ///     _ => Priority::Default,
    /// });
    /// # let app: axum::Router = axum::Router::new().layer(layer);
    /// ```
    pub fn priority(
        mut self,
        classify: impl Fn(&request::Parts) -> Priority + Send + Sync + 'static,
    ) -> Self {
        self.config.request.priority = Some(Arc::new(classify));
        self
    }

    /// Says how many permits a request takes, for one that uses as much as that many others: an
    /// export, a batch of 20, a search over all tenants. See [`Ask::cost`](crate::gate::Ask::cost).
    ///
    /// An expensive request waits until all of its permits are free, or the whole limit where it
    /// costs more; no cheaper one takes them meanwhile. Limit, inflight, queue and the shares of
    /// partitions count permits; decisions and service times count requests. A caller that writes
    /// what the cost is read from chooses its own: bound it.
    ///
    /// Needs a waiting room: without, cheap requests can take each permit before there are enough.
    /// Defaults to 1 for all; zero counts as 1, and more than 64 as 64.
    ///
    /// ```
    /// use tower_capacity::CapacityLayer;
    ///
    /// let layer = CapacityLayer::adaptive().cost(|request| match request.uri.path() {
    ///     "/export" => 10,
    ///     _ => 1,
    /// });
    /// # let app: axum::Router = axum::Router::new().layer(layer);
    /// ```
    pub fn cost(
        mut self,
        permits: impl Fn(&request::Parts) -> u32 + Send + Sync + 'static,
    ) -> Self {
        self.config.request.cost = Some(Arc::new(permits));
        self
    }

    /// Sets the key of a request, such as a tenant or a route, so that one cannot starve the rest.
    ///
    /// Keys in use are guaranteed equal parts of the limit, or the
    /// [shares](crate::LimiterBuilder::share) that the limiter was built with, and may fill what
    /// others leave idle; see [`Partition`](crate::gate::Partition). Requests without a key
    /// together count as one. A caller that writes the key chooses the share that it uses: read it from
    /// what the service has verified.
    ///
    /// Needs a waiting room: a request within its guarantee that finds the limit used up by others
    /// waits for the next permit. Defaults to none.
    ///
    /// ```
    /// use tower_capacity::CapacityLayer;
    ///
    /// let layer = CapacityLayer::adaptive()
    ///     .partition(|request| request.headers.get("x-tenant")?.to_str().ok());
    /// # let app: axum::Router = axum::Router::new().layer(layer);
    /// ```
    pub fn partition(
        mut self,
        key: impl for<'a> Fn(&'a request::Parts) -> Option<&'a str> + Send + Sync + 'static,
    ) -> Self {
        self.config.request.partition = Some(ReadKey::Borrowed(Arc::new(key)));
        self
    }

    /// Says for how long the response to a request is worth anything: the request waits no longer,
    /// and is refused at once if the waiters that go before it take longer.
    ///
    /// Defaults to the `grpc-timeout` of gRPC requests, and to forever for others.
    pub fn time_left(
        mut self,
        read: impl Fn(&request::Parts) -> Option<Duration> + Send + Sync + 'static,
    ) -> Self {
        self.config.request.time_left = Some(Arc::new(read));
        self
    }

    /// Sets the key of a request where it has to be computed, such as the claim of a token or
    /// the prefix of an address. Otherwise like [`partition`](Self::partition), which a key that
    /// stands in the request costs no allocation.
    ///
    /// ```
    /// use http::header::HOST;
    /// use tower_capacity::CapacityLayer;
    ///
    /// let layer = CapacityLayer::adaptive()
    ///     .partition_by(|request| Some(request.headers.get(HOST)?.to_str().ok()?.to_lowercase()));
    /// # let app: axum::Router = axum::Router::new().layer(layer);
    /// ```
    pub fn partition_by(
        mut self,
        key: impl Fn(&request::Parts) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.config.request.partition = Some(ReadKey::Computed(Arc::new(key)));
        self
    }

    /// Decides, counts and explains, but serves every request: sets the [mode](Limiter::set_mode)
    /// of the limiter to [`Mode::Shadow`], or to [`Mode::Enforce`].
    ///
    /// Requests that would have been shed are counted as such in metrics and in
    /// [`LimiterSnapshot::refusals`](crate::LimiterSnapshot::refusals). Defaults to off.
    pub fn shadow(self, shadow: bool) -> Self {
        self.config.limiter.set_mode(match shadow {
            true => Mode::Shadow,
            false => Mode::Enforce,
        });
        self
    }

    /// Returns the permit with the response head instead of the end of the body.
    ///
    /// For services with bodies that cost nothing to send: otherwise a stream is inside until it ends.
    /// Defaults to off.
    pub fn release_on_headers(mut self, release: bool) -> Self {
        self.config.response_mut().release_on_headers = release;
        self
    }

    /// Counts upgraded connections, WebSockets above all, with a limiter of their own, so that they
    /// do not use up the limit on requests.
    ///
    /// A handshake is a request like any other until its response. It also needs a permit of
    /// `limiter`, and is refused at once without one, since sockets may stay open for days. When the
    /// response upgrades the connection, the permit of the request returns, and that of the socket
    /// stays out as long as the handler keeps its [`UpgradePermit`](crate::UpgradePermit), which also
    /// says which requests ask for an upgrade.
    ///
    /// The two limiters drain apart. [`drain`](Limiter::drain) on the limiter of requests refuses
    /// new handshakes too, but does not wait for sockets, which may stay open for days; to wait for
    /// them as well, drain `limiter`.
    ///
    /// Defaults to none: a socket that keeps its guard keeps the permit of its request.
    ///
    /// ```
    /// use tower_capacity::{CapacityLayer, Limiter, limit::Fixed};
    ///
    /// let sockets = Limiter::builder()
    ///     .law(Fixed::new(2_000))
    ///     .name("sockets")
    ///     .build()?;
    /// let layer = CapacityLayer::adaptive().upgrades(sockets.clone());
    /// # Ok::<(), tower_capacity::ConfigError>(())
    /// ```
    pub fn upgrades(mut self, limiter: Limiter) -> Self {
        self.config.upgrades = Some(limiter);
        self
    }

    /// Names the protocols of an `Upgrade` header that make a connection that lasts, and so a
    /// request that asks for an upgrade: see [`UpgradePermit`](crate::UpgradePermit).
    ///
    /// Defaults to `websocket`. `CONNECT` counts in any case.
    ///
    /// ```
    /// use tower_capacity::CapacityLayer;
    ///
    /// let layer = CapacityLayer::adaptive().upgrade_protocols(["websocket", "spdy"]);
    /// # let app: axum::Router = axum::Router::new().layer(layer);
    /// ```
    pub fn upgrade_protocols<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        self.config.protocols = Some(names.into_iter().map(Box::from).collect());
        self
    }

    /// Says what a response means for the limit. Defaults to [`by_status`](crate::by_status).
    ///
    /// A gRPC status that arrives in trailers is read in any case. A refusal of a limiter further
    /// in is [`Ignored`](Outcome::Ignored) in any case.
    pub fn classify(
        mut self,
        classify: impl Fn(&response::Parts) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        self.config.response_mut().classify = Some(Arc::new(classify));
        self
    }

    /// Makes the responses of refused requests with `hook`, which gets the reason, the numbers and
    /// the head of the request, and returns a response with the body type of the inner service.
    ///
    /// Defaults to [`DefaultReject`]. With a hook there is no bound on the body's data type.
    ///
    /// ```
    /// use axum::{body::Body, http::Response};
    /// use tower_capacity::CapacityLayer;
    ///
    /// let layer = CapacityLayer::adaptive().on_shed(|shed, _request| {
    ///     Response::builder()
    ///         .status(529)
    ///         .header("retry-after", shed.retry_after().as_secs() + 1)
    ///         .body(Body::from("busy"))
    ///         .expect("a valid response")
    /// });
    /// # let app: axum::Router = axum::Router::new().layer(layer);
    /// ```
    pub fn on_shed<B>(
        self,
        hook: impl Fn(&Shed, &request::Parts) -> Response<B> + Send + Sync + 'static,
    ) -> CapacityLayer<ShedHook<B>> {
        self.reject(ShedHook::new(hook))
    }

    /// Makes the responses of refused requests with a [`Reject`](crate::Reject) of your own, for one
    /// that needs a type: [`on_shed`](Self::on_shed) takes a closure.
    pub fn reject<T>(self, reject: T) -> CapacityLayer<T> {
        let Config {
            limiter,
            upgrades,
            protocols,
            reject: _,
            request,
            reads_nothing,
            response,
        } = self.config;
        CapacityLayer {
            config: Config {
                limiter,
                upgrades,
                protocols,
                reject,
                request,
                reads_nothing,
                response,
            },
        }
    }
}

impl<S, R: Clone> Layer<S> for CapacityLayer<R> {
    type Service = Capacity<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        Capacity::new(inner, Arc::new(self.config.shared()))
    }
}

impl<R: Clone> Config<R> {
    pub(super) fn shared(&self) -> Self {
        Self {
            reads_nothing: self.upgrades.is_none() && !self.request.reads(),
            ..self.clone()
        }
    }
}

impl<R> Config<R> {
    fn response_mut(&mut self) -> &mut ResponseConfig {
        Arc::make_mut(self.response.get_or_insert_default())
    }
}

impl fmt::Debug for ResponseConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseConfig")
            .field("classify", &self.classify.is_some())
            .field("release_on_headers", &self.release_on_headers)
            .finish()
    }
}

impl<R: fmt::Debug> fmt::Debug for Config<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("limiter", &self.limiter)
            .field("upgrades", &self.upgrades)
            .field("reject", &self.reject)
            .field("request", &self.request)
            .field("response", &self.response)
            .finish()
    }
}
