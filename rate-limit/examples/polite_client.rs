//! `cargo run -p rate-limit --example polite_client`
//!
//! A client on reqwest that stays within "50 requests and 10,000 tokens a minute and 10 at once",
//! against a server on this machine that enforces it. How many tokens a request uses is known only
//! afterwards. Runs for two and a half minutes of real time and fails if the server had to refuse
//! anything after the first.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use axum::{Router, extract::RawQuery, http::HeaderMap, response::IntoResponse, routing::get};
use futures_util::future::join_all;
use rate_limit::{Limiter, MINUTE, Policy, Quota, RateLimitLayer, Unit, key, shaper::Shaper};
use reqwest::StatusCode;
use tokio::{net::TcpListener, time::Instant};

/// How many tokens a request used, for the server's policy.
#[derive(Clone)]
struct Used(u64);

/// What a client reserves for a request, in tokens.
const ESTIMATE: u64 = 300;

fn tokens() -> Quota {
    Quota::count(10_000)
        .per(MINUTE)
        .unit(Unit::Custom("tokens"))
}

/// Takes a moment, and uses between 50 and 350 tokens.
async fn complete(RawQuery(query): RawQuery) -> impl IntoResponse {
    tokio::time::sleep(Duration::from_millis(200)).await;
    let number: u64 = query.and_then(|query| query.parse().ok()).unwrap_or(0);
    let used = 50 + number * 37 % 300;
    let mut headers = HeaderMap::new();
    headers.insert("x-tokens-used", used.into());
    (axum::Extension(Used(used)), headers, "done")
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The server, and what it enforces.
    let limiter = Limiter::builder()
        .policy(Policy::new("requests", Quota::count(50).per(MINUTE)))
        .policy(
            Policy::new("tokens", tokens())
                .cost(|_| ESTIMATE)
                .settle(|response| Some(response.extensions().get::<Used>()?.0)),
        )
        .max_inflight(10)
        .build()?;
    let limit = RateLimitLayer::from_limiter(limiter).key(key::global());
    let app = Router::new().route("/", get(complete)).layer(limit);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });

    // The client. Its bursts are a little smaller: the network does not keep requests as far apart
    // as they were sent.
    let shaper = Shaper::builder()
        .quota(Quota::count(50).per(MINUTE).burst(45))
        .quota(tokens().burst(9_000))
        .concurrency(10)
        .max_wait(2 * MINUTE)
        .build()?;
    let client = reqwest::Client::new();

    // Twenty workers that ask as fast as they may.
    let (served, early, late) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let start = Instant::now();
    let worker = async || {
        while start.elapsed() < MINUTE * 5 / 2 {
            let permit = shaper.acquire(ESTIMATE).await?;
            let number = served.load(Ordering::Relaxed);
            let response = client
                .get(format!("http://{addr}/?{number}"))
                .send()
                .await?;
            permit.heed(response.status(), response.headers());
            let used = response.headers().get("x-tokens-used");
            permit.settle(used.map_or(Ok(0), |used| used.to_str().unwrap_or("0").parse())?);
            let count = match response.status() {
                StatusCode::TOO_MANY_REQUESTS if start.elapsed() < MINUTE => &early,
                StatusCode::TOO_MANY_REQUESTS => &late,
                _ => &served,
            };
            count.fetch_add(1, Ordering::Relaxed);
            // The server counts a request as running until its body has ended.
            response.bytes().await?;
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
