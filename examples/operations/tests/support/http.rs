//! A client, and load.

use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::time::{Instant, sleep, timeout};

#[derive(Clone)]
pub(crate) struct Http(Client<HttpConnector, Body>);

impl Http {
    pub(crate) fn new() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }

    /// The status and the body; `None` if there is no response.
    pub(crate) async fn get(&self, url: &str, caller: &str) -> Option<(u16, Bytes)> {
        let request = axum::http::Request::get(url).header("x-api-key", caller);
        let response = self.0.request(request.body(Body::empty()).unwrap());
        let response = response.await.ok()?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.ok()?;
        Some((status, body.to_bytes()))
    }

    /// Waits until `url` has a response with status 200.
    pub(crate) async fn until_up(&self, url: &str) {
        self.until_shown(url, "", Duration::from_secs(30)).await;
    }

    /// Waits until `url` has a response with status 200 that holds `text`.
    pub(crate) async fn until_shown(&self, url: &str, text: &str, within: Duration) {
        let shown = async {
            loop {
                if let Some((200, body)) = self.get(url, "test").await
                    && String::from_utf8_lossy(&body).contains(text)
                {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(within, shown)
            .await
            .unwrap_or_else(|_| panic!("{url} does not show {text:?}"));
    }
}

/// How long a client waits for a response.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends `rate` requests a second to `url` until `end`, whether those before have ended or not, from
/// `callers` callers in turn.
pub(crate) fn send(
    http: &Http,
    url: String,
    rate: u32,
    callers: u32,
    end: Instant,
) -> tokio::task::JoinHandle<()> {
    let http = http.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
        let mut number = 0;
        while Instant::now() < end {
            ticks.tick().await;
            let (http, url) = (http.clone(), url.clone());
            let caller = format!("caller-{}", number % callers);
            number += 1;
            tokio::spawn(async move {
                let _ = timeout(PATIENCE, http.get(&url, &caller)).await;
            });
        }
    })
}
