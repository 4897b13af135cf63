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

use super::{AdaptiveThrottle, Answer, ThrottleConfig, ThrottleConfigError, Throttled};
use crate::{metrics::ThrottleMetrics, sync::lock};

/// Decides which requests to one backend are sent.
///
/// Cloning is cheap and gives another handle to the same throttler: keep one beside the
/// [`ThrottleLayer`](super::ThrottleLayer) that uses it, to watch it and to change its settings. It works without the layer too, for clients that do not speak HTTP:
///
/// ```
/// use tower_capacity::throttle::{Answer, Throttler};
///
/// let throttler = Throttler::default();
/// match throttler.admit(None) {
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
    hasher: RandomState,
    /// State of a SplitMix64 generator.
    random: AtomicU64,
    metrics: ThrottleMetrics,
    name: Box<str>,
}

struct State {
    /// For each kind of request; one until the first key is used.
    throttles: Vec<AdaptiveThrottle>,
    totals: Totals,
    /// When the first and the last request was withheld of those that are withheld at present.
    withholding: Option<(Instant, Instant)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    accepts: u64,
    rejections: u64,
    withheld: u64,
}

/// Kinds that are told apart, besides requests without a key.
const KINDS: usize = 1_024;

/// What is published once the lock is released, since a subscriber may call back.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Starts(Throttled),
    Over(Duration),
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
                    throttles: vec![AdaptiveThrottle::new(config)?],
                    totals: Totals::default(),
                    withholding: None,
                }),
                hasher: RandomState::new(),
                // Each process draws numbers of its own.
                random: AtomicU64::new(RandomState::new().hash_one(0)),
                metrics: ThrottleMetrics::new(&name),
                name,
            }),
        })
    }

    /// Decides whether a request is sent. Report its response with [`Attempt::answered`].
    ///
    /// `key` says of what kind it is: see [`ThrottleLayer::key`](super::ThrottleLayer::key).
    ///
    /// # Errors
    ///
    /// [`Throttled`] if it is not to be sent.
    pub fn admit(&self, key: Option<&str>) -> Result<Attempt, Throttled> {
        let (random, now, kind) = (self.random(), Instant::now(), self.kind(key));
        let mut state = lock(&self.shared.state);
        let decided = state.throttle(kind).admit(now, random);
        let turn = state.note(now, &decided);
        drop(state);
        self.publish_decision(&decided, turn);
        decided.map(|()| self.attempt(kind))
    }

    /// Sends whatever [`admit`](Self::admit) would return, and counts and returns that too: for
    /// shadow mode.
    pub fn admit_anyway(&self, key: Option<&str>) -> (Attempt, Result<(), Throttled>) {
        let (random, now, kind) = (self.random(), Instant::now(), self.kind(key));
        let mut state = lock(&self.shared.state);
        let would = state.throttle(kind).consider(now, random);
        let turn = state.note(now, &would);
        drop(state);
        self.publish_decision(&would, turn);
        (self.attempt(kind), would)
    }

    /// Changes the settings except the name. What was counted stays.
    ///
    /// # Errors
    ///
    /// [`ThrottleConfigError`] names the setting that is out of its range; nothing changes then.
    pub fn reconfigure(&self, config: ThrottleConfig) -> Result<(), ThrottleConfigError> {
        config.check()?;
        let mut state = lock(&self.shared.state);
        let mut throttles = state.throttles.iter_mut();
        throttles.try_for_each(|throttle| throttle.reconfigure(config.clone()))
    }

    /// Reads the state of the throttler.
    #[must_use]
    pub fn snapshot(&self) -> ThrottleSnapshot {
        let now = Instant::now();
        let state = lock(&self.shared.state);
        ThrottleSnapshot {
            totals: state.totals,
            withholding: state.withholding_kinds(now),
        }
    }

    /// The name given to the throttler, which its metrics and events carry.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    fn kind(&self, key: Option<&str>) -> usize {
        key.map_or(0, |key| {
            1 + self.shared.hasher.hash_one(key) as usize % KINDS
        })
    }

    fn attempt(&self, kind: usize) -> Attempt {
        Attempt {
            throttler: self.clone(),
            kind,
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

    fn record(&self, kind: usize, answer: Option<Answer>) {
        let now = Instant::now();
        let mut state = lock(&self.shared.state);
        let turn = state.record(kind, now, answer);
        drop(state);
        self.shared.metrics.answered(answer);
        self.publish_turn(turn);
    }

    fn publish_decision(&self, decided: &Result<(), Throttled>, turn: Option<Turn>) {
        match decided {
            Ok(()) => self.shared.metrics.sent(),
            Err(_throttled) => {
                self.shared.metrics.shed();
                #[cfg(feature = "tracing")]
                tracing::trace!(
                    throttle = self.name(),
                    rejections = _throttled.rejections(),
                    "not sent"
                );
            }
        }
        self.publish_turn(turn);
    }

    #[cfg_attr(
        not(feature = "tracing"),
        expect(clippy::unused_self, reason = "nothing is published")
    )]
    fn publish_turn(&self, turn: Option<Turn>) {
        match turn {
            None => {}
            Some(Turn::Starts(_throttled)) => {
                #[cfg(feature = "tracing")]
                tracing::warn!(
                    throttle = self.name(),
                    rejections = _throttled.rejections(),
                    lasts_seconds = _throttled.lasts().as_secs_f64(),
                    "the backend accepts nothing: throttling starts"
                );
            }
            Some(Turn::Over(_lasted)) => {
                #[cfg(feature = "tracing")]
                tracing::warn!(
                    throttle = self.name(),
                    lasted_seconds = _lasted.as_secs_f64(),
                    "the backend accepts requests: throttling is over"
                );
            }
        }
    }
}

impl State {
    fn throttle(&mut self, kind: usize) -> &mut AdaptiveThrottle {
        if kind >= self.throttles.len() {
            let unused = AdaptiveThrottle::from_checked(self.throttles[0].config().clone());
            self.throttles.resize(KINDS + 1, unused);
        }
        &mut self.throttles[kind]
    }

    fn withholding_kinds(&self, now: Instant) -> usize {
        let throttles = self.throttles.iter();
        throttles
            .filter(|throttle| throttle.is_withholding(now))
            .count()
    }

    fn note(&mut self, now: Instant, decided: &Result<(), Throttled>) -> Option<Turn> {
        let throttled = (*decided).err()?;
        self.totals.withheld += 1;
        let since = self.withholding.map(|(since, _)| since);
        self.withholding = Some((since.unwrap_or(now), now));
        since.is_none().then_some(Turn::Starts(throttled))
    }

    fn record(&mut self, kind: usize, now: Instant, answer: Option<Answer>) -> Option<Turn> {
        let accepted = match answer {
            Some(Answer::Limited(_)) => return None,
            Some(Answer::Accepted) => true,
            Some(Answer::Rejected(_)) | None => false,
        };
        self.throttle(kind).record(now, accepted);
        if !accepted {
            self.totals.rejections += 1;
            return None;
        }
        self.totals.accepts += 1;
        let (since, last) = self.withholding?;
        let is_calm = now.saturating_duration_since(last) >= CALM;
        if !is_calm || self.withholding_kinds(now) > 0 {
            return None;
        }
        self.withholding = None;
        Some(Turn::Over(last.saturating_duration_since(since)))
    }
}

/// Throttling is over after this long without a request that was withheld.
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
/// Dropped without [`answered`](Self::answered), it counts as not accepted: a caller that stops
/// waiting has most often run out of time.
#[derive(Debug)]
#[must_use = "an attempt that is dropped counts as not accepted"]
pub struct Attempt {
    throttler: Throttler,
    kind: usize,
    answered: bool,
}

impl Attempt {
    /// Records the response of the backend.
    pub fn answered(mut self, answer: Answer) {
        self.answered = true;
        self.throttler.record(self.kind, Some(answer));
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.answered {
            self.throttler.record(self.kind, None);
        }
    }
}

/// The state of a [`Throttler`] at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThrottleSnapshot {
    totals: Totals,
    withholding: usize,
}

impl ThrottleSnapshot {
    /// Requests that the backend has accepted.
    #[must_use]
    pub const fn accepts(&self) -> u64 {
        self.totals.accepts
    }

    /// Requests that the backend has rejected, or that failed.
    #[must_use]
    pub const fn rejections(&self) -> u64 {
        self.totals.rejections
    }

    /// Requests that were not sent, or would not have been in shadow mode.
    #[must_use]
    pub const fn withheld(&self) -> u64 {
        self.totals.withheld
    }

    /// Kinds of requests that are withheld at present, see
    /// [`ThrottleLayer::key`](super::ThrottleLayer::key).
    #[must_use]
    pub const fn withholding_kinds(&self) -> usize {
        self.withholding
    }
}
