use std::time::Duration;

use tokio::time::Instant;

use super::{ThrottleConfig, ThrottleConfigError, Throttled, ThrottledReason, counts::Counts};

/// Adaptive throttling as a value: time and randomness come in as arguments.
///
/// A request is refused with probability
///
/// ```text
/// max(0, (requests − K · accepts) / (requests + padding))
/// ```
///
/// over a sliding window (*Site Reliability Engineering*, chapter 21, "Client-Side Throttling",
/// equation 21-1, where `padding` is 1). `requests` are those that were answered, those that failed,
/// and those that were refused here; the last make the client send no more than K times what is
/// accepted. `accepts` are those that the backend did not reject.
///
/// Where it differs from the book, and why:
///
/// - A request counts when it is answered, not when it is sent: a client that starts with a hundred
///   requests in flight has no reason to refuse the next.
/// - The defaults of [`ThrottleConfig`]. A client of 100 requests a second whose backend rejects
///   everything for three minutes refuses less than a twentieth again ten minutes after the backend
///   is back with the book's constants, and 54 seconds after with these; a backend that accepts a
///   fifth sees twice that with either. A client of one request a second, of which the first is
///   rejected, refuses 6.6 of the next 59 with the book's constants, and 0.2 with these. (Measured
///   in virtual time by this crate's tests.)
///
/// [`Throttler`](super::Throttler) is the handle that clients share.
#[derive(Clone, Debug)]
pub struct AdaptiveThrottle {
    config: ThrottleConfig,
    /// Requests and accepts.
    counts: Counts,
    paused_until: Option<Instant>,
}

impl AdaptiveThrottle {
    /// Creates a throttle that has seen nothing.
    ///
    /// # Errors
    ///
    /// [`ThrottleConfigError`] names the setting that is out of its range.
    pub fn new(config: ThrottleConfig) -> Result<Self, ThrottleConfigError> {
        config.check()?;
        Ok(Self {
            counts: Counts::new(config.window),
            config,
            paused_until: None,
        })
    }

    /// Decides whether a request is sent. `random` is uniform in 0..1.
    ///
    /// A refusal counts as a request, unless the backend has asked for the pause: a pause says
    /// nothing about what it would have accepted.
    ///
    /// # Errors
    ///
    /// [`Throttled`] if it is not to be sent, with the reason.
    pub fn admit(&mut self, now: Instant, random: f64) -> Result<(), Throttled> {
        let decided = self.consider(now, random);
        if let Err(throttled) = &decided
            && throttled.reason() == ThrottledReason::Adaptive
        {
            self.counts.add(now, [1, 0]);
        }
        decided
    }

    /// Decides as [`admit`](Self::admit) does, and counts nothing: for shadow mode.
    ///
    /// # Errors
    ///
    /// [`Throttled`] if it would not be sent.
    pub fn consider(&mut self, now: Instant, random: f64) -> Result<(), Throttled> {
        if let Some(left) = self.paused_for(now) {
            return Err(self.throttled(now, ThrottledReason::Paused, left));
        }
        if random < self.probability(now) {
            return Err(self.throttled(now, ThrottledReason::Adaptive, ASK_AGAIN));
        }
        Ok(())
    }

    /// Counts a request that was sent, and whether the backend accepted it.
    pub fn record(&mut self, now: Instant, accepted: bool) {
        self.counts.add(now, [1, u64::from(accepted)]);
    }

    /// Sends nothing for `pause`, or for [`ThrottleConfig::max_pause`] if that is less. A pause
    /// that ends later stands.
    pub fn pause(&mut self, now: Instant, pause: Duration) {
        let pause = pause.min(self.config.max_pause);
        if pause.is_zero() {
            return;
        }
        // A pause beyond the end of time is no pause that anybody asked for.
        self.paused_until = self.paused_until.max(now.checked_add(pause));
    }

    /// What is left of a pause.
    #[must_use]
    pub fn paused_for(&self, now: Instant) -> Option<Duration> {
        let left = self.paused_until?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// Probability with which a request is refused now, 0 to 1.
    #[must_use]
    pub fn probability(&mut self, now: Instant) -> f64 {
        let [requests, accepts] = self.counts.totals(now).map(|count| count as f64);
        let surplus = requests - self.config.multiplier * accepts;
        (surplus / (requests + self.config.padding)).clamp(0.0, self.config.max_probability)
    }

    /// Requests in the window.
    #[must_use]
    pub fn requests(&mut self, now: Instant) -> u64 {
        self.counts.totals(now)[0]
    }

    /// Requests in the window that the backend accepted.
    #[must_use]
    pub fn accepts(&mut self, now: Instant) -> u64 {
        self.counts.totals(now)[1]
    }

    /// How it was set up.
    pub const fn config(&self) -> &ThrottleConfig {
        &self.config
    }

    /// Changes the settings. What was counted stays, unless the window changes; so does a pause.
    ///
    /// # Errors
    ///
    /// [`ThrottleConfigError`] names the setting that is out of its range; nothing changes then.
    pub fn reconfigure(&mut self, config: ThrottleConfig) -> Result<(), ThrottleConfigError> {
        config.check()?;
        if config.window != self.config.window {
            self.counts = Counts::new(config.window);
        }
        self.config = config;
        Ok(())
    }

    fn throttled(
        &mut self,
        now: Instant,
        reason: ThrottledReason,
        retry_after: Duration,
    ) -> Throttled {
        let probability = self.probability(now);
        let [requests, accepts] = self.counts.totals(now);
        Throttled::new(reason, retry_after, probability, requests, accepts)
    }
}

/// When whoever was refused by chance may ask again: the least that `Retry-After` can say.
const ASK_AGAIN: Duration = Duration::from_secs(1);
