//! Keys from the address at the other end of the connection.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use super::{Key, KeyedBy, RequestHead, Seed, network::masked};

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

pub(super) type FindIp = dyn Fn(&RequestHead<'_>) -> Option<IpAddr> + Send + Sync;

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
        let key = Self::by_ip("peer", peer.ipv6_prefix, peer.find);
        Self {
            keyed_by: KeyedBy::Peer,
            ..key
        }
    }
}

impl std::fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerKey")
            .field("ipv6_prefix", &self.ipv6_prefix)
            .finish_non_exhaustive()
    }
}

/// The hash of the group that `ip` belongs to. An IPv4 address that is embedded in an IPv6 one is
/// taken out *before* masking: masked first, all of IPv4 would be one IPv6 network (CVE-2026-30827
/// in another stack). The two are told apart by their length.
#[inline]
pub(super) fn hash_ip(ip: &IpAddr, ipv6_prefix: u8, seed: &Seed) -> u64 {
    let ipv4 = match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(ip) => embedded(*ip),
    };
    match ipv4 {
        Some(ip) => seed.hash_one(u32::from(ip)),
        None => seed.hash_one(masked(*ip, ipv6_prefix)),
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped (RFC 4291 §2.5.5.2), compatible
/// (§2.5.5.1), NAT64 (RFC 6052 and RFC 8215), 6to4 (RFC 3056) or, for Teredo, that of the client's
/// NAT (RFC 4380 §4).
#[inline]
pub(super) fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = u128::from(ip);
    let low = Ipv4Addr::from(bits as u32);
    match (bits >> 96) as u32 {
        0 if bits >> 32 == 0xffff => Some(low),
        // `::` and `::1` are no IPv4 addresses, and neither are the few above them.
        0 if bits >> 32 == 0 && bits > 0xffff => Some(low),
        0x2001_0000 => Some(Ipv4Addr::from(!(bits as u32))),
        0x0064_ff9b if bits << 32 >> 64 == 0 => Some(low),
        // 64:ff9b:1::/48, in the form that operators use most: a /96 of their own.
        0x0064_ff9b if bits >> 80 == 0x0064_ff9b_0001 => Some(low),
        prefix if prefix >> 16 == 0x2002 => Some(Ipv4Addr::from((bits >> 80) as u32)),
        _ => None,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: &str, b: &str, ipv6_prefix: u8) -> bool {
        let seed = Seed::random();
        let group = |ip: &str| hash_ip(&ip.parse().unwrap(), ipv6_prefix, &seed);
        group(a) == group(b)
    }

    #[test]
    fn ipv4_written_as_ipv6_is_ipv4() {
        assert!(same("::ffff:192.0.2.1", "192.0.2.1", 64));
        assert!(!same("::ffff:192.0.2.1", "::ffff:192.0.2.2", 64));
    }

    #[test]
    fn ipv6_addresses_that_stand_for_an_ipv4_client_are_that_client() {
        let clients = [
            "::ffff:192.0.2.1",
            "::192.0.2.1",
            "64:ff9b::192.0.2.1",
            "64:ff9b:1::192.0.2.1",
            "2002:c000:201::1",
            "2002:c000:201:99::7",
            // Teredo: the server 203.0.113.1, a port, and 192.0.2.1 inverted.
            "2001:0:cb00:7101:0:f000:3fff:fdfe",
        ];
        for client in clients {
            assert!(same(client, "192.0.2.1", 64), "{client}");
            assert!(!same(client, "192.0.2.2", 64), "{client}");
        }
        assert!(!same("::1", "0.0.0.1", 64));
        assert!(!same("64:ff9b:2::192.0.2.1", "192.0.2.1", 64));
        assert!(!same("2001:db8::192.0.2.1", "192.0.2.1", 64));
    }

    #[test]
    fn ipv6_is_grouped_by_prefix() {
        assert!(same("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", 64));
        assert!(!same("2001:db8:1:2::1", "2001:db8:1:3::1", 64));
        assert!(same("2001:db8:1:2::1", "2001:db8:1:3::1", 48));
        assert!(!same("2001:db8::1", "2001:db8::2", 128));
        assert!(same("2001:db8::1", "::1", 0));
    }
}
