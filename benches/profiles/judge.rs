//! How what a document promises is judged.

use serde::Serialize;

use crate::measure::{Measured, Second};
use crate::profile::{Level, Profile, Scale};
use crate::target::{Metric, Target, Trigger};

/// A target, held against what was measured at one level.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verdict {
    pub(crate) says: String,
    pub(crate) level: String,
    pub(crate) way: &'static str,
    pub(crate) expected: String,
    pub(crate) measured: Option<f64>,
    pub(crate) met: bool,
}

impl Metric {
    /// The factor that the run applies to a documented number.
    fn factor(self, scale: &Scale) -> f64 {
        match self {
            Self::P50Ms | Self::P95Ms | Self::P99Ms | Self::MeanMs | Self::QueryP95Ms => scale.time,
            Self::ServedPerS => scale.rate(1.0),
            _ => 1.0,
        }
    }

    pub(crate) fn of(self, seen: &Measured) -> Option<f64> {
        match self {
            Self::P50Ms => seen.p50_ms,
            Self::P95Ms => seen.p95_ms,
            Self::P99Ms => seen.p99_ms,
            Self::MeanMs => seen.mean_ms,
            Self::ErrorPct => seen.error_pct,
            Self::TimeoutPct => seen.timeout_pct,
            Self::LimitedPct => seen.limited_pct,
            Self::Lost => Some(seen.lost as f64),
            Self::ServedPerS => Some(seen.served_per_s),
            Self::GoodputPct => seen.goodput_pct,
            Self::ConnectionsPct => Some(seen.connections_pct),
            Self::ConnectionsRefused => Some(seen.connections_refused as f64),
            Self::QueryP95Ms => seen.query_p95_ms,
            Self::SlowQueries => Some(seen.slow_queries as f64),
            Self::HitPct => seen.hit_pct,
            Self::MemoryGrowthPct => seen.memory_growth_pct,
            Self::Sockets => Some(seen.sockets as f64),
            Self::OutboundRefused => seen.outbound_refused.map(|count| count as f64),
            Self::OutboundPerMinute => seen.outbound_per_minute,
            Self::ProbesFailed => Some(seen.probes_failed as f64),
        }
    }

    fn of_second(self, second: &Second) -> Option<f64> {
        match self {
            Self::P50Ms => second.p50_ms,
            Self::P95Ms => second.p95_ms,
            Self::P99Ms => second.p99_ms,
            Self::ErrorPct => {
                (second.offered > 0).then(|| 100.0 * second.failed as f64 / second.offered as f64)
            }
            Self::ServedPerS => Some(second.served as f64),
            Self::ConnectionsPct => Some(second.connections_pct),
            Self::HitPct => second.hit_pct,
            Self::Sockets => Some(second.sockets as f64),
            _ => None,
        }
    }
}

impl Target {
    fn applies(&self, level: &Level) -> bool {
        match self.levels.is_empty() {
            true => level.kind == self.kind,
            false => self.levels.contains(&level.name),
        }
    }

    fn verdict(&self, scale: &Scale, way: &'static str, seen: &Measured) -> Verdict {
        let measured = self.metric.of(seen);
        let factor = self.metric.factor(scale);
        let (sign, bound) = match (self.min, self.max) {
            (Some(min), _) => ("≥", min * factor),
            (None, max) => ("≤", max.unwrap_or(f64::INFINITY) * factor),
        };
        let met = measured.is_some_and(|measured| match sign {
            "≥" => measured >= bound,
            _ => measured <= bound,
        });
        let expected = match factor == 1.0 {
            true => format!("{sign} {}", plain(bound)),
            false => format!("{sign} {} (× {factor})", plain(bound)),
        };
        Verdict {
            says: self.says.clone(),
            level: seen.level.clone(),
            way,
            expected,
            measured,
            met,
        }
    }
}

/// Judges one way of a profile by all targets.
pub(crate) fn judge(profile: &Profile, way: &'static str, seen: &[Measured]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for target in &profile.targets {
        for seen in seen {
            let level = profile.level(&seen.level);
            if level.is_some_and(|level| target.applies(level)) {
                verdicts.push(target.verdict(&profile.scale, way, seen));
            }
        }
    }
    verdicts
}

impl Trigger {
    /// The second at which it first fires.
    pub(crate) fn fires(&self, scale: &Scale, seconds: &[Second]) -> Option<usize> {
        let factor = self.metric.factor(scale);
        let needed = (self.for_s * scale.clock).ceil().max(1.0) as usize;
        let mut lasts = 0;
        for (at, second) in seconds.iter().enumerate() {
            let beyond = self.metric.of_second(second).is_some_and(|value| {
                self.above.is_some_and(|bound| value > bound * factor)
                    || self.below.is_some_and(|bound| value < bound * factor)
            });
            lasts = if beyond { lasts + 1 } else { 0 };
            if lasts >= needed {
                return Some(at);
            }
        }
        None
    }
}

/// A number as a reader wants it: few digits, no trailing zeros.
pub(crate) fn plain(value: f64) -> String {
    let text = match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        toml::from_str(text).expect("a target")
    }

    #[test]
    fn a_bound_in_milliseconds_is_multiplied_by_the_factor_of_times() {
        let target = target("says = 'P95'\nmetric = 'p95_ms'\nmax = 200");
        let scale = Scale {
            time: 4.0,
            ..Scale::default()
        };
        let seen = Measured {
            p95_ms: Some(799.0),
            ..Measured::default()
        };
        let verdict = target.verdict(&scale, "ours", &seen);
        assert!(verdict.met);
        assert_eq!(verdict.expected, "≤ 800 (× 4)");
    }

    #[test]
    fn what_was_not_measured_is_not_met() {
        let target = target("says = 'hits'\nmetric = 'hit_pct'\nmin = 60");
        let verdict = target.verdict(&Scale::default(), "ours", &Measured::default());
        assert!(!verdict.met);
        assert_eq!(verdict.measured, None);
    }

    #[test]
    fn a_trigger_fires_only_after_its_whole_time_in_a_row() {
        let trigger: Trigger =
            toml::from_str("says = 'x'\nmetric = 'p95_ms'\nabove = 1000\nfor_s = 180")
                .expect("a trigger");
        let scale = Scale {
            clock: 1.0 / 60.0,
            ..Scale::default()
        };
        let second = |p95: f64| Second {
            p95_ms: Some(p95),
            ..Second::default()
        };
        let seconds = [1100.0, 1100.0, 900.0, 1100.0, 1100.0, 1100.0].map(second);
        assert_eq!(trigger.fires(&scale, &seconds[..5]), None);
        assert_eq!(trigger.fires(&scale, &seconds), Some(5));
    }

    #[test]
    fn numbers_are_written_without_needless_digits() {
        assert_eq!(
            [0.0, 0.05, 12.0, 12.34, 1234.5].map(plain),
            ["0", "0.05", "12", "12.3", "1234"]
        );
    }
}
