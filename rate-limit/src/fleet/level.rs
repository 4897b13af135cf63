//! GCRA in level form: what a Redis script can count exactly.
//!
//! The level of a key is the work it owes. A cell costs `price`, `drain` of it is paid every
//! microsecond, and a request conforms while the level stays within `capacity`. With
//! `price / drain = period / count` in microseconds, in lowest terms, that is the same algorithm
//! as the TAT of `gcra.rs` (TAT = now + level / drain), in integers and without rounding. Lua has
//! only doubles, which are exact up to 2^53; what would not fit is refused when a limiter is built.
//! TATs would not do: in microseconds they misrate 300 000 a second by a tenth, and nanoseconds
//! since 1970 are not representable.

use crate::{
    Quota, QuotaError,
    gcra::{Excess, Gcra},
    quota::Problem,
};

/// A quota, compiled for Redis.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Level {
    /// What a cell costs.
    pub(crate) price: u64,
    /// What is paid a microsecond.
    pub(crate) drain: u64,
    /// What may be owed.
    pub(crate) capacity: u64,
}

impl Level {
    pub(crate) fn new(quota: &Quota) -> Result<Self, QuotaError> {
        // Whatever means nothing is refused there.
        Gcra::new(quota)?;
        // Both at most 2^62; a thousand times the count fits, there is at most one a nanosecond
        // and at least one a period.
        let period = quota.period().as_nanos();
        let count = 1_000 * u128::from(quota.cells());
        let divisor = gcd(period, count);
        let (price, drain) = (period / divisor, count / divisor);
        let largest = u128::from(EXACT / 2) / price;
        let burst = u128::from(quota.burst_size());
        if burst > largest || drain > u128::from(EXACT) {
            let largest = if drain > u128::from(EXACT) {
                0
            } else {
                largest
            };
            return Err(QuotaError::new(
                *quota,
                Problem::NotExactInRedis {
                    largest: largest as u64,
                },
            ));
        }
        Ok(Self {
            price: price as u64,
            drain: drain as u64,
            capacity: (price * burst) as u64,
        })
    }

    /// The same with `cells` fewer in a burst, but at least one.
    pub(crate) fn reserving(mut self, cells: u64) -> Self {
        let reserved = cells.saturating_mul(self.price);
        self.capacity = self.capacity.saturating_sub(reserved).max(self.price);
        self
    }

    /// How many cells may be used at once.
    pub(crate) fn burst(&self) -> u64 {
        self.capacity / self.price
    }

    /// How many cells come back in `nanos` nanoseconds.
    pub(crate) fn cells_in(&self, nanos: u64) -> u64 {
        let back = u128::from(nanos) * u128::from(self.drain) / 1_000;
        u64::try_from(back / u128::from(self.price)).unwrap_or(u64::MAX)
    }

    /// How many cells fit on top of `level`.
    pub(crate) fn remaining(&self, level: u64) -> u64 {
        self.capacity.saturating_sub(level) / self.price
    }

    /// When `cells` will fit on top of `level`, if they do not now.
    pub(crate) fn excess(&self, level: u64, cells: u64) -> Option<Excess> {
        let cost = cells.saturating_mul(self.price);
        if cells == 0 || level.saturating_add(cost) <= self.capacity {
            None
        } else if cost > self.capacity {
            Some(Excess::Never)
        } else {
            Some(Excess::Wait(self.nanos(level + cost - self.capacity)))
        }
    }

    /// Nanoseconds in which `level` drains.
    pub(crate) fn nanos(&self, level: u64) -> u64 {
        // Below 2^53 * 1000, and by more than 1 only when that is much less.
        (u128::from(level) * 1_000).div_ceil(u128::from(self.drain)) as u64
    }

    /// What is left of `level` after `nanos` nanoseconds.
    pub(crate) fn after(&self, level: u64, nanos: u64) -> u64 {
        let drained = u128::from(nanos) * u128::from(self.drain) / 1_000;
        u128::from(level).saturating_sub(drained) as u64
    }
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Doubles count exactly up to here. A debt of two bursts must fit.
pub(super) const EXACT: u64 = (1 << 53) - 1;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::{DAY, MINUTE, SECOND};

    fn level(quota: Quota) -> Level {
        Level::new(&quota).unwrap()
    }

    #[test]
    fn rates_that_are_not_whole_microseconds_are_exact() {
        let fast = level(Quota::count(300_000).per(SECOND));
        assert_eq!((fast.price, fast.drain), (10, 3));
        let odd = level(Quota::count(7).per(SECOND).burst(1));
        assert_eq!(
            (odd.price, odd.drain, odd.capacity),
            (1_000_000, 7, 1_000_000)
        );
        let daily = level(Quota::count(1_000_000).per(DAY).burst(100_000));
        assert_eq!((daily.price, daily.drain), (86_400, 1));
    }

    #[test]
    fn what_redis_cannot_count_exactly_is_refused_and_the_largest_burst_is_named() {
        let month = 30 * DAY;
        assert!(Level::new(&Quota::count(1).per(month).burst(1_700)).is_ok());
        let error = Level::new(&Quota::count(1).per(month).burst(1_779)).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("expected a burst of at most 1737 at this rate"),
            "{error}"
        );
    }

    #[test]
    fn it_names_the_wait_to_the_nanosecond() {
        let level = level(Quota::count(60).per(MINUTE).burst(2));
        assert_eq!(level.excess(0, 2), None);
        assert_eq!(level.excess(1, 2), Some(Excess::Wait(1_000)));
        assert_eq!(level.excess(0, 3), Some(Excess::Never));
        assert_eq!(level.remaining(1), 1);
    }

    proptest! {
        /// Both forms of the algorithm agree on what conforms, up to the rounding of the TAT.
        #[test]
        fn it_agrees_with_the_tat_form(
            count in 1u64..1_000_000,
            period_us in 1_000u64..100_000_000,
            burst in 1u64..1_000,
            steps in proptest::collection::vec((0u64..5_000_000, 1u64..20), 1..100),
        ) {
            // Whole nanoseconds a cell, so that the TAT is exact too.
            let quota = Quota::count(count).per(Duration::from_micros(period_us)).burst(burst);
            let whole = (period_us * 1_000).is_multiple_of(count);
            let (Ok(level), Ok(gcra)) = (Level::new(&quota), Gcra::new(&quota)) else {
                return Ok(());
            };
            if !whole { return Ok(()); }
            let (mut owed, mut tat, mut now) = (0, 0, 0);
            for (gap_us, cells) in steps {
                now += gap_us * 1_000;
                owed = level.after(owed, gap_us * 1_000);
                let conforms = level.excess(owed, cells);
                match gcra.charge(tat, now, cells) {
                    Ok(next) => {
                        prop_assert_eq!(conforms, None);
                        tat = next;
                        owed += cells * level.price;
                    }
                    Err(excess) => prop_assert_eq!(conforms, Some(excess)),
                }
            }
        }
    }
}
