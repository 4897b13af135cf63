//! Why a law decided as it did.

/// Why a law took its last decision, for events and reports.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Explanation {
    /// Name of the rule that decided.
    pub reason: &'static str,
    /// The service time without queueing that the law compares with, in seconds, for laws that
    /// keep one.
    pub baseline: Option<f64>,
    /// The elasticity of throughput to concurrency, for laws that measure it.
    pub elasticity: Option<f64>,
}

impl Explanation {
    /// Creates an explanation that names only the rule.
    #[must_use]
    pub const fn new(reason: &'static str) -> Self {
        Self {
            reason,
            baseline: None,
            elasticity: None,
        }
    }
}

impl Default for Explanation {
    /// The rule `hold`: nothing moved.
    fn default() -> Self {
        Self::new("hold")
    }
}
