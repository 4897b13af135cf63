//! What a pod is told.

use serde::{Deserialize, Serialize};

use crate::profile::Profile;

/// How a profile is run.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Way {
    /// The documented numbers.
    Static,
    /// No number: adaptive limit, tuned pools, one budget, one quota.
    Ours,
    /// All the connections that there are, and this many requests at once in each pod.
    Swept(usize),
}

/// What a pod has to know, sent to it as one line of JSON.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Spec {
    pub(crate) profile: Profile,
    pub(crate) way: Way,
    pub(crate) index: usize,
    /// Pods now, and the most there will be.
    pub(crate) pods: usize,
    pub(crate) most_pods: usize,
    /// The documented part of the pool, scaled.
    pub(crate) pool: usize,
    pub(crate) primary: String,
    pub(crate) replicas: Vec<String>,
    pub(crate) redis: Option<String>,
    pub(crate) api: Option<String>,
}

impl Spec {
    pub(super) fn is_ours(&self) -> bool {
        self.way == Way::Ours
    }
}

/// Users find this header in the requests that carry a quota.
pub(crate) const USER: &str = "x-user";

/// `superuser_reserved_connections`, before scaling.
pub(crate) const SUPERUSERS: usize = 3;

/// Rows of the table.
pub(crate) const ROWS: u32 = 10_000;
