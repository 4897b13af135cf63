//! Callers to which no quota applies, and callers that get nothing.

use std::{net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;

use super::{Key, Network, NetworkError, RequestHead, Seed, peer::found_peer};

/// A list of callers, by address or by key; for
/// [`RateLimitLayer::allow`](crate::RateLimitLayer::allow) and
/// [`RateLimitLayer::deny`](crate::RateLimitLayer::deny).
///
/// ```
/// use rate_limit::{MINUTE, Quota, RateLimitLayer, key::AccessList};
///
/// let layer = RateLimitLayer::new(Quota::count(100).per(MINUTE))?
///     .allow(AccessList::networks(["10.0.0.0/8", "::1"])?)
///     .deny(AccessList::networks(["192.0.2.0/24"])?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct AccessList {
    networks: Vec<Network>,
    keys: Vec<Vec<u8>>,
}

impl AccessList {
    /// The callers with an address in one of `networks`: the client's as the layer's key finds it,
    /// or the peer's where the key is made of something else.
    ///
    /// # Errors
    ///
    /// Fails on the first text that is not an address or a range of addresses.
    pub fn networks<T: AsRef<str>>(
        networks: impl IntoIterator<Item = T>,
    ) -> Result<Self, NetworkError> {
        let networks = networks.into_iter().map(|network| network.as_ref().parse());
        Ok(Self {
            networks: networks.collect::<Result<_, _>>()?,
            keys: Vec::new(),
        })
    }

    /// The callers with one of these values in the header that
    /// [`key::header`](super::header) reads.
    #[must_use]
    pub fn keys<T: AsRef<[u8]>>(keys: impl IntoIterator<Item = T>) -> Self {
        let keys = keys.into_iter().map(|key| key.as_ref().to_vec());
        Self {
            networks: Vec::new(),
            keys: keys.collect(),
        }
    }

    /// The callers on either list.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.networks.extend(other.networks);
        self.keys.extend(other.keys);
        self
    }

    /// The list as a layer looks things up in it.
    pub(crate) fn compile(self, seed: &Seed) -> CompiledList {
        let mut hashes: Vec<_> = self
            .keys
            .iter()
            .map(|key| seed.hash_one(&key[..]))
            .collect();
        hashes.sort_unstable();
        CompiledList {
            networks: self.networks.into(),
            hashes: hashes.into(),
        }
    }
}

/// An [`AccessList`] with hashes in place of keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct CompiledList {
    networks: Box<[Network]>,
    hashes: Box<[u64]>,
}

impl CompiledList {
    /// Whether the caller is on the list, by key or by address.
    pub(crate) fn contains(&self, by: &Key, head: &RequestHead<'_>, key: Option<u64>) -> bool {
        let contains_ip = |ip: IpAddr| self.networks.iter().any(|network| network.contains(ip));
        key.is_some_and(|hash| self.hashes.binary_search(&hash).is_ok())
            || (!self.networks.is_empty()
                && by
                    .client_ip(head)
                    .or_else(|| found_peer(head))
                    .is_some_and(contains_ip))
    }
}

/// The lists of a layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lists {
    pub(crate) allow: CompiledList,
    pub(crate) deny: CompiledList,
}

/// Replaces the lists of a layer while it runs, see
/// [`RateLimitLayer::lists`](crate::RateLimitLayer::lists).
#[derive(Clone)]
pub struct AccessLists {
    lists: Arc<ArcSwap<Lists>>,
    seed: Seed,
}

impl AccessLists {
    pub(crate) fn new(lists: Arc<ArcSwap<Lists>>, seed: Seed) -> Self {
        Self { lists, seed }
    }

    /// Replaces the list of the callers that pass unlimited.
    pub fn set_allow(&self, list: AccessList) {
        let allow = list.compile(&self.seed);
        self.lists.rcu(|lists| Lists {
            allow: allow.clone(),
            deny: lists.deny.clone(),
        });
    }

    /// Replaces the list of the callers that are refused.
    pub fn set_deny(&self, list: AccessList) {
        let deny = list.compile(&self.seed);
        self.lists.rcu(|lists| Lists {
            allow: lists.allow.clone(),
            deny: deny.clone(),
        });
    }
}

impl std::fmt::Debug for AccessLists {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AccessLists").field(&self.lists).finish()
    }
}
