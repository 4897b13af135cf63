//! Connections that get old, are not needed, or are to be kept open.

mod support;

use sqlx_0_9 as sqlx;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use futures_util::future::join_all;
use pool_autotune::adapter::bb8::Bb8;
use pool_autotune::{Autotuned, Mode};
use private_servers::Postgres;
use tokio::time::{Instant, interval, sleep};

use crate::support::Memory;

const S: Duration = Duration::from_secs(1);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Works with as many connections at once until then, and returns the longest wait and the age of the
/// oldest connection.
async fn work(pool: &Autotuned<Memory>, workers: usize, until: Instant) -> (Duration, Duration) {
    let workers = (0..workers).map(|_| async {
        let (mut longest, mut oldest) = (Duration::ZERO, Duration::ZERO);
        while Instant::now() < until {
            let start = Instant::now();
            let connection = pool.get().await.expect("in time");
            longest = longest.max(start.elapsed());
            oldest = oldest.max(pool.inner().age(connection.id));
            sleep(ms(20)).await;
        }
        (longest, oldest)
    });
    let most = |a: (Duration, Duration), b: (Duration, Duration)| (a.0.max(b.0), a.1.max(b.1));
    join_all(workers)
        .await
        .into_iter()
        .fold(<_>::default(), most)
}

/// Looks at the pool four times a second, and returns the sizes and how many were opened.
async fn watch(pool: &Autotuned<Memory>, until: Instant) -> Vec<(usize, usize)> {
    let mut looks = Vec::new();
    let mut ticks = interval(ms(250));
    while Instant::now() < until {
        ticks.tick().await;
        looks.push((pool.snapshot().size(), pool.inner().opened()));
    }
    looks
}

#[tokio::test(start_paused = true)]
async fn connections_that_were_opened_together_are_replaced_one_after_the_other() {
    let memory = Memory::new(30, ms(5));
    let pool = Autotuned::builder(memory.clone())
        .bounds(20..=30)
        .max_lifetime(60 * S)
        .build()
        .expect("valid settings");
    pool.prewarm(20).await.expect("they open");
    assert!(memory.opened() >= 20);
    let until = Instant::now() + 300 * S;
    let ((longest, oldest), looks) = tokio::join!(work(&pool, 12, until), watch(&pool, until));
    let opened = memory.opened();
    assert!(opened >= 60, "replaced several times: {opened}");
    assert!(memory.peak_dialing() <= 2, "{}", memory.peak_dialing());
    let most = looks.windows(5).map(|looks| looks[4].1 - looks[0].1).max();
    assert!(most <= Some(4), "{most:?} opened within a second");
    let least = looks.iter().map(|look| look.0).min();
    assert!(least >= Some(12), "{least:?} left");
    assert!(longest <= ms(5), "a wait of {longest:?}");
    assert!(oldest <= 60 * S, "{oldest:?}");
}

#[tokio::test(start_paused = true)]
async fn where_all_are_in_use_one_is_replaced_before_it_is_closed() {
    let memory = Memory::new(30, ms(5));
    let pool = Autotuned::builder(memory.clone())
        .bounds(4..=8)
        .max_lifetime(60 * S)
        .build()
        .expect("valid settings");
    pool.prewarm(4).await.expect("they open");
    let until = Instant::now() + 200 * S;
    let ((_, oldest), looks) = tokio::join!(work(&pool, 12, until), watch(&pool, until));
    let target = pool.snapshot().target();
    assert!(memory.opened() >= 2 * target, "{}", memory.opened());
    let least = looks[20..].iter().map(|look| look.0).min();
    assert!(least >= Some(4), "{least:?} left");
    assert!(oldest <= 60 * S, "{oldest:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_held_longer_is_closed_when_it_comes_back() {
    let memory = Memory::new(4, ms(5));
    let pool = Autotuned::builder(memory.clone())
        .max_lifetime(60 * S)
        .build()
        .expect("valid settings");
    let held = pool.get().await.expect("it opens");
    sleep(90 * S).await;
    assert_eq!(pool.snapshot().size(), 1);
    drop(held);
    assert_eq!(pool.snapshot().size(), 0);
}

#[tokio::test(start_paused = true)]
async fn connections_that_are_not_needed_are_closed_and_those_in_use_are_not() {
    let memory = Memory::new(30, ms(5));
    let pool = Autotuned::builder(memory.clone())
        .bounds(20..=30)
        .idle_timeout(60 * S)
        .keep_open(2)
        .build()
        .expect("valid settings");
    pool.prewarm(20).await.expect("they open");
    work(&pool, 12, Instant::now() + 200 * S).await;
    assert_eq!(pool.snapshot().size(), 12);
    work(&pool, 5, Instant::now() + 40 * S).await;
    assert_eq!(pool.snapshot().size(), 12, "not for long enough");
    work(&pool, 5, Instant::now() + 60 * S).await;
    assert_eq!(pool.snapshot().size(), 5);
    let opened = memory.opened();
    sleep(300 * S).await;
    assert_eq!(pool.snapshot().size(), 2, "as many as are kept open");
    assert_eq!(memory.opened(), opened);
}

#[tokio::test(start_paused = true)]
async fn what_is_to_be_kept_open_is_opened_in_advance_and_again() {
    let memory = Memory::new(10, ms(5));
    let pool = Autotuned::builder(memory.clone())
        .keep_open(3)
        .build()
        .expect("valid settings");
    sleep(S).await;
    assert_eq!((pool.snapshot().size(), memory.opened()), (3, 3));
    memory.refuse(true);
    pool.failover();
    sleep(10 * S).await;
    assert_eq!(pool.snapshot().size(), 0);
    let refused = memory.refused();
    assert!(
        (2..=60).contains(&refused),
        "{refused} dials in ten seconds"
    );
    memory.refuse(false);
    sleep(2 * S).await;
    assert_eq!(pool.snapshot().size(), 3);
    assert!(memory.peak_dialing() <= 2);
}

#[tokio::test(start_paused = true)]
async fn recommend_mode_leaves_ages_alone() {
    let memory = Memory::new(10, ms(5));
    let pool = Autotuned::builder(memory.clone())
        .mode(Mode::Recommend)
        .max_lifetime(60 * S)
        .idle_timeout(60 * S)
        .keep_open(3)
        .build()
        .expect("valid settings");
    drop(pool.get().await.expect("it opens"));
    sleep(300 * S).await;
    assert_eq!((pool.snapshot().size(), memory.opened()), (1, 1));
}

#[derive(Debug, Default)]
struct Counted(Arc<AtomicUsize>);

impl bb8::ManageConnection for Counted {
    type Connection = ();
    type Error = std::io::Error;

    async fn connect(&self) -> Result<(), std::io::Error> {
        self.0.fetch_add(1, SeqCst);
        Ok(())
    }

    async fn is_valid(&self, (): &mut ()) -> Result<(), std::io::Error> {
        Ok(())
    }

    fn has_broken(&self, (): &mut ()) -> bool {
        false
    }
}

#[tokio::test(start_paused = true)]
async fn a_minimum_of_bb8_is_refused_and_its_connections_get_no_older() {
    let with_minimum = bb8::Pool::builder().max_size(8).min_idle(2);
    let refused =
        Autotuned::new(Bb8::new(with_minimum, Counted::default())).expect_err("a minimum");
    assert!(
        refused
            .to_string()
            .starts_with("min_idle is 2: bb8 would reopen")
    );
    let opened = Arc::<AtomicUsize>::default();
    let inner = bb8::Pool::builder().max_size(8).max_lifetime(None);
    let pool = Autotuned::builder(Bb8::new(inner, Counted(Arc::clone(&opened))))
        .bounds(4..=8)
        .max_lifetime(60 * S)
        .keep_open(3)
        .build()
        .expect("valid settings");
    sleep(40 * S).await;
    assert_eq!((pool.snapshot().size(), opened.load(SeqCst)), (3, 3));
    sleep(20 * S).await;
    assert_eq!(pool.snapshot().size(), 3);
    assert_eq!(opened.load(SeqCst), 6, "each was replaced once");
}

#[tokio::test]
async fn an_age_that_no_pool_tells_is_refused() {
    let inner = sqlx::postgres::PgPoolOptions::new().connect_lazy("postgres://localhost/none");
    let builder = Autotuned::builder(inner.expect("a valid url")).max_lifetime(60 * S);
    let refused = builder.build().expect_err("sqlx tells none").to_string();
    assert!(
        refused.starts_with("max_lifetime is set: the pool behind does not tell"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_of_postgres_gets_older_and_no_query_fails_for_it() {
    use deadpool_postgres::{Manager, Pool};
    use tokio_postgres::NoTls;

    let postgres = Postgres::start().await.expect("Postgres starts");
    let config: tokio_postgres::Config = postgres.url().parse().expect("a valid url");
    let inner = Pool::builder(Manager::new(config, NoTls)).max_size(12);
    let pool = Autotuned::builder(inner.build().expect("no timeouts are set"))
        .bounds(6..=12)
        .max_lifetime(3 * S)
        .build()
        .expect("valid settings");
    let until = Instant::now() + 10 * S;
    let workers = (0..6).map(|_| async {
        let mut oldest = 0.0_f64;
        while Instant::now() < until {
            let connection = pool.get().await.expect("in time");
            let age = "SELECT extract(epoch FROM clock_timestamp() - backend_start)::float8 \
                       FROM pg_stat_activity WHERE pid = pg_backend_pid()";
            let row = connection.query_one(age, &[]).await.expect("it is open");
            oldest = oldest.max(row.get(0));
            sleep(ms(5)).await;
        }
        oldest
    });
    let oldest = join_all(workers).await.into_iter().fold(0.0, f64::max);
    println!("the oldest session was {oldest:.2} s old");
    assert!((1.5..3.2).contains(&oldest), "{oldest} s");
}
