//! Which client sent it? One row a case: peer, header lines, expected client.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http::{HeaderName, HeaderValue, Request};
use proptest::prelude::*;
use rate_limit::key::{ForwardedHeader, ForwardedKey, PeerAddr, RequestHead, Trust, forwarded};
use tokio::time::Instant;

const XFF: &str = "x-forwarded-for";

/// Our proxies: 10.0.0.0/8 and 2001:db8:ffff::/48.
fn ours() -> ForwardedKey {
    forwarded(Trust::networks(["10.0.0.0/8", "2001:db8:ffff::/48"]).unwrap())
}

fn hops(count: usize) -> ForwardedKey {
    forwarded(Trust::hops(count))
}

fn rfc7239() -> ForwardedKey {
    ours().header(ForwardedHeader::Forwarded)
}

fn real_ip() -> ForwardedKey {
    ours().header(ForwardedHeader::Named(HeaderName::from_static("x-real-ip")))
}

fn request(peer: &str, lines: &[(&'static str, &[u8])]) -> Request<()> {
    let mut request = Request::new(());
    if let Ok(ip) = peer.parse() {
        request
            .extensions_mut()
            .insert(PeerAddr::new(SocketAddr::new(ip, 443)));
    }
    for &(name, value) in lines {
        let value = HeaderValue::from_bytes(value).unwrap();
        request
            .headers_mut()
            .append(HeaderName::from_static(name), value);
    }
    request
}

fn client(key: &ForwardedKey, peer: &str, lines: &[(&'static str, &[u8])]) -> Option<IpAddr> {
    key.client_ip(&RequestHead::of(&request(peer, lines)))
}

type Row<'a> = (&'a str, &'a str, &'a [(&'static str, &'a str)], &'a str);

fn check(key: &ForwardedKey, rows: &[Row<'_>]) -> usize {
    for (why, peer, lines, expected) in rows {
        let lines: Vec<_> = lines
            .iter()
            .map(|(name, value)| (*name, value.as_bytes()))
            .collect();
        assert_eq!(
            client(key, peer, &lines),
            expected.parse().ok(),
            "{why}: {lines:?}"
        );
    }
    rows.len()
}

const FWD: &str = "forwarded";

#[test]
#[rustfmt::skip]
fn every_vector_finds_its_client() {
    let mut vectors = 0;
    let forty = format!("203.0.113.7{}", ",10.0.1.1".repeat(40));
    vectors += check(&ours(), &[
        ("no header", "10.0.0.1", &[], "10.0.0.1"),
        ("one proxy", "10.0.0.1", &[(XFF, "203.0.113.7")], "203.0.113.7"),
        ("two proxies", "10.0.0.1", &[(XFF, "203.0.113.7, 10.0.0.2")], "203.0.113.7"),
        ("leftmost is the caller's word", "10.0.0.1", &[(XFF, "1.1.1.1, 203.0.113.7")], "203.0.113.7"),
        ("leftmost behind two proxies", "10.0.0.1", &[(XFF, "1.1.1.1, 203.0.113.7, 10.0.0.2")], "203.0.113.7"),
        ("a trusted address planted on the left", "10.0.0.1", &[(XFF, "10.0.0.9, 203.0.113.7")], "203.0.113.7"),
        ("untrusted peer with a header", "203.0.113.9", &[(XFF, "1.1.1.1")], "203.0.113.9"),
        ("untrusted peer claims to be a proxy", "203.0.113.9", &[(XFF, "10.0.0.1")], "203.0.113.9"),
        ("no peer at all", "", &[(XFF, "203.0.113.7")], ""),
        ("only proxies", "10.0.0.1", &[(XFF, "10.0.0.3, 10.0.0.2")], "10.0.0.3"),
        ("no space", "10.0.0.1", &[(XFF, "1.1.1.1,203.0.113.7")], "203.0.113.7"),
        ("tabs and spaces", "10.0.0.1", &[(XFF, " \t203.0.113.7 \t,  10.0.0.2\t")], "203.0.113.7"),
        ("lines are joined in order", "10.0.0.1", &[(XFF, "1.1.1.1"), (XFF, "203.0.113.7")], "203.0.113.7"),
        ("the last line continues in the one before", "10.0.0.1", &[(XFF, "1.1.1.1, 203.0.113.7"), (XFF, "10.0.0.2")], "203.0.113.7"),
        ("only the first line would be spoofable", "10.0.0.1", &[(XFF, "1.1.1.1"), (XFF, "2.2.2.2"), (XFF, "203.0.113.7, 10.0.0.2")], "203.0.113.7"),
        ("port on IPv4", "10.0.0.1", &[(XFF, "203.0.113.7:51234")], "203.0.113.7"),
        ("a hop with a port is not skipped", "10.0.0.1", &[(XFF, "1.1.1.1, 203.0.113.7:51234")], "203.0.113.7"),
        ("a proxy with a port", "10.0.0.1", &[(XFF, "203.0.113.7, 10.0.0.2:8080")], "203.0.113.7"),
        ("IPv6", "10.0.0.1", &[(XFF, "2001:db8::7")], "2001:db8::7"),
        ("IPv6 in brackets", "10.0.0.1", &[(XFF, "[2001:db8::7]")], "2001:db8::7"),
        ("IPv6 with port", "10.0.0.1", &[(XFF, "[2001:db8::7]:443")], "2001:db8::7"),
        ("IPv6 is not cut at its colons", "10.0.0.1", &[(XFF, "1.1.1.1, 2001:db8:0:1:2:3:4:5")], "2001:db8:0:1:2:3:4:5"),
        ("IPv6 proxy", "2001:db8:ffff::1", &[(XFF, "2001:db8::7, 2001:db8:ffff::2")], "2001:db8::7"),
        ("mapped client", "10.0.0.1", &[(XFF, "::ffff:203.0.113.7")], "203.0.113.7"),
        ("mapped proxy is matched as IPv4", "10.0.0.1", &[(XFF, "203.0.113.7, ::ffff:10.0.0.2")], "203.0.113.7"),
        ("mapped peer is matched as IPv4", "::ffff:10.0.0.1", &[(XFF, "203.0.113.7")], "203.0.113.7"),
        ("mapped untrusted peer", "::ffff:203.0.113.9", &[(XFF, "1.1.1.1")], "203.0.113.9"),
        ("mapped in hexadecimal", "10.0.0.1", &[(XFF, "::ffff:cb00:7107")], "203.0.113.7"),
        ("garbage stops the walk", "10.0.0.1", &[(XFF, "1.1.1.1, garbage, 10.0.0.2")], "10.0.0.2"),
        ("garbage from the last proxy", "10.0.0.1", &[(XFF, "1.1.1.1, garbage")], "10.0.0.1"),
        ("unknown stops the walk", "10.0.0.1", &[(XFF, "1.1.1.1, unknown, 10.0.0.2")], "10.0.0.2"),
        ("empty elements of a list mean nothing", "10.0.0.1", &[(XFF, "203.0.113.7,, ,10.0.0.2")], "203.0.113.7"),
        ("an empty second line", "10.0.0.1", &[(XFF, "203.0.113.7"), (XFF, "")], "203.0.113.7"),
        ("forty proxies of ours", "10.0.0.1", &[(XFF, &forty)], "203.0.113.7"),
        ("an empty header", "10.0.0.1", &[(XFF, "")], "10.0.0.1"),
        ("only commas", "10.0.0.1", &[(XFF, ",,,")], "10.0.0.1"),
        ("a trailing comma", "10.0.0.1", &[(XFF, "203.0.113.7,")], "203.0.113.7"),
        ("octets with leading zeros", "10.0.0.1", &[(XFF, "203.0.113.007")], "10.0.0.1"),
        ("too large an octet", "10.0.0.1", &[(XFF, "203.0.113.256")], "10.0.0.1"),
        ("decimal notation", "10.0.0.1", &[(XFF, "3405803783")], "10.0.0.1"),
        ("five digits are a port (RFC 7239 §6)", "10.0.0.1", &[(XFF, "203.0.113.7:99999")], "203.0.113.7"),
        ("six digits are none", "10.0.0.1", &[(XFF, "203.0.113.7:100000")], "10.0.0.1"),
        ("an empty port", "10.0.0.1", &[(XFF, "203.0.113.7:")], "10.0.0.1"),
        ("a signed port", "10.0.0.1", &[(XFF, "203.0.113.7:+80")], "10.0.0.1"),
        ("a zone", "10.0.0.1", &[(XFF, "fe80::1%eth0")], "10.0.0.1"),
        ("an unclosed bracket", "10.0.0.1", &[(XFF, "[2001:db8::7")], "10.0.0.1"),
        ("IPv4 in brackets", "10.0.0.1", &[(XFF, "[203.0.113.7]")], "10.0.0.1"),
        ("quotes are not for this header", "10.0.0.1", &[(XFF, "\"203.0.113.7\"")], "10.0.0.1"),
        ("a host name", "10.0.0.1", &[(XFF, "example.org")], "10.0.0.1"),
        ("a port of the client's that changes", "10.0.0.1", &[(XFF, "203.0.113.7:49152")], "203.0.113.7"),
        ("a port on IPv6", "10.0.0.1", &[(XFF, "[2001:db8::7]:49152")], "2001:db8::7"),
        ("the second line is the proxy's", "10.0.0.1", &[(XFF, "9.9.9.9"), (XFF, "203.0.113.7")], "203.0.113.7"),
        ("a private address on the left", "10.0.0.1", &[(XFF, "192.168.1.1, 203.0.113.7")], "203.0.113.7"),
        ("a whole chain on the left", "10.0.0.1", &[(XFF, "203.0.113.99, 10.0.0.5, 203.0.113.7, 10.0.0.2")], "203.0.113.7"),
        ("unknown on the left", "10.0.0.1", &[(XFF, "unknown, 203.0.113.7")], "203.0.113.7"),
        ("unknown from our proxy", "10.0.0.1", &[(XFF, "203.0.113.7, unknown")], "10.0.0.1"),
        ("three proxies of ours", "10.0.0.1", &[(XFF, "203.0.113.7, 10.0.0.3, 10.1.0.2, 10.9.9.9")], "203.0.113.7"),
        ("a leading comma", "10.0.0.1", &[(XFF, ", 203.0.113.7")], "203.0.113.7"),
        ("port 0", "10.0.0.1", &[(XFF, "203.0.113.7:0")], "203.0.113.7"),
        ("mapped, in brackets, with a port", "10.0.0.1", &[(XFF, "[::ffff:203.0.113.7]:443")], "203.0.113.7"),
        ("a mapped proxy in hexadecimal", "10.0.0.1", &[(XFF, "203.0.113.7, ::ffff:a00:2")], "203.0.113.7"),
        ("IPv6 in capitals", "10.0.0.1", &[(XFF, "2001:DB8:0:0::7")], "2001:db8::7"),
        ("octal octets", "10.0.0.1", &[(XFF, "010.0.0.2")], "10.0.0.1"),
        ("octal octets that look like a proxy", "10.0.0.1", &[(XFF, "6.6.6.6, 010.0.0.2")], "10.0.0.1"),
        ("hexadecimal octets", "10.0.0.1", &[(XFF, "0xcb.0.113.7")], "10.0.0.1"),
        ("a short form", "10.0.0.1", &[(XFF, "6.6.6.6, 127.1")], "10.0.0.1"),
        ("the unspecified address", "10.0.0.1", &[(XFF, "0.0.0.0")], "0.0.0.0"),
        ("semicolons make no list", "10.0.0.1", &[(XFF, "203.0.113.7; 10.0.0.2")], "10.0.0.1"),
        ("spaces make no list", "10.0.0.1", &[(XFF, "6.6.6.6 10.0.0.2")], "10.0.0.1"),
        ("other headers are not read", "10.0.0.1", &[(FWD, "for=1.1.1.1"), ("x-real-ip", "2.2.2.2")], "10.0.0.1"),
        ("other headers do not interfere", "10.0.0.1", &[(FWD, "for=1.1.1.1"), (XFF, "203.0.113.7")], "203.0.113.7"),
    ]);
    vectors += check(&hops(1), &[
        ("one hop", "192.0.2.1", &[(XFF, "1.1.1.1, 203.0.113.7")], "203.0.113.7"),
        ("one hop, mapped", "::ffff:192.0.2.1", &[(XFF, "::ffff:203.0.113.7")], "203.0.113.7"),
        ("one hop with ports", "192.0.2.1", &[(XFF, "6.6.6.6:1, 203.0.113.7:55555")], "203.0.113.7"),
        ("one hop, nothing reported", "192.0.2.1", &[], "192.0.2.1"),
        ("one hop, garbage", "192.0.2.1", &[(XFF, "1.1.1.1, garbage")], "192.0.2.1"),
        ("one hop, no peer", "", &[(XFF, "203.0.113.7")], ""),
    ]);
    vectors += check(&hops(2), &[
        ("two hops", "192.0.2.1", &[(XFF, "1.1.1.1, 203.0.113.7, 192.0.2.2")], "203.0.113.7"),
        ("two hops over two lines", "192.0.2.1", &[(XFF, "1.1.1.1, 203.0.113.7"), (XFF, "192.0.2.2")], "203.0.113.7"),
        ("two hops, one missing", "192.0.2.1", &[(XFF, "203.0.113.7")], "203.0.113.7"),
        ("two hops, garbage between", "192.0.2.1", &[(XFF, "1.1.1.1, garbage, 192.0.2.2")], "192.0.2.2"),
    ]);
    vectors += check(&hops(3), &[
        ("three hops over two lines", "192.0.2.1", &[(XFF, "6.6.6.6, 203.0.113.7, 192.0.2.3"), (XFF, "192.0.2.2")], "203.0.113.7"),
    ]);
    vectors += check(&hops(40), &[
        ("more hops than are read", "192.0.2.1", &[(XFF, "6.6.6.6")], "6.6.6.6"),
    ]);
    vectors += check(&hops(0), &[
        ("no hops", "192.0.2.1", &[(XFF, "203.0.113.7")], "192.0.2.1"),
    ]);
    vectors += check(&hops(1).unix_socket(true), &[
        ("a proxy on a unix socket", "", &[(XFF, "6.6.6.6, 203.0.113.7")], "203.0.113.7"),
        ("a proxy on a unix socket that reports nothing", "", &[], ""),
    ]);
    vectors += check(&ours().unix_socket(true), &[
        ("a proxy on a unix socket behind others", "", &[(XFF, "6.6.6.6, 203.0.113.7, 10.0.0.2")], "203.0.113.7"),
        ("a peer with an address still has to be ours", "203.0.113.9", &[(XFF, "1.1.1.1")], "203.0.113.9"),
    ]);
    vectors += check(&hops(0).unix_socket(true), &[
        ("no hops on a unix socket", "", &[(XFF, "203.0.113.7")], ""),
    ]);
    let viewer = "cloudfront-viewer-address";
    vectors += check(&ours().header(ForwardedHeader::CloudFront), &[
        ("CloudFront, IPv4", "10.0.0.1", &[(viewer, "203.0.113.7:46532")], "203.0.113.7"),
        ("CloudFront, IPv6", "10.0.0.1", &[(viewer, "2001:db8::7:46532")], "2001:db8::7"),
        ("CloudFront, IPv6 written out", "10.0.0.1", &[(viewer, "2001:db8:1:2:3:4:5:6:46532")], "2001:db8:1:2:3:4:5:6"),
        ("CloudFront always sends a port", "10.0.0.1", &[(viewer, "203.0.113.7")], "10.0.0.1"),
    ]);
    vectors += check(&rfc7239(), &[
        ("a trailing semicolon is an empty pair", "10.0.0.1", &[(FWD, "for=203.0.113.7;")], "203.0.113.7"),
        ("a leading semicolon", "10.0.0.1", &[(FWD, ";for=203.0.113.7")], "203.0.113.7"),
        ("an empty pair inside", "10.0.0.1", &[(FWD, "for=203.0.113.7;;proto=https")], "203.0.113.7"),
        ("a trailing empty element", "10.0.0.1", &[(FWD, "for=203.0.113.7, ")], "203.0.113.7"),
        ("space around the sign", "10.0.0.1", &[(FWD, "for = 203.0.113.7")], "10.0.0.1"),
        ("any port of five digits", "10.0.0.1", &[(FWD, "for=\"203.0.113.7:99999\"")], "203.0.113.7"),
        ("an escaped quote in another parameter", "10.0.0.1", &[(FWD, "for=1.1.1.1, for=203.0.113.7;host=\"a\\\", b;c\"")], "203.0.113.7"),
        ("token", "10.0.0.1", &[(FWD, "for=203.0.113.7")], "203.0.113.7"),
        ("case", "10.0.0.1", &[(FWD, "FOR=203.0.113.7;Proto=https")], "203.0.113.7"),
        ("other parameters", "10.0.0.1", &[(FWD, "proto=https;by=10.0.0.1;for=203.0.113.7;host=a")], "203.0.113.7"),
        ("quoted IPv4 with port", "10.0.0.1", &[(FWD, "for=\"203.0.113.7:4711\"")], "203.0.113.7"),
        ("quoted IPv6", "10.0.0.1", &[(FWD, "for=\"[2001:db8::7]\"")], "2001:db8::7"),
        ("quoted IPv6 with port", "10.0.0.1", &[(FWD, "for=\"[2001:db8::7]:4711\"")], "2001:db8::7"),
        ("obfuscated port", "10.0.0.1", &[(FWD, "for=\"203.0.113.7:_web.1\"")], "203.0.113.7"),
        ("walked from the right", "10.0.0.1", &[(FWD, "for=1.1.1.1, for=203.0.113.7, for=10.0.0.2")], "203.0.113.7"),
        ("over several lines", "10.0.0.1", &[(FWD, "for=1.1.1.1"), (FWD, "for=203.0.113.7"), (FWD, "for=10.0.0.2")], "203.0.113.7"),
        ("obfuscated", "10.0.0.1", &[(FWD, "for=1.1.1.1, for=_hidden, for=10.0.0.2")], "10.0.0.2"),
        ("unknown", "10.0.0.1", &[(FWD, "for=1.1.1.1, for=unknown")], "10.0.0.1"),
        ("no for", "10.0.0.1", &[(FWD, "for=1.1.1.1, proto=https")], "10.0.0.1"),
        ("two fors", "10.0.0.1", &[(FWD, "for=1.1.1.1;for=203.0.113.7")], "10.0.0.1"),
        ("a comma in quotes", "10.0.0.1", &[(FWD, "for=203.0.113.7;host=\"a, for=1.1.1.1\"")], "203.0.113.7"),
        ("an unmatched quote swallows nothing", "10.0.0.1", &[(FWD, "for=\"1.1.1.1, for=203.0.113.7")], "203.0.113.7"),
        ("an escaped quote", "10.0.0.1", &[(FWD, "for=1.1.1.1, for=\"\\\"2.2.2.2\"")], "10.0.0.1"),
        ("half a quote", "10.0.0.1", &[(FWD, "for=\"203.0.113.7")], "10.0.0.1"),
        ("mapped", "10.0.0.1", &[(FWD, "for=\"[::ffff:203.0.113.7]\"")], "203.0.113.7"),
        ("IPv6 with port and capitals (RFC 7239)", "10.0.0.1", &[(FWD, "For=\"[2001:db8:cafe::17]:4711\"")], "2001:db8:cafe::17"),
        ("with protocol and by (RFC 7239)", "10.0.0.1", &[(FWD, "for=192.0.2.60;proto=http;by=203.0.113.43")], "192.0.2.60"),
        ("an obfuscated address with an obfuscated port", "10.0.0.1", &[(FWD, "for=6.6.6.6, for=\"_gazonk:_p\"")], "10.0.0.1"),
        ("IPv6 without brackets", "10.0.0.1", &[(FWD, "for=\"2001:db8::7\"")], "2001:db8::7"),
        ("brackets without quotes", "10.0.0.1", &[(FWD, "for=[2001:db8::7]")], "2001:db8::7"),
        ("a port without quotes", "10.0.0.1", &[(FWD, "for=203.0.113.7:8080")], "203.0.113.7"),
        ("a list without spaces", "10.0.0.1", &[(FWD, "proto=https;for=203.0.113.7,for=10.0.0.2;proto=http")], "203.0.113.7"),
        ("an open quote in the caller's line", "10.0.0.1", &[(FWD, "for=\"6.6.6.6"), (FWD, "for=203.0.113.7")], "203.0.113.7"),
        ("an open quote before a quoted host", "10.0.0.1", &[(FWD, "for=\"6.6.6.6, for=203.0.113.7;host=\"example.org\"")], "203.0.113.7"),
        ("an empty for", "10.0.0.1", &[(FWD, "for=6.6.6.6, for=\"\"")], "10.0.0.1"),
        ("x-forwarded-for is not read", "10.0.0.1", &[(XFF, "1.1.1.1")], "10.0.0.1"),
    ]);
    vectors += check(&real_ip(), &[
        ("named header", "10.0.0.1", &[("x-real-ip", "203.0.113.7")], "203.0.113.7"),
        ("named header from a stranger", "203.0.113.9", &[("x-real-ip", "1.1.1.1")], "203.0.113.9"),
        ("named header with a port", "10.0.0.1", &[("x-real-ip", "203.0.113.7:4711")], "203.0.113.7"),
        ("named header with a list", "10.0.0.1", &[("x-real-ip", "6.6.6.6, 203.0.113.7")], "203.0.113.7"),
        ("named header beside another", "10.0.0.1", &[(XFF, "6.6.6.6"), ("x-real-ip", "203.0.113.7")], "203.0.113.7"),
        ("named header twice", "10.0.0.1", &[("x-real-ip", "1.1.1.1"), ("x-real-ip", "203.0.113.7")], "203.0.113.7"),
    ]);
    assert!(vectors >= 120, "{vectors} vectors");
}

#[test]
fn bytes_that_are_no_text_stop_the_walk() {
    let line: &[u8] = b"1.1.1.1, \xff\xfe, 10.0.0.2";
    assert_eq!(
        client(&ours(), "10.0.0.1", &[(XFF, line)]),
        "10.0.0.2".parse().ok()
    );
}

#[test]
fn hostile_headers_are_read_in_bounded_time() {
    let megabyte = |unit: &str| unit.repeat(1_000_000 / unit.len());
    let hostile = [
        megabyte("10.0.0.2,"),
        megabyte(" "),
        megabyte("a"),
        megabyte("\""),
        megabyte("for=10.0.0.2;"),
        megabyte("for=\"10.0.0.2\","),
        megabyte(",,,,"),
    ];
    for key in [ours(), rfc7239(), hops(usize::MAX)] {
        for value in &hostile {
            let lines = [(XFF, value.as_bytes()), (FWD, value.as_bytes())];
            let request = request("10.0.0.1", &lines);
            let start = Instant::now();
            for _ in 0..100 {
                let found = key.client_ip(&RequestHead::of(&request)).unwrap();
                assert!(matches!(found, IpAddr::V4(ip) if ip.octets()[0] == 10));
            }
            // 16 KiB a call at most; reading the whole megabyte takes this long for one call.
            assert!(
                start.elapsed() < Duration::from_millis(500),
                "{:?}",
                start.elapsed()
            );
        }
    }
}

proptest! {
    /// Whatever a caller writes, what our proxy appends decides.
    #[test]
    fn nothing_a_caller_writes_changes_its_address(
        written in proptest::collection::vec("[ -~\t]{0,40}", 0..4),
        elements in prop::bool::ANY,
    ) {
        let key = if elements { rfc7239() } else { ours() };
        let name = if elements { FWD } else { XFF };
        let appended = if elements { "for=203.0.113.7" } else { "203.0.113.7" };
        // As a further line, and as a continuation of the caller's last.
        let mut lines: Vec<_> = written.iter().map(|line| (name, line.as_bytes())).collect();
        lines.push((name, appended.as_bytes()));
        prop_assert_eq!(client(&key, "10.0.0.1", &lines), "203.0.113.7".parse().ok());

        let joined = format!("{}, {appended}", written.join(", "));
        prop_assert_eq!(
            client(&key, "10.0.0.1", &[(name, joined.as_bytes())]),
            "203.0.113.7".parse().ok()
        );
    }
}

#[test]
fn a_network_that_is_none_is_refused_by_name() {
    let error = Trust::networks(["10.0.0.0/8", "10.0.0.0/40"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "network \"10.0.0.0/40\", expected an address or a range like 10.0.0.0/8"
    );
}
