//! The shaper around services that take other requests than HTTP.

use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{ShapedError, Shaper, future::Call};
use crate::accessors::inner_service_accessors;

/// Makes a client of any protocol wait its turn: [`ShaperLayer`](super::ShaperLayer) for requests
/// of type `R`.
///
/// A request is under way until its response is there. What the response says about the next one
/// goes to [`Shaper::pause`] and [`Shaper::allow`].
///
/// ```
/// use rate_limit::{MINUTE, Quota, shaper::{PlainShaperLayer, Shaper}};
///
/// let shaper = Shaper::builder().quota(Quota::count(10_000).per(MINUTE)).build()?;
/// let layer = PlainShaperLayer::new(shaper).cost(|query: &Vec<u64>| query.len() as u64);
/// // tower::ServiceBuilder::new().layer(layer).service(database)
/// # Ok::<(), rate_limit::shaper::ShaperError>(())
/// ```
pub struct PlainShaperLayer<R> {
    settings: Arc<Settings<R>>,
}

struct Settings<R> {
    shaper: Shaper,
    cost: Option<Arc<CostFn<R>>>,
    patience: Option<Arc<PatienceFn<R>>>,
}

type CostFn<R> = dyn Fn(&R) -> u64 + Send + Sync;
type PatienceFn<R> = dyn Fn(&R) -> Option<Duration> + Send + Sync;

impl<R> PlainShaperLayer<R> {
    /// A layer with services that all wait in `shaper`'s queue.
    #[must_use]
    pub fn new(shaper: Shaper) -> Self {
        let settings = Settings {
            shaper,
            cost: None,
            patience: None,
        };
        Self {
            settings: Arc::new(settings),
        }
    }

    /// Sets how many cells a request costs.
    ///
    /// Defaults to 1.
    #[must_use]
    pub fn cost(mut self, cost: impl Fn(&R) -> u64 + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.settings).cost = Some(Arc::new(cost));
        self
    }

    /// Sets how long a request may wait. Where this is longer than
    /// [`max_wait`](super::ShaperBuilder::max_wait), or `None`, that applies.
    ///
    /// Defaults to none.
    #[must_use]
    pub fn patience(
        mut self,
        patience: impl Fn(&R) -> Option<Duration> + Send + Sync + 'static,
    ) -> Self {
        Arc::make_mut(&mut self.settings).patience = Some(Arc::new(patience));
        self
    }

    /// The shaper.
    #[must_use]
    pub fn shaper(&self) -> &Shaper {
        &self.settings.shaper
    }
}

impl<S, R> Layer<S> for PlainShaperLayer<R> {
    type Service = PlainShaped<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        PlainShaped {
            inner,
            settings: Arc::clone(&self.settings),
        }
    }
}

/// The service made by [`PlainShaperLayer`].
pub struct PlainShaped<S, R> {
    inner: S,
    settings: Arc<Settings<R>>,
}

impl<S, R> PlainShaped<S, R> {
    inner_service_accessors!();
}

impl<S: Service<R> + Clone, R> Service<R> for PlainShaped<S, R> {
    type Response = S::Response;
    type Error = ShapedError<S::Error>;
    type Future = PlainShapedFuture<S, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(ShapedError::Inner)
    }

    fn call(&mut self, request: R) -> Self::Future {
        // The service that is ready moves into the future; a clone takes its place.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        PlainShapedFuture {
            call: Call::new(inner, request),
            settings: Arc::clone(&self.settings),
        }
    }
}

pin_project! {
    /// The response future of [`PlainShaped`].
    ///
    /// # Cancel safety
    ///
    /// As [`ShapedFuture`](super::ShapedFuture).
    pub struct PlainShapedFuture<S, R>
    where
        S: Service<R>,
    {
        #[pin]
        call: Call<S, R>,
        settings: Arc<Settings<R>>,
    }
}

impl<S: Service<R>, R> Future for PlainShapedFuture<S, R> {
    type Output = Result<S::Response, ShapedError<S::Error>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Settings {
            shaper,
            cost,
            patience,
        } = &**this.settings;
        let price = |request: &R| {
            let cells = cost.as_ref().map_or(1, |cost| cost(request));
            let patience = patience.as_ref().and_then(|patience| patience(request));
            (cells, patience)
        };
        let outcome = ready!(this.call.poll_response(shaper, price, cx));
        // The permit is dropped here: the request is over.
        Poll::Ready(outcome.map(|(response, _permit)| response))
    }
}

impl<R> Clone for Settings<R> {
    fn clone(&self) -> Self {
        Self {
            shaper: self.shaper.clone(),
            cost: self.cost.clone(),
            patience: self.patience.clone(),
        }
    }
}

impl<R> Clone for PlainShaperLayer<R> {
    fn clone(&self) -> Self {
        Self {
            settings: Arc::clone(&self.settings),
        }
    }
}

impl<S: Clone, R> Clone for PlainShaped<S, R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            settings: Arc::clone(&self.settings),
        }
    }
}

impl<R> fmt::Debug for PlainShaperLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PlainShaperLayer")
            .field(self.shaper())
            .finish()
    }
}

impl<S: fmt::Debug, R> fmt::Debug for PlainShaped<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainShaped")
            .field("inner", &self.inner)
            .field("shaper", &self.settings.shaper)
            .finish()
    }
}

impl<S: Service<R>, R> fmt::Debug for PlainShapedFuture<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PlainShapedFuture")
            .field(&self.call.name())
            .finish()
    }
}
