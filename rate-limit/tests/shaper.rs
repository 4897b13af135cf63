//! The client's side, against servers that enforce what they say.

use std::{
    convert::Infallible,
    future::ready,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use rate_limit::{
    HOUR, Limiter, MINUTE, Quota, RateLimitLayer, SECOND, key,
    shaper::{
        PlainShaperLayer, Shaped, ShapedError, Shaper, ShaperError, ShaperLayer, WaitRefused,
    },
};
use tokio::{
    net::TcpListener,
    time::{Instant, advance, sleep},
};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneService};

fn request() -> Request<()> {
    Request::new(())
}

/// When each request was sent, in seconds since the log was made.
#[derive(Clone)]
struct Log {
    start: Instant,
    sent: Arc<Mutex<Vec<f64>>>,
}

impl Log {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            sent: Arc::default(),
        }
    }

    fn send(&self) {
        self.sent
            .lock()
            .unwrap()
            .push(self.start.elapsed().as_secs_f64());
    }

    fn sent(&self) -> Vec<f64> {
        self.sent.lock().unwrap().clone()
    }
}

type Upstream<B> = BoxCloneService<Request<()>, Response<B>, Infallible>;

/// A server behind `layer` that takes `time` for everything.
fn upstream(layer: &ShaperLayer, time: Duration) -> (Shaped<Upstream<Full<Bytes>>>, Log) {
    let log = Log::new();
    let kept = log.clone();
    let server = service_fn(move |_: Request<()>| {
        log.send();
        async move {
            sleep(time).await;
            Ok(Response::new(Full::from("ok")))
        }
    });
    (layer.layer(BoxCloneService::new(server)), kept)
}

#[tokio::test(start_paused = true)]
async fn requests_leave_in_order_at_the_pace_of_the_quota() {
    let shaper = Shaper::builder()
        .quota(Quota::count(2).per(SECOND).burst(2))
        .build()
        .unwrap();
    let (service, log) = upstream(&ShaperLayer::new(shaper), Duration::ZERO);
    let results = join_all((0..6).map(|_| service.clone().oneshot(request()))).await;
    assert!(results.iter().all(Result::is_ok));
    let expected = [0.0, 0.0, 0.5, 1.0, 1.5, 2.0];
    for (sent, expected) in log.sent().iter().zip(expected) {
        assert!((sent - expected).abs() < 0.01, "{:?}", log.sent());
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_are_under_way_than_may_be_and_a_body_counts_until_its_end() {
    let shaper = Shaper::builder().concurrency(2).build().unwrap();
    let (mut service, _) = upstream(&ShaperLayer::new(shaper.clone()), Duration::ZERO);
    let first = service.call(request()).await.unwrap();
    let second = service.call(request()).await.unwrap();
    let mut third = task::spawn(service.call(request()));
    assert_pending!(third.poll());
    assert_eq!((shaper.inflight(), shaper.waiting()), (2, 1));
    first.into_body().collect().await.unwrap();
    assert!(third.is_woken());
    drop(assert_ready!(third.poll()).unwrap());
    assert_eq!(shaper.waiting(), 0);
    drop(second);
    assert_eq!(shaper.inflight(), 0);
}

#[tokio::test(start_paused = true)]
async fn those_who_would_wait_too_long_are_refused_at_once() {
    let shaper = Shaper::builder()
        .quota(Quota::count(1).per(SECOND))
        .max_wait(3 * SECOND)
        .max_queue(100)
        .build()
        .unwrap();
    let layer = ShaperLayer::new(shaper.clone());
    let (mut service, _) = upstream(&layer, Duration::ZERO);
    service.call(request()).await.unwrap();
    let mut waiting: Vec<_> = (0..3)
        .map(|_| task::spawn(service.call(request())))
        .collect();
    for future in &mut waiting {
        assert_pending!(future.poll());
    }
    let start = Instant::now();
    let refused = service.call(request()).await.unwrap_err();
    assert!(matches!(
        refused,
        ShapedError::Refused(WaitRefused::TooLong { expected }) if expected == 4 * SECOND
    ));
    assert_eq!(start.elapsed(), Duration::ZERO);

    let impatient = layer.patience(|_| Some(SECOND));
    let (mut service, _) = upstream(&impatient, Duration::ZERO);
    let refused = service.call(request()).await.unwrap_err();
    assert!(matches!(
        refused,
        ShapedError::Refused(WaitRefused::TooLong { .. })
    ));
    assert_eq!(shaper.waiting(), 3, "the refused left nothing behind");
}

#[tokio::test(start_paused = true)]
async fn the_line_is_bounded() {
    let shaper = Shaper::builder()
        .concurrency(1)
        .max_queue(2)
        .build()
        .unwrap();
    let (mut service, _) = upstream(&ShaperLayer::new(shaper), HOUR);
    let mut futures: Vec<_> = (0..3)
        .map(|_| task::spawn(service.call(request())))
        .collect();
    for future in &mut futures {
        assert_pending!(future.poll());
    }
    let refused = service.call(request()).await.unwrap_err();
    assert!(matches!(
        refused,
        ShapedError::Refused(WaitRefused::QueueFull)
    ));
    assert_eq!(
        std::error::Error::source(&refused).unwrap().to_string(),
        "too many requests are waiting already"
    );
}

#[tokio::test(start_paused = true)]
async fn waiting_for_others_to_finish_ends_at_the_deadline() {
    let shaper = Shaper::builder()
        .concurrency(1)
        .max_wait(5 * SECOND)
        .build()
        .unwrap();
    let (mut service, _) = upstream(&ShaperLayer::new(shaper.clone()), HOUR);
    let mut stuck = task::spawn(service.call(request()));
    assert_pending!(stuck.poll());
    let start = Instant::now();
    let refused = service.call(request()).await.unwrap_err();
    assert!(matches!(
        refused,
        ShapedError::Refused(WaitRefused::TooLong { .. })
    ));
    assert_eq!(start.elapsed().as_secs(), 5);
    assert_eq!(shaper.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_who_leaves_the_line_costs_nothing_and_lets_the_next_move_up() {
    let shaper = Shaper::builder()
        .quota(Quota::count(1).per(SECOND))
        .build()
        .unwrap();
    let (mut service, log) = upstream(&ShaperLayer::new(shaper.clone()), Duration::ZERO);
    service.call(request()).await.unwrap();
    let mut leaving = task::spawn(service.call(request()));
    let mut staying = task::spawn(service.call(request()));
    assert_pending!(leaving.poll());
    assert_pending!(staying.poll());
    drop(leaving);
    assert!(staying.is_woken(), "first in line now");
    assert_pending!(staying.poll());
    advance(SECOND).await;
    assert!(staying.is_woken());
    drop(assert_ready!(staying.poll()).unwrap());
    assert_eq!(log.sent().len(), 2, "one second later, not two");
    assert_eq!((shaper.inflight(), shaper.waiting()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn one_who_leaves_while_under_way_frees_the_place() {
    let shaper = Shaper::builder().concurrency(1).build().unwrap();
    let (mut service, _) = upstream(&ShaperLayer::new(shaper.clone()), HOUR);
    let mut leaving = task::spawn(service.call(request()));
    let mut next = task::spawn(service.call(request()));
    assert_pending!(leaving.poll());
    assert_pending!(next.poll());
    drop(leaving);
    assert!(next.is_woken());
    assert_pending!(next.poll());
    assert_eq!((shaper.inflight(), shaper.waiting()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_future_that_is_never_polled_blocks_nobody() {
    let shaper = Shaper::builder().concurrency(1).build().unwrap();
    let (mut service, _) = upstream(&ShaperLayer::new(shaper), Duration::ZERO);
    let _aside = service.call(request());
    service.call(request()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_request_larger_than_a_burst_is_refused() {
    let shaper = Shaper::builder()
        .quota(Quota::count(10).per(SECOND).burst(3))
        .build()
        .unwrap();
    let layer = ShaperLayer::new(shaper).cost(|request| request.content_length().unwrap_or(1));
    let (mut service, log) = upstream(&layer, Duration::ZERO);
    let sized = |length: &str| {
        Request::builder()
            .header("content-length", length)
            .body(())
            .unwrap()
    };
    let refused = service.call(sized("4")).await.unwrap_err();
    assert!(matches!(
        refused,
        ShapedError::Refused(WaitRefused::TooLarge)
    ));
    service.call(sized("3")).await.unwrap();
    service.call(sized("2")).await.unwrap();
    assert!((log.sent()[1] - 0.2).abs() < 0.01, "{:?}", log.sent());
}

/// Answers with each of `responses` in turn, then 200.
fn scripted(layer: &ShaperLayer, responses: Vec<Response<()>>) -> (Shaped<Upstream<()>>, Log) {
    let log = Log::new();
    let kept = log.clone();
    let responses = Arc::new(Mutex::new(responses.into_iter()));
    let server = service_fn(move |_: Request<()>| {
        log.send();
        let next = responses.lock().unwrap().next();
        ready(Ok(next.unwrap_or_else(|| Response::new(()))))
    });
    (layer.layer(BoxCloneService::new(server)), kept)
}

fn response(status: u16, headers: &[(&'static str, &'static str)]) -> Response<()> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_refusal_pauses_the_line_and_what_follows_is_paced() {
    let shaper = Shaper::builder()
        .quota(Quota::count(10).per(SECOND))
        .build()
        .unwrap();
    let (mut service, log) = scripted(
        &ShaperLayer::new(shaper.clone()),
        vec![response(429, &[("retry-after", "5")])],
    );
    for _ in 0..4 {
        service
            .ready()
            .await
            .unwrap()
            .call(request())
            .await
            .unwrap();
    }
    let expected = [0.0, 5.0, 5.1, 5.2];
    for (sent, expected) in log.sent().iter().zip(expected) {
        assert!((sent - expected).abs() < 0.01, "{:?}", log.sent());
    }
    assert_eq!(shaper.paused_for(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_allowance_is_spread_no_faster_than_it_says() {
    let shaper = Shaper::builder().concurrency(10).build().unwrap();
    let (mut service, log) = scripted(
        &ShaperLayer::new(shaper),
        vec![response(200, &[("ratelimit", "\"default\";r=2;t=7")])],
    );
    for _ in 0..4 {
        service
            .ready()
            .await
            .unwrap()
            .call(request())
            .await
            .unwrap();
    }
    let sent = log.sent();
    assert!(sent[2] < 0.01 && (sent[3] - 7.0).abs() < 0.01, "{sent:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_cut_to_the_longest_one_allows_and_vendors_can_be_understood() {
    let shaper = Shaper::builder()
        .quota(Quota::count(10).per(SECOND))
        .max_pause(20 * SECOND)
        .build()
        .unwrap();
    let layer = ShaperLayer::new(shaper.clone()).feedback(|response| {
        let millis = response
            .headers()
            .get("x-vendor-wait-ms")?
            .to_str()
            .ok()?
            .parse()
            .ok()?;
        Some(Duration::from_millis(millis))
    });
    let (mut service, _) = scripted(
        &layer,
        vec![
            response(200, &[("x-vendor-wait-ms", "1500")]),
            response(503, &[("retry-after", "86400")]),
        ],
    );
    service.call(request()).await.unwrap();
    assert_eq!(shaper.paused_for(), Duration::from_millis(1_500));
    service.call(request()).await.unwrap();
    assert_eq!(shaper.paused_for(), 20 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_not_http_wait_their_turn_too() {
    let shaper = Shaper::builder()
        .quota(Quota::count(10).per(SECOND))
        .max_wait(SECOND)
        .build()
        .unwrap();
    let layer = PlainShaperLayer::new(shaper.clone())
        .cost(|query: &&str| query.len() as u64)
        .patience(|query| query.starts_with('!').then_some(Duration::ZERO));
    let service = layer.layer(service_fn(|query: &'static str| {
        ready(if query == "fail" {
            Err("failed")
        } else {
            Ok(query.len())
        })
    }));
    let start = Instant::now();
    let ask = |query| service.clone().oneshot(query);
    assert_eq!(ask("0123456789").await.unwrap(), 10);
    assert_eq!(start.elapsed(), Duration::ZERO);
    let refused = ask("!now").await.unwrap_err();
    assert!(matches!(
        refused,
        ShapedError::Refused(WaitRefused::TooLong { .. })
    ));
    let failed = ask("fail").await.unwrap_err();
    assert!(matches!(failed, ShapedError::Inner("failed")));
    assert_eq!(start.elapsed(), Duration::from_millis(400));
    assert_eq!((shaper.inflight(), shaper.waiting()), (0, 0));
}

#[test]
fn shapers_that_make_no_sense_are_refused_with_the_expectation() {
    let error = |builder: rate_limit::shaper::ShaperBuilder| builder.build().unwrap_err();
    assert_eq!(error(Shaper::builder()), ShaperError::Unlimited);
    assert_eq!(
        error(Shaper::builder().concurrency(0)).to_string(),
        "concurrency of 0, expected at least 1"
    );
    let zero = error(Shaper::builder().quota(Quota::count(0).per(SECOND)));
    assert!(
        std::error::Error::source(&zero)
            .unwrap()
            .to_string()
            .contains("at least 1")
    );
}

/// A real server, on a real socket, that allows 50 requests a minute and 10 at once, and counts
/// what it refuses after the first minute.
async fn strict_server() -> (SocketAddr, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let limiter = Limiter::builder()
        .quota(Quota::count(50).per(MINUTE))
        .max_inflight(10)
        .build()
        .unwrap();
    let layer = RateLimitLayer::from_limiter(limiter).key(key::global());
    let (early, late) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (in_first_minute, after) = (Arc::clone(&early), Arc::clone(&late));
    let start = Instant::now();
    let count = axum::middleware::map_response(move |response: axum::response::Response| {
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            let when = if start.elapsed() < MINUTE {
                &in_first_minute
            } else {
                &after
            };
            when.fetch_add(1, Ordering::Relaxed);
        }
        ready(response)
    });
    let work = async || {
        sleep(Duration::from_millis(300)).await;
        "done"
    };
    let app = Router::new()
        .route("/", get(work))
        .layer(layer)
        .layer(count);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (addr, early, late)
}

/// Three minutes of two workers asking as fast as they may; time is virtual, sockets are not.
#[tokio::test(start_paused = true)]
async fn a_client_stays_within_fifty_a_minute_and_ten_at_once() {
    let (addr, early, late) = strict_server().await;
    let shaper = Shaper::builder()
        .quota(Quota::count(50).per(MINUTE))
        .concurrency(10)
        .max_wait(2 * MINUTE)
        .build()
        .unwrap();
    let http = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let client = ServiceBuilder::new()
        .layer(ShaperLayer::new(shaper))
        .service(http);
    let start = Instant::now();
    let worker = async || {
        let mut client = client.clone();
        let mut done = 0;
        while start.elapsed() < 3 * MINUTE {
            let request = Request::get(format!("http://{addr}/"))
                .body(Body::empty())
                .unwrap();
            let response = client.ready().await.unwrap().call(request).await.unwrap();
            done += usize::from(response.status() == StatusCode::OK);
            response.into_body().collect().await.unwrap();
        }
        done
    };
    let done: usize = join_all((0..20).map(|_| worker())).await.into_iter().sum();
    assert_eq!(
        late.load(Ordering::Relaxed),
        0,
        "429 after the first minute"
    );
    assert_eq!(early.load(Ordering::Relaxed), 0, "429 in the first minute");
    // A burst of 50, then 50 a minute; the last of them in flight when time is up.
    assert!(
        (195..=225).contains(&done),
        "{done} requests in three minutes"
    );
}

/// The server's limits are tighter than the client believes: it learns.
#[tokio::test(start_paused = true)]
async fn a_client_that_was_told_wrong_limits_adapts_to_what_it_hears() {
    let (addr, early, late) = strict_server().await;
    let shaper = Shaper::builder()
        .quota(Quota::count(50).per(MINUTE).burst(60))
        .concurrency(10)
        .max_wait(2 * MINUTE)
        .build()
        .unwrap();
    let http = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let mut client = ServiceBuilder::new()
        .layer(ShaperLayer::new(shaper))
        .service(http);
    let start = Instant::now();
    while start.elapsed() < 3 * MINUTE {
        let request = Request::get(format!("http://{addr}/"))
            .body(Body::empty())
            .unwrap();
        let response = client.ready().await.unwrap().call(request).await.unwrap();
        response.into_body().collect().await.unwrap();
    }
    assert_eq!(
        late.load(Ordering::Relaxed),
        0,
        "429 after the first minute"
    );
    let early = early.load(Ordering::Relaxed);
    assert!((1..=3).contains(&early), "{early} in the first");
}

/// Responses with these headers, and what they cost in time.
fn says(
    headers: &'static [(&'static str, &'static str)],
) -> impl Fn() -> Response<Full<Bytes>> + Clone {
    move || {
        let mut response = Response::new(Full::default());
        for (name, value) in headers {
            response.headers_mut().insert(*name, value.parse().unwrap());
        }
        response
    }
}

#[tokio::test(start_paused = true)]
async fn what_upstream_makes_too_late_is_refused_at_once() {
    let shaper = Shaper::builder()
        .concurrency(1)
        .max_wait(5 * SECOND)
        .build()
        .unwrap();
    let answer = says(&[("ratelimit", "\"a\";r=0;t=60")]);
    let layer = ShaperLayer::new(shaper.clone());
    let service = layer.layer(service_fn(move |_: Request<()>| {
        let response = answer();
        async move {
            sleep(SECOND).await;
            Ok::<_, Infallible>(response)
        }
    }));
    let start = Instant::now();
    let first = service.clone().oneshot(request());
    // This one waits already when the bad news comes.
    let second = service.clone().oneshot(request());
    let (first, second) = tokio::join!(first, second);
    drop(first.unwrap());
    let expected = |result: Result<_, ShapedError<Infallible>>| match result.map(drop) {
        Err(ShapedError::Refused(WaitRefused::TooLong { expected })) => expected,
        other => panic!("{other:?}"),
    };
    assert!(expected(second) > 50 * SECOND);
    assert!(expected(service.oneshot(request()).await) > 50 * SECOND);
    assert_eq!(start.elapsed(), SECOND, "neither has waited for nothing");
}

#[tokio::test(start_paused = true)]
async fn a_quota_of_another_unit_does_not_pace_requests() {
    let answer = says(&[
        (
            "ratelimit-policy",
            "\"r\";q=100;w=60, \"mb\";q=10;w=60;qu=\"megabytes\"",
        ),
        ("ratelimit", "\"r\";r=90;t=60, \"mb\";r=0;t=60"),
    ]);
    let shaper = Shaper::builder().concurrency(5).build().unwrap();
    let service = ShaperLayer::new(shaper).layer(service_fn(move |_: Request<()>| {
        ready(Ok::<_, Infallible>(answer()))
    }));
    let start = Instant::now();
    for _ in 0..3 {
        drop(service.clone().oneshot(request()).await.unwrap());
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn requests_tokens_and_concurrency_are_kept_together_without_tower() {
    let shaper = Shaper::builder()
        .quota(Quota::count(3).per(MINUTE))
        .quota(
            Quota::count(1_000)
                .per(MINUTE)
                .unit(rate_limit::Unit::Custom("tokens")),
        )
        .concurrency(2)
        .max_wait(2 * MINUTE)
        .build()
        .unwrap();
    let start = Instant::now();
    let first = shaper.acquire(400).await.unwrap();
    let second = shaper.acquire(400).await.unwrap();
    let mut third = task::spawn(shaper.acquire(100));
    assert_pending!(third.poll(), "two are under way");
    second.settle(900);
    drop((first, second));
    assert!(third.is_woken());
    assert_pending!(third.poll(), "1300 of 1000 tokens are used");
    let third = third.await.unwrap();
    assert_eq!(
        start.elapsed(),
        Duration::from_secs(24),
        "400 tokens at 1000 a minute"
    );
    third.settle(0);
    drop(third);
    // Tokens are there, and a request comes back every 20 seconds.
    drop(shaper.acquire(1).await.unwrap());
    assert_eq!(start.elapsed(), Duration::from_secs(24));
    drop(shaper.acquire(1).await.unwrap());
    assert_eq!(start.elapsed(), Duration::from_secs(40));
    assert!(matches!(
        shaper.acquire(1_001).await,
        Err(WaitRefused::TooLarge)
    ));
    assert!(matches!(
        shaper.acquire_within(1, SECOND).await,
        Err(WaitRefused::TooLong { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn a_permit_hears_what_a_vendor_says_about_tokens() {
    let shaper = Shaper::builder()
        .quota(
            Quota::count(1_000_000)
                .per(MINUTE)
                .unit(rate_limit::Unit::Custom("tokens")),
        )
        .build()
        .unwrap();
    let permit = shaper.acquire(10).await.unwrap();
    let response = says(&[
        ("x-ratelimit-remaining-tokens", "500"),
        ("x-ratelimit-reset-tokens", "8s"),
    ])();
    permit.heed(response.status(), response.headers());
    drop(permit);
    let start = Instant::now();
    drop(shaper.acquire(500).await.unwrap());
    assert_eq!(start.elapsed(), Duration::ZERO);
    drop(shaper.acquire(1).await.unwrap());
    assert_eq!(start.elapsed(), Duration::from_secs(8));
}
