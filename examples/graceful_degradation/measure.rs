//! From records to numbers.

use std::time::Duration;

use serde::Serialize;

use crate::load::{Fate, OBJECTIVE, Record, Records, Step};

/// Everything the run found. Rates are per second, shares are fractions.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) title: &'static str,
    pub(crate) command: String,
    pub(crate) version: &'static str,
    pub(crate) started_unix_s: u64,
    pub(crate) machine: Machine,
    pub(crate) backend: &'static str,
    pub(crate) objective_ms: f64,
    pub(crate) patience_ms: f64,
    pub(crate) capacity_rps: f64,
    pub(crate) capacity_measured: String,
    pub(crate) conditions: Conditions,
    pub(crate) seed: u64,
    pub(crate) quick: bool,
    pub(crate) ramp: Vec<RampStep>,
    pub(crate) runs: Vec<Run>,
    pub(crate) verdict: Verdict,
    pub(crate) checks: Vec<Check>,
}

/// Whether every check was met, as far as it can be measured on this machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    Met,
    NotMet,
    NotMeasurable,
}

impl Report {
    pub(crate) fn outcome(&self) -> Outcome {
        if !self.conditions.problems.is_empty() {
            Outcome::NotMeasurable
        } else if self.checks.iter().all(|check| check.pass) {
            Outcome::Met
        } else {
            Outcome::NotMet
        }
    }

    /// The same of one check: one that is not met on a busy machine says nothing.
    pub(crate) fn result(&self, check: &Check) -> Outcome {
        match (check.pass, self.conditions.problems.is_empty()) {
            (true, _) => Outcome::Met,
            (false, true) => Outcome::NotMet,
            (false, false) => Outcome::NotMeasurable,
        }
    }
}

/// What the machine was like during the measurement.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Conditions {
    /// What the bare service could do, saturated: before, between and after the two runs.
    pub(crate) capacity_rps: [f64; 3],
    /// The share of the processors that others used, where that can be seen.
    pub(crate) others_cpu_share: Option<f64>,
    /// How late the generator itself started its requests, at P99.
    pub(crate) generator_late_p99_ms: f64,
    /// Why the numbers mean nothing; empty if they do mean something.
    pub(crate) problems: Vec<String>,
}

impl Conditions {
    pub(crate) fn new(
        capacity_rps: [f64; 3],
        others_cpu_share: Option<f64>,
        runs: [&Run; 2],
    ) -> Self {
        let late = runs.iter().filter_map(|run| run.generator_late_p99_ms);
        let late = late.fold(0.0, f64::max);
        let least = capacity_rps.iter().copied().fold(f64::INFINITY, f64::min);
        let most = capacity_rps.iter().copied().fold(0.0, f64::max);
        let mut problems = Vec::new();
        if late >= LATE_MS {
            problems.push(format!(
                "the generator was {late:.0} ms late at P99 (up to {LATE_MS:.0} ms would do), which counts as latency"
            ));
        }
        problems.extend(others_cpu_share.and_then(taken_by_others));
        if most > DRIFT * least {
            problems.push(format!(
                "what the service can do moved between {least:.0} and {most:.0} requests a second"
            ));
        }
        Self {
            capacity_rps,
            others_cpu_share,
            generator_late_p99_ms: late,
            problems,
        }
    }

    /// What the service could do just before and just after the bare run and the protected one.
    fn capacity_around(&self) -> (f64, f64) {
        let [before, between, after] = self.capacity_rps;
        ((before + between) / 2.0, (between + after) / 2.0)
    }
}

/// What is wrong with a machine of which others use this share, if anything is.
pub(crate) fn taken_by_others(share: f64) -> Option<String> {
    (share > OTHERS).then(|| {
        format!(
            "other programs, or the host, took {:.0} % of its processors (up to {:.0} % would do)",
            100.0 * share,
            100.0 * OTHERS
        )
    })
}

/// A tenth of the objective.
const LATE_MS: f64 = 50.0;
/// What the threads of a desktop take, and no compiler.
const OTHERS: f64 = 0.15;
/// More than this between two measurements, and a share of one is not a share of the other.
const DRIFT: f64 = 1.2;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: Option<u64>,
    pub(crate) os: &'static str,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct RampStep {
    multiplier: f64,
    start_s: f64,
    duration_s: f64,
    offered_rps: f64,
}

impl RampStep {
    pub(crate) const fn multiplier(&self) -> f64 {
        self.multiplier
    }

    pub(crate) const fn start(&self) -> f64 {
        self.start_s
    }

    pub(crate) const fn end(&self) -> f64 {
        self.start_s + self.duration_s
    }
}

impl From<&Step> for RampStep {
    fn from(step: &Step) -> Self {
        Self {
            multiplier: step.multiplier,
            start_s: step.start,
            duration_s: step.lasts,
            offered_rps: step.offered,
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) name: &'static str,
    pub(crate) seconds: Vec<Second>,
    pub(crate) phases: Vec<Phase>,
    pub(crate) decisions: Vec<Explained>,
    /// How late the generator itself started its requests, at P99.
    pub(crate) generator_late_p99_ms: Option<f64>,
}

/// The requests that ended in one second (`offered`: those that should have started in it), and
/// the state of the server in it.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Second {
    t: f64,
    offered: usize,
    goodput: usize,
    late: usize,
    shed: usize,
    limited: usize,
    errors: usize,
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
    /// Of the requests that should have started in this second, nine in ten were answered within the
    /// objective, and so was the P99 of the answered.
    healthy: bool,
    #[serde(flatten)]
    state: State,
}

impl Second {
    pub(crate) const fn t(&self) -> f64 {
        self.t
    }

    pub(crate) const fn goodput(&self) -> usize {
        self.goodput
    }

    pub(crate) const fn p99_ms(&self) -> Option<f64> {
        self.p99_ms
    }
}

/// The state of the server at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct State {
    #[serde(skip)]
    pub(crate) at: f64,
    pub(crate) inflight: Option<usize>,
    pub(crate) limit: Option<usize>,
    pub(crate) queued: Option<usize>,
    pub(crate) pool_size: Option<usize>,
    pub(crate) pool_target: Option<usize>,
    pub(crate) pool_pending: Option<usize>,
    pub(crate) pool_wait_p95_ms: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Phase {
    pub(crate) multiplier: f64,
    pub(crate) offered_rps: f64,
    pub(crate) goodput_rps: f64,
    pub(crate) late_rps: f64,
    pub(crate) refused_rps: f64,
    pub(crate) shed_rps: f64,
    pub(crate) limited_rps: f64,
    pub(crate) error_rps: f64,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p95_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) refusal_p99_ms: Option<f64>,
    /// Of health checks, which pass no layer and do nothing.
    pub(crate) health_p99_ms: Option<f64>,
    pub(crate) pool_size_mean: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Explained {
    pub(crate) t: f64,
    pub(crate) source: &'static str,
    pub(crate) text: String,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verdict {
    pub(crate) bare_goodput_at_peak_rps: f64,
    pub(crate) protected_goodput_at_peak_rps: f64,
    /// As shares of what the bare service could do, saturated, just before and after that run.
    pub(crate) bare_to_capacity: f64,
    pub(crate) protected_to_capacity: f64,
    pub(crate) admitted_p99_at_peak_ms: Option<f64>,
    pub(crate) refusal_p99_at_peak_ms: Option<f64>,
    pub(crate) health_p99_at_peak_ms: Option<f64>,
    pub(crate) recovery_s: Recovery,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Recovery {
    pub(crate) bare: Option<f64>,
    pub(crate) protected: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) expected: String,
    pub(crate) measured: String,
    pub(crate) pass: bool,
}

impl Run {
    pub(crate) fn new(
        name: &'static str,
        steps: &[Step],
        records: &Records,
        states: &[State],
        decisions: Vec<Explained>,
    ) -> Self {
        let end = steps.last().map_or(0.0, |step| step.start + step.lasts);
        let requests = &records.requests;
        let seconds = (0..end.ceil() as u32)
            .map(|second| {
                let from = f64::from(second);
                let inside = |at: f64| at >= from && at < from + 1.0;
                let ended = requests.iter().filter(|record| inside(record.ended()));
                let started = requests.iter().filter(|record| inside(record.at));
                let state = states.iter().rfind(|state| state.at < from + 1.0);
                let state = state.cloned().unwrap_or_default();
                Counts::of(ended).second(from, &Counts::of(started), state)
            })
            .collect();
        let phases = steps
            .iter()
            .map(|step| phase(step, records, states))
            .collect();
        let late: Vec<_> = requests.iter().map(|record| record.late_start).collect();
        Self {
            name,
            seconds,
            phases,
            decisions,
            generator_late_p99_ms: quantile(late, 0.99),
        }
    }

    fn peak(&self) -> Option<&Phase> {
        self.phases
            .iter()
            .max_by(|a, b| a.multiplier.total_cmp(&b.multiplier))
    }
}

/// Requests by what became of them.
#[derive(Debug, Default)]
struct Counts {
    offered: usize,
    good: Vec<Duration>,
    late: Vec<Duration>,
    shed: Vec<Duration>,
    limited: Vec<Duration>,
    errors: usize,
}

impl Counts {
    fn of<'a>(records: impl Iterator<Item = &'a Record>) -> Self {
        let mut counts = Self::default();
        for record in records {
            counts.offered += 1;
            match record.fate {
                Fate::Answered if record.latency <= OBJECTIVE => counts.good.push(record.latency),
                Fate::Answered => counts.late.push(record.latency),
                Fate::Shed => counts.shed.push(record.latency),
                Fate::Limited => counts.limited.push(record.latency),
                Fate::Failed => counts.errors += 1,
            }
        }
        counts
    }

    fn answered(&self) -> Vec<Duration> {
        [&self.good[..], &self.late[..]].concat()
    }

    fn refused(&self) -> Vec<Duration> {
        [&self.shed[..], &self.limited[..]].concat()
    }

    /// While the service is offered as much as it can do, a tenth may be refused.
    fn is_healthy(&self) -> bool {
        let p99 = quantile(self.answered(), 0.99);
        self.good.len() as f64 >= 0.9 * self.offered as f64
            && p99.is_none_or(|p99| p99 <= 1e3 * OBJECTIVE.as_secs_f64())
    }

    fn second(&self, t: f64, started: &Self, state: State) -> Second {
        Second {
            t,
            offered: started.offered,
            goodput: self.good.len(),
            late: self.late.len(),
            shed: self.shed.len(),
            limited: self.limited.len(),
            errors: self.errors,
            p50_ms: quantile(self.answered(), 0.50),
            p95_ms: quantile(self.answered(), 0.95),
            p99_ms: quantile(self.answered(), 0.99),
            healthy: started.is_healthy(),
            state,
        }
    }
}

fn phase(step: &Step, records: &Records, states: &[State]) -> Phase {
    let end = step.start + step.lasts;
    let started = |record: &&Record| record.at >= step.start && record.at < end;
    let counts = Counts::of(records.requests.iter().filter(started));
    let checks = records.checks.iter().filter(started);
    let checks = checks.map(|check| check.latency).collect();
    let rate = |count: usize| count as f64 / step.lasts;
    let sizes: Vec<_> = states
        .iter()
        .filter(|state| state.at >= step.start && state.at < end)
        .filter_map(|state| state.pool_size)
        .collect();
    let mean = sizes.iter().sum::<usize>() as f64 / sizes.len() as f64;
    Phase {
        multiplier: step.multiplier,
        offered_rps: rate(counts.offered),
        goodput_rps: rate(counts.good.len()),
        late_rps: rate(counts.late.len()),
        refused_rps: rate(counts.shed.len() + counts.limited.len()),
        shed_rps: rate(counts.shed.len()),
        limited_rps: rate(counts.limited.len()),
        error_rps: rate(counts.errors),
        p50_ms: quantile(counts.answered(), 0.50),
        p95_ms: quantile(counts.answered(), 0.95),
        p99_ms: quantile(counts.answered(), 0.99),
        refusal_p99_ms: quantile(counts.refused(), 0.99),
        health_p99_ms: quantile(checks, 0.99),
        pool_size_mean: (!sizes.is_empty()).then_some(mean),
    }
}

/// In milliseconds, by the nearest rank; `None` of nothing.
fn quantile(mut times: Vec<Duration>, share: f64) -> Option<f64> {
    times.sort_unstable();
    let rank = (times.len() as f64 * share).ceil() as usize;
    times
        .get(rank.saturating_sub(1))
        .map(|time| 1e3 * time.as_secs_f64())
}

/// Seconds after the end of the peak from which on every second is healthy.
fn recovery(run: &Run, steps: &[Step]) -> Option<f64> {
    let peak = steps
        .iter()
        .max_by(|a, b| a.multiplier.total_cmp(&b.multiplier))?;
    let end = peak.start + peak.lasts;
    let after: Vec<_> = run
        .seconds
        .iter()
        .filter(|second| second.t >= end)
        .collect();
    let sick = after.iter().rposition(|second| !second.healthy);
    match sick {
        None => Some(0.0),
        Some(last) if last + 1 == after.len() => None,
        Some(last) => Some(after[last + 1].t - end),
    }
}

/// The verdict on both runs.
pub(crate) fn judge(
    bare: &Run,
    protected: &Run,
    steps: &[Step],
    conditions: &Conditions,
) -> (Verdict, Vec<Check>) {
    let goodput = |run: &Run| run.peak().map_or(0.0, |phase| phase.goodput_rps);
    let (around_bare, around_protected) = conditions.capacity_around();
    let verdict = Verdict {
        bare_goodput_at_peak_rps: goodput(bare),
        protected_goodput_at_peak_rps: goodput(protected),
        bare_to_capacity: goodput(bare) / around_bare.max(f64::MIN_POSITIVE),
        protected_to_capacity: goodput(protected) / around_protected.max(f64::MIN_POSITIVE),
        admitted_p99_at_peak_ms: protected.peak().and_then(|phase| phase.p99_ms),
        refusal_p99_at_peak_ms: protected.peak().and_then(|phase| phase.refusal_p99_ms),
        health_p99_at_peak_ms: protected.peak().and_then(|phase| phase.health_p99_ms),
        recovery_s: Recovery {
            bare: recovery(bare, steps),
            protected: recovery(protected, steps),
        },
    };
    let checks = checks(&verdict);
    (verdict, checks)
}

fn checks(verdict: &Verdict) -> Vec<Check> {
    let objective = 1e3 * OBJECTIVE.as_secs_f64();
    let ms =
        |time: Option<f64>| time.map_or_else(|| "none".to_owned(), |time| format!("{time:.1} ms"));
    let below = |time: Option<f64>, bound: f64| time.is_some_and(|time| time < bound);
    vec![
        Check {
            name: "protected goodput at the peak",
            expected: "at least 85 % of what the service can do, measured before and after".into(),
            measured: format!("{:.0} %", 100.0 * verdict.protected_to_capacity),
            pass: verdict.protected_to_capacity >= 0.85,
        },
        Check {
            name: "bare goodput at the peak",
            expected: "below half of that: otherwise there is no bottleneck".into(),
            measured: format!("{:.0} %", 100.0 * verdict.bare_to_capacity),
            pass: verdict.bare_to_capacity < 0.5,
        },
        Check {
            name: "P99 of admitted requests at the peak",
            expected: format!("below the objective of {objective:.0} ms"),
            measured: ms(verdict.admitted_p99_at_peak_ms),
            pass: below(verdict.admitted_p99_at_peak_ms, objective),
        },
        Check {
            name: "P99 of refusals at the peak",
            expected: "less than 10 ms more than a health check, which passes no layer, takes at that time".into(),
            measured: format!(
                "{}, a health check {}",
                ms(verdict.refusal_p99_at_peak_ms),
                ms(verdict.health_p99_at_peak_ms)
            ),
            pass: verdict
                .health_p99_at_peak_ms
                .is_some_and(|health| below(verdict.refusal_p99_at_peak_ms, health + 10.0)),
        },
        Check {
            name: "recovery of the protected run",
            expected: "within 5 s of the end of the peak".into(),
            measured: verdict.recovery_s.protected.map_or_else(
                || "not seen".to_owned(),
                |seconds| format!("{seconds:.0} s"),
            ),
            pass: verdict
                .recovery_s
                .protected
                .is_some_and(|seconds| seconds <= 5.0),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(late_ms: f64) -> Run {
        Run {
            name: "bare",
            seconds: Vec::new(),
            phases: Vec::new(),
            decisions: Vec::new(),
            generator_late_p99_ms: Some(late_ms),
        }
    }

    fn conditions(capacity: [f64; 3], others: Option<f64>, late_ms: f64) -> Vec<String> {
        Conditions::new(capacity, others, [&run(1.0), &run(late_ms)]).problems
    }

    #[test]
    fn a_quiet_machine_is_measurable() {
        assert!(conditions([300.0, 310.0, 305.0], Some(0.03), 4.0).is_empty());
        assert!(conditions([300.0, 310.0, 305.0], None, 4.0).is_empty());
    }

    #[test]
    fn a_busy_machine_is_not_measurable_and_says_why() {
        let late = conditions([300.0; 3], None, 131.0);
        assert!(late[0].contains("131 ms late"), "{late:?}");
        let others = conditions([300.0; 3], Some(0.62), 1.0);
        assert!(others[0].contains("62 %"), "{others:?}");
        let drift = conditions([300.0, 200.0, 310.0], None, 1.0);
        assert!(drift[0].contains("between 200 and 310"), "{drift:?}");
    }

    /// Forty requests a second, each answered after 50 ms.
    fn served(seconds: f64) -> Vec<Record> {
        let at = |number: f64| number / 40.0;
        let numbers = (0..(40.0 * seconds) as u32).map(f64::from);
        numbers
            .map(|number| Record {
                at: at(number),
                latency: Duration::from_millis(50),
                late_start: Duration::ZERO,
                fate: Fate::Answered,
            })
            .collect()
    }

    fn recovered(requests: Vec<Record>) -> Option<f64> {
        let records = Records {
            requests,
            checks: Vec::new(),
        };
        let step = |multiplier, start, lasts| Step {
            multiplier,
            start,
            lasts,
            offered: 40.0,
        };
        let steps = [step(10.0, 0.0, 1.0), step(0.5, 1.0, 5.0)];
        recovery(
            &Run::new("protected", &steps, &records, &[], Vec::new()),
            &steps,
        )
    }

    #[test]
    fn a_second_is_judged_by_the_requests_that_start_in_it() {
        // Eight start at the end of each second, and end in the next.
        let mut records = served(6.0);
        for record in &mut records {
            if record.at.fract() > 0.8 {
                record.at = record.at.floor() + 0.99;
            }
        }
        assert_eq!(recovered(records), Some(0.0));
    }

    #[test]
    fn a_second_in_which_more_than_a_tenth_is_refused_or_late_is_no_recovery() {
        for (fate, latency) in [(Fate::Shed, 1), (Fate::Answered, 600)] {
            let mut records = served(6.0);
            let sick = records.iter_mut().filter(|record| record.at.floor() == 3.0);
            for record in sick.take(5) {
                record.fate = fate;
                record.latency = Duration::from_millis(latency);
            }
            assert_eq!(recovered(records), Some(3.0), "{fate:?}");
        }
    }

    #[test]
    fn refusals_may_take_ten_milliseconds_more_than_a_health_check() {
        let is_met = |refusal, health| {
            let verdict = Verdict {
                bare_goodput_at_peak_rps: 0.0,
                protected_goodput_at_peak_rps: 100.0,
                bare_to_capacity: 0.0,
                protected_to_capacity: 1.0,
                admitted_p99_at_peak_ms: Some(100.0),
                refusal_p99_at_peak_ms: Some(refusal),
                health_p99_at_peak_ms: Some(health),
                recovery_s: Recovery {
                    bare: None,
                    protected: Some(1.0),
                },
            };
            checks(&verdict).iter().all(|check| check.pass)
        };
        assert!(is_met(14.7, 13.0));
        assert!(is_met(9.0, 0.5));
        assert!(!is_met(33.0, 13.0), "they waited in a queue");
    }

    #[test]
    fn each_run_is_judged_by_what_the_service_could_do_next_to_it() {
        let conditions = Conditions::new([300.0, 100.0, 200.0], None, [&run(1.0), &run(1.0)]);
        assert_eq!(conditions.capacity_around(), (200.0, 150.0));
    }
}
