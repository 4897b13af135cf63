//! The server model.

use std::collections::{BTreeSet, VecDeque};

use rand::{Rng, rngs::SmallRng};
use rand_distr::{Distribution, Exp1, LogNormal};

/// How long a piece of work takes, in seconds.
#[derive(Clone, Copy, Debug)]
pub enum Time {
    /// Always the same.
    Fixed(f64),
    /// Exponential with this mean.
    Exponential(f64),
    /// Log-normal with this mean and this coefficient of variation.
    LogNormal {
        /// Mean, in seconds.
        mean: f64,
        /// Standard deviation over mean.
        cv: f64,
    },
    /// `slow` with probability `share`, else `fast`.
    Bimodal {
        /// Seconds of the common class.
        fast: f64,
        /// Seconds of the rare class.
        slow: f64,
        /// Probability of the rare class.
        share: f64,
    },
}

impl Time {
    /// Draws one, in seconds.
    pub fn draw(&self, random: &mut SmallRng) -> f64 {
        match *self {
            Self::Fixed(time) => time,
            Self::Exponential(mean) => {
                let unit: f64 = Exp1.sample(random);
                mean * unit
            }
            Self::LogNormal { mean, cv } => {
                let variance = (1.0 + cv * cv).ln();
                LogNormal::new(mean.ln() - variance / 2.0, variance.sqrt())
                    .map_or(mean, |distribution| distribution.sample(random))
            }
            Self::Bimodal { fast, slow, share } => {
                if random.random_bool(share) {
                    slow
                } else {
                    fast
                }
            }
        }
    }
}

impl Time {
    /// Mean, in seconds.
    #[must_use]
    pub fn mean(&self) -> f64 {
        match *self {
            Self::Fixed(mean) | Self::Exponential(mean) | Self::LogNormal { mean, .. } => mean,
            Self::Bimodal { fast, slow, share } => fast + share * (slow - fast),
        }
    }

    /// The same distribution, so many times as long.
    #[must_use]
    pub fn scaled(&self, by: f64) -> Self {
        match *self {
            Self::Fixed(time) => Self::Fixed(by * time),
            Self::Exponential(mean) => Self::Exponential(by * mean),
            Self::LogNormal { mean, cv } => Self::LogNormal {
                mean: by * mean,
                cv,
            },
            Self::Bimodal { fast, slow, share } => Self::Bimodal {
                fast: by * fast,
                slow: by * slow,
                share,
            },
        }
    }
}

impl Server {
    /// Requests a second that it can serve with the best number inside, contention aside.
    #[must_use]
    pub fn capacity(&self) -> f64 {
        let cores = self.cores / (self.smt * (self.cpu.mean() + self.body));
        let cores = cores * SHARING_CROWD.powf(self.sharing);
        let threads = self.threads as f64 / (self.cpu.mean() + self.dependency.mean());
        cores
            .min(self.connections as f64 / self.dependency.mean())
            .min(threads)
    }

    /// Mean service time of a request that is alone, in seconds.
    #[must_use]
    pub fn alone(&self) -> f64 {
        self.handoff + self.cpu.mean() + self.dependency.mean() + self.delay + self.body
    }
}

/// What one request needs, and what the server has to give.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// Cores; may be fractional.
    pub cores: f64,
    /// CPU time of a request.
    pub cpu: Time,
    /// How much each request beyond the cores slows all of them (κ of the universal scalability
    /// law): 0 is pure queueing, 0.01 a service that collapses.
    pub contention: f64,
    /// Time of a request at the dependency.
    pub dependency: Time,
    /// Delay that the dependency adds without holding a connection: a slow network, not a lack of
    /// capacity.
    pub delay: f64,
    /// Connections to the dependency.
    pub connections: usize,
    /// How much slower each request is when all cores are busy than when it is alone: shared
    /// caches, hyperthreads and frequency, 1 where there is no such effect.
    pub smt: f64,
    /// Mean time to hand a request to a worker, in seconds; it grows with the crowd on the cores.
    pub handoff: f64,
    /// Workers that run requests; each holds one from the start of its CPU time to the answer of the
    /// dependency.
    pub threads: usize,
    /// Mean CPU time that a request needs after the head of its answer, in seconds.
    pub body: f64,
    /// Throughput grows with the requests for each core to this power, up to 16 of
    /// them: what they share (wake-ups, group commits, system calls for many sockets) costs each one
    /// less. 0 where nothing is shared, 0.5 for a server of short round trips to its database.
    pub sharing: f64,
}

/// Requests for each core that share what can be shared.
const SHARING_CROWD: f64 = 16.0;

impl Default for Server {
    /// Eight cores, 4 ms of CPU and 10 ms at a dependency with 64 connections: 2,000 requests a
    /// second at most, 14 ms each when alone.
    fn default() -> Self {
        Self {
            cores: 8.0,
            cpu: Time::Exponential(0.004),
            contention: 0.0,
            dependency: Time::Exponential(0.010),
            delay: 0.0,
            connections: 64,
            smt: 1.0,
            handoff: 0.0,
            threads: usize::MAX,
            body: 0.0,
            sharing: 0.0,
        }
    }
}

/// Requests that share the cores. Work is counted in seconds of one core.
#[derive(Debug)]
pub(super) struct Cores {
    /// What the neighbours on the machine leave of the cores, from 0 to 1 and a little above.
    share: f64,
    /// Work that each request inside has received since the start.
    served: f64,
    /// Seconds of core time used since the start.
    pub(super) busy: f64,
    /// Requests by the value of `served` at which they are done; ties by request.
    inside: BTreeSet<(u64, usize)>,
    since: f64,
    /// Invalidates completions that were scheduled for another number of requests.
    pub(super) version: u64,
}

impl Default for Cores {
    fn default() -> Self {
        Self {
            share: 1.0,
            served: 0.0,
            busy: 0.0,
            inside: BTreeSet::new(),
            since: 0.0,
            version: 0,
        }
    }
}

impl Cores {
    /// Sets what the neighbours leave of the cores.
    pub(super) fn set_share(&mut self, now: f64, server: &Server, share: f64) {
        self.serve(now, server);
        self.share = share.max(1e-9);
    }

    /// Requests on the cores for each core.
    pub(super) fn crowd(&self, server: &Server) -> f64 {
        self.inside.len() as f64 / server.cores
    }

    pub(super) fn enter(&mut self, now: f64, server: &Server, request: usize, work: f64) -> u64 {
        self.serve(now, server);
        let done = ((self.served + work) * 1e12) as u64;
        self.inside.insert((done, request));
        done
    }

    pub(super) fn leave(&mut self, now: f64, server: &Server, request: usize, done: u64) {
        self.serve(now, server);
        self.inside.remove(&(done, request));
    }

    /// When the next request is done if none enters or leaves, and which.
    pub(super) fn next(&mut self, now: f64, server: &Server) -> Option<(f64, usize)> {
        self.serve(now, server);
        self.version += 1;
        let &(done, request) = self.inside.first()?;
        let missing = (done as f64 / 1e12 - self.served).max(0.0);
        Some((now + missing / self.pace(server), request))
    }

    /// Must be called with the old server before its capacity changes.
    pub(super) fn serve(&mut self, now: f64, server: &Server) {
        self.served += (now - self.since) * self.pace(server);
        self.busy += (now - self.since) * server.cores.min(self.inside.len() as f64);
        self.since = now;
    }

    /// Goes on at `now` as if no time had passed since the last change.
    pub(super) const fn skip_to(&mut self, now: f64) {
        self.since = now;
    }

    /// Work that one request receives a second.
    fn pace(&self, server: &Server) -> f64 {
        let inside = self.inside.len().max(1) as f64;
        let crowd = (inside - server.cores).max(0.0);
        let busy = ((inside - 1.0) / (server.cores - 1.0).max(1.0)).min(1.0);
        let shared = 1.0 + (server.smt - 1.0) * busy;
        let contended = 1.0 + server.contention * crowd;
        let saved = (inside / server.cores)
            .clamp(1.0, SHARING_CROWD)
            .powf(server.sharing);
        self.share * (server.cores / inside).clamp(1e-9, 1.0) * saved / (shared * contended)
    }
}

/// Workers of a blocking pool, and the requests that wait for one.
#[derive(Debug, Default)]
pub(super) struct Workers {
    busy: usize,
    queue: VecDeque<usize>,
}

impl Workers {
    /// Takes a worker, or queues for one.
    pub(super) fn enter(&mut self, server: &Server, request: usize) -> bool {
        if self.busy < server.threads {
            self.busy += 1;
            return true;
        }
        self.queue.push_back(request);
        false
    }

    /// Returns a worker; returns the request that gets it.
    pub(super) fn leave(&mut self, server: &Server) -> Option<usize> {
        self.busy -= 1;
        if self.busy >= server.threads {
            return None;
        }
        let next = self.queue.pop_front()?;
        self.busy += 1;
        Some(next)
    }

    /// Leaves the queue without having had a worker.
    pub(super) fn give_up(&mut self, request: usize) {
        self.queue.retain(|&waiting| waiting != request);
    }
}

/// Requests at the dependency: some hold a connection, the rest stand in line for one.
#[derive(Debug, Default)]
pub(super) struct Connections {
    pub(super) busy: usize,
    line: VecDeque<(usize, f64)>,
}

impl Connections {
    /// Takes a connection for so long, or stands in line for one.
    pub(super) fn enter(&mut self, server: &Server, request: usize, time: f64) -> bool {
        if self.busy < server.connections {
            self.busy += 1;
            true
        } else {
            self.line.push_back((request, time));
            false
        }
    }

    /// Gives a connection back; returns the request that gets it and for how long.
    pub(super) fn leave(&mut self, server: &Server) -> Option<(usize, f64)> {
        self.busy -= 1;
        if self.busy >= server.connections {
            return None;
        }
        let next = self.line.pop_front()?;
        self.busy += 1;
        Some(next)
    }

    /// Leaves the line without having had a connection.
    pub(super) fn give_up(&mut self, request: usize) {
        self.line.retain(|&(waiting, _)| waiting != request);
    }
}
