//! A fleet on a Redis that is reached over TLS.
#![cfg(feature = "redis-tls")]

#[path = "support/sentinel.rs"]
mod sentinel;

use std::{net::TcpListener, time::Duration};

use private_servers::{Redis, RedisCluster};
use rate_limit::{
    DAY, Limiter, Quota,
    fleet::{FleetBackend, FleetLimiter},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use sentinel::Sentinel;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

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

    /// A certificate for these hosts, and its key.
    fn certify(&self, hosts: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let hosts: Vec<_> = hosts.iter().map(|&host| host.to_owned()).collect();
        let params = CertificateParams::new(hosts).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// The settings with which a server speaks TLS at `port`, known as `localhost` and by its
    /// address.
    fn settings(&self, port: u16) -> Vec<(&'static str, String)> {
        let (certificate, key) = self.certify(&["localhost", "127.0.0.1"]);
        let file = |name: &str, pem: &str| {
            let path = self.directory.path().join(format!("{port}-{name}"));
            std::fs::write(&path, pem).unwrap();
            path.into_os_string().into_string().unwrap()
        };
        vec![
            ("tls-port", port.to_string()),
            ("tls-cert-file", file("server.pem", &certificate)),
            ("tls-key-file", file("server.key", &key)),
            ("tls-ca-cert-file", file("ca.pem", &self.pem())),
            ("tls-auth-clients", "no".to_owned()),
        ]
    }

    /// A server, and the port on which it speaks TLS.
    async fn server(&self, auth_clients: &str) -> (Redis, u16) {
        let port = free_port();
        let mut settings = self.settings(port);
        settings.push(("tls-auth-clients", auth_clients.to_owned()));
        let settings: Vec<_> = settings.iter().map(|(k, v)| (*k, v.as_str())).collect();
        (Redis::start_with(&settings).await.unwrap(), port)
    }
}

fn free_port() -> u16 {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().port()
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
    let (certificate, key) = authority.certify(&["node"]);
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

#[tokio::test]
async fn the_servers_of_a_cluster_are_each_reached_over_tls() {
    let authority = Authority::new();
    let ports = [free_port(), free_port(), free_port()];
    let cluster = RedisCluster::start_with(3, |server| {
        let mut settings = authority.settings(ports[usize::from(server)]);
        settings.push(("tls-cluster", "yes".to_owned()));
        settings
    });
    let cluster = cluster.await.unwrap();
    let servers = [format!("rediss://localhost:{}", ports[0])];
    let backend = FleetBackend::cluster(servers, "test").unwrap();
    let backend = backend.root_certificates(authority.pem()).unwrap();
    let limiter = on(backend.deadline(PATIENT));
    for key in 0..60 {
        assert_eq!(limiter.check(key).await.unwrap().remaining(), 1);
        assert_eq!(limiter.check(key).await.unwrap().remaining(), 0);
        assert!(limiter.check(key).await.is_err());
    }
    assert_eq!(limiter.admitted_without_redis(), 0);
    for server in cluster.servers() {
        let keys: usize = server.ask(&["DBSIZE"]).await.unwrap().parse().unwrap();
        assert!(keys > 0, "each server has some");
    }
}

#[tokio::test]
async fn a_master_over_tls_is_found_through_a_sentinel_without() {
    let authority = Authority::new();
    let (_master, port) = authority.server("no").await;
    let mut settings: Vec<_> = authority.settings(free_port());
    settings.push(("tls-replication", "yes".to_owned()));
    let settings: Vec<_> = settings.iter().map(|(k, v)| format!("{k} {v}")).collect();
    let sentinel = Sentinel::start(port, &settings);
    let sentinels = [format!("redis://127.0.0.1:{}", sentinel.port)];
    let backend = FleetBackend::sentinel(sentinels, "rediss://mymaster", "test").unwrap();
    let backend = backend.root_certificates(authority.pem()).unwrap();
    let limiter = on(backend.deadline(PATIENT));
    // Until the sentinel is up, the master is not known.
    let found = async {
        while limiter.peek("alice").await.is_none() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(30), found)
        .await
        .expect("the master is found");
    assert_eq!(limiter.check("alice").await.unwrap().remaining(), 1);
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
