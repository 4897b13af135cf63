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
        ThrottleConfig, ThrottleLayer, Throttled, ThrottledReason, Throttler,
    },
};
use tower_test::mock;

type Body = Full<Bytes>;
type Mock = mock::Mock<Request<()>, Response<Body>>;
type Handle = mock::Handle<Request<()>, Response<Body>>;

/// A backend that gives one answer, and counts what it is sent.
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

/// Refuses whatever it may, so that nothing is left to chance.
fn strict() -> Throttler {
    Throttler::new(ThrottleConfig::new().padding(1.0).max_probability(1.0)).unwrap()
}

/// A throttler whose backend has rejected so much that nearly nothing is sent.
fn desperate() -> Throttler {
    let throttler = strict();
    for _ in 0..200_000 {
        let (attempt, _would) = throttler.admit_anyway();
        attempt.answered(Answer::Rejected(RetryAdvice::Untold));
    }
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
    let mut service = ThrottleLayer::new(desperate()).layer(backend.clone());
    let response = call(&mut service).await;
    assert_eq!(backend.sent(), 0);
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(response.headers()[THROTTLED_HEADER], "adaptive");
    let throttled = response.extensions().get::<Throttled>().unwrap();
    assert_eq!(throttled.reason(), ThrottledReason::Adaptive);
    assert_eq!(
        Answer::of(&response),
        Answer::Rejected(RetryAdvice::Never),
        "nobody retries it"
    );
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "not sent: the backend is overloaded\n");
}

#[tokio::test(start_paused = true)]
async fn a_grpc_request_that_is_not_sent_gets_a_trailers_only_status() {
    let mut service = ThrottleLayer::new(desperate()).layer(Backend::status(200));
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
    assert_eq!(layer.throttler().snapshot().requests(), 6);
    call(&mut first).await;
    assert_eq!(layer.throttler().snapshot().requests(), 7);
}

#[tokio::test(start_paused = true)]
async fn retry_after_pauses_the_client_for_so_long() {
    let backend = Backend::rejecting_with("retry-after", "7");
    let layer = ThrottleLayer::adaptive();
    let mut service = layer.layer(backend.clone());
    call(&mut service).await;
    advance(Duration::from_millis(4_500)).await;
    let response = call(&mut service).await;
    assert_eq!(response.headers()["retry-after"], "3", "2.5 s, rounded up");
    assert_eq!(response.headers()[THROTTLED_HEADER], "paused");
    assert_eq!(backend.sent(), 1);
    advance(Duration::from_millis(2_500)).await;
    let paused = layer.throttler().snapshot().paused_for();
    assert_eq!(paused, None);
}

#[tokio::test(start_paused = true)]
async fn a_date_in_retry_after_pauses_and_an_hour_is_cut_to_a_minute() {
    let backend = Backend::new(|| {
        Response::builder()
            .status(429)
            .header("date", "Wed, 21 Oct 2015 07:28:00 GMT")
            .header("retry-after", "Wed, 21 Oct 2015 08:28:00 GMT")
            .body(Body::default())
            .unwrap()
    });
    let layer = ThrottleLayer::adaptive();
    call(&mut layer.layer(backend)).await;
    let paused = layer.throttler().snapshot().paused_for();
    assert_eq!(paused, Some(Duration::from_secs(60)));
}

#[tokio::test(start_paused = true)]
async fn grpc_pushback_pauses_and_a_negative_one_does_not() {
    for (pushback, paused) in [("250", Some(Duration::from_millis(250))), ("-1", None)] {
        let backend = Backend::new(move || {
            Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-status", "8")
                .header("grpc-retry-pushback-ms", pushback)
                .body(Body::default())
                .unwrap()
        });
        let layer = ThrottleLayer::adaptive();
        call(&mut layer.layer(backend)).await;
        let snapshot = layer.throttler().snapshot();
        assert_eq!(snapshot.paused_for(), paused, "{pushback}");
        assert_eq!((snapshot.requests(), snapshot.accepts()), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_bypassed_request_is_sent_during_a_pause_and_not_counted() {
    let backend = Backend::status(200);
    let layer = ThrottleLayer::adaptive().bypass(|_request| true);
    layer.throttler().pause(Duration::from_secs(10));
    assert_eq!(
        call(&mut layer.layer(backend)).await.status(),
        StatusCode::OK
    );
    assert_eq!(layer.throttler().snapshot().requests(), 0);
}

#[tokio::test(start_paused = true)]
async fn shadow_mode_sends_everything() {
    let backend = Backend::status(200);
    let layer = ThrottleLayer::new(desperate()).shadow(true);
    let mut service = layer.layer(backend.clone());
    let before = layer.throttler().snapshot();
    for _ in 0..10 {
        assert_eq!(call(&mut service).await.status(), StatusCode::OK);
    }
    assert_eq!(backend.sent(), 10);
    let after = layer.throttler().snapshot();
    assert_eq!(after.accepts(), before.accepts() + 10);
    assert_eq!(after.requests(), before.requests() + 10);
}

#[tokio::test(start_paused = true)]
async fn a_hook_answers_in_other_words_and_the_answer_is_marked_all_the_same() {
    let layer = ThrottleLayer::new(desperate()).on_shed(|throttled, request| {
        let text = format!("{} {}", request.uri.path(), throttled.accepts());
        Response::builder()
            .status(529)
            .body(Body::from(text))
            .unwrap()
    });
    let response = call(&mut layer.layer(Backend::status(200))).await;
    assert_eq!(response.status().as_u16(), 529);
    assert_eq!(response.headers()[THROTTLED_HEADER], "adaptive");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "/ 0");
}

#[tokio::test(start_paused = true)]
async fn a_classifier_says_what_a_rejection_is() {
    let layer = ThrottleLayer::adaptive().classify(|response| match response.status.as_u16() {
        500 => Answer::Rejected(RetryAdvice::After(Duration::from_secs(3))),
        _ => Answer::of_parts(response),
    });
    call(&mut layer.layer(Backend::status(500))).await;
    let snapshot = layer.throttler().snapshot();
    assert_eq!((snapshot.requests(), snapshot.accepts()), (1, 0));
    assert_eq!(snapshot.paused_for(), Some(Duration::from_secs(3)));
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
    assert_eq!((snapshot.requests(), snapshot.probability()), (0, 0.0));
    drop(running);
    let snapshot = throttler.snapshot();
    assert_eq!((snapshot.requests(), snapshot.accepts()), (100, 0));
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
    assert_eq!((snapshot.requests(), snapshot.accepts()), (1, 0));
}

#[tokio::test]
async fn accessors_reach_the_inner_service_and_everything_can_be_printed() {
    let layer = ThrottleLayer::adaptive();
    let mut service: Throttle<u32, DefaultReject> = layer.layer(7);
    *service.get_mut() += 1;
    assert_eq!(*service.get_ref(), 8);
    let text = format!("{layer:?} {service:?}");
    assert!(text.contains("requests: 0"), "{text}");
    assert_eq!(service.into_inner(), 8);
    let mut service = layer.layer(Backend::status(200));
    let future = service.call(Request::new(()));
    assert!(format!("{future:?}").contains("sent"));
    assert!(future.now_or_never().is_some());
}

/// Retries rejected requests up to twice, as the docs of `RetryBudget` show.
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
        let Answer::Rejected(advice) = Answer::of(result.as_ref().ok()?) else {
            return None;
        };
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
