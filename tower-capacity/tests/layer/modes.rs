//! What `Shadow` and `Off` do, and what a drain does in every mode.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode};
use http_body_util::Full;
use tokio::time::sleep;
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_capacity::{
    CapacityLayer, DrainError, Limiter, Mode, PlainCapacityLayer, limit::Fixed, priority_header,
};

use crate::support::fixed;

type Body = tower_capacity::layer::CapacityBody<Full<Bytes>>;
type Boxed = BoxCloneSyncService<Request<()>, Response<Body>, Infallible>;

const MS: Duration = Duration::from_millis(1);

/// A service with requests that take 100 ms.
fn service(layer: CapacityLayer) -> Boxed {
    let work = service_fn(async |_request: Request<()>| {
        sleep(100 * MS).await;
        Ok(Response::new(Full::from("done")))
    });
    Boxed::new(layer.layer(work))
}

/// Sends requests of one class at once and returns how many were served.
async fn burst(service: &Boxed, class: &str, count: usize) -> usize {
    let requests: Vec<_> = (0..count)
        .map(|_| {
            let service = service.clone();
            let request = Request::builder()
                .header("x-priority", class)
                .header("x-tenant", class)
                .body(())
                .unwrap();
            tokio::spawn(async move { service.oneshot(request).await.unwrap().status() })
        })
        .collect();
    let statuses = futures_util::future::join_all(requests).await;
    let served = statuses.into_iter().map(Result::unwrap);
    served.filter(|status| *status == StatusCode::OK).count()
}

fn layer(limiter: Limiter) -> CapacityLayer {
    CapacityLayer::new(limiter)
        .priority(priority_header(HeaderName::from_static("x-priority")))
        .partition(|request| request.headers.get("x-tenant")?.to_str().ok())
}

/// What a limiter decides about a burst in a mode: refusals, and the most that were inside and of
/// the burst's partition.
async fn decided(mode: Mode, limiter: Limiter, class: &str, count: usize) -> (u64, usize, usize) {
    limiter.set_mode(mode);
    let service = service(layer(limiter.clone()));
    let run = burst(&service, class, count);
    let watch = async {
        sleep(50 * MS).await;
        let partition = limiter.inflight_of(limiter.partition(class));
        (limiter.snapshot().inflight(), partition)
    };
    let (served, (inflight, partition)) = tokio::join!(run, watch);
    let refusals = limiter.snapshot().refusals();
    let expected = match mode {
        Mode::Enforce => count - refusals as usize,
        _ => count,
    };
    assert_eq!(served, expected, "{mode}");
    let snapshot = limiter.snapshot();
    assert_eq!((snapshot.inflight(), snapshot.queued()), (0, 0));
    (refusals, inflight, partition)
}

#[tokio::test(start_paused = true)]
async fn shadow_decides_what_enforce_decides() {
    type Case = (&'static str, fn() -> Limiter, &'static str, usize);
    let cases: [Case; 4] = [
        ("a class", || fixed(20, 0), "background", 20),
        ("the waiting room", || fixed(5, 5), "default", 10),
        ("a full waiting room", || fixed(5, 5), "default", 17),
        (
            "pressure downstream",
            || {
                let builder = Limiter::builder().law(Fixed::new(20)).downstream(|| 1.0);
                builder.build().unwrap()
            },
            "default",
            10,
        ),
    ];
    let expected = [(5, 15, 15), (0, 5, 5), (7, 5, 5), (10, 0, 0)];
    for ((what, limiter, class, count), expected) in cases.into_iter().zip(expected) {
        let enforced = decided(Mode::Enforce, limiter(), class, count).await;
        let shadowed = decided(Mode::Shadow, limiter(), class, count).await;
        assert_eq!(enforced, expected, "{what}");
        assert_eq!(shadowed, enforced, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn shadow_counts_a_wait_that_would_have_been_too_long_as_a_refusal() {
    let limiter = Limiter::builder()
        .law(Fixed::new(1))
        .max_queue(5)
        .max_wait(50 * MS)
        .mode(Mode::Shadow)
        .build()
        .unwrap();
    let service = service(CapacityLayer::new(limiter.clone()));
    assert_eq!(burst(&service, "default", 2).await, 2);
    assert_eq!(limiter.snapshot().refusals(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_limiter_that_is_switched_off_counts_and_refuses_nothing() {
    let limiter = fixed(1, 0);
    let service = service(CapacityLayer::new(limiter.clone()));
    assert_eq!(burst(&service, "default", 10).await, 1);
    limiter.set_mode(Mode::Off);
    assert_eq!(burst(&service, "default", 10).await, 10);
    let snapshot = limiter.snapshot();
    assert_eq!((snapshot.refusals(), snapshot.completions()), (9, 1));
    limiter.set_mode(Mode::Enforce);
    assert_eq!(burst(&service, "default", 10).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_plain_layer_obeys_the_mode() {
    let limiter = fixed(1, 0);
    let work = service_fn(async |number: u32| {
        sleep(100 * MS).await;
        Ok::<_, Infallible>(number)
    });
    let mut service = PlainCapacityLayer::new(limiter.clone()).layer(work);
    for (mode, served, refused) in [
        (Mode::Enforce, 1, 2),
        (Mode::Shadow, 3, 4),
        (Mode::Off, 3, 4),
    ] {
        limiter.set_mode(mode);
        let calls: Vec<_> = (0..3).map(|number| service.call(number)).collect();
        let results = futures_util::future::join_all(calls).await;
        let ok = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(ok, served, "{mode}");
        assert_eq!(limiter.snapshot().refusals(), refused, "{mode}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_refuses_and_waits_for_what_is_inside_in_every_mode() {
    for mode in [Mode::Enforce, Mode::Shadow, Mode::Off] {
        let limiter = fixed(1, 0);
        limiter.set_mode(mode);
        let service = service(CapacityLayer::new(limiter.clone()));
        let running = tokio::spawn({
            let service = service.clone();
            async move { burst(&service, "default", 3).await }
        });
        sleep(10 * MS).await;
        let drain = tokio::spawn({
            let limiter = limiter.clone();
            async move { limiter.drain(Duration::from_secs(30)).await }
        });
        sleep(10 * MS).await;
        assert!(limiter.is_draining() && !drain.is_finished(), "{mode}");
        assert_eq!(burst(&service, "default", 1).await, 0, "{mode}");
        assert!(!drain.is_finished(), "{mode}");
        let served = if mode == Mode::Enforce { 1 } else { 3 };
        assert_eq!(running.await.unwrap(), served, "{mode}");
        drain.await.unwrap().unwrap();
        limiter.resume();
        assert_eq!(burst(&service, "default", 1).await, 1, "{mode}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_is_resumed_ends_at_once_and_says_so() {
    let limiter = fixed(1, 0);
    let admission = limiter.try_admit().unwrap();
    let start = tokio::time::Instant::now();
    let resume = async {
        sleep(10 * MS).await;
        limiter.resume();
    };
    let (drained, ()) = tokio::join!(limiter.drain(Duration::from_secs(30)), resume);
    assert_eq!(drained, Err(DrainError::Resumed));
    assert_eq!(start.elapsed(), 10 * MS);
    drop(admission);
    assert!(limiter.try_admit().is_ok());
}
