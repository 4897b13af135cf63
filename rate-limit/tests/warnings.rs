//! Mistakes in the setup that show in traffic. Each test has a thread of its own, on which the
//! first request and every 64th after it are looked at.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use http::{Request, Response};
use rate_limit::{
    HOUR, Limiter, Quota, RateLimitLayer, Warning,
    key::{self, PeerAddr, Trust},
};
use tower::{Layer, Service, service_fn};

fn limiter() -> Limiter {
    Limiter::new(Quota::count(10).per(HOUR)).unwrap()
}

fn from_peer(ip: &str) -> Request<()> {
    let mut request = Request::new(());
    let addr = SocketAddr::new(ip.parse().unwrap(), 9);
    request.extensions_mut().insert(PeerAddr::new(addr));
    request
}

fn forwarded(ip: &str, header: &'static str) -> Request<()> {
    let mut request = from_peer(ip);
    request
        .headers_mut()
        .insert(header, "203.0.113.7".parse().unwrap());
    request
}

/// The warnings after `requests` have passed through `layer`.
fn warnings(
    layer: &RateLimitLayer,
    requests: impl IntoIterator<Item = Request<()>>,
) -> Vec<Warning> {
    let mut service = layer.layer(service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(()))
    }));
    for request in requests {
        drop(service.call(request));
    }
    layer.limiter().warnings()
}

fn by_peer() -> RateLimitLayer {
    RateLimitLayer::from_limiter(limiter())
}

#[test]
fn a_proxy_that_is_not_trusted_is_noticed() {
    let request = forwarded("10.0.0.1", "x-forwarded-for");
    assert_eq!(
        warnings(&by_peer(), [request]),
        [Warning::UntrustedForwardedHeader]
    );
}

#[test]
fn the_standard_header_and_ipv6_are_noticed_too() {
    let request = forwarded("fd00::1", "forwarded");
    assert_eq!(
        warnings(&by_peer(), [request]),
        [Warning::UntrustedForwardedHeader]
    );
}

#[test]
fn a_client_that_sends_a_forwarded_header_itself_is_no_proxy() {
    assert_eq!(
        warnings(&by_peer(), [forwarded("203.0.113.9", "x-forwarded-for")]),
        []
    );
}

#[test]
fn a_trusted_proxy_is_no_mistake() {
    let layer = by_peer().key(key::forwarded(Trust::hops(1)));
    assert_eq!(
        warnings(&layer, [forwarded("10.0.0.1", "x-forwarded-for")]),
        []
    );
}

#[test]
fn a_missing_peer_address_is_noticed() {
    assert_eq!(
        warnings(&by_peer(), [Request::new(())]),
        [Warning::NoPeerAddress]
    );
}

#[test]
fn one_key_with_nearly_all_the_traffic_is_noticed() {
    let requests = (0..64 * 300).map(|_| from_peer("203.0.113.9"));
    assert_eq!(warnings(&by_peer(), requests), [Warning::OneKey]);
}

#[test]
fn many_keys_and_one_quota_for_all_on_purpose_are_no_mistake() {
    let many = (0..64 * 300).map(|n| from_peer(&format!("203.0.113.{}", n / 64 % 250)));
    assert_eq!(warnings(&by_peer(), many), []);
    let layer = by_peer().key(key::global());
    assert_eq!(
        warnings(&layer, (0..64 * 300).map(|_| Request::new(()))),
        []
    );
}

#[test]
fn a_limiter_that_is_built_for_each_request_is_noticed() {
    let build = || Limiter::new(Quota::count(10).per(HOUR)).unwrap();
    let built: Vec<_> = (0..101).map(|_| build()).collect();
    assert_eq!(built[99].warnings(), []);
    assert_eq!(built[100].warnings(), [Warning::BuiltRepeatedly]);
    let layers: Vec<_> = (0..101)
        .map(|_| RateLimitLayer::new(Quota::count(1).per(HOUR)).unwrap())
        .collect();
    assert_eq!(layers[100].limiter().warnings(), [Warning::BuiltRepeatedly]);
}

#[test]
fn a_warning_is_told_once() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&told);
    let limiter = Limiter::builder()
        .quota(Quota::count(10).per(HOUR))
        .on_warning(move |warning| hook.lock().unwrap().push(warning))
        .build()
        .unwrap();
    let layer = RateLimitLayer::from_limiter(limiter);
    warnings(
        &layer,
        (0..1_000).map(|_| forwarded("10.0.0.1", "x-forwarded-for")),
    );
    assert_eq!(*told.lock().unwrap(), [Warning::UntrustedForwardedHeader]);
}

#[test]
fn a_missing_address_is_noticed_by_the_first_request_whatever_the_key_is_built_of() {
    let layer = || RateLimitLayer::from_limiter(limiter());
    let trust = || Trust::networks(["10.0.0.0/8"]).unwrap();
    let layers = [
        by_peer(),
        layer().key(key::forwarded(trust())),
        layer().key(key::header("x-api-key").or(key::peer())),
        layer().key(key::path().and(key::peer())),
        layer().key(key::forwarded(Trust::hops(1))),
    ];
    for layer in layers {
        // A thread of its own, so that the first request is looked at.
        let found = std::thread::spawn(move || warnings(&layer, [Request::new(())]));
        assert_eq!(found.join().unwrap(), [Warning::NoPeerAddress]);
    }
    let by_token = layer().key(key::header("x-api-key").or(key::peer()));
    let request = Request::get("/").header("x-api-key", "alice");
    let found = std::thread::spawn(move || warnings(&by_token, [request.body(()).unwrap()]));
    assert_eq!(found.join().unwrap(), [], "it has a key without an address");
}

#[test]
fn clients_behind_a_proxy_on_a_unix_socket_are_told_apart() {
    let layer = RateLimitLayer::new(Quota::count(1).per(HOUR))
        .unwrap()
        .key(key::forwarded(Trust::hops(1)).unix_socket(true));
    let from = |client: &str| {
        let request = Request::get("/").header("x-forwarded-for", client);
        request.body(()).unwrap()
    };
    let found = warnings(&layer, (1..5).map(|n| from(&format!("192.0.2.{n}"))));
    assert_eq!(found, []);
    assert_eq!(layer.limiter().resident_keys(), 4);
}

#[test]
#[ignore = "run by the next test, in a process of its own"]
fn a_process_without_a_log_and_a_hook() {
    let requests = (0..1_000).map(|_| Request::new(()));
    assert_eq!(warnings(&by_peer(), requests), [Warning::NoPeerAddress]);
}

#[test]
fn without_a_log_and_a_hook_a_missing_peer_address_is_reported_once_on_stderr() {
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture"])
        .arg("a_process_without_a_log_and_a_hook")
        .output()
        .unwrap();
    assert!(child.status.success(), "{child:?}");
    let stderr = String::from_utf8(child.stderr).unwrap();
    let reported = stderr.matches("rate-limit: requests have no peer address");
    assert_eq!(reported.count(), 1, "{stderr}");
}
