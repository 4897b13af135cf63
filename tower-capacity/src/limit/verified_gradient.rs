//! The default law: a latency gradient whose baseline moves only on evidence.

use std::time::Duration;

use tokio::time::Instant;

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
/// - *Audit.* From time to time (1 s after the limit is reached, then twice as long each time, up
///   to 30 s) the limit is halved for one window to take effect and until enough requests are
///   counted, which measures e between L/2 and L:
///
///   ```text
///   e < 0.15          half was enough: L ← L/2, B ← min(B, w), and again at once, down to 2  (4)
///   0.15 ≤ e ≤ 0.65   restore L, B ← B · (1 + gain · (e − e*))                            (5)
///   e > 0.65          restore L, B ← max(B, w), slow start: the latency is not our queue  (6)
///   ```
///
///   (5) is an integral controller which holds L where halving it costs a set share of the
///   throughput, whatever the distribution of the service time; (4) descends to the knee when a
///   process starts inside an overload and never sees a healthy baseline.
/// - *Cut.* g < 0.7: something changed. L ← g·L, judged like an audit, so that a cut which only
///   costs throughput is undone.
/// - *Bet.* g < 0.7 and X fell below 0.7 of the usual: either capacity was lost, or a dependency
///   became slower and L no longer carries the demand. In the second case Little's law says which
///   limit does, X·w; it is tried before anything is cut. If X follows and w does not, the slowness
///   is not ours: B ← w. If not, L is restored, and the next bet waits.
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

/// The constants of [`VerifiedGradient`], and where they come from.
///
/// They are the same for every service and are not meant to be tuned; they are public so that a
/// simulation can vary them. "Model" is the simulator of this project (`benches`, named scenarios).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct VerifiedGradientConfig {
    /// Limit before the first window. 20 (Netflix concurrency-limits).
    pub initial: usize,
    /// How much slower than the baseline is still healthy. 0.45 (model; Envoy's default is 0.25).
    pub tolerance: f64,
    /// Bounds of the gradient. 0.5 and 1.5 (model; Envoy's are 0.5 and 2).
    pub gradient: (f64, f64),
    /// Share of the way to go down in a window. 0.7 (model).
    pub step_down: f64,
    /// Share of the way to go up in a window. 0.5 (model).
    pub step_up: f64,
    /// Growth in a window of slow start. 2 (TCP, RFC 5681).
    pub slow_start: f64,
    /// Gradient below which something changed: a cut or a bet, not a step. 0.7 (model).
    pub deep: f64,
    /// Elasticity below which concurrency is useless. 0.15: halving costs a tenth (model).
    pub useless: f64,
    /// Elasticity above which throughput is proportional to concurrency. 0.65 (model).
    pub proportional: f64,
    /// e*, the elasticity that audits aim for. 0.3: halving costs a fifth (model; Kleinrock's power
    /// X²/N has its maximum at ½, where more throughput is lost).
    pub target: f64,
    /// How much of a surprise of an audit moves the baseline. 0.5 (model).
    pub gain: f64,
    /// How soon a probe may come, and at most how late. 1 s and 30 s (model), or 4 and 32 windows
    /// where windows are long.
    pub probe_every: (Duration, Duration),
    /// Completions that end the measurement of a probe, which lasts eight windows at most. 100: the
    /// rate is then known to a tenth.
    pub probe_completions: u64,
}

impl Default for VerifiedGradientConfig {
    fn default() -> Self {
        Self {
            initial: 20,
            tolerance: 0.45,
            gradient: (0.5, 1.5),
            step_down: 0.7,
            step_up: 0.5,
            slow_start: 2.0,
            deep: 0.7,
            useless: 0.15,
            proportional: 0.65,
            target: 0.3,
            gain: 0.5,
            probe_every: (Duration::from_secs(1), Duration::from_secs(30)),
            probe_completions: 100,
        }
    }
}

/// Below this share of the limit an app-limited window is a measure of the baseline (model).
const LIGHT: f64 = 0.7;
/// How fast the baseline follows light windows, down and up (model).
const BASELINE_DOWN: f64 = 0.4;
const BASELINE_UP: f64 = 0.2;
/// Growth of inflight from window to window below which no queue builds (model).
const AT_REST: f64 = 1.1;
/// What an average over windows keeps of the past (model).
const STEADY_KEEP: f64 = 0.5;
const USUAL_PACE: f64 = 0.3;
/// Throughput has fallen if it is below this share of the usual (model).
const FALLEN: f64 = 0.7;
/// A bet raises the limit by so much at least and at most (model).
const BET: (f64, f64) = (1.4, 4.0);
/// Elasticity that a bet must show, and how much slower it may make the service (model).
const BET_PAYS: f64 = 0.5;
const BET_SLOWER: f64 = 1.25;
/// Slow start goes on only while this share of the limit is in use (model).
const IN_USE: f64 = 0.4;
/// An elasticity is read only from a change of ln N of this much (model).
const MOVED: f64 = 0.15;
/// No audit goes below this limit, rounded: one request at a time leaves all but one core idle for
/// as long as it takes to find that out (a service of 100 requests a second: two seconds).
const LEAST_AUDIT: f64 = 1.5;
/// Most windows that a probe measures.
const PROBE_WINDOWS: u32 = 8;
/// A gap this long is a stall if this many completions should have fallen into it (model).
const STALL: Duration = Duration::from_millis(60);
const STALL_COMPLETIONS: f64 = 16.0;
/// The limiter makes no longer windows; bounds the pauses that are counted in windows.
const LONGEST_WINDOW: Duration = Duration::from_secs(60);

impl VerifiedGradient {
    /// Creates the law with its documented constants.
    #[must_use]
    pub fn new() -> Self {
        Self::with_config(VerifiedGradientConfig::default())
    }

    /// Creates the law with other constants.
    #[must_use]
    pub fn with_config(config: VerifiedGradientConfig) -> Self {
        Self {
            limit: config.initial as f64,
            baseline: None,
            verified: false,
            slow_start: true,
            stall: Stall::Watching,
            usual_throughput: 0.0,
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
            self.audit
                .soon(now, self.config.probe_every, window.duration);
        }
        let baseline = *self.baseline.get_or_insert(service_time);
        if let Some(probe) = self.probe {
            return self.on_probe(probe, now, window, service_time);
        }
        let before = self.steady;
        let steady = before
            .unwrap_or_default()
            .keep(STEADY_KEEP)
            .plus(&Tally::of(window));
        self.steady = Some(steady);
        let (least, most) = self.config.gradient;
        let gradient = (baseline * (1.0 + self.config.tolerance) / service_time).clamp(least, most);
        if let Some(decision) = self.end_slow_start(gradient, window, before) {
            return decision;
        }
        if gradient < self.config.deep {
            return self.bet_or_cut(now, gradient, window, service_time);
        }
        self.note_throughput(window);
        if self.audit.is_due(now) && !self.slow_start && 0.5 * self.limit >= LEAST_AUDIT {
            return self.start(ProbeKind::Audit, 0.5 * self.limit, steady, service_time);
        }
        (self.step(gradient, window), self.limit)
    }

    fn is_void(&mut self, window: &Window) -> bool {
        let missed = window.longest_gap.as_secs_f64() * self.usual_throughput;
        let stalled = window.longest_gap > STALL && missed > STALL_COMPLETIONS;
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
            USUAL_PACE
        };
        self.usual_throughput += pace * (window.throughput() - self.usual_throughput);
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
        if window.mean_inflight >= LIGHT * self.limit {
            return "hold";
        }
        self.verified = true;
        let baseline = self.baseline.get_or_insert(service_time);
        if service_time < *baseline {
            *baseline += BASELINE_DOWN * (service_time - *baseline);
        } else if window.mean_inflight < AT_REST * last_inflight {
            *baseline += BASELINE_UP * (service_time - *baseline);
        }
        "baseline"
    }

    /// Ends slow start at the first g < 1 or at the first step in vain, and then audits at once if
    /// the baseline is only a guess.
    fn end_slow_start(
        &mut self,
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
            .and_then(|before| step.elasticity_since(&before))
            .is_some_and(|e| e < self.config.useless);
        if !in_vain && gradient >= 1.0 {
            return None;
        }
        self.slow_start = false;
        if in_vain {
            self.limit /= self.config.slow_start;
        }
        if !self.verified {
            // What was measured before the limit came down still tells what more of it is worth.
            let service_time = window.service_time.unwrap_or_default();
            return Some(self.start(ProbeKind::Audit, 0.5 * self.limit, step, service_time));
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
        let has_fallen = window.throughput() < FALLEN * self.usual_throughput;
        if has_fallen && (!self.bet.is_planned() || self.bet.is_due(now)) {
            let commanded = (self.usual_throughput * service_time)
                .clamp(BET.0 * self.limit, BET.1 * self.limit);
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
        let enough = probe.during.completions >= self.config.probe_completions as f64;
        if measured == 0 || measured < PROBE_WINDOWS && !enough {
            self.probe = Some(probe);
            return (probe.kind.name(), probe.commanded);
        }
        self.probe = None;
        let service_time = (probe.log_service_time / f64::from(measured)).exp();
        let e = probe.during.elasticity_since(&probe.before);
        self.elasticity = e.or(self.elasticity);
        match probe.kind {
            ProbeKind::Bet => self.judge_bet(&probe, e, now, window, service_time),
            ProbeKind::Audit | ProbeKind::Cut => {
                self.judge_cut(&probe, e, now, window, service_time)
            }
        }
    }

    fn judge_bet(
        &mut self,
        probe: &Probe,
        e: Option<f64>,
        now: Instant,
        window: &Window,
        service_time: f64,
    ) -> (&'static str, f64) {
        let pays = e.is_some_and(|e| e > BET_PAYS);
        if pays && service_time < BET_SLOWER * probe.service_time {
            self.limit = probe.commanded;
            self.baseline = Some(service_time);
            self.slow_start = true;
            self.bet = Schedule::default();
            return ("bet_won", self.limit);
        }
        self.bet
            .later(now, self.config.probe_every, window.duration);
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
            probe_every: every,
            ..
        } = self.config;
        let is_cut = probe.kind == ProbeKind::Cut;
        let (Some(e), Some(baseline)) = (e, self.baseline) else {
            // Inflight hardly moved: nothing was learned.
            if is_cut {
                self.limit = probe.commanded;
            }
            self.audit.later(now, every, window.duration);
            return ("no_evidence", self.limit);
        };
        if e < useless {
            self.baseline = Some(baseline.min(service_time));
            self.limit = probe.commanded;
            if is_cut {
                self.audit.soon(now, every, window.duration);
                return ("cut_accept", self.limit);
            }
            let deeper = 0.5 * self.limit;
            if deeper < LEAST_AUDIT {
                self.audit.later(now, every, window.duration);
                return ("audit_accept", self.limit);
            }
            return self.start(ProbeKind::Audit, deeper, probe.during, service_time);
        }
        self.verified = true;
        if (e - target).abs() < 0.2 {
            self.audit.later(now, every, window.duration);
        } else {
            self.audit.soon(now, every, window.duration);
        }
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

    /// Equations (2) and (3), or a step of slow start.
    fn step(&mut self, gradient: f64, window: &Window) -> &'static str {
        if self.slow_start {
            if window.mean_inflight > IN_USE * self.limit {
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
        let (reason, commanded) = self.decide(now, window);
        self.reason = reason;
        let (least, most) = (window.min_limit as f64, window.max_limit as f64);
        self.limit = self.limit.clamp(least, most);
        commanded.clamp(least, most).round() as usize
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

    fn keep(&self, share: f64) -> Self {
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

    /// ∂ln X/∂ln N between two tallies, `None` where N hardly moved. Where nothing was completed,
    /// half a completion is assumed.
    fn elasticity_since(&self, before: &Self) -> Option<f64> {
        let throughput = |tally: &Self| (tally.completions.max(0.5) / tally.seconds).ln();
        let inflight = |tally: &Self| (tally.inflight_seconds / tally.seconds).ln();
        let moved = inflight(self) - inflight(before);
        let e = (throughput(self) - throughput(before)) / moved;
        (moved.abs() > MOVED && e.is_finite()).then_some(e)
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
    fn soon(&mut self, now: Instant, every: (Duration, Duration), window: Duration) {
        self.pause = every.0.max(4 * window.min(LONGEST_WINDOW));
        self.due = Some(now + self.pause);
    }

    /// Twice the last pause.
    fn later(&mut self, now: Instant, every: (Duration, Duration), window: Duration) {
        let window = window.min(LONGEST_WINDOW);
        self.pause = (2 * self.pause)
            .max(every.0.max(4 * window))
            .min(every.1.max(32 * window));
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
        driver.limited(bet, slower);
        assert_eq!(driver.limited(bet, slower), "bet_lost");
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
    fn an_audit_comes_after_a_second_at_the_limit() {
        let mut driver = Driver::new();
        run_saturated(&mut driver, "audit", 15);
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
        run_saturated(&mut driver, "not_our_queue", 40);
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
