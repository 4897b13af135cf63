//! `cargo run -p overload-examples --bin per_user`
//!
//! A quota for each user, after authentication, and one for each address before it: a client that invents
//! tokens would get a quota for each of them, if the layer read what was not checked.

use std::net::SocketAddr;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router, routing::get};
use rate_limit::{Caller, MINUTE, Quota, RateLimitLayer, key};

/// A user with a token that was checked.
#[derive(Clone, Hash)]
struct User(String);

/// Stands for yours: accepts `Bearer good-NAME`.
async fn authenticate(mut request: Request, next: Next) -> Response {
    let token = request.headers().get("authorization");
    let name = token.and_then(|token| token.to_str().ok()?.strip_prefix("Bearer good-"));
    let Some(user) = name.map(|name| User(name.to_owned())) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    request.extensions_mut().insert(user);
    next.run(request).await
}

async fn hello(Extension(user): Extension<User>, Extension(caller): Extension<Caller>) -> String {
    format!("hello {}, {} left", user.0, caller.remaining())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let by_user = RateLimitLayer::new(Quota::count(3).per(MINUTE))?
        .key(key::extension::<User>())
        .tell_caller(true);
    let by_address = RateLimitLayer::new(Quota::count(10).per(MINUTE))?.key(key::connect_info());
    let app = Router::new()
        .route("/", get(hello))
        .layer(by_user)
        .layer(middleware::from_fn(authenticate))
        .layer(by_address); // the last is the outermost

    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    Ok(axum::serve(listener, service).await?)
}
