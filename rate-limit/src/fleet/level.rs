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
#[path = "../../tests/inside/level.rs"]
mod tests;
