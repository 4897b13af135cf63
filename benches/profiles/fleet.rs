//! Pods as processes, and the balancer that sends to those that are ready.

use std::error::Error;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{interval, timeout};

use crate::pod::Spec;
use crate::pod::stats::Counted;

pub(crate) type HttpClient = Client<HttpConnector, Empty<Bytes>>;

pub(crate) fn client() -> HttpClient {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(5))
        .build_http()
}

/// Where requests go: to each ready pod in turn.
#[derive(Debug, Default)]
pub(crate) struct Balancer {
    ready: RwLock<Vec<SocketAddr>>,
    next: AtomicUsize,
}

impl Balancer {
    pub(crate) fn next(&self) -> Option<SocketAddr> {
        let ready = self.ready.read().unwrap_or_else(PoisonError::into_inner);
        let next = self.next.fetch_add(1, Relaxed);
        ready.get(next % ready.len().max(1)).copied()
    }

    fn add(&self, pod: SocketAddr) {
        let mut ready = self.ready.write().unwrap_or_else(PoisonError::into_inner);
        ready.push(pod);
    }

    fn remove(&self, pod: SocketAddr) {
        let mut ready = self.ready.write().unwrap_or_else(PoisonError::into_inner);
        ready.retain(|&known| known != pod);
    }
}

/// A pod. It ends when this is dropped.
pub(crate) struct Pod {
    child: Child,
    address: SocketAddr,
}

impl Pod {
    async fn start(spec: &Spec) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--pod")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let line = format!("{}\n", serde_json::to_string(spec)?);
        let input = child.stdin.as_mut().ok_or("a pod without input")?;
        input.write_all(line.as_bytes()).await?;
        let output = child.stdout.take().ok_or("a pod without output")?;
        let mut address = String::new();
        let mut output = BufReader::new(output);
        timeout(START, output.read_line(&mut address)).await??;
        let address = address.trim().parse();
        let address = address.map_err(|_| "a pod ended before it served, see above")?;
        Ok(Self { child, address })
    }

    /// Asks it to finish what it has, and waits for its end.
    async fn drain(mut self) -> Result<(), Box<dyn Error>> {
        if let Some(mut input) = self.child.stdin.take() {
            input.write_all(b"drain\n").await?;
            let ended = timeout(Duration::from_secs(70), self.child.wait()).await;
            // Its input ends here, and with it a pod that did not drain.
            drop(input);
            ended??;
        }
        Ok(())
    }
}

/// What a pod may take until it serves.
const START: Duration = Duration::from_secs(20);

/// All pods of a way.
pub(crate) struct Fleet {
    pods: Vec<Pod>,
    pub(crate) balancer: Arc<Balancer>,
    client: HttpClient,
    started: usize,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        Self {
            pods: Vec::new(),
            balancer: Arc::default(),
            client: client(),
            started: 0,
        }
    }

    /// Starts pods, or drains those that are too many.
    pub(crate) async fn scale(&mut self, spec: &Spec) -> Result<(), Box<dyn Error>> {
        while self.pods.len() < spec.pods {
            let pod = self.start(spec).await?;
            self.pods.push(pod);
        }
        while self.pods.len() > spec.pods {
            if let Some(pod) = self.pods.pop() {
                self.end(pod).await?;
            }
        }
        Ok(())
    }

    async fn start(&mut self, spec: &Spec) -> Result<Pod, Box<dyn Error>> {
        let spec = Spec {
            index: self.started,
            ..spec.clone()
        };
        self.started += 1;
        let pod = Pod::start(&spec).await?;
        match self.probe(pod.address, "/startedz").await && self.probe(pod.address, "/readyz").await
        {
            true => self.balancer.add(pod.address),
            false => return Err("a pod did not get ready".into()),
        }
        Ok(pod)
    }

    /// The balancer looks elsewhere before the pod's lead is over.
    async fn end(&self, pod: Pod) -> Result<(), Box<dyn Error>> {
        self.balancer.remove(pod.address);
        pod.drain().await
    }

    /// Replaces each pod by a new one, which serves before the old one drains.
    pub(crate) async fn deploy(&mut self, spec: &Spec) -> Result<(), Box<dyn Error>> {
        for index in 0..self.pods.len() {
            let new = self.start(spec).await?;
            let old = std::mem::replace(&mut self.pods[index], new);
            self.end(old).await?;
        }
        Ok(())
    }

    /// Drains all at once.
    pub(crate) async fn close(mut self) -> Result<(), Box<dyn Error>> {
        let ends = self.pods.drain(..).map(|pod| {
            self.balancer.remove(pod.address);
            pod.drain()
        });
        for end in futures_util::future::join_all(ends).await {
            end?;
        }
        Ok(())
    }

    async fn probe(&self, pod: SocketAddr, path: &str) -> bool {
        matches!(
            ask(&self.client, pod, path).await,
            Some((StatusCode::OK, _))
        )
    }

    /// A watcher of the pods that are there at each moment.
    pub(crate) fn watcher(&self) -> Watcher {
        Watcher {
            balancer: Arc::clone(&self.balancer),
            client: self.client.clone(),
            probes_failed: Arc::default(),
        }
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.pods.iter().filter_map(|pod| pod.child.id()).collect()
    }
}

/// Reads what the pods count, and probes their health.
#[derive(Clone)]
pub(crate) struct Watcher {
    balancer: Arc<Balancer>,
    client: HttpClient,
    pub(crate) probes_failed: Arc<AtomicU64>,
}

impl Watcher {
    fn pods(&self) -> Vec<SocketAddr> {
        let ready = self.balancer.ready.read();
        ready.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) async fn counted(&self) -> Vec<(SocketAddr, Counted)> {
        let ask = self.pods().into_iter().map(async |pod| {
            let (_, body) = ask(&self.client, pod, "/stats").await?;
            Some((pod, serde_json::from_slice(&body).ok()?))
        });
        let counted = futures_util::future::join_all(ask).await;
        counted.into_iter().flatten().collect()
    }

    /// How each pod explains itself.
    pub(crate) async fn explain(&self) -> String {
        let mut text = String::new();
        for pod in self.pods() {
            if let Some((_, body)) = ask(&self.client, pod, "/explain").await {
                text += &String::from_utf8_lossy(&body);
                text += "\n\n";
            }
        }
        text
    }

    /// Probes all three tiers of each pod, twice a second, for ever.
    pub(crate) async fn probe(&self) {
        let mut tick = interval(Duration::from_millis(500));
        loop {
            tick.tick().await;
            for pod in self.pods() {
                for path in ["/livez", "/readyz", "/startedz"] {
                    let reply = ask(&self.client, pod, path).await;
                    // A pod that is leaving by now is not the balancer's any more.
                    let counts = !matches!(reply, Some((StatusCode::OK, _)));
                    if counts && self.pods().contains(&pod) {
                        self.probes_failed.fetch_add(1, Relaxed);
                    }
                }
            }
        }
    }
}

async fn ask(client: &HttpClient, pod: SocketAddr, path: &str) -> Option<(StatusCode, Bytes)> {
    let request = Request::get(format!("http://{pod}{path}"))
        .body(Empty::new())
        .ok()?;
    let reply = timeout(PROBE, async {
        let response = client.request(request).await.ok()?;
        let status = response.status();
        Some((
            status,
            response.into_body().collect().await.ok()?.to_bytes(),
        ))
    });
    reply.await.ok()?
}

/// What a probe may take: Kubernetes' default for `timeoutSeconds` is 1 s.
const PROBE: Duration = Duration::from_secs(1);
