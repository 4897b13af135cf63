/// By how much in an interval: a tenth, the step of most AIMD limiters.
const DOWN: f64 = 0.9;
const UP: f64 = 1.1;
/// What a signal leaves of the limit at least. It may be of others' making (a neighbour, reclaim for
/// another process), and then stays as it is whatever is refused here; of what is of ours, the law
/// takes the rest.
const LEAST: f64 = 0.5;

/// What a signal makes of the limit.
#[derive(Debug)]
pub(super) struct Brake {
    /// The share above which the limit is lowered.
    high: f64,
    /// The share below which it is let go.
    low: f64,
    ceiling: Option<f64>,
    /// Half of the limit that the ceiling came from.
    least: f64,
}

impl Brake {
    pub(super) const fn new(high: f64, low: f64) -> Self {
        Self {
            high,
            low,
            ceiling: None,
            least: 0.0,
        }
    }

    /// The ceiling after an interval with this share.
    pub(super) fn on_interval(&mut self, share: f64, limit: usize) -> usize {
        if share > self.high {
            if self.ceiling.is_none() {
                self.least = LEAST * limit as f64;
            }
            let from = self.ceiling.unwrap_or(f64::MAX).min(limit as f64);
            self.ceiling = Some((from * DOWN).max(self.least).max(1.0));
        } else if share < self.low
            && let Some(ceiling) = self.ceiling
        {
            // Let go when the law no longer touches it.
            let raised = ceiling * UP + 1.0;
            self.ceiling = ((limit as f64) + 1.0 >= ceiling.floor()).then_some(raised);
        }
        self.ceiling.map_or(usize::MAX, |ceiling| ceiling as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brake_lowers_under_pressure_holds_in_between_and_lets_go() {
        let mut brake = Brake::new(0.8, 0.6);
        assert_eq!(brake.on_interval(0.5, 100), usize::MAX);
        assert_eq!(brake.on_interval(0.9, 100), 90);
        assert_eq!(brake.on_interval(0.9, 90), 81);
        assert_eq!(brake.on_interval(0.7, 81), 81, "between the two it holds");
        let mut limit = 81;
        let mut ceilings = Vec::new();
        for _ in 0..20 {
            let ceiling = brake.on_interval(0.1, limit);
            ceilings.push(ceiling);
            // The law wants 110.
            limit = ceiling.min(110);
        }
        assert!(ceilings.is_sorted(), "{ceilings:?}");
        assert_eq!(ceilings.last(), Some(&usize::MAX));
    }

    #[test]
    fn a_pressure_that_nothing_here_relieves_takes_half_of_the_limit_and_no_more() {
        let mut brake = Brake::new(0.8, 0.6);
        let mut limit = 100;
        for _ in 0..200 {
            limit = limit.min(brake.on_interval(1.0, limit));
        }
        assert_eq!(limit, 50);
    }

    #[test]
    fn the_brake_never_goes_below_one() {
        let mut brake = Brake::new(0.8, 0.6);
        let last = (0..200).map(|_| brake.on_interval(1.0, 3)).last();
        assert_eq!(last, Some(1));
    }
}
