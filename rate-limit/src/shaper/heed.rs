//! Where the queue meets HTTP.

use http::{HeaderMap, StatusCode};

use super::{Permit, feedback::Feedback};

impl Permit {
    /// Reads what a response says about the next request: status and headers, as
    /// [the module](super) lists them.
    pub fn heed(&self, status: StatusCode, headers: &HeaderMap) {
        self.shaper().heed(Feedback::read(status, headers));
    }
}
