//! Control laws: how many requests may be inside.
//!
//! A law is a pure value. It reads no clock, takes no lock and knows nothing of HTTP: what
//! happened arrives as a [`Window`], the time of the decision arrives as an argument, and the
//! return value is the new limit. The same value therefore runs in a server, in a simulator and in a
//! unit test.
//!
//! | law | reads | for |
//! |---|---|---|
//! | [`Knee`] | service time and throughput, with probes | the default |
//! | [`Aimd`] | drops, and optionally a threshold on the service time | a known latency threshold |
//! | [`Vegas`] | service time against the least one seen | comparison |
//! | [`Gradient2`] | service time against a long average | comparison |
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
mod gradient2;
mod knee;
#[expect(
    clippy::module_inception,
    reason = "the trait that gives the module its name"
)]
mod limit;
#[cfg(test)]
#[path = "../../tests/inside/laws.rs"]
mod tests;
mod vegas;
mod window;

pub use self::{
    aimd::Aimd, explanation::Explanation, fixed::Fixed, gradient2::Gradient2, knee::Knee,
    limit::Limit, vegas::Vegas, window::Window,
};
