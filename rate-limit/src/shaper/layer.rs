use std::{fmt, sync::Arc, time::Duration};

use tower_layer::Layer;

use super::{Shaped, Shaper};
use crate::{ResponseHead, key::RequestHead};

/// Makes a client wait its turn, see the [module](super).
///
/// All services it makes share one [`Shaper`]. The error type is
/// [`ShapedError`](super::ShapedError): a request that may not wait gets no response.
#[derive(Clone)]
pub struct ShaperLayer {
    settings: Arc<Settings>,
}

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) shaper: Shaper,
    pub(super) cost: Option<Arc<CostFn>>,
    pub(super) patience: Option<Arc<PatienceFn>>,
    pub(super) feedback: Option<Arc<FeedbackFn>>,
}

type CostFn = dyn Fn(&RequestHead<'_>) -> u64 + Send + Sync;
type PatienceFn = dyn Fn(&RequestHead<'_>) -> Option<Duration> + Send + Sync;
type FeedbackFn = dyn Fn(&ResponseHead<'_>) -> Option<Duration> + Send + Sync;

impl ShaperLayer {
    /// A layer with services that all wait in `shaper`'s queue.
    #[must_use]
    pub fn new(shaper: Shaper) -> Self {
        let settings = Settings {
            shaper,
            cost: None,
            patience: None,
            feedback: None,
        };
        Self {
            settings: Arc::new(settings),
        }
    }

    /// Sets how many cells a request costs.
    ///
    /// Defaults to 1.
    #[must_use]
    pub fn cost(self, cost: impl Fn(&RequestHead<'_>) -> u64 + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.cost = Some(Arc::new(cost)))
    }

    /// Sets how long a request may wait, from its deadline for example. Where this is longer than
    /// [`max_wait`](super::ShaperBuilder::max_wait), or `None`, that applies.
    ///
    /// Defaults to none.
    #[must_use]
    pub fn patience(
        self,
        patience: impl Fn(&RequestHead<'_>) -> Option<Duration> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.patience = Some(Arc::new(patience)))
    }

    /// Reads a vendor's own headers: how long to leave it alone. Comes on top of what is
    /// understood anyway.
    ///
    /// Defaults to none.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime, UNIX_EPOCH};
    /// use rate_limit::shaper::ShaperLayer;
    ///
    /// // GitHub names the second, since 1970, in which a used-up quota is restored.
    /// fn until_restored(layer: ShaperLayer) -> ShaperLayer {
    ///     layer.feedback(|response| {
    ///         let number = |name| response.headers().get(name)?.to_str().ok()?.parse().ok();
    ///         let restored = UNIX_EPOCH + Duration::from_secs(number("x-ratelimit-reset")?);
    ///         let used_up = number("x-ratelimit-remaining")? == 0;
    ///         used_up.then(|| restored.duration_since(SystemTime::now()).unwrap_or_default())
    ///     })
    /// }
    /// ```
    #[must_use]
    pub fn feedback(
        self,
        feedback: impl Fn(&ResponseHead<'_>) -> Option<Duration> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.feedback = Some(Arc::new(feedback)))
    }

    /// The shaper.
    #[must_use]
    pub fn shaper(&self) -> &Shaper {
        &self.settings.shaper
    }

    fn with(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.settings));
        self
    }
}

impl Settings {
    /// What `request` costs and how long it may wait.
    pub(super) fn of(&self, request: &RequestHead<'_>) -> (u64, Option<Duration>) {
        let cells = self.cost.as_ref().map_or(1, |cost| cost(request));
        (
            cells,
            self.patience
                .as_ref()
                .and_then(|patience| patience(request)),
        )
    }
}

impl<S> Layer<S> for ShaperLayer {
    type Service = Shaped<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Shaped::new(inner, Arc::clone(&self.settings))
    }
}

impl fmt::Debug for ShaperLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShaperLayer")
            .field("settings", &self.settings)
            .finish()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("shaper", &self.shaper)
            .field("cost", &self.cost.is_some())
            .field("patience", &self.patience.is_some())
            .field("feedback", &self.feedback.is_some())
            .finish()
    }
}
