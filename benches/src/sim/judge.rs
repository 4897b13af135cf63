//! How well a guard did, next to the best fixed limit.

use std::{
    collections::HashMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Write},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use super::{Report, Scenario, contenders::fixed_with_queue, run};

/// The best goodput of any fixed limit, with the shipped queue and without one, phase by phase.
#[must_use]
pub fn oracle(scenario: &Scenario, limits: &[usize]) -> Vec<f64> {
    let mut best = vec![0.0_f64; scenario.phases.len()];
    for &limit in limits {
        for queue in [None, Some(0)] {
            let report = run(scenario, || fixed_with_queue(limit, queue));
            for (best, phase) in best.iter_mut().zip(&report.phases) {
                *best = best.max(phase.goodput());
            }
        }
    }
    best
}

/// The same, with limits in steps of a third around what Little's law says.
#[must_use]
pub fn oracle_of(scenario: &Scenario) -> Vec<f64> {
    oracle(scenario, &limits(scenario))
}

/// Limits in steps of a third, from an eighth of what any phase needs by Little's law to eight
/// times what any needs.
fn limits(scenario: &Scenario) -> Vec<usize> {
    let needs = scenario
        .phases
        .iter()
        .map(|phase| phase.server.capacity() * (phase.server.alone() + scenario.mean_stream()));
    let least = needs.clone().fold(f64::INFINITY, f64::min);
    let most = needs.fold(1.0, f64::max);
    let mut limit = (least / 8.0).max(1.0);
    let mut limits = Vec::new();
    while limit < (8.0 * most + 8.0).min(16_384.0) {
        limits.push(limit.round() as usize);
        limit = (limit * 1.33).max(limit + 1.0);
    }
    limits
}

/// Changes when the model does, so that nothing stale is believed.
const MODEL: u32 = 8;

/// What [`oracle`] found, kept in a file, since a sweep costs a dozen runs.
#[derive(Debug, Default)]
pub struct Oracle {
    known: Mutex<HashMap<u64, Vec<f64>>>,
    file: Option<Mutex<fs::File>>,
}

impl Oracle {
    /// Remembers in a file.
    ///
    /// # Errors
    ///
    /// If it can be neither read nor created.
    pub fn in_file(path: &Path) -> io::Result<Self> {
        let known = fs::read_to_string(path)
            .unwrap_or_default()
            .lines()
            .filter_map(|line| {
                let (key, best) = line.split_once(' ')?;
                let best = best.split(' ').map(str::parse).collect::<Result<_, _>>();
                Some((key.parse().ok()?, best.ok()?))
            })
            .collect();
        let file = fs::File::options().append(true).create(true).open(path)?;
        Ok(Self {
            known: Mutex::new(known),
            file: Some(Mutex::new(file)),
        })
    }

    /// Goodput of the best fixed limit, by phase.
    pub fn best(&self, scenario: &Scenario) -> Vec<f64> {
        let mut hasher = DefaultHasher::new();
        (MODEL, format!("{scenario:?}")).hash(&mut hasher);
        let key = hasher.finish();
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(best) = lock().get(&key) {
            return best.clone();
        }
        let best = oracle_of(scenario);
        lock().insert(key, best.clone());
        if let Some(file) = &self.file {
            let numbers: Vec<_> = best.iter().map(ToString::to_string).collect();
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            // A cache that cannot be written is a slow one, not a wrong one.
            _ = writeln!(file, "{key} {}", numbers.join(" "));
        }
        best
    }
}

/// How well a guard did.
#[derive(Clone, Debug)]
pub struct Score {
    /// Good responses as a share of the best fixed limit's in each phase, summed over the phases.
    pub share: f64,
    /// The same of each phase.
    pub phases: Vec<f64>,
    /// The 99th percentile of the sojourn time of the served in the slowest phase, in seconds.
    pub p99: f64,
    /// The longest time from the start of an overloaded phase to half a second with 90 % of the
    /// best goodput; infinite if that never came.
    pub convergence: f64,
    /// Share of the requests that was refused in phases below 70 % of the capacity.
    pub refused_below_capacity: f64,
}

impl Score {
    /// Judges a run.
    #[must_use]
    pub fn of(scenario: &Scenario, report: &Report, best: &[f64]) -> Self {
        let phases: Vec<f64> = report
            .phases
            .iter()
            .zip(best)
            .map(|(phase, &best)| {
                if best > 0.0 {
                    phase.goodput() / best
                } else {
                    1.0
                }
            })
            .collect();
        let possible: f64 = scenario
            .phases
            .iter()
            .zip(best)
            .map(|(phase, best)| phase.lasts * best)
            .sum();
        let (mut convergence, mut began) = (0.0_f64, 0.0);
        let (mut light, mut refused) = (0, 0);
        for ((phase, result), &best) in scenario.phases.iter().zip(&report.phases).zip(best) {
            let peak = phase.load.peak();
            if peak > 0.0 && best < 0.9 * peak {
                convergence = convergence.max(converged(report, began, phase.lasts, 0.9 * best));
            }
            if peak <= 0.7 * scenario.capacity(phase) {
                light += result.offered;
                refused += result.refused;
            }
            began += phase.lasts;
        }
        Self {
            share: report.good() as f64 / possible.max(1.0),
            phases,
            p99: report
                .phases
                .iter()
                .map(|phase| phase.quantile(0.99))
                .fold(0.0, f64::max),
            convergence,
            refused_below_capacity: refused as f64 / f64::from(light.max(1) as u32),
        }
    }
}

/// Seconds until half a second with this goodput begins.
fn converged(report: &Report, began: f64, lasts: f64, goodput: f64) -> f64 {
    let tenths = ((began * 10.0).round() as usize, (lasts * 10.0) as usize);
    let Some(good) = report.good_by_tenth.get(tenths.0..) else {
        return f64::INFINITY;
    };
    good[..tenths.1.min(good.len())]
        .windows(5)
        .position(|half| f64::from(half.iter().sum::<u32>()) >= 0.5 * goodput)
        .map_or(f64::INFINITY, |tenths| tenths as f64 / 10.0)
}

/// Does each piece of work on as many threads as there are cores; returns the results in order.
pub fn in_parallel<T: Sync, R: Send>(work: &[T], each: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done: Vec<Mutex<Option<R>>> = work.iter().map(|_| Mutex::new(None)).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(index) = Some(next.fetch_add(1, Relaxed)).filter(|&i| i < work.len())
                {
                    let result = each(&work[index]);
                    *done[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                }
            });
        }
    });
    done.into_iter()
        .filter_map(|result| result.into_inner().unwrap_or_else(PoisonError::into_inner))
        .collect()
}
