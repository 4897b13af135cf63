//! A refusal, as hooks and answers read it.

use std::time::Duration;

use super::{Reason, Rendered};
use crate::{
    LimitError, Policy, Quota,
    gcra::Excess,
    refusal::retry_after,
    rules::{Charge, Ruleset, Ruling},
};

/// Why a request is refused, and the numbers.
#[derive(Debug)]
pub struct Limited<'a> {
    reason: Reason,
    pub(super) quota: Option<OverQuota<'a>>,
}

/// What decided on a request over its quota.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OverQuota<'a> {
    pub(crate) rules: &'a Ruleset,
    pub(crate) rendered: &'a Rendered,
    pub(crate) charge: &'a Charge,
    pub(crate) ruling: &'a Ruling,
}

impl<'a> Limited<'a> {
    pub(crate) fn quota(over: OverQuota<'a>) -> Self {
        Self {
            reason: Reason::Quota,
            quota: Some(over),
        }
    }

    pub(crate) fn other(reason: Reason) -> Self {
        Self {
            reason,
            quota: None,
        }
    }

    /// The kind of refusal.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// After how long the same request would conform; `None` if waiting does not help.
    ///
    /// For quotas this is exact to the nanosecond; see
    /// [`retry_after_seconds`](Self::retry_after_seconds) for what a header should say. For the
    /// rest it is one second.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.quota.map_or_else(
            || self.reason.retry_after(),
            |over| retry_after(over.ruling.excess),
        )
    }

    /// The same in whole seconds, rounded up and at least 1: the value of a `retry-after` header.
    #[must_use]
    pub fn retry_after_seconds(&self) -> Option<u64> {
        let wait = self.retry_after()?;
        Some((wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1))
    }

    /// The policies that were exceeded.
    pub fn violated(&self) -> impl Iterator<Item = &'a Policy> {
        let indices = self.violated_indices();
        let quota = self.quota;
        indices.filter_map(move |index| Some(&quota?.rules.rules()[index].policy))
    }

    /// The quotas that were exceeded: those of the [policies](Self::violated), or the request's
    /// own in place of the first policy's.
    pub fn violated_quotas(&self) -> impl Iterator<Item = Quota> {
        let quota = self.quota;
        self.violated_indices().filter_map(move |index| {
            let over = quota?;
            Some(over.charge.quota(index, &over.rules.rules()[index]))
        })
    }

    pub(super) fn violated_indices(&self) -> impl Iterator<Item = usize> + use<> {
        let (violated, count) = self.quota.map_or_else(Default::default, |over| {
            (over.ruling.violated, over.rules.rules().len())
        });
        (0..count).filter(move |index| violated.contains(*index))
    }

    /// Whether no wait helps, because the request is larger than a burst.
    #[must_use]
    pub fn never_conforms(&self) -> bool {
        self.quota
            .is_some_and(|over| over.ruling.excess == Some(Excess::Never))
    }

    /// What [`RateLimitLayer::explain_refusals`](crate::RateLimitLayer::explain_refusals) leaves in
    /// the response's extensions.
    pub(crate) fn explain(&self) -> LimitError {
        match self.quota {
            Some(over) => LimitError::quota(over.rules, over.ruling),
            None => LimitError::other(self.reason),
        }
    }
}
