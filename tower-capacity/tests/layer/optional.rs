//! A layer that is there only sometimes.

use axum::{Router, body::Body, http::Request, response::Response, routing::get};
use tower::util::{MapResponseLayer, option_layer};
use tower::{ServiceBuilder, ServiceExt};
use tower_capacity::{CapacityLayer, Limiter, Mode, limit::Fixed};

fn full() -> (CapacityLayer, tower_capacity::Admission) {
    let limiter = Limiter::builder().law(Fixed::new(1)).max_queue(0);
    let limiter = limiter.build().expect("valid");
    let inside = limiter.try_admit().expect("room");
    (CapacityLayer::new(limiter), inside)
}

async fn status(app: Router) -> u16 {
    let request = Request::new(Body::empty());
    app.oneshot(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn an_optional_layer_compiles_once_its_body_is_the_routers() {
    let app = |enabled: bool, capacity: CapacityLayer| {
        let boxed = MapResponseLayer::new(|response: Response<_>| response.map(Body::new));
        let stack = ServiceBuilder::new().layer(boxed).layer(capacity);
        let layer = option_layer(enabled.then_some(stack));
        Router::new().route("/", get(async || "hello")).layer(layer)
    };
    let (capacity, _inside) = full();
    assert_eq!(status(app(true, capacity.clone())).await, 503);
    assert_eq!(status(app(false, capacity)).await, 200);
}

#[tokio::test]
async fn switched_off_it_is_as_if_it_were_not_there() {
    let (capacity, _inside) = full();
    let limiter = capacity.limiter().clone();
    let app = Router::new()
        .route("/", get(async || "hello"))
        .layer(capacity);
    assert_eq!(status(app.clone()).await, 503);
    limiter.set_mode(Mode::Off);
    assert_eq!(status(app).await, 200);
}
