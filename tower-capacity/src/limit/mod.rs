//! Control laws: how many requests may be inside.
//!
//! A law is a pure value. It reads no clock, takes no lock and knows nothing of HTTP: what
//! happened arrives as a [`Window`], the time of the decision arrives as an argument, and the
//! return value is the new limit. The same value therefore runs in a server, in a simulator and in a
//! unit test.
//!
//! | law | reads | for |
//! |---|---|---|
//! | the default, `knee` | service time and throughput, with probes | services of which no number is known |
//! | [`Aimd`] | drops, and optionally a threshold on the service time | a known latency threshold |
//! | [`Fixed`] | nothing | a limit that was measured |
//!
//! Write your own by implementing [`Limit`]:
//!
//! ```
//! use tokio::time::Instant;
//! use tower_capacity::limit::{Limit, Window};
//!
//! /// Follows demand from above: never queues, never protects.
//! #[derive(Debug)]
//! struct Generous;
//!
//! impl Limit for Generous {
//!     fn initial(&self) -> usize {
//!         64
//!     }
//!
//!     fn on_window(&mut self, _now: Instant, window: &Window) -> usize {
//!         (2.0 * window.mean_inflight).ceil() as usize
//!     }
//!
//!     fn name(&self) -> &'static str {
//!         "generous"
//!     }
//! }
//! ```

mod aimd;
mod explanation;
mod fixed;
// Public with a feature alone.
#[cfg_attr(not(feature = "unstable-laws"), allow(unreachable_pub))]
mod knee;
#[expect(
    clippy::module_inception,
    reason = "the trait that gives the module its name"
)]
mod limit;
#[cfg(test)]
#[path = "../../tests/inside/laws.rs"]
mod tests;
mod window;

#[cfg(feature = "unstable-laws")]
pub use self::knee::Knee;
#[cfg(not(feature = "unstable-laws"))]
pub(crate) use self::knee::Knee;
pub use self::{aimd::Aimd, explanation::Explanation, fixed::Fixed, limit::Limit, window::Window};
