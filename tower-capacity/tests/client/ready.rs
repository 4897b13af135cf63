//! The limit that shows in readiness, poll by poll and around real clients.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, routing};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::{net::TcpListener, sync::watch, time::advance};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tonic::{
    codegen::tokio_stream::wrappers::TcpListenerStream,
    transport::{Endpoint, Server},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::{Layer, Service, ServiceExt, util::MapFutureLayer};
use tower_capacity::{
    CapacityLayer, Limiter, LimiterBuilder, ReadyCapacity, ReadyCapacityLayer, limit::Fixed,
};
use tower_test::mock;

use crate::support::{get, hyper_client, serve};

type Mock = mock::Mock<Request<()>, Response<Full<Bytes>>>;

fn fixed(limit: usize) -> LimiterBuilder {
    Limiter::builder()
        .law(Fixed::new(limit))
        .max_queue(usize::MAX)
        .max_wait(Duration::MAX)
}

type Handle = mock::Handle<Request<()>, Response<Full<Bytes>>>;
type Spawned = task::Spawn<ReadyCapacity<Mock>>;

/// Two handles on a service with an inner service that is always ready.
fn pair(layer: &ReadyCapacityLayer) -> (Spawned, Spawned, Handle) {
    let (service, mut handle) = mock::pair();
    handle.allow(100);
    let service = layer.layer(service);
    (task::spawn(service.clone()), task::spawn(service), handle)
}

#[tokio::test]
async fn readiness_holds_the_permit_until_the_response_has_ended() {
    let layer = ReadyCapacityLayer::new(fixed(1).build().unwrap());
    let (mut first, mut second, _handle) = pair(&layer);
    assert_ready_ok!(first.enter(|cx, mut service| service.poll_ready(cx)));
    assert_eq!(layer.limiter().snapshot().inflight(), 1);
    assert_ready_ok!(first.enter(|cx, mut service| service.poll_ready(cx)));
    assert_eq!(layer.limiter().snapshot().inflight(), 1, "one is enough");

    assert_pending!(second.enter(|cx, mut service| service.poll_ready(cx)));
    let response = first.call(Request::new(()));
    assert_pending!(second.enter(|cx, mut service| service.poll_ready(cx)));
    drop(response);
    assert!(second.is_woken());
    assert_ready_ok!(second.enter(|cx, mut service| service.poll_ready(cx)));
}

#[tokio::test]
async fn a_handle_that_is_dropped_returns_its_permit_or_its_place() {
    let layer = ReadyCapacityLayer::new(fixed(1).build().unwrap());
    let (mut first, mut second, _handle) = pair(&layer);
    assert_ready_ok!(first.enter(|cx, mut service| service.poll_ready(cx)));
    assert_pending!(second.enter(|cx, mut service| service.poll_ready(cx)));
    drop(second);
    assert_eq!(layer.limiter().snapshot().queued(), 0);
    drop(first);
    assert_eq!(layer.limiter().snapshot().inflight(), 0);
}

#[tokio::test]
async fn a_clone_is_not_ready_because_the_original_is() {
    let layer = ReadyCapacityLayer::new(fixed(2).build().unwrap());
    let (mut first, _second, _handle) = pair(&layer);
    assert_ready_ok!(first.enter(|cx, mut service| service.poll_ready(cx)));
    let mut clone = task::spawn(ReadyCapacity::clone(&first));
    assert_eq!(layer.limiter().snapshot().inflight(), 1);
    assert_ready_ok!(clone.enter(|cx, mut service| service.poll_ready(cx)));
    assert_eq!(layer.limiter().snapshot().inflight(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_over_answers_the_call_with_a_refusal() {
    let limiter = fixed(1).max_wait(Duration::from_secs(1)).build().unwrap();
    let layer = ReadyCapacityLayer::new(limiter);
    let (mut first, mut second, _handle) = pair(&layer);
    assert_ready_ok!(first.enter(|cx, mut service| service.poll_ready(cx)));
    second.ready().await.unwrap();
    let response = second.call(Request::new(())).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(layer.limiter().snapshot().refusals(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_forgotten_when_readiness_is_polled_again() {
    let limiter = fixed(1).max_queue(0).build().unwrap();
    let layer = ReadyCapacityLayer::new(limiter.clone());
    let (mut first, _second, mut handle) = pair(&layer);
    let held = limiter.try_admit().unwrap();
    first.ready().await.unwrap();
    drop(held);
    advance(Duration::from_secs(3600)).await;
    first.ready().await.unwrap();
    let mut response = task::spawn(first.call(Request::new(())));
    assert_pending!(response.poll());
    let (_request, send) = handle.next_request().await.unwrap();
    send.send_response(Response::new(Full::default()));
    assert_eq!(assert_ready_ok!(response.poll()).status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_refused_by_the_adaptive_layer_however_long_the_queue() {
    let layer = ReadyCapacityLayer::adaptive();
    let work = tower::service_fn(async |_: Request<()>| {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let calls = (0..200).map(|_| {
        let mut service = layer.layer(work);
        tokio::spawn(async move {
            for _ in 0..5 {
                let response = service.ready().await.unwrap().call(Request::new(()));
                assert_eq!(response.await.unwrap().status(), StatusCode::OK);
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    assert_eq!(layer.limiter().snapshot().completions(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn an_idle_handle_gives_its_permit_back_and_waits_when_it_is_called_after_all() {
    let limiter = fixed(1).build().unwrap();
    let layer = ReadyCapacityLayer::new(limiter).idle_timeout(Duration::from_secs(5));
    let (mut first, mut second, _handle) = pair(&layer);
    assert_ready_ok!(first.enter(|cx, mut service| service.poll_ready(cx)));
    assert_pending!(second.enter(|cx, mut service| service.poll_ready(cx)));
    second.ready().await.unwrap();
    assert_eq!(layer.limiter().snapshot().inflight(), 1);

    let mut late = task::spawn(first.call(Request::new(())));
    assert_pending!(late.poll());
    assert_eq!(layer.limiter().snapshot().queued(), 1);
    drop(second);
    assert_pending!(late.poll());
    assert_eq!(layer.limiter().snapshot().queued(), 0, "it is inside");
}

#[tokio::test(start_paused = true)]
async fn a_call_in_time_keeps_the_permit_past_the_idle_timeout() {
    let limiter = fixed(1).build().unwrap();
    let layer = ReadyCapacityLayer::new(limiter).idle_timeout(Duration::from_secs(5));
    let (mut first, _second, _handle) = pair(&layer);
    first.ready().await.unwrap();
    let _response = first.call(Request::new(()));
    advance(Duration::from_secs(60)).await;
    tokio::task::yield_now().await;
    assert_eq!(layer.limiter().snapshot().inflight(), 1);
}

#[tokio::test]
async fn a_bypassed_request_gives_its_permit_back() {
    let layer = CapacityLayer::new(fixed(1).build().unwrap()).bypass(|_request| true);
    let layer = ReadyCapacityLayer::from_layer(layer);
    let (mut first, _second, _handle) = pair(&layer);
    first.ready().await.unwrap();
    let _response = first.call(Request::new(()));
    assert_eq!(layer.limiter().snapshot().inflight(), 0);
}

#[tokio::test]
#[should_panic = "`ReadyCapacity` called without `poll_ready` having been ready"]
async fn a_call_without_readiness_panics() {
    let layer = ReadyCapacityLayer::adaptive();
    let (mut first, _second, _handle) = pair(&layer);
    drop(first.call(Request::new(())));
}

/// Work that counts the requests inside and lasts until the test opens it.
#[derive(Clone)]
struct Work {
    inside: Arc<AtomicUsize>,
    peak: Arc<AtomicUsize>,
    open: watch::Sender<bool>,
}

impl Work {
    fn new() -> Self {
        Self {
            inside: Arc::default(),
            peak: Arc::default(),
            open: watch::Sender::new(false),
        }
    }

    async fn run(self) {
        let inside = self.inside.fetch_add(1, SeqCst) + 1;
        self.peak.fetch_max(inside, SeqCst);
        let mut open = self.open.subscribe();
        open.wait_for(|&open| open).await.unwrap();
        self.inside.fetch_sub(1, SeqCst);
    }

    /// Opens once five requests are inside and 35 wait.
    async fn open_when_full(&self, limiter: &Limiter) {
        while self.inside.load(SeqCst) < 5 || limiter.snapshot().queued() < 35 {
            tokio::task::yield_now().await;
        }
        self.open.send_replace(true);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_hyper_clients_send_an_axum_server_five_requests_at_a_time() {
    let work = Work::new();
    let handler = {
        let work = work.clone();
        move || work.clone().run()
    };
    let address = serve(Router::new().route("/", routing::get(handler))).await;
    let layer = ReadyCapacityLayer::new(fixed(5).build().unwrap());
    let client = layer.layer(hyper_client());
    let calls = (0..40).map(|_| {
        let client = client.clone();
        // The body, and the permit in it, goes with the task.
        tokio::spawn(async move { client.oneshot(get(address, "/")).await.unwrap().status() })
    });
    let calls = join_all(calls.collect::<Vec<_>>());
    let (statuses, ()) = tokio::join!(calls, work.open_when_full(layer.limiter()));
    for status in statuses {
        assert_eq!(status.unwrap(), StatusCode::OK);
    }
    assert_eq!(work.peak.load(SeqCst), 5);
    let snapshot = layer.limiter().snapshot();
    assert_eq!((snapshot.completions(), snapshot.refusals()), (40, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_calls_on_a_tonic_channel_reach_the_server_five_at_a_time() {
    let work = Work::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_reporter, health) = tonic_health::server::health_reporter();
    let slow = work.clone();
    let server = Server::builder()
        .layer(MapFutureLayer::new(move |future| {
            let work = slow.clone();
            async move {
                work.run().await;
                future.await
            }
        }))
        .add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let channel = endpoint.connect().await.unwrap();

    let layer = ReadyCapacityLayer::new(fixed(5).build().unwrap());
    let client = HealthClient::new(layer.layer(channel));
    let calls = (0..40).map(|_| {
        let mut client = client.clone();
        tokio::spawn(async move { client.check(HealthCheckRequest::default()).await })
    });
    let calls = join_all(calls.collect::<Vec<_>>());
    let (responses, ()) = tokio::join!(calls, work.open_when_full(layer.limiter()));
    for response in responses {
        response.unwrap().unwrap();
    }
    assert_eq!(work.peak.load(SeqCst), 5);
    assert_eq!(layer.limiter().snapshot().completions(), 40);
}
