//! A Prometheus of a test's own, and requests.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

/// The directory of the files that are tested.
pub(crate) fn kit() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A program of Debian's package `prometheus`.
pub(crate) fn program(name: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|directory| directory.join(name));
    let program = found.into_iter().find(|program| program.exists());
    Command::new(program.unwrap_or_else(|| {
        panic!("{name} is not in PATH: install Debian's package `prometheus`, as .ci/test does")
    }))
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A process that ends with this value.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

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

/// A Prometheus with the rules of the kit.
pub(crate) struct Prometheus {
    url: String,
    http: Http,
    _process: Running,
    _directory: TempDir,
}

impl Prometheus {
    /// Scrapes `targets` (job and port) twice a second, with the times of `short` in the rules.
    pub(crate) async fn start(targets: &BTreeMap<&str, u16>, short: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().unwrap();
        let write = |name: &str, text: &str| {
            fs::write(directory.path().join(name), text).unwrap();
        };
        for name in ["recording.yml", "alerts.yml"] {
            let mut rules = fs::read_to_string(kit().join("rules").join(name)).unwrap();
            for (long, short) in short {
                rules = rules
                    .replace(&format!("for: {long}\n"), &format!("for: {short}\n"))
                    .replace(&format!("[{long}]"), &format!("[{short}]"))
                    .replace("interval: 15s", "interval: 500ms");
            }
            write(name, &rules);
        }
        let mut config = "global:\n  scrape_interval: 500ms\n  evaluation_interval: 500ms\n\
                          rule_files: [recording.yml, alerts.yml]\nscrape_configs:\n"
            .to_owned();
        for (job, port) in targets {
            config += &format!(
                "  - job_name: {job}\n    static_configs:\n      - targets: ['127.0.0.1:{port}']\n"
            );
        }
        write("prometheus.yml", &config);
        let port = free_port();
        let mut command = program("prometheus");
        command
            .current_dir(directory.path())
            .arg("--config.file=prometheus.yml")
            .arg("--storage.tsdb.path=data")
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=error");
        let process = Running::start(&mut command);
        let http = Http::new();
        let url = format!("http://127.0.0.1:{port}");
        http.until_up(&format!("{url}/-/ready")).await;
        Self {
            url,
            http,
            _process: process,
            _directory: directory,
        }
    }

    /// The reply of the API at `path`.
    pub(crate) async fn api(&self, path: &str) -> serde_json::Value {
        let (status, body) = self
            .http
            .get(&format!("{}/api/v1/{path}", self.url), "test")
            .await
            .expect("Prometheus responds");
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
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
