//! What an address is grouped by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{RequestHead, Seed, network::masked};

/// Finds an address in a request.
pub(super) type FindIp = dyn Fn(&RequestHead<'_>) -> Option<IpAddr> + Send + Sync;

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
