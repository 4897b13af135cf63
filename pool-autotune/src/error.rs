use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use tower_capacity::gate::{Refused, RefusedReason};

use crate::BoundsError;

/// Why a checkout failed. `E` is the error of the pool behind.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error<E> {
    /// No connection came free in time.
    Timeout(Overload),
    /// Too many checkouts wait already.
    Shed(Overload),
    /// The pool was closed.
    Closed,
    /// Opening or checking the connection failed.
    Backend(E),
    /// Opening or checking the connection took longer than this.
    OpenTimeout(Duration),
}

impl<E> Error<E> {
    pub(crate) fn refused(refused: &Refused) -> Self {
        let overload = Overload {
            waited: refused.waited(),
            limit: refused.limit(),
            in_use: refused.inflight(),
            queued: refused.queued(),
        };
        match refused.reason() {
            RefusedReason::WaitTimeout => Self::Timeout(overload),
            RefusedReason::Closed => Self::Closed,
            _ => Self::Shed(overload),
        }
    }

    /// Whether the pool is overloaded, and the same request may well succeed later: a 503 rather
    /// than a 500.
    #[must_use]
    pub fn is_overload(&self) -> bool {
        matches!(self, Self::Timeout(_) | Self::Shed(_))
    }
}

impl<E> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout(overload) => {
                write!(
                    f,
                    "no connection came free within {:.1?}: {overload}",
                    overload.waited
                )
            }
            Self::Shed(overload) => write!(f, "too many wait for a connection: {overload}"),
            Self::Closed => f.write_str("the pool is closed"),
            Self::Backend(_) => f.write_str("opening or checking a connection failed"),
            Self::OpenTimeout(limit) => {
                write!(
                    f,
                    "opening or checking a connection took longer than {limit:.1?}"
                )
            }
        }
    }
}

impl<E: StdError + 'static> StdError for Error<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Backend(error) => Some(error),
            _ => None,
        }
    }
}

/// The state of the pool when it refused a checkout.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Overload {
    waited: Duration,
    limit: usize,
    in_use: usize,
    queued: usize,
}

impl Overload {
    /// How long the checkout waited.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Connections allowed out.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Connections out.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// Checkouts that waited.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queued
    }
}

impl fmt::Display for Overload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} in use, {} waiting",
            self.in_use, self.limit, self.queued
        )
    }
}

/// Why an [`Autotuned`](crate::Autotuned) pool could not be built.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum BuildError {
    /// The bounds cannot be.
    Bounds(BoundsError),
    /// A time of zero, or a number that makes no sense; the message names it.
    Setting(String),
    /// It was built outside a tokio runtime, and its tuner runs as a task.
    NoRuntime,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bounds(error) => error.fmt(f),
            Self::Setting(message) => f.write_str(message),
            Self::NoRuntime => f.write_str("a pool has to be built within a tokio runtime"),
        }
    }
}

impl StdError for BuildError {}

impl From<BoundsError> for BuildError {
    fn from(error: BoundsError) -> Self {
        Self::Bounds(error)
    }
}
