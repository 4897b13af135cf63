//! Whether the constants of a tuner can hold.

use std::time::Duration;

use crate::BuildError;
use crate::tuner::TunerConfig;

/// Longer ones could overflow when added to a time.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

pub(crate) fn check_tuner(config: &TunerConfig) -> Result<(), BuildError> {
    let TunerConfig { knee, dial, .. } = config;
    let parts = [
        ("full", config.full),
        ("shrink_step", config.shrink_step),
        ("dead_band", config.dead_band),
        ("knee.worth", knee.worth),
        ("knee.dither", knee.dither),
    ];
    for (name, value) in parts {
        expect((0.0..=1.0).contains(&value), name, value, "from 0 to 1")?;
    }
    let factors = [("inflated", config.inflated), ("knee.growth", knee.growth)];
    for (name, value) in factors {
        let is_factor = value.is_finite() && value > 1.0;
        expect(is_factor, name, value, "a finite number above 1")?;
    }
    let positive = [
        ("knee.precision", knee.precision),
        ("dial.per_second", dial.per_second),
    ];
    for (name, value) in positive {
        let is_positive = value.is_finite() && value > 0.0;
        expect(is_positive, name, value, "a finite number above 0")?;
    }
    let is_burst = dial.burst.is_finite() && dial.burst >= 1.0;
    expect(
        is_burst,
        "dial.burst",
        dial.burst,
        "a finite number, at least 1",
    )?;
    expect(dial.at_once > 0, "dial.at_once", dial.at_once, "at least 1")?;

    let times = [
        ("min_window", config.min_window),
        ("max_window", config.max_window),
        ("drain_backlog_in", config.drain_backlog_in),
        ("shrink_horizon", config.shrink_horizon),
        ("shrink_every", config.shrink_every),
        ("knee.settle", knee.settle),
        ("knee.measure", knee.measure),
        ("knee.open_within", knee.open_within),
        ("knee.slot", knee.slot),
        ("knee.retry", knee.retry),
        ("knee.retry_max", knee.retry_max),
        ("knee.retry_growth_max", knee.retry_growth_max),
        ("knee.forget", knee.forget),
    ];
    for (name, time) in times {
        let is_time = !time.is_zero() && time <= LONGEST;
        expect(is_time, name, Quoted(time), "above 0 s, at most a year")?;
    }
    let or_none = [
        ("slow_wait", config.slow_wait),
        ("give_back_after", config.give_back_after),
        ("dial.freeze", dial.freeze),
    ];
    for (name, time) in or_none {
        expect(time <= LONGEST, name, Quoted(time), "at most a year")?;
    }
    let in_order = [
        (
            "max_window",
            config.max_window,
            config.min_window,
            "min_window",
        ),
        ("knee.retry_max", knee.retry_max, knee.retry, "knee.retry"),
    ];
    for (name, longest, shortest, least) in in_order {
        let least = format!("at least {least}, {shortest:?}");
        expect(longest >= shortest, name, Quoted(longest), &least)?;
    }
    Ok(())
}

/// A time as `1.5s`.
struct Quoted(Duration);

impl std::fmt::Display for Quoted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(&self.0, f)
    }
}

fn expect(
    holds: bool,
    name: &str,
    value: impl std::fmt::Display,
    expected: &str,
) -> Result<(), BuildError> {
    if holds {
        return Ok(());
    }
    Err(BuildError::Setting(format!(
        "tuner.{name} is {value}: expected {expected}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut TunerConfig);

    #[test]
    fn a_constant_out_of_range_is_refused_with_its_name_its_value_and_the_range() {
        let refused = |change: Change| {
            let mut config = TunerConfig::default();
            change(&mut config);
            let error = check_tuner(&config).expect_err("it is out of range");
            error.to_string()
        };
        assert_eq!(check_tuner(&TunerConfig::default()), Ok(()));
        assert_eq!(
            refused(|c| c.full = f64::NAN),
            "tuner.full is NaN: expected from 0 to 1"
        );
        assert_eq!(
            refused(|c| c.dial.per_second = f64::INFINITY),
            "tuner.dial.per_second is inf: expected a finite number above 0"
        );
        assert_eq!(
            refused(|c| c.knee.retry_max = Duration::from_secs(1)),
            "tuner.knee.retry_max is 1s: expected at least knee.retry, 5s"
        );
        let others: [(&str, Change); 13] = [
            ("full", |c| c.full = -1.0),
            ("shrink_step", |c| c.shrink_step = 2.0),
            ("knee.worth", |c| c.knee.worth = f64::NAN),
            ("knee.growth", |c| c.knee.growth = 0.0),
            ("knee.precision", |c| c.knee.precision = f64::NAN),
            ("knee.dither", |c| c.knee.dither = 7.0),
            ("knee.measure", |c| c.knee.measure = Duration::ZERO),
            ("dial.burst", |c| c.dial.burst = f64::INFINITY),
            ("dial.at_once", |c| c.dial.at_once = 0),
            ("dial.freeze", |c| c.dial.freeze = Duration::MAX),
            ("max_window", |c| c.max_window = Duration::MAX),
            ("max_window", |c| c.max_window = Duration::from_millis(1)),
            ("shrink_horizon", |c| c.shrink_horizon = Duration::MAX),
        ];
        for (name, change) in others {
            let error = refused(change);
            assert!(error.starts_with(&format!("tuner.{name} is ")), "{error}");
        }
    }
}
