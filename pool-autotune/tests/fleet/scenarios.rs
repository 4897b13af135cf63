//! What has to hold whatever store keeps the budget.

use pool_autotune::fleet::Config;
use pool_autotune::tuner::Verdict;
use tokio::time::sleep;

use crate::fleet::{Process, RealProcess, SECOND, Server, TTL, connect, until};

pub(crate) fn of_20(config: Config) -> Config {
    config.total(20).reserve(2)
}

pub(crate) async fn a_process_that_joins_gets_its_part_and_the_total_is_never_exceeded(
    server: Server,
) {
    let watch = server.watch().await;
    let mut first = server.join(of_20).await;
    first.load(40);
    until(10 * SECOND, "one process uses all", || first.size() == 17).await;
    let mut second = server.join(of_20).await;
    second.load(40);
    let both_have_half = || first.size() == 8 && second.size() == 8;
    until(15 * SECOND, "both have half", both_have_half).await;
    let is_bound = || {
        matches!(
            first.pool.verdict(),
            Verdict::BudgetBound | Verdict::AtKnee(_)
        )
    };
    until(5 * SECOND, "it is bound", is_bound).await;
    // The hot spot moves.
    first.load(0);
    let has_more = || second.size() >= 14;
    until(
        10 * SECOND,
        "the busy one has what the idle one had",
        has_more,
    )
    .await;
    assert!(watch.most() <= 20, "{}", watch.most());
    assert_eq!((first.failed(), second.failed()), (0, 0));
    let now = second.pool.snapshot();
    let budget = now.budget().expect("it has one");
    assert_eq!((budget.members(), budget.total()), (2, 20));
}

pub(crate) async fn what_satisfied_processes_hold_is_given_to_one_that_joins_before_their_next_beats(
    server: Server,
) {
    let watch = server.watch().await;
    // Each beats every four to six seconds by itself, and holds rights that it does not need.
    let set = |config: Config| config.total(38).reserve(2).ttl(15 * SECOND);
    let mut satisfied = Vec::new();
    for _ in 0..10 {
        satisfied.push(server.join(set).await);
    }
    let is_full = || {
        let mut counted = satisfied.iter().map(|p| p.budget.snapshot().counted());
        counted.any(|counted| counted >= 36)
    };
    until(20 * SECOND, "all rights are held", is_full).await;
    for _ in 0..3 {
        let mut one = server.join(set).await;
        one.load(3);
        let took = until(30 * SECOND, "it is served", || one.size() >= 3).await;
        println!("served after {took:?}");
        assert!(took <= 4 * SECOND, "{took:?}");
        assert_eq!(one.failed(), 0);
        satisfied.push(one);
    }
    assert!(watch.most() <= 38, "{}", watch.most());
}

pub(crate) async fn what_a_killed_process_had_is_used_by_others_once_its_lease_has_ended(
    server: Server,
) {
    server.sql("alter role app connection limit 20").await;
    let watch = server.watch().await;
    let (one, _two) = (
        RealProcess::start(&server, 20),
        RealProcess::start(&server, 20),
    );
    let mut third = server.join(|config| config).await;
    third.load(20);
    until(20 * SECOND, "three have a part each", || {
        watch.now() >= 17 && third.size() <= 6
    })
    .await;
    one.signal("KILL");
    until(15 * SECOND, "two have half each", || third.size() >= 7).await;
    assert!(watch.most() <= 20, "{}", watch.most());
    assert_eq!(third.failed(), 0);
}

pub(crate) async fn a_stopped_process_keeps_its_sessions_counted_and_takes_none_when_it_wakes(
    server: Server,
) {
    server.sql("alter role app connection limit 20").await;
    let watch = server.watch().await;
    let one = RealProcess::start(&server, 20);
    let mut other = server.join(|config| config).await;
    other.load(40);
    until(20 * SECOND, "both have half", || {
        watch.now() >= 17 && other.size() <= 9
    })
    .await;
    one.signal("STOP");
    sleep(3 * TTL).await;
    // Its sessions are there, and it could wake at any time.
    assert!(
        watch.now() <= 20 && other.size() <= 10,
        "{} of {}",
        other.size(),
        watch.now()
    );
    one.signal("CONT");
    sleep(3 * TTL).await;
    assert!(watch.most() <= 20, "{}", watch.most());
    let is_well = || watch.now() >= 17 && other.budget.snapshot().error().is_none();
    until(10 * SECOND, "both have half again", is_well).await;
    assert_eq!(other.failed(), 0);
}

pub(crate) async fn after_a_restart_of_the_server_rights_are_raised_when_it_has_settled(
    mut server: Server,
) {
    let mut one = server.join(of_20).await;
    let mut two = server.join(of_20).await;
    one.load(20);
    two.load(20);
    until(15 * SECOND, "both serve", || {
        one.size() == 8 && two.size() == 8
    })
    .await;
    server.postgres.kill();
    server.postgres.restart().await.expect("Postgres starts");
    let watch = server.watch().await;
    let serve_again = || watch.now() >= 17;
    until(30 * SECOND, "both serve again", serve_again).await;
    sleep(2 * TTL).await;
    assert!(watch.most() <= 20, "{}", watch.most());
}

pub(crate) async fn a_server_that_comes_back_with_fewer_connections_is_given_no_more_than_it_has(
    mut server: Server,
) {
    let set = |config: Config| config.ttl(15 * SECOND);
    let mut one = server.join(set).await;
    let mut two = server.join(set).await;
    one.load(40);
    two.load(40);
    let both_serve = || one.size() >= 30 && two.size() >= 30;
    until(30 * SECOND, "both serve", both_serve).await;
    let fewer = [("max_connections", "40")];
    let restarted = server.postgres.restart_with(&fewer).await;
    restarted.expect("Postgres starts");
    let watch = server.watch().await;
    until(15 * SECOND, "both serve again", || watch.now() >= 20).await;
    sleep(3 * SECOND).await;
    // Less three for superusers, a twentieth, and the session that looks on.
    assert!(watch.most() <= 34, "{}", watch.most());
}

pub(crate) async fn the_limit_of_the_role_is_followed_down_and_up(server: Server) {
    server.sql("alter role app connection limit 30").await;
    let watch = server.watch().await;
    let set = |config: Config| config.reserve(2);
    let mut one = server.join(set).await;
    let mut two = server.join(set).await;
    one.load(40);
    two.load(40);
    until(20 * SECOND, "both serve", || watch.now() == 28).await;
    server.sql("alter role app connection limit 12").await;
    until(15 * SECOND, "there are fewer", || watch.now() <= 12).await;
    server.sql("alter role app connection limit 24").await;
    until(15 * SECOND, "there are more", || watch.now() >= 20).await;
    assert!(watch.most() <= 30, "{}", watch.most());
    assert_eq!((one.failed(), two.failed()), (0, 0));
}

pub(crate) async fn an_extra_connection_takes_its_place_within_the_budget(server: Server) {
    let watch = server.watch().await;
    let set = |config: Config| config.total(8).reserve(2).extra(1);
    let mut process = server.join(set).await;
    process.load(20);
    until(10 * SECOND, "the pool has the rest", || process.size() == 4).await;
    let mut place = process.budget.place().await;
    let mut config = server.config();
    process.budget.tag(&mut config);
    let client = connect(&config).await;
    place.opened();
    client
        .execute("listen orders", &[])
        .await
        .expect("it listens");
    sleep(TTL).await;
    assert_eq!(watch.now(), 6);
    assert!(watch.most() <= 8, "{}", watch.most());
}

pub(crate) async fn what_is_scarce_is_divided_by_weight(server: Server) {
    let watch = server.watch().await;
    let heavy = |config: Config| of_20(config).weight(3.0).label("web");
    let light = |config: Config| of_20(config).label("worker");
    let mut web = server.join(heavy).await;
    let mut worker = server.join(light).await;
    web.load(40);
    worker.load(40);
    // Of 18, thirteen or fourteen and the rest, with the connections that beat.
    let is_divided = || (12..=13).contains(&web.size()) && (3..=4).contains(&worker.size());
    until(20 * SECOND, "three to one", is_divided).await;
    assert!(watch.most() <= 20, "{}", watch.most());
}

pub(crate) async fn a_rollout_of_a_quarter_more_leaves_every_process_its_part(server: Server) {
    let watch = server.watch().await;
    let set = |config: Config| config.total(50).reserve(2);
    let mut processes = Vec::new();
    for _ in 0..8 {
        let mut process = server.join(set).await;
        process.load(8);
        processes.push(process);
    }
    until(20 * SECOND, "all is used", || watch.now() >= 46).await;
    for _ in 0..2 {
        let mut process = server.join(set).await;
        process.load(8);
        processes.push(process);
    }
    // 48 among ten.
    let all_serve = || {
        processes
            .iter()
            .all(|process| (3..=4).contains(&process.size()))
    };
    until(20 * SECOND, "each has its part", all_serve).await;
    assert!(watch.most() <= 50, "{}", watch.most());
    let failed: u64 = processes.iter().map(Process::failed).sum();
    assert_eq!(failed, 0);
}
