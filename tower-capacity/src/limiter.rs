//! The limiter: a gate, the control law that moves its limit, and the accounting in between.

use std::{
    fmt,
    future::Future,
    hash::{BuildHasher, RandomState},
    ops::RangeInclusive,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Instant;

pub use crate::accounting::Outcome;
#[cfg(feature = "layer")]
use crate::gate::Permit;
use crate::{
    accounting::{Accounting, Progress, Ticket, Totals},
    change::LimitChange,
    event::{LimiterEvent, Observer},
    gate::{
        self, Ask, Claim, Codel, Enter, Gate, GateConfig, GateSnapshot, Partition, Priority,
        Refused, RefusedReason,
    },
    limit::{Explanation, Knee, Limit, Window},
    metrics::{Metrics, Setup},
    mode::{AtomicMode, LimiterSettings, Mode},
    pressure::Pressure,
    saved::SavedLimit,
    windows::Windows,
};

/// Requests that may wait before the first window has closed.
const FIRST_QUEUE: usize = 64;

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
    name: Box<str>,
    partitions: PartitionNames,
    downstream: Option<Box<Downstream>>,
    pub(crate) observer: Option<Box<Observer>>,
    mode: AtomicMode,
    /// What the modes serve without counting it, so that a drain waits for that too.
    uncounted: Gate,
}

/// How hard something is pressed that requests depend on.
type Downstream = dyn Fn() -> Pressure + Send + Sync;

impl Limiter {
    /// Creates a limiter that needs no numbers: [`Knee`] between 1 and 16,384, with a
    /// waiting room as long as the limit.
    #[must_use]
    pub fn adaptive() -> Self {
        Self::from_parts(Self::builder(), Box::new(Knee::new()))
    }

    /// Like [`adaptive`](Self::adaptive), with a name for metrics and events.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let builder = Self::builder().name(name);
        Self::from_parts(builder, Box::new(Knee::new()))
    }

    /// Starts to describe a limiter.
    pub fn builder() -> LimiterBuilder {
        LimiterBuilder {
            law: None,
            warm_start: None,
            settings: LimiterSettings::new(),
            shares: Vec::new(),
            downstream: None,
            observer: None,
            name: "default".into(),
        }
    }

    fn from_parts(builder: LimiterBuilder, law: Box<dyn Limit>) -> Self {
        let settings = builder.settings;
        let initial = law
            .initial()
            .clamp(*settings.bounds.start(), *settings.bounds.end());
        let (partitions, shares): (Vec<_>, Vec<_>) = builder.shares.into_iter().unzip();
        let mut config = GateConfig::new(initial)
            .max_wait(settings.max_wait)
            .shares(shares);
        // Before anything is known, more may wait: a limit that starts too low refuses nothing.
        let first_queue =
            (settings.max_queue.is_none() && !law.counts_held()).then_some(settings.max_wait);
        let max_queue = match first_queue {
            Some(_) => Some(FIRST_QUEUE.max(initial)),
            None => settings.max_queue,
        };
        if let Some(max_queue) = max_queue {
            config = config.max_queue(max_queue);
        }
        if let Some(codel) = settings.codel {
            config = config.codel(codel);
        }
        let accounting = Accounting::new(law.objective());
        let setup = Setup {
            limit: initial,
            bounds: settings.bounds.clone(),
            mode: settings.mode,
        };
        let windows = Windows::new(
            law,
            settings.bounds,
            settings.codel,
            first_queue,
            initial,
            &accounting,
        );
        Self {
            shared: Arc::new(Shared {
                gate: Gate::new(config),
                windows,
                accounting,
                metrics: Metrics::new(&builder.name, setup),
                name: builder.name,
                partitions: PartitionNames::new(partitions),
                downstream: builder.downstream,
                observer: builder.observer,
                mode: AtomicMode::new(settings.mode),
                uncounted: Gate::new(GateConfig::new(gate::MAX)),
            }),
        }
    }

    /// Admits now or not at all.
    ///
    /// # Errors
    ///
    /// [`Refused`] says why, and what the limit was.
    pub fn try_admit(&self) -> Result<Admission, Refused> {
        self.try_admit_as(Priority::Default)
    }

    /// Admits now or not at all, past waiters that matter less.
    ///
    /// # Errors
    ///
    /// [`Refused`] says why, and what the limit was.
    #[inline]
    pub fn try_admit_as(&self, priority: Priority) -> Result<Admission, Refused> {
        self.try_admit_with(Ask::new().priority(priority))
    }

    /// Admits now or not at all, as `ask` says; how long it might wait is not looked at.
    ///
    /// # Errors
    ///
    /// [`Refused`] says why, and what the limit was.
    #[inline]
    pub fn try_admit_with(&self, ask: Ask) -> Result<Admission, Refused> {
        let claim = ask.claim();
        let entered = if self.is_pressed(claim.priority()) {
            let gate = self.shared.gate.snapshot();
            Err(Refused::for_reason(RefusedReason::Downstream, gate))
        } else {
            self.shared.gate.enter(claim)
        };
        match entered {
            Ok(entered) => Ok(self.admission(entered, claim)),
            Err(refused) => {
                self.note_refusal(&refused);
                Err(refused)
            }
        }
    }

    /// Whether what requests depend on has no room for those of this class.
    #[inline]
    fn is_pressed(&self, priority: Priority) -> bool {
        let downstream = self.shared.downstream.as_ref();
        downstream.is_some_and(|pressure| pressure().value() >= bearable(priority))
    }

    /// Admits, after a wait in the bounded waiting room if need be.
    ///
    /// # Errors
    ///
    /// The future returns [`Refused`] if the room is full, the wait is over or the limiter drains.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives back the place in line, or the permit that was on its way.
    pub fn admit(&self) -> Admit {
        self.admit_with(Ask::new())
    }

    /// Admits as `ask` says. Otherwise as [`admit`](Self::admit).
    ///
    /// A request that would have to wait is refused at once, as
    /// [`RefusedReason::Deadline`](crate::gate::RefusedReason::Deadline), if the waiters that go
    /// before it and its own service are expected to take longer than the time it has left.
    pub fn admit_with(&self, ask: Ask) -> Admit {
        let claim = ask.claim();
        let doomed = ask.left().is_some_and(|left| {
            let ahead = self.shared.gate.ahead_of(claim);
            ahead.is_some_and(|ahead| self.expected_sojourn(ahead + claim.cost()) > left)
        });
        let reason = if self.is_pressed(claim.priority()) {
            Some(RefusedReason::Downstream)
        } else {
            doomed.then_some(RefusedReason::Deadline)
        };
        let refused = reason.map(|reason| Refused::for_reason(reason, self.shared.gate.snapshot()));
        Admit {
            enter: self.shared.gate.enter_with(ask),
            limiter: self.clone(),
            waiting: None,
            refused,
        }
    }

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
    /// [`Ask::partition`].
    ///
    /// A key that has no share of its own ([`LimiterBuilder::share`]) is hashed, with a seed of
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
    /// [held](LimiterSnapshot::held) counts on neither side.
    ///
    /// Meant for readiness probes, autoscalers and pools.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        let gate = self.shared.gate.snapshot();
        let held = self.shared.windows.held();
        let inflight = gate.inflight().saturating_sub(held);
        let limit = gate.limit().saturating_sub(held);
        Pressure::of(inflight, gate.queued(), limit)
    }

    /// How long a request is expected to take that enters after `permits`, its own included;
    /// zero before the first window.
    fn expected_sojourn(&self, permits: usize) -> Duration {
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

    /// Refuses a request that found no permit, if no wait would give it one: the limiter drains,
    /// or its waiting room has no place. Counts the refusal.
    #[cfg(feature = "layer")]
    pub(crate) fn turn_away(&self, claim: Claim) -> Option<Refused> {
        let refused = if self.is_pressed(claim.priority()) {
            let gate = self.shared.gate.snapshot();
            Refused::for_reason(RefusedReason::Downstream, gate)
        } else {
            self.shared.gate.turn_away(claim)?
        };
        self.note_refusal(&refused);
        Some(refused)
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

    /// Changes how many may wait and for how long. `None`: as many as the limit in force.
    pub fn set_waiting(&self, max_queue: Option<usize>, max_wait: Duration) {
        self.shared.windows.forget_first_queue();
        self.shared.gate.set_waiting(max_queue, max_wait);
    }

    /// Changes when the waiting room has stopped absorbing bursts, see [`LimiterBuilder::codel`].
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
        if let Some(now) = self.shared.accounting.refuse() {
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

    /// Admits now, or not without counting a refusal: the request may still wait. See
    /// [`turn_away`](Self::turn_away).
    ///
    /// Two words, so that admission and refusal alike come back in registers.
    #[cfg(feature = "layer")]
    #[inline]
    pub(crate) fn try_enter(&self, claim: Claim) -> Option<Admission> {
        if self.is_pressed(claim.priority()) {
            return None;
        }
        let entered = self.shared.gate.enter(claim).ok()?;
        Some(self.admission(entered, claim))
    }

    /// Counts a request that has just entered.
    #[inline]
    fn admission(&self, entered: GateSnapshot, claim: Claim) -> Admission {
        let shared = &self.shared;
        // Within 5 % of the limit, so that a law also sees a limit that is only just reached.
        let limit = entered.limit();
        if entered.inflight() + limit / 20 >= limit {
            shared.accounting.set_limited();
        }
        let ticket = if let Some(stride) = shared.accounting.draw() {
            self.enter_timed(stride, entered, claim)
        } else {
            Ticket::untimed(claim)
        };
        shared.metrics.admitted(claim.cost());
        Admission {
            limiter: self.clone(),
            ticket,
        }
    }

    /// Starts to time a request.
    fn enter_timed(&self, stride: u32, entered: GateSnapshot, claim: Claim) -> Ticket {
        let shared = &self.shared;
        let now = shared.accounting.now();
        let ticket = shared.accounting.enter(claim, now, stride);
        let is_alone = entered.inflight() == claim.cost();
        if shared.windows.is_due_on_entry(now, is_alone) {
            self.look_on_entry(now, is_alone);
        }
        ticket
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

/// Describes a [`Limiter`].
#[must_use]
pub struct LimiterBuilder {
    law: Option<Box<dyn Limit>>,
    warm_start: Option<SavedLimit>,
    settings: LimiterSettings,
    shares: Vec<(Box<str>, f64)>,
    downstream: Option<Box<Downstream>>,
    observer: Option<Box<Observer>>,
    name: Box<str>,
}

impl fmt::Debug for LimiterBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimiterBuilder")
            .field("name", &self.name)
            .field("law", &self.law)
            .field("settings", &self.settings)
            .field("shares", &self.shares)
            .finish_non_exhaustive()
    }
}

impl LimiterBuilder {
    /// Sets the control law. Defaults to [`Knee`].
    pub fn law(mut self, law: impl Limit + 'static) -> Self {
        self.law = Some(Box::new(law));
        self
    }

    /// Starts the default law with what another limiter had learned, rather than from scratch.
    ///
    /// A saved limit outside the bounds starts at the nearest one. Defaults to none.
    pub const fn warm_start(mut self, saved: SavedLimit) -> Self {
        self.warm_start = Some(saved);
        self
    }

    /// Sets the least and the greatest limit. Defaults to 1 and 16,384.
    pub const fn bounds(mut self, bounds: RangeInclusive<usize>) -> Self {
        self.settings.bounds = bounds;
        self
    }

    /// Sets how many requests may wait; zero sheds at once. Defaults to the limit in force, and to 64
    /// at least until an adaptive limiter has closed its first window.
    pub const fn max_queue(mut self, requests: usize) -> Self {
        self.settings.max_queue = Some(requests);
        self
    }

    /// Sets how long a request waits at most; zero sheds at once, as a queue of zero does. Defaults to
    /// one second.
    pub const fn max_wait(mut self, wait: Duration) -> Self {
        self.settings.max_wait = wait;
        self
    }

    /// Sets whether the layers act on what is decided. Defaults to [`Mode::Enforce`].
    pub const fn mode(mut self, mode: Mode) -> Self {
        self.settings.mode = mode;
        self
    }

    /// Sets bounds, waiting, CoDel and mode to those of `settings`. Defaults to
    /// [`LimiterSettings::new`].
    pub fn settings(mut self, settings: LimiterSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Sets when the waiting room has stopped absorbing bursts: then it sheds requests that
    /// have waited for too long, and serves its newest first. `None` never: in order of arrival, as
    /// long as [`max_wait`](Self::max_wait) allows.
    ///
    /// Defaults to [`Codel::REQUESTS`], which follows the service time. In the simulator it takes a
    /// tenth off the P99 and keeps more of the goodput where a limit starts far too high; a refusal
    /// may come as late as a request may wait. With `None` a request that finds the room full is
    /// refused at once, and no other is but by [`max_wait`](Self::max_wait) (`benches/RESULTS.md`).
    pub fn codel(mut self, codel: impl Into<Option<Codel>>) -> Self {
        self.settings.codel = codel.into();
        self
    }

    /// Guarantees a share of the limit, above 0 and at most 1, to the [`Partition`] of a key.
    ///
    /// Whatever it leaves idle others may fill. Keys without a share of their own are guaranteed
    /// equal parts of the rest. Defaults to none: all keys in use are guaranteed the same.
    ///
    /// ```
    /// use tower_capacity::Limiter;
    ///
    /// let limiter = Limiter::builder().share("checkout", 0.5).share("search", 0.2).build()?;
    /// # Ok::<(), tower_capacity::ConfigError>(())
    /// ```
    pub fn share(mut self, key: &str, share: f64) -> Self {
        self.shares.push((key.into(), share));
        self
    }

    /// Sheds requests that something they depend on would only keep waiting, such as a pool of
    /// connections, before they line up there.
    ///
    /// `pressure` is called for each request, and returns a [`Pressure`] or a number of its scale:
    /// 0 for idle, ½ for all in use, 1 for a queue as long as what is in use, as
    /// `Autotuned::pressure` of `pool-autotune` returns. Requests are refused as
    /// [`RefusedReason::Downstream`], the least important first: `Background` from ½ on,
    /// `Sheddable` from ¾, `Default` from 1; `Critical` never. Defaults to none.
    ///
    /// Only for limiters of requests that all depend on it: give others a limiter of their own.
    ///
    /// ```
    /// use tower_capacity::Limiter;
    ///
    /// # struct Pool;
    /// # impl Pool { fn pressure(&self) -> f64 { 0.0 } }
    /// # let pool = Pool;
    /// let limiter = Limiter::builder().downstream(move || pool.pressure()).build()?;
    /// # Ok::<(), tower_capacity::ConfigError>(())
    /// ```
    pub fn downstream<P: Into<Pressure>>(
        mut self,
        pressure: impl Fn() -> P + Send + Sync + 'static,
    ) -> Self {
        self.downstream = Some(Box::new(move || pressure().into()));
        self
    }

    /// Calls `observer` when the limit moves and when shedding starts or ends, for a service that
    /// reads neither metrics nor `tracing`. Defaults to none.
    ///
    /// It is called on the thread of the request that showed it, under no lock, so that it may use
    /// the limiter; it should not take long. Where it panics, the event is lost and nothing else.
    ///
    /// ```
    /// use tower_capacity::Limiter;
    ///
    /// let limiter = Limiter::builder()
    ///     .on_event(|event| eprintln!("{event}"))
    ///     .build()?;
    /// # Ok::<(), tower_capacity::ConfigError>(())
    /// ```
    pub fn on_event(mut self, observer: impl Fn(&LimiterEvent) + Send + Sync + 'static) -> Self {
        self.observer = Some(Box::new(observer));
        self
    }

    /// Names the limiter in metrics and events. Defaults to `default`.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// Creates the limiter.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the bounds are empty, zero or beyond [`Gate::MAX_LIMIT`], if a law that
    /// was set starts outside them or is to start warm, if shares are not possible, or if the name is
    /// empty. The default law starts at the nearest bound instead.
    pub fn build(mut self) -> Result<Limiter, ConfigError> {
        check_bounds(&self.settings.bounds)?;
        check_shares(&self.shares)?;
        if self.name.is_empty() {
            return Err(ConfigError::Name);
        }
        let law = match self.law.take() {
            Some(law) if !self.settings.bounds.contains(&law.initial()) => {
                return Err(ConfigError::InitialOutOfBounds {
                    initial: law.initial(),
                    bounds: self.settings.bounds,
                });
            }
            Some(law) if self.warm_start.is_some() => {
                return Err(ConfigError::WarmStart { law: law.name() });
            }
            Some(law) => law,
            None => Box::new(match self.warm_start {
                Some(saved) => Knee::new().warm_start(saved.limit(), saved.baseline()),
                None => Knee::new(),
            }),
        };
        Ok(Limiter::from_parts(self, law))
    }
}

/// The pressure downstream from which on a class is shed.
const fn bearable(priority: Priority) -> f64 {
    match priority {
        Priority::Critical => f64::INFINITY,
        Priority::Default => 1.0,
        Priority::Sheddable => 0.75,
        Priority::Background => 0.5,
    }
}

fn check_bounds(bounds: &RangeInclusive<usize>) -> Result<(), ConfigError> {
    let (min, max) = (*bounds.start(), *bounds.end());
    if min == 0 || max > gate::MAX || min > max {
        return Err(ConfigError::Bounds { min, max });
    }
    Ok(())
}

fn check_shares(shares: &[(Box<str>, f64)]) -> Result<(), ConfigError> {
    let mut sum = 0.0;
    for (index, (key, share)) in shares.iter().enumerate() {
        let key = || key.to_string();
        // Not a number is in no range.
        if !(*share > 0.0 && *share <= 1.0) {
            return Err(ConfigError::Share {
                key: key(),
                share: *share,
            });
        }
        if shares[..index].iter().any(|(other, _)| **other == *key()) {
            return Err(ConfigError::ShareTwice { key: key() });
        }
        sum += share;
        // A sum of decimal fractions may miss 1 by a little.
        if sum > 1.0 + 1e-9 {
            return Err(ConfigError::ShareSum { key: key(), sum });
        }
    }
    if shares.len() > Partition::MAX {
        let keys = shares.len();
        return Err(ConfigError::ShareCount { keys });
    }
    Ok(())
}

/// Which key belongs to which partition.
#[derive(Debug)]
struct PartitionNames {
    /// Of the partitions from 1 on.
    named: Vec<Box<str>>,
    hasher: RandomState,
}

impl PartitionNames {
    fn new(named: Vec<Box<str>>) -> Self {
        Self {
            named,
            hasher: RandomState::new(),
        }
    }

    fn find(&self, key: &str) -> Partition {
        if let Some(index) = self.named.iter().position(|name| **name == *key) {
            return Partition::new(index + 1);
        }
        let first = self.named.len() + 1;
        let count = Partition::MAX + 1 - first;
        if count == 0 {
            return Partition::NONE;
        }
        Partition::new(first + self.hasher.hash_one(key) as usize % count)
    }
}

/// A limiter that cannot work.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ConfigError {
    /// The bounds of the limit are not 1 ≤ min ≤ max ≤ [`Gate::MAX_LIMIT`].
    #[non_exhaustive]
    Bounds {
        /// Least limit asked for.
        min: usize,
        /// Greatest limit asked for.
        max: usize,
    },
    /// The law starts outside the bounds.
    #[non_exhaustive]
    InitialOutOfBounds {
        /// Where the law starts.
        initial: usize,
        /// The bounds asked for.
        bounds: RangeInclusive<usize>,
    },
    /// Only the default law starts with a saved limit; others say themselves where they start.
    #[non_exhaustive]
    WarmStart {
        /// Name of the law that was set.
        law: &'static str,
    },
    /// A share of the limit is not above 0 and at most 1.
    #[non_exhaustive]
    Share {
        /// The key that was to have it.
        key: String,
        /// The share asked for.
        share: f64,
    },
    /// A key was given two shares.
    #[non_exhaustive]
    ShareTwice {
        /// The key.
        key: String,
    },
    /// The shares are more than the limit.
    #[non_exhaustive]
    ShareSum {
        /// The first key with a share that no longer fits.
        key: String,
        /// Of the shares up to that one.
        sum: f64,
    },
    /// More keys have shares than there are partitions.
    #[non_exhaustive]
    ShareCount {
        /// Keys with a share.
        keys: usize,
    },
    /// The name is empty, so that metrics would carry an empty label.
    Name,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bounds { min, max } => write!(
                f,
                "limit bounds {min}..={max} are not possible: expected 1 <= min <= max <= {}",
                gate::MAX
            ),
            Self::InitialOutOfBounds { initial, bounds } => write!(
                f,
                "the law starts at a limit of {initial}: expected one within its bounds {bounds:?}"
            ),
            Self::WarmStart { law } => write!(
                f,
                "the law {law} cannot start with a saved limit: expected no law, or no warm start"
            ),
            Self::Share { key, share } => write!(
                f,
                "the share of {key:?} is {share}: expected one above 0 and at most 1"
            ),
            Self::ShareTwice { key } => write!(f, "{key:?} has two shares: expected one"),
            Self::ShareSum { key, sum } => write!(
                f,
                "with that of {key:?} the shares add up to {sum:.3}: expected at most 1, since they \
                 are parts of one limit"
            ),
            Self::ShareCount { keys } => write!(
                f,
                "{keys} keys have a share: expected at most {}",
                Partition::MAX
            ),
            Self::Name => f.write_str(
                "the name of the limiter is empty: expected one that tells it from others in metrics",
            ),
        }
    }
}

impl std::error::Error for ConfigError {}

/// A drain ended before the limiter was empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DrainError {
    /// Requests were still inside when the deadline had passed. The limiter keeps refusing.
    #[non_exhaustive]
    Timeout {
        /// Requests that were still inside.
        inflight: usize,
        /// How long the drain waited for them.
        deadline: Duration,
    },
    /// [`Limiter::resume`] was called. The limiter admits again.
    Resumed,
}

impl fmt::Display for DrainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { inflight, deadline } => {
                write!(f, "{inflight} requests still inside after {deadline:?}")
            }
            Self::Resumed => f.write_str("resumed before all requests had left"),
        }
    }
}

impl std::error::Error for DrainError {}

pin_project! {
    /// Future of [`Limiter::admit`].
    #[must_use = "futures do nothing unless polled"]
    pub struct Admit {
        #[pin]
        enter: Enter,
        limiter: Limiter,
        waiting: Option<Waiting>,
        // Decided before it could wait.
        refused: Option<Refused>,
    }
}

impl Future for Admit {
    type Output = Result<Admission, Refused>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let limiter = &*this.limiter;
        if let Some(refused) = this.refused.take() {
            limiter.note_refusal(&refused);
            return Poll::Ready(Err(refused));
        }
        let claim = this.enter.claim();
        let Poll::Ready(entered) = this.enter.poll(cx) else {
            if this.waiting.is_none() {
                *this.waiting = Some(Waiting::new(limiter, claim.cost()));
                limiter.shared.accounting.set_limited();
            }
            return Poll::Pending;
        };
        drop(this.waiting.take());
        Poll::Ready(match entered {
            Ok(entered) => Ok(limiter.admission(entered, claim)),
            Err(refused) => {
                limiter.note_refusal(&refused);
                Err(refused)
            }
        })
    }
}

/// A request in the waiting room, counted there until it is dropped.
struct Waiting {
    limiter: Limiter,
    cost: usize,
    since: Instant,
}

impl Waiting {
    fn new(limiter: &Limiter, cost: usize) -> Self {
        limiter.shared.metrics.waits(cost);
        Self {
            limiter: limiter.clone(),
            cost,
            since: Instant::now(),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let waited = self.since.elapsed();
        self.limiter.shared.metrics.waited(self.cost, waited);
    }
}

impl fmt::Debug for Admit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admit")
            .field("limiter", &self.limiter)
            .field("waiting", &self.waiting.is_some())
            .finish()
    }
}

/// One admitted request: its permit, and the duty to say how it ended.
///
/// Say how it ended with [`complete`](Self::complete) as soon as that is known; the permit is
/// returned when the admission is dropped. One that is dropped without a word was *cancelled*:
/// neither a success nor a failure.
#[derive(Debug)]
#[must_use = "dropping an admission returns its permit"]
pub struct Admission {
    limiter: Limiter,
    ticket: Ticket,
}

impl Admission {
    /// Records how the request ended.
    ///
    /// The permit stays out until the admission is dropped, and the service time ends then, so that
    /// work in a body that is still being streamed is seen. Recording it again changes a success into a drop (a gRPC status comes
    /// after the body) and nothing else.
    #[inline]
    pub fn complete(&mut self, outcome: Outcome) {
        match self.ticket.progress() {
            Progress::Running => {
                self.ticket.set_progress(match outcome {
                    Outcome::Success => Progress::Succeeded,
                    Outcome::Ignored => Progress::Ignored,
                    Outcome::Dropped => Progress::Dropped,
                });
                if self.ticket.is_timed() {
                    self.limiter.shared.accounting.answer(self.ticket);
                }
            }
            Progress::Succeeded if outcome == Outcome::Dropped => {
                self.ticket.set_progress(Progress::Dropped);
            }
            Progress::Succeeded | Progress::Ignored | Progress::Dropped => {}
        }
    }

    /// The limiter that admitted the request.
    #[must_use]
    pub const fn limiter(&self) -> &Limiter {
        &self.limiter
    }
}

impl Drop for Admission {
    #[inline]
    fn drop(&mut self) {
        let shared = &self.limiter.shared;
        let left = shared.accounting.leave(self.ticket);
        let cost = self.ticket.cost();
        shared.metrics.left(cost, self.ticket.progress());
        shared.gate.leave(self.ticket.partition(), cost);
        if let Some((now, held)) = left {
            self.limiter.look(now, held);
        }
    }
}

/// The state of a [`Limiter`] at one moment.
#[derive(Clone, Debug)]
pub struct LimiterSnapshot {
    pub(crate) gate: GateSnapshot,
    pub(crate) limit: usize,
    pub(crate) held: usize,
    pub(crate) law: &'static str,
    pub(crate) explanation: Explanation,
    pub(crate) bounds: RangeInclusive<usize>,
    pub(crate) window: Option<Window>,
    pub(crate) totals: Totals,
}

impl LimiterSnapshot {
    /// Requests allowed inside, those that are [held](Self::held) apart.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// Requests inside, held ones included, each as often as it [costs](Ask::cost).
    #[must_use]
    pub const fn inflight(&self) -> usize {
        self.gate.inflight()
    }

    /// Requests inside that have been there for so much longer than usual that they are no measure
    /// of load: open streams, long polls, handlers that hang. They do not count against the limit.
    /// Each as often as it costs.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.held
    }

    /// Requests that wait, each as often as it costs.
    #[must_use]
    pub const fn queued(&self) -> usize {
        self.gate.queued()
    }

    /// Requests inside above the limit.
    #[must_use]
    pub const fn debt(&self) -> usize {
        self.gate.debt()
    }

    /// Whether the limiter was told to drain.
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.gate.is_closed()
    }

    /// Name of the control law.
    #[must_use]
    pub const fn law(&self) -> &'static str {
        self.law
    }

    /// Why the law took its last decision.
    #[must_use]
    pub const fn explanation(&self) -> Explanation {
        self.explanation
    }

    /// Bounds of the limit.
    #[must_use]
    pub fn bounds(&self) -> RangeInclusive<usize> {
        self.bounds.clone()
    }

    /// The last closed window; `None` before the first.
    #[must_use]
    pub const fn window(&self) -> Option<&Window> {
        self.window.as_ref()
    }

    /// Requests that completed well since the limiter was built.
    #[must_use]
    pub const fn completions(&self) -> u64 {
        self.totals.completions
    }

    /// Requests that ended in a way that signals overload since the limiter was built.
    #[must_use]
    pub const fn drops(&self) -> u64 {
        self.totals.drops
    }

    /// Requests that said nothing about capacity since the limiter was built.
    #[must_use]
    pub const fn ignored(&self) -> u64 {
        self.totals.ignored
    }

    /// Requests that their callers gave up since the limiter was built.
    #[must_use]
    pub const fn cancelled(&self) -> u64 {
        self.totals.cancelled
    }

    /// Requests refused since the limiter was built.
    #[must_use]
    pub const fn refusals(&self) -> u64 {
        self.totals.refusals
    }
}
