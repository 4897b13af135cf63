//! What is sent to Redis and what it returns.

use std::sync::Arc;

use redis::{Cmd, Value};

use super::{
    level::{EXACT, Level},
    outage::OnOutage,
};
use crate::MAX_POLICIES;

/// The accounts of a key, see the comment on its first lines.
pub(super) const ACCOUNT: &str = include_str!("account.lua");

/// The nodes of the fleet.
pub(super) const NODES: &str = include_str!("nodes.lua");

/// A policy, and what a request costs by it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Term {
    /// The policy's name, hashed.
    pub(crate) id: u32,
    pub(crate) level: Level,
    /// The burst of the quota, of which the level may hold some back.
    pub(crate) burst: u64,
    /// How many cells all nodes together may lease by this plan, and by all plans that have the
    /// policy.
    pub(crate) leasable: u64,
    pub(crate) reserved: u64,
    pub(crate) cells: u64,
    pub(crate) shadow: bool,
    pub(crate) on_outage: OnOutage,
}

/// The policies of a plan as they are sent to Redis.
pub(crate) type Terms = Arc<[Term]>;

/// What to do with an account.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Action {
    /// Grant as many of `n` requests as fit, or none if fewer than `least` would.
    Take { n: u64, least: u64 },
    /// Charge the cells whether they fit or not, up to two bursts.
    Charge,
    /// Give the cells back.
    Refund,
    /// Charge what `cells` says as a level, at most one burst, up to two bursts.
    Owe,
    /// Owe what `cells` says as a level at least.
    Raise,
    /// Change nothing.
    Peek,
}

/// Where the account of a key is. All that is decided together is in one place, so it needs no
/// hash tag; it has one so that its slot does not depend on the limiter's name.
pub(super) fn key(name: &str, key: u64) -> String {
    format!("{name}:{{{key:016x}}}")
}

/// The command that does it, for a script of this digest.
pub(super) fn command(digest: &str, key: &str, action: Action, terms: &[Term]) -> Cmd {
    let (mode, n, least) = match action {
        Action::Take { n, least } => ("take", n, least),
        Action::Charge => ("charge", 0, 2),
        Action::Owe => ("owe", 0, 2),
        Action::Refund => ("refund", 0, 0),
        Action::Raise => ("raise", 0, 0),
        Action::Peek => ("peek", 0, 0),
    };
    let mut command = Cmd::with_capacity(7 + 6 * terms.len(), 96 + 64 * terms.len());
    command.arg("EVALSHA").arg(digest).arg(1).arg(key);
    command.arg(mode).arg(n).arg(least);
    for term in terms {
        let Level {
            price,
            drain,
            capacity,
        } = term.level;
        // More than fits a double exactly is more than any burst.
        let most = match action {
            Action::Owe | Action::Raise => capacity,
            _ => EXACT,
        };
        let cells = term.cells.min(most);
        command.arg(term.id).arg(price).arg(drain).arg(capacity);
        command.arg(cells).arg(u8::from(term.shadow));
    }
    command
}

/// What the account script returns.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Reply {
    /// How many requests were granted.
    pub(crate) granted: u64,
    /// The level of each policy after the call.
    pub(crate) levels: [u64; MAX_POLICIES],
    /// For how many of the granted requests each policy was charged: all of them, unless it is in
    /// shadow mode.
    pub(crate) charged: [u64; MAX_POLICIES],
}

impl Reply {
    /// Reads a reply for `policies` policies; `None` if it is invalid.
    pub(super) fn read(value: &Value, policies: usize) -> Option<Self> {
        let Value::Array(values) = value else {
            return None;
        };
        let mut numbers = values.iter().map(|value| match value {
            &Value::Int(number) => u64::try_from(number).ok(),
            _ => None,
        });
        let mut reply = Self {
            granted: numbers.next()??,
            levels: [0; MAX_POLICIES],
            charged: [0; MAX_POLICIES],
        };
        for index in 0..policies {
            reply.levels[index] = numbers.next()??;
            reply.charged[index] = numbers.next()??;
        }
        Some(reply)
    }
}
