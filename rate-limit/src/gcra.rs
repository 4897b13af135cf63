//! The generic cell rate algorithm on one word of state.
//!
//! ITU-T I.371 annex A, virtual scheduling form: a key's state is its *theoretical arrival time*
//! (TAT), the moment at which its debt is paid. A request of `n` cells at `now` conforms when
//!
//! ```text
//! max(TAT, now) + n·T − now ≤ B·T        T = period / count,  B = burst
//! ```
//!
//! and then the left sum becomes the new TAT. For whole `T` and one cell this is exactly what
//! governor computes; `tests/differential.rs` holds the two against each other.
//!
//! **Rounding.** `T` is rounded up, so a key never gets more than its quota. To keep the loss
//! below 1/16384 for fast rates, `T` is kept in units of `2^-shift` ns when it is not a whole
//! number of nanoseconds and shorter than 16.4 µs. There the clock wraps within days of uptime
//! instead of centuries, so a debt larger than [`Gcra::horizon`] is read as a debt long paid. A
//! key that comes back after being idle for a whole wrap (26 days at 300 million a second) is
//! misread, as a debtor of at most two bursts, with a chance of `horizon / 2^64` (one in two
//! million for a one-second burst). For the same reason such a quota forgets a debt when its
//! clock runs *backward* by more than two bursts, which `Instant` never does.

use crate::quota::{Problem, Quota, QuotaError};

/// A quota, compiled: all times in ticks of `2^-shift` ns.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Gcra {
    shift: u32,
    interval: u64,
    burst: u64,
    capacity: u64,
    horizon: u64,
}

/// Why a request does not conform.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Excess {
    /// It will conform after this many nanoseconds, if nothing else is charged.
    Wait(u64),
    /// It asks for more than the burst and can never conform.
    Never,
}

impl Quota {
    /// Checks that the quota can be enforced, without building anything.
    ///
    /// # Errors
    ///
    /// Fails when the count, the period or the burst is zero, when cells would come back faster
    /// than one per nanosecond, or when refilling the burst would take more than 146 years (less
    /// for rates that are not a whole number of nanoseconds per cell).
    pub fn validate(&self) -> Result<(), QuotaError> {
        Gcra::new(self).map(|_| ())
    }
}

impl Gcra {
    pub(crate) fn new(quota: &Quota) -> Result<Self, QuotaError> {
        let refuse = |problem| Err(QuotaError::new(*quota, problem));
        let (count, burst) = (quota.cells(), quota.burst_size());
        if count == 0 {
            return refuse(Problem::ZeroCount);
        }
        if burst == 0 {
            return refuse(Problem::ZeroBurst);
        }
        if quota.period().is_zero() {
            return refuse(Problem::ZeroPeriod);
        }
        let period = match u64::try_from(quota.period().as_nanos()) {
            Ok(period) if period <= MAX_CAPACITY => period,
            _ => return refuse(Problem::PeriodTooLong),
        };
        if count > period {
            return refuse(Problem::TooFast);
        }

        let mut shift = 0;
        if !period.is_multiple_of(count) {
            while (u128::from(period) << shift) / u128::from(count) < u128::from(MIN_INTERVAL) {
                shift += 1;
            }
        }
        // At most `period` for `shift == 0`, else less than `2 * MIN_INTERVAL`: fits.
        let interval = (u128::from(period) << shift).div_ceil(u128::from(count)) as u64;
        let max_capacity = if shift == 0 {
            MAX_CAPACITY
        } else {
            MAX_WRAPPING_CAPACITY
        };
        let capacity = match interval.checked_mul(burst) {
            Some(capacity) if capacity <= max_capacity => capacity,
            _ => {
                return refuse(Problem::BurstTooLong {
                    largest: max_capacity / interval,
                });
            }
        };
        let horizon = if shift == 0 { 1 << 63 } else { 2 * capacity };
        Ok(Self {
            shift,
            interval,
            burst,
            capacity,
            horizon,
        })
    }

    /// The quota as governor states it, where governor keeps it to the same nanosecond.
    pub(crate) fn to_governor(self) -> Option<governor::Quota> {
        if self.shift != 0 {
            return None;
        }
        let burst = std::num::NonZeroU32::new(u32::try_from(self.burst).ok()?)?;
        let interval = std::time::Duration::from_nanos(self.interval);
        Some(governor::Quota::with_period(interval)?.allow_burst(burst))
    }

    /// Charges `cells` at `now` (nanoseconds); returns the new TAT.
    #[inline]
    pub(crate) fn charge(&self, tat: u64, now: u64, cells: u64) -> Result<u64, Excess> {
        if cells > self.burst {
            return Err(Excess::Never);
        }
        if cells == 0 {
            // Free, even to a key that owes more than a burst.
            return Ok(tat);
        }
        // No overflow: debt ≤ 2^63, and cells ≤ burst bounds the product by the capacity ≤ 2^62.
        let owed = self.debt(tat, now) + cells * self.interval;
        match owed.checked_sub(self.capacity) {
            None | Some(0) => Ok(self.ticks(now).wrapping_add(owed)),
            Some(excess) => Err(Excess::Wait(self.nanos_up(excess))),
        }
    }

    /// Charges `cells` whether they conform or not; the debt stops at twice the burst.
    pub(crate) fn charge_anyway(&self, tat: u64, now: u64, cells: u64) -> u64 {
        let owed = self
            .debt(tat, now)
            .saturating_add(cells.saturating_mul(self.interval));
        let most = (2 * self.capacity).max(self.debt(tat, now));
        self.ticks(now).wrapping_add(owed.min(most))
    }

    /// Gives `cells` back; a key is never credited beyond a full burst.
    pub(crate) fn refund(&self, tat: u64, now: u64, cells: u64) -> u64 {
        let owed = self
            .debt(tat, now)
            .saturating_sub(cells.saturating_mul(self.interval));
        self.ticks(now).wrapping_add(owed)
    }

    /// How many cells could be charged at `now`.
    #[inline]
    pub(crate) fn remaining(&self, tat: u64, now: u64) -> u64 {
        self.capacity.saturating_sub(self.debt(tat, now)) / self.interval
    }

    /// Nanoseconds until `cells` would conform.
    pub(crate) fn wait_for(&self, tat: u64, now: u64, cells: u64) -> u64 {
        let owed = self
            .debt(tat, now)
            .saturating_add(cells.saturating_mul(self.interval));
        self.nanos_up(owed.saturating_sub(self.capacity))
    }

    /// Nanoseconds in which `cells` come back.
    pub(crate) fn nanos_for(&self, cells: u64) -> u64 {
        self.nanos_up(cells.saturating_mul(self.interval))
    }

    /// Charges `cells` that another quota has admitted: the debt stops at one burst, so that what
    /// this quota has not decided never makes a key wait longer than its whole burst takes.
    pub(crate) fn charge_along(&self, tat: u64, now: u64, cells: u64) -> u64 {
        let debt = self.debt(tat, now);
        let owed = debt.saturating_add(cells.saturating_mul(self.interval));
        let most = self.capacity.max(debt);
        self.ticks(now).wrapping_add(owed.min(most))
    }

    /// The TAT of a key that owes as many cells of this quota as `tat` owes of `other`; at most a
    /// burst.
    pub(crate) fn carry(&self, other: &Self, tat: u64, now: u64) -> u64 {
        let debt = u128::from(other.debt(tat, now)) * u128::from(self.interval);
        let debt = debt
            .div_ceil(u128::from(other.interval))
            .min(u128::from(self.capacity));
        self.ticks(now).wrapping_add(debt as u64)
    }

    /// The later of two TATs.
    pub(crate) fn later(&self, a: u64, b: u64, now: u64) -> u64 {
        if self.debt(b, now) > self.debt(a, now) {
            b
        } else {
            a
        }
    }

    /// How much a key would get if its debt were forgotten, for comparing keys of any quotas: 0
    /// for nothing; less than 1, the part of the burst in use, while a cell is left; above 2 when
    /// none is, the higher the longer ago the last one was charged; above 4 for a debt beyond a
    /// burst.
    ///
    /// Of exhausted keys the one charged last ranks lowest, so that a flood of keys that exhaust
    /// themselves replaces its own.
    pub(crate) fn rank(&self, tat: u64, now: u64) -> f64 {
        let debt = self.debt(tat, now);
        let full = self.capacity as f64;
        match self.capacity.checked_sub(debt) {
            _ if debt == 0 => 0.0,
            None => 4.0 + (debt - self.capacity) as f64 / full,
            Some(room) if room < self.interval => {
                let since = (room >> self.shift) as f64;
                2.0 + since / (since + 1e9)
            }
            Some(_) => debt as f64 / full,
        }
    }

    /// The TAT that leaves a single cell at `at`, and the rest at the pace of the quota; a debt
    /// that is larger stays.
    pub(crate) fn leave_one_at(&self, tat: u64, at: u64) -> u64 {
        let owed = self.debt(tat, at).max(self.capacity - self.interval);
        self.ticks(at).wrapping_add(owed)
    }

    /// The TAT of a key that has paid its debt `nanos` nanoseconds after `now`.
    #[cfg(feature = "redis")]
    pub(crate) fn owing(&self, now: u64, nanos: u64) -> u64 {
        self.ticks(now).wrapping_add(self.ticks(nanos))
    }

    /// How many cells may be used at once.
    #[inline]
    pub(crate) fn burst(&self) -> u64 {
        self.burst
    }

    /// Nanoseconds until the debt is paid.
    pub(crate) fn debt_nanos(&self, tat: u64, now: u64) -> u64 {
        self.nanos_up(self.debt(tat, now))
    }

    #[inline]
    fn debt(&self, tat: u64, now: u64) -> u64 {
        // Zero is the TAT of a key that was never seen. Fine quotas wrap around, so at some times it
        // would look like a debt; a debt that happens to be zero is forgiven.
        let debt = tat.wrapping_sub(self.ticks(now));
        if tat == 0 || debt > self.horizon {
            0
        } else {
            debt
        }
    }

    #[inline]
    fn ticks(&self, nanos: u64) -> u64 {
        nanos << self.shift
    }

    #[inline]
    fn nanos_up(&self, ticks: u64) -> u64 {
        (ticks >> self.shift) + u64::from(ticks & ((1 << self.shift) - 1) != 0)
    }
}

/// The longest time in which a burst may come back, 2^62 ns or 146 years: the sum of two still
/// fits a signed word.
const MAX_CAPACITY: u64 = 1 << 62;

/// The same where the clock wraps, in ticks: it bounds the chance of misreading an idle key.
const MAX_WRAPPING_CAPACITY: u64 = 1 << 52;

/// The shortest interval that may be rounded, in ticks: an error below 1/16384.
const MIN_INTERVAL: u64 = 1 << 14;

#[cfg(test)]
#[path = "../tests/inside/gcra.rs"]
mod tests;
