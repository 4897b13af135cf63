use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

/// What is the matter with a pool, and so what an operator can do about it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Verdict {
    /// Nothing: the pool meets its demand.
    Healthy,
    /// It is saturated, and larger sizes are being opened or tried.
    Underprovisioned,
    /// The database serves no more with more connections. Add capacity to the database, or send it
    /// less: shed requests before they line up here.
    AtKnee(Cause),
    /// More connections would help, and the bounds, or the share of a fleet's budget, do not allow them.
    BudgetBound,
    /// The floors of all processes that share a budget exceed it. Have fewer, raise the total, or put a
    /// pooler in between.
    BudgetTooSmall {
        /// Processes that share it.
        members: usize,
        /// What their floors add up to.
        floors: usize,
        /// What there is to share.
        total: usize,
    },
    /// The budget of the fleet gives no rights, for this reason: no connection is opened.
    BudgetLost(Arc<str>),
    /// Each connection could serve many tasks at once, the pool hands each to one, and none is held
    /// for as long as a command that blocks: share this many instead, without a pool. Measured with
    /// Redis 7 on two cores: 71,000 commands a second over 8 exclusive connections, the best number
    /// of them, and 362,000 over one shared.
    UseMultiplexed {
        /// Connections to share.
        n: usize,
    },
    /// Connections are wanted and allowed, and have not opened for five seconds, or there is none and
    /// the last dial failed.
    ConnectBound,
    /// A connection was not given back for far longer than is usual, and nothing else is the matter.
    Leaking(Leak),
    /// Every connection was held by a task that waits for another one, and none came back since: they
    /// can only wait until they time out. Take both at once, or fewer, or raise the minimum.
    NestedAcquire(NestedAcquire),
}

impl Verdict {
    /// Every [name](Self::as_str) there is.
    #[cfg(any(feature = "metrics", feature = "otel"))]
    pub(crate) const NAMES: [&str; 10] = [
        "healthy",
        "underprovisioned",
        "at_knee",
        "budget_bound",
        "budget_too_small",
        "budget_lost",
        "use_multiplexed",
        "connect_bound",
        "leaking",
        "nested_acquire",
    ];

    /// The verdict as it stands in metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Underprovisioned => "underprovisioned",
            Self::AtKnee(_) => "at_knee",
            Self::BudgetBound => "budget_bound",
            Self::BudgetTooSmall { .. } => "budget_too_small",
            Self::BudgetLost(_) => "budget_lost",
            Self::UseMultiplexed { .. } => "use_multiplexed",
            Self::ConnectBound => "connect_bound",
            Self::Leaking(_) => "leaking",
            Self::NestedAcquire(_) => "nested_acquire",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Healthy => f.write_str("healthy"),
            Self::Underprovisioned => f.write_str("underprovisioned: larger sizes are being tried"),
            Self::AtKnee(cause) => write!(
                f,
                "at the knee of the database ({cause}): more connections do not help, send it less or \
                 make it faster"
            ),
            Self::BudgetBound => f.write_str(
                "bound by its maximum, or by its share of the fleet's budget: more connections would help, \
                 raise it if the server has them",
            ),
            Self::BudgetTooSmall {
                members,
                floors,
                total,
            } => write!(
                f,
                "the budget is too small: {members} processes need {floors} connections at least, and \
                 there are {total}"
            ),
            Self::BudgetLost(reason) => write!(f, "no rights from the fleet's budget: {reason}"),
            Self::UseMultiplexed { n } => write!(
                f,
                "multiplexed connections used one task at a time: share {n} instead"
            ),
            Self::ConnectBound => f.write_str(
                "bound by connecting: new connections do not open, look at the server and the network",
            ),
            Self::Leaking(leak) => write!(
                f,
                "held far longer than usual: {leak}; a leak, or work for a pool of its own"
            ),
            Self::NestedAcquire(nested) => write!(f, "nested checkouts: {nested}"),
        }
    }
}

/// Why the database does no more at its knee.
///
/// Whether it is the application is told by its tokio runtime: where nine tenths of its workers were
/// busy, a connection that is given to a task waits there until the task is run. Otherwise told apart
/// by a canary that needs no connection of its own: a growth on trial dials, and dialling takes CPU.
/// Where dialling was slow too the database's processors are busy; where it was not, its connections
/// wait for one another.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Cause {
    /// Its processors (or disks) are busy.
    Cpu,
    /// Its connections wait for one another: a hot row, a lock, a latch.
    Lock,
    /// The application: it has no time for the connections that it holds. Do its work elsewhere than
    /// between checkout and return, or give it more processors.
    AppHold,
    /// The trial opened no connection, so there is no telling.
    Unknown,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Lock => "lock",
            Self::AppHold => "app_hold",
            Self::Unknown => "unknown cause",
        })
    }
}

/// A connection that was not given back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Leak {
    pub(crate) call_site: &'static Location<'static>,
    pub(crate) held_for: Duration,
    pub(crate) count: usize,
}

impl Leak {
    /// Where it was checked out.
    #[must_use]
    pub fn call_site(&self) -> &'static Location<'static> {
        self.call_site
    }

    /// How long it has been out, the longest if there are several.
    #[must_use]
    pub fn held_for(&self) -> Duration {
        self.held_for
    }

    /// How many from this call site have been out too long.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            call_site,
            held_for,
            count,
        } = self;
        write!(
            f,
            "{count} checked out at {call_site} and not back after {held_for:.0?}"
        )
    }
}

/// Tasks that hold a connection and wait for another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NestedAcquire {
    pub(crate) holds: &'static Location<'static>,
    pub(crate) asks: &'static Location<'static>,
}

impl NestedAcquire {
    /// Where the connection that one of them holds was checked out.
    #[must_use]
    pub fn holds(&self) -> &'static Location<'static> {
        self.holds
    }

    /// Where it asks for another.
    #[must_use]
    pub fn asks(&self) -> &'static Location<'static> {
        self.asks
    }
}

impl fmt::Display for NestedAcquire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a task holds one from {} and waits for another at {}",
            self.holds, self.asks
        )
    }
}
