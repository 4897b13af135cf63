//! The policies that are compared.

use std::fmt;

use super::HillClimbing;

/// What a rule looks at, four times a second.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Part of the limit in use, 0 to 1.
    pub utilisation: f64,
    /// Checkouts that waited longer than 20 ms.
    pub slow_waits: u64,
    /// Whether those are more than one in twenty.
    pub slow: bool,
    /// Checkouts that gave up.
    pub timeouts: u64,
    /// Checkouts returned.
    pub completions: u64,
    /// Seconds since the last look.
    pub seconds: f64,
}

/// A published policy for the size of a pool.
#[derive(Clone, Debug)]
pub enum Rule {
    /// Always the same.
    Static(usize),
    /// One more for every checkout that waited too long; never fewer. FlexyPool's
    /// `IncrementPoolOnTimeout`, at 20 ms.
    FlexyPool,
    /// A tenth more above 70 % in use, a tenth less below 50 %.
    Utilisation,
    /// One more while one checkout in twenty waits for 20 ms, half when one gives up.
    Aimd,
    /// .NET's rule for the size of its thread pool.
    HillClimbing(HillClimbing),
}

impl Rule {
    /// The next size, within 1 and `max`.
    #[must_use]
    pub fn next(&mut self, size: usize, max: usize, seen: &Seen) -> usize {
        let next = match self {
            Self::Static(size) => *size,
            Self::FlexyPool => size + seen.slow_waits as usize,
            Self::Utilisation if seen.utilisation > 0.7 => size + size.div_ceil(10),
            Self::Utilisation if seen.utilisation < 0.5 => size - size.div_ceil(10),
            Self::Utilisation => size,
            Self::Aimd if seen.timeouts > 0 => size / 2,
            Self::Aimd => size + usize::from(seen.slow),
            Self::HillClimbing(climber) => climber.next(size, max, seen),
        };
        next.clamp(1, max)
    }
}

/// What is compared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Contender {
    /// The shipped tuner, enforced.
    Ours,
    /// deadpool's default: two for each core.
    Deadpool,
    /// The default of bb8 and sqlx: ten.
    Bb8Sqlx,
    /// HikariCP's formula: two for each core, and one for a disk.
    Hikari,
    /// See [`Rule::FlexyPool`].
    FlexyPool,
    /// See [`Rule::Utilisation`].
    Utilisation,
    /// See [`Rule::Aimd`].
    Aimd,
    /// See [`HillClimbing`].
    HillClimbing,
}

impl Contender {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Ours,
        Self::Deadpool,
        Self::Bb8Sqlx,
        Self::Hikari,
        Self::FlexyPool,
        Self::Utilisation,
        Self::Aimd,
        Self::HillClimbing,
    ];

    /// Its rule on a database of `cores`; none for the tuner.
    #[must_use]
    pub fn rule(self, cores: usize) -> Option<Rule> {
        Some(match self {
            Self::Ours => return None,
            Self::Deadpool => Rule::Static(2 * cores),
            Self::Bb8Sqlx => Rule::Static(10),
            Self::Hikari => Rule::Static(2 * cores + 1),
            Self::FlexyPool => Rule::FlexyPool,
            Self::Utilisation => Rule::Utilisation,
            Self::Aimd => Rule::Aimd,
            Self::HillClimbing => Rule::HillClimbing(HillClimbing::default()),
        })
    }

    /// What a table calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Deadpool => "deadpool 4",
            Self::Bb8Sqlx => "bb8/sqlx 10",
            Self::Hikari => "HikariCP 5",
            Self::FlexyPool => "FlexyPool",
            Self::Utilisation => "util. 70 %",
            Self::Aimd => "AIMD",
            Self::HillClimbing => ".NET climb",
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
