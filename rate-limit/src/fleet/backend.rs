use std::{fmt, sync::Arc, time::Duration};

use redis::Client;
use siphasher::sip128::{Hasher128, SipHasher13};

use super::script;
use crate::key::Seed;

/// The Redis or Valkey that keeps the quotas of a fleet, and how it is asked.
///
/// ```no_run
/// use rate_limit::{Limiter, MINUTE, Quota, RateLimitLayer, fleet::{FleetBackend, Lease}};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let backend = FleetBackend::new("redis://10.0.0.7", "public-api")?.lease(Lease::adaptive());
/// let limiter = Limiter::builder()
///     .quota(Quota::count(1_000).per(MINUTE).burst(200))
///     .build_on(backend)?; // `build()?` counts in this process alone
/// let layer = RateLimitLayer::from_limiter(limiter);
/// # Ok(())
/// # }
/// ```
///
/// Redis 5 or later, or any Valkey. With the `redis-tls` feature, `rediss://` connects over TLS and
/// trusts the root certificates of the system, or those of
/// [`root_certificates`](Self::root_certificates). It takes rustls with the `ring` provider, unless
/// the program has installed a provider of its own before.
///
/// Give the quotas a Redis of their own, or one with `maxmemory-policy noeviction` or
/// `volatile-ttl`: the `allkeys` policies evict accounts, and an evicted key owes nothing.
#[derive(Clone)]
#[must_use = "a backend does nothing until `LimiterBuilder::build_on` is called with it"]
pub struct FleetBackend {
    settings: Settings,
}

/// The settings of a backend.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) servers: Vec<Client>,
    /// Those that know where the only server is; none if that is known.
    pub(crate) sentinels: Vec<Client>,
    pub(crate) cluster: bool,
    pub(crate) name: Arc<str>,
    pub(crate) lease: Lease,
    pub(crate) deadline: Duration,
    pub(crate) planned: u64,
    /// Whether `planned` was set.
    pub(crate) is_planned: bool,
    pub(crate) strict_windows: bool,
    pub(crate) seed: Seed,
    #[cfg(feature = "redis-tls")]
    certificates: redis::TlsCertificates,
    /// The account script. Tests have one with a clock that they set.
    pub(crate) script: Arc<str>,
}

impl FleetBackend {
    /// The server at `url`, `redis://[[user]:password@]host[:port][/database]`, which keeps the
    /// quotas of the limiter `name`. All processes that give the same name share one limiter; it
    /// is the first part of every key in Redis.
    ///
    /// Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// Fails when `url` is none that the Redis client understands, or when `name` is not 1 to 64
    /// letters, digits and `-_.`.
    pub fn new(url: impl AsRef<str>, name: impl Into<Arc<str>>) -> Result<Self, FleetError> {
        Self::of(&[url], name.into(), false)
    }

    /// As [`new`](Self::new), for a Redis Cluster of which `urls` are some servers; the others
    /// are found through them.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and when there is no URL.
    pub fn cluster<T: AsRef<str>>(
        urls: impl IntoIterator<Item = T>,
        name: impl Into<Arc<str>>,
    ) -> Result<Self, FleetError> {
        let urls: Vec<_> = urls.into_iter().collect();
        Self::of(&urls, name.into(), true)
    }

    /// As [`new`](Self::new), for a master and its replicas that Redis Sentinel looks after: each
    /// time a node connects, it asks `sentinels` where the master is.
    ///
    /// The host of `master` is the name that the sentinels know it by, and the rest holds for the
    /// master itself: `redis://user:password@mymaster/0`. A failover that loses the last writes
    /// gives that much back to each key.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and if there is no sentinel.
    ///
    /// ```
    /// use rate_limit::fleet::FleetBackend;
    ///
    /// let sentinels = ["redis://10.0.0.7:26379", "redis://10.0.0.8:26379"];
    /// let backend = FleetBackend::sentinel(sentinels, "redis://mymaster", "public-api")?;
    /// # Ok::<(), rate_limit::fleet::FleetError>(())
    /// ```
    pub fn sentinel<T: AsRef<str>>(
        sentinels: impl IntoIterator<Item = T>,
        master: impl AsRef<str>,
        name: impl Into<Arc<str>>,
    ) -> Result<Self, FleetError> {
        let mut backend = Self::of(&[master], name.into(), false)?;
        let sentinels: Vec<_> = sentinels.into_iter().collect();
        if sentinels.is_empty() {
            return Err(FleetError(Problem::NoServer));
        }
        let sentinels = sentinels.iter().map(open);
        backend.settings.sentinels = sentinels.collect::<Result<_, _>>()?;
        Ok(backend)
    }

    fn of<T: AsRef<str>>(urls: &[T], name: Arc<str>, cluster: bool) -> Result<Self, FleetError> {
        let valid = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if name.is_empty() || name.len() > 64 || !name.bytes().all(valid) {
            return Err(FleetError(Problem::Name(name)));
        }
        if urls.is_empty() {
            return Err(FleetError(Problem::NoServer));
        }
        let settings = Settings {
            servers: urls.iter().map(open).collect::<Result<_, _>>()?,
            sentinels: Vec::new(),
            cluster,
            seed: seed(name.as_bytes()),
            name,
            lease: Lease::none(),
            deadline: Duration::from_millis(10),
            planned: 1,
            is_planned: false,
            strict_windows: false,
            #[cfg(feature = "redis-tls")]
            certificates: redis::TlsCertificates {
                client_tls: None,
                root_cert: None,
            },
            script: script::ACCOUNT.into(),
        };
        Ok(Self { settings })
    }

    /// Lets each node draw cells ahead of need and spend them without asking.
    ///
    /// Defaults to [`Lease::none`]: every decision is Redis's.
    pub fn lease(mut self, lease: Lease) -> Self {
        self.settings.lease = lease;
        self
    }

    /// Sets how long a request may wait for Redis. After that it is decided by its policies'
    /// [`OnOutage`](super::OnOutage). Set it above what your Redis takes at its slowest: one that
    /// never replies in time is as good as none.
    ///
    /// Defaults to 10 ms. Timers go off up to 2 ms late, so that the wait ends up to 2 ms early
    /// instead; less than 4 ms count as 4.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.deadline = deadline.max(Duration::from_millis(4));
        self
    }

    /// Sets how many nodes the fleet is planned to have at most. Leases and local shares are
    /// divided by this, or by the number of nodes that are there if that is larger.
    ///
    /// Defaults to 1, and then the number that are there is what counts. Until the first reply
    /// of Redis nothing is known of the others.
    pub fn nodes(mut self, nodes: u32) -> Self {
        self.settings.planned = u64::from(nodes.max(1));
        self.settings.is_planned = true;
        self
    }

    /// Holds back from each burst what the fleet may have leased, so that no window of time sees
    /// more than `burst + rate × time`, wherever the leases are. Without this the sum over all
    /// time is as exact, and a window may see up to half a burst more, see the
    /// [module](super#how-exact-it-is).
    ///
    /// Means nothing without leases. Defaults to `false`.
    pub fn strict_windows(mut self, strict: bool) -> Self {
        self.settings.strict_windows = strict;
        self
    }

    /// Hashes keys with `secret`, which all nodes must give. Without it, a reader of Redis can
    /// find out by trying which addresses or tokens are in it.
    ///
    /// Defaults to the name, which is no secret.
    pub fn secret(mut self, secret: impl AsRef<[u8]>) -> Self {
        self.settings.seed = seed(secret.as_ref());
        self
    }

    /// Trusts the certificates in `pem` instead of those of the system: for servers whose
    /// certificate is from an authority of your own.
    ///
    /// # Errors
    ///
    /// Fails if `pem` has a certificate that cannot be read, or none, or if the URL of a server is
    /// not `rediss://`.
    #[cfg(feature = "redis-tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-tls")))]
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Result<Self, FleetError> {
        self.settings.certificates.root_cert = Some(pem.into());
        self.with_certificates()
    }

    /// Presents the first certificate in `pem`, followed by its issuers, and proves it with its
    /// private `key`, to servers that ask for one (`tls-auth-clients`).
    ///
    /// # Errors
    ///
    /// Fails if `pem` or `key` cannot be read, or if the URL of a server is not `rediss://`.
    #[cfg(feature = "redis-tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-tls")))]
    pub fn client_certificate(
        mut self,
        pem: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Result<Self, FleetError> {
        self.settings.certificates.client_tls = Some(redis::ClientTlsConfig {
            client_cert: pem.into(),
            client_key: key.into(),
        });
        self.with_certificates()
    }

    #[cfg(feature = "redis-tls")]
    fn with_certificates(mut self) -> Result<Self, FleetError> {
        let settings = &mut self.settings;
        let sentinels = settings.sentinels.iter_mut();
        // Sentinels are often asked in the clear for a master that is not.
        let sentinels = sentinels.filter(|sentinel| {
            let info = sentinel.get_connection_info();
            matches!(info.addr(), redis::ConnectionAddr::TcpTls { .. })
        });
        for client in settings.servers.iter_mut().chain(sentinels) {
            let info = client.get_connection_info().clone();
            *client = Client::build_with_tls(info, settings.certificates.clone())
                .map_err(|error| FleetError(Problem::Certificates(error.to_string())))?;
        }
        Ok(self)
    }

    #[cfg(test)]
    pub(crate) fn script(mut self, script: &str) -> Self {
        self.settings.script = script.into();
        self
    }

    pub(crate) fn into_settings(self) -> Settings {
        self.settings
    }
}

impl Settings {
    /// Where the limiter of this name is.
    pub(crate) fn place(&self) -> String {
        let servers = self.servers.iter().map(|server| {
            let info = server.get_connection_info();
            format!("{}/{}", info.addr(), info.redis_settings().db())
        });
        format!(
            "{} on {}",
            self.name,
            servers.collect::<Vec<_>>().join(", ")
        )
    }
}

impl fmt::Debug for FleetBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FleetBackend").field(&self.settings).finish()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither passwords nor the secret.
        let server = |server: &Client| server.get_connection_info().addr().to_string();
        f.debug_struct("Settings")
            .field(
                "servers",
                &self.servers.iter().map(server).collect::<Vec<_>>(),
            )
            .field("cluster", &self.cluster)
            .field("name", &self.name)
            .field("lease", &self.lease)
            .field("deadline", &self.deadline)
            .field("nodes", &self.planned)
            .field("strict_windows", &self.strict_windows)
            .finish_non_exhaustive()
    }
}

/// How much a node may draw ahead of need.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lease(u64);

impl Lease {
    /// Nothing: Redis decides every request.
    #[must_use]
    pub const fn none() -> Self {
        Self(0)
    }

    /// What a key's requests of the last moments use up in 100 ms, but no more than this node's
    /// part of what comes back in that time, or of a quarter of what is left if that is more; and
    /// never so much that all nodes together hold more than half a burst.
    #[must_use]
    pub const fn adaptive() -> Self {
        Self(u64::MAX)
    }

    /// As [`adaptive`](Self::adaptive), and at most `cells` cells of a policy on each node.
    #[must_use]
    pub const fn at_most(cells: u64) -> Self {
        Self(cells)
    }

    pub(crate) const fn most(self) -> u64 {
        self.0
    }
}

/// An invalid backend configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FleetError(Problem);

#[derive(Clone, Debug, Eq, PartialEq)]
enum Problem {
    Url {
        url: String,
        why: String,
    },
    NoServer,
    Name(Arc<str>),
    #[cfg(feature = "redis-tls")]
    Certificates(String),
}

impl fmt::Display for FleetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Problem::Url { url, why } => {
                write!(
                    f,
                    "url {url:?}, expected redis://host[:port][/database]: {why}"
                )
            }
            Problem::NoServer => {
                f.write_str("no server of the cluster and no sentinel, expected at least one")
            }
            #[cfg(feature = "redis-tls")]
            Problem::Certificates(why) => write!(f, "invalid certificates or urls: {why}"),
            Problem::Name(name) => write!(
                f,
                "name {name:?}, expected 1 to 64 letters, digits, '-', '_' and '.'"
            ),
        }
    }
}

impl std::error::Error for FleetError {}

fn seed(secret: &[u8]) -> Seed {
    use std::hash::Hasher;
    let mut hasher = SipHasher13::new_with_keys(0, 0);
    hasher.write(secret);
    let hash = hasher.finish128();
    Seed::Fleet(hash.h1, hash.h2)
}

fn open<T: AsRef<str>>(url: &T) -> Result<Client, FleetError> {
    #[cfg(feature = "redis-tls")]
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have been faster, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    Client::open(url.as_ref()).map_err(|error| {
        let (url, why) = (without_password(url.as_ref()), error.to_string());
        FleetError(Problem::Url { url, why })
    })
}

/// The URL as it may be shown.
fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => {
            format!("{}***{}", &url[..scheme + 3], &url[at..])
        }
        (None, Some(at)) => format!("***{}", &url[at..]),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_is_none_is_refused_with_the_expectation_and_without_its_password() {
        let error = FleetBackend::new("postgres://me:hunter2@db", "api")
            .unwrap_err()
            .to_string();
        assert!(error.contains("\"postgres://***@db\""), "{error}");
        assert!(error.contains("expected redis://host"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        let none: [&str; 0] = [];
        let error = FleetBackend::cluster(none, "api").unwrap_err().to_string();
        assert!(error.ends_with("expected at least one"), "{error}");
    }

    #[test]
    fn a_name_that_cannot_stand_in_a_key_is_refused() {
        for name in ["", "a b", "a:b", "{a}", "a\r\n", &"a".repeat(65)] {
            let error = FleetBackend::new("redis://localhost", name).unwrap_err();
            assert!(error.to_string().contains("letters, digits"), "{error}");
        }
    }

    #[test]
    fn debug_shows_neither_password_nor_secret() {
        let backend = FleetBackend::new("redis://:hunter2@localhost", "api").unwrap();
        let shown = format!("{:?}", backend.secret("swordfish"));
        assert!(
            shown.contains("localhost:6379") && shown.contains("\"api\""),
            "{shown}"
        );
        assert!(
            !shown.contains("hunter2") && !shown.contains("swordfish"),
            "{shown}"
        );
    }

    #[test]
    fn all_nodes_hash_alike_and_other_secrets_hash_otherwise() {
        let hash = |secret: &[u8]| seed(secret).hash_one("alice");
        assert_eq!(hash(b"api"), hash(b"api"));
        assert_ne!(hash(b"api"), hash(b"other"));
        // Every release of this crate must agree with every other on this.
        assert_eq!(hash(b"api"), 7_770_592_776_441_320_698);
    }
}
