//! The fleet as a newcomer runs it: what it refuses, what it reports, and that it keeps the quota.

use std::process::Command;

use serde_json::Value;

fn fleet(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleet_quota"));
    command.args(arguments);
    command
}

/// One line that names `value` and contains `expected`, and exit code 2.
fn assert_refused(mut command: Command, value: &str, expected: &str) {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("error: "), "{text}");
    assert!(text.contains(value) && text.contains(expected), "{text}");
}

#[test]
fn absurd_numbers_are_refused() {
    assert_refused(fleet(&["--processes", "0"]), "'0'", "1..=16");
    assert_refused(fleet(&["--seconds", "2"]), "'2'", "3..=600");
    assert_refused(fleet(&["--quota", "many"]), "'many'", "in 1..=20000");
    assert_refused(fleet(&["--seconds", "-1"]), "'-1'", "in 3..=600");
    assert_refused(fleet(&["--json", "/tmp"]), "/tmp", "cannot write");
    assert_refused(
        fleet(&["--json", "/proc/none"]),
        "/proc/none",
        "cannot write",
    );
    assert_refused(fleet(&["--offered", "90000"]), "90000", "50000");
    for outage in ["5", "0..3", "7..7"] {
        assert_refused(
            fleet(&["--outage", outage]),
            outage,
            "expected FROM..TO in seconds",
        );
    }
    let late = fleet(&["--seconds", "9", "--outage", "5..9"]);
    assert_refused(late, "5..9", "expected it to end before the run does");
}

#[test]
fn a_missing_directory_or_redis_is_refused_before_the_run() {
    let path = "/does/not/exist/out";
    assert_refused(
        fleet(&["--json", path]),
        path,
        "is not a directory that exists",
    );
    let mut command = fleet(&[]);
    command.env("PRIVATE_SERVERS_PATH", "/nowhere");
    assert_refused(command, "`redis-server`", "apt-get install redis-server");
}

/// Runs it and returns its JSON.
fn run(arguments: &[&str]) -> Value {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("out.json");
    let json = json.to_str().unwrap();
    let output = fleet(&[arguments, &["--json", json]].concat())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}{errors}");
    assert!(text.contains("so far") && !text.contains("BROKE"), "{text}");
    serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap()
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("no number but {value}"))
}

/// In every second, all that was admitted is within what the quota allows, but for what a process
/// decided alone: on a busy machine a call to Redis may take longer than a request waits for it.
fn assert_within_the_quota(report: &Value) {
    for row in report["seconds"].as_array().unwrap() {
        let (admitted, alone, bound) = (
            number(&row["admitted_so_far"]),
            number(&row["without_redis_so_far"]),
            number(&row["bound_so_far"]),
        );
        assert!(admitted - alone <= bound, "{row}");
    }
}

#[test]
fn four_processes_that_ask_for_every_request_admit_exactly_what_the_quota_allows() {
    let report = run(&["--exact", "--no-outage", "--seconds", "4", "--quota", "100"]);
    assert_within_the_quota(&report);
    assert_eq!(report["seconds"].as_array().unwrap().len(), 4);
    let last = &report["seconds"][3];
    assert!(
        number(&last["admitted_so_far"]) >= 0.9 * number(&last["bound_so_far"]),
        "{last}"
    );
    assert_eq!(report["recovered_s"], Value::Null);
}

#[test]
fn four_processes_with_leases_admit_no_more() {
    let report = run(&["--no-outage", "--seconds", "4", "--quota", "200"]);
    assert_within_the_quota(&report);
    assert!(
        number(&report["calls"]) < number(&report["offered"]) / 4.0,
        "{report}"
    );
}

#[test]
fn no_request_fails_when_redis_is_killed_in_the_middle() {
    let report = run(&["--seconds", "6", "--quota", "200", "--outage", "2..4"]);
    let rows = report["seconds"].as_array().unwrap();
    let states: Vec<_> = rows
        .iter()
        .map(|row| row["redis"].as_bool().unwrap())
        .collect();
    assert_eq!(states, [true, true, false, false, true, true]);
    assert!(rows.iter().all(|row| row["failed"] == 0));
    let down: f64 = rows[2..4].iter().map(|row| number(&row["admitted"])).sum();
    assert!(down > 100.0, "each process goes on with its share: {down}");
    assert!(number(&report["recovered_s"]) <= 5.0);
}
