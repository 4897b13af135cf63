//! How fast connections may be opened.

use std::time::Duration;

use tokio::time::Instant;

/// A budget of dials: a token bucket, and a bound on how many run at once.
///
/// A pool that may grow by forty connections opens them a few at a time, and only while checkouts
/// wait: by the time the next one could be dialled, the wait may be over (HikariCP calls this
/// elision). It works on the limit of the gate and not on the dial itself, so a checkout never
/// holds a permit while it waits for the budget, and waits in one line only.
#[derive(Clone, Debug)]
pub struct DialBudget {
    config: DialConfig,
    tokens: f64,
    at: Instant,
    /// After a failed dial: until when none is made that can be done without, and for how long
    /// after the next failure.
    frozen: Option<Frozen>,
}

#[derive(Clone, Copy, Debug)]
struct Frozen {
    until: Instant,
    /// The same for a pool without any connection.
    alone_until: Instant,
    next: Duration,
}

/// The bounds of a [`DialBudget`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
#[cfg_attr(feature = "json", derive(serde::Deserialize, serde::Serialize))]
pub struct DialConfig {
    /// Connections opened per second in the long run. Defaults to 50: at the 12 ms of CPU that a
    /// SCRAM handshake cost Postgres when measured (162 connects a second saturated two cores)
    /// that is 0.6 of a core, for the second that it takes to meet a tenfold step. At 10, that
    /// step left one checkout in twenty waiting for 650 ms.
    pub per_second: f64,
    /// Connections that may be opened at once after a calm while. Defaults to 4: two rounds of
    /// [`at_once`](Self::at_once), and the tokens of 80 ms.
    pub burst: f64,
    /// How long no further connection is opened after a dial failed, as long as there is one at all.
    /// Defaults to 1 s, and doubles with every failure up to 5 s: a server that has no slot left
    /// (SQLSTATE 53300) is served best with the connections there are. A pool without any connection
    /// tries again after a twentieth of that.
    pub freeze: Duration,
    /// Dials under way at the same time. Defaults to 2: a server that answers slowly, because many
    /// dial it at once, is dialled more slowly.
    pub at_once: usize,
}

impl Default for DialConfig {
    fn default() -> Self {
        Self {
            per_second: 50.0,
            burst: 4.0,
            freeze: Duration::from_secs(1),
            at_once: 2,
        }
    }
}

/// What a [`DialBudget`] looks at.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct DialState {
    /// The limit in force.
    pub limit: usize,
    /// The limit wanted.
    pub target: usize,
    /// Connections that exist.
    pub size: usize,
    /// Checkouts that wait.
    pub queued: usize,
    /// Whether there is no connection to live on: none exists, or none has come back since the last
    /// dial failed.
    pub alone: bool,
}

impl DialState {
    /// The state of a pool.
    #[must_use]
    pub const fn new(limit: usize, target: usize, size: usize, queued: usize) -> Self {
        Self {
            limit,
            target,
            size,
            queued,
            alone: size == 0,
        }
    }

    /// Says that the connections there are serve nothing.
    #[must_use]
    pub const fn alone(mut self, alone: bool) -> Self {
        self.alone |= alone;
        self
    }
}

impl DialBudget {
    /// A full budget.
    #[must_use]
    pub fn new(config: DialConfig, now: Instant) -> Self {
        Self {
            tokens: config.burst,
            config,
            at: now,
            frozen: None,
        }
    }

    /// A dial failed.
    pub fn failed(&mut self, now: Instant) {
        const LONGEST: Duration = Duration::from_secs(5);
        /// Of the freeze, for a pool without any connection.
        const PART: u32 = 20;
        let freeze = self.frozen.map_or(self.config.freeze, |frozen| frozen.next);
        self.frozen = Some(Frozen {
            until: now + freeze,
            alone_until: now + freeze / PART,
            next: (2 * freeze).min(LONGEST),
        });
    }

    /// When a pool that has no connection may dial again after a failure.
    pub(crate) fn next_try(&self) -> Option<Instant> {
        self.frozen.map(|frozen| frozen.alone_until)
    }

    /// Dials that may run at the same time.
    #[must_use]
    pub fn at_once(&self) -> usize {
        self.config.at_once
    }

    /// Whether the last dial failed.
    pub(crate) fn is_failing(&self) -> bool {
        self.frozen.is_some()
    }

    /// A dial succeeded.
    pub fn succeeded(&mut self) {
        self.frozen = None;
    }

    /// The limit to put in force now.
    ///
    /// Never above the target, never further above the connections that exist than dials may run
    /// at once, and raised by one token per waiting checkout.
    pub fn limit(&mut self, now: Instant, state: DialState) -> usize {
        let earned =
            (now.saturating_duration_since(self.at)).as_secs_f64() * self.config.per_second;
        self.tokens = (self.tokens + earned).min(self.config.burst);
        self.at = now;

        let at_once = match self.frozen {
            // With nothing to live on, one at a time has to try, and soon.
            Some(frozen) if now < frozen.until => {
                usize::from(state.alone && now >= frozen.alone_until)
            }
            _ => self.config.at_once,
        };
        let ceiling = state.target.min(state.size.saturating_add(at_once));
        // What exists needs no dial.
        let limit = state.limit.max(state.size.min(state.target));
        if limit >= ceiling {
            return ceiling;
        }
        let affordable = self.tokens as usize;
        let raise = (ceiling - limit).min(state.queued).min(affordable);
        self.tokens -= raise as f64;
        limit + raise
    }

    /// When the next token comes, if there is none now.
    #[must_use]
    pub fn next_token(&self) -> Option<Instant> {
        (self.tokens < 1.0).then(|| {
            let seconds = (1.0 - self.tokens) / self.config.per_second.max(f64::MIN_POSITIVE);
            // Rounded up to a millisecond, tokio's resolution, so that the token is there on waking.
            self.at + Duration::from_secs_f64(seconds.min(3600.0)) + Duration::from_millis(1)
        })
    }
}

#[cfg(test)]
#[path = "../../tests/inside/dial.rs"]
mod tests;
