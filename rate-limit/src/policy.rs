//! A named quota, and several of them decided together.

use std::{fmt, sync::Arc, sync::atomic::Ordering};

use governor::{RateLimiter, middleware::NoOpMiddleware};

use crate::{
    Quota, QuotaError,
    answer::Problem,
    clock::Clock,
    gcra::{Excess, Gcra},
    metrics::Meter,
    store::{Probe, Slot, StandingClock, Store, Table, Tick},
};

/// A quota with a name: the name goes into metrics, events and answers, never the key.
///
/// ```
/// use rate_limit::{DAY, Limiter, Policy, Quota, SECOND};
///
/// let limiter = Limiter::builder()
///     .policy(Policy::new("burst", Quota::count(10).per(SECOND)))
///     .policy(Policy::new("daily", Quota::count(50_000).per(DAY)))
///     .build()?;
/// # Ok::<(), rate_limit::BuildError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Policy {
    name: Arc<str>,
    quota: Quota,
    shadow: bool,
}

impl Policy {
    /// A policy that enforces `quota` under `name`.
    ///
    /// The name must be 1 to 64 printable ASCII characters without `"` and `\`, so that it can
    /// stand in a header and a metric label as it is; building the limiter checks that.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, quota: Quota) -> Self {
        Self {
            name: name.into(),
            quota,
            shadow: false,
        }
    }

    /// Only counts and reports what the policy would limit, and lets it through.
    ///
    /// Defaults to `false`.
    #[must_use]
    pub fn shadow(mut self, shadow: bool) -> Self {
        self.shadow = shadow;
        self
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The quota.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// Whether the policy only reports.
    #[must_use]
    pub fn is_shadow(&self) -> bool {
        self.shadow
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }
}

/// Policies that cannot be enforced as they are.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum BuildError {
    /// No policy was given.
    NoPolicy,
    /// More policies were given than can be decided together.
    TooManyPolicies {
        /// How many were given; at most [`MAX_POLICIES`] can be.
        count: usize,
    },
    /// Two policies have the same name.
    DuplicateName(Arc<str>),
    /// A name cannot stand in a header as it is.
    InvalidName(Arc<str>),
    /// The table would be empty or would not fit into memory.
    InvalidMaxKeys(usize),
    /// A quota means nothing or cannot be kept.
    Quota {
        /// The policy it belongs to.
        policy: Arc<str>,
        /// What is wrong with it.
        error: QuotaError,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPolicy => f.write_str("no policy, expected at least one"),
            Self::TooManyPolicies { count } => {
                write!(f, "{count} policies, expected at most {MAX_POLICIES}")
            }
            Self::DuplicateName(name) => {
                write!(
                    f,
                    "two policies are named {name:?}, expected distinct names"
                )
            }
            Self::InvalidName(name) => write!(
                f,
                "policy name {name:?}, expected 1 to {MAX_NAME} printable ASCII characters \
                 without quote and backslash"
            ),
            Self::InvalidMaxKeys(keys) => {
                write!(f, "room for {keys} keys, expected 1 to {MAX_KEYS}")
            }
            Self::Quota { policy, .. } => write!(f, "invalid quota of policy {policy:?}"),
        }
    }
}

impl std::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Quota { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// How many policies one limiter decides together.
pub const MAX_POLICIES: usize = 8;

pub(crate) const MAX_KEYS: usize = 1 << 32;
const MAX_NAME: usize = 64;

/// A policy, ready to decide.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) policy: Policy,
    pub(crate) gcra: Gcra,
    pub(crate) problem: Problem,
    pub(crate) meter: Meter,
}

/// Policies that are decided together, all or nothing.
pub(crate) struct Ruleset {
    rules: Box<[Rule]>,
    governor: Option<Governor>,
}

type Governor = RateLimiter<Probe, Store, StandingClock, NoOpMiddleware<Tick>>;

/// What a ruleset decided, and the state it left behind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ruling {
    /// The TAT of each rule after the decision.
    pub(crate) tats: [u64; MAX_POLICIES],
    /// The rules that limit the request.
    pub(crate) violated: Mask,
    /// The rules that would, but are in shadow mode.
    pub(crate) shadowed: Mask,
    /// How long until `violated` would be empty.
    pub(crate) excess: Option<Excess>,
}

impl Ruling {
    fn new() -> Self {
        Self {
            tats: [0; MAX_POLICIES],
            violated: Mask::default(),
            shadowed: Mask::default(),
            excess: None,
        }
    }

    pub(crate) fn admits(&self) -> bool {
        self.violated.is_empty()
    }

    fn exceed(&mut self, index: usize, shadow: bool, excess: Excess) {
        if shadow {
            self.shadowed.insert(index);
            return;
        }
        self.violated.insert(index);
        self.excess = match (self.excess, excess) {
            (Some(Excess::Never), _) | (_, Excess::Never) => Some(Excess::Never),
            (Some(Excess::Wait(a)), Excess::Wait(b)) => Some(Excess::Wait(a.max(b))),
            (None, wait) => Some(wait),
        };
    }
}

/// A set of rules, by index.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Mask(u8);

impl Mask {
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn contains(self, index: usize) -> bool {
        self.0 & (1 << index) != 0
    }

    fn insert(&mut self, index: usize) {
        self.0 |= 1 << index;
    }
}

impl Ruleset {
    pub(crate) fn new(rules: Box<[Rule]>, table: &Arc<Table>, clock: &Clock) -> Self {
        let governor = match &rules[..] {
            [rule] if table.columns() == 1 => rule.gcra.to_governor().map(|quota| {
                let clock = StandingClock::new(clock.clone());
                let governor = RateLimiter::new(quota, Store(Arc::clone(table)), clock);
                governor.clock().start();
                governor
            }),
            _ => None,
        };
        Self { rules, governor }
    }

    pub(crate) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What the entry at `slot` owes, in nanoseconds, under the rule where it owes most.
    pub(crate) fn debt(&self, table: &Table, slot: Slot, now: u64) -> u64 {
        let debts = self.rules.iter().enumerate();
        let debt =
            |(column, rule): (usize, &Rule)| rule.gcra.debt_nanos(table.read(slot, column), now);
        debts.map(debt).max().unwrap_or(0)
    }

    /// How many cells could be charged at `now`, given the TAT of each column.
    pub(crate) fn remaining(&self, tat: impl Fn(usize) -> u64, now: u64) -> u64 {
        let rules = self.rules.iter().enumerate();
        rules
            .map(|(column, rule)| rule.gcra.remaining(tat(column), now))
            .min()
            .unwrap_or(0)
    }

    /// Replaces the TAT of every rule by what `next` makes of it.
    pub(crate) fn adjust(&self, table: &Table, slot: Slot, next: impl Fn(&Gcra, u64) -> u64) {
        let _guard = (table.columns() > 1).then(|| table.lock(slot));
        for (column, rule) in self.rules.iter().enumerate() {
            let word = table.tat(slot, column);
            let mut tat = word.load(Ordering::Acquire);
            while let Err(now) = word.compare_exchange_weak(
                tat,
                next(&rule.gcra, tat),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                tat = now;
            }
        }
    }

    /// Charges `cells` to every rule, or to none if one is exceeded.
    ///
    /// One cell of one quota is governor's to decide. The rest (several cells, several quotas,
    /// rates that governor would round) is decided here, on the same entries.
    pub(crate) fn charge(&self, table: &Table, slot: Slot, clock: &Clock, cells: u64) -> Ruling {
        match &self.governor {
            Some(governor) if cells == 1 => self.charge_governor(governor, slot, clock),
            _ if table.columns() == 1 => self.charge_one(table, slot, clock.now(), cells),
            _ => self.charge_all(table, slot, clock.now(), cells),
        }
    }

    fn charge_governor(&self, governor: &Governor, slot: Slot, clock: &Clock) -> Ruling {
        let probe = Probe::new(slot);
        let outcome = governor.check_key(&probe);
        let mut ruling = Ruling::new();
        ruling.tats[0] = probe.tat();
        if let Err(not_until) = outcome {
            let wait = not_until.earliest_possible().0.saturating_sub(clock.now());
            // At least 1: this reading is later than governor's, by which it did not conform.
            ruling.exceed(0, self.rules[0].policy.shadow, Excess::Wait(wait.max(1)));
        }
        ruling
    }

    fn charge_one(&self, table: &Table, slot: Slot, now: u64, cells: u64) -> Ruling {
        let mut ruling = Ruling::new();
        let rule = &self.rules[0];
        let word = table.tat(slot, 0);
        let mut tat = word.load(Ordering::Acquire);
        loop {
            ruling.tats[0] = tat;
            match rule.gcra.charge(tat, now, cells) {
                Err(excess) => {
                    ruling.exceed(0, rule.policy.shadow, excess);
                    return ruling;
                }
                Ok(next) => {
                    match word.compare_exchange_weak(tat, next, Ordering::AcqRel, Ordering::Acquire)
                    {
                        Ok(_) => {
                            ruling.tats[0] = next;
                            return ruling;
                        }
                        Err(now) => tat = now,
                    }
                }
            }
        }
    }

    fn charge_all(&self, table: &Table, slot: Slot, now: u64, cells: u64) -> Ruling {
        let mut ruling = Ruling::new();
        let mut next = [None; MAX_POLICIES];
        let _guard = table.lock(slot);
        for (index, rule) in self.rules.iter().enumerate() {
            let tat = table.read(slot, index);
            ruling.tats[index] = tat;
            match rule.gcra.charge(tat, now, cells) {
                Ok(tat) => next[index] = Some(tat),
                Err(excess) => ruling.exceed(index, rule.policy.shadow, excess),
            }
        }
        if ruling.admits() {
            for (index, tat) in next.into_iter().enumerate() {
                if let Some(tat) = tat {
                    table.tat(slot, index).store(tat, Ordering::Release);
                    ruling.tats[index] = tat;
                }
            }
        }
        ruling
    }
}

impl fmt::Debug for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ruleset")
            .field("rules", &self.rules)
            .field("on_governor", &self.governor.is_some())
            .finish()
    }
}

pub(crate) fn compile(policies: &[Policy]) -> Result<Box<[Rule]>, BuildError> {
    if policies.is_empty() {
        return Err(BuildError::NoPolicy);
    }
    if policies.len() > MAX_POLICIES {
        return Err(BuildError::TooManyPolicies {
            count: policies.len(),
        });
    }
    let compile = |(index, policy): (usize, &Policy)| {
        let name = policy.name();
        let printable = |b: u8| matches!(b, b' '..=b'~') && b != b'"' && b != b'\\';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(printable) {
            return Err(BuildError::InvalidName(policy.shared_name()));
        }
        if policies[..index]
            .iter()
            .any(|earlier| earlier.name() == name)
        {
            return Err(BuildError::DuplicateName(policy.shared_name()));
        }
        let gcra = Gcra::new(&policy.quota).map_err(|error| BuildError::Quota {
            policy: policy.shared_name(),
            error,
        })?;
        Ok(Rule {
            policy: policy.clone(),
            gcra,
            problem: Problem::quota_exceeded(name),
            meter: Meter::new(name),
        })
    };
    policies.iter().enumerate().map(compile).collect()
}
