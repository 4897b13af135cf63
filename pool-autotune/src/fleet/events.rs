//! What a budget reports through `tracing`.

use super::BudgetError;
use super::knee::Sums;

#[cfg(feature = "tracing")]
pub(super) fn granted(tag: &str, old: u32, new: u32, members: usize, total: usize) {
    tracing::debug!(
        tag,
        old,
        new,
        members,
        total,
        "the fleet's budget grants {new} connections"
    );
}

#[cfg(not(feature = "tracing"))]
pub(super) fn granted(_tag: &str, _old: u32, _new: u32, _members: usize, _total: usize) {}

#[cfg(feature = "tracing")]
pub(super) fn failed(tag: &str, error: &BudgetError) {
    tracing::warn!(tag, kind = error.as_str(), "{error}");
}

#[cfg(not(feature = "tracing"))]
pub(super) fn failed(_tag: &str, error: &BudgetError) {
    let _ = error.as_str();
}

#[cfg(feature = "tracing")]
pub(super) fn recovered(tag: &str) {
    tracing::info!(tag, "the fleet's budget is in order again");
}

#[cfg(not(feature = "tracing"))]
pub(super) fn recovered(_tag: &str) {}

/// How many processes fit, at the start.
#[cfg(feature = "tracing")]
pub(super) fn joined(tag: &str, total: usize, floor: usize) {
    let processes = total / floor.max(1);
    tracing::info!(
        tag,
        total,
        floor,
        "{processes} such processes fit at their floors"
    );
}

#[cfg(not(feature = "tracing"))]
pub(super) fn joined(_tag: &str, _total: usize, _floor: usize) {}

#[cfg(feature = "tracing")]
pub(super) fn fixed(total: usize, processes: usize, share: usize) {
    tracing::info!(total, share, "{processes} processes fit");
}

#[cfg(not(feature = "tracing"))]
pub(super) fn fixed(_total: usize, _processes: usize, _share: usize) {}

/// That no Postgres is asked, once for each connection to the store.
#[cfg(all(feature = "fleet-redis", feature = "tracing"))]
pub(super) fn uncounted(tag: &str) {
    tracing::warn!(
        tag,
        "no Postgres counts the sessions of this budget: those of a process that is stopped, or that \
         keeps its sessions when it is killed, may exceed the total"
    );
}

#[cfg(all(feature = "fleet-redis", not(feature = "tracing")))]
pub(super) fn uncounted(_tag: &str) {}

/// That the sessions of a process that does not beat were ended.
#[cfg(feature = "tracing")]
pub(super) fn reaped(tag: &str, sessions: i32) {
    tracing::warn!(
        tag,
        sessions,
        "ended {sessions} sessions of processes that do not beat"
    );
}

#[cfg(not(feature = "tracing"))]
pub(super) fn reaped(_tag: &str, _sessions: i32) {}

/// That the server does not refuse what exceeds the budget.
#[cfg(feature = "tracing")]
pub(super) fn unfenced(tag: &str, is_superuser: bool) {
    let why = match is_superuser {
        true => "a superuser is bound by no limit",
        false => "the role has none: `ALTER ROLE .. CONNECTION LIMIT ..`",
    };
    tracing::info!(
        tag,
        "no limit of the role fences the budget in, should a frozen machine exceed it: {why}"
    );
}

#[cfg(not(feature = "tracing"))]
pub(super) fn unfenced(_tag: &str, _is_superuser: bool) {}

/// That the fleet found another knee, and from what.
#[cfg(feature = "tracing")]
pub(super) fn knee(tag: &str, old: i64, new: i64, sums: &Sums) {
    if old == new {
        return;
    }
    let (elasticity, error) = sums.elasticity().unwrap_or((f64::NAN, f64::NAN));
    tracing::info!(
        tag,
        old,
        new,
        elasticity,
        error,
        returned_high = sums.high.0,
        returned_low = sums.low.0,
        "the database makes use of {new} connections of the fleet (0: not known)"
    );
}

#[cfg(not(feature = "tracing"))]
pub(super) fn knee(_tag: &str, _old: i64, _new: i64, sums: &Sums) {
    let _ = sums.elasticity();
}
