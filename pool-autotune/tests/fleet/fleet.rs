//! A server, processes that share it, and its own count of their sessions.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use deadpool_postgres::{Manager, Pool};
use pool_autotune::Autotuned;
use pool_autotune::fleet::{self, Budget, BudgetError};
use private_servers::{Postgres, Redis};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, Config, NoTls};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// A lease that a test can wait for.
pub(crate) const TTL: Duration = Duration::from_secs(3);

pub(crate) async fn connect(config: &Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.expect("it accepts connections");
    tokio::spawn(connection);
    client
}

/// A Postgres with the role `app` for the sessions of the fleet.
pub(crate) struct Server {
    pub(crate) postgres: Postgres,
    pub(crate) admin: Client,
    /// Where the budget is kept, unless in the Postgres itself.
    pub(crate) redis: Option<Redis>,
    /// Where processes find it.
    pub(crate) redis_url: Option<String>,
}

/// The key of the budget.
pub(crate) const KEY: &str = "budget";

fn budget(config: &Config, redis: Option<&str>) -> fleet::Config {
    let config = config.clone();
    match redis {
        Some(url) => {
            let client = redis::Client::open(url).expect("a valid url");
            Budget::redis(client, KEY, config).ttl(TTL)
        }
        None => Budget::postgres(config).ttl(TTL),
    }
}

impl Server {
    pub(crate) async fn start(max_connections: usize) -> Self {
        let most = max_connections.to_string();
        let postgres = Postgres::start_with(&[("max_connections", &most)]).await;
        let postgres = postgres.expect("Postgres starts");
        let admin = connect(&postgres.url().parse().expect("a valid url")).await;
        let roles = "create role app login; grant create on database postgres to app;";
        admin.batch_execute(roles).await.expect("valid SQL");
        Self {
            postgres,
            admin,
            redis: None,
            redis_url: None,
        }
    }

    /// With the budget kept in a Redis.
    pub(crate) async fn with_redis(max_connections: usize) -> Self {
        let redis = Redis::start().await.expect("Redis starts");
        let mut server = Self::start(max_connections).await;
        server.redis_url = Some(redis.url());
        server.redis = Some(redis);
        server
    }

    pub(crate) async fn try_join(
        &self,
        set: impl FnOnce(fleet::Config) -> fleet::Config,
    ) -> Result<Process, BudgetError> {
        let config = self.config();
        let budget = set(budget(&config, self.redis_url.as_deref()));
        Ok(Process::with(config, budget.start().await?))
    }

    /// A process of the fleet, with a budget that `set` makes.
    pub(crate) async fn join(&self, set: impl FnOnce(fleet::Config) -> fleet::Config) -> Process {
        self.try_join(set).await.expect("it joins")
    }

    /// With the table there, and no rights given under an earlier one.
    pub(crate) async fn installed(max_connections: usize) -> Self {
        let server = Self::start(max_connections).await;
        let install = format!(
            "{}; {} update pool_autotune.installed set at = '-infinity';",
            fleet::MIGRATION,
            fleet::grants("app")
        );
        server
            .admin
            .batch_execute(&install)
            .await
            .expect("valid SQL");
        server
    }

    pub(crate) fn url(&self) -> String {
        self.postgres.url().replace("postgres@", "app@")
    }

    pub(crate) fn config(&self) -> Config {
        self.url().parse().expect("a valid url")
    }

    pub(crate) async fn sql(&self, sql: &str) {
        self.admin.batch_execute(sql).await.expect("valid SQL");
    }

    /// Counts the sessions of the fleet every 10 ms until it is dropped.
    pub(crate) async fn watch(&self) -> Watch {
        Watch::start(&self.postgres.url()).await
    }
}

/// The server's own count of the sessions of `app`.
pub(crate) struct Watch {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Watch {
    async fn start(url: &str) -> Self {
        let client = connect(&url.parse().expect("a valid url")).await;
        let (now, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (its_now, its_most) = (Arc::clone(&now), Arc::clone(&most));
        let task = tokio::spawn(async move {
            let count = "select count(*) from pg_stat_activity where usename = 'app'
                and backend_type = 'client backend'";
            let Ok(count) = client.prepare(count).await else {
                return;
            };
            while let Ok(row) = client.query_one(&count, &[]).await {
                let count = row.get::<_, i64>(0) as usize;
                its_now.store(count, Ordering::SeqCst);
                its_most.fetch_max(count, Ordering::SeqCst);
                sleep(Duration::from_millis(10)).await;
            }
        });
        Self { now, most, task }
    }

    pub(crate) fn now(&self) -> usize {
        self.now.load(Ordering::SeqCst)
    }

    /// The most there were at once.
    pub(crate) fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A process of the fleet, within this one: a budget and a pool.
pub(crate) struct Process {
    pub(crate) budget: Budget,
    pub(crate) pool: Autotuned<Pool>,
    done: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    users: Vec<JoinHandle<()>>,
}

impl Process {
    pub(crate) fn with(mut config: Config, budget: Budget) -> Self {
        budget.tag(&mut config);
        let pool = Pool::builder(Manager::new(config, NoTls)).max_size(60);
        let pool = pool.build().expect("no timeouts are set");
        let pool = Autotuned::builder(pool)
            .budget(&budget)
            .bounds(1..=60)
            .wait_timeout(10 * SECOND)
            .build()
            .expect("valid settings");
        Self {
            budget,
            pool,
            done: Arc::default(),
            failed: Arc::default(),
            users: Vec::new(),
        }
    }

    pub(crate) fn size(&self) -> usize {
        self.pool.snapshot().size()
    }

    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::SeqCst)
    }

    /// Has this many users, each with one query of 20 ms after another.
    pub(crate) fn load(&mut self, users: usize) {
        self.load_with(users, 0.02);
    }

    fn load_with(&mut self, users: usize, seconds: f64) {
        self.users.drain(..).for_each(|user| user.abort());
        for _ in 0..users {
            let pool = self.pool.clone();
            let (done, failed) = (Arc::clone(&self.done), Arc::clone(&self.failed));
            self.users.push(tokio::spawn(async move {
                loop {
                    let ok = match pool.get().await {
                        Ok(client) => {
                            match client.query("select pg_sleep($1)", &[&seconds]).await {
                                Ok(_) => true,
                                Err(error) => {
                                    pool.note_error(&error);
                                    false
                                }
                            }
                        }
                        Err(_) => false,
                    };
                    let count = if ok { &done } else { &failed };
                    count.fetch_add(1, Ordering::SeqCst);
                    if !ok {
                        sleep(Duration::from_millis(20)).await;
                    }
                }
            }));
        }
    }
}

impl Process {
    /// Ends as a deployment does: the users go, the pool drains, and the budget is given back.
    pub(crate) async fn stop(mut self) {
        for user in self.users.drain(..) {
            user.abort();
            let _ = user.await;
        }
        assert!(self.pool.drain(5 * SECOND).await);
        assert!(self.budget.leave(5 * SECOND).await);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.users.drain(..).for_each(|user| user.abort());
    }
}

/// Waits until something is so, at most for a while.
pub(crate) async fn until(
    within: Duration,
    what: &str,
    mut is_so: impl FnMut() -> bool,
) -> Duration {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < within, "within {within:?} not so: {what}");
        sleep(Duration::from_millis(10)).await;
    }
    start.elapsed()
}

/// The environment of a process that is a process of its own.
const URL: &str = "FLEET_TEST_URL";
const REDIS: &str = "FLEET_TEST_REDIS";
const USERS: &str = "FLEET_TEST_USERS";
const QUERY: &str = "FLEET_TEST_QUERY_SECONDS";

/// A process of its own, which can be stopped and killed.
pub(crate) struct RealProcess {
    child: Child,
}

impl RealProcess {
    pub(crate) fn start(server: &Server, users: usize) -> Self {
        Self::start_with(server, users, 0.02)
    }

    /// With queries of this length.
    pub(crate) fn start_with(server: &Server, users: usize, seconds: f64) -> Self {
        let program = std::env::current_exe().expect("this test");
        let child = Command::new(program)
            .args([
                "--exact",
                "one_process_of_a_fleet",
                "--ignored",
                "--nocapture",
            ])
            .env(URL, server.url())
            .envs(server.redis_url.as_ref().map(|url| (REDIS, url)))
            .env(USERS, users.to_string())
            .env(QUERY, seconds.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("this test runs again");
        Self { child }
    }

    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        let status = Command::new("sh").args(["-c", &kill]).status();
        assert!(status.expect("`sh` runs").success(), "{kill}");
    }
}

impl Drop for RealProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What such a process does, until it is killed.
pub(crate) async fn run_as_process() {
    let Ok(url) = std::env::var(URL) else {
        return;
    };
    let number = |name: &str| {
        let number = std::env::var(name).expect("it is set");
        number.parse::<f64>().expect("a number")
    };
    let config: Config = url.parse().expect("a valid url");
    let redis = std::env::var(REDIS).ok();
    let budget = budget(&config, redis.as_deref()).spawn();
    let mut process = Process::with(config, budget.expect("valid settings"));
    process.load_with(number(USERS) as usize, number(QUERY));
    sleep(600 * SECOND).await;
}
