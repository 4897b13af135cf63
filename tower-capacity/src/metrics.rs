//! What a limiter publishes, under the names of [`names`].

#[cfg(feature = "metrics")]
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::{ops::RangeInclusive, time::Duration};

use crate::{Mode, Pressure, accounting::Progress, gate::RefusedReason};

/// The names of the metrics. Those of a limiter have the label `limiter` (the name given to it).
pub mod names {
    #[cfg(doc)]
    use crate::Pressure;

    /// Gauge: requests allowed inside.
    pub const LIMIT: &str = "tower_capacity_limit";
    /// Gauge: the fewest requests that may be allowed inside.
    pub const LIMIT_MIN: &str = "tower_capacity_limit_min";
    /// Gauge: the most requests that may be allowed inside.
    pub const LIMIT_MAX: &str = "tower_capacity_limit_max";
    /// Gauge: 1 for the `mode` (`enforce`, `shadow`, `off`) in force, 0 for the others.
    pub const MODE: &str = "tower_capacity_mode";
    /// Gauge: 1, with the `version` of the crate.
    pub const INFO: &str = "tower_capacity_info";
    /// Gauge: requests inside, each as often as it [costs](crate::gate::Ask::cost).
    pub const INFLIGHT: &str = "tower_capacity_inflight";
    /// Gauge: requests inside for so long that they no longer count against the limit, each as often
    /// as it costs.
    pub const HELD: &str = "tower_capacity_held";
    /// Gauge: requests that wait, each as often as it costs.
    pub const QUEUED: &str = "tower_capacity_queued";
    /// Gauge: requests wanted inside as a multiple of the limit: those inside and waiting, and as many
    /// more as were refused in the last [window](crate::limit::Window). Above 1 while requests wait or
    /// are refused, and not clamped: see [`Pressure::demand_ratio`]. Set with each window, and to 0
    /// when the last request leaves.
    pub const DEMAND: &str = "tower_capacity_demand_ratio";
    /// Gauge: the service time without queueing that the control law compares with, in seconds;
    /// absent for laws that keep none.
    pub const BASELINE: &str = "tower_capacity_baseline_seconds";
    /// Counter of requests, by `decision` (`admitted`, `shed`) and `reason` (`none`, or a
    /// [`RefusedReason`](crate::gate::RefusedReason) in snake case). In
    /// [`Mode::Shadow`](crate::Mode), what would have been decided.
    pub const REQUESTS: &str = "tower_capacity_requests_total";
    /// Counter of requests that left, by `outcome`: `success`, `ignored` and `dropped` are those of
    /// [`Outcome`](crate::Outcome); `cancelled` are those that ended before they had one, as when the
    /// client gave up.
    pub const OUTCOMES: &str = "tower_capacity_outcomes_total";
    /// Histogram: how long requests waited, in seconds, of those that had to.
    pub const WAIT: &str = "tower_capacity_wait_seconds";
    /// Counter of a client's requests, by `throttle` (the name given to the throttler) and
    /// `decision` (`sent`, `shed`).
    #[cfg(feature = "client")]
    pub const THROTTLE_REQUESTS: &str = "tower_capacity_throttle_requests_total";
    /// Counter of what became of requests that a client sent, by `throttle` and `answer`
    /// (`accepted`, `rejected`, `limited`, `none`).
    #[cfg(feature = "client")]
    pub const THROTTLE_ANSWERS: &str = "tower_capacity_throttle_answers_total";
    /// Counter of retries that were asked of a budget, by `budget` (its name) and `decision`
    /// (`allowed`, `denied`).
    #[cfg(feature = "client")]
    pub const THROTTLE_RETRIES: &str = "tower_capacity_throttle_retries_total";
}

/// Upper bounds of the buckets for [`names::WAIT`], in seconds: from half a millisecond to the
/// longest wait by default, about two to a doubling.
pub const WAIT_BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.002, 0.005, 0.007, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0,
];

/// What the gauges of a limiter without a unit are.
#[cfg(any(feature = "metrics", feature = "otel"))]
pub(crate) const GAUGES: [(&str, &str); 9] = [
    (names::LIMIT, "Requests allowed inside"),
    (
        names::LIMIT_MIN,
        "The fewest requests that may be allowed inside",
    ),
    (
        names::LIMIT_MAX,
        "The most requests that may be allowed inside",
    ),
    (names::MODE, "1 for the mode in force"),
    (names::INFO, "1, with the version"),
    (names::INFLIGHT, "Requests inside"),
    (
        names::HELD,
        "Requests inside for so long that they no longer count against the limit",
    ),
    (names::QUEUED, "Requests that wait"),
    (
        names::DEMAND,
        "Requests wanted inside, refused ones included, as a multiple of the limit",
    ),
];

/// What its counters count.
#[cfg(any(feature = "metrics", feature = "otel"))]
pub(crate) const COUNTERS: [(&str, &str); 2] = [
    (names::REQUESTS, "Requests by decision and reason"),
    (names::OUTCOMES, "Requests that left, by outcome"),
];

#[cfg(any(feature = "metrics", feature = "otel"))]
pub(crate) const BASELINE_DESCRIPTION: &str =
    "Service time without queueing, as the control law sees it";

/// Describes the metrics to the installed recorder, with their units, and returns the buckets that
/// suit each histogram.
///
/// Call it once after the recorder is installed. A recorder that wants the buckets before, such as
/// that of Prometheus, takes [`WAIT_BUCKETS`]:
///
/// ```
/// use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
/// use tower_capacity::metrics::{WAIT_BUCKETS, describe_and_buckets, names};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let wait = Matcher::Full(names::WAIT.to_owned());
/// let recorder = PrometheusBuilder::new()
///     .set_buckets_for_metric(wait, &WAIT_BUCKETS)?
///     .build_recorder();
/// metrics::with_local_recorder(&recorder, describe_and_buckets);
/// # Ok(())
/// # }
/// ```
#[cfg(feature = "metrics")]
#[expect(
    clippy::must_use_candidate,
    reason = "code that took `WAIT_BUCKETS` before calls it for the descriptions"
)]
pub fn describe_and_buckets() -> [(&'static str, &'static [f64]); 1] {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    for (name, description) in GAUGES {
        describe_gauge!(name, Unit::Count, description);
    }
    for (name, description) in COUNTERS {
        describe_counter!(name, Unit::Count, description);
    }
    describe_gauge!(names::BASELINE, Unit::Seconds, BASELINE_DESCRIPTION);
    describe_histogram!(
        names::WAIT,
        Unit::Seconds,
        "Wait for a permit, of requests that had to"
    );
    #[cfg(feature = "client")]
    {
        describe_counter!(
            names::THROTTLE_REQUESTS,
            Unit::Count,
            "Requests of a client by decision"
        );
        describe_counter!(
            names::THROTTLE_ANSWERS,
            Unit::Count,
            "What became of requests that a client sent"
        );
        describe_counter!(
            names::THROTTLE_RETRIES,
            Unit::Count,
            "Retries asked of a budget by decision"
        );
    }
    [(names::WAIT, &WAIT_BUCKETS)]
}

/// The handles of one limiter, registered with the recorder that is installed when the first
/// request comes. Without the feature `metrics` it does nothing.
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
#[cfg_attr(
    not(feature = "metrics"),
    expect(dead_code, reason = "read by what records it")
)]
pub(crate) struct Setup {
    pub(crate) limit: usize,
    pub(crate) bounds: RangeInclusive<usize>,
    pub(crate) mode: Mode,
}

#[cfg(feature = "metrics")]
struct Handles {
    limit: metrics::Gauge,
    limit_min: metrics::Gauge,
    limit_max: metrics::Gauge,
    /// In the order of [`Mode::ALL`].
    modes: [metrics::Gauge; Mode::ALL.len()],
    inflight: metrics::Gauge,
    held: metrics::Gauge,
    queued: metrics::Gauge,
    demand: metrics::Gauge,
    admitted: metrics::Counter,
    /// In the order of [`RefusedReason::ALL`].
    shed: [metrics::Counter; RefusedReason::ALL.len()],
    /// In the order of [`Progress::ALL`].
    outcomes: [metrics::Counter; Progress::ALL.len()],
    wait: metrics::Histogram,
}

#[cfg(feature = "metrics")]
impl std::fmt::Debug for Handles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handles").finish_non_exhaustive()
    }
}

#[cfg(feature = "metrics")]
impl Handles {
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
impl Metrics {
    pub(crate) fn new(limiter: &str, setup: Setup) -> Self {
        Self {
            limiter: limiter.to_owned(),
            setup: Mutex::new(setup),
            handles: OnceLock::new(),
        }
    }

    fn handles(&self) -> &Handles {
        self.handles.get_or_init(|| {
            use metrics::gauge;

            let limiter = || self.limiter.clone();
            let requests = |decision: &'static str, reason: &'static str| {
                metrics::counter!(
                    names::REQUESTS,
                    "limiter" => limiter(), "decision" => decision, "reason" => reason
                )
            };
            let version = env!("CARGO_PKG_VERSION");
            gauge!(names::INFO, "limiter" => limiter(), "version" => version).set(1.0);
            let handles = Handles {
                limit: gauge!(names::LIMIT, "limiter" => limiter()),
                limit_min: gauge!(names::LIMIT_MIN, "limiter" => limiter()),
                limit_max: gauge!(names::LIMIT_MAX, "limiter" => limiter()),
                modes: Mode::ALL.map(
                    |mode| gauge!(names::MODE, "limiter" => limiter(), "mode" => mode.as_str()),
                ),
                inflight: gauge!(names::INFLIGHT, "limiter" => limiter()),
                held: gauge!(names::HELD, "limiter" => limiter()),
                queued: gauge!(names::QUEUED, "limiter" => limiter()),
                demand: gauge!(names::DEMAND, "limiter" => limiter()),
                admitted: requests("admitted", "none"),
                shed: RefusedReason::ALL.map(|reason| requests("shed", reason.as_str())),
                outcomes: Progress::ALL.map(|progress| {
                    let outcome = progress.outcome();
                    metrics::counter!(names::OUTCOMES, "limiter" => limiter(), "outcome" => outcome)
                }),
                wait: metrics::histogram!(names::WAIT, "limiter" => limiter()),
            };
            handles.set_up(&self.setup());
            handles
        })
    }

    fn setup(&self) -> MutexGuard<'_, Setup> {
        self.setup.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the setup, and what is published of it once there is anything published.
    fn change(&self, change: impl FnOnce(&mut Setup)) {
        let mut setup = self.setup();
        change(&mut setup);
        if let Some(handles) = self.handles.get() {
            handles.set_up(&setup);
        }
    }

    #[inline]
    pub(crate) fn admitted(&self, cost: usize) {
        let handles = self.handles();
        handles.admitted.increment(1);
        handles.inflight.increment(cost as f64);
    }

    #[inline]
    pub(crate) fn left(&self, cost: usize, progress: Progress) {
        let handles = self.handles();
        handles.inflight.decrement(cost as f64);
        handles.outcomes[progress as usize].increment(1);
    }

    pub(crate) fn shed(&self, reason: RefusedReason) {
        self.handles().shed[reason as usize].increment(1);
    }

    pub(crate) fn waits(&self, cost: usize) {
        self.handles().queued.increment(cost as f64);
    }

    pub(crate) fn waited(&self, cost: usize, wait: Duration) {
        let handles = self.handles();
        handles.queued.decrement(cost as f64);
        handles.wait.record(wait.as_secs_f64());
    }

    pub(crate) fn demand(&self, pressure: Pressure) {
        self.handles().demand.set(pressure.demand_ratio());
    }

    /// Registered with the first baseline, since not every law keeps one.
    pub(crate) fn baseline(&self, baseline: Option<f64>) {
        if let Some(baseline) = baseline {
            metrics::gauge!(names::BASELINE, "limiter" => self.limiter.clone()).set(baseline);
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
        self.handles().held.set(held as f64);
    }
}

#[cfg(not(feature = "metrics"))]
#[expect(
    clippy::unused_self,
    reason = "the same calls, with nothing behind them"
)]
impl Metrics {
    pub(crate) fn new(_limiter: &str, _setup: Setup) -> Self {
        Self {}
    }

    #[inline]
    pub(crate) const fn admitted(&self, _cost: usize) {}

    #[inline]
    pub(crate) const fn left(&self, _cost: usize, _progress: Progress) {}

    pub(crate) const fn shed(&self, _reason: RefusedReason) {}

    pub(crate) const fn waits(&self, _cost: usize) {}

    pub(crate) const fn waited(&self, _cost: usize, _wait: Duration) {}

    pub(crate) const fn demand(&self, _pressure: Pressure) {}

    pub(crate) const fn baseline(&self, _baseline: Option<f64>) {}

    pub(crate) const fn limit(&self, _limit: usize) {}

    pub(crate) fn bounds(&self, _bounds: RangeInclusive<usize>) {}

    pub(crate) const fn mode(&self, _mode: Mode) {}

    pub(crate) const fn held(&self, _held: usize) {}
}

#[cfg(feature = "client")]
pub(crate) use self::client::{BudgetMetrics, ThrottleMetrics};

/// What throttles and retry budgets publish. Without the feature `metrics` they do nothing.
#[cfg(all(feature = "client", feature = "metrics"))]
mod client {
    use std::{fmt, sync::OnceLock};

    use metrics::{Counter, counter};

    use super::names;
    use crate::throttle::Answer;

    #[derive(Debug)]
    pub(crate) struct ThrottleMetrics {
        throttle: String,
        handles: OnceLock<ThrottleHandles>,
    }

    struct ThrottleHandles {
        sent: Counter,
        shed: Counter,
        accepted: Counter,
        rejected: Counter,
        limited: Counter,
        unanswered: Counter,
    }

    impl fmt::Debug for ThrottleHandles {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("ThrottleHandles").finish_non_exhaustive()
        }
    }

    impl ThrottleMetrics {
        pub(crate) fn new(throttle: &str) -> Self {
            Self {
                throttle: throttle.to_owned(),
                handles: OnceLock::new(),
            }
        }

        fn handles(&self) -> &ThrottleHandles {
            self.handles.get_or_init(|| {
                let name = &self.throttle;
                let requests = |decision: &'static str| {
                    counter!(
                        names::THROTTLE_REQUESTS,
                        "throttle" => name.clone(), "decision" => decision
                    )
                };
                let answers = |answer: &'static str| {
                    counter!(
                        names::THROTTLE_ANSWERS,
                        "throttle" => name.clone(), "answer" => answer
                    )
                };
                ThrottleHandles {
                    sent: requests("sent"),
                    shed: requests("shed"),
                    accepted: answers("accepted"),
                    rejected: answers("rejected"),
                    limited: answers("limited"),
                    unanswered: answers("none"),
                }
            })
        }

        pub(crate) fn sent(&self) {
            self.handles().sent.increment(1);
        }

        pub(crate) fn shed(&self) {
            self.handles().shed.increment(1);
        }

        pub(crate) fn answered(&self, answer: Option<Answer>) {
            let handles = self.handles();
            match answer {
                Some(Answer::Accepted) => &handles.accepted,
                Some(Answer::Rejected(_)) => &handles.rejected,
                Some(Answer::Limited(_)) => &handles.limited,
                None => &handles.unanswered,
            }
            .increment(1);
        }
    }

    #[derive(Debug)]
    pub(crate) struct BudgetMetrics {
        budget: String,
        handles: OnceLock<BudgetHandles>,
    }

    struct BudgetHandles {
        allowed: Counter,
        denied: Counter,
    }

    impl fmt::Debug for BudgetHandles {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("BudgetHandles").finish_non_exhaustive()
        }
    }

    impl BudgetMetrics {
        pub(crate) fn new(budget: &str) -> Self {
            Self {
                budget: budget.to_owned(),
                handles: OnceLock::new(),
            }
        }

        pub(crate) fn retry(&self, allowed: bool) {
            let handles = self.handles.get_or_init(|| {
                let retries = |decision: &'static str| {
                    counter!(
                        names::THROTTLE_RETRIES,
                        "budget" => self.budget.clone(), "decision" => decision
                    )
                };
                BudgetHandles {
                    allowed: retries("allowed"),
                    denied: retries("denied"),
                }
            });
            if allowed {
                handles.allowed.increment(1);
            } else {
                handles.denied.increment(1);
            }
        }
    }
}

#[cfg(all(feature = "client", not(feature = "metrics")))]
#[expect(
    clippy::unused_self,
    reason = "the same calls, with nothing behind them"
)]
mod client {
    use crate::throttle::Answer;

    #[derive(Debug)]
    pub(crate) struct ThrottleMetrics {}

    impl ThrottleMetrics {
        pub(crate) const fn new(_throttle: &str) -> Self {
            Self {}
        }

        pub(crate) const fn sent(&self) {}

        pub(crate) const fn shed(&self) {}

        pub(crate) const fn answered(&self, _answer: Option<Answer>) {}
    }

    #[derive(Debug)]
    pub(crate) struct BudgetMetrics {}

    impl BudgetMetrics {
        pub(crate) const fn new(_budget: &str) -> Self {
            Self {}
        }

        pub(crate) const fn retry(&self, _allowed: bool) {}
    }
}
