//! Under load and random resizes, connections never exceed the limit in force plus debt.

mod support;

use sqlx_0_9 as sqlx;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bb8_postgres::PostgresConnectionManager;
use deadpool::managed::{Manager, Object, Pool};
use pool_autotune::adapter::Adapter;
use pool_autotune::adapter::bb8::Bb8;
use pool_autotune::tuner::TunerConfig;
use pool_autotune::{Autotuned, Checkout};
use private_servers::Postgres;
use support::{Census, Counting, Dice, SqliteManager};
use tokio_postgres::NoTls;

const TASKS: u64 = 200;
const RESIZES: usize = 60;
const SMALLEST: usize = 4;
const LARGEST: usize = 16;
const APPLICATION: &str = "pool-autotune-resize";

/// Dials as fast as the limit moves: here the limit is tested, not the dial budget.
fn eager() -> TunerConfig {
    let mut config = TunerConfig::default();
    // With a lower limit than connections, an experiment would look like a violation.
    config.experiments = false;
    config.dial.per_second = 1e9;
    config.dial.burst = 1e9;
    config.dial.at_once = LARGEST;
    config
}

fn tuned<P: Adapter>(pool: P, census: &Census) -> Autotuned<P> {
    let pool = Autotuned::builder(pool)
        .bounds(LARGEST..=LARGEST)
        .wait_timeout(Duration::from_secs(60))
        .open_timeout(Duration::from_secs(60))
        .tuner(eager())
        .build()
        .expect("valid settings");
    census.watch(&pool);
    pool
}

/// Runs the load and the resizes; one checkout in five is dropped halfway.
async fn torture<P, Q, F>(pool: &Autotuned<P>, census: &Census, query: Q)
where
    P: Adapter,
    Q: Fn(Checkout<P>) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let query = Arc::new(query);
    let tasks: Vec<_> = (0..TASKS)
        .map(|seed| {
            let (pool, query) = (pool.clone(), Arc::clone(&query));
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            tokio::spawn(async move {
                let mut dice = Dice(seed);
                while !stop.load(Ordering::Relaxed) {
                    if dice.roll(5) == 0 {
                        let patience = Duration::from_micros(dice.roll(20_000) as u64);
                        let _ = tokio::time::timeout(patience, pool.get()).await;
                    } else {
                        query(pool.get().await.expect("a connection in time")).await;
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();

    let mut dice = Dice(42);
    for _ in 0..RESIZES {
        // The next resize comes after some work was done at this size.
        let enough = served.load(Ordering::Relaxed) + 20 + dice.roll(200);
        while served.load(Ordering::Relaxed) < enough {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let size = SMALLEST + dice.roll(LARGEST - SMALLEST + 1);
        pool.set_bounds(size..=size)
            .expect("within the pool's maximum");
    }
    pool.set_bounds(SMALLEST..=SMALLEST)
        .expect("within the pool's maximum");
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("no task panics");
    }

    assert_eq!(census.violations(), Vec::<String>::new());
    assert!(census.peak() <= LARGEST, "{} at once", census.peak());
    assert!(
        census.opened() > LARGEST,
        "connections were closed and opened again"
    );

    // Every permit came back: as many fit in as the limit says, and no more connections exist.
    settles(|| pool.snapshot().in_use() == 0).await;
    let now = pool.snapshot();
    assert_eq!((now.in_use(), now.pending(), now.limit()), (0, 0, SMALLEST));
    settles(|| census.open() <= SMALLEST).await;
    let mut held = Vec::new();
    for _ in 0..SMALLEST {
        held.push(pool.get().await.expect("all permits are free"));
    }
    assert_eq!(census.open(), SMALLEST);
}

/// Closing a connection may take a task of its own.
async fn settles(done: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    while !done() && tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(done(), "does not settle");
}

fn deadpool<M: Manager>(manager: M, census: &Census) -> Pool<Counting<M>> {
    let manager = Counting {
        manager,
        census: census.clone(),
    };
    Pool::<_, Object<_>>::builder(manager)
        .max_size(LARGEST)
        .build()
        .expect("no timeouts are set")
}

/// A server, and a look at how many sessions of ours it sees.
struct Watched {
    postgres: Postgres,
    now: Arc<AtomicUsize>,
    peak: Arc<AtomicUsize>,
    watcher: tokio::task::JoinHandle<()>,
}

impl Watched {
    async fn start() -> Self {
        let postgres = Postgres::start().await.expect("Postgres starts");
        let (client, connection) = tokio_postgres::connect(&postgres.url(), NoTls)
            .await
            .expect("it accepts");
        tokio::spawn(connection);
        let (now, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (seen, highest) = (Arc::clone(&now), Arc::clone(&peak));
        let watcher = tokio::spawn(async move {
            let query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1";
            let statement = client.prepare(query).await.expect("it parses");
            loop {
                let row = client
                    .query_one(&statement, &[&APPLICATION])
                    .await
                    .expect("a row");
                let sessions = row.get::<_, i64>(0) as usize;
                seen.store(sessions, Ordering::Relaxed);
                highest.fetch_max(sessions, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        Self {
            postgres,
            now,
            peak,
            watcher,
        }
    }

    fn config(&self) -> tokio_postgres::Config {
        let mut config: tokio_postgres::Config = self.postgres.url().parse().expect("a valid url");
        config.application_name(APPLICATION);
        config
    }

    /// The server ends a session a moment after its socket was closed, so between few and many
    /// connections it may see some of both. When all is quiet it sees exactly those that are open.
    async fn check(self, open: usize) {
        let peak = self.peak.load(Ordering::Relaxed);
        println!("sessions seen by the server: at most {peak}");
        assert!(
            (SMALLEST..=LARGEST + 4).contains(&peak),
            "{peak} sessions seen by the server"
        );
        self.now.store(usize::MAX, Ordering::Relaxed);
        settles(|| self.now.load(Ordering::Relaxed) == open).await;
        self.watcher.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadpool_over_sqlite_never_exceeds_the_limit_plus_debt() {
    let census = Census::default();
    let config = deadpool_sqlite::Config::new(":memory:");
    let manager = deadpool_sqlite::Manager::from_config(&config, deadpool_sqlite::Runtime::Tokio1);
    let pool = tuned(deadpool(manager, &census), &census);
    torture(&pool, &census, |connection| async move {
        let query = connection.interact(|db| db.query_row("SELECT 1", [], |_| Ok(())));
        query.await.expect("no panic").expect("one row");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bb8_over_sqlite_never_exceeds_the_limit_plus_debt() {
    let census = Census::default();
    let manager = Counting {
        manager: SqliteManager,
        census: census.clone(),
    };
    let builder = bb8::Pool::builder().max_size(LARGEST as u32);
    let pool = tuned(Bb8::new(builder, manager), &census);
    torture(&pool, &census, |connection| async move {
        connection
            .query_row("SELECT 1", [], |_| Ok(()))
            .expect("one row");
        tokio::task::yield_now().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadpool_over_postgres_never_exceeds_the_limit_plus_debt() {
    let server = Watched::start().await;
    let census = Census::default();
    let manager = deadpool_postgres::Manager::new(server.config(), NoTls);
    let pool = tuned(deadpool(manager, &census), &census);
    torture(&pool, &census, |connection| async move {
        connection
            .simple_query("SELECT 1")
            .await
            .expect("it answers");
    })
    .await;
    server.check(census.open()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bb8_over_postgres_never_exceeds_the_limit_plus_debt() {
    let server = Watched::start().await;
    let census = Census::default();
    let manager = PostgresConnectionManager::new(server.config(), NoTls);
    let manager = Counting {
        manager,
        census: census.clone(),
    };
    let builder = bb8::Pool::builder().max_size(LARGEST as u32);
    let pool = tuned(Bb8::new(builder, manager), &census);
    torture(&pool, &census, |connection| async move {
        connection
            .simple_query("SELECT 1")
            .await
            .expect("it answers");
    })
    .await;
    server.check(census.open()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlx_over_postgres_never_exceeds_the_limit_plus_debt() {
    use sqlx::Executor;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    let server = Watched::start().await;
    let census = Census::default();
    let options: PgConnectOptions = server.postgres.url().parse().expect("a valid url");
    let opened = census.clone();
    let sqlx = PgPoolOptions::new()
        .max_connections(LARGEST as u32)
        .idle_timeout(None)
        .max_lifetime(None)
        .after_connect(move |_, _| {
            opened.opened_one();
            Box::pin(async { Ok(()) })
        })
        .connect_lazy_with(options.application_name(APPLICATION));
    let counted = sqlx.clone();
    census.trust(move || counted.size() as usize);
    let pool = tuned(sqlx, &census);
    torture(&pool, &census, |mut connection| async move {
        connection.execute("SELECT 1").await.expect("it answers");
    })
    .await;
    server.check(census.open()).await;
}
