//! A key: how it is found in a request, and how two are put together.

use std::{fmt, net::IpAddr, sync::Arc};

use super::{
    RequestHead, Seed,
    address::{FindIp, hash_ip},
};

/// Finds the key in a request, see the [module](super).
#[derive(Clone)]
pub struct Key {
    find: Find,
    what: Arc<str>,
    /// Finds the client's address, if the key is made of it among other things.
    ip: Option<Arc<FindIp>>,
    keyed_by: KeyedBy,
}

/// What a key is made of, as far as mistakes in the setup go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum KeyedBy {
    /// One quota for all, on purpose.
    Nothing,
    /// The peer's address, with no proxy in between.
    Peer,
    Other,
}

#[derive(Clone)]
enum Find {
    /// By the group of an address, for IPv6 of this many bits.
    Ip(Arc<FindIp>, u8),
    Hash(Arc<FindKey>),
}

type FindKey = dyn Fn(&RequestHead<'_>, &Seed) -> Option<u64> + Send + Sync;

impl Key {
    /// Both this key and `other`: each pair of values has a quota of its own. Missing when
    /// either is.
    #[must_use]
    pub fn and(self, other: impl Into<Self>) -> Self {
        let other = other.into();
        let what = format!("{} and {}", self.what, other.what);
        let ip = self.ip.clone().or_else(|| other.ip.clone());
        let find = move |head: &RequestHead<'_>, seed: &Seed| {
            Some(seed.hash_one((self.find(head, seed)?, other.find(head, seed)?)))
        };
        Self {
            ip,
            ..Self::new(what, find)
        }
    }

    /// This key, or `other` where this one is missing. Equal values of the two are different
    /// keys.
    #[must_use]
    pub fn or(self, other: impl Into<Self>) -> Self {
        let other = other.into();
        let what = format!("{} or {}", self.what, other.what);
        let ip = self.ip.clone().or_else(|| other.ip.clone());
        let find = move |head: &RequestHead<'_>, seed: &Seed| {
            self.find(head, seed)
                .or_else(|| Some(seed.hash_one(other.find(head, seed)?)))
        };
        Self {
            ip,
            ..Self::new(what, find)
        }
    }

    pub(super) fn new(
        what: impl Into<Arc<str>>,
        find: impl Fn(&RequestHead<'_>, &Seed) -> Option<u64> + Send + Sync + 'static,
    ) -> Self {
        Self {
            find: Find::Hash(Arc::new(find)),
            what: what.into(),
            ip: None,
            keyed_by: KeyedBy::Other,
        }
    }

    /// A key by the group of the address that `find` returns.
    pub(super) fn by_ip(what: &str, ipv6_prefix: u8, find: Arc<FindIp>) -> Self {
        Self {
            ip: Some(Arc::clone(&find)),
            find: Find::Ip(find, ipv6_prefix),
            what: what.into(),
            keyed_by: KeyedBy::Other,
        }
    }

    pub(super) fn with_keyed_by(mut self, keyed_by: KeyedBy) -> Self {
        self.keyed_by = keyed_by;
        self
    }

    #[inline]
    pub(crate) fn keyed_by(&self) -> KeyedBy {
        self.keyed_by
    }

    /// Whether an address is a part of the key.
    pub(crate) fn is_made_of_ip(&self) -> bool {
        self.ip.is_some()
    }

    /// The client's address, if the key is made of it.
    pub(crate) fn client_ip(&self, head: &RequestHead<'_>) -> Option<IpAddr> {
        self.ip.as_ref()?(head)
    }

    /// The hash of the key; `None` when the request has none.
    #[inline]
    pub(crate) fn find(&self, head: &RequestHead<'_>, seed: &Seed) -> Option<u64> {
        match &self.find {
            Find::Ip(find, ipv6_prefix) => {
                let ip = find(head);
                // By reference, because a copy would have to wait for what was just written.
                ip.as_ref().map(|ip| hash_ip(ip, *ipv6_prefix, seed))
            }
            Find::Hash(find) => find(head, seed),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.what)
    }
}
