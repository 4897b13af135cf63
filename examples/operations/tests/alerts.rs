//! Faults, each in a server process of its own, and the alerts that they raise in a Prometheus.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    time::Duration,
};

use private_servers::Redis;
use support::{Http, Prometheus, Running, free_port, send};
use tokio::time::{Instant, sleep};

/// How long the tuner's experiments may take.
const SETTLES: Duration = Duration::from_secs(120);

/// How long the alerts may take: the longest waits for half a minute.
const WITHIN: Duration = Duration::from_secs(180);

/// How long an alert takes once its condition holds: what has not fired by then does not.
const LONGEST: Duration = Duration::from_secs(36);

/// Times in the rules are a tenth of what they are in production: all by the same factor, so that alerts fire in
/// the same order. Replaced one after the other, so 30 s comes first.
const SHORT: [(&str, &str); 5] = [
    ("30s", "3s"),
    ("1m", "6s"),
    ("2m", "12s"),
    ("5m", "30s"),
    ("10m", "60s"),
];

fn serve(port: u16, more: &[&str]) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_operations"));
    Running::start(command.args(["--port", &port.to_string()]).args(more))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_raises_its_alert_and_no_other() {
    let mut redis = Redis::start().await.unwrap();
    let redis_of_budget = Redis::start().await.unwrap();
    let expected = BTreeMap::from([
        ("calm", ""),
        ("hung-handlers", "HandlersHang"),
        ("pool-at-knee", "DatabaseAtKnee"),
        ("small-pool", "PoolBoundByMaximum"),
        ("spent-budget-1", "BudgetTooSmall"),
        ("spent-budget-2", "BudgetTooSmall"),
        ("dead-redis", "QuotaOnOutage"),
        ("flood", "QuotaRefusesMost"),
    ]);
    let ports: BTreeMap<_, _> = expected.keys().map(|&job| (job, free_port())).collect();
    let _servers: Vec<_> = ports
        .iter()
        .map(|(&job, &port)| match job {
            "dead-redis" => serve(port, &["--redis", &redis.url()]),
            // Two processes, each with a floor of two.
            "spent-budget-1" | "spent-budget-2" => {
                serve(port, &["--redis", &redis_of_budget.url(), "--budget", "3"])
            }
            "small-pool" => serve(port, &["--max-connections", "4"]),
            _ => serve(port, &[]),
        })
        .collect();
    let http = Http::new();
    let url = |job: &str, path: &str| format!("http://127.0.0.1:{}{path}", ports[job]);
    for job in expected.keys() {
        // A new budget grants nothing for one lease.
        http.until_up(&url(job, "/report/1")).await;
    }
    for _ in 0..40 {
        let (http, locked) = (http.clone(), url("pool-at-knee", "/ledger/5"));
        tokio::spawn(async move { while http.get(&locked, "ledger").await.is_some() {} });
    }
    // Only the times of the rules are shortened, not those of the tuner's experiments.
    let at_knee = r#"verdict="at_knee"} 1"#;
    let metrics = url("pool-at-knee", "/metrics");
    http.until_shown(&metrics, at_knee, SETTLES).await;
    let prometheus = Prometheus::start(&ports, &SHORT).await;
    let end = Instant::now() + WITHIN;
    let soon = Instant::now() + Duration::from_secs(5);
    for job in expected.keys() {
        // From `soon` on, no handler of this one ends.
        let end = if *job == "hung-handlers" { soon } else { end };
        send(&http, url(job, "/orders/2"), 20, 100, end);
    }
    send(&http, url("flood", "/orders/1"), 200, 1, end);
    for _ in 0..12 {
        let (http, slow) = (http.clone(), url("small-pool", "/report/50"));
        tokio::spawn(async move { while http.get(&slow, "report").await.is_some() {} });
    }
    sleep(soon - Instant::now()).await;
    send(&http, url("hung-handlers", "/hang"), 30, 100, end);
    redis.kill();

    let mut fired: BTreeMap<&str, BTreeSet<String>> =
        expected.keys().map(|&job| (job, BTreeSet::new())).collect();
    let all_are_there = |fired: &BTreeMap<&str, BTreeSet<String>>| {
        let mut jobs = expected.iter();
        jobs.all(|(job, alert)| alert.is_empty() || fired[job].contains(*alert))
    };
    let started = Instant::now();
    let mut watched_until = end;
    while Instant::now() < watched_until {
        for (job, alert) in firing(&prometheus).await {
            let seen = fired.get_mut(job.as_str()).expect("a job of this test");
            if seen.insert(alert.clone()) {
                println!("{:5.1?} {job}: {alert}", started.elapsed());
                if all_are_there(&fired) {
                    watched_until = end.min(Instant::now() + LONGEST);
                }
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
    let expected: BTreeMap<_, BTreeSet<_>> = expected
        .into_iter()
        .map(|(job, alert)| {
            (
                job,
                alert.split_terminator(' ').map(str::to_owned).collect(),
            )
        })
        .collect();
    assert_eq!(fired, expected);
}

/// The alerts that fire, by job and name.
async fn firing(prometheus: &Prometheus) -> Vec<(String, String)> {
    let alerts = prometheus.api("alerts").await;
    let alerts = alerts["data"]["alerts"].as_array().unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    alerts
        .iter()
        .filter(|alert| alert["state"] == "firing")
        .map(|alert| {
            let labels = &alert["labels"];
            (text(&labels["job"]), text(&labels["alertname"]))
        })
        .collect()
}
