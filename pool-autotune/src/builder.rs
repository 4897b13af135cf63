use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tower_capacity::gate::{Codel, Gate, GateConfig};

use crate::adapter::Adapter;
use crate::ages::Aging;
use crate::check::check_tuner;
use crate::clock::Clock;
use crate::control::Control;
use crate::driver;
#[cfg(feature = "fleet")]
use crate::fleet::Budget;
use crate::holders::Holders;
use crate::metrics::Metrics;
use crate::rights::Rights;
use crate::shared::Shared;
use crate::stats::{Stats, WindowReader};
#[cfg(feature = "json")]
use crate::tuner::LogWriter;
use crate::tuner::{DialBudget, DialState, Tuner, TunerConfig};
use crate::{Autotuned, Bounds, BuildError, PoolSettings};

/// Whether the tuner acts or only reports.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Mode {
    /// The tuner sizes the pool.
    #[default]
    Enforce,
    /// The tuner reports what it would do. The limit stays at the size the pool was built with, no
    /// connection is closed, and nothing is refused that the pool itself would not refuse.
    Recommend,
}

impl Mode {
    /// `enforce` or `recommend`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Recommend => "recommend",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Configures an [`Autotuned`] pool.
#[derive(Debug)]
pub struct Builder<P> {
    pool: P,
    bounds: Option<RangeInclusive<usize>>,
    mode: Mode,
    name: Option<String>,
    wait_timeout: Option<Duration>,
    open_timeout: Option<Duration>,
    max_waiting: Option<usize>,
    /// Outer `None`: follows the wait timeout.
    codel: Option<Option<Codel>>,
    reserved: usize,
    max_lifetime: Option<Duration>,
    idle_timeout: Option<Duration>,
    keep_open: usize,
    #[cfg(feature = "fleet")]
    budget: Option<Budget>,
    tuner: TunerConfig,
    clock: Clock,
    #[cfg(feature = "json")]
    log: Option<Log>,
}

/// Where decisions are written.
#[cfg(feature = "json")]
struct Log(Box<dyn std::io::Write + Send>);

#[cfg(feature = "json")]
impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Log")
    }
}

impl<P: Adapter> Builder<P> {
    pub(crate) fn new(pool: P) -> Self {
        Self {
            pool,
            bounds: None,
            mode: Mode::default(),
            name: None,
            wait_timeout: None,
            open_timeout: None,
            max_waiting: None,
            codel: None,
            reserved: 0,
            max_lifetime: None,
            idle_timeout: None,
            keep_open: 0,
            #[cfg(feature = "fleet")]
            budget: None,
            tuner: TunerConfig::default(),
            clock: Clock::tokio(),
            #[cfg(feature = "json")]
            log: None,
        }
    }

    /// Sets the smallest and the largest size the pool may be given.
    ///
    /// The minimum is a size to keep, not connections opened in advance: see
    /// [`keep_open`](Self::keep_open). Two leaves room for a
    /// task that holds one connection and asks for a second.
    ///
    /// Defaults to 2 up to what the pool was built with; in [`Mode::Recommend`], where nothing is
    /// acted on, up to 50 at least.
    #[must_use]
    pub fn bounds(mut self, bounds: RangeInclusive<usize>) -> Self {
        self.bounds = Some(bounds);
        self
    }

    /// Sets what `settings` says, and leaves the rest as it is.
    #[must_use]
    pub fn settings(mut self, settings: PoolSettings) -> Self {
        let bounds = settings.bounds.map(|bounds| bounds.min()..=bounds.max());
        self.bounds = bounds.or(self.bounds);
        self.wait_timeout = settings.wait_timeout.or(self.wait_timeout);
        self.open_timeout = settings.open_timeout.or(self.open_timeout);
        self.max_waiting = settings.max_waiting.or(self.max_waiting);
        self.mode = settings.mode.unwrap_or(self.mode);
        self
    }

    /// Sets whether the tuner acts or only reports. Defaults to [`Mode::Enforce`].
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets the name in metrics, events and snapshots. Defaults to `pool-1`, `pool-2`, …
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets how long a checkout waits in line.
    ///
    /// Defaults to the pool's own wait timeout if it has one; else to 2 s, or in
    /// [`Mode::Recommend`] to no limit.
    #[must_use]
    pub fn wait_timeout(mut self, timeout: Duration) -> Self {
        self.wait_timeout = Some(timeout);
        self
    }

    /// Sets how long opening or checking a connection may take once it is a checkout's turn.
    ///
    /// Defaults to 5 s, or in [`Mode::Recommend`] to no limit but the pool's own.
    #[must_use]
    pub fn open_timeout(mut self, timeout: Duration) -> Self {
        self.open_timeout = Some(timeout);
        self
    }

    /// Sets how many checkouts may wait; one more is refused at once. Defaults to no limit, as in the
    /// pools behind: each waits for at most the wait timeout.
    #[must_use]
    pub fn max_waiting(mut self, checkouts: usize) -> Self {
        self.max_waiting = Some(checkouts);
        self
    }

    /// Sets how the queue is shed from while the database is at its knee, `None` for not at all.
    ///
    /// Defaults to a target of a quarter of the wait timeout within ten times as long, but at most
    /// 5 s: a checkout is shed once it has waited for half of its patience while no other waited
    /// less than a quarter. So workers that wait for as long as it takes are never shed.
    #[must_use]
    pub fn codel(mut self, codel: Option<Codel>) -> Self {
        self.codel = Some(codel);
        self
    }

    /// Keeps connections for checkouts of [`Priority::Critical`](crate::Priority::Critical), such as
    /// health checks and migrations, which so get one while everything else is in use.
    ///
    /// They are part of the limit, not beyond it. A limit of 1 is for all classes. Defaults to none.
    #[must_use]
    pub fn reserved(mut self, connections: usize) -> Self {
        self.reserved = connections;
        self
    }

    /// Sets how old a connection may get. One that is in use longer is closed when it comes back.
    ///
    /// Connections that were opened together are not closed together: one after the other, within the
    /// last third of that time, when others are idle or another has taken the place of one. Use it
    /// instead of a setting of the pool behind, which knows nothing of the dial budget. Nothing is closed
    /// in [`Mode::Recommend`]. sqlx tells no ages: there, its own `max_lifetime` has to do.
    ///
    /// Defaults to no bound.
    #[must_use]
    pub fn max_lifetime(mut self, lifetime: Duration) -> Self {
        self.max_lifetime = Some(lifetime);
        self
    }

    /// Closes as many connections as were not needed for that time, or up to half as long again: those
    /// beyond the most that were in use at once. Use it instead of a setting of the pool behind, which
    /// does nothing where connections are handed out in turn.
    ///
    /// Nothing is closed in [`Mode::Recommend`]. Defaults to keeping what is within the target, and what
    /// was needed beyond it for ten minutes.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = Some(timeout);
        self
    }

    /// Opens as many connections in advance, and again when some were closed, as far as the target
    /// goes. Use it instead of a minimum of the pool behind. Nothing is opened in [`Mode::Recommend`].
    ///
    /// Defaults to none. See [`Autotuned::prewarm`] to wait until they are open.
    #[must_use]
    pub fn keep_open(mut self, connections: usize) -> Self {
        self.keep_open = connections;
        self
    }

    /// Keeps the pool to its share of the connections that many processes have together. Several pools
    /// of one process share the same budget. Defaults to the bounds alone.
    #[cfg(feature = "fleet")]
    #[must_use]
    pub fn budget(mut self, budget: &Budget) -> Self {
        self.budget = Some(budget.clone());
        self
    }

    /// Sets the constants of the tuner. Defaults to [`TunerConfig::default`].
    #[must_use]
    pub fn tuner(mut self, config: TunerConfig) -> Self {
        self.tuner = config;
        self
    }

    /// Measures waits and uses by the processor's time stamp counter, which is read in 10 ns instead of
    /// 25.
    ///
    /// It does not follow `tokio::time::pause`, and may drift from the system's clock by up to 0.05 %.
    /// The first pool of a process that is built so takes up to 0.2 s to calibrate it. Timeouts are not
    /// measured by it. Defaults to tokio's clock.
    #[cfg(feature = "quanta")]
    #[must_use]
    pub fn counter_clock(mut self) -> Self {
        self.clock = Clock::counter();
        self
    }

    /// Writes every step of the tuner, four a second, as a line of JSON: what it was given, what it
    /// decided, and on what numbers. [`DecisionLog`](crate::tuner::DecisionLog) reads it again.
    ///
    /// Written from the task that drives the tuner: give it a file, or a channel, and nothing that
    /// waits for long. Ends with the first write that fails. Defaults to none.
    #[cfg(feature = "json")]
    #[must_use]
    pub fn decision_log(mut self, to: impl std::io::Write + Send + 'static) -> Self {
        self.log = Some(Log(Box::new(to)));
        self
    }

    /// Builds the pool, and spawns the task that drives its tuner. Opens no connection.
    ///
    /// # Errors
    ///
    /// Bounds that cannot be, or that the pool behind cannot reach; a timeout of zero; a constant
    /// of the tuner out of range; a decision log that cannot be written; no tokio runtime.
    pub fn build(self) -> Result<Autotuned<P>, BuildError> {
        let runtime = Handle::try_current().map_err(|_| BuildError::NoRuntime)?;
        check_tuner(&self.tuner)?;
        if self.name.as_deref() == Some("") {
            return Err(setting(
                "the name of the pool is empty: expected one that tells it from others in metrics",
            ));
        }
        self.pool.check().map_err(BuildError::Setting)?;
        let pool_max = self.pool.max_size();
        let bounds = self.checked_bounds(pool_max)?;
        let wait_timeout = self.checked_wait_timeout()?;
        let open_timeout = self.checked_open_timeout()?;
        let enforce = self.mode == Mode::Enforce;
        self.check_settings(bounds)?;
        let max_waiting = self.max_waiting.unwrap_or(usize::MAX);
        self.check_aging(bounds)?;

        let now = Instant::now();
        /// Enough to begin with for most services, and little to dial at once for the rest.
        const START: usize = 4;
        let start = if enforce { START } else { pool_max };
        // Nothing may be tried in recommend mode.
        let config = TunerConfig {
            experiments: self.tuner.experiments && enforce,
            ..self.tuner
        };
        let tuner = Tuner::new(config, bounds, start, now);
        let mut dial = DialBudget::new(self.tuner.dial, now);
        let size = self.pool.size();
        let limit = if enforce {
            dial.limit(now, DialState::new(0, tuner.target(), size, usize::MAX))
        } else {
            pool_max
        };
        let gate = Gate::new(
            GateConfig::new(limit)
                .max_queue(max_waiting)
                .max_wait(wait_timeout)
                .reserved(self.reserved),
        );

        let name: Arc<str> = self.name.unwrap_or_else(next_name).into();
        #[cfg(feature = "json")]
        let log = match self.log {
            None => None,
            Some(Log(to)) => {
                let opened = LogWriter::new(to, &name, config, bounds, start, now);
                Some(opened.map_err(|error| setting(format!("decision_log: {error}")))?)
            }
        };
        let stats = Stats::new(self.clock, self.tuner.slow_wait);
        let holders = Holders::new();
        let reader = WindowReader::new(&stats, &holders);
        let target = tuner.target();
        let grows = enforce && tuner.may_grow();
        let control = Control::new(tuner, dial, reader, now);
        #[cfg(feature = "json")]
        let control = control.with_log(log);
        let news = Arc::new(Notify::new());
        #[cfg(feature = "fleet")]
        let rights = Rights::new(self.budget.map(|budget| budget.join(Arc::clone(&news))));
        #[cfg(not(feature = "fleet"))]
        let rights = Rights::default();
        let shared = Arc::new(Shared {
            adapter: self.pool,
            gate,
            aging: Aging::new(self.max_lifetime, self.idle_timeout, self.keep_open),
            metrics: Metrics::new(&name, self.mode),
            mode: self.mode,
            name,
            open_timeout,
            reserves: self.reserved > 0,
            codel: self.codel.unwrap_or_else(|| Some(patient(wait_timeout))),
            target: AtomicUsize::new(target),
            allowed: AtomicUsize::new(target),
            kept: AtomicUsize::new(target),
            ceiling: AtomicUsize::new(limit),
            grows: AtomicBool::new(grows),
            urgent: AtomicBool::new(false),
            opening: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            size_seen: AtomicUsize::new(size),
            rights,
            dials: Arc::new(Semaphore::new(
                self.tuner.dial.at_once.min(Semaphore::MAX_PERMITS),
            )),
            generation: AtomicUsize::new(0),
            holders,
            news: Arc::clone(&news),
            control: Mutex::new(control),
            stats,
        });
        let driver = runtime.spawn(driver::run(Arc::downgrade(&shared), news, 0));
        shared.control().driver = Some(driver.abort_handle());
        Ok(Autotuned::from_shared(shared))
    }

    fn check_settings(&self, bounds: Bounds) -> Result<(), BuildError> {
        if self.reserved >= bounds.min().max(1) && self.reserved > 0 {
            return Err(setting(format!(
                "reserved({}) leaves no other checkout a connection at the smallest size of {}: reserve \
                 fewer, or raise the minimum",
                self.reserved,
                bounds.min()
            )));
        }
        #[cfg(feature = "fleet")]
        if self.budget.is_some() && self.mode != Mode::Enforce {
            return Err(setting(
                "a budget acts on the pool, and the mode is recommend: set the mode of the budget to \
                 recommend, and that of the pool to enforce",
            ));
        }
        Ok(())
    }

    fn checked_open_timeout(&self) -> Result<Duration, BuildError> {
        let timeout = self.open_timeout.unwrap_or(match self.mode {
            Mode::Enforce => Duration::from_secs(5),
            Mode::Recommend => Duration::MAX,
        });
        if timeout.is_zero() {
            return Err(setting("open_timeout is 0 s: expected above 0 s"));
        }
        Ok(timeout)
    }

    fn check_aging(&self, bounds: Bounds) -> Result<(), BuildError> {
        /// Four windows of the driver.
        const SHORTEST: Duration = Duration::from_secs(1);
        if self.max_lifetime.is_some() && !self.pool.knows_ages() {
            return Err(setting(
                "max_lifetime is set: the pool behind does not tell how old its connections are; use a \
                 setting of its own",
            ));
        }
        let times = [
            ("max_lifetime", self.max_lifetime),
            ("idle_timeout", self.idle_timeout),
        ];
        for (name, time) in times {
            if let Some(time) = time.filter(|&time| time < SHORTEST) {
                return Err(setting(format!(
                    "{name} is {time:?}: expected at least {SHORTEST:?}"
                )));
            }
        }
        if self.keep_open > bounds.max() {
            return Err(setting(format!(
                "keep_open is {}: above the largest size of {}",
                self.keep_open,
                bounds.max()
            )));
        }
        Ok(())
    }

    fn checked_bounds(&self, pool_max: usize) -> Result<Bounds, BuildError> {
        /// What is worth recommending without being asked.
        const RECOMMENDED_MAX: usize = 50;
        let bounds = self.bounds.clone().unwrap_or_else(|| match self.mode {
            Mode::Enforce => pool_max.min(2)..=pool_max,
            Mode::Recommend => 2..=pool_max.max(RECOMMENDED_MAX),
        });
        let bounds = Bounds::new(bounds)?;
        match self.mode {
            Mode::Enforce => Ok(bounds.within(pool_max)?),
            Mode::Recommend => Ok(bounds),
        }
    }

    fn checked_wait_timeout(&self) -> Result<Duration, BuildError> {
        let own = self.pool.wait_timeout();
        let default = match self.mode {
            Mode::Enforce => Duration::from_secs(2),
            Mode::Recommend => Duration::MAX,
        };
        let timeout = self.wait_timeout.or(own).unwrap_or(default);
        if timeout.is_zero() {
            return Err(setting(
                "wait_timeout is 0 s (the wait timeout of the pool behind, if none is set): expected above 0 s; \
                 max_waiting(0) refuses checkouts that would have to wait",
            ));
        }
        Ok(timeout)
    }
}

/// Sheds only what has waited for a good part of its patience.
fn patient(wait_timeout: Duration) -> Codel {
    const LONGEST_INTERVAL: Duration = Duration::from_secs(5);
    let target = wait_timeout / 4;
    let interval = target.saturating_mul(10).min(LONGEST_INTERVAL.max(target));
    Codel::new(target, interval)
}

fn setting(message: impl Into<String>) -> BuildError {
    BuildError::Setting(message.into())
}

fn next_name() -> String {
    static UNNAMED: AtomicUsize = AtomicUsize::new(1);
    format!("pool-{}", UNNAMED.fetch_add(1, Ordering::Relaxed))
}
