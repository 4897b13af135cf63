//! `cargo run -p rate-limit --example polite_client`
//!
//! A client that stays within "50 requests a minute and 10 at once" against a server on this
//! machine that enforces it. Runs for two and a half minutes of real time and fails if the server
//! had to refuse anything after the first.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use futures_util::future::join_all;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use rate_limit::{
    Limiter, MINUTE, Quota, RateLimitLayer, key,
    shaper::{Shaper, ShaperLayer},
};
use tokio::{net::TcpListener, time::Instant};
use tower::{Service, ServiceBuilder, ServiceExt};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The server, and what it enforces.
    let limiter = Limiter::builder()
        .quota(Quota::count(50).per(MINUTE))
        .max_inflight(10)
        .build()?;
    let work = async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        "done"
    };
    let limit = RateLimitLayer::from_limiter(limiter).key(key::global());
    let app = Router::new().route("/", get(work)).layer(limit);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });

    // The client. Its burst is a little smaller: the network does not keep requests as far apart
    // as they were sent.
    let shaper = Shaper::builder()
        .quota(Quota::count(50).per(MINUTE).burst(45))
        .concurrency(10)
        .max_wait(2 * MINUTE)
        .build()?;
    let http = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let client = ServiceBuilder::new()
        .layer(ShaperLayer::new(shaper.clone()))
        .service(http);

    // Twenty workers that ask as fast as they may.
    let (served, early, late) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let start = Instant::now();
    let worker = async || {
        let mut client = client.clone();
        while start.elapsed() < MINUTE * 5 / 2 {
            let request = Request::get(format!("http://{addr}/")).body(Body::empty())?;
            let response = client.ready().await?.call(request).await?;
            let count = match response.status() {
                StatusCode::TOO_MANY_REQUESTS if start.elapsed() < MINUTE => &early,
                StatusCode::TOO_MANY_REQUESTS => &late,
                _ => &served,
            };
            count.fetch_add(1, Ordering::Relaxed);
            response.into_body().collect().await?;
        }
        Ok::<_, Box<dyn std::error::Error>>(())
    };
    let report = async {
        let mut ticks = tokio::time::interval(Duration::from_secs(10));
        loop {
            ticks.tick().await;
            println!(
                "{:>4} s  served {:>3}  refused {} + {}  under way {:>2}  waiting {:>2}",
                start.elapsed().as_secs(),
                served.load(Ordering::Relaxed),
                early.load(Ordering::Relaxed),
                late.load(Ordering::Relaxed),
                shaper.inflight(),
                shaper.waiting(),
            );
        }
    };
    tokio::select! {
        results = join_all((0..20).map(|_| worker())) => {
            for result in results {
                result?;
            }
        }
        () = report => {}
    }
    let (served, early, late) = (served.into_inner(), early.into_inner(), late.into_inner());
    println!("served {served}; refused {early} in the first minute and {late} after it");
    if late > 0 {
        return Err(format!("{late} requests were refused after the first minute").into());
    }
    Ok(())
}
