//! Starts everything, drives the load, kills Redis, and compares.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use private_servers::Redis;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    cli::{Options, Problem},
    load::{Load, Tally},
};

/// Returns whether everything that is promised was kept.
pub(crate) fn run(options: &Options) -> Result<bool, Problem> {
    let runtime = tokio::runtime::Runtime::new().map_err(Problem::new)?;
    runtime.block_on(drive(options))
}

async fn drive(options: &Options) -> Result<bool, Problem> {
    let mut redis = Redis::start().await.map_err(Problem::new)?;
    let nodes = (0..options.processes)
        .map(|_| Node::start(options, &redis.url()))
        .collect::<Result<Vec<_>, _>>()?;
    let load = Load::new(nodes.iter().map(|node| node.address).collect());
    all_together(&load, options.processes.into()).await?;
    introduce(options);

    let (rate, burst) = (f64::from(options.quota), f64::from(options.burst()));
    let outage = options.outage();
    let start = Instant::now();
    let end = start + seconds(options.seconds);
    let mut rows = Vec::new();
    let watch = async {
        let mut admitted = 0;
        for second in 0..options.seconds {
            sleep_until(start + seconds(second + 1)).await;
            let tally = load.take();
            let bound = burst + rate * start.elapsed().as_secs_f64();
            admitted += tally.admitted;
            let up = !outage
                .as_ref()
                .is_some_and(|outage| outage.contains(&second));
            let alone = load
                .statuses()
                .await?
                .iter()
                .map(|status| status.alone)
                .sum();
            rows.push(Row::new(second, up, tally, [admitted, alone], bound));
        }
        Ok(())
    };
    let trouble = async {
        let Some(outage) = &outage else {
            return Ok(None);
        };
        sleep_until(start + seconds(outage.start)).await;
        redis.kill();
        sleep_until(start + seconds(outage.end)).await;
        redis.restart().await.map_err(Problem::new)?;
        recovery(&load).await.map(Some)
    };
    let send = load.send(options.offered(), end);
    let ((), recovered, ()) = tokio::try_join!(watch, trouble, send)?;
    let calls = load
        .statuses()
        .await?
        .iter()
        .map(|status| status.calls)
        .sum();
    let report = Report::new(options, &rows, recovered, calls);
    report.print();
    if let Some(path) = &options.json {
        let text = format!("{:#}\n", report.json(&rows));
        std::fs::write(path, text).map_err(|error| {
            Problem::new(format_args!("cannot write {}: {error}", path.display()))
        })?;
        println!("\nnumbers: {}", path.display());
    }
    Ok(report.checks.iter().all(|(kept, _)| *kept))
}

/// A server process, ended with this value, or with this process however that ends.
struct Node {
    child: Child,
    address: SocketAddr,
}

impl Node {
    fn start(options: &Options, redis: &str) -> Result<Self, Problem> {
        let program = std::env::current_exe().map_err(Problem::new)?;
        let mut command = Command::new(program);
        command
            .args(["--node", redis])
            .args(["--processes", &options.processes.to_string()])
            .args(["--quota", &options.quota.to_string()])
            .args(["--burst", &options.burst().to_string()]);
        if options.exact {
            command.arg("--exact");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Problem::new(format_args!("cannot start a server: {error}")))?;
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output)
                .read_line(&mut line)
                .map_err(Problem::new)?;
        }
        let address = line.trim().parse().map_err(|_| {
            Problem::new("a server ended before it said where it listens, see above")
        })?;
        Ok(Self { child, address })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It ends when its input does.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Waits until every server is on Redis and knows of all the others.
async fn all_together(load: &Load, processes: u64) -> Result<(), Problem> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let statuses = load.statuses().await?;
        if statuses
            .iter()
            .all(|status| !status.degraded && status.nodes >= processes)
        {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(Problem::new(format_args!(
                "not all servers reach Redis: {statuses:?}"
            )));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

/// How long it takes until every server is on Redis again.
async fn recovery(load: &Load) -> Result<Duration, Problem> {
    let start = Instant::now();
    while start.elapsed() < 2 * RECOVERY {
        if load.statuses().await?.iter().all(|status| !status.degraded) {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(start.elapsed())
}

/// One second.
struct Row {
    second: u32,
    up: bool,
    tally: Tally,
    p99: Duration,
    /// Admitted since the start, of these without Redis, and what the quota allows until then.
    admitted: u64,
    alone: u64,
    bound: f64,
}

impl Row {
    fn new(second: u32, up: bool, mut tally: Tally, so_far: [u64; 2], bound: f64) -> Self {
        let p99 = tally.p99();
        let [admitted, alone] = so_far;
        let row = Self {
            second,
            up,
            tally,
            p99,
            admitted,
            alone,
            bound,
        };
        let Tally {
            offered,
            admitted,
            limited,
            failed,
            ..
        } = row.tally;
        println!(
            "{:>6} {:>6} {offered:>8} {admitted:>9} {limited:>8} {failed:>7} {:>8.1} {:>10} {alone:>9} {:>9.0} {:>6.1}%",
            second + 1,
            if up { "up" } else { "down" },
            p99.as_secs_f64() * 1e3,
            row.admitted,
            bound,
            100.0 * row.admitted as f64 / bound,
        );
        row
    }
}

fn introduce(options: &Options) {
    println!(
        "{} servers, one quota of {} requests a second with a burst of {} ({}), {} a second offered",
        options.processes,
        options.quota,
        options.burst(),
        if options.exact { "exact" } else { "leased" },
        options.offered(),
    );
    println!(
        "\n{:>6} {:>6} {:>8} {:>9} {:>8} {:>7} {:>8} {:>10} {:>9} {:>9} {:>7}",
        "second",
        "redis",
        "offered",
        "admitted",
        "limited",
        "failed",
        "P99 ms",
        "so far",
        "w/o Redis",
        "bound",
        ""
    );
}

/// What came of it, held against what is promised.
struct Report {
    checks: Vec<(bool, String)>,
    recovered: Option<Duration>,
    calls: u64,
    offered: u64,
    admitted: u64,
}

impl Report {
    fn new(options: &Options, rows: &[Row], recovered: Option<Duration>, calls: u64) -> Self {
        let sum = |count: fn(&Tally) -> u64| rows.iter().map(|row| count(&row.tally)).sum();
        let offered: u64 = sum(|tally| tally.offered);
        let admitted: u64 = sum(|tally| tally.admitted);
        let failed: u64 = sum(|tally| tally.failed);
        let mut checks = Vec::new();
        let mut check = |kept, text: String| checks.push((kept, text));

        let by_redis = |row: &Row| row.admitted as f64 - row.alone as f64;
        check(
            rows.iter().all(|row| by_redis(row) <= row.bound),
            "by Redis, never more admitted than the quota allows".to_owned(),
        );
        if let Some(recovered) = recovered {
            // While some servers are back and others are not, both the quota and the shares of
            // those others are in use; and what the servers knew when Redis went differed.
            let rate = f64::from(options.quota);
            let more = f64::from(options.burst()) + rate * recovered.as_secs_f64();
            let over = rows.iter().map(|row| row.admitted as f64 - row.bound);
            let over = over.fold(f64::MIN, f64::max).max(0.0);
            check(
                over <= more,
                format!(
                    "without it and after, at most a burst more, and what the quota allows while \
                     the servers come back: {over:.0} of {more:.0}"
                ),
            );
        }
        check(
            failed == 0,
            format!("no request failed because Redis did: {failed}"),
        );
        if let Some(recovered) = recovered {
            check(
                recovered <= RECOVERY,
                format!("back on Redis within {RECOVERY:?}: {recovered:.1?}"),
            );
        }
        Self {
            checks,
            recovered,
            calls,
            offered,
            admitted,
        }
    }

    fn print(&self) {
        let Self {
            calls,
            offered,
            admitted,
            ..
        } = self;
        println!(
            "\n{admitted} of {offered} admitted, {calls} calls to Redis: one for {:.0} requests\n",
            *offered as f64 / (*calls).max(1) as f64
        );
        for (kept, text) in &self.checks {
            println!("  {} {text}", if *kept { "kept " } else { "BROKE" });
        }
    }

    fn json(&self, rows: &[Row]) -> Value {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({
                    "second": row.second + 1,
                    "redis": row.up,
                    "offered": row.tally.offered,
                    "admitted": row.tally.admitted,
                    "limited": row.tally.limited,
                    "failed": row.tally.failed,
                    "p99_ms": row.p99.as_secs_f64() * 1e3,
                    "admitted_so_far": row.admitted,
                    "without_redis_so_far": row.alone,
                    "bound_so_far": row.bound,
                })
            })
            .collect();
        json!({
            "seconds": rows,
            "offered": self.offered,
            "admitted": self.admitted,
            "calls": self.calls,
            "recovered_s": self.recovered.map(|recovered| recovered.as_secs_f64()),
            "checks": self.checks.iter().map(|(kept, text)| json!({"kept": kept, "text": text})).collect::<Vec<_>>(),
        })
    }
}

/// The promise.
const RECOVERY: Duration = Duration::from_secs(5);
