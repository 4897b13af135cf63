//! Which addresses a network contains.

use rate_limit::key::Network;

fn network(text: &str) -> Network {
    text.parse().unwrap()
}

fn contains(text: &str, ip: &str) -> bool {
    network(text).contains(ip.parse().unwrap())
}

#[test]
fn a_network_contains_its_addresses_and_no_others() {
    assert!(contains("10.0.0.0/8", "10.255.255.255"));
    assert!(!contains("10.0.0.0/8", "11.0.0.0"));
    assert!(contains("10.9.9.9/8", "10.0.0.1"), "host bits are ignored");
    assert!(contains("192.0.2.1", "192.0.2.1"));
    assert!(!contains("192.0.2.1", "192.0.2.2"));
    assert!(contains("0.0.0.0/0", "203.0.113.9"));
    assert!(!contains("0.0.0.0/0", "2001:db8::1"));
    assert!(contains("::/0", "2001:db8::1"));
    assert!(!contains("::/0", "10.0.0.1"));
    assert!(contains("2001:db8::/33", "2001:db8:7fff::1"));
    assert!(!contains("2001:db8::/33", "2001:db8:8000::1"));
}

#[test]
fn mapped_addresses_are_ipv4_on_both_sides() {
    assert!(contains("10.0.0.0/8", "::ffff:10.0.0.1"));
    assert!(contains("::ffff:10.0.0.0/104", "10.200.0.1"));
    assert_eq!(network("::ffff:10.0.0.0/104").to_string(), "10.0.0.0/8");
}

#[test]
fn what_is_not_a_network_is_refused_by_name() {
    for text in [
        "",
        "10.0.0.0/33",
        "::/129",
        "10.0.0.0/",
        "10.0.0.0/+8",
        "10/8",
        "host",
        "::ffff:0:0/95",
    ] {
        let error = text.parse::<Network>().unwrap_err().to_string();
        assert_eq!(
            error,
            format!("network {text:?}, expected an address or a range like 10.0.0.0/8")
        );
    }
}
