//! Does a service under a surge of impatient clients leak permits or memory?
//!
//! `cargo bench -p overload-benches --bench soak` for thirty minutes, `-- --minutes 2` for less.
//!
//! 128 clients ask an axum service behind the layer for more than it can do: classes, tenants,
//! handlers that panic, streams that are dropped half read, requests that are aborted at any point.
//! Exits with 1 if a permit or a place in line is still out when all clients are gone, or if the
//! resident memory of the last third of the time is above that of the second by a tenth.

use std::{convert::Infallible, process::ExitCode, time::Duration};

use axum::{Router, body::Body, extract::Path, response::Response, routing::get};
use clap::Parser;
use futures_util::stream;
use http::{HeaderName, Request};
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tower_capacity::{CapacityLayer, Limiter, Priority, priority_header};

#[derive(Debug, Parser)]
#[command(about = "Looks for leaks of permits and memory")]
struct Args {
    /// How long.
    #[arg(long, default_value_t = 30.0, value_parser = minutes)]
    minutes: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if (0.1..=600.0).contains(&minutes) => Ok(minutes),
        _ => Err("expected minutes from 0.1 to 600".to_owned()),
    }
}

const CLIENTS: u64 = 128;
const SAMPLE: Duration = Duration::from_secs(1);

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let args = Args::parse();
    // Handlers panic on purpose.
    std::panic::set_hook(Box::new(|_| {}));
    let limiter = Limiter::adaptive();
    let address = serve(limiter.clone()).await;
    let deadline = Instant::now() + Duration::from_secs_f64(60.0 * args.minutes);
    let mut clients: JoinSet<Asked> = (0..CLIENTS)
        .map(|client| {
            ask(
                format!("http://{address}"),
                args.seed ^ client << 32,
                deadline,
            )
        })
        .collect();

    println!(
        "{:>8} {:>7} {:>8} {:>7} {:>12} {:>12} {:>10} {:>9}",
        "s", "limit", "inflight", "queued", "completed", "refused", "cancelled", "RSS MiB"
    );
    let start = Instant::now();
    let mut memory = Vec::new();
    while Instant::now() < deadline {
        sleep(SAMPLE).await;
        memory.push(resident());
        if memory.len().is_power_of_two() || memory.len() % 60 == 0 {
            let now = limiter.snapshot();
            println!(
                "{:>8.0} {:>7} {:>8} {:>7} {:>12} {:>12} {:>10} {:>9.1}",
                start.elapsed().as_secs_f64(),
                now.limit(),
                now.inflight(),
                now.queued(),
                now.completions(),
                now.refusals(),
                now.cancelled(),
                resident()
            );
        }
    }
    let mut asked = Asked::default();
    while let Some(client) = clients.join_next().await {
        asked.add(&client.expect("no panic in a client"));
    }
    limiter.drain(Duration::from_secs(10)).await.ok();
    let end = limiter.snapshot();
    println!("{asked:?}");
    println!(
        "after the last client: {} inside, {} in line",
        end.inflight(),
        end.queued()
    );
    let third = memory.len() / 3;
    let (before, after) = (mean(&memory[third..2 * third]), mean(&memory[2 * third..]));
    println!("resident memory: {before:.1} MiB in the second third, {after:.1} MiB in the last");
    let leaks = end.inflight() + end.queued() > 0;
    let grows = after > 1.1 * before;
    for (failed, what) in [(leaks, "permits leaked"), (grows, "memory grew")] {
        if failed {
            eprintln!("{what}");
        }
    }
    ExitCode::from(u8::from(leaks || grows))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Resident memory of this process, in MiB; zero where there is no procfs.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

async fn serve(limiter: Limiter) -> std::net::SocketAddr {
    let layer = CapacityLayer::new(limiter)
        .priority(priority_header(HeaderName::from_static("x-priority")))
        .partition(|request| request.headers.get("x-tenant")?.to_str().ok());
    let router = Router::new()
        .route("/work/{millis}", get(work))
        .route("/stream/{chunks}", get(chunks))
        .route("/panic", get(panics))
        .layer(layer);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Twelve of these at a time are what the service can do.
static WORKERS: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(12);

async fn work(Path(millis): Path<u64>) -> &'static str {
    let _worker = WORKERS.acquire().await.expect("never closed");
    sleep(Duration::from_millis(millis.min(1_000))).await;
    "done"
}

async fn chunks(Path(chunks): Path<u32>) -> Response {
    let chunk = async |left: u32| {
        let left = left.checked_sub(1)?;
        sleep(Duration::from_millis(2)).await;
        Some((Ok::<_, Infallible>("0123456789abcdef"), left))
    };
    Response::new(Body::from_stream(stream::unfold(chunks.min(1_000), chunk)))
}

async fn panics() -> &'static str {
    panic!("on purpose")
}

/// What became of the requests of a client.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    answered: u64,
    shed: u64,
    failed: u64,
    aborted: u64,
    half_read: u64,
}

impl Asked {
    fn add(&mut self, other: &Self) {
        self.answered += other.answered;
        self.shed += other.shed;
        self.failed += other.failed;
        self.aborted += other.aborted;
        self.half_read += other.half_read;
    }
}

async fn ask(server: String, seed: u64, deadline: Instant) -> Asked {
    let mut random = SmallRng::seed_from_u64(seed);
    let client: Client<HttpConnector, Body> = Client::builder(TokioExecutor::new()).build_http();
    let mut asked = Asked::default();
    while Instant::now() < deadline {
        let path = match random.random_range(0..20) {
            0 => "/panic".to_owned(),
            1..4 => format!("/stream/{}", random.random_range(0..20)),
            _ => format!("/work/{}", random.random_range(0..30)),
        };
        let class = Priority::ALL
            .choose(&mut random)
            .map_or("", |class| class.as_str());
        let request = Request::get(format!("{server}{path}"))
            .header("x-priority", class)
            .header("x-tenant", random.random_range(0..9))
            .body(Body::empty())
            .expect("a valid request");
        // Three in ten lose patience at some point.
        let impatient = random.random_bool(0.3);
        let patience = Duration::from_micros(random.random_range(0..20_000));
        let patience = if impatient {
            patience
        } else {
            Duration::from_secs(30)
        };
        let answer = match timeout(patience, client.request(request)).await {
            Err(_) => {
                asked.aborted += 1;
                continue;
            }
            Ok(Err(_)) => {
                asked.failed += 1;
                continue;
            }
            Ok(Ok(answer)) => answer,
        };
        if answer.status().is_server_error() {
            asked.shed += 1;
            drop(answer);
            sleep(Duration::from_millis(random.random_range(5..50))).await;
            continue;
        }
        let mut body = answer.into_body();
        if random.random_bool(0.1) {
            drop(body.frame().await);
            asked.half_read += 1;
        } else if body.collect().await.is_ok() {
            asked.answered += 1;
        } else {
            asked.failed += 1;
        }
    }
    asked
}
