//! The demo as a newcomer runs it: what it refuses, what it leaves behind, what it reports.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, PoisonError},
};

use serde_json::Value;

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graceful_degradation"));
    command.args(arguments).env_remove("DATABASE_URL");
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
fn absurd_bounds_are_refused() {
    for bounds in ["0..10", "20..10", "many", "1..", "-3..4"] {
        let argument = format!("--limit={bounds}");
        assert_refused(
            demo(&[&argument]),
            bounds,
            "expected MIN..MAX with 1 <= MIN <= MAX",
        );
        let argument = format!("--pool={bounds}");
        assert_refused(
            demo(&[&argument]),
            bounds,
            "expected MIN..MAX with 1 <= MIN <= MAX",
        );
    }
    let beyond = "1..99999999";
    assert_refused(
        demo(&["--limit", beyond]),
        "99999999",
        "expected 1 <= min <= max <= 2097151",
    );
}

#[test]
fn absurd_numbers_are_refused() {
    assert_refused(demo(&["--serve", "--load", "0"]), "'0'", "above 0");
    assert_refused(demo(&["--seconds", "1"]), "'1'", "2..=3600");
    assert_refused(demo(&["--seconds", "abc"]), "'abc'", "2..=3600");
    assert_refused(
        demo(&["--seed", "-1"]),
        "'-1'",
        "in 0..=18446744073709551615",
    );
    assert_refused(demo(&["--serve", "--load", "-1"]), "'-1'", "above 0");
    assert_refused(demo(&["--port", "70000"]), "70000", "65535");
    assert_refused(demo(&["--port", "80x"]), "'80x'", "in 0..=65535");
    assert_refused(demo(&["--load", "5"]), "--serve", "required");
}

#[test]
fn a_directory_that_cannot_be_made_is_named_with_its_purpose() {
    let mut command = demo(&[]);
    command.env("TMPDIR", "/nonexistent");
    assert_refused(command, "/nonexistent", "a directory for the database");
}

#[test]
fn an_unparsable_url_is_refused() {
    let mut command = demo(&["--postgres"]);
    command.env("DATABASE_URL", "not a url");
    assert_refused(
        command,
        "`not a url`",
        "expected postgres://user@host:port/database",
    );
}

#[test]
fn a_postgres_that_does_not_answer_is_refused() {
    // Bound and closed again: nothing listens there.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let url = format!("postgres://nobody@127.0.0.1:{port}/none");
    let mut command = demo(&["--postgres"]);
    command.env("DATABASE_URL", &url);
    assert_refused(command, &url, "no Postgres answers");
}

#[test]
fn no_password_is_printed() {
    for url in [
        "postgres://me:hunter2@127.0.0.1:1/none",
        "host=127.0.0.1 port=1 user=me password=hunter2",
        "postgres://me@127.0.0.1:1/none?password=hunter2",
        "postgres://me:hunter2@127.0.0.1:no/none",
    ] {
        let mut command = demo(&["--postgres"]);
        let output = command.env("DATABASE_URL", url).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("***") && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn an_output_that_cannot_be_written_is_refused_before_the_run() {
    let directory = tempfile::tempdir().unwrap();
    // Nothing can be created there, not even by root.
    for option in ["--json", "--svg", "--html"] {
        let mut command = demo(&[option, "/proc/none"]);
        command.current_dir(directory.path());
        assert_refused(command, "/proc/none", "cannot write");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn too_few_files_are_reported_before_the_ramp() {
    let mut command = Command::new("sh");
    let demo = env!("CARGO_BIN_EXE_graceful_degradation");
    command.args(["-c", "ulimit -n 120; exec \"$0\" --seconds 2", demo]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("may open 120 files"), "{text}");
}

#[test]
fn a_missing_postgres_is_refused() {
    let mut command = demo(&["--postgres"]);
    command.env("PRIVATE_SERVERS_PATH", "/nowhere");
    assert_refused(command, "`postgres`", "apt-get install postgresql");
}

#[test]
fn a_port_in_use_is_refused() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    assert_refused(
        demo(&["--serve", "--port", &port]),
        &port,
        "expected a port that is free",
    );
    assert_refused(
        demo(&["--port", &port]),
        &port,
        "expected a port that is free",
    );
}

#[test]
fn a_missing_directory_is_refused_before_the_run() {
    for option in ["--json", "--html", "--svg"] {
        let path = "/does/not/exist/out";
        assert_refused(
            demo(&[option, path]),
            path,
            "is not a directory that exists",
        );
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    assert_refused(demo(&["--json", path]), path, "expected the path of a file");
}

fn finish(mut command: Command) -> Output {
    let output = command.output().unwrap();
    // Met, not met and not measurable depend on the machine; 2 would be a problem.
    let code = output.status.code();
    assert!(
        matches!(code, Some(0 | 1 | 3)),
        "{code:?} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn number(value: &Value, path: &str) -> f64 {
    value
        .pointer(path)
        .and_then(Value::as_f64)
        .unwrap_or_else(|| panic!("no number at {path}"))
}

/// Held by tests that put the machine under load, which must not measure each other.
static MACHINE: Mutex<()> = Mutex::new(());

/// Runs a short ramp and returns its JSON.
fn run(directory: &Path, arguments: &[&str]) -> Value {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let file = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let (json, html, svg) = (file("out.json"), file("out.html"), file("out.svg"));
    let outputs = [
        "--seconds",
        "6",
        "--json",
        &json,
        "--html",
        &html,
        "--svg",
        &svg,
    ];
    let output = finish(demo(&[&outputs[..], arguments].concat()));
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["bare", "protected", "goodput/s", &json, &html, &svg] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let page = std::fs::read_to_string(html).unwrap();
    assert!(page.contains("const report = {") && !page.contains("REPORT_JSON"));
    assert!(page.contains("const GLOSSARY = ") && page.contains("data-label=\"goodput/s\""));
    // It shows the same without scripts.
    let (readable, _) = page.split_once("<script>").unwrap();
    for part in [
        "At ten times its capacity",
        "P99 of refusals",
        "<svg",
        "<td class=\"protected\">",
    ] {
        assert!(readable.contains(part), "{part} is not in:\n{readable}");
    }
    assert!(std::fs::read_to_string(svg).unwrap().starts_with("<svg"));
    let report: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let problems = report["conditions"]["problems"].as_array().unwrap();
    assert_eq!(
        output.status.code() == Some(3),
        !problems.is_empty(),
        "{text}"
    );
    assert_eq!(
        text.contains("this machine is busy"),
        !problems.is_empty(),
        "{text}"
    );
    // The headline is the number of the first check.
    let share = 100.0 * number(&report, "/verdict/protected_to_capacity");
    let measured = report["checks"][0]["measured"].as_str().unwrap();
    assert_eq!(measured, format!("{share:.0} %"));
    assert!(readable.contains(&format!("delivered {measured} of what it can do")));
    report
}

fn assert_complete(report: &Value, backend: &str) {
    assert_eq!(report["backend"], backend);
    assert!(number(report, "/capacity_rps") > 1.0);
    for (index, name) in ["bare", "protected"].iter().enumerate() {
        let run = &report["runs"][index];
        assert_eq!(run["name"], *name);
        assert_eq!(run["seconds"].as_array().unwrap().len(), 6);
        assert_eq!(run["phases"].as_array().unwrap().len(), 8);
        assert!(
            number(run, "/phases/0/goodput_rps") > 0.0,
            "{name} serves half its capacity"
        );
        assert!(number(run, "/phases/5/offered_rps") > 5.0 * number(run, "/phases/2/offered_rps"));
    }
    let protected = &report["runs"][1];
    assert!(
        number(protected, "/phases/5/shed_rps") > 0.0,
        "ten times the capacity is shed"
    );
    assert!(number(report, "/verdict/protected_goodput_at_peak_rps") >= 0.0);
    assert_eq!(report["checks"].as_array().unwrap().len(), 5);
}

#[test]
fn a_short_run_on_sqlite_reports_both_runs() {
    let directory = tempfile::tempdir().unwrap();
    assert_complete(&run(directory.path(), &[]), "embedded SQLite");
}

#[test]
fn a_short_run_on_a_private_postgres_reports_both_runs() {
    let directory = tempfile::tempdir().unwrap();
    assert_complete(&run(directory.path(), &["--postgres"]), "Postgres");
}

/// A server that is ended with the test.
struct Serving {
    child: Child,
    address: String,
    /// Kept open: a server ends with its next line when its output is not read.
    _stdout: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Serving {
    fn start() -> Self {
        let mut child = demo(&["--serve", "--port", "0", "--load", "20"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = loop {
            let line = lines
                .next()
                .expect("the server prints its address")
                .unwrap();
            if let Some((_, rest)) = line.split_once("http://") {
                break rest.trim_end_matches('/').to_owned();
            }
        };
        Self {
            child,
            address,
            _stdout: lines,
        }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: demo\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        response.split_once("\r\n\r\n").unwrap().1.to_owned()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_live_page_shows_what_the_server_does() {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let serving = Serving::start();
    let page = serving.get("/");
    assert!(page.contains("/api/live") && page.contains("const GLOSSARY = "));
    assert!(serving.get("/orders/gift").trim().parse::<u64>().unwrap() > 1000);
    let live: Value = serde_json::from_str(&serving.get("/api/live")).unwrap();
    assert_eq!(live["limiter"]["law"], "knee");
    assert!(live["busy"].is_null() || live["busy"].as_str().unwrap().contains("processors"));
    assert!(number(&live, "/limiter/limit") >= 1.0);
    assert!(number(&live, "/pool/size") >= 1.0);
    assert!(number(&live, "/responses/goodput_per_s") > 0.0);
}

#[test]
fn a_live_page_that_is_opened_late_gets_what_happened_before() {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let serving = Serving::start();
    assert!(serving.get("/").contains("/api/past"));
    let past = loop {
        let past: Value = serde_json::from_str(&serving.get("/api/past")).unwrap();
        if past["views"].as_array().unwrap().len() >= 4 {
            break past;
        }
    };
    let views = past["views"].as_array().unwrap();
    let times: Vec<f64> = views.iter().map(|view| number(view, "/t")).collect();
    assert!(times.is_sorted_by(|a, b| a < b));
    assert!(times[3] - times[0] > 1.0 && times[3] <= number(&past, "/t"));
    assert!(number(&views[3], "/responses/goodput_per_s") > 0.0);
    assert!(number(&views[3], "/limiter/limit") >= 1.0);
}
