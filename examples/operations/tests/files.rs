//! The files of the kit, against the rules' own tests and what the exporter exports.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
    time::Duration,
};

use private_servers::Redis;
use serde_json::Value;
use support::{Http, Prometheus, Running, free_port, kit, program, send};
use tokio::time::{Instant, sleep};

fn text(file: &str) -> String {
    fs::read_to_string(kit().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[test]
fn the_rules_pass_their_tests() {
    for (check, files) in [
        ("check", ["recording.yml", "alerts.yml"]),
        ("test", ["tests.yml", "week_tests.yml"]),
    ] {
        let output = program("promtool")
            .args([check, "rules"])
            .args(files)
            .current_dir(kit().join("rules"))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn every_alert_is_tested_both_ways_and_has_an_entry_in_the_runbook() {
    let (alerts, runbook) = (text("rules/alerts.yml"), text("runbook.md"));
    let tests = text("rules/tests.yml") + &text("rules/week_tests.yml");
    let names: Vec<_> = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(names.len() >= 15, "{names:?}");
    // Histories of an alert that fires are followed by one in which none does.
    let mut fires = None;
    let mut tested = BTreeSet::new();
    for line in tests.lines().map(str::trim) {
        if let Some((_, alert)) = line.split_once("labels: '{alertname=\"") {
            let (alert, _) = alert.split_once('"').unwrap();
            fires = Some(alert);
        } else if line == "exp_samples: []" {
            tested.extend(fires.take());
        }
    }
    for name in names {
        assert!(
            tested.contains(name),
            "{name} has a test in which it fires, and one after it in which none does"
        );
        assert!(
            runbook.contains(&format!("\n## {name}\n")),
            "{name} is in the runbook"
        );
        let link = format!("runbook.md#{}\"", name.to_lowercase());
        assert!(alerts.contains(&link), "{name} links to its entry");
    }
}

/// The queries in the dashboard.
fn panels() -> Vec<(String, String)> {
    fn collect(panels: &Value, into: &mut Vec<(String, String)>) {
        for panel in panels.as_array().into_iter().flatten() {
            collect(&panel["panels"], into);
            for target in panel["targets"].as_array().into_iter().flatten() {
                let title = panel["title"].as_str().unwrap().to_owned();
                into.push((title, target["expr"].as_str().unwrap().to_owned()));
            }
        }
    }
    let dashboard: Value = serde_json::from_str(&text("grafana/overload.json")).unwrap();
    let mut queries = Vec::new();
    collect(&dashboard["panels"], &mut queries);
    assert!(queries.len() > 15, "{} queries", queries.len());
    queries
}

/// The names of metrics of these crates in a text, and what is between the braces behind each.
fn series(text: &str) -> Vec<(String, String)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for prefix in [
        "tower_capacity_",
        "pool_autotune_",
        "rate_limit_",
        "db_client_connection_",
    ] {
        for (start, _) in text.match_indices(prefix) {
            let before = text[..start].chars().next_back();
            if before.is_some_and(|c| is_name(c) || c == ':') {
                continue;
            }
            let rest = &text[start..];
            let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            let matchers = rest[end..].strip_prefix('{');
            let matchers = matchers.and_then(|rest| rest.split_once('}'));
            let matchers = matchers.map_or("", |(matchers, _)| matchers);
            found.push((rest[..end].to_owned(), matchers.to_owned()));
        }
    }
    found
}

/// The labels of each metric, and their values, as exported.
fn exported(page: &str) -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let mut metrics = BTreeMap::<_, BTreeMap<_, BTreeSet<_>>>::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, _value)) = line.rsplit_once(' ') else {
            continue;
        };
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let metric = metrics.entry(name.to_owned()).or_default();
        for label in labels.trim_end_matches('}').split("\",") {
            if let Some((label, value)) = label.split_once("=\"") {
                let values: &mut BTreeSet<String> = metric.entry(label.to_owned()).or_default();
                values.insert(value.trim_end_matches('"').to_owned());
            }
        }
    }
    metrics
}

/// A server with every metric, after some seconds of load.
async fn busy_server() -> (Running, Redis, u16, Http) {
    let redis = Redis::start().await.unwrap();
    let port = free_port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_operations"));
    command.args(["--port", &port.to_string(), "--redis", &redis.url()]);
    let server = Running::start(&mut command);
    let http = Http::new();
    http.until_up(&format!("http://127.0.0.1:{port}/ready"))
        .await;
    (server, redis, port, http)
}

/// No file names a series that does not exist, nor a label or a value of one.
#[tokio::test]
async fn every_name_and_label_in_the_files_is_exported_and_every_panel_has_data() {
    let (_server, _redis, port, http) = busy_server().await;
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    let end = Instant::now() + Duration::from_secs(60);
    let load = send(&http, url("/orders/20"), 150, 2, end);
    // More at once than there may be inside, so that some wait.
    let peak = send(&http, url("/orders/150"), 250, 1_000, end);
    let short = [("1m", "4s"), ("5m", "4s"), ("10m", "4s")];
    let prometheus = Prometheus::start(&BTreeMap::from([("shop", port)]), &short).await;

    let page = loop {
        sleep(Duration::from_millis(500)).await;
        let (_, page) = http.get(&url("/metrics"), "test").await.unwrap();
        let page = String::from_utf8(page.to_vec()).unwrap();
        let is_there = |name: &str| page.contains(&format!("\n{name}{{"));
        if [
            "tower_capacity_baseline_seconds",
            "tower_capacity_wait_seconds_bucket",
        ]
        .into_iter()
        .all(is_there)
        {
            break page;
        }
        assert!(Instant::now() < end, "{page}");
    };
    let exported = exported(&page);
    let mut files = text("rules/recording.yml") + &text("rules/alerts.yml");
    files += &text("kubernetes/scaling.yaml");
    for (_, query) in panels() {
        files += &query;
        files.push('\n');
    }
    // These are labels.
    let labels: BTreeSet<_> = exported.values().flat_map(BTreeMap::keys).collect();
    for (name, matchers) in series(&files) {
        if labels.contains(&name) {
            continue;
        }
        let metric = exported
            .get(&name)
            .unwrap_or_else(|| panic!("{name} is not exported"));
        for matcher in matchers.split(',').filter(|matcher| !matcher.contains('$')) {
            let Some((label, wanted)) = matcher.split_once(['=', '!']) else {
                continue;
            };
            let (label, wanted) = (label.trim(), wanted.trim_matches(['=', '~', '"', ' ']));
            if ["job", "instance"].contains(&label) || label.is_empty() {
                continue;
            }
            let values = metric
                .get(label)
                .unwrap_or_else(|| panic!("{name} has no label {label}"));
            for wanted in wanted.split('|') {
                assert!(values.contains(wanted), "{name} has no {label}={wanted}");
            }
        }
    }

    sleep(Duration::from_secs(6)).await;
    let mut empty = Vec::new();
    for (title, query) in panels() {
        let query = query
            .replace("$job", "shop")
            .replace("[5m]", "[4s]")
            .replace("[1m]", "[4s]");
        let query = query.replace("$__rate_interval", "4s");
        let encoded: String = query
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            })
            .collect();
        let reply = prometheus.api(&format!("query?query={encoded}")).await;
        if reply["data"]["result"].as_array().is_none_or(Vec::is_empty) {
            empty.push(format!("{title}: {query}"));
        }
    }
    assert!(empty.is_empty(), "no data for {empty:#?}");
    load.abort();
    peak.abort();
}
