//! What a limiter remembers of the changes of its limit.

use std::fmt;

use tokio::time::Instant;

use crate::limit::{Explanation, Window};

/// An explained change of the limit: one window, or several in a row for the same reason.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LimitChange {
    /// When it was last extended.
    pub at: Instant,
    /// The limit before.
    pub old: usize,
    /// The limit after.
    pub new: usize,
    /// How many windows moved it.
    pub windows: u32,
    /// Name of the control law.
    pub law: &'static str,
    /// Why.
    pub why: Explanation,
    /// What the law read last; `None` if the bounds were moved before the first window closed.
    pub window: Option<Window>,
}

impl LimitChange {
    pub(crate) fn extend(&mut self, next: &Self) {
        *self = Self {
            old: self.old,
            windows: self.windows + 1,
            ..next.clone()
        };
    }
}

impl fmt::Display for LimitChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "limit {} -> {}: {}", self.old, self.new, self.why.reason)?;
        if self.windows > 1 {
            write!(f, " over {} windows", self.windows)?;
        }
        if let Some(window) = &self.window {
            write!(f, ", {:.0}/s", window.throughput())?;
            if let Some(service_time) = window.service_time {
                write!(f, ", service time {:.1} ms", service_time * 1e3)?;
            }
        }
        if let Some(baseline) = self.why.baseline {
            write!(f, ", baseline {:.1} ms", baseline * 1e3)?;
        }
        if let Some(elasticity) = self.why.elasticity {
            write!(f, ", elasticity {elasticity:.2}")?;
        }
        Ok(())
    }
}
