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

use crate::{
    gate::{Ask, Claim, Partition, RefusedReason},
    sync::lock,
};

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
    /// One request in `stride` is timed; a power of two.
    stride: AtomicU32,
    /// The limit held a request back since the flag was last taken.
    limited: AtomicBool,
    /// When a timed request last left.
    last_completion: AtomicU64,
    /// Typical service time of the last successes, in ns: what a request that dies younger than this
    /// says nothing about. Zero before the first.
    typical: AtomicU64,
    /// Counts windows, so that a thread notices that one was closed.
    windows: AtomicU32,
}

/// The counts of some threads, on a cache line pair of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    completions: AtomicU64,
    /// What the completed requests cost beyond one permit each.
    extra: AtomicU64,
    ignored: AtomicU64,
    drops: AtomicU64,
    cancelled: AtomicU64,
    /// In the order of [`RefusedReason::ALL`].
    refusals: [AtomicU64; RefusedReason::ALL.len()],
    /// The window in which this thread last refused a request, and how many it has refused in it.
    refused_in: AtomicU64,
    timed: Mutex<Timed>,
}

impl Shard {
    #[cold]
    fn count_extra(&self, ticket: Ticket) {
        if ticket.progress() == Progress::Succeeded {
            let extra = ticket.cost() as u64 - 1;
            self.extra.fetch_add(extra, Relaxed);
        }
    }
}

/// What the timed requests of some threads say. Totals since the start, except `longest_gap`.
#[derive(Clone, Copy, Debug, Default)]
struct Timed {
    /// Requests inside that have not been answered, and those that have.
    running: Inside,
    answered: Inside,
    /// Σ time of leaving − Σ time of entering, weighted, in ns; wraps. Like all weights here in
    /// permits, not in requests; a service time is one sample whatever the request costs.
    balance: i64,
    service_times: Sum,
    /// The same of requests that were ignored.
    ignored: Sum,
    /// The same of all that ended by themselves, held ones included.
    lifetimes: Sum,
    /// Weight of the requests that left long after they had been answered: they are no throughput.
    held_ended: i64,
    /// Weight of the ignored requests that took as long as work does.
    ignored_work: i64,
    /// Weight of the requests that were dropped or cancelled at an age above the typical one.
    died: i64,
    /// Samples above the objective.
    late: u64,
    longest_gap: u64,
}

/// Requests inside by age, each weighted by the stride it was drawn with and by its cost.
#[derive(Clone, Copy, Debug, Default)]
struct Inside {
    /// Those that entered after the last mark, between the two marks, and before both: the last are
    /// held.
    counts: [i64; 3],
    /// The last two marks, the later one first.
    marks: [u64; 2],
}

impl Inside {
    /// Adds `weight` permits that went out at `entered`. Returns whether they count as held.
    fn add(&mut self, entered: u64, weight: i64) -> bool {
        let older = self.marks.iter().filter(|mark| entered < **mark).count();
        self.counts[older] += weight;
        older == 2
    }

    fn mark(&mut self, at: u64) {
        self.marks = [at, self.marks[0]];
        let [young, older, held] = self.counts;
        self.counts = [0, young, older + held];
    }
}

/// Sum over logarithms of times in ns.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum {
    count: u64,
    logs: f64,
    squares: f64,
}

impl Sum {
    fn add(&mut self, nanos: u64) {
        let log = (nanos.max(1) as f64).ln();
        self.count += 1;
        self.logs += log;
        self.squares += log * log;
    }

    pub(crate) const fn plus(&self, other: &Self) -> Self {
        Self {
            count: self.count + other.count,
            logs: self.logs + other.logs,
            squares: self.squares + other.squares,
        }
    }

    pub(crate) const fn since(&self, opened: &Self) -> Self {
        Self {
            count: self.count - opened.count,
            logs: self.logs - opened.logs,
            squares: self.squares - opened.squares,
        }
    }

    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// Geometric mean in seconds, with its relative standard error.
    pub(crate) fn mean(&self) -> Option<(f64, f64)> {
        if self.count == 0 {
            return None;
        }
        let count = self.count as f64;
        let mean = self.logs / count;
        let variance = (self.squares / count - mean * mean).max(0.0);
        Some((mean.exp() / 1e9, (variance / count).sqrt()))
    }
}

/// Totals at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) at: u64,
    pub(crate) completions: u64,
    pub(crate) extra: u64,
    pub(crate) ignored: u64,
    pub(crate) ignored_work: u64,
    pub(crate) drops: u64,
    pub(crate) cancelled: u64,
    pub(crate) died: u64,
    pub(crate) held_ended: u64,
    /// In the order of [`RefusedReason::ALL`].
    pub(crate) refused: [u64; RefusedReason::ALL.len()],
    pub(crate) late: u64,
    pub(crate) service_times: Sum,
    pub(crate) ignored_times: Sum,
    pub(crate) lifetimes: Sum,
    /// ∫ inflight dt in ns, up to a constant; wraps.
    pub(crate) inflight_time: i64,
    /// Requests inside that entered before both marks.
    pub(crate) held: u64,
    pub(crate) longest_gap: u64,
}

impl Totals {
    pub(crate) fn refusals(&self) -> u64 {
        self.refused.iter().sum()
    }
}

/// What is remembered of one request: what it costs, when it entered and how many it stands for, if
/// it is one that is timed, and whether it has ended.
///
/// `costly:1 | entered:47 | partition:10 | weight:4 | progress:2`. One word, so that it moves with the
/// request in a register. Times are in units of 128 ns and wrap around after 208 days. The six lowest
/// bits of the time of a request that costs more than one permit say how many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket(u64);

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Running = 0,
    Succeeded = 1,
    Ignored = 2,
    Dropped = 3,
}

#[cfg(any(feature = "metrics", feature = "otel"))]
impl Progress {
    pub(crate) const ALL: [Self; 4] =
        [Self::Running, Self::Succeeded, Self::Ignored, Self::Dropped];

    /// How a request that leaves with this progress ended, as in metrics.
    pub(crate) const fn outcome(self) -> &'static str {
        match self {
            Self::Running => "cancelled",
            Self::Succeeded => "success",
            Self::Ignored => "ignored",
            Self::Dropped => "dropped",
        }
    }
}

impl Ticket {
    const PROGRESS: u64 = 0b11;
    /// Position of the binary logarithm of the weight plus one; zero if the request is not timed.
    const WEIGHT_SHIFT: u32 = 2;
    const WEIGHT: u64 = 0b1111;
    const PARTITION_SHIFT: u32 = 6;
    const PARTITION: u64 = (1 << Partition::BITS) - 1;
    const ENTERED_SHIFT: u32 = Self::PARTITION_SHIFT + Partition::BITS;
    const ENTERED: u64 = (Self::COSTLY - 1) >> Self::ENTERED_SHIFT;
    /// Where the cost less one of a costly request is, instead of the lowest bits of its time.
    const COST: u64 = Ask::MAX_COST as u64 - 1;
    const COSTLY: u64 = 1 << 63;
    /// Binary logarithm of the unit of time, in ns.
    const UNIT: u32 = 7;

    #[inline]
    pub(crate) const fn untimed(claim: Claim) -> Self {
        Self::new(claim, 0)
    }

    const fn timed(claim: Claim, now: u64, weight: u32) -> Self {
        let weight = weight.trailing_zeros() as u64 + 1;
        let ticket = Self::new(claim, now >> Self::UNIT & Self::ENTERED);
        Self(ticket.0 | weight << Self::WEIGHT_SHIFT)
    }

    #[inline]
    const fn new(claim: Claim, entered: u64) -> Self {
        let partition = (claim.partition().index() as u64) << Self::PARTITION_SHIFT;
        let extra = claim.cost() as u64 - 1;
        Self(if extra == 0 {
            entered << Self::ENTERED_SHIFT | partition
        } else {
            let entered = entered & !Self::COST | extra;
            Self::COSTLY | entered << Self::ENTERED_SHIFT | partition
        })
    }

    /// The permits that the request takes.
    #[inline]
    pub(crate) const fn cost(self) -> usize {
        let extra = self.0 >> Self::ENTERED_SHIFT & self.unknown();
        extra as usize + 1
    }

    #[inline]
    const fn is_costly(self) -> bool {
        self.0 & Self::COSTLY != 0
    }

    /// The bits of the time that are not kept.
    #[inline]
    const fn unknown(self) -> u64 {
        if self.is_costly() { Self::COST } else { 0 }
    }

    #[inline]
    pub(crate) const fn is_timed(self) -> bool {
        self.0 >> Self::WEIGHT_SHIFT & Self::WEIGHT != 0
    }

    #[inline]
    pub(crate) const fn partition(self) -> Partition {
        Partition::new((self.0 >> Self::PARTITION_SHIFT & Self::PARTITION) as usize)
    }

    /// When a timed request entered, given a time at most a hundred days later.
    const fn entered(self, now: u64) -> u64 {
        // The same at each call for a costly request too: its time is kept in coarser units.
        (now - self.age(now)) & !(self.unknown() << Self::UNIT)
    }

    /// How long ago a timed request entered, in ns.
    const fn age(self, now: u64) -> u64 {
        let kept = Self::ENTERED & !self.unknown();
        let entered = self.0 >> Self::ENTERED_SHIFT & kept;
        let age = (now >> Self::UNIT & kept).wrapping_sub(entered) & Self::ENTERED;
        // A clock that was read before, and used later, than another thread's.
        if age > Self::ENTERED / 2 {
            return 0;
        }
        age << Self::UNIT
    }

    /// The same as a sample: of a costly request at least half of what is not kept.
    const fn sampled_age(self, now: u64) -> u64 {
        let age = self.age(now);
        let least = self.unknown() << Self::UNIT >> 1;
        if age > least { age } else { least }
    }

    /// The permits that it stands for.
    const fn weight(self) -> i64 {
        let requests = 1 << ((self.0 >> Self::WEIGHT_SHIFT & Self::WEIGHT) - 1);
        requests * self.cost() as i64
    }

    pub(crate) const fn progress(self) -> Progress {
        match self.0 & Self::PROGRESS {
            0 => Progress::Running,
            1 => Progress::Succeeded,
            2 => Progress::Ignored,
            _ => Progress::Dropped,
        }
    }

    pub(crate) const fn set_progress(&mut self, progress: Progress) {
        self.0 = self.0 & !Self::PROGRESS | progress as u64;
    }
}

/// Whether a request that is inside has been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    Answered,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// It did its work: counts as throughput, and its service time is a sample.
    Success,
    /// It says nothing about capacity, like a request that was malformed. Counts as work all the
    /// same where hardly anything else ends and it took as long.
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
            windows: AtomicU32::new(0),
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
    pub(crate) fn enter(&self, claim: Claim, now: u64, stride: u32) -> Ticket {
        let ticket = Ticket::timed(claim, now, stride);
        let mut timed = lock(&self.shard().0.timed);
        timed.running.add(ticket.entered(now), ticket.weight());
        timed.balance = timed
            .balance
            .wrapping_sub(ticket.weight().wrapping_mul(now as i64));
        ticket
    }

    /// Notes that a timed request has been answered; it may stay inside.
    #[inline(never)]
    pub(crate) fn answer(&self, ticket: Ticket) {
        let entered = ticket.entered(self.now());
        let mut timed = lock(&self.shard().0.timed);
        timed.running.add(entered, -ticket.weight());
        timed.answered.add(entered, ticket.weight());
    }

    /// Counts a request that leaves. Returns the time, if it was timed, and whether it had been
    /// held.
    #[inline]
    pub(crate) fn leave(&self, ticket: Ticket) -> Option<(u64, bool)> {
        let (shard, owned) = self.shard();
        if ticket.is_costly() {
            shard.count_extra(ticket);
        }
        match ticket.progress() {
            // The count that every request adds to: its thread alone writes there.
            Progress::Succeeded if owned => {
                let completions = shard.completions.load(Relaxed);
                shard.completions.store(completions + 1, Relaxed);
            }
            Progress::Succeeded => {
                shard.completions.fetch_add(1, Relaxed);
            }
            Progress::Ignored => {
                shard.ignored.fetch_add(1, Relaxed);
            }
            Progress::Dropped => {
                shard.drops.fetch_add(1, Relaxed);
            }
            Progress::Running => {
                shard.cancelled.fetch_add(1, Relaxed);
            }
        }
        ticket.is_timed().then(|| self.leave_timed(shard, ticket))
    }

    #[inline(never)]
    fn leave_timed(&self, shard: &Shard, ticket: Ticket) -> (u64, bool) {
        let now = self.now();
        let gap = now.saturating_sub(self.last_completion.swap(now, Relaxed));
        let weight = ticket.weight();
        let age = ticket.sampled_age(now);
        let mut timed = lock(&shard.timed);
        timed.longest_gap = timed.longest_gap.max(gap);
        let entered = ticket.entered(now);
        let held = match ticket.progress() {
            Progress::Running => timed.running.add(entered, -weight),
            _ => timed.answered.add(entered, -weight),
        };
        timed.balance = timed.balance.wrapping_add(weight.wrapping_mul(now as i64));
        match ticket.progress() {
            Progress::Succeeded | Progress::Ignored => {
                timed.lifetimes.add(age);
                if held {
                    if ticket.progress() == Progress::Succeeded {
                        timed.held_ended += weight;
                    }
                } else if ticket.progress() == Progress::Succeeded {
                    timed.service_times.add(age);
                    timed.late += u64::from(age > self.objective);
                } else if 2 * age >= self.typical.load(Relaxed) {
                    timed.ignored.add(age);
                    timed.ignored_work += weight;
                }
            }
            // An unfinished request would have taken at least its age: evidence of slowness, never
            // of speed. A caller that hedges goes away sooner.
            Progress::Dropped | Progress::Running => {
                if age > self.typical.load(Relaxed) {
                    timed.service_times.add(age);
                    timed.late += u64::from(age > self.objective);
                    timed.died += weight;
                }
            }
        }
        (now, held)
    }

    /// Counts a request that was refused. Returns the time now and then: of the first refusals after
    /// a window was closed, and of fewer the more there are, so that a limiter that only refuses
    /// still closes its windows.
    pub(crate) fn refuse(&self, reason: RefusedReason) -> Option<u64> {
        const EVERY: u64 = 64;
        let shard = self.shard().0;
        shard.refusals[reason as usize].fetch_add(1, Relaxed);
        self.set_limited();
        let window = u64::from(self.windows.load(Relaxed)) << 32;
        let seen = shard.refused_in.load(Relaxed);
        let count = if seen & !u64::from(u32::MAX) == window {
            seen & u64::from(u32::MAX)
        } else {
            0
        };
        let next = count.saturating_add(1).min(u64::from(u32::MAX));
        shard.refused_in.store(window | next, Relaxed);
        (count.is_power_of_two() || count % EVERY == 0).then(|| self.now())
    }

    /// Notes that the limit held a request back.
    pub(crate) fn set_limited(&self) {
        if !self.limited.load(Relaxed) {
            self.limited.store(true, Relaxed);
        }
    }

    pub(crate) fn take_limited(&self) -> bool {
        self.limited.swap(false, Relaxed)
    }

    /// Typical service time of the last successes; zero before the first.
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
        let (mut held, mut died, mut held_ended, mut ignored_work) = (0, 0, 0, 0);
        for shard in &self.shards {
            totals.completions += shard.completions.load(Relaxed);
            totals.extra += shard.extra.load(Relaxed);
            totals.ignored += shard.ignored.load(Relaxed);
            totals.drops += shard.drops.load(Relaxed);
            totals.cancelled += shard.cancelled.load(Relaxed);
            for (total, refused) in totals.refused.iter_mut().zip(&shard.refusals) {
                *total += refused.load(Relaxed);
            }
            let mut timed = lock(&shard.timed);
            held += timed.running.counts[2] + timed.answered.counts[2];
            died += timed.died;
            held_ended += timed.held_ended;
            ignored_work += timed.ignored_work;
            totals.late += timed.late;
            totals.service_times = totals.service_times.plus(&timed.service_times);
            totals.ignored_times = totals.ignored_times.plus(&timed.ignored);
            totals.lifetimes = totals.lifetimes.plus(&timed.lifetimes);
            let all = timed.running.counts.iter().chain(&timed.answered.counts);
            let inside: i64 = all.sum();
            totals.inflight_time = totals
                .inflight_time
                .wrapping_add(timed.balance)
                .wrapping_add(inside.wrapping_mul(at as i64));
            totals.longest_gap = totals.longest_gap.max(timed.longest_gap);
            if restart {
                timed.longest_gap = 0;
            }
        }
        totals.held = held.max(0) as u64;
        totals.died = died.max(0) as u64;
        totals.held_ended = held_ended.max(0) as u64;
        totals.ignored_work = ignored_work.max(0) as u64;
        if restart {
            self.windows.fetch_add(1, Relaxed);
        }
        totals
    }

    /// Sets a mark: requests that entered before the last one count as held from now on.
    ///
    /// A request that another thread counts meanwhile may be on the wrong side of a mark until the
    /// mark after the next.
    pub(crate) fn mark(&self, at: u64, which: Phase) {
        for shard in &self.shards {
            let mut timed = lock(&shard.timed);
            match which {
                Phase::Running => timed.running.mark(at),
                Phase::Answered => timed.answered.mark(at),
            }
        }
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
