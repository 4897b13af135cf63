//! The caller that a request is charged to.
//!
//! A [`Key`] reads a request's head and hashes what it finds with a secret of the limiter's, so
//! no client can choose keys that collide. Nothing is allocated and only the hash is kept.
//!
//! ```
//! use rate_limit::key;
//!
//! let by_address = key::peer();
//! let by_token = key::header("x-api-key");
//! let by_tenant_and_route = key::header("x-tenant").and(key::path());
//! let by_token_or_address = key::header("x-api-key").or(key::peer());
//! let by_client_behind_proxies = key::forwarded(key::Trust::networks(["10.0.0.0/8"])?);
//! # Ok::<(), key::NetworkError>(())
//! ```

mod forwarded;
mod header;
mod list;
mod network;
mod peer;
mod resolve;
mod seed;

use std::{
    fmt,
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::Arc,
};

use http::{
    Extensions, HeaderMap, Method, Request, Uri, Version,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
};

#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub use self::peer::connect_info;
use self::peer::{FindIp, hash_ip};
pub use self::{
    forwarded::{ForwardedHeader, ForwardedKey, Trust, forwarded},
    header::header,
    list::{AccessList, AccessLists},
    network::{Network, NetworkError},
    peer::{PeerAddr, PeerKey, peer, peer_from},
    resolve::{Resolve, ResolveFuture, ResolveLayer},
};
pub(crate) use self::{list::Lists, seed::Seed};

/// Finds the key in a request, see the [module](self).
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

    fn new(
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
    fn by_ip(what: &str, ipv6_prefix: u8, find: Arc<FindIp>) -> Self {
        Self {
            ip: Some(Arc::clone(&find)),
            find: Find::Ip(find, ipv6_prefix),
            what: what.into(),
            keyed_by: KeyedBy::Other,
        }
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

/// The same quota for every request.
#[must_use]
pub fn global() -> Key {
    Key {
        keyed_by: KeyedBy::Nothing,
        ..Key::new("global", |_, seed| Some(seed.hash_one(())))
    }
}

/// The path of the request, without its query. With axum, prefer the matched route through
/// [`from_fn`]: raw paths are as many as clients care to invent.
#[must_use]
pub fn path() -> Key {
    Key::new("path", |head, seed| Some(seed.hash_one(head.uri().path())))
}

/// A value that an earlier middleware left in the request's extensions: a user id, the claims of
/// a token.
///
/// ```
/// use rate_limit::key;
///
/// #[derive(Clone, Hash)]
/// struct UserId(u64);
///
/// let by_user = key::extension::<UserId>();
/// ```
#[must_use]
pub fn extension<T: Hash + Send + Sync + 'static>() -> Key {
    Key::new("extension", |head, seed| {
        Some(seed.hash_one(head.extensions().get::<T>()?))
    })
}

/// Whatever `find` returns; `None` when the request has no key.
///
/// ```
/// use rate_limit::key;
///
/// // One quota for each first segment of the path.
/// let by_area = key::from_fn(|request| request.uri().path().split('/').nth(1).map(str::to_owned));
/// ```
#[must_use]
pub fn from_fn<K: Hash>(
    find: impl Fn(&RequestHead<'_>) -> Option<K> + Send + Sync + 'static,
) -> Key {
    Key::new("function", move |head, seed| {
        Some(seed.hash_one(find(head)?))
    })
}

/// Whatever `write` feeds to the hasher, for keys that borrow from the request; `false` when the
/// request has no key.
///
/// ```
/// use std::hash::Hash;
/// use rate_limit::key;
///
/// let by_query = key::hashed(|request, mut hasher| match request.uri().query() {
///     Some(query) => {
///         query.hash(&mut hasher);
///         true
///     }
///     None => false,
/// });
/// ```
#[must_use]
pub fn hashed(
    write: impl Fn(&RequestHead<'_>, &mut dyn Hasher) -> bool + Send + Sync + 'static,
) -> Key {
    Key::new("function", move |head, seed| {
        seed.hash_written(|hasher| write(head, hasher))
    })
}

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

/// A request without its body: what keys, predicates and hooks get to see.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    method: &'a Method,
    uri: &'a Uri,
    version: Version,
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
}

impl<'a> RequestHead<'a> {
    /// The head of `request`.
    #[inline]
    #[must_use]
    pub fn of<B>(request: &'a Request<B>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            version: request.version(),
            headers: request.headers(),
            extensions: request.extensions(),
        }
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> &'a Method {
        self.method
    }

    /// The target.
    #[must_use]
    pub fn uri(&self) -> &'a Uri {
        self.uri
    }

    /// The HTTP version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The headers.
    #[inline]
    #[must_use]
    pub fn headers(&self) -> &'a HeaderMap {
        self.headers
    }

    /// The length that the client declared for the body, if it declared a valid one. To charge by
    /// the length use [`body_length`](Self::body_length), which a chunked body cannot evade.
    #[must_use]
    pub fn content_length(&self) -> Option<u64> {
        self.headers
            .get(CONTENT_LENGTH)?
            .to_str()
            .ok()?
            .parse()
            .ok()
    }

    /// How long the body is, if that is known: as declared, or none at all for HTTP/1 requests that
    /// announce no body and for methods that have none. `None` for a body of undeclared length
    /// (chunked, or HTTP/2 without `content-length`).
    #[must_use]
    pub fn body_length(&self) -> Option<u64> {
        let headers = self.headers;
        if headers.contains_key(TRANSFER_ENCODING) {
            return None;
        }
        if headers.contains_key(CONTENT_LENGTH) {
            return self.content_length();
        }
        let announces = self.version <= Version::HTTP_11;
        let has_none = [
            &Method::GET,
            &Method::HEAD,
            &Method::OPTIONS,
            &Method::DELETE,
        ];
        (announces || has_none.contains(&self.method)).then_some(0)
    }

    /// The extensions, where servers leave the peer address and middleware its findings.
    #[inline]
    #[must_use]
    pub fn extensions(&self) -> &'a Extensions {
        self.extensions
    }
}
