//! Keys that take I/O to find, such as the tenant that an API key belongs to.

use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::Request;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::RequestHead;
use crate::accessors::inner_service_accessors;

/// Looks a key up asynchronously and leaves it in the request's extensions, for
/// [`key::extension`](super::extension) to find. Goes outside of the rate limit.
///
/// Rate limits themselves never wait, so the look-up is a layer of its own; other middleware may
/// need its result as well.
///
/// ```
/// use rate_limit::{MINUTE, Quota, RateLimitLayer, key};
///
/// #[derive(Clone, Hash)]
/// struct Tenant(u64);
///
/// async fn tenant_of(api_key: Option<String>) -> Option<Tenant> {
///     // ... ask a database or a cache ...
///     api_key.map(|key| Tenant(key.len() as u64))
/// }
///
/// let resolve = key::ResolveLayer::new(|request| {
///     let api_key = request.headers().get("x-api-key").and_then(|v| v.to_str().ok());
///     tenant_of(api_key.map(str::to_owned))
/// });
/// let limit = RateLimitLayer::new(Quota::count(100).per(MINUTE))?.key(key::extension::<Tenant>());
/// // axum: Router::new().layer(limit).layer(resolve)
/// # Ok::<(), rate_limit::BuildError>(())
/// ```
pub struct ResolveLayer<F> {
    find: Arc<F>,
}

impl<F> ResolveLayer<F> {
    /// A layer that leaves what `find` returns in the extensions, and nothing if it returns
    /// `None`. The future must not borrow from the request.
    pub fn new<Fut, K>(find: F) -> Self
    where
        F: Fn(&RequestHead<'_>) -> Fut,
        Fut: Future<Output = Option<K>>,
        K: Clone + Send + Sync + 'static,
    {
        Self {
            find: Arc::new(find),
        }
    }
}

impl<S, F> Layer<S> for ResolveLayer<F> {
    type Service = Resolve<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        Resolve {
            inner,
            find: Arc::clone(&self.find),
        }
    }
}

impl<F> Clone for ResolveLayer<F> {
    fn clone(&self) -> Self {
        Self {
            find: Arc::clone(&self.find),
        }
    }
}

impl<F> fmt::Debug for ResolveLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResolveLayer")
    }
}

/// The service made by [`ResolveLayer`].
pub struct Resolve<S, F> {
    inner: S,
    find: Arc<F>,
}

impl<S, F> Resolve<S, F> {
    inner_service_accessors!();
}

impl<S, F, Fut, K, B> Service<Request<B>> for Resolve<S, F>
where
    S: Service<Request<B>> + Clone,
    F: Fn(&RequestHead<'_>) -> Fut,
    Fut: Future<Output = Option<K>>,
    K: Clone + Send + Sync + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResolveFuture<S, Fut, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The service that is ready moves into the future; a clone takes its place.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        let find = (self.find)(&RequestHead::of(&request));
        ResolveFuture {
            state: State::Finding {
                find,
                call: Some((inner, request)),
            },
        }
    }
}

impl<S: Clone, F> Clone for Resolve<S, F> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            find: Arc::clone(&self.find),
        }
    }
}

impl<S: fmt::Debug, F> fmt::Debug for Resolve<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolve")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

pin_project! {
    /// The response future of [`Resolve`].
    pub struct ResolveFuture<S, Fut, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, Fut, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Fut, B>
    where
        S: Service<Request<B>>,
    {
        Finding { #[pin] find: Fut, call: Option<(S, Request<B>)> },
        Calling { #[pin] future: S::Future },
    }
}

impl<S, Fut, K, B> Future for ResolveFuture<S, Fut, B>
where
    S: Service<Request<B>>,
    Fut: Future<Output = Option<K>>,
    K: Clone + Send + Sync + 'static,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Finding { find, call } => {
                    let found = ready!(find.poll(cx));
                    // Taken once: the state changes below.
                    let (mut inner, mut request) = call.take().expect("polled after completion");
                    if let Some(key) = found {
                        request.extensions_mut().insert(key);
                    }
                    let future = inner.call(request);
                    state.set(State::Calling { future });
                }
                StateProj::Calling { future } => return future.poll(cx),
            }
        }
    }
}

impl<S, Fut, B> fmt::Debug for ResolveFuture<S, Fut, B>
where
    S: Service<Request<B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Finding { .. } => "finding",
            State::Calling { .. } => "calling",
        };
        f.debug_tuple("ResolveFuture").field(&state).finish()
    }
}
