//! The servers of a profile, real and private, and their own count of connections.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use pool_autotune::fleet::{MIGRATION, grants};
use private_servers::{PgBouncer, Postgres, Redis};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_postgres::{Client, NoTls};

use crate::api::Api;
use crate::pod::{ROWS, SUPERUSERS, Way};
use crate::profile::Profile;

/// Everything that pods connect to.
pub(crate) struct Servers {
    primary: Postgres,
    replicas: Vec<Postgres>,
    bouncer: Option<PgBouncer>,
    redis: Option<Redis>,
    pub(crate) api: Option<Api>,
    pub(crate) counts: Arc<Counts>,
    /// When the table of budgets was made.
    pub(crate) installed: Instant,
}

/// Connections by the servers' own count.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Of the server that has most, since it was last read.
    most: AtomicUsize,
    ended: AtomicBool,
}

impl Counts {
    pub(crate) fn take(&self) -> usize {
        self.most.swap(0, Relaxed)
    }
}

impl Servers {
    pub(crate) async fn start(profile: &Profile) -> Result<Self, Box<dyn Error>> {
        let scale = &profile.scale;
        // One more for the driver's own count, which is a superuser's.
        let most = (scale.count(profile.servers.max_connections) + 1).to_string();
        let superusers = scale.count(SUPERUSERS).to_string();
        let primary = Postgres::start_with(&[
            ("max_connections", &most),
            ("superuser_reserved_connections", &superusers),
        ])
        .await?;
        let admin = connect(&primary.url()).await?;
        admin
            .batch_execute(&format!(
                "create role app login; grant all on schema public to app;
                 create table item (id int primary key, value int not null);
                 insert into item select id, id from generate_series(0, {ROWS}) id;
                 grant all on item to app; analyze item"
            ))
            .await?;
        admin.batch_execute(MIGRATION).await?;
        admin.batch_execute(&grants("app")).await?;
        let installed = Instant::now();
        let mut replicas = Vec::new();
        for _ in 0..profile.servers.replicas {
            replicas.push(primary.replica().await?);
        }
        let bouncer = match profile.servers.bouncer {
            Some(bouncer) => {
                let settings = [
                    ("default_pool_size", scale.count(bouncer.pool).to_string()),
                    (
                        "reserve_pool_size",
                        scale.count(bouncer.reserve).to_string(),
                    ),
                    ("max_client_conn", scale.count(bouncer.clients).to_string()),
                ];
                let settings = settings
                    .each_ref()
                    .map(|(name, value)| (*name, value.as_str()));
                Some(PgBouncer::start_with(&primary, &settings).await?)
            }
            None => None,
        };
        let redis = match profile.has_redis() {
            true => Some(Redis::start().await?),
            false => None,
        };
        let api = match profile.outbound {
            Some(outbound) => Some(Api::start(outbound).await?),
            None => None,
        };
        let counts = Arc::<Counts>::default();
        tokio::spawn(count(admin, Arc::clone(&counts)));
        for replica in &replicas {
            tokio::spawn(count(connect(&replica.url()).await?, Arc::clone(&counts)));
        }
        Ok(Self {
            primary,
            replicas,
            bouncer,
            redis,
            api,
            counts,
            installed,
        })
    }

    /// Where the pods find the primary. `PgBouncer` is one of the documented numbers; the budget
    /// takes its place.
    pub(crate) fn primary(&self, way: Way) -> String {
        match (&self.bouncer, way) {
            (Some(bouncer), Way::Static) => bouncer.url(),
            _ => as_app(&self.primary.url()),
        }
    }

    pub(crate) fn replicas(&self) -> Vec<String> {
        self.replicas
            .iter()
            .map(|replica| as_app(&replica.url()))
            .collect()
    }

    pub(crate) fn redis(&self) -> Option<String> {
        self.redis.as_ref().map(Redis::url)
    }

    /// Ends the bouncer, whose idle connections would take places from pods that do without it.
    pub(crate) fn end_bouncer(&mut self) {
        self.bouncer = None;
    }

    /// Forgets what is cached and counted, between two runs.
    pub(crate) async fn clear(&self) -> std::io::Result<()> {
        if let Some(redis) = &self.redis {
            redis.ask(&["FLUSHALL"]).await?;
        }
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.counts.ended.store(true, Relaxed);
    }
}

/// Superusers have places of their own, and would take those.
fn as_app(url: &str) -> String {
    url.replace("postgres@", "app@")
}

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Asks the server for its clients, ten times a second; the one that asks is left out.
async fn count(client: Client, counts: Arc<Counts>) {
    const CLIENTS: &str = "select count(*) from pg_stat_activity \
        where backend_type = 'client backend' and pid <> pg_backend_pid()";
    let mut tick = interval(Duration::from_millis(100));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !counts.ended.load(Relaxed) {
        tick.tick().await;
        let Ok(row) = client.query_one(CLIENTS, &[]).await else {
            return;
        };
        let clients: i64 = row.get(0);
        counts
            .most
            .fetch_max(usize::try_from(clients).unwrap_or(0), Relaxed);
    }
}
