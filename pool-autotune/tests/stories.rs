//! What must never happen again, one story each. In virtual time.

mod support;

use sqlx_0_9 as sqlx;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use pool_autotune::adapter::Adapter;
use pool_autotune::adapter::bb8::{Bb8, DialError, Member};
use pool_autotune::tuner::{Reason, Verdict};
use pool_autotune::{Autotuned, Error, Mode};
use support::{Dice, Memory};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn told(pool: &Autotuned<Memory>) -> String {
    let lines = pool
        .decisions()
        .into_iter()
        .map(|decision| format!("\n{decision}"));
    lines.collect()
}

fn pool(max: usize) -> Autotuned<Memory> {
    Autotuned::new(Memory::new(max, ms(3))).expect("a runtime")
}

/// Callers that come at random, `rate` a second, and hold a connection for as long as `hold` says.
/// Returns how many were served and refused.
async fn open_loop<P: Adapter>(
    pool: &Autotuned<P>,
    rate: u64,
    lasts: Duration,
    hold: Duration,
) -> (usize, usize) {
    let served = Arc::new(AtomicUsize::new(0));
    let refused = Arc::new(AtomicUsize::new(0));
    let mut dice = Dice(7);
    let start = Instant::now();
    let mut tasks = Vec::new();
    while start.elapsed() < lasts {
        let uniform = (dice.roll(1 << 20) + 1) as f64 / f64::from(1 << 20);
        sleep(Duration::from_secs_f64(-uniform.ln() / rate as f64)).await;
        let (pool, served, refused) = (pool.clone(), Arc::clone(&served), Arc::clone(&refused));
        tasks.push(tokio::spawn(async move {
            match pool.get().await {
                Ok(_connection) => {
                    sleep(hold).await;
                    served.fetch_add(1, Relaxed);
                }
                Err(_) => _ = refused.fetch_add(1, Relaxed),
            }
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    (served.load(Relaxed), refused.load(Relaxed))
}

#[tokio::test(start_paused = true)]
async fn queries_that_become_slower_get_the_connections_they_need() {
    for (rate, before, after) in [(60, 20, 300), (30, 20, 500), (100, 5, 100), (40, 5, 200)] {
        let pool = pool(50);
        let (_, refused) = open_loop(&pool, rate, 60 * SECOND, ms(before)).await;
        assert_eq!(refused, 0);
        let (served, refused) = open_loop(&pool, rate, 120 * SECOND, ms(after)).await;
        assert_eq!(refused, 0, "{served} served: {}", told(&pool));
        let busy = (rate * after / 1_000) as usize;
        assert!(pool.snapshot().target() >= busy, "{:?}", pool.snapshot());
        let verdict = pool.verdict();
        let is_bound = matches!(verdict, Verdict::AtKnee(_) | Verdict::BudgetBound);
        assert!(!is_bound, "{verdict}");
    }
}

#[tokio::test(start_paused = true)]
async fn connections_held_for_life_leave_the_rest_of_the_maximum_to_others() {
    for held in [1, 4, 8, 40] {
        let pool = pool(50);
        let line = line!() + 4;
        let holders = (0..held).map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let connection = pool.get().await.expect("allowed");
                std::future::pending::<()>().await;
                drop(connection);
            })
        });
        let holders: Vec<_> = holders.collect();
        sleep(2 * SECOND).await;
        let (served, refused) = open_loop(&pool, 40, 60 * SECOND, ms(5)).await;
        assert_eq!(refused, 0, "{held} held, {served} served");
        let now = pool.snapshot();
        assert!(now.limit() >= held, "{now:?}");
        let Verdict::Leaking(leak) = pool.verdict() else {
            panic!("{}", pool.verdict())
        };
        assert_eq!((leak.count(), leak.call_site().line()), (held, line));
        holders.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

#[tokio::test(start_paused = true)]
async fn a_few_reports_do_not_stop_short_queries() {
    let pool = pool(50);
    open_loop(&pool, 20, 20 * SECOND, ms(1)).await;
    let reports = (0..5).map(|_| async {
        let _connection = pool.get().await.expect("allowed");
        sleep(20 * SECOND).await;
    });
    let (_, (served, refused)) =
        tokio::join!(join_all(reports), open_loop(&pool, 20, 40 * SECOND, ms(1)));
    assert_eq!(refused, 0, "{served} served");
}

#[tokio::test(start_paused = true)]
async fn a_pool_at_its_maximum_whose_every_connection_earns_its_share_is_hardly_probed() {
    let pool = Autotuned::builder(Memory::new(10, ms(3))).wait_timeout(10 * SECOND);
    let pool = pool.build().expect("valid settings");
    let served = AtomicUsize::new(0);
    let start = Instant::now();
    let users = (0..60).map(|_| async {
        while start.elapsed() < 600 * SECOND {
            let _connection = pool.get().await.expect("in time");
            sleep(ms(20)).await;
            served.fetch_add(1, Relaxed);
        }
    });
    join_all(users).await;
    // 500 a second, all the time.
    let part = served.load(Relaxed) as f64 / 300_000.0;
    assert!(part > 0.98, "{part}");
    assert_eq!(pool.verdict(), Verdict::BudgetBound);
}

#[tokio::test(start_paused = true)]
async fn one_task_that_works_with_many_connections_is_no_deadlock() {
    let pool = Autotuned::builder(Memory::new(50, ms(3))).wait_timeout(30 * SECOND);
    let pool = pool.build().expect("valid settings");
    // One row that all update.
    let row = Mutex::new(());
    let mut worst = 0;
    stream::iter(0..20_000)
        .map(|_| async {
            let _connection = pool.get().await.expect("in time");
            let _locked = row.lock().await;
            sleep(ms(1)).await;
        })
        .buffer_unordered(100)
        .for_each(|()| {
            worst += usize::from(matches!(pool.verdict(), Verdict::NestedAcquire(_)));
            async {}
        })
        .await;
    assert_eq!(worst, 0, "each of them came back");
    let now = pool.snapshot();
    assert!(now.target() <= 16, "{now:?}: {:?}", pool.decisions());
}

#[tokio::test(start_paused = true)]
async fn growth_is_told_by_what_was_seen() {
    let pool = pool(50);
    open_loop(&pool, 60, 20 * SECOND, ms(300)).await;
    let decisions = pool.decisions();
    let grown = decisions.iter().find(|decision| decision.is_resize());
    let grown = grown.expect("18 are needed");
    assert_eq!(grown.reason(), Reason::Starving);
    let text = grown.to_string();
    assert!(
        text.contains("checkouts wait, and more connections are allowed"),
        "{text}"
    );
    let never = pool.get().await;
    assert!(!matches!(never, Err(Error::Timeout(_))));
}

#[test]
fn a_pool_whose_runtime_has_ended_is_driven_from_another() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime")
    };
    let first = runtime();
    let pool = first.block_on(async { pool(50) });
    drop(first);
    runtime().block_on(async {
        let (served, refused) = open_loop(&pool, 100, 20 * SECOND, ms(200)).await;
        assert_eq!(refused, 0, "{served} served");
        assert!(pool.snapshot().target() >= 20, "{:?}", pool.snapshot());
    });
}

#[tokio::test(start_paused = true)]
async fn recommend_mode_closes_nothing_whatever_it_is_told() {
    let memory = Memory::new(8, ms(3));
    let builder = Autotuned::builder(memory.clone()).mode(Mode::Recommend);
    let pool = builder.build().expect("valid settings");
    let users = (0..6).map(|_| async {
        let _connection = pool.get().await.expect("free");
        sleep(ms(10)).await;
    });
    join_all(users).await;
    let held = pool.get().await.expect("free");
    for code in ["57P01", "57P01", "57P02", "25006", "53300"] {
        pool.note_sqlstate(code);
    }
    pool.failover();
    drop(held);
    sleep(SECOND).await;
    assert_eq!(pool.snapshot().size(), 6);
    assert_eq!(pool.snapshot().limit(), 8);
}

#[tokio::test(start_paused = true)]
async fn one_lost_connection_and_a_bad_statement_are_no_failover_and_two_lost_ones_are() {
    let pool = pool(8);
    drop(pool.get().await.expect("free"));
    let failovers = || {
        let decisions = pool.decisions();
        let failover = decisions
            .iter()
            .filter(|decision| decision.reason() == Reason::Failover);
        failover.count()
    };
    for _ in 0..50 {
        pool.note_sqlstate("08P01");
    }
    pool.note_sqlstate("57P01");
    assert_eq!(failovers(), 0, "an operator ended one connection");
    sleep(2 * SECOND).await;
    pool.note_sqlstate("57P01");
    assert_eq!(failovers(), 0, "and another, later");
    pool.note_sqlstate("08006");
    assert_eq!(failovers(), 1);
    pool.note_sqlstate("57P02");
    assert_eq!(failovers(), 1, "the same event");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_shutdown_told_by_many_threads_at_once_is_one_failover() {
    for _ in 0..100 {
        let pool = pool(64);
        let barrier = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    barrier.wait();
                    pool.note_sqlstate("57P02");
                });
            }
        });
        let decisions = pool.decisions();
        let failovers = decisions
            .iter()
            .filter(|decision| decision.reason() == Reason::Failover);
        assert_eq!(failovers.count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn seventy_thousand_waiters_are_counted() {
    let builder = Autotuned::builder(Memory::new(1, ms(3))).mode(Mode::Recommend);
    let pool = builder.build().expect("valid settings");
    let held = pool.get().await.expect("free");
    let waiting: Vec<_> = (0..70_000)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.get().await.map(drop) })
        })
        .collect();
    sleep(25 * SECOND).await;
    let last = pool.decisions().pop().expect("it is saturated");
    assert!(last.inputs().mean_queue > 60_000.0, "{last}");
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    drop(held);
}

#[tokio::test]
async fn a_sqlx_pool_that_reopens_by_itself_what_is_closed_is_refused() {
    let options = sqlx::postgres::PgPoolOptions::new().min_connections(10);
    let inner = options
        .connect_lazy("postgres://localhost/orders")
        .expect("a url");
    let error = Autotuned::new(inner).expect_err("it would reopen them");
    assert!(
        error.to_string().contains("min_connections is 10"),
        "{error}"
    );
}

/// A server as dials see it.
struct Server {
    dial: Duration,
    /// Whether a connection is broken as soon as it is open.
    broken: bool,
    /// Dials fail, or hang.
    fails: bool,
    hangs: Arc<std::sync::atomic::AtomicBool>,
    dials: Arc<AtomicUsize>,
}

impl Server {
    fn new(dial: Duration) -> Self {
        Self {
            dial,
            broken: false,
            fails: false,
            hangs: Arc::default(),
            dials: Arc::default(),
        }
    }

    async fn dial(&self) -> Result<(), std::io::Error> {
        self.dials.fetch_add(1, Relaxed);
        if self.hangs.load(Relaxed) {
            std::future::pending::<()>().await;
        }
        sleep(self.dial).await;
        if self.fails {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl bb8::ManageConnection for Server {
    type Connection = ();
    type Error = std::io::Error;

    async fn connect(&self) -> Result<(), std::io::Error> {
        self.dial().await
    }

    async fn is_valid(&self, (): &mut ()) -> Result<(), std::io::Error> {
        Ok(())
    }

    fn has_broken(&self, (): &mut ()) -> bool {
        self.broken
    }
}

impl deadpool::managed::Manager for Server {
    type Type = ();
    type Error = std::io::Error;

    async fn create(&self) -> Result<(), std::io::Error> {
        self.dial().await
    }

    async fn recycle(
        &self,
        (): &mut (),
        _: &deadpool::managed::Metrics,
    ) -> deadpool::managed::RecycleResult<std::io::Error> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn connections_that_are_broken_from_birth_serve_once_each() {
    let server = Server {
        broken: true,
        ..Server::new(ms(1))
    };
    let dials = Arc::clone(&server.dials);
    let pool = Autotuned::new(Bb8::new(bb8::Pool::builder().max_size(5), server));
    let pool = pool.expect("a runtime");
    let served = join_all((0..10).map(|_| async { pool.get().await.map(drop) })).await;
    assert_eq!(served.iter().filter(|served| served.is_ok()).count(), 10);
    assert_eq!(dials.load(Relaxed), 10);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_up_is_not_dialled_in_a_storm() {
    let server = Server {
        fails: true,
        ..Server::new(ms(1))
    };
    let dials = Arc::clone(&server.dials);
    let inner = deadpool::managed::Pool::<Server>::builder(server).max_size(50);
    let pool = Autotuned::new(inner.build().expect("no timeouts are set")).expect("a runtime");
    let start = Instant::now();
    let callers = (0..40).map(|_| async {
        while start.elapsed() < 3 * SECOND {
            assert!(pool.get().await.is_err());
            sleep(ms(5)).await;
        }
    });
    join_all(callers).await;
    assert!(dials.load(Relaxed) <= 30, "{dials:?}");
    assert_eq!(pool.verdict(), Verdict::ConnectBound);
}

#[tokio::test(start_paused = true)]
async fn dials_that_hang_keep_no_place_from_those_that_do_not() {
    let server = Server::new(ms(3));
    let hangs = Arc::clone(&server.hangs);
    hangs.store(true, Relaxed);
    let inner = deadpool::managed::Pool::<Server>::builder(server).max_size(50);
    let pool = Autotuned::builder(inner.build().expect("no timeouts are set"));
    let pool = pool
        .open_timeout(30 * SECOND)
        .build()
        .expect("valid settings");
    let stuck: Vec<_> = (0..8)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.get().await.map(drop) })
        })
        .collect();
    sleep(3 * SECOND).await;
    hangs.store(false, Relaxed);
    sleep(SECOND).await;
    let (served, refused) = open_loop(&pool, 15, 5 * SECOND, ms(10)).await;
    assert_eq!(refused, 0, "{served} served");
    stuck.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn draining_waits_for_those_inside_and_closes_what_is_idle() {
    let memory = Memory::new(8, ms(3));
    let pool = Autotuned::new(memory.clone()).expect("a runtime");
    let first = tokio::spawn(pool.get_owned()).await.expect("no panic");
    let first = first.expect("free");
    let user = tokio::spawn(async move {
        sleep(SECOND).await;
        drop(first);
    });
    assert!(!pool.is_closed());
    assert!(!pool.drain(ms(100)).await, "one is out");
    assert!(pool.is_closed());
    assert!(matches!(pool.get().await, Err(Error::Closed)));
    assert!(pool.drain(10 * SECOND).await);
    user.await.expect("no panic");
    assert_eq!(pool.snapshot().size(), 0);
}

#[tokio::test(start_paused = true)]
async fn callers_without_the_patience_for_a_dial_are_served_by_those_that_others_began() {
    let server = Server::new(ms(300));
    let dials = Arc::clone(&server.dials);
    let pool = Autotuned::new(Bb8::new(bb8::Pool::builder().max_size(10), server));
    let pool = pool.expect("a runtime");
    let start = Instant::now();
    let callers = (0..10).map(|_| async {
        let mut served = 0;
        while start.elapsed() < 5 * SECOND {
            served += usize::from(matches!(timeout(ms(200), pool.get()).await, Ok(Ok(_))));
            sleep(ms(5)).await;
        }
        served
    });
    let served: usize = join_all(callers).await.into_iter().sum();
    assert!(served > 4_000, "{served}");
    assert!(dials.load(Relaxed) <= 12, "{dials:?}");
}

/// Sets something on each connection.
#[derive(Debug)]
struct Mark(Arc<AtomicUsize>);

impl bb8::CustomizeConnection<Member<usize>, DialError<std::io::Error>> for Mark {
    fn on_acquire<'a>(
        &'a self,
        connection: &'a mut Member<usize>,
    ) -> Pin<Box<dyn Future<Output = Result<(), DialError<std::io::Error>>> + Send + 'a>> {
        **connection = self.0.fetch_add(1, Relaxed) + 100;
        Box::pin(std::future::ready(Ok(())))
    }
}

struct Numbers;

impl bb8::ManageConnection for Numbers {
    type Connection = usize;
    type Error = std::io::Error;

    async fn connect(&self) -> Result<usize, std::io::Error> {
        Ok(0)
    }

    async fn is_valid(&self, _: &mut usize) -> Result<(), std::io::Error> {
        Ok(())
    }

    fn has_broken(&self, _: &mut usize) -> bool {
        false
    }
}

#[tokio::test(start_paused = true)]
async fn a_customizer_of_bb8_reaches_each_connection_once() {
    let marks = Arc::new(AtomicUsize::new(0));
    let mark = Box::new(Mark(Arc::clone(&marks)));
    let inner = bb8::Pool::builder().max_size(4).connection_customizer(mark);
    let pool = Autotuned::new(Bb8::new(inner, Numbers)).expect("a runtime");
    for _ in 0..10 {
        let first = pool.get().await.expect("it opens");
        let second = pool.get().await.expect("it opens");
        assert_eq!(**first + **second, 201);
    }
    assert_eq!(marks.load(Relaxed), 2);
}

/// Connections that all die at once.
struct Mortal {
    generation: Arc<AtomicUsize>,
    dialling: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl deadpool::managed::Manager for Mortal {
    type Type = usize;
    type Error = std::io::Error;

    async fn create(&self) -> Result<usize, std::io::Error> {
        let generation = self.generation.load(Relaxed);
        let now = self.dialling.fetch_add(1, Relaxed) + 1;
        self.most.fetch_max(now, Relaxed);
        sleep(ms(100)).await;
        self.dialling.fetch_sub(1, Relaxed);
        Ok(generation)
    }

    async fn recycle(
        &self,
        of: &mut usize,
        _: &deadpool::managed::Metrics,
    ) -> deadpool::managed::RecycleResult<std::io::Error> {
        if *of == self.generation.load(Relaxed) {
            Ok(())
        } else {
            Err(deadpool::managed::RecycleError::message("dead"))
        }
    }
}

#[tokio::test(start_paused = true)]
async fn when_all_connections_die_at_once_they_are_replaced_within_the_dial_budget() {
    let (generation, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let mortal = Mortal {
        generation: Arc::clone(&generation),
        dialling: Arc::default(),
        most: Arc::clone(&most),
    };
    let inner = deadpool::managed::Pool::<Mortal>::builder(mortal).max_size(50);
    let pool = Autotuned::builder(inner.build().expect("no timeouts are set"))
        .bounds(40..=50)
        .build()
        .expect("valid settings");
    let (start, died) = (Instant::now(), 4 * SECOND);
    let after = AtomicUsize::new(0);
    let users = (0..100).map(|_| async {
        while start.elapsed() < died + 4 * SECOND {
            let Ok(connection) = pool.get().await else {
                continue;
            };
            for _ in 0..20 {
                sleep(ms(1)).await;
                if **connection != generation.load(Relaxed) {
                    break;
                }
            }
            after.fetch_add(usize::from(start.elapsed() > died + SECOND), Relaxed);
        }
    });
    let death = async {
        sleep(died).await;
        assert!(pool.snapshot().size() >= 40, "{:?}", pool.snapshot());
        most.store(0, Relaxed);
        generation.fetch_add(1, Relaxed);
    };
    tokio::join!(join_all(users), death);
    // One found its connection dead before the others could know.
    assert!(most.load(Relaxed) <= 3, "{most:?} at once");
    assert!(after.load(Relaxed) > 1_000, "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_taken_out_for_good_takes_nothing_from_the_target() {
    let pool = pool(10);
    let mut kept = Vec::new();
    for _ in 0..8 {
        kept.push(pool.get().await.expect("allowed").detach());
    }
    let (served, refused) = open_loop(&pool, 40, 20 * SECOND, ms(5)).await;
    assert_eq!(refused, 0, "{served} served");
    assert_eq!(pool.verdict(), Verdict::Healthy, "it is no leak");
    assert_eq!(pool.snapshot().in_use(), 8);
    drop(kept);
    assert_eq!(pool.snapshot().in_use(), 0);
}

#[tokio::test(start_paused = true)]
async fn connections_are_opened_in_advance_up_to_the_target() {
    let memory = Memory::new(10, ms(3));
    let pool = Autotuned::new(memory.clone()).expect("a runtime");
    pool.prewarm(3).await.expect("they open");
    assert_eq!((memory.opened(), pool.snapshot().size()), (3, 3));
    pool.prewarm(10).await.expect("they open");
    assert_eq!(pool.snapshot().size(), pool.snapshot().target());
}

/// Where a dial takes as long as callers have patience, a connection closed is a caller lost.
#[tokio::test(start_paused = true)]
async fn what_was_needed_a_minute_ago_is_still_open() {
    let memory = Memory::new(50, ms(500));
    let pool = Autotuned::builder(memory.clone())
        .wait_timeout(30 * SECOND)
        .build()
        .expect("valid settings");
    let all_at_once = || {
        join_all((0..20).map(|_| async {
            let asked = Instant::now();
            let connection = pool.get().await.expect("allowed");
            let waited = asked.elapsed();
            sleep(SECOND).await;
            drop(connection);
            waited
        }))
    };
    for _ in 0..3 {
        all_at_once().await;
    }
    let opened = memory.opened();
    sleep(60 * SECOND).await;
    let snapshot = pool.snapshot();
    assert!(snapshot.target() < opened, "{snapshot:?}{}", told(&pool));
    assert_eq!(snapshot.size(), opened, "{}", told(&pool));
    let waits = all_at_once().await;
    let longest = waits.iter().max().expect("twenty");
    assert!(*longest < ms(100), "{waits:?}{}", told(&pool));
    assert_eq!(memory.opened(), opened, "{}", told(&pool));

    sleep(1_300 * SECOND).await;
    assert_eq!(pool.snapshot().size(), pool.snapshot().target());
}

/// A probe closes a part of the pool for four use times. Of an overload of twenty-five, that is a lot.
#[tokio::test(start_paused = true)]
async fn a_short_overload_is_not_probed_at_the_cost_of_its_callers() {
    let pool = pool(10);
    open_loop(&pool, 14, 20 * SECOND, ms(850)).await;
    let probes = |pool: &Autotuned<Memory>| {
        let decisions = pool.decisions();
        decisions.iter().any(|it| it.reason() == Reason::Probing)
    };
    assert!(!probes(&pool), "{}", told(&pool));
    open_loop(&pool, 14, 300 * SECOND, ms(850)).await;
    assert!(probes(&pool), "one that lasts is: {}", told(&pool));
}

#[tokio::test(start_paused = true)]
async fn uses_that_take_long_do_not_hide_that_others_wait_for_them() {
    let pool = pool(2);
    let held = [pool.get().await, pool.get().await];
    let waits = tokio::spawn({
        let pool = pool.clone();
        async move { pool.get().await.map(drop) }
    });
    sleep(2 * SECOND).await;
    assert_eq!(pool.verdict(), Verdict::BudgetBound, "{}", told(&pool));
    drop(held);
    waits.await.expect("no panic").expect("served");
}

/// Callers that come one after the other, hold what they get for long, and have `patience` for it.
async fn impatient(memory: Memory, every: Duration, hold: Duration, patience: Duration) -> usize {
    let pool = Autotuned::new(memory).expect("a runtime");
    let callers = (0..40).map(|index| {
        let pool = &pool;
        async move {
            sleep(every * index).await;
            let Ok(Ok(connection)) = timeout(patience, pool.get()).await else {
                return 0;
            };
            sleep(hold).await;
            drop(connection);
            1
        }
    });
    join_all(callers).await.into_iter().sum()
}

/// A dial that begins only once it is clear that no connection comes back ends too late for them.
#[tokio::test(start_paused = true)]
async fn callers_that_have_the_patience_for_a_dial_and_no_more_are_served() {
    let memory = Memory::new(50, ms(100));
    let served = impatient(memory, ms(1_700), 20 * SECOND, ms(101)).await;
    assert!(served >= 38, "{served} of 40");
}

#[tokio::test(start_paused = true)]
async fn callers_with_less_patience_than_a_pool_waits_before_it_dials_are_served() {
    let memory = Memory::new(50, ms(1));
    let served = impatient(memory, ms(25), 5 * SECOND, ms(10)).await;
    assert!(served >= 38, "{served} of 40");
}

/// What was served before a lull, of other queries, says nothing of what more connections are worth.
#[tokio::test(start_paused = true)]
async fn a_growth_that_a_lull_follows_is_not_judged_by_the_load_after_it() {
    let pool = Autotuned::new(Memory::new(100, ms(100))).expect("a runtime");
    open_loop(&pool, 140, 2 * SECOND, ms(70)).await;
    open_loop(&pool, 80, 4 * SECOND, ms(25)).await;
    let (served, refused) = open_loop(&pool, 360, SECOND, ms(250)).await;
    assert_eq!(refused, 0, "{served} served: {}", told(&pool));
}
