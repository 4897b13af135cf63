//! Whatever an upstream says, the shaper neither panics nor pauses longer than it may.
#![no_main]

use std::{convert::Infallible, time::Duration};

use http::{HeaderName, HeaderValue, Request, Response};
use libfuzzer_sys::fuzz_target;
use rate_limit::{
    Quota, SECOND,
    shaper::{Shaper, ShaperLayer},
};
use tower::{Layer, ServiceExt, service_fn};

fuzz_target!(|input: (u16, Vec<(u8, Vec<u8>)>)| {
    let (status, headers) = input;
    let mut response = Response::new(());
    if let Ok(status) = http::StatusCode::from_u16(200 + status % 400) {
        *response.status_mut() = status;
    }
    for (name, value) in headers.iter().take(16) {
        let name = NAMES[usize::from(*name) % NAMES.len()];
        if let Ok(value) = HeaderValue::from_bytes(value) {
            response.headers_mut().append(HeaderName::from_static(name), value);
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let max_pause = Duration::from_secs(600);
        let quota = Quota::count(10).per(SECOND);
        let shaper = Shaper::builder().quota(quota).max_pause(max_pause).build().unwrap();
        let upstream = service_fn(move |_: Request<()>| {
            std::future::ready(Ok::<_, Infallible>(response.clone()))
        });
        let client = ShaperLayer::new(shaper.clone()).layer(upstream);
        client.oneshot(Request::new(())).await.unwrap();
        assert!(shaper.paused_for() <= max_pause);
        assert_eq!((shaper.inflight(), shaper.waiting()), (0, 0));
    });
});

const NAMES: [&str; 6] =
    ["ratelimit", "ratelimit", "retry-after", "date", "grpc-status", "grpc-retry-pushback-ms"];
