//! Policies as the account script takes them.

use super::{
    account::Sizing,
    backend::Settings,
    level::Level,
    script::{Term, Terms},
};
use crate::{
    BuildError,
    key::Seed,
    rules::{Rule, Ruleset},
};

/// Compiles the policies for Redis.
pub(super) fn compile(
    rules: &Ruleset,
    all: &[Ruleset],
    settings: &Settings,
) -> Result<Terms, BuildError> {
    let mut terms: Vec<Term> = Vec::with_capacity(rules.rules().len());
    for rule in rules.rules() {
        let policy = &rule.policy;
        let quota = policy.quota();
        let level = Level::new(&quota).map_err(|error| BuildError::Quota {
            policy: policy.shared_name(),
            error,
        })?;
        // The same on all nodes, of any build.
        let id = Seed::Fleet(0, 0).hash_one(policy.name()) as u32;
        if terms.iter().any(|term| term.id == id) {
            return Err(BuildError::DuplicateName(policy.shared_name()));
        }
        let (leasable, reserved) = leasable(rule, all, settings);
        terms.push(Term {
            id,
            level: held_back(level, reserved, settings),
            burst: quota.burst_size(),
            leasable,
            reserved,
            cells: 0,
            shadow: policy.is_shadow(),
            on_outage: policy.outage(),
        });
    }
    Ok(terms.into())
}

/// How many cells of `rule` all nodes may lease by its plan, and by all plans. Each plan leases for
/// itself, so the plans that have the policy divide what the smallest of their bursts allows.
fn leasable(rule: &Rule, all: &[Ruleset], settings: &Settings) -> (u64, u64) {
    if settings.lease.most() == 0 {
        return (0, 0);
    }
    let same = || {
        let rules = all.iter().flat_map(Ruleset::rules);
        rules.filter(|other| other.column == rule.column)
    };
    let sizing = Sizing {
        most: settings.lease.most(),
        planned: settings.planned,
        nodes: settings.planned,
    };
    let bursts = same().map(|rule| rule.policy.quota().burst_size());
    let together = sizing.of_fleet(bursts.min().unwrap_or(0));
    (together / same().count().max(1) as u64, together)
}

/// The quota as Redis enforces it, less what the fleet may lease if windows are strict.
pub(super) fn held_back(level: Level, reserved: u64, settings: &Settings) -> Level {
    if settings.strict_windows {
        level.reserving(reserved)
    } else {
        level
    }
}
