use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{NoTls, Socket};

use super::budget::{Budget, Inner, Kind};
use super::pod::{Pod, Terms};
use super::postgres::{Postgres, Table, connect_by};
#[cfg(feature = "fleet-redis")]
use super::redis::Hash;
use super::store::Settings;
use super::{BudgetError, beats};
use crate::Mode;

/// Settings of a [`Budget`] that is kept in a store.
#[must_use = "nothing beats until `start` or `spawn` is called"]
pub struct Config {
    kept: Kept,
    pub(super) settings: Settings,
    floor: usize,
    extra: usize,
    mode: Mode,
    ttl: Duration,
    reap_after: Option<Duration>,
}

/// Where it is kept.
enum Kept {
    Postgres(Box<Postgres>),
    #[cfg(feature = "fleet-redis")]
    Redis(Box<Hash>),
}

impl Kept {
    /// Connections of the budget itself, of those that are divided.
    fn own(&self) -> usize {
        match self {
            Self::Postgres(_) => 1,
            #[cfg(feature = "fleet-redis")]
            Self::Redis(hash) => hash.postgres.iter().count(),
        }
    }
}

/// Dials of one process at the same time. What a process that is gone may still have under way is
/// counted for it.
const DIALS: u32 = 4;

impl Budget {
    /// Begins a budget that is kept in the Postgres that it divides the connections of.
    ///
    /// `postgres` is the address of Postgres itself, not of a pooler, and the role that the pools use.
    pub fn postgres(postgres: tokio_postgres::Config) -> Config {
        Self::postgres_tls(postgres, NoTls)
    }

    /// Like [`postgres`](Self::postgres), over TLS.
    pub fn postgres_tls<T>(postgres: tokio_postgres::Config, tls: T) -> Config
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::Stream: Send,
        T::TlsConnect: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        Config::new(Kept::Postgres(Box::new(connect_by(postgres, tls))))
    }

    /// Begins a budget that is kept in a Redis or a Valkey, under `key`, for the connections of `postgres`.
    ///
    /// For a Postgres that cannot keep a table. `postgres` is the address of Postgres itself, not of a
    /// pooler, and the role that the pools use: each process asks it, over one connection of its part, what
    /// sessions it shows. All processes that share its connections as this role use the same key.
    #[cfg(feature = "fleet-redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "fleet-redis")))]
    pub fn redis(
        client: redis::Client,
        key: impl Into<String>,
        postgres: tokio_postgres::Config,
    ) -> Config {
        Self::redis_tls(client, key, postgres, NoTls)
    }

    /// Like [`redis`](Self::redis), with TLS to Postgres.
    #[cfg(feature = "fleet-redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "fleet-redis")))]
    pub fn redis_tls<T>(
        client: redis::Client,
        key: impl Into<String>,
        postgres: tokio_postgres::Config,
        tls: T,
    ) -> Config
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::Stream: Send,
        T::TlsConnect: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        Config::new(Kept::Redis(Box::new(Hash {
            client,
            key: key.into(),
            postgres: Some(connect_by(postgres, tls)),
        })))
    }

    /// Like [`redis`](Self::redis), where Postgres cannot be asked, as behind a pooler.
    ///
    /// The [total](Config::total) has to be set, and less is certain: a connection that was closed is taken
    /// for gone a third of a lease later, and what a process had that no longer beats, two leases after its
    /// last beat, whatever the server shows. A process that is stopped for longer keeps connections that
    /// are not counted, as does one that was killed where the server does not notice. A limit of the role
    /// (`ALTER ROLE .. CONNECTION LIMIT`) or headroom has to pay for them.
    #[cfg(feature = "fleet-redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "fleet-redis")))]
    pub fn redis_uncounted(client: redis::Client, key: impl Into<String>) -> Config {
        Config::new(Kept::Redis(Box::new(Hash {
            client,
            key: key.into(),
            postgres: None,
        })))
    }
}

impl Config {
    fn new(kept: Kept) -> Self {
        Self {
            kept,
            settings: Settings::default(),
            floor: 0,
            extra: 0,
            mode: Mode::Enforce,
            ttl: Duration::from_secs(15),
            reap_after: None,
        }
    }

    /// Sets what kind of process this is, for readers of the table: `web`, `worker`, `cron`. Defaults to
    /// none.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.settings.label = label.into();
        self
    }

    /// Sets how much of what is scarce this process gets, in relation to others. Defaults to 1.
    pub fn weight(mut self, weight: f64) -> Self {
        self.settings.weight = weight;
        self
    }

    /// Sets what this process gets whatever the others need, beside the connection that beats.
    ///
    /// Defaults to one for each pool, and the [extra](Self::extra) connections.
    pub fn floor(mut self, connections: usize) -> Self {
        self.floor = connections;
        self
    }

    /// Declares connections of this process that are outside of its pools (`LISTEN`, a leader's lock),
    /// opened with [`Budget::place`]. Defaults to none.
    pub fn extra(mut self, connections: usize) -> Self {
        self.extra = connections;
        self
    }

    /// Sets how many connections there are to share.
    ///
    /// Never more than the role or the server has. Where processes differ, the lowest counts. Defaults to
    /// the role's `CONNECTION LIMIT`, or else to `max_connections` less those reserved for superusers,
    /// those that other roles have open, and a twentieth; looked up anew once a second.
    pub fn total(mut self, connections: usize) -> Self {
        self.settings.total = Some(connections);
        self
    }

    /// Sets how many of the total are kept for processes that join: each opens one connection to ask for
    /// rights, and again where it loses that one. More that start at the same moment exceed the total by as
    /// many, though not the limit of the role or the server. Where processes differ, the highest counts.
    /// Defaults to two, or 3 % if that is more; an eighth of a total below 16.
    pub fn reserve(mut self, connections: usize) -> Self {
        self.settings.reserve = Some(connections);
        self
    }

    /// Sets whether this process takes part in the experiments by which the fleet finds how many connections
    /// the database makes use of ([the knee](super#the-knee)). Defaults to `true`. What the others find bounds
    /// its share nevertheless.
    pub fn knee(mut self, knee: bool) -> Self {
        self.settings.knee = knee;
        self
    }

    /// Sets whether a missing schema `pool_autotune` is created. Defaults to `false`: run
    /// [`MIGRATION`](super::MIGRATION) instead.
    pub fn create(mut self, create: bool) -> Self {
        self.settings.create = create;
        self
    }

    /// Sets whether the budget acts or only reports; see [`Budget::set_mode`]. Defaults to
    /// [`Mode::Enforce`].
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets how long a grant lasts without another. What a process that was killed held is free after
    /// that time. Defaults to 15 s; a beat is sent three times as often.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets after how long without a beat the sessions of a process are ended by another, so that a machine
    /// that is frozen or cut off gives back what it holds. Defaults to never: until the server notices by
    /// itself that such a process is gone, its sessions count.
    ///
    /// A process that cannot beat while its pools work loses their connections, too. Only for a budget that is
    /// kept in Postgres.
    pub fn reap_after(mut self, after: Duration) -> Self {
        self.reap_after = Some(after);
        self
    }

    /// Joins the fleet: returns after the first beat, whether it gave rights or not.
    ///
    /// # Errors
    ///
    /// A setting that is out of range; no runtime; or what is wrong with the store, if the first beat failed.
    pub async fn start(self) -> Result<Budget, BudgetError> {
        let budget = self.spawn()?;
        budget.first_beat().await?;
        Ok(budget)
    }

    /// Like [`start`](Self::start), without waiting: where the store does not reply, pools that use the
    /// budget open no connection, and beats are tried until one succeeds.
    ///
    /// # Errors
    ///
    /// A setting that is out of range, or no runtime.
    pub fn spawn(self) -> Result<Budget, BudgetError> {
        let runtime = Handle::try_current().map_err(|_| BudgetError::NoRuntime)?;
        let terms = self.check()?;
        let Self {
            kept,
            settings,
            floor,
            extra,
            mode,
            reap_after,
            ..
        } = self;
        let id = random_id();
        let inner = Arc::new(Inner::new(
            id,
            Kind::Leased { own: kept.own() },
            Pod::new(terms),
            mode,
            extra,
            floor,
        ));
        let weak = Arc::downgrade(&inner);
        match kept {
            Kept::Postgres(postgres) => {
                let create = settings.create;
                let table = Table {
                    postgres: *postgres,
                    create,
                    reap_after,
                };
                runtime.spawn(beats::run(weak, table, settings))
            }
            #[cfg(feature = "fleet-redis")]
            Kept::Redis(hash) => runtime.spawn(beats::run(weak, *hash, settings)),
        };
        Ok(Budget::from_inner(inner))
    }

    fn check(&self) -> Result<Terms, BudgetError> {
        const TTL: std::ops::RangeInclusive<Duration> =
            Duration::from_secs(1)..=Duration::from_secs(60);
        let wrong = |message: String| Err(BudgetError::Setting(message));
        if !(0.001..=1_000.0).contains(&self.settings.weight) {
            return wrong(format!(
                "weight is {}: expected 0.001 to 1000",
                self.settings.weight
            ));
        }
        #[cfg(feature = "fleet-redis")]
        if let Kept::Redis(hash) = &self.kept {
            let Hash { key, postgres, .. } = &**hash;
            if key.is_empty() {
                return wrong("the key in Redis is empty".to_owned());
            }
            if postgres.is_none() && self.settings.total.is_none() {
                return wrong("no total is set, and no Postgres is asked for it".to_owned());
            }
        }
        if self.settings.total == Some(0) {
            return wrong("total is 0: expected at least 1".to_owned());
        }
        if let Some(total) = self.settings.total {
            let kept = self.settings.reserve.unwrap_or(0);
            if kept >= total {
                return wrong(format!(
                    "reserve is {kept} of a total of {total}: nothing is left"
                ));
            }
            let own = self.kept.own();
            let floor = own + self.floor.max(self.extra);
            if floor > total - kept {
                return wrong(format!(
                    "floor is {}, and {own} for the budget itself: above the total of {total} less the \
                     reserve of {kept}",
                    floor - own
                ));
            }
        }
        let most = [
            self.settings.total,
            self.settings.reserve,
            Some(self.floor),
            Some(self.extra),
        ];
        if let Some(most) = most.into_iter().flatten().find(|&n| n > 1_000_000) {
            return wrong(format!("{most} connections: expected at most 1000000"));
        }
        if let Some(after) = self.reap_after {
            if !matches!(self.kept, Kept::Postgres(_)) {
                return wrong(
                    "reap_after is set, and the budget is not kept in Postgres".to_owned(),
                );
            }
            if after < 2 * self.ttl {
                return wrong(format!(
                    "reap_after is {after:?}: expected at least two leases, {:?}",
                    2 * self.ttl
                ));
            }
        }
        if !TTL.contains(&self.ttl) {
            return wrong(format!("ttl is {:?}: expected 1 s to 60 s", self.ttl));
        }
        Ok(Terms {
            ttl: self.ttl,
            dial_for: self.ttl / 3,
            dials: DIALS,
        })
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("settings", &self.settings)
            .field("floor", &self.floor)
            .field("extra", &self.extra)
            .finish_non_exhaustive()
    }
}

/// Never derived from the host's name: two processes may share one.
fn random_id() -> i64 {
    let random = RandomState::new().build_hasher().finish();
    (random >> 1).max(1) as i64
}
