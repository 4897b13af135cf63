//! An earlier law of this project: a latency gradient with a baseline that is owned by a dither.

use super::{Ended, Peer};

/// Windows of 2.5 service times and 128 completions; the limit follows the gradient of the service
/// time against a baseline, with √L of headroom, and is moved by ±15 % at random from window to
/// window. A regression of throughput on those steps moves the baseline; two deep cuts that cost
/// throughput in proportion restore the limit; an audit at half the limit finds a start in overload.
#[derive(Debug)]
pub struct Prototype {
    limit: f64,
    commanded: f64,
    baseline: f64,
    slow_start: bool,
    window: Window,
    lasts: f64,
    last_end: f64,
    usual_throughput: f64,
    void: u32,
    /// Logarithms of throughput, inflight and limit in the last window at the limit.
    before: Option<[f64; 3]>,
    /// Regression sums of the dither.
    dx: f64,
    dn: f64,
    random: u64,
    restore: f64,
    costly_cuts: u32,
    audit: Audit,
    next_audit: f64,
    pause: f64,
    last_limited: f64,
    /// Logarithms of the first service times of requests that entered among few.
    early: (f64, f64),
}

/// What happened since the last decision.
#[derive(Debug, Default)]
struct Window {
    began: f64,
    area: f64,
    area_at: f64,
    inflight: usize,
    most: usize,
    done: f64,
    logs: f64,
    samples: f64,
    refused: bool,
    gap: f64,
}

#[derive(Clone, Copy, Debug)]
enum Audit {
    None,
    Settles {
        throughput: f64,
        inflight: f64,
        limit: f64,
    },
    Measures {
        throughput: f64,
        inflight: f64,
        limit: f64,
    },
}

const TOLERANCE: f64 = 0.35;
const DITHER: f64 = 0.15;
const FORGET: f64 = 0.88;
const PRIOR: f64 = 0.02;
const GAIN: f64 = 0.04;
const USELESS: f64 = -0.10;
const PAYS: f64 = 0.60;
const NEVER: f64 = 1e18;

impl Default for Prototype {
    fn default() -> Self {
        Self {
            limit: 20.0,
            commanded: 20.0,
            baseline: 0.0,
            slow_start: true,
            window: Window::default(),
            lasts: 0.1,
            last_end: 0.0,
            usual_throughput: 0.0,
            void: 0,
            before: None,
            dx: 0.0,
            dn: 0.0,
            random: 88_172_645_463_325_252,
            restore: 0.0,
            costly_cuts: 0,
            audit: Audit::None,
            next_audit: NEVER,
            pause: 1.0,
            last_limited: -1e9,
            early: (0.0, 0.0),
        }
    }
}

impl Window {
    fn advance(&mut self, now: f64) {
        if now > self.area_at {
            self.area += (now - self.area_at) * self.inflight as f64;
            self.area_at = now;
        }
    }
}

impl Prototype {
    fn close(&mut self, now: f64) {
        let window = &self.window;
        let lasted = now - window.began;
        if window.samples < 8.0 && lasted < 10.0 {
            return;
        }
        let inflight = window.area / lasted;
        let throughput = window.done / lasted;
        let samples = window.samples;
        let service_time = if samples > 0.0 {
            (window.logs / samples).exp()
        } else {
            0.0
        };
        let limited = window.refused || window.most as f64 >= 0.95 * self.commanded;
        if window.gap > 0.06 && window.gap * self.usual_throughput.max(throughput) > 16.0 {
            self.void = 2;
        }
        let void = self.void > 0;
        let mut dither = false;
        if void {
            self.void -= 1;
            self.before = None;
        } else if !limited {
            self.light(now, inflight, service_time, samples);
        } else {
            match self.audit {
                Audit::Settles {
                    throughput,
                    inflight,
                    limit,
                } => {
                    self.audit = Audit::Measures {
                        throughput,
                        inflight,
                        limit,
                    };
                    self.before = None;
                }
                Audit::Measures {
                    throughput: x,
                    inflight: n,
                    limit,
                } if samples >= 6.0 => {
                    let e = (throughput / x).max(1e-3).ln() / (inflight / n).clamp(1e-3, 0.97).ln();
                    self.judge_audit(now, e, limit, service_time);
                }
                Audit::None if samples >= 6.0 => {
                    dither = self.at_the_limit(now, throughput, inflight, service_time);
                }
                _ => {}
            }
        }
        self.usual_throughput = if self.usual_throughput == 0.0 {
            throughput
        } else {
            0.8 * self.usual_throughput + 0.2 * throughput
        };
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let sign = if self.random >> 40 & 1 == 0 {
            1.0
        } else {
            -1.0
        };
        let idle = matches!(self.audit, Audit::None);
        if limited
            && idle
            && self.void == 0
            && now >= self.next_audit
            && samples >= 6.0
            && throughput > 0.0
        {
            self.audit = Audit::Settles {
                throughput,
                inflight,
                limit: self.limit,
            };
        }
        self.commanded = match self.audit {
            Audit::None if dither => self.limit + sign * (DITHER * self.limit).max(0.6),
            Audit::None => self.limit,
            Audit::Settles { limit, .. } | Audit::Measures { limit, .. } => 0.5 * limit,
        };
        self.commanded = self.commanded.max(1.0).round();
        let enough = if throughput > 0.0 {
            128.0 / throughput
        } else {
            0.5
        };
        self.lasts = (2.5 * service_time).max(enough).clamp(0.05, 1.0);
        let inflight = self.window.inflight;
        self.window = Window {
            began: now,
            area_at: now,
            inflight,
            most: inflight,
            ..Window::default()
        };
    }

    fn light(&mut self, now: f64, inflight: f64, service_time: f64, samples: f64) {
        if samples >= 8.0 && inflight < 0.7 * self.limit {
            let pace = if self.baseline == 0.0 {
                1.0
            } else if service_time < self.baseline {
                0.4
            } else {
                0.2
            };
            self.baseline += pace * (service_time - self.baseline);
        }
        self.before = None;
        self.restore = 0.0;
        self.costly_cuts = 0;
        self.audit = Audit::None;
        if now - self.last_limited > 10.0 {
            self.next_audit = NEVER;
            self.pause = 1.0;
        }
    }

    fn judge_audit(&mut self, now: f64, e: f64, limit: f64, service_time: f64) {
        self.audit = Audit::None;
        self.last_limited = now;
        self.before = None;
        if e < 0.35 {
            self.baseline = self.baseline.min(service_time);
            self.limit = (0.6 * limit).max(1.0);
            self.pause = (0.5 * self.pause).max(0.5);
        } else {
            self.limit = limit;
            if e > 0.8 && service_time > 1.1 * self.baseline {
                self.baseline = service_time.min(2.0 * self.baseline);
            }
            self.pause = (2.0 * self.pause).min(30.0);
        }
        self.next_audit = now + self.pause.max(4.0 * service_time);
    }

    /// Moves baseline and limit. Returns whether the limit may be dithered.
    fn at_the_limit(
        &mut self,
        now: f64,
        throughput: f64,
        inflight: f64,
        service_time: f64,
    ) -> bool {
        self.last_limited = now;
        if self.next_audit > NEVER / 10.0 {
            self.next_audit = now + 1.0;
        }
        if self.baseline == 0.0 {
            self.baseline = if self.early.1 >= 2.0 {
                (self.early.0 / self.early.1).exp().min(service_time)
            } else {
                0.6 * service_time
            };
        }
        let now_at = [
            throughput.max(0.05).ln(),
            inflight.max(0.3).ln(),
            self.commanded.ln(),
        ];
        let mut cut = f64::NAN;
        if let Some(before) = self.before {
            let moved = now_at[2] - before[2];
            if moved.abs() > 0.02 {
                let dx = (now_at[0] - before[0]).clamp(-1.2, 1.2);
                let dn = (now_at[1] - before[1]).clamp(-1.2, 1.2);
                self.dx = FORGET * self.dx + moved * dx;
                self.dn = (FORGET * self.dn + moved * dn).max(0.0);
                if moved < -0.25 && dn < -0.15 {
                    cut = dx / dn;
                }
            }
        }
        self.before = Some(now_at);
        let e = (self.dx + PRIOR * TOLERANCE) / (self.dn + PRIOR);
        if e < USELESS {
            self.baseline *= 1.0 - GAIN * (USELESS - e).min(0.5);
        } else if e > PAYS && service_time > self.baseline {
            self.baseline *= 1.0 + GAIN * (e - PAYS).min(0.5) * 2.0;
        }
        if service_time < self.baseline {
            self.baseline = 0.9 * self.baseline + 0.1 * service_time;
        }
        if cut.is_finite() {
            self.costly_cuts = if cut > 0.65 { self.costly_cuts + 1 } else { 0 };
        }
        if self.costly_cuts >= 2 && service_time > self.baseline * (1.0 + TOLERANCE) {
            self.baseline = service_time / (1.0 + 0.3 * TOLERANCE);
            self.limit = self.limit.max(self.restore);
            self.restore = 0.0;
            self.costly_cuts = 0;
            self.dx *= 0.2;
            self.dn *= 0.2;
            self.before = None;
        }
        let gradient = (self.baseline * (1.0 + TOLERANCE) / service_time.max(1e-9)).clamp(0.5, 1.5);
        if gradient < 0.8 && self.restore == 0.0 {
            self.restore = self.limit;
        }
        if gradient >= 0.95 {
            self.restore = 0.0;
            self.costly_cuts = 0;
        }
        let target = self.limit * gradient + (self.limit * gradient).sqrt();
        if gradient < 1.0 {
            self.slow_start = false;
        }
        let (target, pace) = if self.slow_start {
            (1.6 * self.limit, 1.0)
        } else if target < self.limit {
            (target, 0.7)
        } else {
            (target, 0.5)
        };
        self.limit = (self.limit + pace * (target - self.limit)).clamp(1.0, 10_000.0);
        gradient > 0.7
    }

    fn allowed(&self) -> usize {
        (self.commanded as usize).max(1)
    }
}

impl Peer for Prototype {
    fn initial(&self) -> usize {
        20
    }

    fn on_start(&mut self, now: f64, inflight: usize) {
        self.window.advance(now);
        if self.window.inflight == 0 {
            self.last_end = now;
        }
        self.window.inflight = inflight;
        self.window.most = self.window.most.max(inflight);
    }

    fn on_refuse(&mut self) {
        self.window.refused = true;
    }

    fn on_end(&mut self, ended: Ended) -> usize {
        let log = ended.took.max(1e-6).ln();
        if ended.inflight <= 3 && self.early.1 < 16.0 && ended.success {
            self.early.0 += log;
            self.early.1 += 1.0;
        }
        let window = &mut self.window;
        window.advance(ended.now);
        window.inflight = ended.inflight_now;
        window.gap = window.gap.max(ended.now - self.last_end);
        self.last_end = ended.now;
        window.done += f64::from(u8::from(ended.success));
        window.logs += log;
        window.samples += 1.0;
        if ended.now - window.began >= self.lasts {
            self.close(ended.now);
        }
        self.allowed()
    }

    fn on_tick(&mut self, now: f64, _cpu: f64) -> usize {
        let age = now - self.window.began;
        let old = age >= (2.0 * self.lasts).max(0.3) && self.window.samples >= 8.0;
        if old || age > 10.0 {
            self.window.advance(now);
            self.close(now);
        }
        self.allowed()
    }
}
