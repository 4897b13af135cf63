//! What a limiter tells an observer.

use std::{fmt, time::Duration};

use crate::change::LimitChange;

/// Something that a limiter did, for [`LimiterBuilder::on_event`](crate::LimiterBuilder::on_event).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LimiterEvent {
    /// The limit moved.
    Limit(Box<LimitChange>),
    /// The first request is shed after at least a second without.
    SheddingBegan,
    /// No request was shed for a second.
    SheddingEnded {
        /// From the first refusal to the request that showed that it is over.
        lasted: Duration,
    },
    /// The control law panicked. The limit stays as it is until the next window.
    LawPanicked {
        /// The name of the law.
        law: &'static str,
    },
}

impl fmt::Display for LimiterEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(change) => change.fmt(f),
            Self::SheddingBegan => f.write_str("overloaded: shedding starts"),
            Self::SheddingEnded { lasted } => {
                write!(
                    f,
                    "no longer overloaded: shedding is over after {lasted:.1?}"
                )
            }
            Self::LawPanicked { law } => {
                write!(f, "the control law {law} panicked: the limit stays")
            }
        }
    }
}

/// Called with each event, under no lock.
pub(crate) type Observer = dyn Fn(&LimiterEvent) + Send + Sync;
