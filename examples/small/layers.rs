//! `cargo run -p overload-examples --bin layers`
//!
//! The whole stack in a `ServiceBuilder`, where the first layer is the outermost: trace, CORS, quota,
//! capacity, timeout. What is shed is no failure in the log, and a browser can read both refusals.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use axum::http::{Response, StatusCode, header::RETRY_AFTER};
use axum::{Router, routing::get, routing::post};
use rate_limit::{MINUTE, Quota, RateLimitLayer};
use tower::ServiceBuilder;
use tower_capacity::{CapacityLayer, Limiter, Shed, limit::Fixed};
use tower_http::classify::{
    ClassifiedResponse, ClassifyResponse, NeverClassifyEos, ServerErrorsAsFailures,
    ServerErrorsFailureClass, SharedClassifier,
};
use tower_http::{cors::CorsLayer, timeout::TimeoutLayer, trace::TraceLayer};

/// Each 5xx is logged as an error, except those that capacity shed: those are counted in its metrics.
#[derive(Clone)]
struct ExceptShed(ServerErrorsAsFailures);

impl ClassifyResponse for ExceptShed {
    type FailureClass = ServerErrorsFailureClass;
    type ClassifyEos = NeverClassifyEos<ServerErrorsFailureClass>;

    fn classify_response<B>(
        self,
        response: &Response<B>,
    ) -> ClassifiedResponse<Self::FailureClass, Self::ClassifyEos> {
        match response.extensions().get::<Shed>() {
            Some(_) => ClassifiedResponse::Ready(Ok(())),
            None => self.0.classify_response(response),
        }
    }

    fn classify_error<E: Display + 'static>(self, error: &E) -> ServerErrorsFailureClass {
        self.0.classify_error(error)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().init();
    // A limit of one and no queue, to see a refusal: `CapacityLayer::adaptive()` finds the limit.
    let limiter = Limiter::builder().law(Fixed::new(1)).max_queue(0).build()?;
    let stack = ServiceBuilder::new()
        .layer(TraceLayer::new(SharedClassifier::new(ExceptShed(
            ServerErrorsAsFailures::new(),
        ))))
        .layer(CorsLayer::permissive().expose_headers([RETRY_AFTER])) // a refusal gets its headers too
        .layer(RateLimitLayer::new(Quota::count(3).per(MINUTE))?) // 429; what is shed costs no quota
        .layer(CapacityLayer::new(limiter)) // 503
        .layer(TimeoutLayer::with_status_code(
            StatusCode::GATEWAY_TIMEOUT,
            Duration::from_secs(10), // inside: a wait for capacity is not the handler's time
        ));
    let app = Router::new()
        .route("/", get(async || "hello"))
        .route("/upload", post(async |body: String| body.len().to_string()))
        .route("/broken", get(async || StatusCode::INTERNAL_SERVER_ERROR))
        .layer(stack);

    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    Ok(axum::serve(listener, service).await?)
}
