//! The middleware contract, poll by poll.

use std::{
    convert::Infallible,
    fmt::Debug,
    future::{Ready, ready},
    net::SocketAddr,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::poll_fn;
use http::{Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Full};
use rate_limit::{
    HOUR, Limiter, OnFull, Policy, Quota, RateLimit, RateLimitBody, RateLimitFuture,
    RateLimitLayer, SECOND,
    answer::{Hook, Reason, StandardAnswer},
    key::{self, MissingKey, PeerAddr, ResolveLayer},
};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_test::mock;

fn one_an_hour() -> RateLimitLayer {
    RateLimitLayer::new(Quota::count(1).per(HOUR))
        .unwrap()
        .key(key::global())
}

fn request() -> Request<()> {
    Request::new(())
}

fn with_header(name: &'static str, value: &str) -> Request<()> {
    Request::builder().header(name, value).body(()).unwrap()
}

fn from_peer(addr: &str) -> Request<()> {
    let mut request = request();
    request
        .extensions_mut()
        .insert(PeerAddr::new(SocketAddr::new(addr.parse().unwrap(), 9)));
    request
}

/// An inner service that answers 200 at once.
async fn ok(_: Request<()>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from("ok")))
}

async fn status<A>(layer: &RateLimitLayer<A>, request: Request<()>) -> StatusCode
where
    A: Clone + rate_limit::answer::Answer<Full<Bytes>>,
{
    layer
        .layer(service_fn(ok))
        .oneshot(request)
        .await
        .unwrap()
        .status()
}

#[tokio::test(start_paused = true)]
async fn readiness_is_the_inner_services_and_takes_nothing() {
    let (inner, mut handle) = mock::pair::<Request<()>, Response<Full<Bytes>>>();
    let layer = one_an_hour();
    let mut service = layer.layer(inner);
    handle.allow(0);
    let mut ready = task::spawn(poll_fn(|cx| {
        Service::<Request<()>>::poll_ready(&mut service, cx)
    }));
    assert_pending!(ready.poll());
    handle.allow(1);
    assert!(ready.is_woken());
    assert_ready_ok!(ready.poll());
    drop(ready);
    // A hundred ready clones have charged nothing.
    let clones: Vec<_> = (0..100).map(|_| layer.layer(service_fn(ok))).collect();
    for mut clone in clones {
        ServiceExt::<Request<()>>::ready(&mut clone).await.unwrap();
    }
    assert_eq!(status(&layer, request()).await, StatusCode::OK);
    assert_eq!(
        status(&layer, request()).await,
        StatusCode::TOO_MANY_REQUESTS
    );
}

#[tokio::test(start_paused = true)]
async fn an_admitted_request_reaches_the_inner_service_and_a_refused_one_does_not() {
    let (mut service, mut handle) = mock::spawn_with(|inner| one_an_hour().layer(inner));
    assert_ready_ok!(service.poll_ready());
    let mut admitted = task::spawn(service.call("first".to_owned().into_request()));
    assert_pending!(admitted.poll());
    let (seen, answer) = handle.next_request().await.unwrap();
    assert_eq!(seen.into_body(), "first");
    answer.send_response(Response::new(Full::<Bytes>::from("ok")));
    assert_eq!(assert_ready_ok!(admitted.poll()).status(), StatusCode::OK);
}

trait IntoRequest: Sized {
    fn into_request(self) -> Request<Self> {
        Request::new(self)
    }
}

impl IntoRequest for String {}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_ready_at_once_and_leaves_the_inner_service_alone() {
    let layer = one_an_hour();
    assert_eq!(status(&layer, request()).await, StatusCode::OK);
    let (inner, mut handle) = mock::pair::<Request<()>, Response<Full<Bytes>>>();
    let mut service = layer.layer(inner);
    handle.allow(1);
    ServiceExt::<Request<()>>::ready(&mut service)
        .await
        .unwrap();
    let mut refused = task::spawn(service.call(request()));
    let response = assert_ready_ok!(refused.poll());
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let mut seen = task::spawn(async { handle.next_request().await });
    assert_pending!(seen.poll());
}

#[tokio::test]
async fn an_error_of_the_inner_service_passes_untouched() {
    #[derive(Debug, PartialEq)]
    struct Broken(u8);
    let failing = service_fn(async |_: Request<()>| Err::<Response<Full<Bytes>>, _>(Broken(7)));
    let error = one_an_hour()
        .layer(failing)
        .oneshot(request())
        .await
        .unwrap_err();
    assert_eq!(error, Broken(7));
}

#[tokio::test]
async fn layering_twice_and_cloning_make_no_second_limiter() {
    let layer = one_an_hour();
    let services = [
        layer.layer(service_fn(ok)),
        layer.clone().layer(service_fn(ok)),
    ];
    let mut admitted = 0;
    for service in services.iter().cycle().take(1_000) {
        let response = service.clone().oneshot(request()).await.unwrap();
        admitted += usize::from(response.status() == StatusCode::OK);
    }
    assert_eq!(admitted, 1);
}

#[tokio::test]
async fn a_hook_replaces_the_answer_whatever_the_body_is() {
    /// A body that nothing converts to.
    struct Odd(Empty<Bytes>);
    let layer = one_an_hour().on_limited(|limited, request| {
        assert_eq!(limited.reason(), Reason::Quota);
        assert_eq!(
            limited.violated().map(Policy::name).collect::<Vec<_>>(),
            ["default"]
        );
        assert!(limited.retry_after().unwrap() > SECOND);
        assert_eq!(request.uri.path(), "/");
        let mut response = Response::new(Odd(Empty::new()));
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        response
    });
    let inner =
        service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(Odd(Empty::new()))));
    let mut service = layer.layer(inner);
    assert_eq!(
        service.call(request()).await.unwrap().status(),
        StatusCode::OK
    );
    let refused = service.call(request()).await.unwrap();
    assert_eq!(refused.status(), StatusCode::IM_A_TEAPOT);
    let _: &RateLimitBody<Odd> = refused.body();
}

#[tokio::test]
async fn bypassed_requests_are_neither_limited_nor_charged() {
    let layer = one_an_hour().bypass(|head| head.uri.path() == "/livez");
    let probe = || Request::get("/livez").body(()).unwrap();
    for _ in 0..10 {
        assert_eq!(status(&layer, probe()).await, StatusCode::OK);
    }
    assert_eq!(status(&layer, request()).await, StatusCode::OK);
    assert_eq!(
        status(&layer, request()).await,
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(status(&layer, probe()).await, StatusCode::OK);
}

#[tokio::test]
async fn shadow_mode_lets_everything_through() {
    let layer = one_an_hour().shadow(true);
    for _ in 0..10 {
        assert_eq!(status(&layer, request()).await, StatusCode::OK);
    }
    assert_eq!(layer.limiter().peek(()), 0, "but it still counts");
}

#[tokio::test]
async fn a_policy_in_shadow_mode_limits_nothing_and_the_others_still_do() {
    let limiter = Limiter::builder()
        .policy(Policy::new("tight", Quota::count(1).per(HOUR)).shadow(true))
        .policy(Policy::new("wide", Quota::count(3).per(HOUR)))
        .build()
        .unwrap();
    let layer = RateLimitLayer::from_limiter(limiter).key(key::global());
    for _ in 0..3 {
        assert_eq!(status(&layer, request()).await, StatusCode::OK);
    }
    assert_eq!(
        status(&layer, request()).await,
        StatusCode::TOO_MANY_REQUESTS
    );
}

#[tokio::test]
async fn header_values_have_a_quota_each() {
    let layer = one_an_hour()
        .key(key::header("x-api-key"))
        .missing_key(MissingKey::Deny);
    assert_eq!(
        status(&layer, with_header("x-api-key", "a")).await,
        StatusCode::OK
    );
    assert_eq!(
        status(&layer, with_header("x-api-key", "b")).await,
        StatusCode::OK
    );
    assert_eq!(
        status(&layer, with_header("x-api-key", "a")).await,
        StatusCode::TOO_MANY_REQUESTS
    );
}

#[tokio::test]
async fn peers_have_a_quota_each() {
    let layer = one_an_hour().key(key::peer());
    assert_eq!(status(&layer, from_peer("192.0.2.1")).await, StatusCode::OK);
    assert_eq!(status(&layer, from_peer("192.0.2.2")).await, StatusCode::OK);
    assert_eq!(
        status(&layer, from_peer("::ffff:192.0.2.1")).await,
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(
        status(&layer, from_peer("2001:db8::1")).await,
        StatusCode::OK
    );
    assert_eq!(
        status(&layer, from_peer("2001:db8::2")).await,
        StatusCode::TOO_MANY_REQUESTS
    );
}

#[tokio::test]
async fn requests_without_a_key_share_are_let_through_or_are_refused_but_never_500() {
    let by_header = || one_an_hour().key(key::header("x-api-key"));
    let shared = by_header();
    assert_eq!(status(&shared, request()).await, StatusCode::OK);
    assert_eq!(
        status(&shared, request()).await,
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(
        status(&shared, with_header("x-api-key", "a")).await,
        StatusCode::OK
    );

    let allowed = by_header().missing_key(MissingKey::Allow);
    for _ in 0..3 {
        assert_eq!(status(&allowed, request()).await, StatusCode::OK);
    }

    let denied = by_header().missing_key(MissingKey::Deny);
    let response = denied
        .layer(service_fn(ok))
        .oneshot(request())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert!(!response.headers().contains_key(header::RETRY_AFTER));
    let grpc = with_header("content-type", "application/grpc");
    let response = denied.layer(service_fn(ok)).oneshot(grpc).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-status"], "3");
}

#[tokio::test]
async fn composed_keys_are_pairs_and_alternatives() {
    let pair = one_an_hour().key(key::header("x-tenant").and(key::path()));
    let at = |path: &str, tenant: &str| {
        Request::get(path)
            .header("x-tenant", tenant)
            .body(())
            .unwrap()
    };
    assert_eq!(status(&pair, at("/a", "t")).await, StatusCode::OK);
    assert_eq!(status(&pair, at("/b", "t")).await, StatusCode::OK);
    assert_eq!(status(&pair, at("/a", "u")).await, StatusCode::OK);
    assert_eq!(
        status(&pair, at("/a?x=1", "t")).await,
        StatusCode::TOO_MANY_REQUESTS
    );

    let either = one_an_hour().key(
        key::header("x-tenant")
            .and(key::header("x-user"))
            .or(key::path()),
    );
    assert_eq!(status(&either, at("/a", "t")).await, StatusCode::OK);
    // The half of a pair that is there must not open a new quota.
    assert_eq!(
        status(&either, at("/a", "u")).await,
        StatusCode::TOO_MANY_REQUESTS
    );
}

#[tokio::test]
async fn extensions_and_functions_make_keys() {
    #[derive(Clone, Hash)]
    struct UserId(u64);
    let layer = one_an_hour().key(key::extension::<UserId>());
    let user = |id| {
        let mut request = request();
        request.extensions_mut().insert(UserId(id));
        request
    };
    assert_eq!(status(&layer, user(1)).await, StatusCode::OK);
    assert_eq!(status(&layer, user(2)).await, StatusCode::OK);
    assert_eq!(status(&layer, user(1)).await, StatusCode::TOO_MANY_REQUESTS);

    let by_method = one_an_hour().key(key::from_fn(|head| Some(head.method().clone())));
    assert_eq!(status(&by_method, request()).await, StatusCode::OK);
    assert_eq!(
        status(&by_method, request()).await,
        StatusCode::TOO_MANY_REQUESTS
    );
    let post = Request::post("/").body(()).unwrap();
    assert_eq!(status(&by_method, post).await, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_key_can_be_looked_up_first() {
    #[derive(Clone, Hash)]
    struct Tenant(u8);
    let limit = one_an_hour()
        .key(key::extension::<Tenant>())
        .missing_key(MissingKey::Deny);
    let resolve = ResolveLayer::new(|head| {
        let known = head.headers().contains_key("x-api-key");
        async move {
            tokio::time::sleep(SECOND).await;
            known.then_some(Tenant(1))
        }
    });
    let mut service = resolve.layer(limit.layer(service_fn(ok)));
    let mut call = async |request| service.call(request).await.unwrap().status();
    assert_eq!(call(with_header("x-api-key", "a")).await, StatusCode::OK);
    assert_eq!(
        call(with_header("x-api-key", "b")).await,
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(call(request()).await, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_full_table_refuses_new_keys_with_429_when_told_to() {
    let limiter = Limiter::builder()
        .quota(Quota::count(1).per(HOUR))
        .max_keys(1)
        .on_full(OnFull::RefuseNew)
        .build()
        .unwrap();
    let room = limiter.key_capacity();
    let layer = RateLimitLayer::from_limiter(limiter).key(key::header("x-api-key"));
    for n in 0..room {
        assert_eq!(
            status(&layer, with_header("x-api-key", &n.to_string())).await,
            StatusCode::OK
        );
    }
    let one_more = with_header("x-api-key", "one more");
    let response = layer.layer(service_fn(ok)).oneshot(one_more).await.unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()[header::RETRY_AFTER], "1");
}

#[tokio::test]
async fn several_violated_policies_are_all_named() {
    let limiter = Limiter::builder()
        .policy(Policy::new("burst", Quota::count(1).per(SECOND)))
        .policy(Policy::new("hourly", Quota::count(1).per(HOUR)))
        .build()
        .unwrap();
    let layer = RateLimitLayer::from_limiter(limiter).key(key::global());
    assert_eq!(status(&layer, request()).await, StatusCode::OK);
    let response = layer
        .layer(service_fn(ok))
        .oneshot(request())
        .await
        .unwrap();
    assert_eq!(response.headers()[header::RETRY_AFTER], "3600");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        problem["violated-policies"],
        serde_json::json!(["burst", "hourly"])
    );
}

#[tokio::test]
async fn a_refusals_body_knows_its_size_and_ends() {
    let layer = one_an_hour();
    status(&layer, request()).await;
    let mut body = layer
        .layer(service_fn(ok))
        .oneshot(request())
        .await
        .unwrap()
        .into_body();
    let size = body.size_hint().exact().unwrap();
    assert!(size > 0 && !body.is_end_stream());
    assert_eq!(
        body.frame()
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap()
            .len() as u64,
        size
    );
    assert!(body.is_end_stream());
    assert!(body.frame().await.is_none());
}

#[test]
fn everything_is_nameable_debug_clone_send_and_sync() {
    type Inner = fn(Request<()>) -> Ready<Result<Response<Full<Bytes>>, Infallible>>;
    type MyHook = Hook<fn(&rate_limit::answer::Limited<'_>, &http::request::Parts) -> Response<()>>;
    fn shared<T: Clone + Debug + Send + Sync>() {}
    fn owned<T: Debug + Send>() {}
    shared::<RateLimitLayer>();
    shared::<RateLimitLayer<MyHook>>();
    shared::<RateLimit<Inner>>();
    shared::<RateLimit<Inner, StandardAnswer>>();
    shared::<Limiter>();
    owned::<RateLimitFuture<Ready<()>, Full<Bytes>>>();
    owned::<RateLimitBody<Full<Bytes>>>();
}

#[test]
fn the_inner_service_can_be_reached_and_taken_back() {
    let mut service = one_an_hour().layer(5);
    assert_eq!(*service.get_ref(), 5);
    *service.get_mut() = 6;
    assert_eq!(service.into_inner(), 6);
}

/// Panics when it is called without having been ready first.
#[derive(Clone, Default)]
struct Strict {
    ready: bool,
}

impl Service<Request<()>> for Strict {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        assert!(self.ready, "called without being ready");
        self.ready = false;
        ready(Ok(Response::new(Full::from("ok"))))
    }
}

#[tokio::test]
async fn the_service_that_was_ready_is_the_one_that_is_called() {
    let layer = RateLimitLayer::new(Quota::count(10).per(HOUR))
        .unwrap()
        .key(key::global());
    let mut service = layer.layer(Strict::default());
    for _ in 0..3 {
        service.ready().await.unwrap();
        // Clones start out not ready, and that must not matter.
        let _clone = service.clone();
        service.call(request()).await.unwrap();
    }
}

#[test]
fn quotas_that_mean_nothing_are_refused_by_the_layer() {
    let error = RateLimitLayer::new(Quota::count(0).per(SECOND)).unwrap_err();
    assert_eq!(error.to_string(), "invalid quota of policy \"default\"");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        source.contains("expected a count of at least 1"),
        "{source}"
    );
}
