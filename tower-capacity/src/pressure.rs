use std::fmt;

/// How hard a limiter or a pool is pressed, on one scale for both.
///
/// | value | meaning |
/// |---|---|
/// | 0 | idle |
/// | ½ | all permits or connections are in use and nothing waits |
/// | 1 | the queue is as long as what is in use, or longer |
///
/// Meant for readiness probes and [`LimiterBuilder::downstream`]. An autoscaler computes replicas
/// from the excess too: see [`demand_ratio`](Self::demand_ratio).
///
/// ```
/// use tower_capacity::Pressure;
///
/// let pressure = Pressure::of(10, 5, 10);
/// assert_eq!(pressure.value(), 0.75);
/// assert_eq!(pressure.demand_ratio(), 1.5);
/// assert!(pressure > Pressure::ALL_IN_USE);
///
/// // Every other request is refused beside that: twice as much is wanted.
/// assert_eq!(pressure.with_refused(0.5).demand_ratio(), 3.0);
/// assert_eq!(pressure.with_refused(0.5).value(), 0.75);
/// ```
///
/// [`LimiterBuilder::downstream`]: crate::LimiterBuilder::downstream
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Pressure {
    /// What is in use and waits, as a multiple of what there is.
    used: f64,
    /// The same with what is refused.
    demand_ratio: f64,
}

impl Pressure {
    /// Nothing is in use.
    pub const IDLE: Self = Self::used(0.0);
    /// Everything is in use and nothing waits.
    pub const ALL_IN_USE: Self = Self::used(1.0);

    const fn used(used: f64) -> Self {
        Self {
            used,
            demand_ratio: used,
        }
    }

    /// The pressure on `size` permits of which `in_use` are out while `waiting` requests wait. A
    /// size of zero counts as one.
    #[must_use]
    pub fn of(in_use: usize, waiting: usize, size: usize) -> Self {
        Self::used((in_use + waiting) as f64 / size.max(1) as f64)
    }

    /// The same where this share of all requests is refused, from 0 to 1: the demand is what would be in
    /// use and wait if none were, up to 10,000 times as much. The [value](Self::value) stays.
    #[must_use]
    pub fn with_refused(self, share: f64) -> Self {
        let share = if share.is_nan() { 0.0 } else { share };
        Self {
            demand_ratio: self.used / (1.0 - share.clamp(0.0, MOST_REFUSED)),
            ..self
        }
    }

    /// The pressure, from 0 to 1.
    #[must_use]
    pub fn value(self) -> f64 {
        (self.used / 2.0).min(1.0)
    }

    /// What is wanted (in use, waiting, and refused) as a multiple of what there is. It is above 1
    /// while requests wait or are refused, and not clamped there: with the load three times what a service
    /// can do, it is about 3, and so is the number of replicas that would serve it.
    #[must_use]
    pub const fn demand_ratio(self) -> f64 {
        self.demand_ratio
    }
}

/// A share of 1 would be a demand without end.
const MOST_REFUSED: f64 = 0.9999;

/// Reads a value of the scale; below 0 and NaN become 0, above 1 becomes 1.
impl From<f64> for Pressure {
    fn from(value: f64) -> Self {
        let value = if value.is_nan() { 0.0 } else { value };
        Self::used(2.0 * value.clamp(0.0, 1.0))
    }
}

/// The value, for what stores or publishes a number.
impl From<Pressure> for f64 {
    fn from(pressure: Pressure) -> Self {
        pressure.value()
    }
}

/// The value, with two decimals.
impl fmt::Display for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2}", self.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_is_a_half_when_all_are_in_use_and_one_behind_a_queue_as_long() {
        assert_eq!(Pressure::of(0, 0, 4).value(), 0.0);
        assert_eq!(Pressure::of(4, 0, 4), Pressure::ALL_IN_USE);
        assert_eq!(Pressure::of(4, 0, 4).value(), 0.5);
        assert_eq!(Pressure::of(4, 4, 4).value(), 1.0);
        assert_eq!(Pressure::of(4, 40, 4).value(), 1.0);
        assert_eq!(Pressure::of(4, 40, 4).demand_ratio(), 11.0);
    }

    #[test]
    fn what_is_refused_is_wanted_and_does_not_move_the_value() {
        let pressure = Pressure::of(4, 0, 4).with_refused(0.75);
        assert_eq!(pressure.demand_ratio(), 4.0);
        assert_eq!(pressure.value(), 0.5);
        assert!(Pressure::ALL_IN_USE.with_refused(1.0).demand_ratio() < 10_001.0);
        assert_eq!(
            Pressure::ALL_IN_USE.with_refused(f64::NAN),
            Pressure::ALL_IN_USE
        );
        assert_eq!(Pressure::IDLE.with_refused(0.9), Pressure::IDLE);
    }

    #[test]
    fn a_number_out_of_range_becomes_the_nearest_value() {
        for (number, value) in [(f64::NAN, 0.0), (-1.0, 0.0), (0.75, 0.75), (3.0, 1.0)] {
            assert_eq!(f64::from(Pressure::from(number)), value, "{number}");
        }
    }
}
