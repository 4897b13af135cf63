//! What happens at the gate, counted without locks and read as windows.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::clock::Clock;
use crate::holders::{Counts, Holders};
use crate::metrics::Unserved;
use crate::tuner::PoolWindow;

/// Running totals of one pool.
///
/// Each is read on its own, so a window may see a checkout's arrival and the next one its wait:
/// nothing is lost, and sums are off by at most what is going on at that moment.
#[derive(Debug)]
pub(crate) struct Stats {
    clock: Clock,
    slow_wait: Duration,
    timeouts: AtomicU64,
    shed: AtomicU64,
    cancelled: AtomicU64,
    slow_waits: AtomicU64,
    wait_us: AtomicU64,
    dials: AtomicU64,
    dial_us: AtomicU64,
    late_dials: AtomicU64,
    queueing: TimeIntegral,
    waits: WaitHistogram,
    /// In the order of [`Unserved::ALL`].
    unserved: [AtomicU64; Unserved::ALL.len()],
    /// Microseconds after which a use says nothing of the usual ones.
    held_after_us: AtomicU64,
}

impl Stats {
    pub(crate) fn new(clock: Clock, slow_wait: Duration) -> Self {
        Self {
            clock,
            slow_wait,
            timeouts: AtomicU64::new(0),
            shed: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            slow_waits: AtomicU64::new(0),
            wait_us: AtomicU64::new(0),
            dials: AtomicU64::new(0),
            dial_us: AtomicU64::new(0),
            late_dials: AtomicU64::new(0),
            queueing: TimeIntegral::default(),
            waits: WaitHistogram::default(),
            unserved: Default::default(),
            held_after_us: AtomicU64::new(u64::MAX),
        }
    }

    /// From now on uses longer than this are not counted among the others.
    pub(crate) fn hold_after(&self, after: Duration) {
        self.held_after_us.store(after.as_micros() as u64, Relaxed);
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Now, as the clock has it.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.clock.now()
    }

    pub(crate) fn queued(&self, now: u64) {
        self.queueing.enter(micros(now));
    }

    /// A checkout that got no connection.
    pub(crate) fn unserved(&self, reason: Unserved) {
        self.unserved[reason as usize].fetch_add(1, Relaxed);
    }

    /// The checkouts that got no connection since the pool was built, in the order of
    /// [`Unserved::ALL`].
    #[cfg(feature = "otel")]
    pub(crate) fn all_unserved(&self) -> [u64; Unserved::ALL.len()] {
        Unserved::ALL.map(|reason| self.unserved[reason as usize].load(Relaxed))
    }

    /// A checkout that was refused before it waited.
    pub(crate) fn turned_away(&self) {
        self.shed.fetch_add(1, Relaxed);
    }

    /// The end of a wait, whatever came of it.
    pub(crate) fn waited(&self, since: u64, now: u64, end: WaitEnd) {
        let (since, now) = (micros(since), micros(now));
        self.queueing.leave(now, since);
        // As the integral has it, so that the difference of both is the wait of those still queued.
        let us = now.saturating_sub(since);
        let wait = Duration::from_micros(us);
        self.wait_us.fetch_add(us, Relaxed);
        self.waits.record(wait);
        if wait > self.slow_wait {
            self.slow_waits.fetch_add(1, Relaxed);
        }
        match end {
            WaitEnd::Admitted | WaitEnd::Closed => {}
            WaitEnd::TimedOut => _ = self.timeouts.fetch_add(1, Relaxed),
            WaitEnd::Shed => _ = self.shed.fetch_add(1, Relaxed),
            WaitEnd::Cancelled => _ = self.cancelled.fetch_add(1, Relaxed),
        }
    }

    pub(crate) fn opened(&self, took: Duration) {
        self.dial_us.fetch_add(took.as_micros() as u64, Relaxed);
        self.dials.fetch_add(1, Relaxed);
    }

    /// A checkout gave up while a connection was being opened for it.
    pub(crate) fn came_late(&self) {
        self.late_dials.fetch_add(1, Relaxed);
    }

    /// Whether a use that lasted as long says something of others.
    #[inline]
    pub(crate) fn is_usual(&self, ns: u64) -> bool {
        micros(ns) <= self.held_after_us.load(Relaxed)
    }

    fn totals(&self, holders: &Holders) -> Totals {
        let now = self.now();
        let at = micros(now);
        let counts = holders.counts();
        Totals {
            at,
            counts,
            busy_ns: counts.busy_ns(now),
            timeouts: self.timeouts.load(Relaxed),
            shed: self.shed.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            slow_waits: self.slow_waits.load(Relaxed),
            wait_us: self.wait_us.load(Relaxed),
            dials: self.dials.load(Relaxed),
            dial_us: self.dial_us.load(Relaxed),
            late_dials: self.late_dials.load(Relaxed),
            queueing_us: self.queueing.read(at),
            waits: self.waits.read(),
        }
    }
}

/// What the integrals count in.
#[inline]
const fn micros(nanos: u64) -> u64 {
    nanos / 1_000
}

/// What ended a wait.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WaitEnd {
    Admitted,
    TimedOut,
    Shed,
    Closed,
    Cancelled,
}

/// All totals at one moment.
#[derive(Clone, Debug)]
struct Totals {
    at: u64,
    counts: Counts,
    timeouts: u64,
    shed: u64,
    cancelled: u64,
    slow_waits: u64,
    wait_us: u64,
    dials: u64,
    dial_us: u64,
    late_dials: u64,
    busy_ns: i64,
    queueing_us: u64,
    waits: [u64; BUCKETS],
}

/// Turns totals into windows. Owned by the driver of the tuner.
#[derive(Debug)]
pub(crate) struct WindowReader {
    last: Totals,
}

impl WindowReader {
    pub(crate) fn new(stats: &Stats, holders: &Holders) -> Self {
        Self {
            last: stats.totals(holders),
        }
    }

    /// What happened since the last call. `limit`: in force since then; `queued`: now.
    pub(crate) fn next(
        &mut self,
        stats: &Stats,
        holders: &Holders,
        limit: usize,
        queued: usize,
    ) -> (PoolWindow, Waits) {
        let totals = stats.totals(holders);
        let last = std::mem::replace(&mut self.last, totals);
        let totals = &self.last;
        let us = |now: u64, then: u64| Duration::from_micros(now.wrapping_sub(then));
        let duration = us(totals.at, last.at);
        let mut counts = totals.waits;
        counts
            .iter_mut()
            .zip(last.waits)
            .for_each(|(now, then)| *now -= then);
        let window = PoolWindow {
            duration,
            arrivals: totals.counts.arrivals - last.counts.arrivals,
            completions: totals.counts.completions - last.counts.completions,
            timeouts: totals.timeouts - last.timeouts,
            shed: totals.shed - last.shed,
            cancelled: totals.cancelled - last.cancelled,
            slow_waits: totals.slow_waits - last.slow_waits,
            waits: counts.iter().sum(),
            wait_time: us(totals.wait_us, last.wait_us),
            use_time: Duration::from_nanos((totals.counts.use_ns).wrapping_sub(last.counts.use_ns)),
            use_time_squared: (totals.counts.use_us_squared)
                .wrapping_sub(last.counts.use_us_squared) as f64
                * 1e-12,
            dials: totals.dials - last.dials,
            dial_time: us(totals.dial_us, last.dial_us),
            late_dials: totals.late_dials - last.late_dials,
            // A checkout of a moment ago may begin after the clock was read.
            busy: Duration::from_nanos(
                (totals.busy_ns.wrapping_sub(last.busy_ns))
                    .try_into()
                    .unwrap_or(0),
            ),
            queueing: TimeIntegral::between(last.queueing_us, totals.queueing_us),
            capacity: duration.saturating_mul(limit.try_into().unwrap_or(u32::MAX)),
            limit,
            queued,
            // All waiting until now, less the waits that have ended.
            queued_for: TimeIntegral::between(totals.wait_us, totals.queueing_us),
            // Not for the statistics to know.
            spare: 0,
            held: 0,
            app_busy: Duration::ZERO,
        };
        let waits = Waits {
            counts,
            arrivals: window.arrivals,
        };
        (window, waits)
    }
}

/// ∫n dt of a count that goes up and down, exact to a microsecond, in one atomic word.
///
/// The low 21 bits hold n, as many as a gate may hold. The rest holds A = Σ(time of each leave) −
/// Σ(time of each enter) modulo 2⁴³ µs (a hundred days), so that ∫n dt up to t is A + n·t at any moment, with those still
/// inside counted up to t. Both change in one addition: the word can be read at any time.
#[derive(Debug, Default)]
struct TimeIntegral(AtomicU64);

impl TimeIntegral {
    const COUNT_BITS: u32 = 21;

    #[inline]
    fn enter(&self, at: u64) {
        let added = 1u64.wrapping_sub(at << Self::COUNT_BITS);
        self.0.fetch_add(added, Relaxed);
    }

    /// `since` is when it entered: a leave cannot lie before that.
    #[inline]
    fn leave(&self, at: u64, since: u64) {
        let added = (at.max(since) << Self::COUNT_BITS).wrapping_sub(1);
        self.0.fetch_add(added, Relaxed);
    }

    /// ∫n dt up to `at`, in microseconds modulo 2⁴³.
    fn read(&self, at: u64) -> u64 {
        let word = self.0.load(Relaxed);
        let count = word & ((1 << Self::COUNT_BITS) - 1);
        (word >> Self::COUNT_BITS).wrapping_add(count.wrapping_mul(at))
    }

    fn between(then: u64, now: u64) -> Duration {
        const MODULUS_BITS: u32 = 64 - TimeIntegral::COUNT_BITS;
        let difference = now.wrapping_sub(then) << Self::COUNT_BITS >> Self::COUNT_BITS;
        // A checkout that entered a moment before the last look may be recorded just after it, with
        // the earlier time; read the other way round the difference can be a little below zero.
        let negative = difference >> (MODULUS_BITS - 1) == 1;
        Duration::from_micros(if negative { 0 } else { difference })
    }
}

const BUCKETS: usize = 100;

/// Counts of waits, four buckets to each doubling from 1 µs to 20 s.
#[derive(Debug)]
struct WaitHistogram([AtomicU64; BUCKETS]);

impl Default for WaitHistogram {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; BUCKETS])
    }
}

impl WaitHistogram {
    fn record(&self, wait: Duration) {
        let us = (wait.as_micros() as u64).max(1);
        let doubling = us.ilog2();
        let quarter = if doubling >= 2 {
            (us >> (doubling - 2)) & 3
        } else {
            (us << (2 - doubling)) & 3
        };
        let bucket = (doubling as usize * 4 + quarter as usize).min(BUCKETS - 1);
        self.0[bucket].fetch_add(1, Relaxed);
    }

    fn read(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|bucket| self.0[bucket].load(Relaxed))
    }

    /// The upper edge of a bucket.
    fn edge(bucket: usize) -> Duration {
        let (doubling, quarter) = (bucket / 4, bucket % 4);
        Duration::from_micros(((1u64 << doubling) as f64 * (1.25 + 0.25 * quarter as f64)) as u64)
    }
}

/// The distribution of waits in a window.
#[derive(Clone, Debug)]
pub(crate) struct Waits {
    counts: [u64; BUCKETS],
    arrivals: u64,
}

impl Waits {
    /// The wait that `part` (0 to 1) of all checkouts did not exceed, to within 25 %. Those that
    /// did not have to wait count as zero, cancelled ones with what they had waited.
    pub(crate) fn quantile(&self, part: f64) -> Duration {
        let waited: u64 = self.counts.iter().sum();
        let all = self.arrivals.max(waited);
        let mut above = (all as f64 * (1.0 - part)) as u64;
        for bucket in (0..BUCKETS).rev() {
            if self.counts[bucket] > above {
                return WaitHistogram::edge(bucket);
            }
            above -= self.counts[bucket];
        }
        Duration::ZERO
    }

    pub(crate) fn merge(&mut self, later: &Self) {
        self.counts
            .iter_mut()
            .zip(later.counts)
            .for_each(|(a, b)| *a += b);
        self.arrivals += later.arrivals;
    }
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            counts: [0; BUCKETS],
            arrivals: 0,
        }
    }
}

#[cfg(test)]
#[path = "../tests/inside/stats.rs"]
mod tests;
