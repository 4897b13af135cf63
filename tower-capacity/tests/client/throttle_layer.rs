//! The throttle as a layer, around clients that answer what the test says.

use std::{
    convert::Infallible,
    future::Ready,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::time::{advance, sleep};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower::{Layer, Service, ServiceExt, retry::Policy, service_fn};
use tower_capacity::{
    DefaultReject,
    throttle::{
        Answer, RetryAdvice, RetryBudget, RetryBudgetConfig, THROTTLED_HEADER, Throttle,
        ThrottleConfig, ThrottleLayer, Throttled, Throttler,
    },
};
use tower_test::mock;

type Body = Full<Bytes>;
type Mock = mock::Mock<Request<()>, Response<Body>>;
type Handle = mock::Handle<Request<()>, Response<Body>>;

/// A backend that gives one response, and counts what it is sent.
#[derive(Clone)]
struct Backend {
    answer: Arc<dyn Fn() -> Response<Body> + Send + Sync>,
    sent: Arc<AtomicUsize>,
}

impl Backend {
    fn new(answer: impl Fn() -> Response<Body> + Send + Sync + 'static) -> Self {
        Self {
            answer: Arc::new(answer),
            sent: Arc::default(),
        }
    }

    fn status(status: u16) -> Self {
        Self::new(move || {
            let response = Response::builder().status(status);
            response.body(Body::default()).unwrap()
        })
    }

    fn rejecting_with(name: &'static str, value: &'static str) -> Self {
        Self::new(move || {
            let response = Response::builder().status(503).header(name, value);
            response.body(Body::default()).unwrap()
        })
    }

    fn sent(&self) -> usize {
        self.sent.load(SeqCst)
    }
}

impl Service<Request<()>> for Backend {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _request: Request<()>) -> Self::Future {
        self.sent.fetch_add(1, SeqCst);
        std::future::ready(Ok((self.answer)()))
    }
}

/// A throttler that sends next to nothing to paths in which all was rejected.
fn strict() -> Throttler {
    Throttler::new(ThrottleConfig::new().share(0.0)).unwrap()
}

/// A throttler of a backend that has accepted nothing for ten seconds, and that has just sent what it
/// sends each second.
async fn desperate() -> Throttler {
    let throttler = strict();
    for _ in 0..=100 {
        let (attempt, _would) = throttler.admit_anyway(Some("/"));
        attempt.answered(Answer::Rejected(RetryAdvice::Untold));
        advance(Duration::from_millis(100)).await;
    }
    let probe = throttler.admit(Some("/")).unwrap();
    probe.answered(Answer::Rejected(RetryAdvice::Untold));
    throttler
}

async fn call<S, R>(
    service: &mut Throttle<S, R>,
) -> Response<tower_capacity::layer::CapacityBody<Body>>
where
    Throttle<S, R>: Service<
            Request<()>,
            Response = Response<tower_capacity::layer::CapacityBody<Body>>,
            Error = Infallible,
        >,
{
    let ready = service.ready().await.unwrap();
    ready.call(Request::new(())).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_sent_is_answered_and_marked() {
    let backend = Backend::status(200);
    let mut service = ThrottleLayer::new(desperate().await).layer(backend.clone());
    let response = call(&mut service).await;
    assert_eq!(backend.sent(), 0);
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(response.headers()[THROTTLED_HEADER], "adaptive");
    let throttled = response.extensions().get::<Throttled>().unwrap();
    assert_eq!(throttled.rejections(), 102);
    assert_eq!(
        Answer::of(&response),
        Answer::Rejected(RetryAdvice::Never),
        "it is not to be retried"
    );
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "not sent: the backend is overloaded\n");
}

#[tokio::test(start_paused = true)]
async fn a_grpc_request_that_is_not_sent_gets_a_trailers_only_status() {
    let mut service = ThrottleLayer::new(desperate().await).layer(Backend::status(200));
    let request = Request::builder()
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let response = service.ready().await.unwrap().call(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(response.headers()["grpc-retry-pushback-ms"], "-1");
    assert!(http_body::Body::is_end_stream(response.body()));
}

#[tokio::test(start_paused = true)]
async fn the_layer_has_one_throttler_however_often_it_is_applied() {
    let layer = ThrottleLayer::new(strict());
    let (mut first, mut second) = (
        layer.layer(Backend::status(503)),
        layer.layer(Backend::status(503)),
    );
    for _ in 0..3 {
        call(&mut first.clone()).await;
        call(&mut second).await;
    }
    assert_eq!(layer.throttler().snapshot().rejections(), 6);
    call(&mut first).await;
    assert_eq!(layer.throttler().snapshot().rejections(), 7);
}

#[tokio::test(start_paused = true)]
async fn retry_after_of_one_request_silences_no_other() {
    for (name, value) in [
        ("retry-after", "7"),
        ("retry-after", "3600"),
        ("retry-after", "Wed, 21 Oct 2115 08:28:00 GMT"),
    ] {
        let backend = Backend::rejecting_with(name, value);
        let mut service = ThrottleLayer::adaptive().layer(backend.clone());
        for _ in 0..20 {
            call(&mut service).await;
        }
        assert_eq!(backend.sent(), 20, "{name}: {value}");
    }
}

#[tokio::test(start_paused = true)]
async fn grpc_pushback_of_one_call_silences_no_other() {
    for pushback in ["250", "3600000", "-1"] {
        let backend = Backend::new(move || {
            Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-status", "8")
                .header("grpc-retry-pushback-ms", pushback)
                .body(Body::default())
                .unwrap()
        });
        let layer = ThrottleLayer::adaptive();
        for _ in 0..20 {
            call(&mut layer.layer(backend.clone())).await;
        }
        assert_eq!(backend.sent(), 20, "{pushback}");
        assert_eq!(layer.throttler().snapshot().rejections(), 20);
    }
}

#[tokio::test(start_paused = true)]
async fn a_quota_that_is_used_up_withholds_nothing_however_long() {
    let backend = Backend::status(429);
    let layer = ThrottleLayer::new(strict());
    let mut service = layer.layer(backend.clone());
    for _ in 0..1_000 {
        call(&mut service).await;
        advance(Duration::from_millis(100)).await;
    }
    assert_eq!(backend.sent(), 1_000);
    let snapshot = layer.throttler().snapshot();
    assert_eq!((snapshot.accepts(), snapshot.rejections()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_path_that_is_rejected_silences_no_other_and_neither_does_a_key() {
    let ask = |path: &str, tenant: &str| {
        let request = Request::builder().uri(path).header("x-tenant", tenant);
        request.body(()).unwrap()
    };
    let backend = Backend::status(200);
    let layer = ThrottleLayer::new(desperate().await);
    let mut service = layer.layer(backend.clone());
    service.call(ask("/", "a")).await.unwrap();
    assert_eq!(backend.sent(), 0);
    service.call(ask("/other", "a")).await.unwrap();
    assert_eq!(backend.sent(), 1);

    let by_tenant = ThrottleLayer::new(strict())
        .key(|request| Some(request.headers.get("x-tenant")?.to_str().ok()?.to_owned()))
        .classify(|response| match response.status {
            StatusCode::IM_A_TEAPOT => Answer::Rejected(RetryAdvice::Untold),
            _ => Answer::Accepted,
        });
    let (teapot, backend) = (Backend::status(418), Backend::status(200));
    for _ in 0..=100 {
        let mut rejected = by_tenant.layer(teapot.clone());
        rejected.call(ask("/", "greedy")).await.unwrap();
        advance(Duration::from_millis(100)).await;
    }
    assert_eq!(by_tenant.throttler().snapshot().withholding_kinds(), 1);
    let mut service = by_tenant.layer(backend.clone());
    for _ in 0..10 {
        service.call(ask("/", "polite")).await.unwrap();
    }
    assert_eq!(backend.sent(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_sent_has_no_body_if_it_was_a_head() {
    let mut service = ThrottleLayer::new(desperate().await).layer(Backend::status(200));
    let head = Request::head("/").body(()).unwrap();
    let response = service.call(head).await.unwrap();
    assert_eq!(response.headers()["content-length"], "36");
    assert!(http_body::Body::is_end_stream(response.body()));
}

#[tokio::test(start_paused = true)]
async fn a_bypassed_request_is_sent_and_not_counted() {
    let backend = Backend::status(200);
    let layer = ThrottleLayer::new(desperate().await).bypass(|_request| true);
    let before = layer.throttler().snapshot();
    assert_eq!(
        call(&mut layer.layer(backend)).await.status(),
        StatusCode::OK
    );
    assert_eq!(layer.throttler().snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn shadow_mode_sends_everything() {
    let backend = Backend::status(200);
    let layer = ThrottleLayer::new(desperate().await).shadow(true);
    let mut service = layer.layer(backend.clone());
    let before = layer.throttler().snapshot();
    for _ in 0..10 {
        assert_eq!(call(&mut service).await.status(), StatusCode::OK);
    }
    assert_eq!(backend.sent(), 10);
    let after = layer.throttler().snapshot();
    assert_eq!(after.accepts(), before.accepts() + 10);
    assert_eq!(after.withheld(), before.withheld() + 1, "one was accepted");
}

#[tokio::test(start_paused = true)]
async fn a_hook_answers_in_other_words_and_the_answer_is_marked_all_the_same() {
    let layer = ThrottleLayer::new(desperate().await).on_shed(|throttled, request| {
        let text = format!("{} {}", request.uri.path(), throttled.rejections());
        Response::builder()
            .status(529)
            .body(Body::from(text))
            .unwrap()
    });
    let response = call(&mut layer.layer(Backend::status(200))).await;
    assert_eq!(response.status().as_u16(), 529);
    assert_eq!(response.headers()[THROTTLED_HEADER], "adaptive");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "/ 102");
}

#[tokio::test(start_paused = true)]
async fn a_classifier_says_what_a_rejection_is() {
    let layer = ThrottleLayer::adaptive().classify(|response| match response.status.as_u16() {
        500 => Answer::Rejected(RetryAdvice::After(Duration::from_secs(3))),
        _ => Answer::of_parts(response),
    });
    call(&mut layer.layer(Backend::status(500))).await;
    let snapshot = layer.throttler().snapshot();
    assert_eq!((snapshot.accepts(), snapshot.rejections()), (0, 1));
}

fn mocked() -> (Throttle<Mock>, Handle, Throttler) {
    let layer = ThrottleLayer::adaptive();
    let throttler = layer.throttler().clone();
    let (service, handle) = mock::pair();
    (layer.layer(service), handle, throttler)
}

#[tokio::test]
async fn readiness_is_that_of_the_inner_service() {
    let (mut service, mut handle, _throttler) = mocked();
    let mut readiness = task::spawn(());
    handle.allow(0);
    assert_pending!(readiness.enter(|cx, _| service.poll_ready(cx)));
    handle.allow(1);
    assert_ready_ok!(readiness.enter(|cx, _| service.poll_ready(cx)));
}

#[tokio::test]
async fn a_request_in_flight_counts_for_nothing_yet() {
    let (mut service, mut handle, throttler) = mocked();
    handle.allow(100);
    let mut readiness = task::spawn(());
    let mut running = Vec::new();
    for _ in 0..100 {
        assert_ready_ok!(readiness.enter(|cx, _| service.poll_ready(cx)));
        running.push(service.call(Request::new(())));
    }
    let snapshot = throttler.snapshot();
    assert_eq!((snapshot.accepts(), snapshot.rejections()), (0, 0));
    drop(running);
    let snapshot = throttler.snapshot();
    assert_eq!((snapshot.accepts(), snapshot.rejections()), (0, 100));
}

#[tokio::test]
async fn the_inner_error_passes_unchanged_and_counts_as_not_accepted() {
    let (mut service, mut handle, throttler) = mocked();
    handle.allow(1);
    let mut readiness = task::spawn(());
    assert_ready_ok!(readiness.enter(|cx, _| service.poll_ready(cx)));
    let mut response = task::spawn(service.call(Request::new(())));
    assert_pending!(response.poll());
    let (_request, send) = handle.next_request().await.unwrap();
    send.send_error("the inner error");
    let error = assert_ready_err!(response.poll());
    assert_eq!(error.to_string(), "the inner error");
    let snapshot = throttler.snapshot();
    assert_eq!((snapshot.accepts(), snapshot.rejections()), (0, 1));
}

#[tokio::test]
async fn accessors_reach_the_inner_service_and_everything_can_be_printed() {
    let layer = ThrottleLayer::adaptive();
    let mut service: Throttle<u32, DefaultReject> = layer.layer(7);
    *service.get_mut() += 1;
    assert_eq!(*service.get_ref(), 8);
    let text = format!("{layer:?} {service:?}");
    assert!(text.contains("rejections: 0"), "{text}");
    assert_eq!(service.into_inner(), 8);
    let mut service = layer.layer(Backend::status(200));
    let future = service.call(Request::new(()));
    assert!(format!("{future:?}").contains("sent"));
    assert!(future.now_or_never().is_some());
}

/// Retries refused requests up to twice, as the docs of `RetryBudget` show.
#[derive(Clone)]
struct RetryRejected {
    budget: RetryBudget,
    retries: u32,
}

impl<B, E> Policy<Request<()>, Response<B>, E> for RetryRejected {
    type Future = tokio::time::Sleep;

    fn retry(
        &mut self,
        _request: &mut Request<()>,
        result: &mut Result<Response<B>, E>,
    ) -> Option<tokio::time::Sleep> {
        if self.retries == 0 {
            self.budget.deposit();
        }
        let advice = Answer::of(result.as_ref().ok()?).advice()?;
        self.retries += 1;
        let wait = match advice {
            RetryAdvice::After(wait) => wait,
            RetryAdvice::Untold => Duration::from_millis(50) * self.retries,
            _ => return None,
        };
        (self.retries <= 2 && self.budget.withdraw()).then(|| sleep(wait))
    }

    fn clone_request(&mut self, request: &Request<()>) -> Option<Request<()>> {
        Some(request.clone())
    }
}

/// What a backend sees of 1,000 requests in a second, each retried as the policy may.
async fn sent_with(budget: RetryBudgetConfig, backend: &Backend) -> usize {
    let policy = RetryRejected {
        budget: RetryBudget::new(budget).unwrap(),
        retries: 0,
    };
    let service = tower::ServiceBuilder::new()
        .retry(policy)
        .service(backend.clone());
    let calls = (0..1_000).map(|request| {
        let service = service.clone();
        async move {
            sleep(Duration::from_millis(request)).await;
            service.oneshot(Request::new(())).await.unwrap()
        }
    });
    futures_util::future::join_all(calls).await;
    backend.sent()
}

#[tokio::test(start_paused = true)]
async fn a_budget_keeps_retries_to_a_tenth() {
    let boundless = RetryBudgetConfig::new().ratio(2.0);
    let sent = sent_with(boundless, &Backend::status(503)).await;
    assert!(sent > 2_900, "{sent}: nearly three attempts each");
    let sent = sent_with(RetryBudgetConfig::new(), &Backend::status(503)).await;
    assert!((1_100..=1_110).contains(&sent), "{sent}");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_says_never_is_not_asked_again() {
    let backend = Backend::new(|| {
        Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "14")
            .header("grpc-retry-pushback-ms", "-1")
            .body(Body::default())
            .unwrap()
    });
    assert_eq!(sent_with(RetryBudgetConfig::new(), &backend).await, 1_000);
}

#[tokio::test(start_paused = true)]
async fn the_documented_retry_policy_ends_however_long_a_backend_asks_to_wait() {
    for (told, most) in [("30", 60), ("3600", 0), ("99999999999999999999", 0)] {
        let backend = Backend::rejecting_with("retry-after", told);
        let policy = RetryRejected {
            budget: RetryBudget::default(),
            retries: 0,
        };
        let service = tower::ServiceBuilder::new()
            .retry(policy)
            .layer(ThrottleLayer::adaptive())
            .service(backend);
        let start = tokio::time::Instant::now();
        let response = service.oneshot(Request::new(())).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(start.elapsed(), Duration::from_secs(most), "{told}");
    }
}

#[tokio::test(start_paused = true)]
async fn clones_of_a_budget_share_it() {
    let budget = RetryBudget::default();
    assert_eq!(budget.balance(), 10);
    let clone = budget.clone();
    for _ in 0..10 {
        assert!(clone.withdraw());
    }
    assert!(!budget.withdraw());
    advance(Duration::from_secs(10)).await;
    assert_eq!(budget.balance(), 10);
}

#[tokio::test]
async fn any_service_of_requests_fits() {
    let client =
        service_fn(async |_: Request<Body>| Ok::<_, Infallible>(Response::new(Body::default())));
    let service = tower::ServiceBuilder::new()
        .layer(ThrottleLayer::adaptive())
        .service(client);
    fn is_cloneable<T: Clone + Send + Sync>(_: &T) {}
    is_cloneable(&service);
    let response = service
        .oneshot(Request::new(Body::default()))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}
