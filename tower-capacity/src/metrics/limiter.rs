//! The metrics of one limiter.

#[cfg(feature = "metrics")]
use std::{fmt, sync::OnceLock};
use std::{ops::RangeInclusive, time::Duration};

#[cfg(feature = "metrics")]
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

#[cfg(feature = "metrics")]
use super::{
    BASELINE, DEMAND_RATIO, HELD, INFLIGHT, INFO, LIMIT, LIMIT_MAX, LIMIT_MIN, MODE, OUTCOMES,
    QUEUED, REQUESTS, WAIT,
};
#[cfg(feature = "metrics")]
use crate::sync::{Mutex, lock};
use crate::{Mode, Pressure, accounting::Progress, gate::RefusedReason};

/// Records what one limiter does.
#[derive(Debug)]
pub(crate) struct Metrics {
    #[cfg(feature = "metrics")]
    limiter: String,
    /// As it is now, for handles that are registered later.
    #[cfg(feature = "metrics")]
    setup: Mutex<Setup>,
    #[cfg(feature = "metrics")]
    handles: OnceLock<Handles>,
}

/// What changes seldom, and may before the first request.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) limit: usize,
    pub(crate) bounds: RangeInclusive<usize>,
    pub(crate) mode: Mode,
}

#[cfg_attr(
    not(feature = "metrics"),
    expect(unused_variables, reason = "nothing is recorded")
)]
impl Metrics {
    pub(crate) fn new(limiter: &str, setup: Setup) -> Self {
        Self {
            #[cfg(feature = "metrics")]
            limiter: limiter.to_owned(),
            #[cfg(feature = "metrics")]
            setup: Mutex::new(setup),
            #[cfg(feature = "metrics")]
            handles: OnceLock::new(),
        }
    }

    #[inline]
    pub(crate) fn admitted(&self, cost: usize) {
        #[cfg(feature = "metrics")]
        {
            let handles = self.handles();
            handles.admitted.increment(1);
            handles.inflight.increment(cost as f64);
        }
    }

    #[inline]
    pub(crate) fn left(&self, cost: usize, progress: Progress) {
        #[cfg(feature = "metrics")]
        {
            let handles = self.handles();
            handles.inflight.decrement(cost as f64);
            handles.outcomes[progress as usize].increment(1);
        }
    }

    pub(crate) fn shed(&self, reason: RefusedReason) {
        #[cfg(feature = "metrics")]
        self.handles().shed[reason as usize].increment(1);
    }

    pub(crate) fn waits(&self, cost: usize) {
        #[cfg(feature = "metrics")]
        self.handles().queued.increment(cost as f64);
    }

    pub(crate) fn waited(&self, cost: usize, wait: Duration) {
        #[cfg(feature = "metrics")]
        {
            let handles = self.handles();
            handles.queued.decrement(cost as f64);
            handles.wait.record(wait.as_secs_f64());
        }
    }

    pub(crate) fn demand(&self, pressure: Pressure) {
        #[cfg(feature = "metrics")]
        self.handles().demand_ratio.set(pressure.demand_ratio());
    }

    /// Registered with the first baseline, since not every law keeps one.
    pub(crate) fn baseline(&self, baseline: Option<f64>) {
        #[cfg(feature = "metrics")]
        if let Some(baseline) = baseline {
            gauge!(BASELINE, "limiter" => self.limiter.clone()).set(baseline);
        }
    }

    pub(crate) fn limit(&self, limit: usize) {
        self.change(|setup| setup.limit = limit);
    }

    pub(crate) fn bounds(&self, bounds: RangeInclusive<usize>) {
        self.change(|setup| setup.bounds = bounds);
    }

    pub(crate) fn mode(&self, mode: Mode) {
        self.change(|setup| setup.mode = mode);
    }

    pub(crate) fn held(&self, held: usize) {
        #[cfg(feature = "metrics")]
        self.handles().held.set(held as f64);
    }

    /// Changes the setup, and what is published of it once there is anything published.
    fn change(&self, change: impl FnOnce(&mut Setup)) {
        #[cfg(feature = "metrics")]
        {
            let mut setup = lock(&self.setup);
            change(&mut setup);
            if let Some(handles) = self.handles.get() {
                handles.set_up(&setup);
            }
        }
    }

    #[cfg(feature = "metrics")]
    fn handles(&self) -> &Handles {
        self.handles.get_or_init(|| {
            let handles = Handles::new(&self.limiter);
            handles.set_up(&lock(&self.setup));
            handles
        })
    }
}

#[cfg(feature = "metrics")]
struct Handles {
    limit: Gauge,
    limit_min: Gauge,
    limit_max: Gauge,
    /// In the order of [`Mode::ALL`].
    modes: [Gauge; Mode::ALL.len()],
    inflight: Gauge,
    held: Gauge,
    queued: Gauge,
    demand_ratio: Gauge,
    admitted: Counter,
    /// In the order of [`RefusedReason::ALL`].
    shed: [Counter; RefusedReason::ALL.len()],
    /// In the order of [`Progress::ALL`].
    outcomes: [Counter; Progress::ALL.len()],
    wait: Histogram,
}

#[cfg(feature = "metrics")]
impl Handles {
    fn new(limiter: &str) -> Self {
        let limiter = || limiter.to_owned();
        let requests = |decision: &'static str, reason: &'static str| {
            counter!(
                REQUESTS,
                "limiter" => limiter(), "decision" => decision, "reason" => reason
            )
        };
        let version = env!("CARGO_PKG_VERSION");
        gauge!(INFO, "limiter" => limiter(), "version" => version).set(1.0);
        Self {
            limit: gauge!(LIMIT, "limiter" => limiter()),
            limit_min: gauge!(LIMIT_MIN, "limiter" => limiter()),
            limit_max: gauge!(LIMIT_MAX, "limiter" => limiter()),
            modes: Mode::ALL
                .map(|mode| gauge!(MODE, "limiter" => limiter(), "mode" => mode.as_str())),
            inflight: gauge!(INFLIGHT, "limiter" => limiter()),
            held: gauge!(HELD, "limiter" => limiter()),
            queued: gauge!(QUEUED, "limiter" => limiter()),
            demand_ratio: gauge!(DEMAND_RATIO, "limiter" => limiter()),
            admitted: requests("admitted", "none"),
            shed: RefusedReason::ALL.map(|reason| requests("shed", reason.as_str())),
            outcomes: Progress::ALL.map(|progress| {
                counter!(OUTCOMES, "limiter" => limiter(), "outcome" => progress.outcome())
            }),
            wait: histogram!(WAIT, "limiter" => limiter()),
        }
    }

    fn set_up(&self, setup: &Setup) {
        self.limit.set(setup.limit as f64);
        self.limit_min.set(*setup.bounds.start() as f64);
        self.limit_max.set(*setup.bounds.end() as f64);
        for (mode, gauge) in Mode::ALL.into_iter().zip(&self.modes) {
            gauge.set(f64::from(u8::from(mode == setup.mode)));
        }
    }
}

#[cfg(feature = "metrics")]
impl fmt::Debug for Handles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handles").finish_non_exhaustive()
    }
}
