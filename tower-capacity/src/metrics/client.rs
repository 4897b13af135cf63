//! The metrics of throttles and of retry budgets.

#[cfg(feature = "metrics")]
use std::{fmt, sync::OnceLock};

#[cfg(feature = "metrics")]
use metrics::{Counter, counter};

#[cfg(feature = "metrics")]
use super::{THROTTLE_ANSWERS, THROTTLE_REQUESTS, THROTTLE_RETRIES};
use crate::throttle::Answer;

/// Records what one throttle does.
#[derive(Debug)]
pub(crate) struct ThrottleMetrics {
    #[cfg(feature = "metrics")]
    throttle: String,
    #[cfg(feature = "metrics")]
    handles: OnceLock<ThrottleHandles>,
}

#[cfg_attr(
    not(feature = "metrics"),
    expect(unused_variables, reason = "nothing is recorded")
)]
impl ThrottleMetrics {
    pub(crate) fn new(throttle: &str) -> Self {
        Self {
            #[cfg(feature = "metrics")]
            throttle: throttle.to_owned(),
            #[cfg(feature = "metrics")]
            handles: OnceLock::new(),
        }
    }

    pub(crate) fn sent(&self) {
        #[cfg(feature = "metrics")]
        self.handles().sent.increment(1);
    }

    pub(crate) fn shed(&self) {
        #[cfg(feature = "metrics")]
        self.handles().shed.increment(1);
    }

    pub(crate) fn answered(&self, answer: Option<Answer>) {
        #[cfg(feature = "metrics")]
        {
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

    #[cfg(feature = "metrics")]
    fn handles(&self) -> &ThrottleHandles {
        self.handles
            .get_or_init(|| ThrottleHandles::new(&self.throttle))
    }
}

#[cfg(feature = "metrics")]
struct ThrottleHandles {
    sent: Counter,
    shed: Counter,
    accepted: Counter,
    rejected: Counter,
    limited: Counter,
    unanswered: Counter,
}

#[cfg(feature = "metrics")]
impl ThrottleHandles {
    fn new(throttle: &str) -> Self {
        let throttle = || throttle.to_owned();
        let requests = |decision: &'static str| counter!(THROTTLE_REQUESTS, "throttle" => throttle(), "decision" => decision);
        let answers = |answer: &'static str| counter!(THROTTLE_ANSWERS, "throttle" => throttle(), "answer" => answer);
        Self {
            sent: requests("sent"),
            shed: requests("shed"),
            accepted: answers("accepted"),
            rejected: answers("rejected"),
            limited: answers("limited"),
            unanswered: answers("none"),
        }
    }
}

#[cfg(feature = "metrics")]
impl fmt::Debug for ThrottleHandles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThrottleHandles").finish_non_exhaustive()
    }
}

/// Records what one retry budget does.
#[derive(Debug)]
pub(crate) struct BudgetMetrics {
    #[cfg(feature = "metrics")]
    budget: String,
    #[cfg(feature = "metrics")]
    handles: OnceLock<BudgetHandles>,
}

#[cfg_attr(
    not(feature = "metrics"),
    expect(unused_variables, reason = "nothing is recorded")
)]
impl BudgetMetrics {
    pub(crate) fn new(budget: &str) -> Self {
        Self {
            #[cfg(feature = "metrics")]
            budget: budget.to_owned(),
            #[cfg(feature = "metrics")]
            handles: OnceLock::new(),
        }
    }

    pub(crate) fn retry(&self, allowed: bool) {
        #[cfg(feature = "metrics")]
        {
            let handles = self.handles();
            match allowed {
                true => &handles.allowed,
                false => &handles.denied,
            }
            .increment(1);
        }
    }

    #[cfg(feature = "metrics")]
    fn handles(&self) -> &BudgetHandles {
        self.handles
            .get_or_init(|| BudgetHandles::new(&self.budget))
    }
}

#[cfg(feature = "metrics")]
struct BudgetHandles {
    allowed: Counter,
    denied: Counter,
}

#[cfg(feature = "metrics")]
impl BudgetHandles {
    fn new(budget: &str) -> Self {
        let retries = |decision: &'static str| counter!(THROTTLE_RETRIES, "budget" => budget.to_owned(), "decision" => decision);
        Self {
            allowed: retries("allowed"),
            denied: retries("denied"),
        }
    }
}

#[cfg(feature = "metrics")]
impl fmt::Debug for BudgetHandles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BudgetHandles").finish_non_exhaustive()
    }
}
