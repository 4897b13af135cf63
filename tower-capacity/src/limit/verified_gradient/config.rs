//! The constants of the law, and what describes one.

use std::{fmt, time::Duration};

use super::{Objective, VerifiedGradient};

/// The constants of [`VerifiedGradient`], and where they come from.
///
/// They are the same for every service and are not meant to be tuned; they are public so that a
/// simulation can vary them. "Model" is the simulator of this project (`benches`): found by varying
/// one constant at a time over the named scenarios and 200 random ones, and judged on others.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct VerifiedGradientConfig {
    /// Limit before the first window. 20 (Netflix concurrency-limits). 40 starts with fewer
    /// refusals and loses slow services that start inside an overload (model).
    pub initial: usize,

    /// How much slower than the baseline is still healthy. 0.35 (model; Envoy's default is 0.25).
    pub tolerance: f64,
    /// Least gradient. 0.5 (Envoy's adaptive concurrency filter).
    pub least_gradient: f64,
    /// Greatest gradient. 1.5 (model; Envoy's is 2).
    pub greatest_gradient: f64,
    /// Share of the way to go down in a window. 0.7 (model).
    pub step_down: f64,
    /// Share of the way to go up in a window. 0.5 (model).
    pub step_up: f64,
    /// Gradient below which something changed: a cut or a bet, not a step. 0.7 (model).
    pub deep: f64,
    /// Growth in a window of slow start. 2 (TCP, RFC 5681).
    pub slow_start: f64,
    /// Slow start goes on only while this share of the limit is in use. 0.4 (model).
    pub in_use: f64,

    /// Share of the limit below which an app-limited window is a measure of the baseline. 0.7
    /// (model).
    pub light: f64,
    /// How much of the way the baseline follows a faster light window. 0.4 (model).
    pub baseline_down: f64,
    /// How much of the way the baseline follows a slower light window. 0.2 (model).
    pub baseline_up: f64,
    /// Growth of inflight from window to window below which no queue builds. 1.1 (model).
    pub at_rest: f64,

    /// Elasticity below which concurrency is useless. 0.1: halving costs a fifteenth (model).
    pub useless: f64,
    /// Elasticity above which throughput is proportional to concurrency. 0.65 (model).
    pub proportional: f64,
    /// Elasticity that concurrency alone cannot have: by Little's law it is at most 1, so above this
    /// something else changed during the probe, which is then no evidence. 1.2 leaves room for
    /// chance.
    pub plausible: f64,
    /// e*, the elasticity that audits aim for. 0.2: halving costs an eighth (model; Kleinrock's
    /// power X²/N has its maximum at ½, where more throughput is lost).
    pub target: f64,
    /// How much of a surprise of an audit moves the baseline. 0.5 (model).
    pub gain: f64,
    /// What an audit leaves of a limit of which nothing is known yet. 0.35 (model); half once
    /// something is.
    pub first_audit: f64,
    /// No audit goes below this limit, rounded. 1.5: one request at a time leaves all but one core
    /// idle for as long as it takes to find that out (a service of 100 requests a second: two
    /// seconds).
    pub least_audit: f64,
    /// How soon a probe may come. 1 s (model), or 16 windows where that is longer.
    pub probe_soonest: Duration,
    /// How long the next probe is put off at most. 30 s (model), or 128 windows where that is
    /// longer.
    pub probe_latest: Duration,
    /// Completions that make a throughput known to a tenth: before an audit begins, and to end the
    /// measurement of a probe. 100.
    pub evidence: u64,
    /// Most windows that a probe measures. 4 (model).
    pub probe_windows: u32,
    /// Change of ln N from which an elasticity is read. 0.15 (model).
    pub moved: f64,
    /// Completions that the average over the windows at the limit remembers. 128, a full window.
    pub memory: f64,

    /// What a window adds to what is usual. 0.3 (model).
    pub usual_pace: f64,
    /// Throughput has fallen if it is below this share of the usual. 0.7 (model).
    pub fallen: f64,
    /// No bet while more are inside than so many times the usual limit: then the law did this. 1.3
    /// (model).
    pub bet_grown: f64,
    /// What a bet multiplies the limit with at least. 1.4 (model).
    pub bet_least: f64,
    /// And at most. 4 (model).
    pub bet_most: f64,
    /// Elasticity that a bet must show. 0.5 (model).
    pub bet_pays: f64,
    /// How much slower a bet may make the service. 1.25 (model).
    pub bet_slower: f64,

    /// A gap between completions that may be a stall. 60 ms: longer than a slice of any scheduler.
    pub stall: Duration,
    /// Completions that should have fallen into the gap. 40 (model).
    pub stall_completions: f64,

    /// Share of the requests that may miss the objective, where there is one. 0.01: the objective
    /// is one for the 99th percentile.
    pub late_share: f64,
    /// What lateness leaves of the highest limit. 0.85 (model).
    pub late_step_down: f64,
    /// Growth of the highest limit while the objective is met. 1.05 (model).
    pub late_step_up: f64,
}

impl Default for VerifiedGradientConfig {
    fn default() -> Self {
        Self {
            initial: 20,
            tolerance: 0.35,
            least_gradient: 0.5,
            greatest_gradient: 1.5,
            step_down: 0.7,
            step_up: 0.5,
            deep: 0.7,
            slow_start: 2.0,
            in_use: 0.4,
            light: 0.7,
            baseline_down: 0.4,
            baseline_up: 0.2,
            at_rest: 1.1,
            useless: 0.1,
            proportional: 0.65,
            plausible: 1.2,
            target: 0.2,
            gain: 0.5,
            first_audit: 0.35,
            least_audit: 1.5,
            probe_soonest: Duration::from_secs(1),
            probe_latest: Duration::from_secs(30),
            evidence: 100,
            probe_windows: 4,
            moved: 0.15,
            memory: 128.0,
            usual_pace: 0.3,
            fallen: 0.7,
            bet_grown: 1.3,
            bet_least: 1.4,
            bet_most: 4.0,
            bet_pays: 0.5,
            bet_slower: 1.25,
            stall: Duration::from_millis(60),
            stall_completions: 40.0,
            late_share: 0.01,
            late_step_down: 0.85,
            late_step_up: 1.05,
        }
    }
}

impl VerifiedGradientConfig {
    fn check(&self) -> Result<(), VerifiedGradientError> {
        let check = |constant, value: f64, possible: bool, expected| {
            if possible && value.is_finite() {
                return Ok(());
            }
            Err(VerifiedGradientError {
                constant,
                value,
                expected,
            })
        };
        let share = |constant, value: f64| {
            let possible = value > 0.0 && value < 1.0;
            check(constant, value, possible, "a number between 0 and 1")
        };
        let part = |constant, value: f64| {
            let possible = value > 0.0 && value <= 1.0;
            check(constant, value, possible, "a number above 0 and at most 1")
        };
        let growth = |constant, value: f64| check(constant, value, value > 1.0, "more than 1");
        let some = |constant, value: f64| check(constant, value, value > 0.0, "more than 0");
        let seconds = |time: Duration| time.as_secs_f64();

        some("initial", self.initial as f64)?;
        some("tolerance", self.tolerance)?;
        part("least_gradient", self.least_gradient)?;
        growth("greatest_gradient", self.greatest_gradient)?;
        part("step_down", self.step_down)?;
        part("step_up", self.step_up)?;
        part("deep", self.deep)?;
        growth("slow_start", self.slow_start)?;
        part("in_use", self.in_use)?;
        part("light", self.light)?;
        part("baseline_down", self.baseline_down)?;
        part("baseline_up", self.baseline_up)?;
        growth("at_rest", self.at_rest)?;
        share("useless", self.useless)?;
        let (least, most) = (self.useless, self.proportional);
        let order = self.target > least && self.target < most;
        check(
            "target",
            self.target,
            order,
            "more than `useless` and less than `proportional`",
        )?;
        share("proportional", self.proportional)?;
        growth("plausible", self.plausible)?;
        part("gain", self.gain)?;
        share("first_audit", self.first_audit)?;
        some("least_audit", self.least_audit)?;
        some("probe_soonest", seconds(self.probe_soonest))?;
        let order = self.probe_latest >= self.probe_soonest;
        check(
            "probe_latest",
            seconds(self.probe_latest),
            order,
            "`probe_soonest` or later",
        )?;
        some("evidence", self.evidence as f64)?;
        some("probe_windows", f64::from(self.probe_windows))?;
        some("moved", self.moved)?;
        some("memory", self.memory)?;
        part("usual_pace", self.usual_pace)?;
        part("fallen", self.fallen)?;
        growth("bet_grown", self.bet_grown)?;
        growth("bet_least", self.bet_least)?;
        let order = self.bet_most >= self.bet_least;
        check("bet_most", self.bet_most, order, "`bet_least` or more")?;
        share("bet_pays", self.bet_pays)?;
        growth("bet_slower", self.bet_slower)?;
        some("stall", seconds(self.stall))?;
        some("stall_completions", self.stall_completions)?;
        share("late_share", self.late_share)?;
        share("late_step_down", self.late_step_down)?;
        growth("late_step_up", self.late_step_up)
    }
}

/// Describes a [`VerifiedGradient`].
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct VerifiedGradientBuilder {
    config: VerifiedGradientConfig,
    objective: Option<Duration>,
}

impl VerifiedGradientBuilder {
    /// Sets the limit before the first window. Defaults to 20.
    pub const fn initial_limit(mut self, limit: usize) -> Self {
        self.config.initial = limit;
        self
    }

    /// Lowers the limit further than the throughput asks for, where that lets 99 % of the admitted
    /// requests stay below a service time.
    ///
    /// See [`VerifiedGradient`] for what happens where no limit can. The service time counts from
    /// admission: the wait before it has its own bound, which follows the service time too.
    /// Defaults to none.
    pub const fn latency_objective(mut self, service_time: Duration) -> Self {
        self.objective = Some(service_time);
        self
    }

    /// Replaces the constants, the initial limit included.
    pub const fn constants(mut self, constants: VerifiedGradientConfig) -> Self {
        self.config = constants;
        self
    }

    /// Creates the law.
    ///
    /// # Errors
    ///
    /// [`VerifiedGradientError`] names the constant that is impossible. An objective of zero is.
    pub fn build(self) -> Result<VerifiedGradient, VerifiedGradientError> {
        self.config.check()?;
        if self.objective == Some(Duration::ZERO) {
            return Err(VerifiedGradientError {
                constant: "latency_objective",
                value: 0.0,
                expected: "more than 0",
            });
        }
        Ok(VerifiedGradient {
            objective: self.objective.map(Objective::new),
            ..VerifiedGradient::with_config(self.config)
        })
    }
}

/// A constant with which the law cannot work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VerifiedGradientError {
    constant: &'static str,
    value: f64,
    expected: &'static str,
}

impl VerifiedGradientError {
    /// Name of the constant.
    #[must_use]
    pub const fn constant(&self) -> &'static str {
        self.constant
    }
}

impl fmt::Display for VerifiedGradientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is {}: expected {}",
            self.constant, self.value, self.expected
        )
    }
}

impl std::error::Error for VerifiedGradientError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_constants_are_possible() {
        assert!(VerifiedGradient::builder().build().is_ok());
    }

    #[test]
    fn an_impossible_constant_is_named() {
        let constants = VerifiedGradientConfig {
            target: 0.7,
            ..VerifiedGradientConfig::default()
        };
        let error = VerifiedGradient::builder()
            .constants(constants)
            .build()
            .expect_err("the target is above what counts as proportional");
        let expected = "`target` is 0.7: expected more than `useless` and less than `proportional`";
        assert_eq!(error.to_string(), expected);
        let error = VerifiedGradient::builder()
            .initial_limit(0)
            .build()
            .expect_err("a limit of zero admits nobody, ever");
        assert_eq!(error.constant(), "initial");
        let error = VerifiedGradient::builder()
            .latency_objective(Duration::ZERO)
            .build()
            .expect_err("nothing takes no time");
        assert_eq!(error.constant(), "latency_objective");
    }

    #[test]
    fn numbers_that_are_none_are_refused() {
        let constants = VerifiedGradientConfig {
            tolerance: f64::NAN,
            ..VerifiedGradientConfig::default()
        };
        let built = VerifiedGradient::builder().constants(constants).build();
        assert_eq!(
            built.map_err(|error| error.constant()).err(),
            Some("tolerance")
        );
    }
}
