//! The table as a state store of governor's, and the clock that goes with it.

use std::{
    cell::Cell,
    hash::{Hash, Hasher},
    ops::Add,
    sync::{Arc, atomic::Ordering},
};

use governor::{
    clock::{Clock as GovernorClock, Reference},
    nanos::Nanos,
    state::StateStore,
};

use super::{Slot, Table};

/// The table, as governor sees it.
#[derive(Clone, Debug)]
pub(crate) struct Store(pub(crate) Arc<Table>);

/// A key with an entry that has been found already; brings the TAT back, which governor does not return.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Probe {
    slot: usize,
    tat: Cell<u64>,
}

impl Probe {
    #[inline]
    pub(crate) fn new(slot: Slot) -> Self {
        Self {
            slot: slot.0,
            tat: Cell::new(0),
        }
    }

    /// The TAT after the decision.
    #[inline]
    pub(crate) fn tat(&self) -> u64 {
        self.tat.get()
    }
}

impl Hash for Probe {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.slot.hash(state);
    }
}

impl StateStore for Store {
    type Key = Probe;

    #[inline]
    fn measure_and_replace<T, F, E>(&self, probe: &Probe, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let word = self.0.tat(Slot(probe.slot), 0);
        let mut tat = word.load(Ordering::Acquire);
        loop {
            probe.tat.set(tat);
            let (outcome, next) = decide((tat != 0).then(|| Nanos::from(tat)))?;
            let next = next.as_u64();
            match word.compare_exchange_weak(tat, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    probe.tat.set(next);
                    return Ok(outcome);
                }
                Err(now) => tat = now,
            }
        }
    }
}

/// Nanoseconds since the table was made.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Tick(pub(crate) u64);

impl Add<Nanos> for Tick {
    type Output = Self;

    #[inline]
    fn add(self, nanos: Nanos) -> Self {
        Self(self.0.saturating_add(nanos.as_u64()))
    }
}

impl Reference for Tick {
    #[inline]
    fn duration_since(&self, earlier: Self) -> Nanos {
        Nanos::from(self.0.saturating_sub(earlier.0))
    }

    #[inline]
    fn saturating_sub(&self, nanos: Nanos) -> Self {
        Self(self.0.checked_sub(nanos.as_u64()).unwrap_or(self.0))
    }
}

/// A clock that shows the time that was last set in this thread.
///
/// One reading serves a whole decision, so it is taken outside and told to governor. governor
/// counts from whatever its clock reads while a limiter is built: told zero then, every governor
/// limiter over a table counts from the moment the table was made, so one can be replaced (a
/// reload) or read around (peek, refund) without converting TATs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ToldClock;

impl ToldClock {
    #[inline]
    pub(crate) fn tell(now: u64) {
        TOLD.set(now);
    }
}

impl GovernorClock for ToldClock {
    type Instant = Tick;

    #[inline]
    fn now(&self) -> Tick {
        Tick(TOLD.get())
    }
}

thread_local!(static TOLD: Cell<u64> = const { Cell::new(0) });
