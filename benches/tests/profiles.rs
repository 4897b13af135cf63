//! The runner of capacity documents as a newcomer uses it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn profiles(arguments: &[&str], directory: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_profiles"));
    command.args(arguments).current_dir(directory);
    command.output().expect("it runs")
}

#[test]
fn a_profile_of_ones_own_is_run_judged_and_written_down() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/sixth.toml");
    let arguments = [
        "--file",
        file,
        "--quick",
        "--json",
        "numbers.json",
        "--results",
        ".",
    ];
    let output = profiles(&arguments, directory.path());
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}{errors}");

    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).expect(name);
    let numbers: Value = serde_json::from_str(&read("numbers.json")).expect("JSON");
    let runs = numbers[0]["runs"].as_array().expect("runs");
    let ways: Vec<_> = runs.iter().map(|run| run["way"].as_str()).collect();
    assert_eq!(ways, [Some("static"), Some("ours")]);
    for run in runs {
        let verdicts = run["verdicts"].as_array().expect("verdicts");
        assert_eq!(verdicts.len(), 3);
    }
    let document = read("sixth.md");
    assert!(
        document.contains("| it serves, plan | ≥ 20 |"),
        "{document}"
    );
    let page = read("profiles.html");
    assert!(page.contains("<svg") && !page.contains("NaN"));
}

#[test]
fn a_profile_that_does_not_exist_is_refused_with_those_that_do() {
    let output = profiles(&["--profile", "mini"], Path::new("."));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(
        errors.contains("\"mini\"") && errors.contains("mina, muejam"),
        "{errors}"
    );
}
