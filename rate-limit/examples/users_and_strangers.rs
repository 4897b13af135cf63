//! `cargo run -p rate-limit --example users_and_strangers`
//!
//! Two limits where tokens are not trusted before they are checked: one by address outside of
//! authentication, so that guessing tokens is limited, and one by user inside of it, so that users
//! behind one address do not share a quota. What the inner limit refuses costs the outer one
//! nothing. CORS headers are added outside of both, so that a browser can read a 429, and preflight
//! requests never reach them.
//!
//! Asks itself a few things and prints what it got.

use std::net::SocketAddr;

use axum::{
    Extension, Router,
    extract::Request,
    http::{HeaderValue, Method, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use rate_limit::{Caller, MINUTE, Quota, RateLimitLayer, key};
use tower::ServiceExt;

/// A user, once its token is checked.
#[derive(Clone, Hash)]
struct User(String);

/// Accepts tokens that start with "good-".
async fn authenticate(mut request: Request, next: Next) -> Response {
    let token = request.headers().get("authorization");
    let user = token
        .and_then(|token| token.to_str().ok()?.strip_prefix("Bearer good-"))
        .map(|name| User(name.to_owned()));
    let Some(user) = user else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    request.extensions_mut().insert(user);
    next.run(request).await
}

/// What `tower_http::cors::CorsLayer` does, in short.
async fn cors(request: Request, next: Next) -> Response {
    let mut response = match request.method() {
        &Method::OPTIONS => StatusCode::NO_CONTENT.into_response(),
        _ => next.run(request).await,
    };
    let anywhere = HeaderValue::from_static("*");
    let headers = response.headers_mut();
    headers.insert("access-control-allow-origin", anywhere);
    headers.insert(
        "access-control-expose-headers",
        HeaderValue::from_static("retry-after"),
    );
    response
}

async fn hello(Extension(caller): Extension<Caller>, Extension(user): Extension<User>) -> String {
    format!("hello {}, {} left", user.0, caller.remaining())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let by_address = RateLimitLayer::new(Quota::count(20).per(MINUTE))?.key(key::peer());
    let by_user = RateLimitLayer::new(Quota::count(5).per(MINUTE))?
        .key(key::extension::<User>())
        .tell_caller(true);
    // The last layer is the outermost.
    let app: Router = Router::new()
        .route("/", get(hello))
        .layer(by_user)
        .layer(middleware::from_fn(authenticate))
        .layer(by_address)
        .layer(middleware::from_fn(cors));

    let ask = async |token: &str| -> Result<(u16, bool), Box<dyn std::error::Error>> {
        let mut request = Request::get("/")
            .header("authorization", format!("Bearer {token}"))
            .body(axum::body::Body::empty())?;
        let peer = SocketAddr::from(([192, 0, 2, 1], 4711));
        request.extensions_mut().insert(key::PeerAddr::new(peer));
        let response = app.clone().oneshot(request).await?;
        let readable = response
            .headers()
            .contains_key("access-control-allow-origin");
        Ok((response.status().as_u16(), readable))
    };
    let mut seen = Vec::new();
    for (caller, requests) in [("good-alice", 8), ("good-bob", 8), ("guess", 15)] {
        let mut statuses = Vec::new();
        for _ in 0..requests {
            let (status, readable) = ask(caller).await?;
            assert!(readable, "a browser can read every response");
            statuses.push(status);
        }
        println!("{caller}: {statuses:?}");
        seen.push(statuses);
    }
    // Five each, of which the address paid; what was refused further in was given back to it.
    let served = |statuses: &[u16]| statuses.iter().filter(|status| **status == 200).count();
    assert_eq!((served(&seen[0]), served(&seen[1])), (5, 5));
    let guesses = seen[2].iter().filter(|status| **status == 401).count();
    assert_eq!(guesses, 10, "guessing tokens is limited by address");
    Ok(())
}
