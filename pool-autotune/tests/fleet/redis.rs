//! What is particular to a budget that is kept in a Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use pool_autotune::fleet::{Budget, BudgetError, Config};
use pool_autotune::tuner::Verdict;
use private_servers::{PgBouncer, Redis};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::fleet::{KEY, Process, SECOND, Server, TTL, Watch, until};
use crate::scenarios::of_20;

/// Two processes that use all there is.
async fn two_at_work(server: &Server) -> (Process, Process) {
    let mut one = server.join(of_20).await;
    let mut two = server.join(of_20).await;
    one.load(20);
    two.load(20);
    until(20 * SECOND, "both serve", || {
        one.size() == 8 && two.size() == 8
    })
    .await;
    (one, two)
}

/// A third joins the two: it gets its part when the store has settled, and no request is lost.
async fn settles_with_a_third(server: &Server, watch: &Watch, one: &Process, two: &Process) {
    let mut three = server.join(of_20).await;
    three.load(20);
    let waits = || matches!(three.pool.verdict(), Verdict::BudgetLost(_));
    until(TTL, "it waits for the store to settle", waits).await;
    let all_serve = || {
        let granted = |process: &Process| process.budget.snapshot().lease_left().is_some();
        three.size() >= 4 && granted(one) && granted(two)
    };
    until(30 * SECOND, "all three serve", all_serve).await;
    assert!(watch.most() <= 20, "{}", watch.most());
    assert_eq!((one.failed(), two.failed()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_forgets_all_settles_and_costs_no_request() {
    let server = Server::with_redis(100).await;
    let watch = server.watch().await;
    let (one, two) = two_at_work(&server).await;
    let redis = server.redis.as_ref().expect("it has one");
    redis.ask(&["FLUSHALL"]).await.expect("it is empty");
    settles_with_a_third(&server, &watch, &one, &two).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_forgets_all_while_postgres_is_down_takes_no_rights() {
    let mut server = Server::with_redis(100).await;
    server.sql("alter role app connection limit 20").await;
    // What there is to share is what Postgres says.
    let set = |config: Config| config.reserve(2);
    let mut one = server.join(set).await;
    let mut two = server.join(set).await;
    one.load(20);
    two.load(20);
    until(20 * SECOND, "both serve", || {
        one.size() == 8 && two.size() == 8
    })
    .await;
    server.postgres.kill();
    let redis = server.redis.as_ref().expect("it has one");
    redis.ask(&["FLUSHALL"]).await.expect("it is empty");
    let least = || {
        let granted = |process: &Process| {
            let budget = process.budget.snapshot();
            budget.lease_left().map(|_| budget.granted())
        };
        [&one, &two].into_iter().filter_map(granted).min()
    };
    // Beats are taken meanwhile, of processes that cannot count.
    for _ in 0..100 {
        sleep(TTL / 150).await;
        assert!(least() >= Some(8), "{:?}", least());
    }
    server.postgres.restart().await.expect("Postgres starts");
    let serve_again = || one.size() == 8 && two.size() == 8;
    until(30 * SECOND, "both serve again", serve_again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_gone_for_long_costs_no_request_and_settles_when_it_is_back() {
    let mut server = Server::with_redis(100).await;
    let watch = server.watch().await;
    let (one, two) = two_at_work(&server).await;
    server.redis.as_mut().expect("it has one").kill();
    sleep(2 * TTL).await;
    let lost = one.budget.snapshot();
    assert!(
        matches!(lost.error(), Some(BudgetError::Unreachable(_))),
        "{lost:?}"
    );
    assert_eq!(lost.lease_left(), None);
    let done = one.done();
    assert!(one.size() >= 8 && two.size() >= 8);
    sleep(SECOND).await;
    assert!(one.done() > done);
    let redis = server.redis.as_mut().expect("it has one");
    redis.restart().await.expect("Redis starts");
    settles_with_a_third(&server, &watch, &one, &two).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_stands_still_past_every_lease_costs_no_request() {
    let server = Server::with_redis(100).await;
    let watch = server.watch().await;
    let (one, two) = two_at_work(&server).await;
    let redis = server.redis.as_ref().expect("it has one");
    redis.suspend();
    sleep(3 * TTL).await;
    assert_eq!(one.budget.snapshot().lease_left(), None);
    redis.resume();
    let granted = |process: &Process| process.budget.snapshot().lease_left().is_some();
    until(20 * SECOND, "both beat again", || {
        granted(&one) && granted(&two)
    })
    .await;
    sleep(TTL).await;
    assert!(watch.most() <= 20, "{}", watch.most());
    assert!(watch.now() >= 17, "{}", watch.now());
    assert_eq!((one.failed(), two.failed()), (0, 0));
}

/// Forwards to one port, and later to another.
struct Switch {
    port: u16,
    to: Arc<AtomicU16>,
    cut: Arc<Notify>,
}

impl Switch {
    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (to, cut) = (Arc::new(AtomicU16::new(to)), Arc::new(Notify::new()));
        let (its_to, its_cut) = (Arc::clone(&to), Arc::clone(&cut));
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let (to, cut) = (its_to.load(Ordering::SeqCst), Arc::clone(&its_cut));
                tokio::spawn(async move {
                    if let Ok(mut to) = TcpStream::connect(("127.0.0.1", to)).await {
                        tokio::select! {
                            _ = copy_bidirectional(&mut from, &mut to) => {}
                            () = cut.notified() => {}
                        }
                    }
                });
            }
        });
        Self { port, to, cut }
    }

    fn to(&self, port: u16) {
        self.to.store(port, Ordering::SeqCst);
        self.cut.notify_waiters();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_missed_writes_settles_when_it_takes_over() {
    let mut server = Server::with_redis(100).await;
    let watch = server.watch().await;
    let port = server.redis.as_ref().expect("it has one").port();
    let switch = Switch::start(port).await;
    server.redis_url = Some(format!("redis://127.0.0.1:{}", switch.port));
    let replica = Redis::start().await.expect("Redis starts");
    let follow = ["REPLICAOF", "127.0.0.1", &port.to_string()];
    replica.ask(&follow).await.expect("it follows");
    let mut one = server.join(of_20).await;
    one.load(20);
    until(20 * SECOND, "it has all", || one.size() == 17).await;
    until_copied(&replica).await;
    // What the second process is granted, and the first gives up, the replica does not hear of.
    replica
        .ask(&["REPLICAOF", "NO", "ONE"])
        .await
        .expect("it leads");
    let mut two = server.join(of_20).await;
    two.load(20);
    until(20 * SECOND, "both serve", || {
        one.size() == 8 && two.size() == 8
    })
    .await;
    switch.to(replica.port());
    settles_with_a_third(&server, &watch, &one, &two).await;
}

async fn until_copied(replica: &Redis) {
    while replica.ask(&["EXISTS", KEY]).await.expect("it replies") != "1" {
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_cannot_ask_postgres_share_a_total_that_is_set() {
    let server = Server::with_redis(100).await;
    let watch = server.watch().await;
    let client = ::redis::Client::open(server.redis_url.as_deref().expect("it has one"));
    let client = client.expect("a valid url");
    let join = async || {
        let config = Budget::redis_uncounted(client.clone(), KEY);
        let budget = config.total(18).reserve(0).ttl(TTL).start().await;
        Process::with(server.config(), budget.expect("it joins"))
    };
    let mut one = join().await;
    one.load(20);
    until(20 * SECOND, "one has all", || one.size() == 18).await;
    let mut two = join().await;
    two.load(20);
    let both_have_half = || one.size() == 9 && two.size() == 9;
    until(20 * SECOND, "both have half", both_have_half).await;
    drop(two);
    // More than its half, whatever its tuner makes of the rest.
    let has_more = || one.size() >= 12;
    until(30 * SECOND, "what is gone is used", has_more).await;
    assert!(watch.most() <= 18, "{}", watch.most());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_redis_is_named() {
    let server = Server::with_redis(100).await;
    let url = server.redis_url.clone().expect("it has one");
    let client = |url: &str| ::redis::Client::open(url).expect("a valid url");
    let start = async |config: Config| config.start().await.expect_err("it cannot start");
    let nowhere = Budget::redis(client("redis://127.0.0.1:1"), KEY, server.config());
    let error = start(nowhere).await;
    assert!(matches!(error, BudgetError::Unreachable(_)), "{error}");

    let redis = server.redis.as_ref().expect("it has one");
    let no_scripts = [
        "ACL",
        "SETUSER",
        "web",
        "on",
        ">pw",
        "~*",
        "+@all",
        "-@scripting",
    ];
    redis.ask(&no_scripts).await.expect("a user");
    let as_web = url.replace("redis://", "redis://web:pw@");
    let error = start(Budget::redis(client(&as_web), KEY, server.config())).await;
    assert!(matches!(error, BudgetError::MissingRights(_)), "{error}");

    let settings = [("ignore_startup_parameters", "extra_float_digits,options")];
    let bouncer = PgBouncer::start_with(&server.postgres, &settings).await;
    let bouncer = bouncer.expect("PgBouncer starts");
    let behind = bouncer.url().parse().expect("a valid url");
    let error = start(Budget::redis(client(&url), KEY, behind)).await;
    assert!(matches!(error, BudgetError::Pooler(_)), "{error}");

    let settings = [
        (
            Budget::redis_uncounted(client(&url), KEY),
            "no total is set",
        ),
        (
            Budget::redis(client(&url), "", server.config()),
            "key in Redis is empty",
        ),
    ];
    for (config, named) in settings {
        let error = config.spawn().expect_err("a wrong setting").to_string();
        assert!(error.contains(named), "{error}");
    }
}
