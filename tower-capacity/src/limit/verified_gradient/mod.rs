//! The default law: a latency gradient whose baseline moves only on evidence.

mod config;
mod objective;

use std::time::Duration;

use tokio::time::Instant;

pub use self::config::{VerifiedGradientBuilder, VerifiedGradientConfig, VerifiedGradientError};
use self::objective::Objective;
use super::{Explanation, Limit, Window};

/// Compares the service time with a baseline, and lets throughput decide what the baseline is.
///
/// A ratio of latencies cannot tell "slower because of our queue" from "slower because of a
/// dependency", and cannot see an overload that has lasted for so long that it looks normal.
/// Throughput can: at saturation Little's law gives X = N/S, so the elasticity
/// *e* = ∂ln X/∂ln N = 1 − ∂ln S/∂ln N is 1 where concurrency still buys throughput (the latency
/// is not our queue), 0 where it only queues, and negative where it destroys.
///
/// **Inner loop**, each window at the limit, with *w* the geometric mean of the service time, *B*
/// the baseline and *L* the limit:
///
/// ```text
/// g  = clamp(B · (1 + tolerance) / w, 0.5, 1.5)                                   (1)
/// L' = g·L + √(g·L)                                                               (2)
/// L  ← L + s·(L' − L)        s = 0.7 down, 0.5 up                                 (3)
/// ```
///
/// (1) and (2) are the gradient controller of Envoy's adaptive concurrency filter, which grew out
/// of Netflix concurrency-limits. *Slow start* doubles L instead of (3), until the first g < 1 or
/// until a step raised N and not X, which is taken back.
///
/// **Outer loop.** Nothing else moves *B* than these:
///
/// - *App-limited windows.* Nobody was held back and N < 0.7 L: B follows w, upwards only while N
///   does not grow, since a queue that builds is no service time. L is held, never raised or
///   decayed for lack of demand (RFC 7661 takes the same view of TCP's window).
/// - *Audit.* From time to time (1 s or 16 windows after the limit is reached, then twice as long
///   each time, up to 30 s or 128 windows) the limit is halved for one window to take effect and
///   until a hundred requests are counted, which measures e between L/2 and L:
///
///   ```text
///   e < 0.1           half was enough: L ← L/2, B ← min(B, w), and again at once, down to 2  (4)
///   0.1 ≤ e ≤ 0.65    restore L, B ← B · (1 + gain · (e − e*))                            (5)
///   e > 0.65          restore L, B ← max(B, w), slow start: the latency is not our queue  (6)
///   ```
///
///   By Little's law e is at most 1. Above 1.2 something else changed meanwhile: restore L, and
///   learn nothing.
///
///   (5) is an integral controller which holds L where halving it costs a set share of the
///   throughput, whatever the distribution of the service time; (4) descends to the knee when a
///   process starts inside an overload and never sees a healthy baseline. As long as nothing has
///   verified B, an audit leaves a third of L instead of half.
/// - *Cut.* g < 0.7: something changed. L ← g·L, judged like an audit, so that a cut which only
///   costs throughput is undone.
/// - *Bet.* g < 0.7 and X fell below 0.7 of the usual under the usual limit: either capacity was
///   lost, or a dependency became slower and L no longer carries the demand. In the second case
///   Little's law says which limit does, X·w; it is tried before anything is cut. If X follows and w
///   does not, the slowness is not ours: B ← w. If not, L is restored, and the next bet waits.
///
/// **Objective.** With [`latency_objective`](VerifiedGradientBuilder::latency_objective) L also stays
/// below a ceiling C, which moves by what share of the requests took longer:
///
/// ```text
/// may  = max(1 %, 1.5 · share late in windows without a queue)
/// late > may        C ← 0.85 · min(C, L), once chance does not explain it               (7)
/// late < may        C ← 1.05 · C                                                        (8)
/// ```
///
/// No limit makes requests faster that are late even without a queue (the slow class of a mix, a
/// dependency). They raise what may be late instead, where light windows show them, or where half
/// the limit leaves more than 0.7 of them as late as before: then C is lifted.
///
/// A window with a completion gap far longer than its rate implies (a pause, a failover) is void,
/// and so is the next.
#[derive(Clone, Debug)]
pub struct VerifiedGradient {
    config: VerifiedGradientConfig,
    /// L.
    limit: f64,
    /// B, in seconds.
    baseline: Option<f64>,
    /// B is free of queueing by the evidence of a light window or of an audit.
    verified: bool,
    slow_start: bool,
    stall: Stall,
    /// Slow average of the throughput of windows in which nothing was wrong.
    usual_throughput: f64,
    /// And of the limit in force then.
    usual_limit: f64,
    objective: Option<Objective>,
    /// The last windows at this limit or so; the last step of slow start.
    steady: Option<Tally>,
    /// Inflight in the last window.
    last_inflight: f64,
    probe: Option<Probe>,
    audit: Schedule,
    bet: Schedule,
    /// e, as the last probe measured it.
    elasticity: Option<f64>,
    reason: &'static str,
}

impl VerifiedGradient {
    /// Creates the law with its documented constants.
    #[must_use]
    pub fn new() -> Self {
        Self::with_config(VerifiedGradientConfig::default())
    }

    /// Starts to describe the law otherwise.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_capacity::{Limiter, limit::VerifiedGradient};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let law = VerifiedGradient::builder().latency_objective(Duration::from_millis(100)).build()?;
    /// let limiter = Limiter::builder().law(law).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> VerifiedGradientBuilder {
        VerifiedGradientBuilder::default()
    }

    fn with_config(config: VerifiedGradientConfig) -> Self {
        Self {
            limit: config.initial as f64,
            baseline: None,
            verified: false,
            slow_start: true,
            stall: Stall::Watching,
            usual_throughput: 0.0,
            usual_limit: 0.0,
            objective: None,
            steady: None,
            last_inflight: 0.0,
            probe: None,
            audit: Schedule::default(),
            bet: Schedule::default(),
            elasticity: None,
            reason: "hold",
            config,
        }
    }

    /// Starts from a limit and a baseline that an earlier run of the service ended with.
    #[must_use]
    pub fn warm_start(mut self, limit: usize, baseline: Option<Duration>) -> Self {
        self.config.initial = limit;
        self.limit = limit as f64;
        self.baseline = baseline.map(|baseline| baseline.as_secs_f64());
        self.verified = baseline.is_some();
        self
    }

    /// The rule that applies to this window, and the limit to command next.
    fn decide(&mut self, now: Instant, window: &Window) -> (&'static str, f64) {
        let held = self.probe.map_or(self.limit, |probe| probe.commanded);
        if self.is_void(window) {
            return ("stall", held);
        }
        let Some(service_time) = window
            .service_time
            .filter(|time| time.is_finite() && *time > 0.0)
        else {
            return ("hold", held);
        };
        let last_inflight = std::mem::replace(&mut self.last_inflight, window.mean_inflight);
        if !window.limited {
            return (
                self.learn_baseline(window, service_time, last_inflight),
                self.limit,
            );
        }
        if !self.audit.is_planned() {
            self.plan_audit(now, window);
        }
        let baseline = *self.baseline.get_or_insert(service_time);
        if let Some(objective) = &mut self.objective {
            let takes_effect = self.probe.is_some_and(|probe| probe.windows == 0);
            if self.verified && service_time <= baseline {
                objective.learn(window);
            } else if !takes_effect {
                objective.judge(&self.config, window, held);
            }
        }
        if let Some(probe) = self.probe {
            return self.on_probe(probe, now, window, service_time);
        }
        let before = self.steady;
        let steady = before
            .unwrap_or_default()
            .at_most(self.config.memory)
            .plus(&Tally::of(window));
        self.steady = Some(steady);
        let (least, most) = (self.config.least_gradient, self.config.greatest_gradient);
        let gradient = (baseline * (1.0 + self.config.tolerance) / service_time).clamp(least, most);
        if let Some(decision) = self.end_slow_start(now, gradient, window, before) {
            return decision;
        }
        let is_due = self.audit.is_due(now) && !self.slow_start && self.is_enough(&steady);
        let audit = Some(self.audited()).filter(|&to| is_due && to >= self.config.least_audit);
        if gradient < self.config.deep && (self.verified || audit.is_none()) {
            return self.bet_or_cut(now, gradient, window, service_time);
        }
        self.note_throughput(window);
        if let Some(audited) = audit {
            return self.start(ProbeKind::Audit, audited, steady, service_time);
        }
        (self.step(gradient, window), self.limit)
    }

    /// Plans the next audit: at once as long as nothing has verified the baseline.
    fn plan_audit(&mut self, now: Instant, window: &Window) {
        if self.verified {
            self.audit.soon(now, &self.config, window.duration);
        } else {
            self.audit.due = Some(now);
        }
    }

    /// The throughput is known well.
    fn is_enough(&self, tally: &Tally) -> bool {
        tally.completions >= self.config.evidence as f64
    }

    /// The limit that an audit commands.
    fn audited(&self) -> f64 {
        let share = if self.verified {
            0.5
        } else {
            self.config.first_audit
        };
        share * self.limit
    }

    fn is_void(&mut self, window: &Window) -> bool {
        let missed = window.longest_gap.as_secs_f64() * self.usual_throughput;
        let stalled =
            window.longest_gap > self.config.stall && missed > self.config.stall_completions;
        let (next, void) = match self.stall {
            Stall::Watching if stalled => (Stall::VoidNext, true),
            Stall::VoidNext => (Stall::Over, true),
            Stall::Watching | Stall::Over => (Stall::Watching, false),
        };
        self.stall = next;
        void
    }

    fn note_throughput(&mut self, window: &Window) {
        let pace = if self.usual_throughput == 0.0 {
            1.0
        } else {
            self.config.usual_pace
        };
        self.usual_throughput += pace * (window.throughput() - self.usual_throughput);
        self.usual_limit += pace * (window.limit as f64 - self.usual_limit);
    }

    /// The limit held nobody back: hold it, and learn the baseline if the service was lightly
    /// loaded.
    fn learn_baseline(
        &mut self,
        window: &Window,
        service_time: f64,
        last_inflight: f64,
    ) -> &'static str {
        // A bet after which nobody is held back any more is won.
        if let Some(probe) = self.probe.take()
            && probe.kind == ProbeKind::Bet
        {
            self.limit = probe.commanded;
        }
        self.steady = None;
        self.audit = Schedule::default();
        self.note_throughput(window);
        if window.mean_inflight >= self.config.light * self.limit {
            return "hold";
        }
        self.verified = true;
        if let Some(objective) = &mut self.objective {
            objective.learn(window);
        }
        let baseline = self.baseline.get_or_insert(service_time);
        if service_time < *baseline {
            *baseline += self.config.baseline_down * (service_time - *baseline);
        } else if window.mean_inflight < self.config.at_rest * last_inflight {
            *baseline += self.config.baseline_up * (service_time - *baseline);
        }
        "baseline"
    }

    /// Ends slow start at the first g < 1 or at the first step in vain, and then audits at once if
    /// the baseline is only a guess.
    fn end_slow_start(
        &mut self,
        now: Instant,
        gradient: f64,
        window: &Window,
        before: Option<Tally>,
    ) -> Option<(&'static str, f64)> {
        if !self.slow_start {
            return None;
        }
        let step = Tally::of(window);
        self.steady = Some(step);
        let in_vain = before
            .and_then(|before| self.elasticity(&before, &step))
            .is_some_and(|e| e < self.config.useless);
        if !in_vain && gradient >= 1.0 {
            return None;
        }
        self.slow_start = false;
        if in_vain {
            self.limit /= self.config.slow_start;
        }
        if !self.verified {
            if !self.is_enough(&step) {
                self.audit.due = Some(now);
                return Some(("in_vain", self.limit));
            }
            // What was measured before the limit came down still tells what more of it is worth.
            let service_time = window.service_time.unwrap_or_default();
            return Some(self.start(ProbeKind::Audit, self.audited(), step, service_time));
        }
        if in_vain {
            self.steady = None;
            return Some(("in_vain", self.limit));
        }
        None
    }

    fn bet_or_cut(
        &mut self,
        now: Instant,
        gradient: f64,
        window: &Window,
        service_time: f64,
    ) -> (&'static str, f64) {
        let before = Tally::of(window);
        let has_fallen = window.throughput() < self.config.fallen * self.usual_throughput
            && window.mean_inflight < self.config.bet_grown * self.usual_limit;
        if has_fallen && (!self.bet.is_planned() || self.bet.is_due(now)) {
            let commanded = (self.usual_throughput * service_time).clamp(
                self.config.bet_least * self.limit,
                self.config.bet_most * self.limit,
            );
            return self.start(ProbeKind::Bet, commanded, before, service_time);
        }
        self.start(ProbeKind::Cut, gradient * self.limit, before, service_time)
    }

    fn start(
        &mut self,
        kind: ProbeKind,
        commanded: f64,
        before: Tally,
        service_time: f64,
    ) -> (&'static str, f64) {
        self.steady = None;
        self.probe = Some(Probe {
            kind,
            commanded: commanded.max(1.0),
            before,
            service_time,
            during: Tally::default(),
            log_service_time: 0.0,
            windows: 0,
        });
        (kind.name(), commanded)
    }

    /// The first window lets the probe take effect, the others measure.
    fn on_probe(
        &mut self,
        mut probe: Probe,
        now: Instant,
        window: &Window,
        service_time: f64,
    ) -> (&'static str, f64) {
        probe.windows += 1;
        let measured = probe.windows - 1;
        if measured > 0 {
            probe.during = probe.during.plus(&Tally::of(window));
            probe.log_service_time += service_time.ln();
        }
        let enough = self.is_enough(&probe.during) || self.is_plain(&probe);
        if measured == 0 || measured < self.config.probe_windows && !enough {
            self.probe = Some(probe);
            return (probe.kind.name(), probe.commanded);
        }
        self.probe = None;
        let service_time = (probe.log_service_time / f64::from(measured)).exp();
        let e = match probe.kind {
            ProbeKind::Bet => self.elasticity(&probe.before, &probe.during),
            // Inflight that grows in spite of a cut is news, but not of the cut.
            ProbeKind::Audit | ProbeKind::Cut => self.elasticity(&probe.during, &probe.before),
        };
        self.elasticity = e.or(self.elasticity);
        match probe.kind {
            ProbeKind::Bet => self.judge_bet(&probe, e, now, window, service_time),
            ProbeKind::Audit | ProbeKind::Cut => {
                self.judge_cut(&probe, e, now, window, service_time)
            }
        }
    }

    /// Whether a probe has cost so much, or so little, that it need not go on: what chance may add
    /// to its elasticity would not change the verdict.
    fn is_plain(&self, probe: &Probe) -> bool {
        let (lower, higher) = match probe.kind {
            ProbeKind::Bet => return false,
            ProbeKind::Audit | ProbeKind::Cut => (&probe.during, &probe.before),
        };
        let Some(e) = self.elasticity(lower, higher) else {
            return false;
        };
        // Two standard errors of a ratio of counts.
        let moved = (higher.inflight() / lower.inflight()).ln();
        let count = |tally: &Tally| 1.0 / tally.completions.max(1.0);
        let error = 2.0 * (count(lower) + count(higher)).sqrt() / moved;
        e - error > self.config.proportional
    }

    fn judge_bet(
        &mut self,
        probe: &Probe,
        e: Option<f64>,
        now: Instant,
        window: &Window,
        service_time: f64,
    ) -> (&'static str, f64) {
        let pays = e.is_some_and(|e| e > self.config.bet_pays);
        if pays && service_time < self.config.bet_slower * probe.service_time {
            self.limit = probe.commanded;
            self.baseline = Some(service_time);
            self.slow_start = true;
            self.bet = Schedule::default();
            return ("bet_won", self.limit);
        }
        self.bet.later(now, &self.config, window.duration);
        // Capacity was lost: this is usual from now on.
        self.usual_throughput = window.throughput();
        ("bet_lost", self.limit)
    }

    /// Equations (4) to (6).
    fn judge_cut(
        &mut self,
        probe: &Probe,
        e: Option<f64>,
        now: Instant,
        window: &Window,
        service_time: f64,
    ) -> (&'static str, f64) {
        let VerifiedGradientConfig {
            useless,
            proportional,
            target,
            gain,
            ..
        } = self.config;
        let is_cut = probe.kind == ProbeKind::Cut;
        let (Some(e), Some(baseline)) = (e, self.baseline) else {
            // Inflight hardly moved: nothing was learned.
            if is_cut {
                self.limit = probe.commanded;
            }
            self.audit.later(now, &self.config, window.duration);
            return ("no_evidence", self.limit);
        };
        if e > self.config.plausible {
            self.plan_audit(now, window);
            return ("changed", self.limit);
        }
        if e < useless {
            self.baseline = Some(baseline.min(service_time));
            self.limit = probe.commanded;
            if is_cut {
                self.plan_audit(now, window);
                return ("cut_accept", self.limit);
            }
            let deeper = self.audited();
            if deeper < self.config.least_audit {
                self.audit.later(now, &self.config, window.duration);
                return ("audit_accept", self.limit);
            }
            return self.start(ProbeKind::Audit, deeper, probe.during, service_time);
        }
        self.verified = true;
        self.audit.later(now, &self.config, window.duration);
        if e > proportional {
            self.baseline = Some(baseline.max(service_time));
            self.slow_start = true;
            return ("not_our_queue", self.limit);
        }
        self.baseline = Some(baseline * (1.0 + gain * (e - target)));
        if is_cut {
            self.limit = probe.commanded;
            return ("cut_accept", self.limit);
        }
        ("audit_restore", self.limit)
    }

    /// e between a lower concurrency and a higher one; `None` where it was not higher.
    fn elasticity(&self, lower: &Tally, higher: &Tally) -> Option<f64> {
        let moved = (higher.inflight() / lower.inflight()).ln();
        let e = (higher.throughput() / lower.throughput()).ln() / moved;
        (moved > self.config.moved && e.is_finite()).then_some(e)
    }

    /// Equations (2) and (3), or a step of slow start.
    fn step(&mut self, gradient: f64, window: &Window) -> &'static str {
        if self.slow_start {
            if window.mean_inflight > self.config.in_use * self.limit {
                self.limit *= self.config.slow_start;
            }
            return "slow_start";
        }
        let target = gradient * self.limit + (gradient * self.limit).sqrt();
        if target < self.limit {
            self.limit += self.config.step_down * (target - self.limit);
            "queueing"
        } else {
            self.limit += self.config.step_up * (target - self.limit);
            "headroom"
        }
    }
}

impl Default for VerifiedGradient {
    fn default() -> Self {
        Self::new()
    }
}

impl Limit for VerifiedGradient {
    fn initial(&self) -> usize {
        self.config.initial
    }

    fn on_window(&mut self, now: Instant, window: &Window) -> usize {
        let (reason, mut commanded) = self.decide(now, window);
        self.reason = reason;
        let (least, most) = (window.min_limit as f64, window.max_limit as f64);
        if let Some(objective) = &self.objective
            && commanded > objective.ceiling()
        {
            self.reason = "objective";
            self.limit = self.limit.min(objective.ceiling());
            commanded = objective.ceiling();
        }
        self.limit = self.limit.clamp(least, most);
        commanded.clamp(least, most).round() as usize
    }

    /// A limit that was just moved for a probe only needs time to take effect; then, the sooner
    /// evidence is plain the better.
    fn evidence(&self) -> u64 {
        match &self.probe {
            None => 128,
            Some(probe) if probe.windows == 0 => 8,
            Some(_) => 32,
        }
    }

    fn objective(&self) -> Option<Duration> {
        self.objective.map(|objective| objective.service_time())
    }

    fn name(&self) -> &'static str {
        "verified_gradient"
    }

    fn explain(&self) -> Explanation {
        Explanation {
            reason: self.reason,
            baseline: self.baseline,
            elasticity: self.elasticity,
        }
    }
}

/// The shortest and the longest pause between probes, in windows.
const PAUSE: (u32, u32) = (16, 128);

/// Work and concurrency, summed over windows.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    completions: f64,
    seconds: f64,
    inflight_seconds: f64,
}

impl Tally {
    fn of(window: &Window) -> Self {
        let seconds = window.duration.as_secs_f64();
        Self {
            completions: window.completions as f64,
            seconds,
            inflight_seconds: window.mean_inflight * seconds,
        }
    }

    /// So much of it that it holds no more completions than this.
    fn at_most(&self, completions: f64) -> Self {
        let share = (completions / self.completions.max(1.0)).min(1.0);
        Self {
            completions: share * self.completions,
            seconds: share * self.seconds,
            inflight_seconds: share * self.inflight_seconds,
        }
    }

    fn plus(&self, other: &Self) -> Self {
        Self {
            completions: self.completions + other.completions,
            seconds: self.seconds + other.seconds,
            inflight_seconds: self.inflight_seconds + other.inflight_seconds,
        }
    }

    /// Completions a second. Where nothing was completed, half a completion is assumed.
    fn throughput(&self) -> f64 {
        self.completions.max(0.5) / self.seconds
    }

    fn inflight(&self) -> f64 {
        self.inflight_seconds / self.seconds
    }
}

/// A limit held for a while to learn what concurrency is worth.
#[derive(Clone, Copy, Debug)]
struct Probe {
    kind: ProbeKind,
    commanded: f64,
    before: Tally,
    /// The service time before, in seconds.
    service_time: f64,
    during: Tally,
    log_service_time: f64,
    windows: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProbeKind {
    /// Half the limit, from time to time.
    Audit,
    /// What the gradient says, because it says so little.
    Cut,
    /// What would carry the usual throughput if the slowness is not ours.
    Bet,
}

impl ProbeKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::Cut => "cut",
            Self::Bet => "bet",
        }
    }
}

/// When the next probe of a kind is due, and how long was waited for it.
#[derive(Clone, Copy, Debug, Default)]
struct Schedule {
    due: Option<Instant>,
    pause: Duration,
}

impl Schedule {
    /// The shortest pause.
    fn soon(&mut self, now: Instant, config: &VerifiedGradientConfig, window: Duration) {
        self.pause = Duration::ZERO;
        self.later(now, config, window);
    }

    /// Twice the last pause.
    fn later(&mut self, now: Instant, config: &VerifiedGradientConfig, window: Duration) {
        // The limiter makes no longer windows.
        let window = window.min(Duration::from_secs(60));
        let soonest = config.probe_soonest.max(PAUSE.0 * window);
        let latest = config.probe_latest.max(PAUSE.1 * window);
        self.pause = (2 * self.pause).max(soonest).min(latest);
        self.due = Some(now + self.pause);
    }

    const fn is_planned(&self) -> bool {
        self.due.is_some()
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| now >= due)
    }
}

/// Windows that a stall makes void: the one that holds the gap, and the one after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stall {
    Watching,
    VoidNext,
    /// The next window counts whatever it holds, so that a capacity that truly collapsed is seen.
    Over,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Drives a law with windows of 100 ms, one after the other.
    struct Driver {
        law: VerifiedGradient,
        now: Instant,
        limit: usize,
    }

    impl Driver {
        fn new() -> Self {
            let law = VerifiedGradient::new().warm_start(40, Some(Duration::from_millis(10)));
            Self {
                law,
                now: Instant::now(),
                limit: 40,
            }
        }

        fn window(&mut self, window: Window) -> &'static str {
            self.now += window.duration;
            self.limit = self.law.on_window(self.now, &window);
            self.law.explain().reason
        }

        /// A window at the limit with so many inside, each for so many milliseconds.
        fn limited(&mut self, inflight: f64, ms: f64) -> &'static str {
            self.window(Window {
                limited: true,
                ..window(inflight, ms)
            })
        }

        fn app_limited(&mut self, inflight: f64, ms: f64) -> &'static str {
            self.window(window(inflight, ms))
        }

        /// Ends slow start and lets the law know what is usual.
        fn settle(&mut self) {
            for _ in 0..8 {
                self.limited(40.0, 16.0);
            }
        }

        fn baseline_ms(&self) -> f64 {
            1e3 * self.law.baseline.unwrap_or(f64::NAN)
        }
    }

    /// By Little's law.
    fn window(inflight: f64, ms: f64) -> Window {
        let duration = Duration::from_millis(100);
        let completions = (inflight / (ms / 1e3) * 0.1) as u64;
        Window {
            completions,
            samples: completions,
            mean_inflight: inflight,
            service_time: Some(ms / 1e3),
            longest_gap: Duration::from_millis(1),
            max_limit: 16_384,
            ..Window::new(duration, 40)
        }
    }

    #[test]
    fn a_light_window_moves_the_baseline_and_not_the_limit() {
        let mut driver = Driver::new();
        driver.app_limited(5.0, 10.0);
        assert_eq!(driver.app_limited(5.0, 5.0), "baseline");
        assert!(driver.baseline_ms() < 8.5);
        assert_eq!(driver.limit, 40);
    }

    #[test]
    fn a_queue_that_builds_below_the_limit_is_no_baseline() {
        let mut driver = Driver::new();
        for inflight in [4.0, 8.0, 14.0, 20.0, 26.0] {
            driver.app_limited(inflight, 2.0 * inflight + 10.0);
        }
        assert!((driver.baseline_ms() - 10.0).abs() < 1e-6);
    }

    #[test]
    fn a_slower_service_at_rest_is_a_new_baseline() {
        let mut driver = Driver::new();
        for _ in 0..20 {
            driver.app_limited(20.0, 30.0);
        }
        assert!(driver.baseline_ms() > 28.0);
    }

    #[test]
    fn slow_start_doubles_while_the_service_time_holds() {
        let mut driver = Driver::new();
        assert_eq!(driver.limited(40.0, 10.0), "slow_start");
        assert_eq!(driver.limit, 80);
        assert_eq!(driver.limited(80.0, 10.0), "slow_start");
        assert_eq!(driver.limit, 160);
    }

    #[test]
    fn a_step_of_slow_start_that_does_not_pay_is_taken_back() {
        let mut driver = Driver::new();
        driver.limited(20.0, 7.0);
        assert_eq!(driver.limit, 80);
        assert_eq!(driver.limited(40.0, 14.0), "in_vain");
        assert_eq!(driver.limit, 40);
    }

    #[test]
    fn queueing_lowers_the_limit_and_headroom_raises_it() {
        let mut driver = Driver::new();
        driver.limited(40.0, 16.0);
        let before = driver.limit;
        assert_eq!(driver.limited(40.0, 19.0), "queueing");
        assert!(driver.limit < before);
        let before = driver.limit;
        assert_eq!(driver.limited(30.0, 10.0), "headroom");
        assert!(driver.limit > before);
    }

    #[test]
    fn half_the_usual_throughput_first_leads_to_a_bet() {
        let mut driver = Driver::new();
        driver.settle();
        let before = driver.limit;
        assert_eq!(driver.limited(before as f64, 110.0), "bet");
        assert!(driver.limit > 2 * before, "the usual throughput needs more");
    }

    #[test]
    fn a_bet_that_pays_shows_that_the_slowness_is_not_ours() {
        let mut driver = Driver::new();
        driver.settle();
        driver.limited(driver.limit as f64, 110.0);
        let bet = driver.limit;
        driver.limited(bet as f64, 110.0);
        assert_eq!(driver.limited(bet as f64, 110.0), "bet_won");
        assert_eq!(driver.limit, bet);
        assert!((driver.baseline_ms() - 110.0).abs() < 1.0);
    }

    #[test]
    fn a_bet_that_only_queues_is_lost_and_not_repeated_at_once() {
        let mut driver = Driver::new();
        driver.settle();
        let before = driver.limit;
        driver.limited(before as f64, 40.0);
        let bet = driver.limit as f64;
        let slower = 40.0 * bet / before as f64;
        let mut reason = "bet";
        while reason == "bet" {
            reason = driver.limited(bet, slower);
        }
        assert_eq!(reason, "bet_lost");
        assert_eq!(driver.limit, before);
        assert_eq!(driver.limited(before as f64, 40.0), "cut");
    }

    #[test]
    fn a_bet_after_which_nobody_is_held_back_is_won() {
        let mut driver = Driver::new();
        driver.settle();
        driver.limited(driver.limit as f64, 110.0);
        let bet = driver.limit;
        driver.app_limited(0.5 * bet as f64, 110.0);
        assert_eq!(driver.limit, bet);
    }

    #[test]
    fn a_cut_that_costs_in_proportion_is_undone() {
        let mut driver = Driver::new();
        driver.settle();
        driver.law.usual_throughput = 100.0;
        let before = driver.limit;
        assert_eq!(driver.limited(before as f64, 50.0), "cut");
        let cut = driver.limit;
        assert!(cut < before);
        // Slow windows hold few completions: it takes several to be sure.
        let mut reason = "cut";
        while reason == "cut" {
            reason = driver.limited(cut as f64, 50.0);
        }
        assert_eq!(reason, "not_our_queue");
        assert_eq!(driver.limit, before);
        assert!((driver.baseline_ms() - 50.0).abs() < 1.0);
    }

    /// Runs windows of a server that completes at most 2,000 a second and needs 10 ms, until the
    /// law gives this reason.
    fn run_saturated(driver: &mut Driver, until: &str, windows: usize) {
        for _ in 0..windows {
            let inflight = driver.limit as f64;
            let ms = (inflight / 2.0).max(10.0);
            if driver.limited(inflight, ms) == until {
                return;
            }
        }
        panic!(
            "{until} did not come in {windows} windows: {:?}",
            driver.law
        );
    }

    #[test]
    fn an_audit_comes_after_sixteen_windows_at_the_limit() {
        let mut driver = Driver::new();
        run_saturated(&mut driver, "audit", 24);
        assert!(driver.limit <= 20);
    }

    #[test]
    fn a_start_inside_an_overload_descends_to_the_knee() {
        // Alone a request needs 10 ms, but the law has never seen that.
        let mut driver = Driver {
            law: VerifiedGradient::new().warm_start(400, None),
            ..Driver::new()
        };
        driver.limit = 400;
        run_saturated(&mut driver, "audit_restore", 20);
        assert!(driver.baseline_ms() < 26.0, "{:?}", driver.law);
        assert!(driver.limit <= 50, "{}", driver.limit);
    }

    #[test]
    fn half_an_hour_of_overload_moves_the_limit_by_less_than_a_twentieth() {
        let mut driver = Driver::new();
        for _ in 0..600 {
            let inflight = driver.limit as f64;
            driver.limited(inflight, (inflight / 2.0).max(10.0));
        }
        let mean = |driver: &mut Driver| {
            let mut sum = 0.0;
            for _ in 0..600 {
                let inflight = driver.limit as f64;
                driver.limited(inflight, (inflight / 2.0).max(10.0));
                sum += driver.limit as f64 / 600.0;
            }
            sum
        };
        let first = mean(&mut driver);
        let mut last = first;
        for _ in 0..30 {
            last = mean(&mut driver);
        }
        assert!((last / first - 1.0).abs() < 0.05, "{first} {last}");
    }

    #[test]
    fn a_latency_objective_holds_the_limit_where_it_is_met() {
        // 2,000 a second; a tenth of the requests takes three times as long as the typical one.
        let objective = Duration::from_millis(30);
        let mut driver = Driver {
            law: VerifiedGradient::builder()
                .latency_objective(objective)
                .build()
                .expect("the documented constants are possible")
                .warm_start(40, Some(Duration::from_millis(10))),
            ..Driver::new()
        };
        assert_eq!(driver.law.objective(), Some(objective));
        let mut late_lately = 0;
        for i in 0..400 {
            let inflight = driver.limit as f64;
            let ms = (inflight / 2.0).max(8.0);
            let mut window = Window {
                limited: true,
                ..window(inflight, ms)
            };
            let is_late = 3.0 * ms > 30.0;
            window.late = if is_late { window.samples / 10 } else { 0 };
            driver.window(window);
            late_lately += u32::from(is_late && i >= 200);
        }
        assert!(late_lately < 60, "{late_lately} of 200 windows are late");
        assert!(driver.limit >= 12, "{}", driver.limit);
    }

    #[test]
    fn a_stall_voids_its_window_and_the_next() {
        let mut driver = Driver::new();
        driver.settle();
        let before = driver.limit;
        let stalled = Window {
            limited: true,
            longest_gap: Duration::from_millis(200),
            ..window(40.0, 200.0)
        };
        assert_eq!(driver.window(stalled), "stall");
        assert_eq!(driver.limited(40.0, 200.0), "stall");
        assert_eq!(driver.limit, before);
    }
}
