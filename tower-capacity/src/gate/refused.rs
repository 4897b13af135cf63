//! Why a gate refused a request.

use std::{fmt, time::Duration};

use tokio::time::Instant;

use super::{GateSnapshot, word::Word};

/// Why a gate refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusedReason {
    /// No permit was free, and the caller did not want to wait.
    Full,
    /// No permit was free and the waiting room was full.
    QueueFull,
    /// No permit came free in time.
    WaitTimeout,
    /// The line had stopped absorbing bursts, see [`Codel`](super::Codel).
    Overloaded,
    /// The waiting room was full, and a request came that matters more.
    Displaced,
    /// The wait would have lasted beyond the request's own deadline.
    Deadline,
    /// Something that the request depends on has no room for it, see
    /// [`LimiterBuilder::downstream`](crate::LimiterBuilder::downstream).
    Downstream,
    /// The gate is closed.
    Closed,
}

impl RefusedReason {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 8] = [
        Self::Full,
        Self::QueueFull,
        Self::WaitTimeout,
        Self::Overloaded,
        Self::Displaced,
        Self::Deadline,
        Self::Downstream,
        Self::Closed,
    ];

    /// The reason as it stands in metrics and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::QueueFull => "queue_full",
            Self::WaitTimeout => "wait_timeout",
            Self::Overloaded => "overloaded",
            Self::Displaced => "displaced",
            Self::Deadline => "deadline",
            Self::Downstream => "downstream",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for RefusedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A gate refused.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    word: Word,
    /// In microseconds, at most 71 minutes: refusals are returned by the million and kept small.
    waited: u32,
    /// What a limiter adds for its layers: when to come back.
    retry_after_millis: u16,
    reason: RefusedReason,
}

impl Refused {
    const fn new(reason: RefusedReason, word: Word) -> Self {
        Self {
            word,
            waited: 0,
            retry_after_millis: 0,
            reason,
        }
    }

    /// Refused without having waited: because the gate is closed, or else for `reason`.
    pub(super) const fn now(word: Word, reason: RefusedReason) -> Self {
        let reason = if word.is_closed() {
            RefusedReason::Closed
        } else {
            reason
        };
        Self::new(reason, word)
    }

    pub(super) fn after(since: Instant, word: Word, reason: RefusedReason) -> Self {
        let waited = u32::try_from(since.elapsed().as_micros());
        Self {
            waited: waited.unwrap_or(u32::MAX),
            ..Self::new(reason, word)
        }
    }

    /// Refused for a reason that the gate knows nothing of.
    #[cfg(not(loom))]
    pub(crate) const fn for_reason(reason: RefusedReason, gate: GateSnapshot) -> Self {
        Self::new(reason, gate.0)
    }

    #[cfg(all(feature = "layer", not(loom)))]
    pub(crate) const fn set_retry_after_millis(&mut self, millis: u16) {
        self.retry_after_millis = millis;
    }

    #[cfg(all(feature = "layer", not(loom)))]
    pub(crate) const fn retry_after_millis(&self) -> u16 {
        self.retry_after_millis
    }

    /// Why.
    #[must_use]
    pub const fn reason(&self) -> RefusedReason {
        self.reason
    }

    /// Requests that were allowed inside.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.word.limit()
    }

    /// Requests that were inside, each as often as it costs.
    #[must_use]
    pub const fn inflight(&self) -> usize {
        self.word.inflight()
    }

    /// Requests that waited, each as often as it costs.
    #[must_use]
    pub const fn queued(&self) -> usize {
        self.word.queued()
    }

    /// How long the caller stood in line, in whole microseconds, at most 71 minutes.
    #[must_use]
    pub const fn waited(&self) -> Duration {
        Duration::from_micros(self.waited as u64)
    }
}

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        GateSnapshot(self.word).fields(
            f.debug_struct("Refused")
                .field("reason", &self.reason)
                .field("waited", &self.waited()),
        )
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            RefusedReason::Closed => f.write_str("the gate is closed"),
            RefusedReason::Full | RefusedReason::QueueFull | RefusedReason::Deadline => write!(
                f,
                "{} of {} permits are out and {} wait",
                self.inflight(),
                self.limit(),
                self.queued()
            ),
            RefusedReason::Downstream => f.write_str("what it depends on has no room for it"),
            RefusedReason::Displaced => {
                write!(
                    f,
                    "displaced by a request that matters more after {:?}",
                    self.waited()
                )
            }
            RefusedReason::WaitTimeout | RefusedReason::Overloaded => {
                write!(
                    f,
                    "no permit of {} came free in {:?}",
                    self.limit(),
                    self.waited()
                )
            }
        }
    }
}

impl std::error::Error for Refused {}
