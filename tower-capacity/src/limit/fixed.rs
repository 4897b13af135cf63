//! A limit that never moves by itself.

use tokio::time::Instant;

use super::{Limit, Window};

/// Answers the same limit always.
///
/// The right law when somebody has measured the capacity and nothing ever changes it; the limiter
/// then still sheds, queues, counts and explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed(usize);

impl Fixed {
    /// Creates a law that answers `limit`.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self(limit)
    }
}

impl Limit for Fixed {
    fn initial(&self) -> usize {
        self.0
    }

    fn on_window(&mut self, _now: Instant, _window: &Window) -> usize {
        self.0
    }

    fn name(&self) -> &'static str {
        "fixed"
    }
}
