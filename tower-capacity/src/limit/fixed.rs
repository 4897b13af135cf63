//! A limit that never moves by itself.

use tokio::time::Instant;

use super::{Limit, Window};

/// Returns the same limit always.
///
/// The right law when the capacity has been measured and nothing ever changes it; the limiter then
/// still sheds, queues, counts and explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed(usize);

impl Fixed {
    /// Creates a law that returns `limit`.
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

    // The number was measured, or is a bound that must hold: it counts all that is inside.
    fn counts_held(&self) -> bool {
        true
    }

    fn name(&self) -> &'static str {
        "fixed"
    }
}
