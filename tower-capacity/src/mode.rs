//! What a limiter's decisions are for, and what of a limiter can be changed while it runs.

use std::{
    fmt,
    ops::RangeInclusive,
    sync::atomic::{AtomicU8, Ordering::Relaxed},
    time::Duration,
};

use crate::gate::{Codel, GateConfig};

/// Whether the layers around a limiter act on its decisions.
///
/// Set with [`Limiter::set_mode`](crate::Limiter::set_mode), at any time: a roll-out goes from
/// `Shadow` to `Enforce` and back without a deployment. In every mode a limiter that
/// [drains](crate::Limiter::drain) refuses new requests and waits for those inside, since draining
/// is an order and not an estimate.
///
/// The methods of [`Limiter`](crate::Limiter) return what was decided, whatever the mode is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// Requests wait or are refused as decided.
    #[default]
    Enforce,
    /// Every request is served at once. What would have waited has its place in the waiting room
    /// until it would have been admitted or refused, and what would have been refused is counted
    /// as refused and not as inside, so that each decision is the one that `Enforce` would take.
    ///
    /// The service times are those of a service that is given everything, and so is what the
    /// control law learns: during an overload it finds a lower limit than it would if it were
    /// obeyed.
    Shadow,
    /// Every request is served, and none counted, as if there were no layer.
    Off,
}

impl Mode {
    #[cfg(any(feature = "metrics", feature = "otel"))]
    pub(crate) const ALL: [Self; 3] = [Self::Enforce, Self::Shadow, Self::Off];

    /// The mode as it stands in metrics and settings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Shadow => "shadow",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A mode that many threads read and few change.
#[derive(Debug)]
pub(crate) struct AtomicMode(AtomicU8);

impl AtomicMode {
    pub(crate) const fn new(mode: Mode) -> Self {
        Self(AtomicU8::new(mode as u8))
    }

    #[inline]
    pub(crate) fn load(&self) -> Mode {
        match self.0.load(Relaxed) {
            0 => Mode::Enforce,
            1 => Mode::Shadow,
            _ => Mode::Off,
        }
    }

    pub(crate) fn store(&self, mode: Mode) {
        self.0.store(mode as u8, Relaxed);
    }
}

/// What can be changed about a limiter while it runs, as a value: for a service that reads its
/// configuration again.
///
/// [`Limiter::reconfigure`](crate::Limiter::reconfigure) applies it at once, and
/// [`LimiterBuilder::settings`](crate::LimiterBuilder::settings) starts with it. The control law
/// and the shares of partitions are not part of it: what they hold was learned or is in use.
///
/// It is text, too, for configuration files (feature `serde`) and the environment:
/// `limit 4..=200, queue 50, wait 250ms, mode shadow`.
///
/// ```
/// use std::time::Duration;
/// use tower_capacity::{Limiter, LimiterSettings, Mode};
///
/// let limiter = Limiter::builder().settings(LimiterSettings::new().mode(Mode::Shadow)).build()?;
/// // Later, when the configuration has been read again:
/// let settings = LimiterSettings::new()
///     .bounds(4..=200)
///     .max_wait(Duration::from_millis(250));
/// limiter.reconfigure(settings)?;
/// assert_eq!(limiter.mode(), Mode::Enforce);
/// assert_eq!(limiter.snapshot().bounds(), 4..=200);
/// # Ok::<(), tower_capacity::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct LimiterSettings {
    pub(crate) bounds: RangeInclusive<usize>,
    pub(crate) max_queue: Option<usize>,
    pub(crate) max_wait: Duration,
    pub(crate) codel: Option<Codel>,
    pub(crate) mode: Mode,
}

impl LimiterSettings {
    /// Wide enough for one process, and low enough that a runaway law cannot exhaust its memory.
    const DEFAULT_BOUNDS: RangeInclusive<usize> = 1..=16_384;

    /// Starts from the defaults.
    pub const fn new() -> Self {
        Self {
            bounds: Self::DEFAULT_BOUNDS,
            max_queue: None,
            max_wait: GateConfig::DEFAULT_MAX_WAIT,
            codel: Some(Codel::REQUESTS),
            mode: Mode::Enforce,
        }
    }

    /// Sets the least and the greatest limit. Defaults to 1 and 16,384.
    pub const fn bounds(mut self, bounds: RangeInclusive<usize>) -> Self {
        self.bounds = bounds;
        self
    }

    /// Sets how many requests may wait; zero sheds at once, `None` is as many as the limit in
    /// force, and eight at least. Defaults to `None`.
    pub const fn max_queue(mut self, requests: Option<usize>) -> Self {
        self.max_queue = requests;
        self
    }

    /// Sets how long a request waits at most. Defaults to one second.
    pub const fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = wait;
        self
    }

    /// Sets when the waiting room has stopped absorbing bursts, see
    /// [`LimiterBuilder::codel`](crate::LimiterBuilder::codel). Defaults to [`Codel::REQUESTS`], which
    /// follows the service time.
    pub const fn codel(mut self, codel: Option<Codel>) -> Self {
        self.codel = codel;
        self
    }

    /// Sets whether the layers act on what is decided. Defaults to [`Mode::Enforce`].
    pub const fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }
}

impl Default for LimiterSettings {
    fn default() -> Self {
        Self::new()
    }
}
