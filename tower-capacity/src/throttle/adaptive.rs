use std::time::Duration;

use tokio::time::Instant;

use super::{ThrottleConfig, ThrottleConfigError, Throttled};

/// Decides which requests are sent to a backend, as a value: time and randomness come in as
/// arguments.
///
/// Everything is sent until the backend has accepted nothing for
/// [`patience`](ThrottleConfig::patience), and for eight times as long as it usually takes until the
/// next is accepted, while it rejected at least [`min_rejections`](ThrottleConfig::min_rejections). From then on a
/// [`share`](ThrottleConfig::share) of the requests is sent, and at least one a second, until one is
/// accepted: then everything is sent again. What is withheld would have been rejected too, and a
/// backend that is back is found within a second or ten requests, whichever comes first.
///
/// # Why not as in the book
///
/// *Site Reliability Engineering*, chapter 21 ("Client-Side Throttling"), refuses a request with
/// probability `(requests − 2 · accepts) / (requests + 1)`, which keeps what is sent to twice what
/// is accepted. That takes all requests for alike. They are not: of a backend that sheds one
/// class, one tenant or one route and serves the others, a client that counts them together sheds
/// them all. A share of 86 % rejected, all of one tenant, costs a tenant that is always accepted
/// seven requests of ten. As long as anything is accepted, no count of rejections can tell which
/// request is hopeless, so this one waits until nothing is. The other reason is time: after a spell
/// in which a tenth was accepted, the book's client takes a minute to ask for all of a backend that
/// is back.
///
/// [`Throttler`](super::Throttler) is the handle that clients share, with a value of this type for
/// each kind of request.
#[derive(Clone, Debug)]
pub struct AdaptiveThrottle {
    config: ThrottleConfig,
    /// Since the last acceptance.
    rejected: Option<Rejected>,
    accepted: Option<Instant>,
    /// Mean time between acceptances.
    usual_gap: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Rejected {
    count: u64,
    since: Instant,
    last: Instant,
    /// When a request was last sent while others were withheld.
    sent: Option<Instant>,
}

/// Acceptances over which their usual distance is averaged, and how many times that has to pass:
/// of random ones one in 3,000 takes longer.
const GAPS: u32 = 8;

/// At least one request is sent in this time.
const PROBE: Duration = Duration::from_secs(1);

impl AdaptiveThrottle {
    /// Creates a throttle that has seen nothing.
    ///
    /// # Errors
    ///
    /// [`ThrottleConfigError`] names the setting that is out of its range.
    pub fn new(config: ThrottleConfig) -> Result<Self, ThrottleConfigError> {
        config.check()?;
        Ok(Self::from_checked(config))
    }

    pub(super) const fn from_checked(config: ThrottleConfig) -> Self {
        Self {
            config,
            rejected: None,
            accepted: None,
            usual_gap: Duration::ZERO,
        }
    }

    /// Decides whether a request is sent. `random` is uniform in 0..1.
    ///
    /// # Errors
    ///
    /// [`Throttled`] if it is not to be sent.
    pub fn admit(&mut self, now: Instant, random: f64) -> Result<(), Throttled> {
        let decided = self.consider(now, random);
        if decided.is_ok()
            && let Some(rejected) = &mut self.rejected
        {
            rejected.sent = Some(now);
        }
        decided
    }

    /// Decides like [`admit`](Self::admit), and remembers nothing: for shadow mode.
    ///
    /// # Errors
    ///
    /// [`Throttled`] if it would not be sent.
    pub fn consider(&self, now: Instant, random: f64) -> Result<(), Throttled> {
        let Some(rejected) = self.rejected.filter(|_| self.is_withholding(now)) else {
            return Ok(());
        };
        let is_probe = rejected
            .sent
            .is_none_or(|sent| now.saturating_duration_since(sent) >= PROBE);
        if is_probe || random < self.config.share {
            return Ok(());
        }
        let lasts = now.saturating_duration_since(rejected.since);
        Err(Throttled::new(rejected.count, lasts, PROBE))
    }

    /// Records whether the backend accepted a request that was sent.
    pub fn record(&mut self, now: Instant, accepted: bool) {
        if accepted {
            let gap =
                (self.accepted).map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
            self.usual_gap = (self.usual_gap * (GAPS - 1) + gap) / GAPS;
            self.accepted = Some(now);
            self.rejected = None;
            return;
        }
        // Rejections of long ago say nothing about now.
        let fresh = self.rejected.filter(|_| !self.is_stale(now));
        let before = fresh.unwrap_or(Rejected {
            count: 0,
            since: now,
            last: now,
            sent: None,
        });
        self.rejected = Some(Rejected {
            count: before.count + 1,
            last: before.last.max(now),
            ..before
        });
    }

    /// Whether requests are withheld now.
    #[must_use]
    pub fn is_withholding(&self, now: Instant) -> bool {
        let patience = self.config.patience.max(self.usual_gap * GAPS);
        self.rejected.is_some_and(|rejected| {
            rejected.count >= self.config.min_rejections
                && now.saturating_duration_since(rejected.since) >= patience
                && !self.is_stale(now)
        })
    }

    /// Rejections since the backend last accepted a request.
    #[must_use]
    pub fn rejections(&self) -> u64 {
        self.rejected.map_or(0, |rejected| rejected.count)
    }

    /// The settings.
    pub const fn config(&self) -> &ThrottleConfig {
        &self.config
    }

    /// Changes the settings. What was counted stays.
    ///
    /// # Errors
    ///
    /// [`ThrottleConfigError`] names the setting that is out of its range; nothing changes then.
    pub fn reconfigure(&mut self, config: ThrottleConfig) -> Result<(), ThrottleConfigError> {
        config.check()?;
        self.config = config;
        Ok(())
    }

    fn is_stale(&self, now: Instant) -> bool {
        self.rejected.is_some_and(|rejected| {
            now.saturating_duration_since(rejected.last) >= self.config.patience
        })
    }
}
