//! Which checkouts get a connection, which do not, and what is reported. In virtual time.

mod support;

use std::error::Error as _;
use std::time::Duration;

use futures_util::future::{join_all, poll_immediate};
use pool_autotune::tuner::{Decision, DecisionLog, Reason, TunerConfig, Verdict};
use pool_autotune::{Ask, Autotuned, BuildError, Codel, Error, Mode, PoolSettings, Priority};
use support::Memory;
use tokio::time::{Instant, sleep, timeout};
use tower_capacity::gate::RefusedReason;

const DIAL: Duration = Duration::from_millis(10);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A pool of exactly `size` connections, all open.
async fn warm(size: usize) -> Autotuned<Memory> {
    let mut tuner = TunerConfig::default();
    tuner.dial.burst = 100.0;
    tuner.dial.at_once = 100;
    let pool = Autotuned::builder(Memory::new(size, DIAL))
        .bounds(size..=size)
        .tuner(tuner)
        .build()
        .expect("valid settings");
    drop(join_all((0..size).map(|_| pool.get())).await);
    assert_eq!(pool.snapshot().size(), size);
    pool
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_has_the_rate_at_which_checkouts_arrive() {
    let pool = warm(2).await;
    for _ in 0..400 {
        drop(pool.get().await.expect("free"));
        sleep(ms(25)).await;
    }
    let rate = pool.snapshot().arrival_rate();
    assert!((38.0..42.0).contains(&rate), "{rate}/s");
    sleep(Duration::from_secs(15)).await;
    assert_eq!(pool.snapshot().arrival_rate(), 0.0);
}

#[tokio::test(start_paused = true)]
async fn settings_read_from_text_are_those_of_the_pool() {
    let settings = "size 1..=1, wait 50ms, waiting 1, mode enforce";
    let settings: PoolSettings = settings.parse().expect("valid settings");
    let memory = Memory::new(8, Duration::ZERO);
    let pool = Autotuned::builder(memory).settings(settings);
    let pool = pool.build().expect("valid settings");
    let _only = pool.get().await.expect("free");
    let start = Instant::now();
    let (first, second) = tokio::join!(pool.get(), pool.get());
    assert!(matches!(first, Err(Error::Timeout(_))), "it waits");
    assert!(matches!(second, Err(Error::Shed(_))), "one may wait");
    assert_eq!(start.elapsed(), Duration::from_millis(50));
}

#[tokio::test(start_paused = true)]
async fn waiting_checkouts_are_served_in_order() {
    let pool = warm(1).await;
    let held = pool.get().await.expect("it is free");
    let (done, mut order) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..5 {
        let (pool, done) = (pool.clone(), done.clone());
        tokio::spawn(async move {
            let _connection = pool.get().await.expect("in time");
            done.send(number).expect("the test listens");
            sleep(ms(1)).await;
        });
        tokio::task::yield_now().await;
    }
    drop(held);
    for number in 0..5 {
        assert_eq!(order.recv().await, Some(number));
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_at_the_timeout_and_says_what_it_waited_for() {
    let pool = warm(2).await;
    let _held = [
        pool.get().await.expect("free"),
        pool.get().await.expect("free"),
    ];
    let start = Instant::now();
    let error = pool.get().await.expect_err("nothing comes free");
    assert_eq!(start.elapsed(), Duration::from_secs(2), "the default");
    assert!(error.is_overload());
    let Error::Timeout(overload) = error else {
        panic!("{error:?}")
    };
    assert_eq!((overload.limit(), overload.in_use()), (2, 2));
    assert!(overload.waited() >= Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_full_line_refuses_at_once() {
    let memory = Memory::new(1, DIAL);
    let builder = Autotuned::builder(memory).bounds(1..=1).max_waiting(1);
    let pool = builder.build().expect("valid settings");
    let _held = pool.get().await.expect("free");
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.get().await.map(drop) }
    });
    tokio::task::yield_now().await;
    let error = pool.get().await.expect_err("the line is full");
    let Error::Shed(overload) = &error else {
        panic!("{error:?}")
    };
    assert_eq!(overload.queued(), 1);
    assert_eq!(
        error.to_string(),
        "too many wait for a connection: 1 of 1 in use, 1 waiting"
    );
    waiting.abort();
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_wait_loses_nothing_and_is_counted() {
    let pool = warm(1).await;
    let held = pool.get().await.expect("free");
    for _ in 0..20 {
        assert!(timeout(ms(50), pool.get()).await.is_err());
    }
    assert_eq!(pool.snapshot().pending(), 0);
    drop(held);
    drop(pool.get().await.expect("the permit is back"));

    sleep(ms(300)).await;
    let now = pool.snapshot();
    // Twenty waits of 50 ms among twenty-three checkouts, though none of them ended well.
    assert!(now.wait_p95() >= ms(50), "{:?}", now.wait_p95());
    assert!(now.wait_mean() >= ms(40), "{:?}", now.wait_mean());
}

#[tokio::test(start_paused = true)]
async fn a_dial_goes_on_when_its_checkout_is_cancelled_and_serves_the_next() {
    let memory = Memory::new(1, DIAL);
    let pool = Autotuned::builder(memory)
        .bounds(1..=1)
        .build()
        .expect("valid settings");
    let start = Instant::now();
    assert!(
        timeout(ms(5), pool.get()).await.is_err(),
        "a dial takes 10 ms"
    );
    let connection = timeout(ms(6), pool.get()).await;
    drop(connection.expect("the dial was begun 5 ms ago"));
    assert_eq!(start.elapsed(), ms(10));
    assert_eq!(pool.snapshot().in_use(), 0);
    drop(pool.get().await.expect("the permit is back"));
    assert_eq!(pool.inner().opened(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_slow_dial_is_an_open_timeout() {
    let memory = Memory::new(1, Duration::from_secs(60));
    let pool = Autotuned::builder(memory)
        .open_timeout(ms(500))
        .build()
        .expect("valid settings");
    let start = Instant::now();
    let error = pool.get().await.expect_err("it takes a minute");
    assert!(
        matches!(error, Error::OpenTimeout(limit) if limit == ms(500)),
        "{error:?}"
    );
    assert!(error.source().is_none());
    assert_eq!(start.elapsed(), ms(500));
    assert_eq!(pool.snapshot().in_use(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_closed_pool_refuses_newcomers_and_serves_those_inside() {
    let pool = warm(1).await;
    let held = pool.get().await.expect("free");
    pool.close();
    assert!(matches!(pool.get().await, Err(Error::Closed)));
    assert_eq!(held.id, 1);
}

#[tokio::test(start_paused = true)]
async fn times_are_exact() {
    let pool = warm(1).await;
    sleep(Duration::from_secs(20)).await; // the warm-up is out of the picture
    for _ in 0..10 {
        let first = pool.get().await.expect("free");
        let second = pool.get();
        let (second, ()) = tokio::join!(second, async {
            sleep(ms(30)).await;
            drop(first);
        });
        let second = second.expect("in time");
        sleep(ms(10)).await;
        drop(second);
    }
    sleep(ms(250)).await;
    let now = pool.snapshot();
    // Ten uses of 30 ms and ten of 10 ms; ten waits of 30 ms and ten of none.
    assert_eq!(now.use_mean(), Some(ms(20)));
    assert_eq!(now.wait_mean(), ms(15));
    let p95 = now.wait_p95();
    assert!((ms(30)..ms(38)).contains(&p95), "{p95:?}");
}

#[tokio::test(start_paused = true)]
async fn pressure_tells_use_and_waiting_apart() {
    let pool = warm(2).await;
    assert_eq!(pool.pressure().value(), 0.0);
    let one = pool.get().await.expect("free");
    assert_eq!(pool.pressure().value(), 0.25);
    let two = pool.get().await.expect("free");
    assert_eq!(pool.pressure().value(), 0.5);
    let mut waiting = Box::pin(pool.get());
    assert!(poll_immediate(&mut waiting).await.is_none());
    assert_eq!(pool.pressure().value(), 0.75);
    drop((one, two));
}

#[tokio::test(start_paused = true)]
async fn a_burst_opens_connections_two_at_a_time_and_only_as_many_as_needed() {
    let memory = Memory::new(50, DIAL);
    let pool = Autotuned::builder(memory.clone())
        .bounds(4..=50)
        .build()
        .expect("valid settings");
    let burst = (0..8).map(|_| async {
        let connection = pool.get().await.expect("in time");
        sleep(ms(20)).await;
        drop(connection);
    });
    join_all(burst).await;
    assert_eq!(memory.peak_dialing(), 2);
    assert!(
        memory.opened() <= 6,
        "{}: the rest was served by reuse",
        memory.opened()
    );
}

#[tokio::test(start_paused = true)]
async fn a_step_in_traffic_grows_the_pool_within_the_dial_budget() {
    let memory = Memory::new(50, DIAL);
    let pool = Autotuned::builder(memory.clone())
        .bounds(2..=50)
        .build()
        .expect("valid settings");
    let traffic = |every: Duration, count: usize| {
        let pool = pool.clone();
        async move {
            let mut tasks = Vec::new();
            for _ in 0..count {
                let pool = pool.clone();
                tasks.push(tokio::spawn(async move {
                    let connection = pool.get().await.expect("in time");
                    sleep(ms(20)).await;
                    drop(connection);
                }));
                sleep(every).await;
            }
            join_all(tasks).await;
        }
    };
    traffic(ms(20), 500).await;
    let before = pool.snapshot();
    assert!(before.target() <= 4, "one busy connection: {before:?}");

    let step = Instant::now();
    traffic(ms(1), 20_000).await;
    let decisions = pool.decisions();
    let first = decisions
        .iter()
        .find(|decision| decision.at() > step)
        .expect("a decision");
    assert!(first.to() > first.from(), "{first}");
    assert!(first.at() - step <= ms(500), "{:?}", first.at() - step);
    let after = pool.snapshot();
    assert!(
        (20..=50).contains(&after.target()),
        "20 busy connections: {after:?}"
    );
    assert!(after.limit() >= 20, "{after:?}");
    assert_eq!(memory.peak_dialing(), 2);
    assert!(after.wait_p95() < ms(20), "the backlog is gone: {after:?}");
    for decision in &decisions {
        assert!(!decision.to_string().contains('\n'));
    }
}

#[tokio::test(start_paused = true)]
async fn recommend_mode_only_reports() {
    let memory = Memory::new(4, DIAL);
    let builder = Autotuned::builder(memory.clone())
        .mode(Mode::Recommend)
        .name("orders");
    let pool = builder.build().expect("valid settings");
    let users = (0..40).map(|_| async {
        for _ in 0..100 {
            let connection = pool.get().await.expect("no timeout of ours");
            sleep(ms(20)).await;
            drop(connection);
        }
    });
    join_all(users).await;
    let now = pool.snapshot();
    assert_eq!((now.name(), now.mode()), ("orders", Mode::Recommend));
    assert_eq!(
        (now.limit(), now.size()),
        (4, 4),
        "the size it was built with"
    );
    assert!(now.target() > 4, "and the size it should have: {now:?}");
    assert!(pool.decisions().iter().any(|decision| decision.to() > 4));
    let report = pool.report();
    assert_eq!(report.target(), now.target());
    let text = report.to_string();
    assert!(text.starts_with("Pool orders should have "), "{text}");
    assert!(text.contains("connections, not 4. Why: "), "{text}");
    assert!(text.contains("more connections on the server"), "{text}");
    assert!(!text.contains('\n'), "{text}");
}

#[tokio::test(start_paused = true)]
async fn lower_bounds_close_what_is_too_many() {
    let pool = warm(8).await;
    let mut held = join_all((0..6).map(|_| pool.get())).await;
    pool.set_bounds(3..=3).expect("within the maximum");
    let now = pool.snapshot();
    assert_eq!(
        (now.limit(), now.in_use(), now.size()),
        (3, 6, 6),
        "two idle ones closed at once"
    );
    held.truncate(4);
    assert_eq!(pool.snapshot().size(), 4);
    drop(held);
    assert_eq!(pool.snapshot().size(), 3);
}

#[tokio::test]
async fn settings_that_cannot_be_are_refused_with_their_value() {
    let build =
        |configure: fn(pool_autotune::Builder<Memory>) -> pool_autotune::Builder<Memory>| {
            let builder = configure(Autotuned::builder(Memory::new(8, DIAL)));
            builder
                .build()
                .map(drop)
                .expect_err("it cannot be")
                .to_string()
        };
    assert_eq!(
        build(|b| b.bounds(0..=4)),
        "bounds 0..=4: a pool needs at least 1 connection"
    );
    #[expect(clippy::reversed_empty_ranges, reason = "the mistake under test")]
    let reversed = build(|b| b.bounds(5..=4));
    assert_eq!(reversed, "bounds 5..=4: the minimum is above the maximum");
    assert_eq!(
        build(|b| b.bounds(2..=9)),
        "bounds 2..=9: the pool was built with a maximum of 8; build it with at least 9"
    );
    assert!(build(|b| b.wait_timeout(Duration::ZERO)).starts_with("wait_timeout is 0 s"));
    assert!(build(|b| b.open_timeout(Duration::ZERO)).starts_with("open_timeout is 0 s"));
    assert!(build(|b| b.name("")).starts_with("the name of the pool is empty"));
    let tuner = build(|b| {
        let mut tuner = TunerConfig::default();
        tuner.shrink_step = 2.0;
        b.tuner(tuner)
    });
    assert_eq!(tuner, "tuner.shrink_step is 2: expected from 0 to 1");
    let none = Autotuned::new(Memory::new(0, DIAL))
        .map(drop)
        .expect_err("there is no room");
    assert!(matches!(none, BuildError::Bounds(_)), "{none}");

    let pool = Autotuned::new(Memory::new(8, DIAL)).expect("valid settings");
    assert!(pool.set_bounds(2..=9).is_err());
    assert!(pool.snapshot().target() <= 8);
}

#[test]
fn building_outside_a_runtime_is_an_error_and_no_panic() {
    let error = Autotuned::new(Memory::new(8, DIAL))
        .map(drop)
        .expect_err("no runtime");
    assert_eq!(error, BuildError::NoRuntime);
}

#[tokio::test(start_paused = true)]
async fn a_checkout_remembers_where_it_was_made() {
    let pool = warm(1).await;
    let line = line!() + 1;
    let connection = pool.get().await.expect("free");
    assert_eq!(connection.call_site().line(), line);
    assert!(connection.call_site().file().ends_with("checkout.rs"));
}

#[tokio::test(start_paused = true)]
async fn the_driver_ends_with_the_last_handle() {
    let pool = warm(1).await;
    let metrics = tokio::runtime::Handle::current().metrics();
    assert_eq!(metrics.num_alive_tasks(), 1);
    drop(pool);
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    assert_eq!(metrics.num_alive_tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_failover_closes_idle_connections_at_once_and_used_ones_on_return() {
    let pool = warm(8).await;
    let held = join_all((0..3).map(|_| pool.get())).await;
    let old = pool.inner().opened();
    pool.failover();
    assert_eq!(pool.snapshot().size(), 3, "five idle ones are gone");
    drop(held);
    assert_eq!(pool.snapshot().size(), 0, "and three that were in use");
    let fresh = pool.get().await.expect("it opens");
    assert!(fresh.id > old);
    drop(fresh);
    assert_eq!(pool.snapshot().size(), 1, "which stays");
    assert!(
        pool.decisions()
            .iter()
            .any(|decision| decision.reason() == Reason::Failover)
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_without_free_slots_is_not_dialled_again_while_there_are_connections() {
    let memory = Memory::new(8, DIAL);
    let mut tuner = TunerConfig::default();
    tuner.dial.freeze = Duration::from_secs(30);
    let builder = Autotuned::builder(memory.clone())
        .bounds(8..=8)
        .tuner(tuner);
    let pool = builder.build().expect("valid settings");
    drop(join_all((0..2).map(|_| pool.get())).await);
    memory.refuse(true);
    let users = (0..20).map(|_| async {
        let mut failed = 0;
        for _ in 0..10 {
            match pool.get().await {
                Ok(_connection) => sleep(ms(5)).await,
                Err(Error::Backend(_)) => failed += 1,
                Err(error) => panic!("{error}"),
            }
        }
        failed
    });
    let failed: usize = join_all(users).await.into_iter().sum();
    assert_eq!(failed, 0, "those whose dial failed waited for the two");
    assert_eq!(pool.snapshot().size(), 2);
    // Two were on their way.
    assert!(memory.refused() <= 2, "{}", memory.refused());

    memory.refuse(false);
    sleep(Duration::from_secs(30)).await;
    drop(join_all((0..8).map(|_| pool.get())).await);
    assert!(pool.snapshot().size() > 2, "it dials again");
}

#[tokio::test(start_paused = true)]
async fn replaying_a_recording_makes_the_same_decisions() {
    let memory = Memory::new(50, DIAL);
    let pool = Autotuned::builder(memory)
        .bounds(2..=50)
        .build()
        .expect("valid settings");
    for users in [2, 30, 5] {
        let load = (0..users).map(|_| async {
            for _ in 0..400 {
                let connection = pool.get().await.expect("in time");
                sleep(ms(20)).await;
                drop(connection);
            }
        });
        join_all(load).await;
    }
    pool.set_bounds(3..=20).expect("within the maximum");
    pool.failover();
    // More than is kept: the beginning is gone, and what it led to is not.
    sleep(Duration::from_secs(700)).await;

    let replayed = pool.recording().replay();
    assert_eq!(replayed.len(), 2_400);
    let since = replayed[0].at();
    let resizes = |decisions: Vec<Decision>| -> Vec<_> {
        let kept = |decision: &Decision| decision.is_resize() && decision.at() >= since;
        decisions.into_iter().filter(kept).collect()
    };
    let (lived, replayed) = (resizes(pool.decisions()), resizes(replayed));
    assert!(!lived.is_empty());
    assert_eq!(lived, replayed);
}

#[tokio::test(start_paused = true)]
async fn a_reserved_connection_is_for_the_critical() {
    let builder = Autotuned::builder(Memory::new(2, DIAL)).bounds(2..=2);
    let pool = builder.reserved(1).build().expect("valid settings");
    let _held = pool.get().await.expect("one is for all classes");
    let refused = pool.get_with(Ask::new().max_wait(ms(50))).await;
    assert!(matches!(refused, Err(Error::Timeout(_))), "{refused:?}");
    let check = pool.get_with(Ask::new().priority(Priority::Critical)).await;
    drop(check.expect("what is reserved is free"));
}

#[test]
fn nothing_may_be_reserved_that_leaves_others_without() {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime");
    let _entered = runtime.enter();
    let builder = Autotuned::builder(Memory::new(8, DIAL)).bounds(3..=8);
    let error = builder.reserved(3).build().expect_err("none is left");
    assert!(error.to_string().contains("reserved(3)"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_checkout_that_would_come_too_late_is_refused_at_once() {
    let pool = warm(1).await;
    // Ten a second, so that the fourth in line would come after 400 ms.
    for _ in 0..60 {
        let connection = pool.get().await.expect("free");
        sleep(ms(100)).await;
        drop(connection);
    }
    let _held = pool.get().await.expect("free");
    let mut line = [(); 3].map(|()| Box::pin(pool.get()));
    for waiting in &mut line {
        assert!(poll_immediate(waiting).await.is_none());
    }
    let start = Instant::now();
    let soon = pool.get_with(Ask::new().time_left(ms(300))).await;
    assert!(matches!(soon, Err(Error::Shed(_))), "{soon:?}");
    assert_eq!(start.elapsed(), Duration::ZERO);
    let later = pool.get_with(Ask::new().time_left(ms(500))).await;
    assert!(matches!(later, Err(Error::Timeout(_))), "{later:?}");
    assert_eq!(start.elapsed(), ms(500));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_changed_is_told_by_its_errors_once() {
    let pool = warm(4).await;
    pool.note_sqlstate("40001");
    assert_eq!(
        pool.snapshot().size(),
        4,
        "a serialisation failure is none of ours"
    );
    for _ in 0..5 {
        pool.note_sqlstate("25006");
    }
    assert_eq!(pool.snapshot().size(), 0);
    let resizes = |pool: &Autotuned<Memory>| {
        let decisions = pool.decisions();
        let is_failover = |reason| matches!(reason, Reason::Failover);
        decisions
            .iter()
            .filter(|decision| is_failover(decision.reason()))
            .count()
    };
    assert_eq!(resizes(&pool), 1);
}

/// Eighty users update one row, which serves 200 a second, however many connections; how many were
/// shed, and for how many seconds the verdict was the knee.
async fn one_row(pool: &Autotuned<Memory>) -> (usize, usize) {
    let row = std::sync::Arc::new(tokio::sync::Mutex::new(()));
    let users = (0..80).map(|_| {
        let (pool, row) = (pool.clone(), std::sync::Arc::clone(&row));
        async move {
            let (mut shed, end) = (0, Instant::now() + Duration::from_secs(120));
            while Instant::now() < end {
                match pool.get().await {
                    Ok(_connection) => {
                        let _locked = row.lock().await;
                        sleep(ms(5)).await;
                    }
                    Err(Error::Shed(_)) => {
                        shed += 1;
                        sleep(ms(100)).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            shed
        }
    });
    let (shed, at_knee) = tokio::join!(join_all(users), async {
        let mut seen = 0;
        for _ in 0..120 {
            sleep(Duration::from_secs(1)).await;
            seen += usize::from(matches!(pool.verdict(), Verdict::AtKnee(_)));
        }
        seen
    });
    (shed.into_iter().sum(), at_knee)
}

#[tokio::test(start_paused = true)]
async fn at_the_knee_the_queue_is_shed_from_as_configured() {
    let pool = Autotuned::builder(Memory::new(32, ms(1))).codel(Some(Codel::POOLS));
    let pool = pool.bounds(2..=32).build().expect("valid settings");
    let (shed, at_knee) = one_row(&pool).await;
    assert!(at_knee > 0, "{}", pool.verdict());
    assert!(shed > 100, "{shed} shed in {at_knee} seconds at the knee");
    assert!(pool.snapshot().target() <= 8, "{:?}", pool.snapshot());
}

#[tokio::test(start_paused = true)]
async fn workers_with_patience_are_not_shed_at_the_knee_by_default_nor_any_where_that_is_off() {
    let builder = || Autotuned::builder(Memory::new(32, ms(1))).bounds(2..=32);
    let patient = builder().wait_timeout(Duration::from_secs(60)).build();
    let patient = patient.expect("valid settings");
    let (shed, at_knee) = one_row(&patient).await;
    assert!(at_knee > 0, "{}", patient.verdict());
    assert_eq!(shed, 0);
    let off = builder().codel(None).build().expect("valid settings");
    let (shed, at_knee) = one_row(&off).await;
    assert!(at_knee > 0, "{}", off.verdict());
    assert_eq!(shed, 0);
}

#[tokio::test(start_paused = true)]
async fn trying_whether_fewer_connections_earn_as_much_closes_none() {
    let memory = Memory::new(32, ms(1));
    let builder = Autotuned::builder(memory.clone()).bounds(2..=32);
    let pool = builder.build().expect("valid settings");
    // One row that all update, after something that any number can do at once.
    let row = std::sync::Arc::new(tokio::sync::Mutex::new(()));
    let users = (0..40).map(|_| {
        let (pool, row) = (pool.clone(), std::sync::Arc::clone(&row));
        async move {
            let end = Instant::now() + Duration::from_secs(60);
            while Instant::now() < end {
                if let Ok(_connection) = pool.get().await {
                    sleep(ms(35)).await;
                    let _locked = row.lock().await;
                    sleep(ms(5)).await;
                } else {
                    sleep(ms(100)).await;
                }
            }
        }
    });
    join_all(users).await;
    let decisions = pool.decisions();
    assert!(
        decisions
            .iter()
            .any(|decision| decision.reason() == Reason::Probing)
    );
    let grown = decisions
        .iter()
        .map(|decision| decision.to().saturating_sub(decision.from()));
    let grown: usize = grown.sum();
    assert!(
        memory.opened() <= 4 + grown,
        "{} opened for a start of 4 and {grown} more: {decisions:#?}",
        memory.opened()
    );
}

/// A file that stays in memory.
#[derive(Clone, Default)]
struct Buffer(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_of_decisions_replays_to_the_same_decisions_and_an_edited_one_does_not() {
    let buffer = Buffer::default();
    let builder = Autotuned::builder(Memory::new(32, DIAL)).bounds(2..=32);
    let builder = builder.name("orders").decision_log(buffer.clone());
    let pool = builder.build().expect("valid settings");
    let users = (0..60).map(|_| async {
        for _ in 0..200 {
            let connection = pool.get().await.expect("in time");
            sleep(ms(20)).await;
            drop(connection);
            sleep(ms(7)).await;
        }
    });
    join_all(users).await;
    pool.failover();
    pool.set_bounds(3..=20).expect("possible");
    sleep(Duration::from_secs(30)).await;
    let kept = pool.decisions();
    drop(pool);

    let bytes = buffer.0.lock().expect("no panic").clone();
    let log = DecisionLog::read(&bytes[..]).expect("a log");
    assert_eq!(log.pool(), "orders");
    let replayed = log.replay().expect("the same decisions");
    let resizes = |decisions: &[Decision]| -> Vec<_> {
        let resizes = decisions.iter().filter(|decision| decision.is_resize());
        resizes
            .map(|decision| (decision.from(), decision.to(), decision.reason()))
            .collect()
    };
    assert!(resizes(&kept).len() > 3, "{kept:?}");
    assert_eq!(resizes(&replayed), resizes(&kept));

    let text = String::from_utf8(bytes).expect("JSON");
    let cut_off = &text[..text.len() - 20];
    DecisionLog::read(cut_off.as_bytes()).expect("a process that was killed");
    let edited = text.replace("\"reason\":\"failover\"", "\"reason\":\"steady\"");
    let edited = DecisionLog::read(edited.as_bytes()).expect("still a log");
    let error = edited.replay().expect_err("another reason").to_string();
    assert!(error.contains("steady"), "{error}");
    let headless: String = text.lines().skip(1).collect();
    let error = DecisionLog::read(headless.as_bytes()).expect_err("no start");
    assert!(
        error.to_string().starts_with("line 1 of the decision log"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_limiter_upstream_sheds_what_would_only_wait_for_a_connection() {
    let pool = warm(2).await;
    let pressed = pool.clone();
    let limiter = tower_capacity::Limiter::builder()
        .downstream(move || pressed.pressure())
        .build()
        .expect("valid settings");
    let work = async || {
        let mut admission = limiter.admit().await.map_err(|refused| refused.reason())?;
        let connection = pool.get().await.expect("in time");
        sleep(ms(100)).await;
        drop(connection);
        admission.complete(tower_capacity::Outcome::Success);
        Ok(())
    };
    // Two hold a connection and two wait for the next: a fifth would wait behind them.
    let results = join_all((0..5).map(|_| work())).await;
    let shed = RefusedReason::Downstream;
    assert_eq!(results, [Ok(()), Ok(()), Ok(()), Ok(()), Err(shed)]);
}

#[tokio::test(start_paused = true)]
async fn a_limiter_upstream_sheds_nothing_while_the_pool_opens_more() {
    let pool = Autotuned::builder(Memory::new(20, DIAL))
        .bounds(1..=20)
        .build()
        .expect("valid settings");
    let pressed = pool.clone();
    let limiter = tower_capacity::Limiter::builder()
        .downstream(move || pressed.pressure())
        .build()
        .expect("valid settings");
    // A process that has just started has one connection, and is to have ten.
    let work = async || {
        let mut admission = limiter.admit().await.map_err(|refused| refused.reason())?;
        let connection = pool.get().await.expect("in time");
        sleep(ms(100)).await;
        drop(connection);
        admission.complete(tower_capacity::Outcome::Success);
        Ok(())
    };
    let results = join_all((0..10).map(|_| work())).await;
    let shed: Vec<RefusedReason> = results.into_iter().filter_map(Result::err).collect();
    assert_eq!(shed, []);
}
