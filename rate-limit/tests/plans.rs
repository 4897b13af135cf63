//! Costs, reservations, plans, quotas of a key's own, reloads, counts in flight and lists.

use std::{convert::Infallible, future::pending, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use rate_limit::{
    BuildError, DAY, HOUR, Limiter, MINUTE, ManualClock, Policy, Quota, RateLimitLayer, SECOND,
    answer::Reason,
    key::{self, AccessList, PeerAddr},
};
use tokio::time::advance;
use tower::{Layer, Service, ServiceExt, service_fn};

/// What the inner service reports to have used.
#[derive(Clone)]
struct Used(u64);

fn request(path: &str, key: &str) -> Request<()> {
    Request::get(path)
        .header("x-api-key", key)
        .body(())
        .unwrap()
}

/// Calls a service that answers `status` and used `used` units.
async fn call(layer: &RateLimitLayer, request: Request<()>, status: u16, used: u64) -> StatusCode {
    let inner = service_fn(async |_: Request<()>| {
        let mut response = Response::new(Full::<Bytes>::default());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response.extensions_mut().insert(Used(used));
        Ok::<_, Infallible>(response)
    });
    layer.layer(inner).oneshot(request).await.unwrap().status()
}

async fn get(layer: &RateLimitLayer, path: &str, key: &str) -> StatusCode {
    call(layer, request(path, key), 200, 0).await
}

fn by_key(limiter: &Limiter) -> RateLimitLayer {
    RateLimitLayer::from_limiter(limiter.clone()).key(key::header("x-api-key"))
}

const OK: StatusCode = StatusCode::OK;
const LIMITED: StatusCode = StatusCode::TOO_MANY_REQUESTS;
const ALICE: &[u8] = b"alice";

#[tokio::test(start_paused = true)]
async fn requests_cost_what_their_policies_say() {
    let limiter = Limiter::builder()
        .policy(Policy::new("requests", Quota::count(10).per(HOUR)))
        .policy(
            Policy::new("bytes", Quota::count(1_000).per(HOUR))
                .cost(|request| request.content_length().unwrap_or(0)),
        )
        .build()
        .unwrap();
    let layer = by_key(&limiter);
    let upload = |length: &str| {
        Request::post("/")
            .header("x-api-key", "alice")
            .header("content-length", length)
            .body(())
    };
    assert_eq!(call(&layer, upload("600").unwrap(), 200, 0).await, OK);
    assert_eq!(call(&layer, upload("600").unwrap(), 200, 0).await, LIMITED);
    assert_eq!(call(&layer, upload("400").unwrap(), 200, 0).await, OK);
    assert_eq!(call(&layer, upload("0").unwrap(), 200, 0).await, OK);
    assert_eq!(limiter.peek(ALICE), 0, "the bytes are used up");
}

#[tokio::test(start_paused = true)]
async fn a_cost_known_only_afterwards_is_reserved_and_settled() {
    let limiter = Limiter::builder()
        .policy(
            Policy::new("tokens", Quota::count(100).per(HOUR))
                .cost(|_| 40)
                .settle(|response| Some(response.extensions().get::<Used>()?.0)),
        )
        .build()
        .unwrap();
    let layer = by_key(&limiter);
    assert_eq!(call(&layer, request("/", "alice"), 200, 10).await, OK);
    assert_eq!(limiter.peek(ALICE), 90, "30 came back");
    assert_eq!(call(&layer, request("/", "alice"), 200, 80).await, OK);
    assert_eq!(limiter.peek(ALICE), 10, "40 more were charged");
    assert_eq!(call(&layer, request("/", "alice"), 200, 1).await, LIMITED);
    assert_eq!(limiter.peek(ALICE), 10, "a refusal settles nothing");
}

#[tokio::test(start_paused = true)]
async fn failures_can_be_free() {
    let limiter = Limiter::builder()
        .policy(
            Policy::new("requests", Quota::count(2).per(HOUR))
                .settle(|response| response.status().is_server_error().then_some(0)),
        )
        .build()
        .unwrap();
    let layer = by_key(&limiter);
    for _ in 0..5 {
        let status = call(&layer, request("/", "alice"), 503, 0).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    }
    assert_eq!(get(&layer, "/", "alice").await, OK);
    assert_eq!(get(&layer, "/", "alice").await, OK);
    assert_eq!(get(&layer, "/", "alice").await, LIMITED);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_or_failed_request_gets_its_reservation_back_and_only_that() {
    let limiter = Limiter::builder()
        .policy(Policy::new("kept", Quota::count(10).per(HOUR)))
        .policy(Policy::new("reserved", Quota::count(10).per(HOUR)).settle(|_| None))
        .build()
        .unwrap();
    let layer = by_key(&limiter);
    let hanging =
        service_fn(async |_: Request<()>| pending::<Result<Response<Full<Bytes>>, &str>>().await);
    let mut waiting = tokio_test::task::spawn(layer.layer(hanging).oneshot(request("/", "alice")));
    assert!(waiting.poll().is_pending());
    let failing = service_fn(async |_: Request<()>| Err::<Response<Full<Bytes>>, _>("broken"));
    layer
        .layer(failing)
        .oneshot(request("/", "alice"))
        .await
        .unwrap_err();
    assert_eq!(limiter.peek(ALICE), 8);
    drop(waiting);

    let only_reserved = Policy::new("reserved", Quota::count(10).per(HOUR));
    limiter.set_policies([only_reserved]).unwrap();
    assert_eq!(limiter.peek(ALICE), 10, "both reservations are back");
    limiter
        .set_policies([Policy::new("kept", Quota::count(10).per(HOUR))])
        .unwrap();
    assert_eq!(limiter.peek(ALICE), 8, "what is not settled stays charged");
}

#[tokio::test(start_paused = true)]
async fn a_reservation_is_settled_kept_or_given_back() {
    let limiter = Limiter::new(Quota::count(100).per(HOUR)).unwrap();
    drop(limiter.reserve("a", 60).unwrap());
    assert_eq!(limiter.peek("a"), 100);
    limiter.reserve("a", 60).unwrap().settle(10);
    assert_eq!(limiter.peek("a"), 90);
    limiter.reserve("a", 60).unwrap().settle(70);
    assert_eq!(limiter.peek("a"), 20);
    let reservation = limiter.reserve("a", 20).unwrap();
    assert_eq!(reservation.cells(), 20);
    assert_eq!(
        limiter.reserve("a", 1).unwrap_err().policy(),
        Some("default")
    );
    reservation.keep();
    assert_eq!(limiter.peek("a"), 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_shadow_policy_let_through_uncharged_is_not_given_back() {
    let limiter = Limiter::builder()
        .policy(Policy::new("trial", Quota::count(10).per(HOUR)).shadow(true))
        .build()
        .unwrap();
    limiter.check_n("a", 8).unwrap();
    drop(limiter.reserve("a", 5).unwrap());
    assert_eq!(limiter.peek("a"), 2);
}

#[tokio::test(start_paused = true)]
async fn plans_are_chosen_by_request_and_share_accounts_of_the_same_name() {
    let limiter = Limiter::builder()
        .policy(Policy::new("api", Quota::count(2).per(HOUR)))
        .plan("pro", [Policy::new("api", Quota::count(5).per(HOUR))])
        .plan("search", [Policy::new("search", Quota::count(1).per(HOUR))])
        .build()
        .unwrap();
    let layer = by_key(&limiter).plan(|request| match request.uri().path() {
        "/search" => Some("search"),
        _ => request
            .headers()
            .get("x-plan")
            .and_then(|plan| plan.to_str().ok()),
    });
    let pro = || {
        let mut request = request("/", "alice");
        request
            .headers_mut()
            .insert("x-plan", "pro".parse().unwrap());
        request
    };
    assert_eq!(get(&layer, "/", "alice").await, OK);
    assert_eq!(get(&layer, "/", "alice").await, OK);
    assert_eq!(get(&layer, "/", "alice").await, LIMITED);
    assert_eq!(get(&layer, "/search", "alice").await, OK, "another account");
    assert_eq!(get(&layer, "/search", "alice").await, LIMITED);
    // Alice upgrades, and has used two of five.
    for status in [OK, OK, OK, LIMITED] {
        assert_eq!(call(&layer, pro(), 200, 0).await, status);
    }
    assert_eq!(
        get(&layer, "/", "alice").await,
        LIMITED,
        "and still two of two"
    );
    assert!(limiter.plan("none").is_none());
    assert_eq!(
        limiter.plan("pro").unwrap().policies()[0].quota(),
        Quota::count(5).per(HOUR)
    );
}

#[tokio::test(start_paused = true)]
async fn a_key_can_have_a_quota_of_its_own() {
    let limiter = Limiter::new(Quota::count(1).per(HOUR)).unwrap();
    let layer = by_key(&limiter).quota_from(|request| {
        match request.headers().get("x-api-key")?.as_bytes() {
            b"big" => Some(Quota::count(3).per(HOUR)),
            b"broken" => Some(Quota::count(0).per(HOUR)),
            _ => None,
        }
    });
    for _ in 0..3 {
        assert_eq!(get(&layer, "/", "big").await, OK);
    }
    assert_eq!(get(&layer, "/", "big").await, LIMITED);
    for key in ["small", "broken"] {
        assert_eq!(get(&layer, "/", key).await, OK);
        assert_eq!(get(&layer, "/", key).await, LIMITED);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_debts_in_cells_for_every_holder_of_the_limiter() {
    let limiter = Limiter::new(Quota::count(10).per(HOUR)).unwrap();
    let layer = by_key(&limiter);
    limiter.check_n(ALICE, 7).unwrap();
    limiter
        .set_policies([Policy::new("default", Quota::count(20).per(MINUTE))])
        .unwrap();
    assert_eq!(limiter.peek(ALICE), 13);
    assert_eq!(get(&layer, "/", "alice").await, OK);
    assert_eq!(limiter.peek(ALICE), 12);
    // To a rate that governor would round, and back.
    limiter
        .set_policies([Policy::new(
            "default",
            Quota::count(300_000_000).per(SECOND),
        )])
        .unwrap();
    assert_eq!(limiter.peek(ALICE), 300_000_000 - 8);
    limiter
        .set_policies([Policy::new("default", Quota::count(5).per(DAY))])
        .unwrap();
    assert_eq!(limiter.peek(ALICE), 0, "eight of five: cut to a burst");
    advance(DAY).await;
    assert_eq!(limiter.peek(ALICE), 5);
}

#[tokio::test(start_paused = true)]
async fn a_reload_that_is_invalid_changes_nothing() {
    let limiter = Limiter::new(Quota::count(10).per(HOUR)).unwrap();
    let refused = |policies: Vec<Policy>| limiter.set_policies(policies).unwrap_err();
    assert_eq!(refused(vec![]), BuildError::NoPolicy);
    let unknown = refused(vec![Policy::new("other", Quota::count(1).per(HOUR))]);
    assert_eq!(
        unknown.to_string(),
        "name \"other\", expected one that the limiter was built with"
    );
    let zero = refused(vec![Policy::new("default", Quota::count(0).per(HOUR))]);
    assert!(matches!(zero, BuildError::Quota { .. }));
    assert_eq!(limiter.peek("a"), 10);
}

#[test]
fn a_reload_under_load_keeps_the_debts() {
    // A clock that stands still for all threads: paused time is the runtime's thread's only.
    let quota = Quota::count(1_000).per(HOUR);
    let limiter = Limiter::builder()
        .quota(quota)
        .clock(ManualClock::new())
        .build()
        .unwrap();
    let (a, b) = (
        Quota::count(1_000).per(2 * HOUR),
        Quota::count(1_000).per(HOUR),
    );
    let taken: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..500).filter(|_| limiter.check("hot").is_ok()).count()))
            .collect();
        for quota in [a, b].into_iter().cycle().take(50) {
            limiter
                .set_policies([Policy::new("default", quota)])
                .unwrap();
        }
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap() as u64)
            .sum()
    });
    // While its key is converted, a request can find the debt twice as large and be refused, or
    // be charged half. No debt is lost.
    let accounted = taken + limiter.peek("hot");
    assert!(
        (1_000..=1_000 + taken / 2).contains(&accounted),
        "{taken} taken, {accounted}"
    );
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_are_counted_by_key_to_the_end_of_the_body() {
    let limiter = Limiter::builder()
        .quota(Quota::count(1_000).per(HOUR))
        .max_inflight(2)
        .build()
        .unwrap();
    let layer = by_key(&limiter);
    let inner = service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("body")))
    });
    let mut service = layer.layer(inner);
    let first = service.call(request("/", "alice")).await.unwrap();
    let second = service.call(request("/", "alice")).await.unwrap();
    assert_eq!(limiter.inflight(ALICE), 2);
    let refused = service.call(request("/", "alice")).await.unwrap();
    assert_eq!(refused.status(), LIMITED);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(
        service.call(request("/", "bob")).await.unwrap().status(),
        OK
    );

    first.into_body().collect().await.unwrap();
    assert_eq!(limiter.inflight(ALICE), 1, "one body was read to its end");
    drop(second);
    assert_eq!(limiter.inflight(ALICE), 0, "the other was dropped");
    assert_eq!(limiter.peek(ALICE), 998, "refused requests are not charged");

    let hanging = service_fn(async |_: Request<()>| {
        pending::<Result<Response<Full<Bytes>>, Infallible>>().await
    });
    let mut waiting = tokio_test::task::spawn(layer.layer(hanging).oneshot(request("/", "alice")));
    assert!(waiting.poll().is_pending());
    assert_eq!(limiter.inflight(ALICE), 1);
    drop(waiting);
    assert_eq!(limiter.inflight(ALICE), 0, "cancelled");
}

#[test]
fn policies_of_other_names_are_added_where_there_is_room_for_them() {
    let quota = |count| Quota::count(count).per(HOUR);
    let builder = Limiter::builder()
        .policy(Policy::new("api", quota(100)))
        .clock(ManualClock::new());
    let full = builder.clone().build().unwrap();
    let api = || Policy::new("api", quota(100));
    assert!(
        full.set_policies([api(), Policy::new("search", quota(5))])
            .is_err()
    );
    assert_eq!(
        builder
            .clone()
            .spare_policies(8)
            .build()
            .unwrap_err()
            .to_string(),
        "9 policies, expected at most 8"
    );
    let limiter = builder.spare_policies(1).build().unwrap();
    limiter.check_n(ALICE, 3).unwrap();
    limiter
        .set_policies([api(), Policy::new("search", quota(5))])
        .unwrap();
    // What was used before the policy was there counts by the others alone.
    assert_eq!(limiter.peek(ALICE), 5);
    limiter.check_n(ALICE, 4).unwrap();
    let refused = limiter.check_n(ALICE, 2).unwrap_err();
    assert_eq!(refused.policy(), Some("search"));
    limiter.set_policies([api()]).unwrap();
    assert_eq!(limiter.peek(ALICE), 93);
    // The name keeps its place, so there is none for a second one.
    assert!(
        limiter
            .set_policies([api(), Policy::new("other", quota(5))])
            .is_err()
    );
    limiter
        .set_policies([api(), Policy::new("search", quota(5))])
        .unwrap();
    assert_eq!(limiter.peek(ALICE), 1);
}

#[test]
fn each_plan_has_its_own_limit_of_what_a_key_has_in_flight() {
    let quota = || Quota::count(9).per(HOUR);
    let builder = Limiter::builder()
        .quota(quota())
        .plan("pro", [Policy::new("default", quota())])
        .plan_max_inflight("pro", 3);
    let unnamed = builder.clone().plan_max_inflight("team", 3).build();
    assert_eq!(
        unnamed.unwrap_err().to_string(),
        "name \"team\", expected one that the limiter was built with"
    );
    let limiter = builder.clone().max_inflight(1).build().unwrap();
    let pro = limiter.plan("pro").unwrap();
    let first = limiter.enter(ALICE).unwrap();
    assert!(limiter.enter(ALICE).is_err());
    let (_second, _third) = (pro.enter(ALICE).unwrap(), pro.enter(ALICE).unwrap());
    assert!(pro.enter(ALICE).is_err());
    drop(first);
    assert!(pro.enter(ALICE).is_ok());
    assert!(
        limiter.enter(ALICE).is_err(),
        "two are under way by the other plan"
    );
    // Without a limit for all, only the plan has one, and all are counted.
    let limiter = builder.build().unwrap();
    let entered = [0; 4].map(|_| limiter.enter(ALICE).unwrap());
    assert!(entered.iter().all(Option::is_some));
    assert!(limiter.plan("pro").unwrap().enter(ALICE).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_handler_can_count_a_connection_that_outlives_its_response() {
    let limiter = Limiter::builder()
        .quota(Quota::count(9).per(HOUR))
        .max_inflight(1)
        .build()
        .unwrap();
    let connection = limiter.enter(ALICE).unwrap();
    assert!(connection.is_some());
    assert_eq!(limiter.enter(ALICE).unwrap_err().reason(), Reason::Inflight);
    drop(connection);
    assert!(limiter.enter(ALICE).is_ok());
    let unlimited = Limiter::new(Quota::count(9).per(HOUR)).unwrap();
    assert!(unlimited.enter(ALICE).unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn the_count_in_flight_survives_a_panicking_service() {
    let limiter = Limiter::builder()
        .quota(Quota::count(9).per(HOUR))
        .max_inflight(1)
        .build()
        .unwrap();
    let panicking = service_fn(
        async |_: Request<()>| -> Result<Response<Full<Bytes>>, Infallible> {
            panic!("as handlers do")
        },
    );
    let call = by_key(&limiter)
        .layer(panicking)
        .oneshot(request("/", "alice"));
    assert!(tokio::spawn(call).await.unwrap_err().is_panic());
    assert_eq!(limiter.inflight(ALICE), 0);
}

#[tokio::test(start_paused = true)]
async fn callers_on_a_list_are_let_through_or_refused() {
    let limiter = Limiter::new(Quota::count(1).per(HOUR)).unwrap();
    let layer = RateLimitLayer::from_limiter(limiter)
        .key(key::header("x-api-key").or(key::peer()))
        .allow(
            AccessList::networks(["10.0.0.0/8"])
                .unwrap()
                .and(AccessList::keys(["friend"])),
        )
        .deny(
            AccessList::networks(["10.6.6.0/24"])
                .unwrap()
                .and(AccessList::keys(["mallory"])),
        );
    let from = |ip: &str| {
        let mut request = Request::new(());
        let addr = SocketAddr::new(ip.parse().unwrap(), 9);
        request.extensions_mut().insert(PeerAddr::new(addr));
        request
    };
    for _ in 0..3 {
        assert_eq!(get(&layer, "/", "friend").await, OK);
        assert_eq!(call(&layer, from("::ffff:10.0.0.1"), 200, 0).await, OK);
        assert_eq!(get(&layer, "/", "mallory").await, StatusCode::FORBIDDEN);
        assert_eq!(
            call(&layer, from("10.6.6.6"), 200, 0).await,
            StatusCode::FORBIDDEN
        );
    }
    assert_eq!(call(&layer, from("192.0.2.1"), 200, 0).await, OK);
    assert_eq!(call(&layer, from("192.0.2.1"), 200, 0).await, LIMITED);
}

#[test]
fn limiters_that_make_no_sense_are_refused_with_the_expectation() {
    let quota = || Quota::count(1).per(HOUR);
    let error = |builder: rate_limit::LimiterBuilder| builder.build().unwrap_err().to_string();
    let builder = Limiter::builder;
    assert_eq!(error(builder()), "no policy, expected at least one");
    assert_eq!(
        error(builder().quota(quota()).quota(quota())),
        "two policies or two plans named \"default\", expected distinct names (`quota` adds a \
         policy named \"default\")"
    );
    let nine = (0..9).fold(builder(), |builder, n| {
        builder.policy(Policy::new(n.to_string(), quota()))
    });
    assert_eq!(error(nine), "9 policies, expected at most 8");
    assert!(error(builder().policy(Policy::new("a\"b", quota()))).starts_with("name \"a\\\"b\""));
    assert!(error(builder().policy(Policy::new("", quota()))).starts_with("name \"\", expected 1"));
    assert!(error(builder().quota(quota()).max_keys(0)).starts_with("room for 0 keys, expected"));
    assert_eq!(
        error(builder().quota(quota()).max_inflight(0)),
        "0 requests in flight, expected at least 1"
    );
    assert_eq!(
        error(builder().quota(quota()).plan("p", [])),
        "no policy in plan \"p\", expected at least one"
    );
}

#[tokio::test(start_paused = true)]
async fn plain_answers_are_one_line() {
    let layer = RateLimitLayer::new(Quota::count(1).per(Duration::from_secs(9)))
        .unwrap()
        .key(key::global())
        .answer(rate_limit::answer::StandardAnswer::new().plain(true));
    let inner = service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let mut service = layer.layer(inner);
    service.call(Request::new(())).await.unwrap();
    let refused = service.call(Request::new(())).await.unwrap();
    assert_eq!(
        refused.headers()["content-type"],
        "text/plain; charset=utf-8"
    );
    assert_eq!(refused.headers()["retry-after"], "9");
    assert_eq!(
        refused.into_body().collect().await.unwrap().to_bytes(),
        "quota exceeded\n"
    );
}
