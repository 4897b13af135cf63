//! Requests without a key.

/// What becomes of a request without a key: a missing header, no address.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum MissingKey {
    /// All such requests share one quota: no request escapes the limit, and a mistake in the setup
    /// shows up as refusals and in the `no_key` metric.
    #[default]
    Share,
    /// They are let through unlimited.
    Allow,
    /// They are refused: 400, or `INVALID_ARGUMENT` for gRPC.
    Deny,
}
