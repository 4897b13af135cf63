//! What happened since the last decision, counted without slowing the requests down.
//!
//! Plain counts live in one cell a thread. The clock is read only for a sample of the requests:
//! every one of them up to 10,000 a second, then one in two, one in four and so on, which bounds
//! the cost of timing and still gives a window a thousand samples.

use std::{
    cell::Cell,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{gate::Partition, sync::lock};

/// Cells. Each thread has one of its own, but for the last, which all others share.
const SHARDS: usize = 32;
/// Above this rate only some requests are timed.
const TIMED_PER_SECOND: f64 = 10_000.0;
const MAX_STRIDE: u32 = 256;

#[derive(Debug)]
pub(crate) struct Accounting {
    epoch: Instant,
    /// Service times above this are late, in ns.
    objective: u64,
    shards: Box<[Shard]>,
    /// One request in so many is timed; a power of two.
    stride: AtomicU32,
    /// The limit held somebody back since the flag was last taken.
    limited: AtomicBool,
    /// When a timed request last completed.
    last_completion: AtomicU64,
    /// Typical service time of the last window, below which the age of an unfinished request says
    /// nothing.
    typical: AtomicU64,
}

/// The counts of some threads, on a cache line pair of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    completions: AtomicU64,
    /// Completions that were none after all.
    revoked: AtomicU64,
    ignored: AtomicU64,
    drops: AtomicU64,
    cancelled: AtomicU64,
    refusals: AtomicU64,
    timed: Mutex<Timed>,
}

/// What the timed requests of some threads say. Totals since the start, but for `longest_gap`.
#[derive(Clone, Copy, Debug, Default)]
struct Timed {
    /// Requests inside, each weighted by the stride it was drawn with.
    inside: i64,
    /// Σ time of leaving − Σ time of entering, weighted, in ns; wraps.
    balance: i64,
    log_service_time: f64,
    log_squares: f64,
    samples: u64,
    /// Samples above the objective.
    late: u64,
    longest_gap: u64,
}

/// Totals at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) at: u64,
    pub(crate) completions: u64,
    pub(crate) ignored: u64,
    pub(crate) drops: u64,
    pub(crate) cancelled: u64,
    pub(crate) refusals: u64,
    pub(crate) samples: u64,
    pub(crate) late: u64,
    pub(crate) log_service_time: f64,
    pub(crate) log_squares: f64,
    /// ∫ inflight dt in ns, up to a constant; wraps.
    pub(crate) inflight_time: i64,
    pub(crate) longest_gap: u64,
}

/// What is remembered of one request: when it entered and how many it stands for, if it is one
/// that is timed, and whether it has ended.
///
/// `entered:48 | partition:10 | weight:4 | progress:2`. One word, so that it moves with the request
/// in a register. Times are in units of 128 ns and wrap around after 417 days.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket(u64);

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Running = 0,
    Succeeded = 1,
    /// Ignored or dropped: there is nothing more to be said of it.
    Ended = 2,
}

impl Ticket {
    const PROGRESS: u64 = 0b11;
    /// Position of the binary logarithm of the weight plus one; zero if the request is not timed.
    const WEIGHT_SHIFT: u32 = 2;
    const WEIGHT: u64 = 0b1111;
    const PARTITION_SHIFT: u32 = 6;
    const PARTITION: u64 = (1 << Partition::BITS) - 1;
    const ENTERED_SHIFT: u32 = Self::PARTITION_SHIFT + Partition::BITS;
    const ENTERED: u64 = u64::MAX >> Self::ENTERED_SHIFT;
    /// Binary logarithm of the unit of time, in ns.
    const UNIT: u32 = 7;

    #[inline]
    pub(crate) const fn untimed(partition: Partition) -> Self {
        Self((partition.index() as u64) << Self::PARTITION_SHIFT)
    }

    const fn timed(partition: Partition, now: u64, weight: u32) -> Self {
        let weight = weight.trailing_zeros() as u64 + 1;
        let entered = (now >> Self::UNIT) << Self::ENTERED_SHIFT;
        Self(entered | weight << Self::WEIGHT_SHIFT | Self::untimed(partition).0)
    }

    #[inline]
    pub(crate) const fn is_timed(self) -> bool {
        self.0 >> Self::WEIGHT_SHIFT & Self::WEIGHT != 0
    }

    #[inline]
    pub(crate) const fn partition(self) -> Partition {
        Partition::new((self.0 >> Self::PARTITION_SHIFT & Self::PARTITION) as usize)
    }

    /// How long ago a timed request entered, in ns.
    const fn age(self, now: u64) -> u64 {
        let entered = self.0 >> Self::ENTERED_SHIFT;
        let age = (now >> Self::UNIT).wrapping_sub(entered) & Self::ENTERED;
        // A clock that was read before, and used later, than another thread's.
        if age > Self::ENTERED / 2 {
            return 0;
        }
        age << Self::UNIT
    }

    const fn weight(self) -> i64 {
        1 << ((self.0 >> Self::WEIGHT_SHIFT & Self::WEIGHT) - 1)
    }

    pub(crate) const fn progress(self) -> Progress {
        match self.0 & Self::PROGRESS {
            0 => Progress::Running,
            1 => Progress::Succeeded,
            _ => Progress::Ended,
        }
    }

    pub(crate) const fn set_progress(&mut self, progress: Progress) {
        self.0 = self.0 & !Self::PROGRESS | progress as u64;
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// It did its work: counts as throughput, and its service time is a sample.
    Success,
    /// It says nothing about capacity, like a request that was malformed.
    Ignored,
    /// It failed in a way that signals overload: a timeout, a 5xx.
    Dropped,
}

impl Accounting {
    /// `objective`: what a service time above is counted as late.
    pub(crate) fn new(objective: Option<Duration>) -> Self {
        Self {
            objective: objective.map_or(u64::MAX, |objective| objective.as_nanos() as u64),
            epoch: Instant::now(),
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            stride: AtomicU32::new(1),
            limited: AtomicBool::new(false),
            last_completion: AtomicU64::new(0),
            typical: AtomicU64::new(0),
        }
    }

    /// Nanoseconds since the limiter was built.
    pub(crate) fn now(&self) -> u64 {
        self.nanos(Instant::now())
    }

    pub(crate) fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_nanos() as u64
    }

    pub(crate) fn instant(&self, at: u64) -> Instant {
        self.epoch + Duration::from_nanos(at)
    }

    /// Draws whether a request is to be timed, and for how many it then stands.
    #[inline]
    pub(crate) fn draw(&self) -> Option<u32> {
        let stride = self.stride.load(Relaxed);
        (stride == 1 || random() & u64::from(stride - 1) == 0).then_some(stride)
    }

    /// Starts to time a request that was drawn.
    pub(crate) fn enter(&self, partition: Partition, now: u64, stride: u32) -> Ticket {
        let ticket = Ticket::timed(partition, now, stride);
        let mut timed = lock(&self.shard().0.timed);
        timed.inside += ticket.weight();
        timed.balance = timed
            .balance
            .wrapping_sub(ticket.weight().wrapping_mul(now as i64));
        ticket
    }

    /// Counts a timed request that left.
    pub(crate) fn leave(&self, ticket: Ticket) {
        let now = self.now();
        let mut timed = lock(&self.shard().0.timed);
        timed.inside -= ticket.weight();
        timed.balance = timed
            .balance
            .wrapping_add(ticket.weight().wrapping_mul(now as i64));
    }

    /// Counts how a request ended. A timed one answers when.
    #[inline]
    pub(crate) fn complete(&self, ticket: Ticket, outcome: Outcome) -> Option<u64> {
        let (shard, owned) = self.shard();
        match outcome {
            // The count that every request adds to: its thread alone writes there.
            Outcome::Success if owned => {
                let completions = shard.completions.load(Relaxed);
                shard.completions.store(completions + 1, Relaxed);
            }
            Outcome::Success => {
                shard.completions.fetch_add(1, Relaxed);
            }
            Outcome::Ignored => {
                shard.ignored.fetch_add(1, Relaxed);
            }
            Outcome::Dropped => {
                shard.drops.fetch_add(1, Relaxed);
            }
        }
        (ticket.is_timed()).then(|| self.complete_timed(shard, ticket, outcome))
    }

    #[inline(never)]
    fn complete_timed(&self, shard: &Shard, ticket: Ticket, outcome: Outcome) -> u64 {
        let now = self.now();
        let gap = now.saturating_sub(self.last_completion.swap(now, Relaxed));
        let mut timed = lock(&shard.timed);
        timed.longest_gap = timed.longest_gap.max(gap);
        let service_time = ticket.age(now);
        match outcome {
            Outcome::Success => timed.sample(service_time, self.objective),
            Outcome::Dropped => self.sample_unfinished(&mut timed, service_time),
            Outcome::Ignored => {}
        }
        now
    }

    /// Turns a request that was counted as a success into one that was dropped.
    pub(crate) fn revoke_success(&self) {
        let (shard, _) = self.shard();
        shard.revoked.fetch_add(1, Relaxed);
        shard.drops.fetch_add(1, Relaxed);
    }

    /// Counts a request whose caller went away. A timed one answers when.
    pub(crate) fn cancel(&self, ticket: Ticket) -> Option<u64> {
        let (shard, _) = self.shard();
        shard.cancelled.fetch_add(1, Relaxed);
        if !ticket.is_timed() {
            return None;
        }
        let now = self.now();
        self.sample_unfinished(&mut lock(&shard.timed), ticket.age(now));
        Some(now)
    }

    /// An unfinished request would have taken at least its age: evidence of slowness, never of
    /// speed.
    fn sample_unfinished(&self, timed: &mut Timed, age: u64) {
        if age > self.typical.load(Relaxed) {
            timed.sample(age, self.objective);
        }
    }

    /// Counts a request that was refused.
    pub(crate) fn refuse(&self) {
        self.shard().0.refusals.fetch_add(1, Relaxed);
        self.set_limited();
    }

    /// Notes that the limit held somebody back.
    pub(crate) fn set_limited(&self) {
        if !self.limited.load(Relaxed) {
            self.limited.store(true, Relaxed);
        }
    }

    pub(crate) fn take_limited(&self) -> bool {
        self.limited.swap(false, Relaxed)
    }

    /// Typical service time of the last window; zero before it.
    pub(crate) fn typical(&self) -> Duration {
        Duration::from_nanos(self.typical.load(Relaxed))
    }

    /// Sets how many requests are timed, and from what age on an unfinished one is evidence.
    pub(crate) fn adapt(&self, throughput: f64, typical: Option<f64>) {
        let stride = (throughput / TIMED_PER_SECOND).max(1.0) as u32;
        // The power of two at or below it.
        let stride = (stride + 1).next_power_of_two() / 2;
        self.stride.store(stride.clamp(1, MAX_STRIDE), Relaxed);
        if let Some(typical) = typical {
            self.typical.store((typical * 1e9) as u64, Relaxed);
        }
    }

    /// Reads all totals at time `at`, and starts looking for the longest gap anew if `restart`.
    ///
    /// Cells are read one after the other. A request that moves meanwhile is counted in the wrong
    /// window, and shifts ∫ inflight dt by the few nanoseconds between its own time and `at`.
    pub(crate) fn totals(&self, at: u64, restart: bool) -> Totals {
        let mut totals = Totals {
            at,
            longest_gap: at.saturating_sub(self.last_completion.load(Relaxed)),
            ..Totals::default()
        };
        let mut revoked = 0;
        for shard in &self.shards {
            totals.completions += shard.completions.load(Relaxed);
            revoked += shard.revoked.load(Relaxed);
            totals.ignored += shard.ignored.load(Relaxed);
            totals.drops += shard.drops.load(Relaxed);
            totals.cancelled += shard.cancelled.load(Relaxed);
            totals.refusals += shard.refusals.load(Relaxed);
            let mut timed = lock(&shard.timed);
            totals.samples += timed.samples;
            totals.late += timed.late;
            totals.log_service_time += timed.log_service_time;
            totals.log_squares += timed.log_squares;
            totals.inflight_time = totals
                .inflight_time
                .wrapping_add(timed.balance)
                .wrapping_add(timed.inside.wrapping_mul(at as i64));
            totals.longest_gap = totals.longest_gap.max(timed.longest_gap);
            if restart {
                timed.longest_gap = 0;
            }
        }
        totals.completions = totals.completions.saturating_sub(revoked);
        totals
    }

    /// A gap that began before the window counts only from its start.
    pub(crate) fn restart_gap(&self, at: u64) {
        self.last_completion.fetch_max(at, Relaxed);
    }

    /// The counts of this thread, and whether no other thread writes there.
    #[inline]
    fn shard(&self) -> (&Shard, bool) {
        let thread = THREAD.get();
        let shard = thread.min(SHARDS - 1);
        (&self.shards[shard], thread < SHARDS - 1)
    }
}

impl Totals {
    /// Typical service time since `opened`, with its relative standard error; in seconds.
    pub(crate) fn service_time_since(&self, opened: &Self) -> Option<(f64, f64)> {
        let samples = (self.samples - opened.samples) as f64;
        if samples == 0.0 {
            return None;
        }
        let mean = (self.log_service_time - opened.log_service_time) / samples;
        let square = (self.log_squares - opened.log_squares) / samples;
        let variance = (square - mean * mean).max(0.0);
        Some((mean.exp() / 1e9, (variance / samples).sqrt()))
    }
}

impl Timed {
    fn sample(&mut self, nanos: u64, objective: u64) {
        let log = (nanos.max(1) as f64).ln();
        self.log_service_time += log;
        self.log_squares += log * log;
        self.samples += 1;
        self.late += u64::from(nanos > objective);
    }
}

static THREADS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Counts threads up, so that no two have the same number.
    static THREAD: Cell<usize> = Cell::new(THREADS.fetch_add(1, Relaxed) as usize);
    static RANDOM: Cell<u64> = const { Cell::new(0x9E37_79B9_7F4A_7C15) };
}

/// A coin for each thread (xorshift64, Marsaglia 2003). Random, not every n-th: a request that
/// passes two limiters must not always be drawn by the same one.
#[inline]
fn random() -> u64 {
    let mut x = RANDOM.get();
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    RANDOM.set(x);
    x
}
