//! What the clients offer.

use std::time::Duration;

use tower_capacity::gate::Priority;

use super::Server;

/// How requests come.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// So many a second at random moments (Poisson), whatever becomes of them.
    Open(f64),
    /// Open, with a rate that moves in a straight line during the phase.
    Ramp {
        /// Requests a second at the start.
        from: f64,
        /// And at the end.
        to: f64,
    },
    /// Open, with two rates in turn.
    Bursts {
        /// Requests a second in a burst.
        high: f64,
        /// And between two.
        low: f64,
        /// Seconds that each lasts.
        each: f64,
    },
    /// So many clients, each of which asks again once it has its answer and has thought.
    Closed {
        /// How many.
        clients: usize,
        /// Seconds of thought (mean, exponential); also the pause after a refusal.
        think: f64,
    },
}

impl From<f64> for Load {
    fn from(offered: f64) -> Self {
        Self::Open(offered)
    }
}

impl Load {
    /// Greatest rate at which open requests come.
    pub(super) fn peak(&self) -> f64 {
        match *self {
            Self::Open(offered) => offered,
            Self::Ramp { from, to } => from.max(to),
            Self::Bursts { high, low, .. } => high.max(low),
            Self::Closed { .. } => 0.0,
        }
    }

    /// Rate at a moment of a phase.
    pub(super) fn rate(&self, since: f64, lasts: f64) -> f64 {
        match *self {
            Self::Open(offered) => offered,
            Self::Ramp { from, to } => from + (to - from) * since / lasts,
            Self::Bursts { high, low, each } => {
                if (since / each) as u64 & 1 == 0 {
                    high
                } else {
                    low
                }
            }
            Self::Closed { .. } => 0.0,
        }
    }
}

/// What holds from one moment on.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// Seconds that the phase lasts.
    pub lasts: f64,
    /// How requests come meanwhile.
    pub load: Load,
    /// The server meanwhile.
    pub server: Server,
}

/// A kind of request.
#[derive(Clone, Copy, Debug)]
pub struct Class {
    /// Name in tables.
    pub name: &'static str,
    /// How many come, relative to the other classes.
    pub weight: f64,
    /// How much they matter.
    pub priority: Priority,
    /// The client it belongs to.
    pub tenant: Option<&'static str>,
    /// Seconds that the response streams for (mean, exponential), with the permit held.
    pub streams: f64,
}

impl Class {
    /// Creates a class that comes as often as `weight` says and is otherwise like any request.
    #[must_use]
    pub const fn new(name: &'static str, weight: f64) -> Self {
        Self {
            name,
            weight,
            priority: Priority::Default,
            tenant: None,
            streams: 0.0,
        }
    }
}

/// Which instance of a service gets the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Each in turn.
    RoundRobin,
    /// The one with the fewest requests, those that wait included.
    LeastOutstanding,
}

/// Busy neighbours on the machine: the share of the cores that is left moves at random.
#[derive(Clone, Copy, Debug)]
pub struct Noise {
    /// The share is between `1 - depth` and `1 + depth`.
    pub depth: f64,
    /// Mean time for which a share stays, in seconds.
    pub correlation: f64,
}

/// A run: phases, and the patience of the clients.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Name in tables.
    pub name: String,
    /// One after the other.
    pub phases: Vec<Phase>,
    /// Answers later than this are worth nothing.
    pub objective: Duration,
    /// Clients go away after this long.
    pub patience: Duration,
    /// A share of the clients that goes away sooner, and how soon.
    pub impatient: (f64, Duration),
    /// How often a client that got no answer, or a refusal, tries again at once.
    pub retries: u32,
    /// The whole process stands still: every so many seconds, for so many.
    pub pauses: Option<(f64, f64)>,
    /// Capacity that moves by itself.
    pub noise: Option<Noise>,
    /// Of each tenth of a second the process runs for this share, and is stopped for the rest once
    /// it has used that much of all cores.
    pub quota: Option<f64>,
    /// Kinds of requests; none if all are alike.
    pub classes: Vec<Class>,
    /// Instances of the service, each with its own limiter. Phases say what one instance has and
    /// what is offered to all of them.
    pub nodes: usize,
    /// The last so many instances have half the cores.
    pub slow_nodes: usize,
    /// How requests are spread over the instances.
    pub balance: Balance,
    /// Seed of all that is random.
    pub seed: u64,
}

impl Scenario {
    /// Creates a scenario without phases: an objective of 500 ms, a patience of two seconds, no
    /// retries.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            phases: Vec::new(),
            objective: Duration::from_millis(500),
            patience: Duration::from_secs(2),
            impatient: (0.0, Duration::ZERO),
            retries: 0,
            pauses: None,
            noise: None,
            quota: None,
            classes: Vec::new(),
            nodes: 1,
            slow_nodes: 0,
            balance: Balance::RoundRobin,
            seed: 1,
        }
    }

    /// Adds a phase of so many seconds. A number is a rate of open requests.
    #[must_use]
    pub fn phase(mut self, lasts: f64, load: impl Into<Load>, server: Server) -> Self {
        self.phases.push(Phase {
            lasts,
            load: load.into(),
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

    /// Sets the patience.
    #[must_use]
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Lets a share of the clients go away sooner.
    #[must_use]
    pub const fn impatient(mut self, share: f64, patience: Duration) -> Self {
        self.impatient = (share, patience);
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

    /// Lets the capacity move by itself.
    #[must_use]
    pub const fn noise(mut self, depth: f64, correlation: f64) -> Self {
        self.noise = Some(Noise { depth, correlation });
        self
    }

    /// Stops the process for a part of each tenth of a second.
    #[must_use]
    pub const fn quota(mut self, share: f64) -> Self {
        self.quota = Some(share);
        self
    }

    /// Adds a kind of request.
    #[must_use]
    pub fn class(mut self, class: Class) -> Self {
        self.classes.push(class);
        self
    }

    /// Sets how many instances there are, how many of them have half the cores, and how requests
    /// are spread over them.
    #[must_use]
    pub const fn fleet(mut self, nodes: usize, slow: usize, balance: Balance) -> Self {
        self.nodes = nodes;
        self.slow_nodes = slow;
        self.balance = balance;
        self
    }

    /// Seconds that a response streams for on average.
    pub(super) fn mean_stream(&self) -> f64 {
        let all: f64 = self.classes.iter().map(|class| class.weight).sum();
        let streams = self
            .classes
            .iter()
            .map(|class| class.weight * class.streams);
        streams.sum::<f64>() / all.max(f64::MIN_POSITIVE)
    }

    /// What one of the instances has.
    pub(super) fn server_of(&self, node: usize, server: Server) -> Server {
        let is_slow = node + self.slow_nodes >= self.nodes;
        Server {
            cores: if is_slow {
                0.5 * server.cores
            } else {
                server.cores
            },
            ..server
        }
    }

    /// Requests a second that all instances can serve in a phase, contention aside.
    #[must_use]
    pub fn capacity(&self, phase: &Phase) -> f64 {
        (0..self.nodes)
            .map(|node| self.server_of(node, phase.server).capacity())
            .sum()
    }

    /// Sets the seed.
    #[must_use]
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}
