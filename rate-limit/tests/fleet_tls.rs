//! A fleet on a Redis that is reached over TLS.
#![cfg(feature = "redis-tls")]

use std::{net::TcpListener, time::Duration};

use private_servers::Redis;
use rate_limit::{
    DAY, Limiter, Quota,
    fleet::{FleetBackend, FleetLimiter},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

/// A deadline that a busy machine keeps.
const PATIENT: Duration = Duration::from_secs(5);

/// An authority, and what it has certified in a directory of its own.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = TempDir::new().unwrap();
        Self { issuer, directory }
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for `host`, and its key.
    fn certify(&self, host: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A server, and the port on which it speaks TLS.
    async fn server(&self, auth_clients: &str) -> (Redis, u16) {
        let (certificate, key) = self.certify("localhost");
        let file = |name: &str, pem: &str| {
            let path = self.directory.path().join(name);
            std::fs::write(&path, pem).unwrap();
            path.into_os_string().into_string().unwrap()
        };
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let redis = Redis::start_with(&[
            ("tls-port", &port.to_string()),
            ("tls-cert-file", &file("server.pem", &certificate)),
            ("tls-key-file", &file("server.key", &key)),
            ("tls-ca-cert-file", &file("ca.pem", &self.pem())),
            ("tls-auth-clients", auth_clients),
        ])
        .await;
        (redis.unwrap(), port)
    }
}

fn backend(port: u16) -> FleetBackend {
    FleetBackend::new(format!("rediss://localhost:{port}"), "test")
        .unwrap()
        .deadline(PATIENT)
}

fn on(backend: FleetBackend) -> FleetLimiter {
    let builder = Limiter::builder().quota(Quota::count(2).per(DAY));
    builder.build_on(backend).unwrap()
}

#[tokio::test]
async fn two_nodes_share_a_quota_over_tls_under_an_authority_of_their_own() {
    let authority = Authority::new();
    let (_redis, port) = authority.server("no").await;
    let node = || on(backend(port).root_certificates(authority.pem()).unwrap());
    let (a, b) = (node(), node());
    assert_eq!(a.check("alice").await.unwrap().remaining(), 1);
    assert_eq!(b.check("alice").await.unwrap().remaining(), 0);
    assert!(a.check("alice").await.is_err());
    assert_eq!(a.admitted_without_redis() + b.admitted_without_redis(), 0);
}

#[tokio::test]
async fn a_server_that_wants_to_know_its_clients_gets_a_certificate() {
    let authority = Authority::new();
    let (_redis, port) = authority.server("yes").await;
    let (certificate, key) = authority.certify("node");
    let stranger = on(backend(port).root_certificates(authority.pem()).unwrap());
    assert_eq!(stranger.peek("alice").await, None);
    let known = backend(port)
        .client_certificate(certificate, key)
        .unwrap()
        .root_certificates(authority.pem())
        .unwrap();
    let known = on(known);
    assert_eq!(known.check("alice").await.unwrap().remaining(), 1);
    assert_eq!(known.admitted_without_redis(), 0);
}

#[tokio::test]
async fn a_server_that_no_trusted_authority_vouches_for_is_not_asked() {
    let authority = Authority::new();
    let (redis, port) = authority.server("no").await;
    let limiter = on(backend(port)
        .root_certificates(Authority::new().pem())
        .unwrap());
    // By the node's own share, as with any Redis that cannot be reached.
    assert!(limiter.check("alice").await.is_ok());
    assert_eq!(limiter.admitted_without_redis(), 1);
    assert_eq!(redis.ask(&["DBSIZE"]).await.unwrap(), "0");
}

#[test]
fn certificates_that_cannot_be_read_or_used_are_refused() {
    let pem = Authority::new().pem();
    let error = FleetBackend::new("redis://localhost", "test")
        .unwrap()
        .root_certificates(pem)
        .unwrap_err();
    assert!(error.to_string().contains("rediss://"), "{error}");
    let error = backend(1).client_certificate("none", "none").unwrap_err();
    assert!(
        error.to_string().starts_with("invalid certificates"),
        "{error}"
    );
}
