use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::BuildError;
use crate::sync::lock;

/// A pool that is watched from the side, and recommended a size.
///
/// The pool itself stays where it is: pass a clone of it. Four times a second its connections are
/// counted, nothing is checked out, and no query waits. For a first look at a service, and for pools that
/// a library takes by value and so cannot be tuned, such as those of Sea-orm.
///
/// Counts say less than an [`Autotuned`](crate::Autotuned) pool in
/// [`Mode::Recommend`](crate::Mode::Recommend), which measures each checkout:
///
/// - waits and use times are not seen (only deadpool counts the checkouts that wait);
/// - a burst between two counts is not seen;
/// - of a pool that is fully in use it is not seen how many connections it lacks, nor whether the
///   database would make use of more: [`wanted`](Observation::wanted) is `None` then.
///
/// ```no_run
/// # use sqlx_0_9 as sqlx;
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = sqlx::PgPool::connect_lazy("postgres:///orders")?;
/// let observed = pool_autotune::Observed::new(pool.clone())?;
/// // Later, in a handler for operators:
/// println!("{}", observed.report());
/// # Ok(())
/// # }
/// ```
///
/// Cloning is cheap and gives another handle; with the last one, the counting ends.
#[derive(Clone)]
pub struct Observed {
    shared: Arc<Shared>,
}

/// A pool that lets its connections be counted: those of deadpool, bb8 and sqlx, behind the features of their
/// adapters.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a connection pool that pool-autotune can observe",
    note = "enable the feature of your pool: `deadpool`, `bb8`, `sqlx-0_8` or `sqlx-0_9`"
)]
pub trait Observe: Send + Sync + 'static {
    /// Counts the connections.
    fn count(&self) -> Counts;
}

/// How many connections a pool has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Counts {
    max_size: usize,
    in_use: usize,
    waiting: usize,
}

impl Counts {
    /// The most connections the pool may have, and those that are in use or being opened.
    #[must_use]
    pub const fn new(max_size: usize, in_use: usize) -> Self {
        Self {
            max_size,
            in_use,
            waiting: 0,
        }
    }

    /// Checkouts that wait, where the pool counts them. Defaults to none.
    #[must_use]
    pub const fn waiting(mut self, waiting: usize) -> Self {
        self.waiting = waiting;
        self
    }

    fn is_bound(self) -> bool {
        self.in_use >= self.max_size || self.waiting > 0
    }
}

impl Observed {
    /// Begins to count.
    ///
    /// # Errors
    ///
    /// Fails outside of a tokio runtime.
    pub fn new(pool: impl Observe) -> Result<Self, BuildError> {
        let runtime = Handle::try_current().map_err(|_| BuildError::NoRuntime)?;
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            pool: Box::new(pool),
        });
        runtime.spawn(keep_counting(Arc::downgrade(&shared)));
        Ok(Self { shared })
    }

    /// Counts once more now, beside the regular counts.
    pub fn sample(&self) {
        self.shared.sample();
    }

    /// What was counted in the last five minutes, and which size would have done.
    #[must_use]
    pub fn report(&self) -> Observation {
        let max_size = self.shared.pool.count().max_size;
        let mut seen = self.shared.seen();
        seen.forget(Instant::now());
        let all = seen.parts.iter().copied().reduce(Part::and);
        Observation {
            max_size,
            seen: all.unwrap_or_else(|| Part::new(Instant::now())),
        }
    }
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed")
            .field("seen", &self.shared.seen())
            .finish_non_exhaustive()
    }
}

/// What an [`Observed`] pool did in the last five minutes.
///
/// Its [`Display`](fmt::Display) is a paragraph for an operator.
#[derive(Clone, Debug)]
pub struct Observation {
    max_size: usize,
    seen: Part,
}

impl Observation {
    /// The most connections the pool may have.
    #[must_use]
    pub fn max_size(&self) -> usize {
        self.max_size
    }

    /// The most connections that were in use at one count.
    #[must_use]
    pub fn peak(&self) -> usize {
        self.seen.peak
    }

    /// Connections in use on average.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.seen.in_use as f64 / f64::from(self.seen.samples.max(1))
    }

    /// The share of counts at which all connections were in use, or checkouts waited.
    #[must_use]
    pub fn bound_share(&self) -> f64 {
        f64::from(self.seen.bound) / f64::from(self.seen.samples.max(1))
    }

    /// Whether the pool is at its maximum in at least one count of a hundred.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        self.seen.bound > 0 && self.bound_share() >= BOUND
    }

    /// The size that would have done: the peak, or the mean and [its usual spread](crate::tuner) where that
    /// is more. `None` if the pool [is bound](Self::is_bound), since counts do not tell what it lacks, and
    /// before the first count.
    #[must_use]
    pub fn wanted(&self) -> Option<usize> {
        if self.is_bound() || self.seen.samples == 0 {
            return None;
        }
        let mean = self.mean();
        let staffed = (mean + SPREAD * mean.sqrt()).ceil() as usize;
        Some(staffed.max(self.peak()).clamp(1, self.max_size.max(1)))
    }
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { max_size, seen } = self;
        if seen.samples == 0 {
            return f.write_str("nothing was counted yet");
        }
        if self.is_bound() {
            write!(
                f,
                "all {max_size} connections were in use at {:.0} % of {} counts: the pool is too small, or its \
                 connections are held for too long. Counts do not tell which; a tuned pool in recommend mode \
                 does",
                100.0 * self.bound_share(),
                seen.samples
            )
        } else {
            write!(
                f,
                "at most {} of {max_size} connections were in use, {:.1} on average of {} counts: {} would do. \
                 Bursts between two counts, waits and use times are not seen",
                seen.peak,
                self.mean(),
                seen.samples,
                self.wanted().unwrap_or(*max_size)
            )
        }
    }
}

struct Shared {
    seen: Mutex<Seen>,
    pool: Box<dyn Observe>,
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    fn sample(&self) {
        let counts = self.pool.count();
        self.seen().add(Instant::now(), counts);
    }
}

/// The last five minutes, in parts that are forgotten one by one.
#[derive(Debug, Default)]
struct Seen {
    parts: VecDeque<Part>,
}

impl Seen {
    fn add(&mut self, now: Instant, counts: Counts) {
        self.forget(now);
        let is_over = |part: &Part| now.duration_since(part.since) >= PART;
        if self.parts.back().is_none_or(is_over) {
            self.parts.push_back(Part::new(now));
        }
        if let Some(part) = self.parts.back_mut() {
            part.samples += 1;
            part.in_use += counts.in_use;
            part.peak = part.peak.max(counts.in_use);
            part.bound += u32::from(counts.is_bound());
        }
    }

    fn forget(&mut self, now: Instant) {
        let is_old = |part: &Part| now.duration_since(part.since) >= REMEMBERED;
        while self.parts.front().is_some_and(is_old) {
            self.parts.pop_front();
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Part {
    since: Instant,
    samples: u32,
    in_use: usize,
    peak: usize,
    bound: u32,
}

impl Part {
    const fn new(since: Instant) -> Self {
        Self {
            since,
            samples: 0,
            in_use: 0,
            peak: 0,
            bound: 0,
        }
    }

    fn and(self, later: Self) -> Self {
        Self {
            since: self.since,
            samples: self.samples + later.samples,
            in_use: self.in_use + later.in_use,
            peak: self.peak.max(later.peak),
            bound: self.bound + later.bound,
        }
    }
}

async fn keep_counting(shared: Weak<Shared>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match shared.upgrade() {
            Some(shared) => shared.sample(),
            None => return,
        }
    }
}

/// Short against the minutes that are reported; a count takes microseconds.
const PERIOD: Duration = Duration::from_millis(250);

const REMEMBERED: Duration = Duration::from_secs(300);

const PART: Duration = Duration::from_secs(30);

/// Below this share of counts a full pool is a burst that it absorbed.
const BOUND: f64 = 0.01;

/// Of square-root staffing, as in [`crate::tuner`]: the share of checkouts that wait stays at a few percent.
const SPREAD: f64 = 1.3;

#[cfg(feature = "deadpool")]
impl<M, W> Observe for deadpool::managed::Pool<M, W>
where
    M: deadpool::managed::Manager + 'static,
    M::Type: Send,
    W: From<deadpool::managed::Object<M>> + Send + 'static,
{
    fn count(&self) -> Counts {
        // `status` counts those that are being opened as idle.
        let mut idle = 0;
        self.retain(|_, _| {
            idle += 1;
            true
        });
        let status = self.status();
        let in_use = status.size.saturating_sub(idle);
        Counts::new(status.max_size, in_use).waiting(status.waiting)
    }
}

#[cfg(feature = "bb8")]
impl<M: bb8::ManageConnection> Observe for bb8::Pool<M> {
    fn count(&self) -> Counts {
        let state = self.state();
        let in_use = state.connections.saturating_sub(state.idle_connections);
        Counts::new(self.config().max_size as usize, in_use as usize)
    }
}

/// sqlx counts what is being opened as existing, and for a moment fewer than no idle connections.
#[cfg(any(feature = "sqlx-0_8", feature = "sqlx-0_9"))]
fn of_sqlx(max_size: u32, size: u32, idle: usize) -> Counts {
    let idle = if idle > max_size as usize { 0 } else { idle };
    Counts::new(max_size as usize, (size as usize).saturating_sub(idle))
}

#[cfg(feature = "sqlx-0_8")]
impl<DB: sqlx_0_8::Database> Observe for sqlx_0_8::Pool<DB> {
    fn count(&self) -> Counts {
        let max_size = self.options().get_max_connections();
        of_sqlx(max_size, self.size(), self.num_idle())
    }
}

#[cfg(feature = "sqlx-0_9")]
impl<DB: sqlx_0_9::Database> Observe for sqlx_0_9::Pool<DB> {
    fn count(&self) -> Counts {
        let max_size = self.options().get_max_connections();
        of_sqlx(max_size, self.size(), self.num_idle())
    }
}
