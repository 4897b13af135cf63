//! The parts of refusals that depend on a plan alone, rendered when its policies are set.

use bytes::Bytes;
use http::HeaderValue;

use super::{grpc::violation, http::problem, quota_headers::policy_field};
use crate::rules::{Charge, Ruleset};

/// The parts of answers that are the same for all requests of a plan.
#[derive(Debug)]
pub(crate) struct Rendered {
    /// For each policy, the problem document that names it alone.
    pub(super) problems: Box<[Bytes]>,
    /// The same as a `google.rpc.QuotaFailure.Violation`.
    pub(super) violations: Box<[Bytes]>,
    /// The `ratelimit-policy` field value.
    pub(super) policy_field: HeaderValue,
}

impl Rendered {
    pub(crate) fn new(rules: &Ruleset) -> Self {
        let each = || rules.rules().iter().map(|rule| &rule.policy);
        Self {
            problems: each().map(|policy| problem(policy.name())).collect(),
            violations: each()
                .map(|policy| violation(policy.name(), policy.quota()))
                .collect(),
            policy_field: policy_field(rules.rules(), &Charge::each(0), None),
        }
    }
}
