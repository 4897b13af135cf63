//! Policies, compiled: what decides. Knows neither HTTP nor where debts are kept.

use std::{collections::HashMap, fmt, sync::Arc};

use crate::{
    BuildError, MAX_POLICIES, Policy, Quota,
    gcra::{Excess, Gcra},
    key::RequestHead,
    metrics::Metrics,
    policy::{Name, check_name},
};

/// A policy, ready to decide.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) policy: Policy,
    pub(crate) name: Name,
    pub(crate) gcra: Gcra,
    /// Where a key's debts by it are. Policies of the same name share them over all plans.
    pub(crate) column: usize,
    pub(crate) metrics: Metrics,
}

/// The policies of a plan, decided together, all or nothing.
pub(crate) struct Ruleset {
    rules: Box<[Rule]>,
    columns: Columns,
    settles: bool,
}

/// The column of each rule, and one that is none where there is no rule.
pub(crate) type Columns = [u8; MAX_POLICIES];

/// What to charge for one request; made where it stays, as a [`Ruling`] is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Charge {
    cells: [u64; MAX_POLICIES],
    /// A quota of the request's own, in place of the first rule's.
    own: Option<Own>,
}

/// A quota of a request's own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Own {
    pub(crate) quota: Quota,
    pub(crate) gcra: Gcra,
}

impl Charge {
    /// The same number of cells for every rule.
    #[inline]
    pub(crate) fn each(cells: u64) -> Self {
        Self {
            cells: [cells; MAX_POLICIES],
            own: None,
        }
    }

    /// Charges what `rules` say that `request` costs.
    #[inline]
    pub(crate) fn price(&mut self, rules: &Ruleset, request: &RequestHead<'_>) {
        for (cells, rule) in self.cells.iter_mut().zip(&rules.rules) {
            *cells = rule.policy.cost_of(request);
        }
    }

    pub(crate) fn put_own(&mut self, own: Own) {
        self.own = Some(own);
    }

    /// The same without the rules that let the request through without charging it.
    pub(crate) fn waive(mut self, waived: Mask) -> Self {
        for (index, cells) in self.cells.iter_mut().enumerate() {
            if waived.contains(index) {
                *cells = 0;
            }
        }
        self
    }

    /// The quota of the request's own, if it stands in for the rule at `index`.
    #[inline]
    pub(crate) fn own(&self, index: usize) -> Option<&Own> {
        self.own.as_ref().filter(|_| index == 0)
    }

    /// The quota that decides in the place of the rule at `index`.
    pub(crate) fn quota(&self, index: usize, rule: &Rule) -> Quota {
        self.own(index)
            .map_or_else(|| rule.policy.quota(), |own| own.quota)
    }

    #[inline]
    pub(crate) fn gcra<'a>(&'a self, index: usize, rule: &'a Rule) -> &'a Gcra {
        self.own(index).map_or(&rule.gcra, |own| &own.gcra)
    }

    #[inline]
    pub(crate) fn cells(&self, index: usize) -> u64 {
        self.cells[index]
    }

    #[inline]
    pub(crate) fn all_cells(&self) -> [u64; MAX_POLICIES] {
        self.cells
    }

    /// The cells for the first `policies`, and none for the rest.
    #[cfg(feature = "redis")]
    pub(crate) fn of_first(&self, policies: usize) -> [u64; MAX_POLICIES] {
        std::array::from_fn(|index| {
            if index < policies {
                self.cells[index]
            } else {
                0
            }
        })
    }
}

/// What a ruleset decided, and the state it left behind.
///
/// It is written where it stays: moving it would cost more than deciding.
#[derive(Debug)]
pub(crate) struct Ruling {
    /// The TAT of each rule after the decision.
    pub(crate) tats: [u64; MAX_POLICIES],
    /// The rules that limit the request.
    pub(crate) violated: Mask,
    /// The rules that would, but are in shadow mode.
    pub(crate) shadowed: Mask,
    /// How long until `violated` would be empty.
    pub(crate) excess: Option<Excess>,
    /// When it was made.
    now: u64,
    /// The key of the account that was charged.
    pub(crate) key: u64,
}

impl Ruling {
    /// One that admits, until it is decided otherwise.
    #[inline]
    pub(crate) fn at(now: u64, key: u64) -> Self {
        Self {
            now,
            key,
            tats: [0; MAX_POLICIES],
            violated: Mask::default(),
            shadowed: Mask::default(),
            excess: None,
        }
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    #[inline]
    pub(crate) fn admits(&self) -> bool {
        self.violated.is_empty()
    }

    /// The rules that were not charged: all when the request is over a limit.
    pub(crate) fn uncharged(&self) -> Mask {
        if self.admits() {
            self.shadowed
        } else {
            Mask::all()
        }
    }

    /// Lets the request through uncharged.
    pub(crate) fn waive_all(&mut self) {
        self.shadowed = Mask::all();
    }

    pub(crate) fn exceed(&mut self, index: usize, rule: &Rule, excess: Excess) {
        if rule.policy.is_shadow() {
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
    #[inline]
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[inline]
    pub(crate) fn contains(self, index: usize) -> bool {
        self.0 & (1 << index) != 0
    }

    pub(crate) fn all() -> Self {
        Self(u8::MAX)
    }

    /// The first rule in the set.
    #[inline]
    pub(crate) fn first(self) -> Option<usize> {
        (!self.is_empty()).then(|| self.0.trailing_zeros() as usize)
    }

    pub(crate) fn insert(&mut self, index: usize) {
        self.0 |= 1 << index;
    }
}

impl Ruleset {
    /// Compiles `policies`; `columns` are the names that accounts are kept for, in order.
    pub(crate) fn new(policies: &[Policy], columns: &[Arc<str>]) -> Result<Self, BuildError> {
        if policies.is_empty() {
            return Err(BuildError::NoPolicy);
        }
        let rules: Box<[Rule]> = policies
            .iter()
            .map(|policy| compile(policy, columns))
            .collect::<Result<_, _>>()?;
        for (index, rule) in rules.iter().enumerate() {
            let is_same = |earlier: &Rule| earlier.column == rule.column;
            if rules[..index].iter().any(is_same) {
                return Err(BuildError::DuplicateName(rule.policy.shared_name()));
            }
        }
        let settles = rules.iter().any(|rule| rule.policy.settlement().is_some());
        let mut columns = [u8::MAX; MAX_POLICIES];
        for (column, rule) in columns.iter_mut().zip(&rules) {
            *column = rule.column as u8;
        }
        Ok(Self {
            rules,
            columns,
            settles,
        })
    }

    #[inline]
    pub(crate) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Gives the rules for one name the same metrics: those of `earlier` rules, if there were such.
    pub(crate) fn share_meters<'a>(
        rulesets: &mut [Self],
        earlier: impl IntoIterator<Item = &'a Self>,
    ) {
        let earlier = earlier.into_iter().flat_map(Self::rules);
        let mut by_column: HashMap<usize, Metrics> = earlier
            .map(|rule| (rule.column, rule.metrics.clone()))
            .collect();
        for rule in rulesets.iter_mut().flat_map(|rules| &mut rules.rules) {
            let metrics = by_column
                .entry(rule.column)
                .or_insert_with(|| rule.metrics.clone());
            rule.metrics.clone_from(metrics);
        }
    }

    #[inline]
    pub(crate) fn columns(&self) -> Columns {
        self.columns
    }

    /// Whether any rule learns its cost from the response.
    #[inline]
    pub(crate) fn settles(&self) -> bool {
        self.settles
    }

    /// The counters for what concerns no policy in particular.
    #[inline]
    pub(crate) fn metrics(&self) -> &Metrics {
        // There is at least one rule, see `new`.
        &self.rules[0].metrics
    }

    /// How many cells `ruling` has left under the tightest rule.
    #[inline]
    pub(crate) fn left_by(&self, charge: &Charge, ruling: &Ruling) -> u64 {
        let rules = self.rules.iter().zip(&ruling.tats).enumerate();
        rules
            .map(|(index, (rule, tat))| charge.gcra(index, rule).remaining(*tat, ruling.now))
            .min()
            .unwrap_or(0)
    }
}

impl fmt::Debug for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.rules).finish()
    }
}

fn compile(policy: &Policy, columns: &[Arc<str>]) -> Result<Rule, BuildError> {
    let name = policy.name();
    check_name(name)?;
    check_name(policy.quota().cell_unit().as_str())?;
    let Some(column) = columns.iter().position(|column| **column == *name) else {
        return Err(BuildError::UnknownName(policy.shared_name()));
    };
    let gcra = Gcra::new(&policy.quota()).map_err(|error| BuildError::Quota {
        policy: policy.shared_name(),
        error,
    })?;
    Ok(Rule {
        policy: policy.clone(),
        name: Name::new(name),
        gcra,
        column,
        metrics: Metrics::new(name),
    })
}
