//! How well a policy did, next to the best static size of each phase.

use super::{Report, Rule, Scenario, engine::run_rule};

/// The static size to have had in a phase, and what it did there.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// The size that it is limited to.
    pub size: usize,
    /// Mean connections that it had, which are fewer where not as many were ever needed.
    pub connections: f64,
    /// Callers served per second.
    pub goodput: f64,
    /// Seconds.
    pub p99: f64,
    /// Whether it served every caller.
    pub serves_all: bool,
    by_slot: Vec<u32>,
}

/// Plays all static sizes, and picks one for each phase, as [`oracle`] does.
#[must_use]
pub fn sweep(scenario: &Scenario, seed: u64) -> Vec<Oracle> {
    let runs: Vec<(usize, Report)> = scenario
        .sizes
        .iter()
        .map(|&size| (size, run_rule(scenario, Rule::Static(size), seed)))
        .collect();
    oracle(&runs)
}

/// Picks a static size for each phase, of runs in ascending order: the smallest that serves within
/// 2 % of what the best does, and, where no caller is refused, has a P99 within a quarter
/// of the lowest (with the sweep in hand, a connection is not worth the wait).
#[must_use]
pub fn oracle(runs: &[(usize, Report)]) -> Vec<Oracle> {
    let phases = runs.first().map_or(0, |(_, run)| run.phases.len());
    (0..phases)
        .map(|index| {
            let of = |report: &Report| report.phases[index].goodput();
            let most = runs.iter().map(|(_, run)| of(run)).fold(0.0, f64::max);
            let serving = || runs.iter().filter(|(_, run)| of(run) >= 0.98 * most);
            let all = |report: &Report| {
                let phase = &report.phases[index];
                phase.good as f64 >= 0.99 * phase.offered as f64
            };
            let can_serve_all = serving().any(|(_, run)| all(run));
            let fastest = serving()
                .filter(|(_, run)| all(run) == can_serve_all)
                .map(|(_, run)| run.phases[index].p99())
                .fold(f64::INFINITY, f64::min);
            let (size, run) = serving()
                .filter(|(_, run)| all(run) == can_serve_all)
                .find(|(_, run)| !can_serve_all || run.phases[index].p99() <= 1.25 * fastest)
                .expect("the fastest is one of them");
            let phase = &run.phases[index];
            Oracle {
                size: *size,
                connections: phase.connection_seconds / phase.seconds,
                goodput: phase.goodput(),
                p99: phase.p99(),
                serves_all: all(run),
                by_slot: phase.by_slot.clone(),
            }
        })
        .collect()
}

/// A run next to the oracle's.
#[derive(Clone, Copy, Debug)]
pub struct Score {
    /// Goodput, as a part of the oracle's, over all phases.
    pub goodput: f64,
    /// The same in the worst phase.
    pub worst_phase: f64,
    /// Mean connections.
    pub connections: f64,
    /// Mean connections of the oracle.
    pub oracle_connections: f64,
    /// Times the target moved while judged.
    pub resizes: usize,
    /// P99 in seconds, in the phase where it is the most times the oracle's; phases in which the
    /// oracle refuses callers are left out, since every queue is full there.
    pub p99: f64,
    /// The oracle's in that phase.
    pub oracle_p99: f64,
    /// Seconds from the start of a phase until three slots together serve within 5 % of what the
    /// oracle serves in them; the worst phase.
    pub settles: f64,
    /// Moments with more connections than allowed.
    pub over_limit: u64,
}

impl Score {
    /// Judges a run.
    #[must_use]
    pub fn of(report: &Report, oracle: &[Oracle]) -> Self {
        let mut score = Self {
            goodput: 0.0,
            worst_phase: f64::INFINITY,
            connections: 0.0,
            oracle_connections: 0.0,
            resizes: 0,
            p99: 0.0,
            oracle_p99: 0.0,
            settles: 0.0,
            over_limit: report.over_limit,
        };
        let (mut good, mut best, mut seconds) = (0.0, 0.0, 0.0);
        for (phase, oracle) in report.phases.iter().zip(oracle) {
            good += phase.goodput() * phase.seconds;
            best += oracle.goodput * phase.seconds;
            seconds += phase.seconds;
            score.worst_phase = score.worst_phase.min(phase.goodput() / oracle.goodput);
            score.connections += phase.connection_seconds;
            score.oracle_connections += oracle.connections * phase.seconds;
            score.resizes += phase.resizes;
            score.settles = score
                .settles
                .max(phase.slot * settles(&phase.by_slot, &oracle.by_slot));
            let p99 = phase.p99();
            if oracle.serves_all && p99 * score.oracle_p99 >= score.p99 * oracle.p99 {
                (score.p99, score.oracle_p99) = (p99, oracle.p99);
            }
        }
        score.goodput = good / best;
        score.connections /= seconds;
        score.oracle_connections /= seconds;
        score
    }

    /// Mean connections, as a multiple of the oracle's.
    #[must_use]
    pub fn connections_ratio(&self) -> f64 {
        self.connections / self.oracle_connections
    }

    /// P99, as a multiple of the oracle's; one where there is none to compare.
    #[must_use]
    pub fn p99_ratio(&self) -> f64 {
        if self.oracle_p99 > 0.0 {
            self.p99 / self.oracle_p99
        } else {
            1.0
        }
    }
}

fn settles(ours: &[u32], best: &[u32]) -> f64 {
    const TOGETHER: usize = 3;
    if ours.len() < TOGETHER {
        // Over before it could be told.
        return 0.0;
    }
    let sum = |counts: &[u32]| f64::from(counts.iter().sum::<u32>());
    ours.windows(TOGETHER)
        .zip(best.windows(TOGETHER))
        .position(|(ours, best)| sum(ours) >= 0.95 * sum(best))
        .map_or(f64::INFINITY, |slot| slot as f64)
}
