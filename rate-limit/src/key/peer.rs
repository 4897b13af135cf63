//! Keys from the address at the other end of the connection.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Key, KeyedBy, RequestHead, address::FindIp};

/// The address at the other end of the connection, as a request extension that the server puts
/// there.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub struct PeerAddr(pub SocketAddr);

impl PeerAddr {
    /// The extension for connections from `addr`.
    #[must_use]
    pub fn new(addr: SocketAddr) -> Self {
        Self(addr)
    }
}

/// The address at the other end of the connection: the client, or the proxy in front.
///
/// The address is read from the request's extensions: a [`PeerAddr`]; with the `axum` feature
/// what `into_make_service_with_connect_info::<SocketAddr>()` leaves there; with the `tonic`
/// feature what tonic's server leaves there. Elsewhere, say where it is with [`peer_from`].
///
/// No header is read, so a client cannot choose its address.
pub fn peer() -> PeerKey {
    peer_from(found_peer)
}

/// The address that axum's `into_make_service_with_connect_info::<SocketAddr>()` leaves in the
/// request. As [`peer`], but only there with the `axum` feature, so that a program that depends on
/// it does not compile without.
#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub fn connect_info() -> PeerKey {
    peer()
}

/// The address that `find` returns, for servers that [`peer`] does not know.
///
/// ```
/// use std::net::SocketAddr;
/// use axum::extract::ConnectInfo;
/// use rate_limit::key;
///
/// let peer = key::peer_from(|request| {
///     let info = request.extensions().get::<ConnectInfo<SocketAddr>>()?;
///     Some(info.0.ip())
/// });
/// ```
pub fn peer_from(
    find: impl Fn(&RequestHead<'_>) -> Option<IpAddr> + Send + Sync + 'static,
) -> PeerKey {
    PeerKey {
        find: Arc::new(find),
        ipv6_prefix: DEFAULT_IPV6_PREFIX,
    }
}

/// A key from an address, made by [`peer`] or [`peer_from`].
///
/// IPv6 addresses that stand for an IPv4 client are that client: mapped and compatible ones
/// (`::ffff:192.0.2.1`), NAT64 (`64:ff9b::/96`, `64:ff9b:1::/48`), 6to4 (`2002::/16`) and Teredo
/// (`2001::/32`, by the client's NAT). Other IPv6 addresses are grouped by prefix, because a client
/// that has one has all the addresses of its network.
#[derive(Clone)]
#[must_use = "a key does nothing until a layer gets it"]
pub struct PeerKey {
    find: Arc<FindIp>,
    ipv6_prefix: u8,
}

impl PeerKey {
    /// Sets how many leading bits of an IPv6 address make the key, at most 128.
    ///
    /// Defaults to 64, the smallest network a client is usually given (RFC 6177). Use 56 or 48
    /// where clients get more.
    pub fn ipv6_prefix(mut self, bits: u8) -> Self {
        self.ipv6_prefix = bits.min(128);
        self
    }
}

impl From<PeerKey> for Key {
    fn from(peer: PeerKey) -> Self {
        Self::by_ip("peer", peer.ipv6_prefix, peer.find).with_keyed_by(KeyedBy::Peer)
    }
}

impl std::fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerKey")
            .field("ipv6_prefix", &self.ipv6_prefix)
            .finish_non_exhaustive()
    }
}

pub(super) fn found_peer(head: &RequestHead<'_>) -> Option<IpAddr> {
    let extensions = head.extensions();
    if let Some(PeerAddr(addr)) = extensions.get() {
        return Some(addr.ip());
    }
    #[cfg(feature = "axum")]
    if let Some(info) = extensions.get::<axum::extract::ConnectInfo<SocketAddr>>() {
        return Some(info.0.ip());
    }
    #[cfg(feature = "tonic")]
    if let Some(info) = extensions.get::<tonic::transport::server::TcpConnectInfo>() {
        return info.remote_addr().map(|addr| addr.ip());
    }
    None
}

pub(super) const DEFAULT_IPV6_PREFIX: u8 = 64;
