use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    config::{ThrottleConfigError, check_duration},
    counts::Counts,
};
use crate::{metrics::BudgetMetrics, sync::lock};

/// Bounds retries to a share of the requests, whatever each request's own policy would do.
///
/// Three attempts for each request are three times the load when the backend can bear it least; a
/// budget of a tenth is 1.1 times (*Site Reliability Engineering*, chapter 21, "Deciding to
/// Retry"). A retry policy [`deposit`](Self::deposit)s for each request and asks
/// [`withdraw`](Self::withdraw) before each retry, which is granted while within the last window
///
/// ```text
/// retries + 1 ≤ ratio · requests + min_retries
/// ```
///
/// So the retries of a window are paid by its requests and by those of the window before it.
///
/// Cloning is cheap and gives another handle to the same budget. One budget for each backend, as
/// with the throttle.
///
/// How it differs from `tower::retry::budget::TpsBudget`: the share and the minimum are counts
/// within one window, not a percentage that is rounded to a whole number of deposits; and no retry
/// policy or middleware of a particular crate is needed to ask it.
///
/// ```
/// use std::time::Duration;
///
/// use http::{Request, Response};
/// use tokio::time::{Sleep, sleep};
/// use tower::retry::Policy;
/// use tower_capacity::throttle::{Answer, RetryAdvice, RetryBudget};
///
/// /// Retries refused requests up to twice, each time after a minute at most.
/// #[derive(Clone)]
/// struct RetryRejected {
///     budget: RetryBudget,
///     retries: u32,
/// }
///
/// impl<Req: Clone, Body, E> Policy<Request<Req>, Response<Body>, E> for RetryRejected {
///     type Future = Sleep;
///
///     fn retry(
///         &mut self,
///         _request: &mut Request<Req>,
///         result: &mut Result<Response<Body>, E>,
///     ) -> Option<Sleep> {
///         if self.retries == 0 {
///             self.budget.deposit();
///         }
///         let advice = Answer::of(result.as_ref().ok()?).advice()?;
///         self.retries += 1;
///         let wait = match advice {
///             RetryAdvice::After(wait) => wait,
///             RetryAdvice::Untold => Duration::from_millis(50) * self.retries,
///             _ => return None,
///         };
///         (self.retries <= 2 && self.budget.withdraw()).then(|| sleep(wait))
///     }
///
///     fn clone_request(&mut self, request: &Request<Req>) -> Option<Request<Req>> {
///         Some(request.clone())
///     }
/// }
///
/// let policy = RetryRejected { budget: RetryBudget::default(), retries: 0 };
/// // tower::ServiceBuilder::new().retry(policy).layer(ThrottleLayer::adaptive()).service(client)
/// # let _service: tower::retry::Retry<RetryRejected, ()> = tower::retry::Retry::new(policy, ());
/// ```
#[derive(Clone)]
pub struct RetryBudget {
    shared: Arc<Shared>,
}

struct Shared {
    balance: Mutex<Balance>,
    metrics: BudgetMetrics,
    name: Box<str>,
}

impl RetryBudget {
    /// Creates a budget.
    ///
    /// # Errors
    ///
    /// [`ThrottleConfigError`] names the setting that is out of its range.
    pub fn new(config: RetryBudgetConfig) -> Result<Self, ThrottleConfigError> {
        config.check()?;
        Ok(Self::from_parts(config))
    }

    fn from_parts(config: RetryBudgetConfig) -> Self {
        Self {
            shared: Arc::new(Shared {
                balance: Mutex::new(Balance {
                    counts: Counts::new(config.window),
                    ratio: config.ratio,
                    min_retries: config.min_retries as f64,
                }),
                metrics: BudgetMetrics::new(&config.name),
                name: config.name,
            }),
        }
    }

    /// Counts a request that is not a retry.
    pub fn deposit(&self) {
        lock(&self.shared.balance).deposit(Instant::now());
    }

    /// Takes a retry out of the budget, and returns whether there was one.
    #[must_use]
    pub fn withdraw(&self) -> bool {
        let withdrawn = lock(&self.shared.balance).withdraw(Instant::now());
        self.shared.metrics.retry(withdrawn);
        withdrawn
    }

    /// Retries that are left.
    #[must_use]
    pub fn balance(&self) -> usize {
        lock(&self.shared.balance).left(Instant::now())
    }

    /// The name given to the budget, which its metrics carry.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }
}

/// A tenth of the requests, and ten retries in ten seconds.
impl Default for RetryBudget {
    fn default() -> Self {
        Self::from_parts(RetryBudgetConfig::new())
    }
}

impl fmt::Debug for RetryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryBudget")
            .field("name", &self.shared.name)
            .field("balance", &self.balance())
            .finish()
    }
}

/// How a [`RetryBudget`] is set up.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct RetryBudgetConfig {
    ratio: f64,
    min_retries: usize,
    window: Duration,
    name: Box<str>,
}

impl RetryBudgetConfig {
    /// Starts from the defaults.
    pub fn new() -> Self {
        Self {
            ratio: 0.1,
            min_retries: 10,
            window: Duration::from_secs(10),
            name: "default".into(),
        }
    }

    /// Sets how many retries a request pays for. Defaults to 0.1 (*Site Reliability Engineering*,
    /// chapter 21; finagle, linkerd and tower have 0.2).
    pub const fn ratio(mut self, retries_per_request: f64) -> Self {
        self.ratio = retries_per_request;
        self
    }

    /// Sets how many retries each window has besides, for clients that ask for little.
    ///
    /// Defaults to 10: in the default window, one a second. Finagle, linkerd and tower have ten a
    /// second, with which a fleet of clients that each ask ten times a second has no budget at
    /// all.
    pub const fn min_retries(mut self, retries: usize) -> Self {
        self.min_retries = retries;
        self
    }

    /// Sets for how long a request pays for retries, one second to one hour. Defaults to ten
    /// seconds, as in finagle, linkerd and tower.
    pub const fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Names the budget in metrics. Defaults to `default`.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    fn check(&self) -> Result<(), ThrottleConfigError> {
        if !(self.ratio.is_finite() && self.ratio >= 0.0) {
            return Err(ThrottleConfigError {
                field: "ratio",
                value: self.ratio.to_string(),
                expected: "a finite number of at least 0",
            });
        }
        check_duration("window", self.window)
    }
}

impl Default for RetryBudgetConfig {
    fn default() -> Self {
        Self::new()
    }
}

/// The budget as a value.
struct Balance {
    /// Requests and retries.
    counts: Counts,
    ratio: f64,
    min_retries: f64,
}

impl Balance {
    fn deposit(&mut self, now: Instant) {
        self.counts.add(now, [1, 0]);
    }

    fn withdraw(&mut self, now: Instant) -> bool {
        let left = self.left(now) > 0;
        if left {
            self.counts.add(now, [0, 1]);
        }
        left
    }

    fn left(&mut self, now: Instant) -> usize {
        let [requests, retries] = self.counts.totals(now).map(|count| count as f64);
        // 0.29 · 100 is 29, and not 28.999…
        let allowed = (self.ratio * requests + self.min_retries + ROUNDING).floor();
        // Negative once the requests that paid for a retry have left the window before it.
        (allowed - retries).max(0.0) as usize
    }
}

const ROUNDING: f64 = 1e-9;

#[cfg(test)]
#[path = "../../tests/inside/budget.rs"]
mod tests;
