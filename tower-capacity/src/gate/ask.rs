//! What one request asks of a gate.

use std::time::Duration;

use super::{Claim, Partition, Priority};

/// What one request asks of a gate.
///
/// ```
/// use std::time::Duration;
/// use tower_capacity::gate::{Ask, Gate, GateConfig, Priority};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let gate = Gate::new(GateConfig::new(4));
/// let ask = Ask::new().priority(Priority::Critical).max_wait(Duration::from_millis(20));
/// let permit = gate.acquire_with(ask).await?;
/// # drop(permit);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Ask {
    claim: Claim,
    pub(super) max_wait: Option<Duration>,
    pub(super) time_left: Option<Duration>,
}

impl Default for Ask {
    fn default() -> Self {
        Self::new()
    }
}

impl Ask {
    /// The most that one request can cost: 64 permits.
    pub const MAX_COST: u32 = Claim::MAX_COST;

    /// Asks as [`Gate::acquire`](super::Gate::acquire) does.
    pub const fn new() -> Self {
        Self {
            claim: Claim::ONE,
            max_wait: None,
            time_left: None,
        }
    }

    /// Sets how much the request matters. Defaults to [`Priority::Default`].
    pub const fn priority(mut self, priority: Priority) -> Self {
        self.claim = self.claim.with_priority(priority);
        self
    }

    /// Sets the partition that the request belongs to. Defaults to [`Partition::NONE`].
    pub const fn partition(mut self, partition: Partition) -> Self {
        self.claim = self.claim.with_partition(partition);
        self
    }

    /// Sets how many permits the request takes, for one that uses as much of what is limited as
    /// that many others. Zero counts as one, and more than [`MAX_COST`](Self::MAX_COST) as that.
    ///
    /// It enters when all of them are free, or all that its class may fill if it costs more. Where
    /// requests may wait, the permits that come free are kept for the one that is next until it has
    /// enough, so that cheaper requests never starve it; without a queue they may. Defaults to 1.
    ///
    /// ```
    /// use tower_capacity::gate::{Ask, Gate, GateConfig};
    ///
    /// let gate = Gate::new(GateConfig::new(10));
    /// let export = gate.try_acquire_with(Ask::new().cost(8))?;
    /// assert_eq!(gate.inflight(), 8);
    /// drop(export);
    /// let larger_than_the_limit = gate.try_acquire_with(Ask::new().cost(12))?;
    /// assert_eq!((gate.inflight(), gate.debt()), (12, 2));
    /// # drop(larger_than_the_limit);
    /// # Ok::<(), tower_capacity::gate::Refused>(())
    /// ```
    pub const fn cost(mut self, permits: u32) -> Self {
        let permits = if permits == 0 { 1 } else { permits };
        self.claim = self.claim.with_cost(permits);
        self
    }

    /// Sets how long it waits at most. Defaults to the gate's own `max_wait`.
    pub const fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = Some(wait);
        self
    }

    /// Says how long a response is still worth anything: the request waits no longer than that,
    /// and a [`Limiter`](crate::Limiter) refuses it at once if its turn would come too late.
    /// Defaults to forever.
    pub const fn time_left(mut self, left: Duration) -> Self {
        self.time_left = Some(left);
        self
    }

    /// How long a response is still worth anything; `None` for forever.
    #[must_use]
    pub const fn left(&self) -> Option<Duration> {
        self.time_left
    }

    #[inline]
    pub(crate) const fn claim(&self) -> Claim {
        self.claim
    }
}
