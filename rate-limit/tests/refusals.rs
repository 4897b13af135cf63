//! What responses and handlers are told, what is given back, and what can be switched while running.

use std::{convert::Infallible, future::ready, net::SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use rate_limit::{
    Caller, HOUR, LimitError, Limiter, MINUTE, ManualClock, Mode, Policy, Quota, RateLimitBody,
    RateLimitLayer,
    answer::{Draft, QuotaHeaders, Reason, Refused, Reset},
    key::{self, AccessList, PeerAddr},
};
use tower::{Layer, Service, ServiceExt, service_fn};

type Body = RateLimitBody<Full<Bytes>>;

fn get(path: &str) -> Request<()> {
    Request::get(path)
        .header("x-api-key", "alice")
        .body(())
        .unwrap()
}

/// Calls a service that returns `status` with `retry-after`.
async fn call(layer: &RateLimitLayer, request: Request<()>, status: u16) -> Response<Body> {
    let inner = service_fn(move |_: Request<()>| async move {
        let response = Response::builder()
            .status(status)
            .header("retry-after", "1");
        Ok::<_, Infallible>(response.body(Full::<Bytes>::default()).unwrap())
    });
    layer.layer(inner).oneshot(request).await.unwrap()
}

async fn status(layer: &RateLimitLayer, request: Request<()>) -> u16 {
    call(layer, request, 200).await.status().as_u16()
}

fn limiter(count: u64) -> Limiter {
    Limiter::builder()
        .quota(Quota::count(count).per(HOUR))
        .clock(ManualClock::new())
        .build()
        .unwrap()
}

fn by_key(limiter: &Limiter) -> RateLimitLayer {
    RateLimitLayer::from_limiter(limiter.clone()).key(key::header("x-api-key"))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers[name].to_str().unwrap()
}

#[tokio::test]
async fn all_headers_state_the_quota_that_decided() {
    let layer = by_key(&limiter(100))
        .quota_from(|request| {
            (request.uri().path() == "/own").then_some(Quota::count(1_000).per(MINUTE))
        })
        .headers(QuotaHeaders::draft(Draft::V11).legacy(Reset::Delta));
    let own = call(&layer, get("/own"), 200).await;
    assert_eq!(
        header(own.headers(), "ratelimit-policy"),
        "\"default\";q=1000;w=60"
    );
    assert_eq!(header(own.headers(), "ratelimit"), "\"default\";r=999;t=60");
    assert_eq!(header(own.headers(), "x-ratelimit-limit"), "1000");
    let policy = call(&layer, get("/"), 200).await;
    assert_eq!(
        header(policy.headers(), "ratelimit-policy"),
        "\"default\";q=100;w=3600"
    );
    assert_eq!(header(policy.headers(), "x-ratelimit-limit"), "100");
}

#[tokio::test]
async fn grpc_details_name_the_quota_that_decided() {
    let layer = by_key(&limiter(100)).quota_from(|_| Some(Quota::count(1).per(MINUTE)));
    let grpc = || {
        let mut request = get("/");
        request
            .headers_mut()
            .insert(CONTENT_TYPE, "Application/gRPC".parse().unwrap());
        request
    };
    call(&layer, grpc(), 200).await;
    let refused = call(&layer, grpc(), 200).await;
    assert_eq!(
        refused.status(),
        200,
        "media types are compared without regard to case"
    );
    assert_eq!(header(refused.headers(), "grpc-status"), "8");
    let details = header(refused.headers(), "grpc-status-details-bin");
    // "1 requests per 60s, burst 1", at one of the three alignments of base64.
    let text = "1 requests per 60s, burst 1";
    let found = ["", " ", "  "].iter().any(|pad| {
        let encoded = base64(format!("{pad}{text}").as_bytes());
        details.contains(&encoded[4..encoded.len() - 4])
    });
    assert!(found, "{details}");
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let chunks = bytes.chunks(3).flat_map(|chunk| {
        let byte = |index| u32::from(*chunk.get(index).unwrap_or(&0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        [18, 12, 6, 0].map(|shift| DIGITS[(bits >> shift & 63) as usize] as char)
    });
    chunks.collect()
}

#[tokio::test]
async fn a_response_that_is_not_modified_has_the_headers_and_a_redirect_has_not() {
    let layer = by_key(&limiter(100)).headers(QuotaHeaders::legacy_only(Reset::Delta));
    let has = async |status| {
        let response = call(&layer, get("/"), status).await;
        response.headers().contains_key("x-ratelimit-limit")
    };
    assert!(has(304).await);
    assert!(!has(302).await);
}

#[tokio::test]
async fn in_shadow_mode_requests_over_quota_pass_with_their_headers() {
    let layer = by_key(&limiter(1))
        .shadow(true)
        .headers(QuotaHeaders::legacy_only(Reset::Delta));
    for left in ["0", "0", "0"] {
        let response = call(&layer, get("/"), 200).await;
        assert_eq!(response.status(), 200);
        assert_eq!(header(response.headers(), "x-ratelimit-remaining"), left);
    }
}

#[tokio::test]
async fn problems_without_a_type_have_the_phrase_of_their_status_as_title() {
    let layer = RateLimitLayer::from_limiter(limiter(1))
        .key(key::header("x-api-key"))
        .missing_key(key::MissingKey::Deny);
    // An empty header is no key.
    for request in [
        Request::new(()),
        Request::builder().header("x-api-key", "").body(()).unwrap(),
    ] {
        let response = call(&layer, request, 200).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["title"], "Bad Request");
        assert_eq!(problem["detail"], "no rate-limit key");
    }
}

#[tokio::test]
async fn a_refusal_is_marked_and_explained_where_wanted() {
    let limiter = limiter(1);
    let layer = by_key(&limiter);
    assert!(
        call(&layer, get("/"), 200)
            .await
            .extensions()
            .get::<Refused>()
            .is_none()
    );
    let refused = call(&layer, get("/"), 200).await;
    assert!(refused.extensions().get::<Refused>().is_some());
    assert!(refused.extensions().get::<LimitError>().is_none());
    let refused = call(&layer.clone().explain_refusals(true), get("/"), 200).await;
    let refusal = refused.extensions().get::<LimitError>().unwrap();
    assert_eq!(refusal.reason(), Reason::Quota);
    assert_eq!(refusal.policy(), Some("default"));
    assert_eq!(refusal.retry_after(), Some(HOUR));
}

#[tokio::test]
async fn the_extensions_of_a_refused_request_do_not_leak_into_the_response() {
    let layer = RateLimitLayer::from_limiter(limiter(1));
    let request = || {
        let mut request = get("/");
        let addr = SocketAddr::from(([192, 0, 2, 1], 9));
        request.extensions_mut().insert(PeerAddr::new(addr));
        request
    };
    call(&layer, request(), 200).await;
    let refused = call(&layer, request(), 200).await;
    assert!(refused.extensions().get::<Refused>().is_some());
    assert!(refused.extensions().get::<PeerAddr>().is_none());
}

#[tokio::test]
async fn what_a_load_shedder_refuses_costs_no_quota() {
    let limiter = limiter(2);
    let layer = by_key(&limiter);
    for _ in 0..5 {
        assert_eq!(call(&layer, get("/"), 503).await.status(), 503);
    }
    assert_eq!(limiter.peek(b"alice".as_slice()), 2);
    let kept = layer.clone().no_refunds();
    assert_eq!(call(&kept, get("/"), 503).await.status(), 503);
    assert_eq!(limiter.peek(b"alice".as_slice()), 1);
    let own = layer.refund_if(|response| response.status() == StatusCode::NOT_FOUND);
    assert_eq!(call(&own, get("/"), 404).await.status(), 404);
    assert_eq!(limiter.peek(b"alice".as_slice()), 1);
    assert_eq!(call(&own, get("/"), 503).await.status(), 503);
    assert_eq!(limiter.peek(b"alice".as_slice()), 0);
}

/// Calls a service that responds in gRPC, with these trailers behind one message.
async fn call_grpc(layer: &RateLimitLayer, trailers: &[(&'static str, &'static str)]) {
    let trailers: HeaderMap = trailers
        .iter()
        .map(|&(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect();
    let inner = service_fn(|_: Request<()>| async {
        let body = Full::new(Bytes::from_static(b"message"));
        let body = body.with_trailers(ready(Some(Ok(trailers.clone()))));
        let response = Response::builder().header(CONTENT_TYPE, "application/grpc+proto");
        Ok::<_, Infallible>(response.body(body).unwrap())
    });
    let response = layer.layer(inner).oneshot(get("/")).await.unwrap();
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers(), Some(&trailers));
}

#[tokio::test]
async fn no_limit_of_a_stack_is_charged_for_what_one_further_in_refuses_in_any_way() {
    let (all, many, each) = (limiter(100), limiter(100), limiter(1));
    let outer = RateLimitLayer::from_limiter(all.clone()).key(key::global());
    let middle = by_key(&many);
    let custom = |status| {
        by_key(&each).on_limited(move |_, _| {
            let mut response = Response::new(Full::<Bytes>::default());
            *response.status_mut() = status;
            response
        })
    };
    let ok = service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let answering = |status| outer.layer(middle.layer(custom(status).layer(ok)));
    let elsewhere = answering(StatusCode::SEE_OTHER);
    let grpc = outer.layer(middle.layer(by_key(&each).layer(ok)));
    let left_of = |limit: &Limiter| (limit.peek(()), limit.peek(b"alice".as_slice()));
    elsewhere.clone().oneshot(get("/")).await.unwrap();
    let left = (left_of(&all), left_of(&many));
    assert_eq!(left, ((99, 100), (100, 99)));
    let response = elsewhere.oneshot(get("/")).await.unwrap();
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    // Some callers can only be told in the body.
    let response = answering(StatusCode::OK).oneshot(get("/")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut request = get("/");
    let content_type = "application/grpc".parse().unwrap();
    request.headers_mut().insert(CONTENT_TYPE, content_type);
    let response = grpc.oneshot(request).await.unwrap();
    assert_eq!(header(response.headers(), "grpc-status"), "8");
    assert_eq!((left_of(&all), left_of(&many)), left);
}

#[tokio::test]
async fn a_grpc_call_that_its_trailers_call_not_served_costs_no_quota() {
    let limiter = limiter(2);
    let layer = by_key(&limiter);
    let pushback = ("grpc-retry-pushback-ms", "100");
    call_grpc(&layer, &[("grpc-status", "14"), pushback]).await;
    assert_eq!(limiter.peek(b"alice".as_slice()), 2);
    call_grpc(&layer, &[("grpc-status", "14")]).await;
    assert_eq!(limiter.peek(b"alice".as_slice()), 1);
    let own = layer.refund_if(|response| {
        let status = response.headers().get("grpc-status");
        status.is_some_and(|status| status == "5")
    });
    call_grpc(&own, &[("grpc-status", "5")]).await;
    assert_eq!(limiter.peek(b"alice".as_slice()), 1);
    call_grpc(&own, &[("grpc-status", "0")]).await;
    assert_eq!(limiter.peek(b"alice".as_slice()), 0);
}

#[tokio::test]
async fn a_policy_settles_a_grpc_call_by_its_trailers() {
    let limiter = Limiter::builder()
        .policy(
            Policy::new("failures are free", Quota::count(10).per(HOUR))
                .cost(|_| 3)
                .settle(|response| response.is_failure().then_some(0)),
        )
        .clock(ManualClock::new())
        .build()
        .unwrap();
    let layer = by_key(&limiter);
    call_grpc(&layer, &[("grpc-status", "13")]).await;
    assert_eq!(limiter.peek(b"alice".as_slice()), 10);
    call_grpc(&layer, &[("grpc-status", "0")]).await;
    assert_eq!(limiter.peek(b"alice".as_slice()), 7);
    // Shed further in: given back once, not by the shedding and by the policy.
    let pushback = ("grpc-retry-pushback-ms", "100");
    call_grpc(&layer, &[("grpc-status", "14"), pushback]).await;
    assert_eq!(limiter.peek(b"alice".as_slice()), 7);
}

#[tokio::test]
async fn a_grpc_call_whose_body_is_dropped_is_settled_by_its_head() {
    #[derive(Clone)]
    struct Used(u64);
    let limiter = Limiter::builder()
        .policy(
            Policy::new("tokens", Quota::count(10).per(HOUR))
                .cost(|_| 3)
                .settle(|response| Some(response.extensions().get::<Used>()?.0)),
        )
        .clock(ManualClock::new())
        .build()
        .unwrap();
    let inner = service_fn(async |_: Request<()>| {
        let response = Response::builder().header(CONTENT_TYPE, "application/grpc");
        let body = Full::new(Bytes::from_static(b"message"));
        Ok::<_, Infallible>(response.extension(Used(5)).body(body).unwrap())
    });
    let service = by_key(&limiter).layer(inner);
    let response = service.oneshot(get("/")).await.unwrap();
    assert_eq!(limiter.peek(b"alice".as_slice()), 7);
    drop(response);
    assert_eq!(limiter.peek(b"alice".as_slice()), 5);
}

#[tokio::test]
async fn a_request_that_is_shed_when_its_layer_is_gone_costs_no_quota() {
    let limiter = limiter(2);
    let inner = service_fn(async |_: Request<()>| {
        tokio::task::yield_now().await;
        let response = Response::builder().status(503).header("retry-after", "1");
        Ok::<_, Infallible>(response.body(Full::<Bytes>::default()).unwrap())
    });
    let mut service = by_key(&limiter).layer(inner);
    let response = service.call(get("/"));
    drop(service);
    assert_eq!(limiter.peek(b"alice".as_slice()), 1);
    assert_eq!(response.await.unwrap().status(), 503);
    assert_eq!(limiter.peek(b"alice".as_slice()), 2);
}

#[tokio::test]
async fn a_request_that_is_shed_when_its_limiter_is_gone_is_answered_as_ever() {
    let layer = by_key(&limiter(2));
    let inner = service_fn(async |_: Request<()>| {
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(Response::builder().status(503).body(()).unwrap())
    });
    let mut service = layer.layer(inner);
    let response = service.call(get("/"));
    drop((service, layer));
    assert_eq!(response.await.unwrap().status(), 503);
}

#[tokio::test]
async fn a_shed_request_is_given_back_once_where_policies_settle_too() {
    let limiter = Limiter::builder()
        .policy(
            Policy::new("settled", Quota::count(10).per(HOUR))
                .cost(|_| 3)
                .settle(|_| Some(0)),
        )
        .policy(Policy::new("kept", Quota::count(10).per(HOUR)).cost(|_| 3))
        .clock(ManualClock::new())
        .build()
        .unwrap();
    limiter.check_n(b"alice".as_slice(), 5).unwrap();
    assert_eq!(call(&by_key(&limiter), get("/"), 503).await.status(), 503);
    assert_eq!(limiter.peek(b"alice".as_slice()), 5);
}

#[tokio::test]
async fn what_an_inner_limit_refuses_costs_no_outer_quota() {
    let (all, each) = (limiter(100), limiter(1));
    let outer = RateLimitLayer::from_limiter(all.clone()).key(key::global());
    let inner = by_key(&each);
    let ok = service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let stack = outer.layer(inner.layer(ok));
    let mut admitted = 0;
    for _ in 0..50 {
        let response = stack.clone().oneshot(get("/")).await.unwrap();
        admitted += u32::from(response.status() == 200);
    }
    assert_eq!((admitted, all.peek(())), (1, 99));
}

#[tokio::test]
async fn a_handler_sees_what_is_left_to_its_caller_and_corrects_what_was_charged() {
    let limiter = Limiter::builder()
        .policy(Policy::new("requests", Quota::count(100).per(HOUR)))
        .policy(Policy::new("tokens", Quota::count(1_000).per(HOUR)).cost(|_| 50))
        .clock(ManualClock::new())
        .build()
        .unwrap();
    // A key that cannot be named otherwise.
    let layer = RateLimitLayer::from_limiter(limiter.clone())
        .key(key::path().and(key::peer()))
        .tell_caller(true);
    let inner = service_fn(async |request: Request<()>| {
        let caller = request.extensions().get::<Caller>().unwrap().clone();
        assert_eq!(caller.remaining(), 99);
        caller.penalize(9);
        assert_eq!(caller.peek(), 90);
        caller.refund(4);
        // The body was streamed, and now the tokens are counted.
        caller.settle("tokens", 995);
        assert_eq!(caller.peek(), 0);
        caller.settle("unknown", 1);
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let mut request = get("/");
    let addr = SocketAddr::from(([192, 0, 2, 1], 9));
    request.extensions_mut().insert(PeerAddr::new(addr));
    layer.layer(inner).oneshot(request).await.unwrap();
}

#[tokio::test]
async fn limits_are_switched_off_and_to_shadow_while_running() {
    let limiter = limiter(1);
    let layer = by_key(&limiter);
    assert_eq!(status(&layer, get("/")).await, 200);
    assert_eq!(status(&layer, get("/")).await, 429);
    limiter.set_mode(Mode::Shadow);
    assert_eq!(status(&layer, get("/")).await, 200);
    assert!(limiter.check("bob").is_ok());
    assert!(limiter.check("bob").is_ok());
    limiter.set_mode(Mode::Off);
    assert_eq!(status(&layer, get("/")).await, 200);
    assert!(limiter.check("carol").is_ok());
    drop(limiter.reserve("carol", 1).unwrap());
    assert_eq!(limiter.peek("carol"), 1, "nothing is charged");
    limiter.set_mode(Mode::Enforce);
    assert_eq!(limiter.mode(), Mode::Enforce);
    assert_eq!(status(&layer, get("/")).await, 429);
    assert!(limiter.check("bob").is_err());
}

#[tokio::test]
async fn networks_are_denied_whatever_the_key_is() {
    let from = |ip: &str| {
        let mut request = get("/");
        let addr = SocketAddr::new(ip.parse().unwrap(), 9);
        request.extensions_mut().insert(PeerAddr::new(addr));
        request
    };
    let networks = || AccessList::networks(["192.0.2.0/24"]).unwrap();
    for key in [
        key::header("x-api-key"),
        key::path(),
        key::global(),
        key::peer().into(),
    ] {
        let layer = RateLimitLayer::from_limiter(limiter(1)).key(key);
        let denied = layer.clone().deny(networks());
        assert_eq!(status(&denied, from("192.0.2.1")).await, 403);
        let allowed = layer.allow(networks());
        for _ in 0..3 {
            assert_eq!(status(&allowed, from("192.0.2.1")).await, 200);
        }
    }
}

#[tokio::test]
async fn lists_are_replaced_while_running() {
    let mut layer = by_key(&limiter(1));
    let lists = layer.lists();
    assert_eq!(status(&layer, get("/")).await, 200);
    lists.set_deny(AccessList::keys(["alice"]));
    assert_eq!(status(&layer, get("/")).await, 403);
    lists.set_deny(AccessList::default());
    lists.set_allow(AccessList::keys(["alice"]));
    assert_eq!(status(&layer, get("/")).await, 200);
    lists.set_allow(AccessList::default());
    assert_eq!(status(&layer, get("/")).await, 429);
}

#[tokio::test]
async fn a_body_of_undeclared_length_does_not_evade_a_quota_of_bytes() {
    let limiter = Limiter::builder()
        .policy(
            Policy::new("upload", Quota::count(1_000).per(HOUR))
                .cost(|request| request.body_length().unwrap_or(u64::MAX)),
        )
        .clock(ManualClock::new())
        .build()
        .unwrap();
    let layer = by_key(&limiter);
    let post = |name: &'static str, value: &'static str| {
        let request = Request::post("/").header("x-api-key", "alice");
        request.header(name, value).body(()).unwrap()
    };
    assert_eq!(status(&layer, post("content-length", "900")).await, 200);
    assert_eq!(status(&layer, post("content-length", "900")).await, 429);
    assert_eq!(
        status(&layer, post("transfer-encoding", "chunked")).await,
        429
    );
    let mut h2 = post("accept", "*/*");
    *h2.version_mut() = http::Version::HTTP_2;
    assert_eq!(status(&layer, h2).await, 429);
    assert_eq!(status(&layer, get("/")).await, 200, "no body costs nothing");
    assert_eq!(
        status(&layer, post("accept", "*/*")).await,
        200,
        "nor does an empty one"
    );
}

#[tokio::test]
async fn an_own_answer_can_say_in_seconds_when_to_come_back() {
    let layer = by_key(&limiter(3600)).on_limited(|limited, _| {
        let mut response = Response::new(Full::<Bytes>::default());
        let wait = limited.retry_after_seconds().unwrap();
        response.headers_mut().insert("retry-after", wait.into());
        assert_eq!(
            limited.violated_quotas().next(),
            Some(Quota::count(3600).per(HOUR))
        );
        assert!(!limited.never_conforms());
        response
    });
    let limiter = layer.limiter().clone();
    limiter.check_n(b"alice".as_slice(), 3600).unwrap();
    let inner = service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let response = layer.layer(inner).oneshot(get("/")).await.unwrap();
    assert_eq!(header(response.headers(), "retry-after"), "1");
    assert!(response.extensions().get::<Refused>().is_some());
}

#[tokio::test]
async fn plans_are_looked_up_in_a_table_of_customers() {
    let table = std::collections::HashMap::from([("alice".to_owned(), "pro".to_owned())]);
    let limiter = Limiter::builder()
        .quota(Quota::count(1).per(HOUR))
        .plan("pro", [Policy::new("default", Quota::count(5).per(HOUR))])
        .build()
        .unwrap();
    let layer = by_key(&limiter).plan_owned(move |request| {
        let key = request.headers().get("x-api-key")?.to_str().ok()?;
        table.get(key).cloned()
    });
    for _ in 0..5 {
        assert_eq!(status(&layer, get("/")).await, 200);
    }
    assert_eq!(status(&layer, get("/")).await, 429);
}
