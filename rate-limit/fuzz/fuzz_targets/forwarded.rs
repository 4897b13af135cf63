//! Whatever a caller writes into a forwarding header, it cannot choose its address.
#![no_main]

use std::net::{IpAddr, SocketAddr};

use http::{HeaderName, HeaderValue, Request};
use libfuzzer_sys::fuzz_target;
use rate_limit::key::{ForwardedHeader, PeerAddr, RequestHead, Trust, forwarded};

fuzz_target!(|input: (Vec<Vec<u8>>, u8, bool)| {
    let (lines, hops, elements) = input;
    let peer: IpAddr = [10, 0, 0, 1].into();
    let client: IpAddr = [203, 0, 113, 7].into();
    let (name, header, appended) = if elements {
        ("forwarded", ForwardedHeader::Forwarded, "for=203.0.113.7;proto=https")
    } else {
        ("x-forwarded-for", ForwardedHeader::XForwardedFor, "203.0.113.7")
    };
    let mut request = Request::new(());
    request.extensions_mut().insert(PeerAddr::new(SocketAddr::new(peer, 443)));
    let name = HeaderName::from_static(name);
    for line in lines.iter().take(16) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            request.headers_mut().append(&name, value);
        }
    }
    let trusted = || Trust::networks(["10.0.0.0/8"]).unwrap();
    let by_network = forwarded(trusted()).header(header.clone());
    let by_hops = forwarded(Trust::hops(hops.into())).header(header.clone());

    // What is there may be anything, and must only not panic.
    let head = RequestHead::of(&request);
    assert!(by_network.client_ip(&head).is_some());
    assert!(by_hops.client_ip(&head).is_some());

    // What our proxy appends decides, as a line of its own ...
    let last = request.headers().get_all(&name).iter().last().cloned();
    request.headers_mut().append(&name, HeaderValue::from_static(appended));
    assert_eq!(by_network.client_ip(&RequestHead::of(&request)), Some(client));
    let one_hop = forwarded(Trust::hops(1)).header(header);
    assert_eq!(one_hop.client_ip(&RequestHead::of(&request)), Some(client));

    // ... and at the end of the caller's.
    if let Some(last) = last {
        let joined = [last.as_bytes(), b", ", appended.as_bytes()].concat();
        if let Ok(joined) = HeaderValue::from_bytes(&joined) {
            request.headers_mut().insert(&name, joined);
            assert_eq!(by_network.client_ip(&RequestHead::of(&request)), Some(client));
        }
    }
});
