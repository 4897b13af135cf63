//! The limiter: a gate, the control law that moves its limit, and the accounting in between.

use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

#[cfg(feature = "layer")]
use crate::gate::Permit;
use crate::{
    accounting::Accounting,
    change::LimitChange,
    error::{ConfigError, DrainError, check_bounds},
    event::Observer,
    gate::{Codel, Gate, Partition, Refused},
    metrics::Metrics,
    mode::{AtomicMode, LimiterSettings, Mode},
    partitions::PartitionNames,
    pressure::Pressure,
    saved::SavedLimit,
    snapshot::LimiterSnapshot,
    windows::Windows,
};

/// Admits requests within a limit that a control law moves.
///
/// Cloning is cheap and gives another handle to the same limiter: keep one beside the layer that
/// uses it, to watch it, to change its bounds and to drain it.
///
/// ```
/// use tower_capacity::{Limiter, Outcome};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let limiter = Limiter::adaptive();
/// match limiter.admit().await {
///     Ok(mut admission) => {
///         // … the work …
///         admission.complete(Outcome::Success);
///     }
///     Err(refused) => println!("shed: {refused}"),
/// }
/// assert_eq!(limiter.snapshot().inflight(), 0);
/// # }
/// ```
#[derive(Clone)]
pub struct Limiter {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) gate: Gate,
    pub(crate) accounting: Accounting,
    pub(crate) windows: Windows,
    pub(crate) metrics: Metrics,
    pub(crate) name: Box<str>,
    pub(crate) partitions: PartitionNames,
    pub(crate) downstream: Option<Box<Downstream>>,
    pub(crate) observer: Option<Box<Observer>>,
    pub(crate) mode: AtomicMode,
    /// What the modes serve without counting it, so that a drain waits for that too.
    pub(crate) uncounted: Gate,
}

/// How hard something is pressed that requests depend on.
pub(crate) type Downstream = dyn Fn() -> Pressure + Send + Sync;

impl Limiter {
    /// Whether the layers act on what is decided.
    #[must_use]
    #[inline]
    pub fn mode(&self) -> Mode {
        self.shared.mode.load()
    }

    /// Changes whether the layers act on what is decided, from the next request on.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.mode.store(mode);
        self.shared.metrics.mode(mode);
    }

    /// Serves a request that the limiter does not count, unless it drains.
    #[cfg(feature = "layer")]
    pub(crate) fn enter_uncounted(&self) -> Result<Permit, Refused> {
        self.shared.uncounted.try_acquire()
    }

    /// An address that no other living limiter has.
    #[cfg(feature = "layer")]
    #[inline]
    pub(crate) fn id(&self) -> usize {
        Arc::as_ptr(&self.shared).addr()
    }

    /// Reads the state of the limiter.
    #[must_use]
    pub fn snapshot(&self) -> LimiterSnapshot {
        let now = self.shared.accounting.now();
        self.shared.windows.snapshot(
            self.shared.gate.snapshot(),
            self.shared.accounting.totals(now, false),
        )
    }

    /// The name given to the limiter, which its metrics and events carry.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The partition of a key, such as the name of a tenant or of a route, for
    /// [`Ask::partition`](crate::gate::Ask::partition).
    ///
    /// A key that has no share of its own ([`LimiterBuilder::share`](crate::LimiterBuilder::share)) is hashed, with a seed of
    /// this process, into one of what is left of 1,023 partitions: of a hundred keys in use, about
    /// nine share theirs with another.
    #[must_use]
    pub fn partition(&self, key: &str) -> Partition {
        self.shared.partitions.find(key)
    }

    /// Requests of a partition inside, each as often as it costs.
    #[must_use]
    pub fn inflight_of(&self, partition: Partition) -> usize {
        self.shared.gate.inflight_of(partition)
    }

    /// How hard the limiter is pressed: requests inside and waiting, against the limit. What is
    /// [held](LimiterSnapshot::held) counts on neither side. Its
    /// [demand](Pressure::demand_ratio) also has what was refused in the last
    /// [window](crate::limit::Window).
    ///
    /// Meant for readiness probes, autoscalers and pools.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        let gate = self.shared.gate.snapshot();
        let held = self.shared.windows.held();
        let inflight = gate.inflight().saturating_sub(held);
        let limit = gate.limit().saturating_sub(held);
        Pressure::of(inflight, gate.queued(), limit).with_refused(self.shared.windows.refused())
    }

    /// How long a request is expected to take that enters after `permits`, its own included;
    /// zero before the first window.
    pub(crate) fn expected_sojourn(&self, permits: usize) -> Duration {
        let drain = self.expected_drain(permits).min(3600.0);
        Duration::from_secs_f64(drain) + self.shared.accounting.typical()
    }

    /// How many seconds `permits` are expected to be out at the pace of the last window; zero before
    /// it.
    #[inline]
    pub(crate) fn expected_drain(&self, permits: usize) -> f64 {
        let throughput = self.shared.windows.throughput();
        if throughput > 0.0 {
            permits as f64 / throughput
        } else {
            0.0
        }
    }

    /// Moves the bounds of the limit, and the limit into them.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the bounds are empty, zero or beyond [`Gate::MAX_LIMIT`]; nothing changes
    /// then.
    pub fn set_bounds(&self, bounds: RangeInclusive<usize>) -> Result<(), ConfigError> {
        check_bounds(&bounds)?;
        self.shared.metrics.bounds(bounds.clone());
        self.move_bounds(bounds);
        Ok(())
    }

    /// Changes how many may wait and for how long. `None`: as many as the limit in force,
    /// and eight at least.
    pub fn set_waiting(&self, max_queue: Option<usize>, max_wait: Duration) {
        self.shared.windows.forget_first_queue();
        self.shared.gate.set_waiting(max_queue, max_wait);
    }

    /// Changes when the waiting room has stopped absorbing bursts, see [`LimiterBuilder::codel`](crate::LimiterBuilder::codel).
    pub fn set_codel(&self, codel: impl Into<Option<Codel>>) {
        let codel = codel.into();
        self.shared.windows.follow_codel(codel);
        self.shared.gate.set_codel(codel);
    }

    /// Changes everything that can be changed while the limiter runs.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] as for [`set_bounds`](Self::set_bounds); nothing changes then.
    pub fn reconfigure(&self, settings: LimiterSettings) -> Result<(), ConfigError> {
        self.set_bounds(settings.bounds)?;
        self.set_waiting(settings.max_queue, settings.max_wait);
        self.set_codel(settings.codel);
        self.set_mode(settings.mode);
        Ok(())
    }

    /// What the limiter has learned, for the next process to start with.
    #[must_use]
    pub fn saved_limit(&self) -> SavedLimit {
        let explanation = self.shared.windows.explain();
        let baseline = explanation.baseline.filter(|baseline| *baseline > 0.0);
        let baseline = baseline.and_then(|baseline| Duration::try_from_secs_f64(baseline).ok());
        let baseline = baseline.filter(|baseline| !baseline.is_zero());
        SavedLimit::new(self.shared.windows.limit().max(1), baseline)
    }

    /// Refuses new requests from now on, and waits until none is inside.
    ///
    /// [`is_draining`](Self::is_draining) is true before the first refusal. Requests that already
    /// wait keep their places, and requests that a [`Mode`] serves uncounted are waited for like the
    /// others. Call [`resume`](Self::resume) to admit again.
    ///
    /// # Errors
    ///
    /// [`DrainError::Timeout`] if requests are still inside after `deadline`; the limiter keeps
    /// refusing. [`DrainError::Resumed`] as soon as [`resume`](Self::resume) is called.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the waiting, not the draining.
    pub async fn drain(&self, deadline: Duration) -> Result<(), DrainError> {
        let shared = &self.shared;
        shared.uncounted.close();
        shared.gate.close();
        let drained = async { shared.gate.drained().await && shared.uncounted.drained().await };
        match tokio::time::timeout(deadline, drained).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(DrainError::Resumed),
            Err(_) => Err(DrainError::Timeout {
                inflight: shared.gate.inflight() + shared.uncounted.inflight(),
                deadline,
            }),
        }
    }

    /// Admits again after [`drain`](Self::drain), and ends a drain that still waits.
    pub fn resume(&self) {
        self.shared.gate.reopen();
        self.shared.uncounted.reopen();
    }

    /// Whether the limiter drains. A readiness probe returns its negation.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.gate.is_closed()
    }

    /// The last explained changes of the limit, oldest first, 256 at most.
    ///
    /// Windows in a row that moved the limit for the same reason are one change.
    #[must_use]
    pub fn history(&self) -> Vec<LimitChange> {
        self.shared.windows.history()
    }

    pub(crate) fn note_refusal(&self, refused: &Refused) {
        self.shared.metrics.shed(refused.reason());
        if let Some(now) = self.shared.accounting.refuse(refused.reason()) {
            self.look(now, false);
        }
        #[cfg(feature = "tracing")]
        tracing::trace!(
            limiter = self.name(),
            reason = refused.reason().as_str(),
            limit = refused.limit(),
            inflight = refused.inflight(),
            queued = refused.queued(),
            "shed"
        );
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter")
            .field("name", &self.shared.name)
            .field("gate", &self.shared.gate)
            .finish_non_exhaustive()
    }
}
