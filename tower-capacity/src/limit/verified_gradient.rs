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
/// is not our queue), 0 where it only queues, and negative where it destroys. Kleinrock's power
/// X²/N is greatest at *e* = ½.
///
/// **Inner loop**, each window at the limit, with *w* the geometric mean of the service time, *B*
/// the baseline and *L* the limit:
///
/// ```text
/// g  = clamp(B · (1 + tolerance) / w, 0.5, 1.5)                                   (1)
/// L' = g·L + √(g·L)                                                               (2)
/// L  ← L + s·(L' − L)        s = 0.7 down, 0.5 up; ×1.6 instead until the first g < 1   (3)
/// ```
///
/// (1) and (2) are the gradient controller of Envoy's adaptive concurrency filter, which grew out
/// of Netflix concurrency-limits.
///
/// **Outer loop**, what may move *B*:
///
/// - *App-limited windows.* Nobody was held back and N < 0.7 L: the service time is by construction
///   not our queue, so B follows it. L is held, never raised or decayed for lack of demand
///   (RFC 7661 takes the same view of TCP's window).
/// - *Dither.* At the limit the commanded limit alternates by ±15 %; *e* is regressed on these
///   steps with forgetting. e < −0.1 lowers B slowly, e > 0.6 raises it slowly.
/// - *Verified cut.* Two deep cuts in a row that cost throughput in proportion prove that the queue
///   is not ours: adopt w, restore L.
/// - *Audit cut.* Held at the limit for a second (doubling to 30 s): run two windows at half the
///   limit. If throughput holds, the lower limit is right: a process that starts inside an overload
///   never saw a healthy baseline.
///
/// A window with a completion gap far longer than its rate implies (a pause, a failover) is void,
/// and so is the next.
#[derive(Clone, Debug)]
pub struct VerifiedGradient {
    config: VerifiedGradientConfig,
    /// L, the limit around which the commanded one dithers.
    limit: f64,
    /// B, in seconds.
    baseline: Option<f64>,
    /// Until the first g < 1.
    slow_start: bool,
    stall: Stall,
    /// Slow average of the throughput, to tell a stall from thin traffic.
    usual_throughput: f64,
    /// The last window at the limit, if the one before this was one.
    last: Option<Reading>,
    elasticity: Elasticity,
    cuts: Option<Cuts>,
    audit: Audit,
    audit_pause: Duration,
    dither: Dither,
    reason: &'static str,
}

/// The constants of [`VerifiedGradient`], and where they come from.
///
/// They are the same for every service and are not meant to be tuned; they are public so that a
/// simulation can vary them. "Model" is the project's discrete-event model.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct VerifiedGradientConfig {
    /// Limit before the first window. 20 (Netflix concurrency-limits).
    pub initial: usize,
    /// How much slower than the baseline is still healthy. 0.35 (model; Envoy's default is 0.25).
    pub tolerance: f64,
    /// Bounds of the gradient. 0.5 and 1.5 (model; Envoy's are 0.5 and 2).
    pub gradient: (f64, f64),
    /// Share of the way to go down in a window. 0.7 (model).
    pub step_down: f64,
    /// Share of the way to go up in a window. 0.5 (model).
    pub step_up: f64,
    /// Growth in a window of slow start. 1.6 (model).
    pub slow_start: f64,
    /// Amplitude of the dither. 0.15 (model).
    pub dither: f64,
    /// What the elasticity keeps of the past each window. 0.88, about 6 windows (model).
    pub memory: f64,
    /// How often the audit comes at first, and at most how rarely. 1 s and 30 s (model).
    pub audit_every: (Duration, Duration),
}

impl Default for VerifiedGradientConfig {
    fn default() -> Self {
        Self {
            initial: 20,
            tolerance: 0.35,
            gradient: (0.5, 1.5),
            step_down: 0.7,
            step_up: 0.5,
            slow_start: 1.6,
            dither: 0.15,
            memory: 0.88,
            audit_every: (Duration::from_secs(1), Duration::from_secs(30)),
        }
    }
}

/// Logarithms of a window's throughput and concurrency, and of the limit it ran under.
#[derive(Clone, Copy, Debug)]
struct Reading {
    throughput: f64,
    inflight: f64,
    commanded: f64,
}

impl Reading {
    /// `None` where nothing completed: the logarithm of nothing is no evidence.
    fn of(window: &Window) -> Option<Self> {
        (window.completions > 0 && window.mean_inflight > 0.0).then(|| Self {
            throughput: window.throughput().ln(),
            inflight: window.mean_inflight.ln(),
            commanded: (window.limit.max(1) as f64).ln(),
        })
    }

    /// ∂ln X/∂ln N between two readings, `None` where N hardly moved.
    fn elasticity_since(&self, before: &Self) -> Option<f64> {
        let moved = self.inflight - before.inflight;
        (moved.abs() > 0.1).then(|| (self.throughput - before.throughput) / moved)
    }
}

/// Regression of Δln X on Δln N with our own steps as the instrument, so that changes of load and
/// of capacity, which do not follow our dither, average out.
#[derive(Clone, Copy, Debug, Default)]
struct Elasticity {
    steps_by_throughput: f64,
    steps_by_inflight: f64,
}

impl Elasticity {
    /// What e is taken for before there is evidence, and with what weight (model).
    const PRIOR: f64 = 0.35;
    const PRIOR_WEIGHT: f64 = 0.02;

    fn observe(&mut self, before: &Reading, now: &Reading, memory: f64) {
        let step = now.commanded - before.commanded;
        self.steps_by_throughput =
            memory * self.steps_by_throughput + step * (now.throughput - before.throughput);
        self.steps_by_inflight =
            memory * self.steps_by_inflight + step * (now.inflight - before.inflight);
    }

    fn get(&self) -> f64 {
        (self.steps_by_throughput + Self::PRIOR_WEIGHT * Self::PRIOR)
            / (self.steps_by_inflight + Self::PRIOR_WEIGHT).max(Self::PRIOR_WEIGHT / 2.0)
    }
}

/// Deep cuts in a row: how many, and the state before the first of them took effect.
#[derive(Clone, Copy, Debug)]
struct Cuts {
    limit: f64,
    reading: Reading,
    count: u32,
}

/// Windows that a stall makes void: the one that holds the gap, and the one after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stall {
    Watching,
    VoidNext,
    /// The next window counts whatever it holds, so that a capacity that truly collapsed is seen.
    Over,
}

#[derive(Clone, Copy, Debug)]
enum Audit {
    /// Not at the limit.
    Off,
    /// At the limit; the next audit is due then.
    Due(Instant),
    /// At half the limit for so many more windows.
    Running { windows: u32, before: Reading },
}

/// A reproducible coin (xorshift64*, Vigna 2016).
#[derive(Clone, Copy, Debug)]
struct Dither(u64);

impl Dither {
    fn sign(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        if self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 63 == 0 {
            1.0
        } else {
            -1.0
        }
    }
}

/// Below this share of the limit an app-limited window is a measure of the baseline (model).
const LIGHT: f64 = 0.7;
/// How fast the baseline follows light windows, down and up (model).
const BASELINE_DOWN: f64 = 0.4;
const BASELINE_UP: f64 = 0.2;
/// Below this gradient nothing dithers, and a cut is deep (model).
const DEEP: f64 = 0.7;
/// Elasticity above which a cut was in vain, and below which an audit confirms it (model).
const PROPORTIONAL: f64 = 0.65;
const USELESS: f64 = 0.35;
/// A gap this long is a stall if this many completions should have fallen into it (model).
const STALL: Duration = Duration::from_millis(60);
const STALL_COMPLETIONS: f64 = 16.0;

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
            slow_start: true,
            stall: Stall::Watching,
            usual_throughput: 0.0,
            last: None,
            elasticity: Elasticity::default(),
            cuts: None,
            audit: Audit::Off,
            audit_pause: config.audit_every.0,
            dither: Dither(0x9E37_79B9_7F4A_7C15),
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
        self
    }

    /// The rule that applies to this window, and the limit to command next.
    fn decide(&mut self, now: Instant, window: &Window) -> (&'static str, f64) {
        if self.is_void(window) {
            self.last = None;
            return ("stall", self.limit);
        }
        let (Some(service_time), Some(reading)) = (window.service_time, Reading::of(window)) else {
            self.last = None;
            return ("hold", self.limit);
        };
        if !window.limited {
            return (self.learn_baseline(window, service_time), self.limit);
        }
        let baseline = *self.baseline.get_or_insert(service_time);
        if let Some(last) = &self.last {
            self.elasticity.observe(last, &reading, self.config.memory);
        }
        self.last = Some(reading);
        if let Some(decision) = self.audit(now, &reading, service_time) {
            return decision;
        }
        let (least, most) = self.config.gradient;
        let gradient = (baseline * (1.0 + self.config.tolerance) / service_time).clamp(least, most);
        if let Some(decision) = self.verify_cut(gradient, &reading, service_time) {
            return decision;
        }
        self.correct_baseline(service_time);
        let reason = self.step(gradient);
        let sign = if gradient > DEEP {
            self.dither.sign()
        } else {
            0.0
        };
        (reason, self.limit * (1.0 + self.config.dither * sign))
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
        if !void {
            let pace = if self.usual_throughput == 0.0 {
                1.0
            } else {
                0.2
            };
            self.usual_throughput += pace * (window.throughput() - self.usual_throughput);
        }
        void
    }

    /// The limit held nobody back: hold it, and learn the baseline if the service was lightly
    /// loaded.
    fn learn_baseline(&mut self, window: &Window, service_time: f64) -> &'static str {
        self.last = None;
        self.cuts = None;
        self.audit = Audit::Off;
        if window.mean_inflight >= LIGHT * self.limit {
            return "hold";
        }
        let baseline = self.baseline.get_or_insert(service_time);
        let pace = if service_time < *baseline {
            BASELINE_DOWN
        } else {
            BASELINE_UP
        };
        *baseline += pace * (service_time - *baseline);
        "baseline"
    }

    /// From time to time, runs two windows at half the limit, and accepts the lower one if
    /// throughput held.
    fn audit(
        &mut self,
        now: Instant,
        reading: &Reading,
        service_time: f64,
    ) -> Option<(&'static str, f64)> {
        let (first_pause, longest_pause) = self.config.audit_every;
        match self.audit {
            Audit::Off => {
                self.audit_pause = first_pause;
                self.audit = Audit::Due(now + first_pause);
                None
            }
            Audit::Due(due) if now < due || self.cuts.is_some() => None,
            Audit::Due(_) => {
                self.audit = Audit::Running {
                    windows: 2,
                    before: *reading,
                };
                Some(("audit", 0.5 * self.limit))
            }
            Audit::Running { windows, before } if windows > 1 => {
                self.audit = Audit::Running {
                    windows: windows - 1,
                    before,
                };
                Some(("audit", 0.5 * self.limit))
            }
            Audit::Running { before, .. } => {
                let held = reading
                    .elasticity_since(&before)
                    .is_some_and(|e| e < USELESS);
                let reason = if held {
                    self.baseline = self.baseline.map(|baseline| baseline.min(service_time));
                    self.limit *= 0.6;
                    self.slow_start = false;
                    self.audit_pause = first_pause;
                    "audit_accept"
                } else {
                    self.audit_pause = (2 * self.audit_pause).min(longest_pause);
                    "audit_restore"
                };
                self.audit = Audit::Due(now + self.audit_pause);
                Some((reason, self.limit))
            }
        }
    }

    /// Counts deep cuts in a row; once two have taken effect and throughput fell in proportion,
    /// the queue was not ours.
    fn verify_cut(
        &mut self,
        gradient: f64,
        reading: &Reading,
        service_time: f64,
    ) -> Option<(&'static str, f64)> {
        if gradient >= DEEP {
            self.cuts = None;
            return None;
        }
        let Some(cuts) = &mut self.cuts else {
            self.cuts = Some(Cuts {
                limit: self.limit,
                reading: *reading,
                count: 1,
            });
            return None;
        };
        cuts.count += 1;
        let in_vain = reading
            .elasticity_since(&cuts.reading)
            .is_some_and(|e| e > PROPORTIONAL);
        if cuts.count < 3 || !in_vain {
            return None;
        }
        self.limit = cuts.limit;
        self.baseline = Some(service_time);
        self.cuts = None;
        Some(("verified_cut", self.limit))
    }

    /// Lets the measured elasticity move the baseline: slowly, since it is an average over some
    /// six windows.
    fn correct_baseline(&mut self, service_time: f64) {
        let Some(baseline) = &mut self.baseline else {
            return;
        };
        let e = self.elasticity.get();
        if e < -0.1 {
            *baseline *= 1.0 - 0.04 * (-0.1 - e).min(0.5);
        } else if e > 0.6 && service_time > *baseline {
            *baseline *= 1.0 + 0.08 * (e - 0.6).min(0.5);
        }
    }

    /// Equations (2) and (3).
    fn step(&mut self, gradient: f64) -> &'static str {
        if self.slow_start && gradient >= 1.0 {
            self.limit *= self.config.slow_start;
            return "slow_start";
        }
        self.slow_start = false;
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
            elasticity: Some(self.elasticity.get()),
        }
    }
}
