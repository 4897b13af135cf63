//! Callers to whom no quota applies, and callers who get nothing.

use super::{Network, NetworkError, Seed};

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
    /// The callers whose address, as the layer's key finds it, is in one of `networks`.
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
    pub(crate) fn contains_ip(&self, ip: std::net::IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(ip))
    }

    pub(crate) fn contains_key(&self, hash: u64) -> bool {
        self.hashes.binary_search(&hash).is_ok()
    }

    pub(crate) fn has_networks(&self) -> bool {
        !self.networks.is_empty()
    }
}
