//! Processes that share the connections of one Postgres, by its own count of their sessions.

mod fleet;
mod redis;
mod scenarios;

use std::time::Duration;

use pool_autotune::adapter::bb8::Bb8;
use pool_autotune::fleet::{Budget, BudgetError, Config, MIGRATION, grants};
use pool_autotune::tuner::Verdict;
use pool_autotune::{Autotuned, Mode};
use private_servers::PgBouncer;
use sqlx_0_9::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::time::sleep;
use tokio_postgres::NoTls;

use self::fleet::{Process, RealProcess, SECOND, Server, TTL, run_as_process, until};
use self::scenarios::of_20;

#[tokio::test]
#[ignore = "run by other tests, as a process of its own"]
async fn one_process_of_a_fleet() {
    run_as_process().await;
}

macro_rules! on_every_store {
    ($($scenario:ident),* $(,)?) => {
        mod kept_in_postgres {
            use super::*;

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $scenario() {
                scenarios::$scenario(Server::installed(100).await).await;
            })*
        }

        mod kept_in_redis {
            use super::*;

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $scenario() {
                scenarios::$scenario(Server::with_redis(100).await).await;
            })*
        }
    };
}

on_every_store![
    a_process_that_joins_gets_its_part_and_the_total_is_never_exceeded,
    what_satisfied_processes_hold_is_given_to_one_that_joins_before_their_next_beats,
    what_a_killed_process_had_is_used_by_others_once_its_lease_has_ended,
    a_stopped_process_keeps_its_sessions_counted_and_takes_none_when_it_wakes,
    after_a_restart_of_the_server_rights_are_raised_when_it_has_settled,
    a_server_that_comes_back_with_fewer_connections_is_given_no_more_than_it_has,
    the_limit_of_the_role_is_followed_down_and_up,
    an_extra_connection_takes_its_place_within_the_budget,
    what_is_scarce_is_divided_by_weight,
    a_rollout_of_a_quarter_more_leaves_every_process_its_part,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_shows_what_kind_each_process_is() {
    let server = Server::installed(100).await;
    let _web = server
        .join(|config| of_20(config).weight(3.0).label("web"))
        .await;
    let _worker = server.join(|config| of_20(config).label("worker")).await;
    let label = "select label from pool_autotune.lease order by weight";
    let rows = server.admin.query(label, &[]).await.expect("rows");
    let labels: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(labels, ["worker", "web"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_table_is_locked_requests_go_on_and_then_beats_do() {
    let server = Server::installed(100).await;
    let watch = server.watch().await;
    let mut process = server.join(of_20).await;
    process.load(10);
    until(10 * SECOND, "it serves", || process.size() >= 10).await;
    server
        .sql("begin; select 1 from pool_autotune.budget for update")
        .await;
    sleep(2 * TTL).await;
    let lost = process.budget.snapshot();
    assert!(
        matches!(lost.error(), Some(BudgetError::Unreachable(_))),
        "{lost:?}"
    );
    assert_eq!(lost.lease_left(), None);
    assert!(matches!(process.pool.verdict(), Verdict::BudgetLost(_)));
    let (size, done) = (process.size(), process.done());
    assert!(size >= 10, "{size}");
    sleep(SECOND).await;
    assert!(process.done() > done);
    server.sql("rollback").await;
    let is_granted = || process.budget.snapshot().lease_left().is_some();
    until(10 * SECOND, "it beats again", is_granted).await;
    assert_eq!(process.failed(), 0);
    assert!(watch.most() <= 20, "{}", watch.most());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_table_costs_no_request_and_a_new_one_settles() {
    let server = Server::installed(100).await;
    let watch = server.watch().await;
    let mut one = server.join(of_20).await;
    let mut two = server.join(of_20).await;
    one.load(20);
    two.load(20);
    until(15 * SECOND, "both serve", || {
        one.size() == 8 && two.size() == 8
    })
    .await;
    server.sql("drop schema pool_autotune cascade").await;
    let is_noticed = || {
        matches!(
            one.budget.snapshot().error(),
            Some(BudgetError::NotInstalled(_))
        )
    };
    until(10 * SECOND, "it is noticed", is_noticed).await;
    sleep(TTL).await;
    // One that joins right after the new table is there waits until the others have registered.
    let install = format!("{}; {}", MIGRATION, grants("app"));
    server.sql(&install).await;
    let mut three = server.join(of_20).await;
    three.load(20);
    let waits = || matches!(three.pool.verdict(), Verdict::BudgetLost(_));
    until(TTL, "it waits for the new table to settle", waits).await;
    let all_serve = || {
        let granted = |process: &Process| process.budget.snapshot().lease_left().is_some();
        three.size() >= 4 && granted(&one) && granted(&two)
    };
    until(30 * SECOND, "all three serve", all_serve).await;
    assert!(watch.most() <= 20, "{}", watch.most());
    assert_eq!((one.failed(), two.failed()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_server_costs_no_request_that_reads() {
    let server = Server::installed(100).await;
    let mut process = server.join(of_20).await;
    process.load(10);
    until(10 * SECOND, "it serves", || process.size() >= 10).await;
    server
        .sql("alter system set default_transaction_read_only = on")
        .await;
    server.sql("select pg_reload_conf()").await;
    let is_noticed = || {
        matches!(
            process.budget.snapshot().error(),
            Some(BudgetError::ReadOnly(_))
        )
    };
    until(10 * SECOND, "it is noticed", is_noticed).await;
    sleep(TTL).await;
    assert_eq!(process.failed(), 0);
    assert!(process.size() >= 10);
    server.sql("set default_transaction_read_only = off").await;
    server
        .sql("alter system set default_transaction_read_only = off")
        .await;
    server.sql("select pg_reload_conf()").await;
    let is_well = || process.budget.snapshot().error().is_none();
    until(10 * SECOND, "it beats again", is_well).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floors_above_the_total_are_reported_and_not_exceeded() {
    let server = Server::installed(100).await;
    let watch = server.watch().await;
    let set = |config: Config| config.total(8).reserve(2).floor(3);
    let mut one = server.join(set).await;
    one.load(10);
    until(10 * SECOND, "it serves", || one.size() >= 3).await;
    let mut two = server.join(set).await;
    two.load(10);
    let is_reported = || {
        let verdict = two.pool.verdict();
        let what = Verdict::BudgetTooSmall {
            members: 2,
            floors: 8,
            total: 6,
        };
        verdict == what && one.pool.verdict() == what
    };
    until(15 * SECOND, "it is reported", is_reported).await;
    sleep(2 * TTL).await;
    assert!(watch.most() <= 8, "{}", watch.most());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_in_front_is_found_out() {
    let server = Server::installed(100).await;
    let settings = [("ignore_startup_parameters", "extra_float_digits,options")];
    let ignoring = PgBouncer::start_with(&server.postgres, &settings).await;
    let refusing = PgBouncer::start(&server.postgres).await;
    for bouncer in [ignoring, refusing] {
        let bouncer = bouncer.expect("PgBouncer starts");
        let config = bouncer.url().parse().expect("a valid url");
        let started = Budget::postgres(config).start().await;
        let error = started.expect_err("a pooler is in between");
        assert!(matches!(error, BudgetError::Pooler(_)), "{error}");
    }
}

#[tokio::test]
async fn what_is_wrong_at_the_start_is_named() {
    let server = Server::start(100).await;
    let start = |config: Config| async { config.start().await.expect_err("it cannot start") };
    let budget = || Budget::postgres(server.config());
    let error = start(budget()).await;
    assert!(matches!(error, BudgetError::NotInstalled(_)), "{error}");
    server
        .sql("revoke create on database postgres from app")
        .await;
    let error = start(budget().create(true)).await;
    assert!(matches!(error, BudgetError::MissingRights(_)), "{error}");
    server.sql(MIGRATION).await;
    let error = start(budget()).await;
    assert!(matches!(error, BudgetError::MissingRights(_)), "{error}");
    server.sql(&grants("app")).await;
    let start_well = budget().start().await;
    start_well.expect("it has the right to");
    server
        .sql("update pool_autotune.budget set proto = 2")
        .await;
    let error = start(budget()).await;
    assert!(matches!(error, BudgetError::WrongVersion(_)), "{error}");
    assert!(error.to_string().contains("version 2"), "{error}");
    let nowhere = "postgres://app@127.0.0.1:1/postgres"
        .parse()
        .expect("a valid url");
    let error = start(Budget::postgres(nowhere)).await;
    assert!(matches!(error, BudgetError::Unreachable(_)), "{error}");

    let settings = [
        (budget().weight(0.0), "weight is 0"),
        (budget().weight(f64::NAN), "weight is NaN"),
        (budget().total(0), "total is 0"),
        (budget().total(5).reserve(5), "reserve is 5 of a total of 5"),
        (budget().total(5).floor(5), "floor is 5"),
        (budget().ttl(Duration::ZERO), "ttl is 0ns"),
        (budget().reap_after(SECOND), "reap_after is 1s"),
    ];
    for (config, named) in settings {
        let error = config.spawn().expect_err("a wrong setting").to_string();
        assert!(error.contains(named), "{error}");
    }
    let error = Budget::fixed(3, 4)
        .expect_err("less than one each")
        .to_string();
    assert!(error.contains("3 connections among 4 processes"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_processes_that_create_the_table_at_once_create_one() {
    let server = Server::start(100).await;
    let start = || {
        Budget::postgres(server.config())
            .create(true)
            .reserve(10)
            .ttl(TTL)
            .start()
    };
    let started = futures_util::future::join_all((0..8).map(|_| start())).await;
    for budget in started {
        budget.expect("it joins");
    }
    let rows = server
        .admin
        .query("select 1 from pool_autotune.budget", &[])
        .await;
    assert_eq!(rows.expect("rows").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_of_three_kinds_in_one_process_share_its_part() {
    let server = Server::installed(100).await;
    let watch = server.watch().await;
    let mut process = server.join(of_20).await;
    let mut config = server.config();
    process.budget.tag(&mut config);
    let manager = bb8_postgres::PostgresConnectionManager::new(config, NoTls);
    let pool = Bb8::new(bb8::Pool::builder().max_size(60), manager);
    let bb8 = Autotuned::builder(pool)
        .budget(&process.budget)
        .build()
        .expect("valid settings");
    let options: PgConnectOptions = server.url().parse().expect("a valid url");
    let options = options
        .application_name(process.budget.application_name())
        .options(Budget::session_settings());
    let pool = PgPoolOptions::new()
        .max_connections(60)
        .connect_lazy_with(options);
    let sqlx = Autotuned::builder(pool)
        .budget(&process.budget)
        .build()
        .expect("valid settings");
    process.load(20);
    let users = (0..20).map(|_| {
        let (bb8, sqlx) = (bb8.clone(), sqlx.clone());
        tokio::spawn(async move {
            for _ in 0..100 {
                let client = bb8.get().await.expect("bb8 serves");
                client
                    .query("select pg_sleep(0.02)", &[])
                    .await
                    .expect("a row");
                drop(client);
                let mut client = sqlx.get().await.expect("sqlx serves");
                let query = sqlx_0_9::query("select pg_sleep(0.02)");
                query.execute(&mut **client).await.expect("a row");
            }
        })
    });
    for user in users.collect::<Vec<_>>() {
        user.await.expect("no error");
    }
    let sizes = [
        process.size(),
        bb8.snapshot().size(),
        sqlx.snapshot().size(),
    ];
    assert!(sizes.iter().all(|&size| size >= 2), "{sizes:?}");
    let budget = process.budget.snapshot();
    assert_eq!(budget.error(), None);
    assert!(watch.most() <= 20, "{}", watch.most());
    assert!(watch.now() >= 16, "{} {sizes:?} {budget:?}", watch.now());
    assert_eq!(process.failed(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_the_tag_are_found_out() {
    let server = Server::installed(100).await;
    let config = Budget::postgres(server.config()).ttl(TTL);
    let budget = config.start().await.expect("it joins");
    let manager = deadpool_postgres::Manager::new(server.config(), NoTls);
    let pool = deadpool_postgres::Pool::builder(manager)
        .max_size(9)
        .build();
    let pool = Autotuned::builder(pool.expect("valid"))
        .budget(&budget)
        .build();
    let pool = pool.expect("valid settings");
    let client = pool.get().await.expect("it opens");
    let is_reported = || {
        matches!(
            budget.snapshot().error(),
            Some(BudgetError::Untagged { open: 1 })
        )
    };
    until(15 * SECOND, "it is reported", is_reported).await;
    drop(client);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_switch_lets_pools_open_what_they_want_and_binds_them_again() {
    let server = Server::installed(100).await;
    let watch = server.watch().await;
    let mut process = server.join(of_20).await;
    process.load(30);
    until(10 * SECOND, "it is bound", || process.size() == 17).await;
    process.budget.set_mode(Mode::Recommend);
    until(15 * SECOND, "it is not", || process.size() >= 24).await;
    process.budget.set_mode(Mode::Enforce);
    until(15 * SECOND, "it is bound again", || watch.now() <= 20).await;
    assert_eq!(process.failed(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_server_has_no_place_a_process_asks_for_no_more_than_it_has() {
    let server = Server::installed(100).await;
    let mut process = server.join(of_20).await;
    process.load(5);
    until(10 * SECOND, "it serves", || process.size() >= 5).await;
    assert!(process.budget.snapshot().granted() > process.budget.snapshot().open());
    process.pool.note_sqlstate("53300");
    let now = process.budget.snapshot();
    assert!(now.granted() <= now.open(), "{now:?}");
    sleep(2 * SECOND).await;
    let now = process.budget.snapshot();
    assert!(now.granted() <= now.open().max(2), "{now:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fixed_part_is_kept_to_without_a_store() {
    let server = Server::start(100).await;
    let watch = server.watch().await;
    let budget = Budget::fixed(20, 4).expect("five each");
    let mut process = Process::with(server.config(), budget);
    process.load(30);
    until(10 * SECOND, "it has all of it", || process.size() == 5).await;
    sleep(2 * SECOND).await;
    assert_eq!(watch.most(), 5);
    assert_eq!(process.failed(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_leaves_gives_its_rights_back_at_once() {
    let server = Server::installed(100).await;
    let one = server.join(of_20).await;
    one.pool.prewarm(4).await.expect("they open");
    assert!(one.pool.drain(SECOND).await);
    assert!(one.budget.leave(5 * SECOND).await);
    let counted = "select cap from pool_autotune.lease";
    let row = server.admin.query_one(counted, &[]).await.expect("a row");
    assert_eq!(row.get::<_, i32>(0), 1, "the connection that beat");
    assert_eq!(one.budget.snapshot().granted(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_processes_had_that_have_left_is_not_counted_any_more() {
    let server = Server::installed(100).await;
    let mut old = Vec::new();
    for _ in 0..4 {
        let mut process = server.join(of_20).await;
        process.load(8);
        old.push(process);
    }
    let watch = server.watch().await;
    until(20 * SECOND, "the old ones use all there is", || {
        watch.now() >= 17
    })
    .await;
    for process in old {
        process.stop().await;
    }
    // The connections that beat may be shown for a moment longer.
    let counted = "select coalesce(sum(cap), 0)::int from pool_autotune.lease";
    let row = server.admin.query_one(counted, &[]).await.expect("a row");
    assert!(row.get::<_, i32>(0) <= 4, "{}", row.get::<_, i32>(0));
    let mut new = server.join(of_20).await;
    new.load(17);
    until(20 * SECOND, "the new one uses all there is", || {
        watch.now() >= 17
    })
    .await;
    assert!(watch.most() <= 20, "{}", watch.most());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_an_operator_ends_are_replaced_within_the_total() {
    let server = Server::installed(100).await;
    let watch = server.watch().await;
    let start = || server.try_join(of_20);
    let mut one = start().await.expect("it joins");
    let mut two = start().await.expect("it joins");
    one.load(20);
    two.load(20);
    until(15 * SECOND, "both serve", || watch.now() == 18).await;
    for _ in 0..5 {
        // The connections that beat are among them.
        let ended = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'";
        server.sql(ended).await;
        sleep(TTL / 2).await;
    }
    until(20 * SECOND, "both serve again", || watch.now() == 18).await;
    assert!(watch.most() <= 20, "{}", watch.most());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sessions_of_a_killed_process_end_while_their_queries_run() {
    let server = Server::installed(100).await;
    let watch = server.watch().await;
    let process = RealProcess::start_with(&server, 8, 60.0);
    until(20 * SECOND, "all are busy", || watch.now() >= 9).await;
    process.signal("KILL");
    // The connection that beats is idle, and ends at once.
    until(3 * SECOND, "all have ended", || watch.now() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sessions_of_a_process_that_stands_still_are_ended_where_that_is_asked_for() {
    let server = Server::installed(100).await;
    server.sql("alter role app connection limit 20").await;
    let watch = server.watch().await;
    let one = RealProcess::start(&server, 20);
    let mut other = server.join(|config| config.reap_after(2 * TTL)).await;
    other.load(40);
    let both_have_half = || watch.now() >= 17 && other.size() <= 9;
    until(20 * SECOND, "both have half", both_have_half).await;
    one.signal("STOP");
    until(30 * SECOND, "the other has all", || other.size() >= 15).await;
    one.signal("CONT");
    until(30 * SECOND, "both have half again", both_have_half).await;
    assert!(watch.most() <= 20, "{}", watch.most());
    assert_eq!(other.failed(), 0);
}
