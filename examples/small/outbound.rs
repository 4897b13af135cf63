//! `cargo run -p overload-examples --bin outbound`
//!
//! A client of two services: one grants "5 requests at once and 600 a minute", so the client waits in a queue
//! of its own instead of being refused; the other may be overloaded, so the client spares it, and retries no
//! more than a tenth of its requests.

use axum::http::{Request, StatusCode};
use axum::{Router, body::Body, routing::get};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use rate_limit::shaper::{Shaper, ShaperLayer};
use rate_limit::{MINUTE, Quota};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_capacity::throttle::{Answer, RetryAdvice, RetryBudget, ThrottleLayer};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    // Stands for both services.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let busy = || async { (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "1")]) };
    let app = Router::new()
        .route("/", get(async || "hello"))
        .route("/busy", get(busy));
    tokio::spawn(async { axum::serve(listener, app).await });

    let http = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let request = |url: &str| Request::get(url).body(Body::empty());

    // The first: requests wait here, in order, and none is refused there.
    let shaper = Shaper::builder()
        .quota(Quota::count(600).per(MINUTE).burst(5))
        .concurrency(5)
        .build()?;
    let mut granted = ServiceBuilder::new()
        .layer(ShaperLayer::new(shaper))
        .service(http.clone());
    for _ in 0..10 {
        let response = granted.ready().await?.call(request(&url)?).await?;
        println!("granted: {}", response.status());
    }

    // The second: what a refusal advises goes to the retry policy, which consults the budget.
    let budget = RetryBudget::default();
    let mut spared = ServiceBuilder::new()
        .layer(ThrottleLayer::adaptive())
        .service(http);
    budget.deposit();
    let response = spared
        .ready()
        .await?
        .call(request(&format!("{url}busy"))?)
        .await?;
    match Answer::of(&response).advice() {
        Some(RetryAdvice::After(wait)) if budget.withdraw() => {
            println!("refused: {}, try again after {wait:?}", response.status());
        }
        advice => println!("refused: {}, not again: {advice:?}", response.status()),
    }
    Ok(())
}
