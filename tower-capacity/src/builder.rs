//! How a limiter is described and built.

use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

use crate::{
    accounting::Accounting,
    error::{ConfigError, check_bounds, check_shares},
    event::{LimiterEvent, Observer},
    gate::{self, Codel, Gate, GateConfig},
    limit::{Knee, Limit},
    limiter::{Downstream, Limiter, Shared},
    metrics::{Metrics, Setup},
    mode::{AtomicMode, LimiterSettings, Mode},
    partitions::PartitionNames,
    pressure::Pressure,
    saved::SavedLimit,
    windows::Windows,
};

/// Requests that may wait before the first window has closed.
const FIRST_QUEUE: usize = 64;

impl Limiter {
    /// Creates a limiter that needs no numbers: the default law between 1 and 16,384, with a
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
            latency_objective: None,
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
}

/// Describes a [`Limiter`].
#[must_use]
pub struct LimiterBuilder {
    law: Option<Box<dyn Limit>>,
    warm_start: Option<SavedLimit>,
    latency_objective: Option<Duration>,
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
    /// Sets the control law. Defaults to one that finds the knee: the least limit at which more concurrency
    /// no longer buys throughput (see [`limit`](crate::limit)).
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

    /// Lowers the limit of the default law further while more than 1 % of the requests take longer than this
    /// inside, and a lower limit helps. Defaults to none.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_capacity::Limiter;
    ///
    /// let limiter = Limiter::builder().latency_objective(Duration::from_millis(200)).build()?;
    /// # Ok::<(), tower_capacity::ConfigError>(())
    /// ```
    pub const fn latency_objective(mut self, service_time: Duration) -> Self {
        self.latency_objective = Some(service_time);
        self
    }

    /// Sets the least and the greatest limit. Defaults to 1 and 16,384.
    pub const fn bounds(mut self, bounds: RangeInclusive<usize>) -> Self {
        self.settings.bounds = bounds;
        self
    }

    /// Sets how many requests may wait; zero sheds at once. Defaults to the limit in force, and to 8
    /// at least, or to 64 until an adaptive limiter has closed its first window.
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

    /// Guarantees a share of the limit, above 0 and at most 1, to the [`Partition`](crate::gate::Partition) of a key.
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
    /// [`RefusedReason::Downstream`](crate::gate::RefusedReason::Downstream), the least important first: `Background` from ½ on,
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
    /// was set starts outside them or is given what is for the default law, if the latency objective is
    /// zero, if shares are not possible, or if the name is empty. The default law starts at the nearest bound
    /// instead.
    pub fn build(mut self) -> Result<Limiter, ConfigError> {
        check_bounds(&self.settings.bounds)?;
        check_shares(&self.shares)?;
        if self
            .latency_objective
            .is_some_and(|objective| objective.is_zero())
        {
            return Err(ConfigError::LatencyObjective);
        }
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
            Some(law) => {
                let settings = [
                    ("warm_start", self.warm_start.is_some()),
                    ("latency_objective", self.latency_objective.is_some()),
                ];
                if let Some((setting, _)) = settings.into_iter().find(|(_, is_set)| *is_set) {
                    let law = law.name();
                    return Err(ConfigError::OtherLaw { law, setting });
                }
                law
            }
            None => {
                let mut law = Knee::new();
                if let Some(saved) = self.warm_start {
                    law = law.warm_start(saved.limit(), saved.baseline());
                }
                if let Some(objective) = self.latency_objective {
                    law = law.latency_objective(objective);
                }
                Box::new(law)
            }
        };
        Ok(Limiter::from_parts(self, law))
    }
}
