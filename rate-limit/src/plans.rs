//! The plans of a limiter: their names, their policies at the moment, and all that decisions need
//! beside the debts. `T` is what a plan's policies are compiled to for where the debts are kept.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    hash::Hash,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use arc_swap::{ArcSwap, Guard};

use crate::{
    BuildError, Inflight, LimitError, Policy,
    answer::{Reason, Rendered},
    inflight::InflightCounts,
    key::Seed,
    metrics::Outcome,
    policy::check_name,
    rules::{Ruleset, Ruling},
    sync::lock,
    warning::Watch,
};

pub(crate) struct Plans<T> {
    /// How many names debts can be kept for.
    room: usize,
    /// Where in `sets` the plans are; the first has no name.
    numbers: HashMap<Arc<str>, usize>,
    /// What was built. Reading it costs a load, so it is what counts until policies change.
    first: Sets<T>,
    changed: AtomicBool,
    sets: ArcSwap<Sets<T>>,
    /// The names that debts are kept for. Held while the policies change.
    columns: Mutex<Vec<Arc<str>>>,
    mode: AtomicU8,
    seed: Seed,
    inflight: Option<Arc<InflightCounts>>,
    watch: Watch,
    #[cfg(feature = "tracing")]
    denials: crate::events::Sampler,
}

/// What each plan enforces.
type Sets<T> = Box<[Arc<Plan<T>>]>;

/// What a plan enforces.
#[derive(Debug)]
pub(crate) struct Plan<T> {
    pub(crate) number: usize,
    pub(crate) rules: Ruleset,
    pub(crate) rendered: Rendered,
    pub(crate) terms: T,
}

/// What is done with requests over their quota.
///
/// See [`Limiter::set_mode`](crate::Limiter::set_mode). It is text, too: `enforce`, `shadow` or `off`, for
/// configuration files (feature `serde`) and the environment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Mode {
    /// They are refused.
    #[default]
    Enforce,
    /// They are counted and reported, and let through.
    Shadow,
    /// Nothing is charged, counted or refused.
    Off,
}

impl Mode {
    /// The mode as it stands in settings.
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

/// Compiles the policies of a plan for where the debts are kept. The second argument has all plans.
pub(crate) type Compile<'a, T> = dyn Fn(&Ruleset, &[Ruleset]) -> Result<T, BuildError> + 'a;

/// The plans of a limiter that is to be built, by name; the first has none.
pub(crate) type NamedPlans = Vec<(Arc<str>, Vec<Policy>)>;

/// The names of all policies, and the policies of each plan.
pub(crate) type Checked = (Box<[Arc<str>]>, Vec<Ruleset>);

/// The names of all policies, in order of appearance.
pub(crate) fn columns_of(plans: &NamedPlans) -> Result<Box<[Arc<str>]>, BuildError> {
    let mut columns: Vec<Arc<str>> = Vec::new();
    for policy in plans.iter().flat_map(|(_, policies)| policies) {
        if !columns.iter().any(|column| **column == *policy.name()) {
            columns.push(policy.shared_name());
        }
    }
    if columns.is_empty() {
        return Err(BuildError::NoPolicy);
    }
    let mut names = HashSet::new();
    for (name, policies) in plans.iter().skip(1) {
        check_name(name)?;
        if !names.insert(name) {
            return Err(BuildError::DuplicateName(Arc::clone(name)));
        }
        if policies.is_empty() {
            return Err(BuildError::EmptyPlan(Arc::clone(name)));
        }
    }
    Ok(columns.into())
}

/// Checks the policies of each plan.
pub(crate) fn rulesets<'a>(
    policies: impl IntoIterator<Item = &'a [Policy]>,
    columns: &[Arc<str>],
) -> Result<Vec<Ruleset>, BuildError> {
    let policies = policies.into_iter();
    let mut rulesets = policies
        .map(|policies| Ruleset::new(policies, columns))
        .collect::<Result<Vec<_>, _>>()?;
    Ruleset::share_meters(&mut rulesets, []);
    Ok(rulesets)
}

fn sets<T>(rulesets: Vec<Ruleset>, compile: &Compile<'_, T>) -> Result<Sets<T>, BuildError> {
    let compiled = rulesets.iter().map(|rules| compile(rules, &rulesets));
    let compiled = compiled.collect::<Result<Vec<T>, _>>()?;
    let plans = rulesets.into_iter().zip(compiled).enumerate();
    Ok(plans
        .map(|(number, (rules, terms))| {
            Arc::new(Plan {
                number,
                rendered: Rendered::new(&rules),
                rules,
                terms,
            })
        })
        .collect())
}

impl<T> Plans<T> {
    pub(crate) fn new(
        plans: &NamedPlans,
        (columns, room): (Box<[Arc<str>]>, usize),
        rulesets: Vec<Ruleset>,
        compile: &Compile<'_, T>,
        seed: Seed,
        max_inflight: Option<Box<[u32]>>,
        watch: Watch,
    ) -> Result<Self, BuildError> {
        let first = sets(rulesets, compile)?;
        let numbers = plans.iter().enumerate().skip(1);
        Ok(Self {
            room,
            columns: Mutex::new(columns.into()),
            numbers: numbers
                .map(|(number, (name, _))| (Arc::clone(name), number))
                .collect(),
            sets: ArcSwap::from_pointee(first.clone()),
            first,
            changed: AtomicBool::new(false),
            mode: AtomicU8::new(Mode::Enforce as u8),
            seed,
            inflight: max_inflight.map(InflightCounts::new),
            watch,
            #[cfg(feature = "tracing")]
            denials: crate::events::Sampler::default(),
        })
    }

    /// Replaces the policies of the plan `number`. Debts stay as they are: each quota has its own
    /// account of them.
    pub(crate) fn replace(
        &self,
        number: usize,
        policies: &[Policy],
        compile: &Compile<'_, T>,
    ) -> Result<(), BuildError> {
        let mut columns = lock(&self.columns);
        let current = self.sets.load_full();
        let mut all: Vec<_> = current.iter().map(|plan| plan.policies()).collect();
        all[number] = policies.to_vec();
        let mut names = columns.clone();
        for policy in policies {
            let is_new = names.iter().all(|name| **name != *policy.name());
            if is_new && names.len() < self.room {
                names.push(policy.shared_name());
            }
        }
        let mut rulesets = rulesets(all.iter().map(|policies| &policies[..]), &names)?;
        // What was counted for a name goes on.
        Ruleset::share_meters(&mut rulesets, current.iter().map(|plan| &plan.rules));
        let sets = sets(rulesets, compile)?;
        self.sets.store(Arc::new(sets));
        *columns = names;
        self.changed.store(true, Ordering::Release);
        Ok(())
    }

    /// The number of the plan `name`.
    pub(crate) fn number(&self, name: &str) -> Option<usize> {
        self.numbers.get(name).copied()
    }

    /// Shows the metrics of every plan, also those at zero.
    #[cfg(feature = "redis")]
    pub(crate) fn show_metrics(&self) {
        let plans = (0..self.count()).map(|number| self.at(number).keep());
        plans.for_each(|plan| {
            plan.rules
                .rules()
                .iter()
                .for_each(|rule| rule.metrics.show())
        });
    }

    /// The decisions by each policy of any plan, in the order of
    /// [`OUTCOMES`](crate::metrics::OUTCOMES).
    #[cfg(feature = "otel")]
    pub(crate) fn counts(&self) -> Vec<(Arc<str>, [u64; crate::metrics::OUTCOMES.len()])> {
        let mut seen = HashSet::new();
        let mut counts = Vec::new();
        for plan in (0..self.count()).map(|number| self.at(number).keep()) {
            for rule in plan.rules.rules() {
                if seen.insert(rule.column) {
                    counts.push((rule.policy.shared_name(), rule.metrics.counts()));
                }
            }
        }
        counts
    }

    #[cfg(any(feature = "otel", feature = "redis"))]
    pub(crate) fn count(&self) -> usize {
        self.first.len()
    }

    /// What a plan enforces, by its number.
    #[inline]
    pub(crate) fn at(&self, number: usize) -> Current<'_, T> {
        if self.changed.load(Ordering::Acquire) {
            Current::Changed(self.sets.load(), number)
        } else {
            Current::First(&self.first[number])
        }
    }

    #[inline]
    pub(crate) fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Relaxed) {
            1 => Mode::Shadow,
            2 => Mode::Off,
            _ => Mode::Enforce,
        }
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// The secret that keys are hashed with.
    #[inline]
    pub(crate) fn seed(&self) -> &Seed {
        &self.seed
    }

    #[inline]
    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    #[inline]
    pub(crate) fn hash(&self, key: impl Hash) -> u64 {
        fingerprint(self.seed.hash_one(key))
    }

    #[inline]
    pub(crate) fn inflight_counts(&self) -> Option<&Arc<InflightCounts>> {
        self.inflight.as_ref()
    }

    pub(crate) fn enter(&self, plan: usize, key: u64) -> Result<Option<Inflight>, LimitError> {
        let Some(counts) = &self.inflight else {
            return Ok(None);
        };
        let inflight = counts.enter(plan, key);
        let full = || LimitError::other(Reason::Inflight);
        inflight.map(Some).ok_or_else(full)
    }

    pub(crate) fn inflight(&self, key: u64) -> u32 {
        let counts = self.inflight.as_ref();
        counts.map_or(0, |counts| counts.inflight(key))
    }

    /// Counts and logs a decision; in `shadow` mode what it refuses is let through.
    #[inline]
    pub(crate) fn report(&self, rules: &Ruleset, ruling: &Ruling, shadow: bool) {
        for (index, rule) in rules.rules().iter().enumerate() {
            if ruling.violated.contains(index) && !shadow {
                rule.metrics.count(Outcome::Limited);
            } else if ruling.violated.contains(index) || ruling.shadowed.contains(index) {
                rule.metrics.count(Outcome::Shadow);
            } else if ruling.admits() {
                rule.metrics.count(Outcome::Allowed);
            }
        }
        #[cfg(feature = "tracing")]
        self.denials.decided(rules, ruling, shadow);
    }
}

impl<T> Plan<T> {
    pub(crate) fn policies(&self) -> Vec<Policy> {
        let rules = self.rules.rules().iter();
        rules.map(|rule| rule.policy.clone()).collect()
    }
}

impl<T: fmt::Debug> fmt::Debug for Plans<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plans")
            .field("plans", &self.sets.load())
            .field("mode", &self.mode())
            .field("inflight", &self.inflight)
            .finish_non_exhaustive()
    }
}

/// What a plan enforces, as it was when it was looked up.
pub(crate) enum Current<'a, T> {
    First(&'a Arc<Plan<T>>),
    Changed(Guard<Arc<Sets<T>>>, usize),
}

impl<T> Current<'_, T> {
    pub(crate) fn keep(&self) -> Arc<Plan<T>> {
        match self {
            Self::First(plan) => Arc::clone(plan),
            Self::Changed(sets, number) => Arc::clone(&sets[*number]),
        }
    }
}

impl<T> std::ops::Deref for Current<'_, T> {
    type Target = Plan<T>;

    #[inline]
    fn deref(&self) -> &Plan<T> {
        match self {
            Self::First(plan) => plan,
            Self::Changed(sets, number) => &sets[*number],
        }
    }
}

/// The name of a key in a table: its hash, which must not look like an empty place.
#[inline]
pub(crate) fn fingerprint(hash: u64) -> u64 {
    hash.max(1)
}
