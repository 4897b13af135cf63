//! The metrics of a budget, behind the feature `metrics`. They have no label of their own: a process has
//! one budget.

use std::time::Duration;

use super::BudgetError;
use super::budget::Demand;
use super::store::Reply;

/// Processes that share the total.
pub const MEMBERS: &str = "pool_autotune_fleet_members";
/// Connections that all of them may have.
pub const TOTAL: &str = "pool_autotune_fleet_total";
/// Connections that the database makes use of, as far as the fleet knows; the total where it does not.
pub const KNEE: &str = "pool_autotune_fleet_knee";
/// Connections that this process may have.
pub const GRANTED: &str = "pool_autotune_fleet_granted";
/// Connections that this process has open.
pub const OPEN: &str = "pool_autotune_fleet_open";
/// Connections that this process uses or waits for.
pub const NEED: &str = "pool_autotune_fleet_need";
/// Beats that were granted no more than the floor, while more was wanted.
pub const FLOOR_HITS: &str = "pool_autotune_fleet_floor_hits_total";
/// Beats that failed, by `reason`.
pub const STORE_ERRORS: &str = "pool_autotune_fleet_store_errors_total";
/// Seconds from one grant to the next, when it came.
pub const LEASE_AGE: &str = "pool_autotune_fleet_lease_age_seconds";

#[cfg(feature = "metrics")]
mod on {
    use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

    use super::*;

    fn describe() {
        describe_gauge!(MEMBERS, Unit::Count, "processes that share the total");
        describe_gauge!(
            TOTAL,
            Unit::Count,
            "connections that all processes may have"
        );
        describe_gauge!(
            KNEE,
            Unit::Count,
            "connections that the database makes use of"
        );
        describe_gauge!(
            GRANTED,
            Unit::Count,
            "connections that this process may have"
        );
        describe_gauge!(OPEN, Unit::Count, "connections that this process has open");
        describe_gauge!(
            NEED,
            Unit::Count,
            "connections that this process uses or waits for"
        );
        describe_gauge!(LEASE_AGE, Unit::Seconds, "time from one grant to the next");
        describe_counter!(
            FLOOR_HITS,
            Unit::Count,
            "beats that were granted no more than the floor, while more was wanted"
        );
        describe_counter!(STORE_ERRORS, Unit::Count, "beats that failed");
    }

    pub(in super::super) fn beat(reply: &Reply, demand: &Demand, age: Option<Duration>) {
        if age.is_none() {
            describe();
        }
        gauge!(MEMBERS).set(reply.members as f64);
        gauge!(TOTAL).set(reply.total as f64);
        let knee = reply.knee.cap(reply.now).unwrap_or(reply.total);
        gauge!(KNEE).set(knee as f64);
        gauge!(GRANTED).set(f64::from(reply.grant));
        gauge!(OPEN).set(demand.open as f64);
        gauge!(NEED).set(demand.need as f64);
        gauge!(LEASE_AGE).set(age.unwrap_or_default().as_secs_f64());
        if reply.grant as usize <= demand.floor && demand.want > demand.floor {
            counter!(FLOOR_HITS).increment(1);
        }
    }

    pub(in super::super) fn store_error(error: &BudgetError) {
        counter!(STORE_ERRORS, "reason" => error.as_str()).increment(1);
    }
}

#[cfg(feature = "metrics")]
pub(super) use self::on::{beat, store_error};

#[cfg(not(feature = "metrics"))]
pub(super) fn beat(_reply: &Reply, _demand: &Demand, _age: Option<Duration>) {}

#[cfg(not(feature = "metrics"))]
pub(super) fn store_error(_error: &BudgetError) {}
