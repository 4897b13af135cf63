use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    AdaptiveThrottle, Answer, RetryAdvice, ThrottleConfig, ThrottleConfigError, Throttled,
};
use crate::{metrics::ThrottleMetrics, sync::lock};

/// Decides which requests to one backend are sent.
///
/// Cloning is cheap and gives another handle to the same throttler: keep one beside the
/// [`ThrottleLayer`](super::ThrottleLayer) that uses it, to watch it, to pause it and to change its
/// settings. It works without the layer too, for clients that do not speak HTTP:
///
/// ```
/// use tower_capacity::throttle::{Answer, Throttler};
///
/// let throttler = Throttler::default();
/// match throttler.admit() {
///     Ok(attempt) => {
///         // … send it …
///         attempt.answered(Answer::Accepted);
///     }
///     Err(throttled) => println!("not sent: {throttled}"),
/// }
/// assert_eq!(throttler.snapshot().accepts(), 1);
/// ```
#[derive(Clone)]
pub struct Throttler {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// State of a SplitMix64 generator.
    random: AtomicU64,
    metrics: ThrottleMetrics,
    name: Box<str>,
}

struct State {
    throttle: AdaptiveThrottle,
    /// When the first of the requests was refused that are refused at present, and the last.
    refusing: Option<(Instant, Instant)>,
}

impl Throttler {
    /// Creates a throttler.
    ///
    /// # Errors
    ///
    /// [`ThrottleConfigError`] names the setting that is out of its range.
    pub fn new(config: ThrottleConfig) -> Result<Self, ThrottleConfigError> {
        let name = config.name.clone();
        Ok(Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    throttle: AdaptiveThrottle::new(config)?,
                    refusing: None,
                }),
                // Each process draws numbers of its own.
                random: AtomicU64::new(RandomState::new().hash_one(0)),
                metrics: ThrottleMetrics::new(&name),
                name,
            }),
        })
    }

    /// Decides whether a request is sent. Say what became of it with [`Attempt::answered`].
    ///
    /// # Errors
    ///
    /// [`Throttled`] if it is not to be sent, with the reason.
    pub fn admit(&self) -> Result<Attempt, Throttled> {
        let random = self.random();
        let now = Instant::now();
        let mut state = lock(&self.shared.state);
        let decided = state.throttle.admit(now, random);
        self.note(&mut state, now, &decided);
        decided.map(|()| self.attempt())
    }

    /// Sends whatever [`admit`](Self::admit) would say, counts what it would have decided, and says
    /// so: for shadow mode.
    pub fn admit_anyway(&self) -> (Attempt, Result<(), Throttled>) {
        let random = self.random();
        let now = Instant::now();
        let mut state = lock(&self.shared.state);
        let would = state.throttle.consider(now, random);
        self.note(&mut state, now, &would);
        (self.attempt(), would)
    }

    /// Sends nothing for `pause`, or for [`ThrottleConfig::max_pause`] if that is less. A pause
    /// that ends later stands.
    ///
    /// Rejections that ask for a pause are obeyed without it; this is for backends that ask in
    /// their own way.
    pub fn pause(&self, pause: Duration) {
        lock(&self.shared.state)
            .throttle
            .pause(Instant::now(), pause);
    }

    /// Changes the settings but the name. What was counted stays, unless the window changes; so
    /// does a pause.
    ///
    /// # Errors
    ///
    /// [`ThrottleConfigError`] names the setting that is out of its range; nothing changes then.
    pub fn reconfigure(&self, config: ThrottleConfig) -> Result<(), ThrottleConfigError> {
        lock(&self.shared.state).throttle.reconfigure(config)
    }

    /// Reads the state of the throttler.
    #[must_use]
    pub fn snapshot(&self) -> ThrottleSnapshot {
        let now = Instant::now();
        let throttle = &mut lock(&self.shared.state).throttle;
        ThrottleSnapshot {
            requests: throttle.requests(now),
            accepts: throttle.accepts(now),
            probability: throttle.probability(now),
            paused_for: throttle.paused_for(now),
        }
    }

    /// The name given to the throttler, which its metrics and events carry.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    fn attempt(&self) -> Attempt {
        Attempt {
            throttler: self.clone(),
            answered: false,
        }
    }

    /// Uniform in 0..1 (SplitMix64: Steele, Lea and Flood 2014).
    fn random(&self) -> f64 {
        const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut z = self.shared.random.fetch_add(GAMMA, Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn note(&self, state: &mut State, now: Instant, decided: &Result<(), Throttled>) {
        let Err(throttled) = decided else {
            self.shared.metrics.sent();
            return;
        };
        self.shared.metrics.shed(throttled.reason());
        self.shared.metrics.probability(throttled.probability());
        #[cfg(feature = "tracing")]
        tracing::trace!(
            throttle = self.name(),
            reason = throttled.reason().as_str(),
            probability = throttled.probability(),
            "not sent"
        );
        if state.refusing.is_none() {
            #[cfg(feature = "tracing")]
            tracing::warn!(
                throttle = self.name(),
                reason = throttled.reason().as_str(),
                requests = throttled.requests(),
                accepts = throttled.accepts(),
                "the backend rejects requests: throttling starts"
            );
        }
        let since = state.refusing.map_or(now, |(since, _)| since);
        state.refusing = Some((since, now));
    }

    fn record(&self, answer: Option<Answer>) {
        let now = Instant::now();
        let mut state = lock(&self.shared.state);
        let accepted = matches!(answer, Some(Answer::Accepted));
        state.throttle.record(now, accepted);
        if let Some(Answer::Rejected(RetryAdvice::After(pause))) = answer {
            state.throttle.pause(now, pause);
            #[cfg(feature = "tracing")]
            tracing::debug!(
                throttle = self.name(),
                asked_seconds = pause.as_secs_f64(),
                paused_seconds = state
                    .throttle
                    .paused_for(now)
                    .map(|left| left.as_secs_f64()),
                "the backend asked for a pause"
            );
        }
        let probability = state.throttle.probability(now);
        self.shared.metrics.answered(answer);
        self.shared.metrics.probability(probability);
        if let Some((_since, last)) = state.refusing
            && probability == 0.0
            && state.throttle.paused_for(now).is_none()
            && now.saturating_duration_since(last) >= CALM
        {
            #[cfg(feature = "tracing")]
            tracing::warn!(
                throttle = self.name(),
                lasted_seconds = last.saturating_duration_since(_since).as_secs_f64(),
                "the backend accepts requests: throttling is over"
            );
            state.refusing = None;
        }
    }
}

/// Throttling is over after this long without a refusal.
const CALM: Duration = Duration::from_secs(1);

/// With the settings of [`ThrottleConfig::new`].
impl Default for Throttler {
    fn default() -> Self {
        Self::new(ThrottleConfig::new()).expect("the defaults are within their ranges")
    }
}

impl fmt::Debug for Throttler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttler")
            .field("name", &self.shared.name)
            .field("snapshot", &self.snapshot())
            .finish()
    }
}

/// One request on its way to the backend.
///
/// One that is dropped without an answer counts as not accepted: a caller that stops waiting has
/// most often run out of time. Up to half of them may do so before anything is refused (with the
/// default [`ThrottleConfig::multiplier`]), which leaves room for hedged requests.
#[derive(Debug)]
#[must_use = "an attempt that is dropped counts as not accepted"]
pub struct Attempt {
    throttler: Throttler,
    answered: bool,
}

impl Attempt {
    /// Says what the backend answered. A rejection that asks for a pause pauses the throttler.
    pub fn answered(mut self, answer: Answer) {
        self.answered = true;
        self.throttler.record(Some(answer));
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.answered {
            self.throttler.record(None);
        }
    }
}

/// The state of a [`Throttler`] at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThrottleSnapshot {
    requests: u64,
    accepts: u64,
    probability: f64,
    paused_for: Option<Duration>,
}

impl ThrottleSnapshot {
    /// Requests in the window: answered, failed and refused by chance.
    #[must_use]
    pub const fn requests(&self) -> u64 {
        self.requests
    }

    /// Requests in the window that the backend accepted.
    #[must_use]
    pub const fn accepts(&self) -> u64 {
        self.accepts
    }

    /// Probability with which a request is refused.
    #[must_use]
    pub const fn probability(&self) -> f64 {
        self.probability
    }

    /// What is left of a pause that the backend has asked for.
    #[must_use]
    pub const fn paused_for(&self) -> Option<Duration> {
        self.paused_for
    }
}
