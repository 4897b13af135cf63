//! The responses of the module's table.

use http::{Response, request};

use super::{Answer, Limited, grpc, http as over_http};
use crate::{RateLimitBody, grpc::is_grpc};

/// The responses of the [module's table](super).
#[derive(Clone, Debug)]
pub struct StandardAnswer {
    plain: bool,
    grpc_details: bool,
}

impl StandardAnswer {
    /// Problem documents and gRPC details.
    #[must_use]
    pub fn new() -> Self {
        Self {
            plain: false,
            grpc_details: true,
        }
    }

    /// Sends one line of text instead of a problem document.
    ///
    /// Defaults to `false`.
    #[must_use]
    pub fn plain(mut self, plain: bool) -> Self {
        self.plain = plain;
        self
    }

    /// Sends `grpc-status-details-bin` with gRPC refusals.
    ///
    /// Defaults to `true`.
    #[must_use]
    pub fn grpc_details(mut self, details: bool) -> Self {
        self.grpc_details = details;
        self
    }
}

impl Default for StandardAnswer {
    fn default() -> Self {
        Self::new()
    }
}

impl<B> Answer<B> for StandardAnswer {
    fn answer(&self, limited: &Limited<'_>, request: request::Parts) -> Response<RateLimitBody<B>> {
        if is_grpc(&request.headers) {
            grpc::answer(limited, request.headers, self.grpc_details)
        } else {
            over_http::answer(limited, request.headers, self.plain)
        }
    }
}
