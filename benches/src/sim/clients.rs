//! What the clients offer.

use std::time::Duration;

use super::Server;

/// What holds from one moment on.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// Seconds that the phase lasts.
    pub lasts: f64,
    /// Requests offered a second, at random moments (Poisson).
    pub offered: f64,
    /// The server meanwhile.
    pub server: Server,
}

/// A run: phases, and the patience of the clients.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Name in tables.
    pub name: &'static str,
    /// One after the other.
    pub phases: Vec<Phase>,
    /// Answers later than this are worth nothing.
    pub objective: Duration,
    /// Clients go away after this long.
    pub patience: Duration,
    /// How often a client that got no answer, or a refusal, tries again at once.
    pub retries: u32,
    /// The whole process stands still: every so many seconds, for so many.
    pub pauses: Option<(f64, f64)>,
    /// Seed of all that is random.
    pub seed: u64,
}

impl Scenario {
    /// Creates a scenario without phases: an objective of 500 ms, a patience of two seconds, no
    /// retries.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            phases: Vec::new(),
            objective: Duration::from_millis(500),
            patience: Duration::from_secs(2),
            retries: 0,
            pauses: None,
            seed: 1,
        }
    }

    /// Adds a phase of so many seconds with so many requests a second.
    #[must_use]
    pub fn phase(mut self, lasts: f64, offered: f64, server: Server) -> Self {
        self.phases.push(Phase {
            lasts,
            offered,
            server,
        });
        self
    }

    /// Sets the objective.
    #[must_use]
    pub const fn objective(mut self, objective: Duration) -> Self {
        self.objective = objective;
        self
    }

    /// Lets clients try again.
    #[must_use]
    pub const fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Lets the whole process stand still every so many seconds, for so many.
    #[must_use]
    pub const fn pauses(mut self, every: f64, lasting: f64) -> Self {
        self.pauses = Some((every, lasting));
        self
    }

    /// Sets the seed.
    #[must_use]
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}
