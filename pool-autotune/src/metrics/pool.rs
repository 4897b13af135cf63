//! The metrics of one pool.

#[cfg(feature = "metrics")]
use std::fmt;
use std::sync::Arc;
#[cfg(feature = "metrics")]
use std::sync::OnceLock;
use std::time::Duration;

#[cfg(feature = "metrics")]
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

#[cfg(feature = "metrics")]
use super::{
    COUNT, CREATE_TIME, DEMAND_RATIO, HELD, INFO, MAX, MAX_SIZE, MIN_SIZE, PENDING_REQUESTS,
    POOL_NAME, RESIZES, STATE, TARGET_SIZE, TIMEOUTS, UNSERVED, USE_TIME, VERDICT, WAIT_TIME,
    describe_and_buckets,
};
use crate::tuner::Decision;
#[cfg(feature = "metrics")]
use crate::tuner::Verdict;
use crate::{Bounds, Mode};

/// Records what one pool does.
#[derive(Debug)]
pub(crate) struct Metrics {
    #[cfg(feature = "metrics")]
    pool: Arc<str>,
    #[cfg(feature = "metrics")]
    mode: Mode,
    #[cfg(feature = "metrics")]
    handles: OnceLock<Handles>,
}

#[cfg_attr(
    not(feature = "metrics"),
    expect(unused_variables, reason = "nothing is recorded")
)]
impl Metrics {
    pub(crate) fn new(pool: &Arc<str>, mode: Mode) -> Self {
        Self {
            #[cfg(feature = "metrics")]
            pool: Arc::clone(pool),
            #[cfg(feature = "metrics")]
            mode,
            #[cfg(feature = "metrics")]
            handles: OnceLock::new(),
        }
    }

    pub(crate) fn waited(&self, wait: Duration) {
        #[cfg(feature = "metrics")]
        self.handles().wait_time.record(wait.as_secs_f64());
    }

    pub(crate) fn opened(&self, took: Duration) {
        #[cfg(feature = "metrics")]
        self.handles().create_time.record(took.as_secs_f64());
    }

    pub(crate) fn used(&self, used: Duration) {
        #[cfg(feature = "metrics")]
        self.handles().use_time.record(used.as_secs_f64());
    }

    pub(crate) fn unserved(&self, reason: Unserved) {
        #[cfg(feature = "metrics")]
        {
            let handles = self.handles();
            if reason == Unserved::Timeout {
                handles.timeouts.increment(1);
            }
            handles.unserved[reason as usize].increment(1);
        }
    }

    /// Before the first checkout the recorder may not be installed yet.
    pub(crate) fn levels(&self, levels: impl FnOnce() -> Levels) {
        #[cfg(feature = "metrics")]
        if let Some(handles) = self.handles.get() {
            handles.show(&levels());
        }
    }

    pub(crate) fn resized(&self, decision: &Decision) {
        #[cfg(feature = "metrics")]
        counter!(
            RESIZES,
            POOL_NAME => Arc::clone(&self.pool),
            "direction" => decision.direction(),
            "reason" => decision.reason().as_str(),
        )
        .increment(1);
    }

    #[cfg(feature = "metrics")]
    fn handles(&self) -> &Handles {
        self.handles
            .get_or_init(|| Handles::new(&self.pool, self.mode))
    }
}

#[cfg(feature = "metrics")]
struct Handles {
    idle: Gauge,
    used: Gauge,
    max: Gauge,
    pending: Gauge,
    timeouts: Counter,
    create_time: Histogram,
    wait_time: Histogram,
    use_time: Histogram,
    target: Gauge,
    min_size: Gauge,
    max_size: Gauge,
    verdicts: [(&'static str, Gauge); Verdict::NAMES.len()],
    held: Gauge,
    demand_ratio: Gauge,
    /// In the order of [`Unserved::ALL`].
    unserved: [Counter; Unserved::ALL.len()],
}

#[cfg(feature = "metrics")]
impl Handles {
    fn new(pool: &Arc<str>, mode: Mode) -> Self {
        describe_and_buckets();
        let name = || Arc::clone(pool);
        let (mode, version) = (mode.as_str(), env!("CARGO_PKG_VERSION"));
        gauge!(INFO, POOL_NAME => name(), "mode" => mode, "version" => version).set(1.0);
        Self {
            idle: gauge!(COUNT, POOL_NAME => name(), STATE => "idle"),
            used: gauge!(COUNT, POOL_NAME => name(), STATE => "used"),
            max: gauge!(MAX, POOL_NAME => name()),
            pending: gauge!(PENDING_REQUESTS, POOL_NAME => name()),
            timeouts: counter!(TIMEOUTS, POOL_NAME => name()),
            create_time: histogram!(CREATE_TIME, POOL_NAME => name()),
            wait_time: histogram!(WAIT_TIME, POOL_NAME => name()),
            use_time: histogram!(USE_TIME, POOL_NAME => name()),
            target: gauge!(TARGET_SIZE, POOL_NAME => name()),
            min_size: gauge!(MIN_SIZE, POOL_NAME => name()),
            max_size: gauge!(MAX_SIZE, POOL_NAME => name()),
            verdicts: Verdict::NAMES.map(|verdict| {
                let gauge = gauge!(VERDICT, POOL_NAME => name(), "verdict" => verdict);
                (verdict, gauge)
            }),
            held: gauge!(HELD, POOL_NAME => name()),
            demand_ratio: gauge!(DEMAND_RATIO, POOL_NAME => name()),
            unserved: Unserved::ALL.map(|reason| {
                let reason = reason.as_str();
                counter!(UNSERVED, POOL_NAME => name(), "reason" => reason)
            }),
        }
    }

    fn show(&self, levels: &Levels) {
        self.used.set(levels.in_use as f64);
        let idle = levels.size.saturating_sub(levels.in_use);
        self.idle.set(idle as f64);
        self.pending.set(levels.pending as f64);
        self.max.set(levels.limit as f64);
        self.target.set(levels.target as f64);
        self.held.set(levels.held as f64);
        self.demand_ratio.set(levels.demand_ratio);
        self.min_size.set(levels.bounds.min() as f64);
        self.max_size.set(levels.bounds.max() as f64);
        for (verdict, gauge) in &self.verdicts {
            gauge.set(f64::from(u8::from(*verdict == levels.verdict)));
        }
    }
}

#[cfg(feature = "metrics")]
impl fmt::Debug for Handles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handles").finish_non_exhaustive()
    }
}

/// What is read every 250 ms.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    not(feature = "metrics"),
    expect(dead_code, reason = "read by what records them")
)]
pub(crate) struct Levels {
    pub(crate) bounds: Bounds,
    pub(crate) verdict: &'static str,
    pub(crate) size: usize,
    pub(crate) in_use: usize,
    pub(crate) pending: usize,
    pub(crate) limit: usize,
    pub(crate) target: usize,
    pub(crate) held: usize,
    pub(crate) demand_ratio: f64,
}

/// Why a checkout got no connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unserved {
    Timeout,
    Shed,
    Cancelled,
    Closed,
    Failed,
}

impl Unserved {
    pub(crate) const ALL: [Self; 5] = [
        Self::Timeout,
        Self::Shed,
        Self::Cancelled,
        Self::Closed,
        Self::Failed,
    ];

    #[cfg(any(feature = "metrics", feature = "otel"))]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Shed => "shed",
            Self::Cancelled => "cancelled",
            Self::Closed => "closed",
            Self::Failed => "failed",
        }
    }
}
