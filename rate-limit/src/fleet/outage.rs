//! What a policy does while Redis cannot be asked.

/// What a policy does with requests while Redis does not reply.
///
/// ```
/// use rate_limit::{MINUTE, Policy, Quota, fleet::OnOutage};
///
/// let payments = Policy::new("payments", Quota::count(100).per(MINUTE))
///     .on_outage(OnOutage::FailClosed);
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum OnOutage {
    /// Each node keeps to its share of the quota: `percent` of it, divided by the number of nodes
    /// last seen. It goes on from the level that Redis last replied for a key, and what it lets through is
    /// charged to the key when Redis is back.
    ///
    /// With as many nodes as were last seen, a key gets at most `percent` of
    /// `burst + rate × time` while Redis is away, and one request a node of a burst that is
    /// smaller than the number of nodes.
    LocalShare {
        /// Percent of the quota, 1 to 100; what is outside of that counts as the nearest.
        percent: u8,
    },
    /// The policy limits nothing. Other policies of the same request still do.
    FailOpen,
    /// The policy admits nothing: 503, or `UNAVAILABLE` for gRPC, for what costs it anything.
    FailClosed,
}

impl Default for OnOutage {
    fn default() -> Self {
        Self::LocalShare { percent: 100 }
    }
}

impl OnOutage {
    /// By how much a node must multiply what it counts to keep to its share, rounded up.
    pub(crate) fn weight(self, nodes: u64) -> u64 {
        let percent = match self {
            Self::LocalShare { percent } => u64::from(percent.clamp(1, 100)),
            Self::FailOpen | Self::FailClosed => 100,
        };
        nodes.max(1).saturating_mul(100).div_ceil(percent)
    }
}
