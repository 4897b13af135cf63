//! A part of the scenarios under the default law, against a text snapshot.
//!
//! `UPDATE_SNAPSHOTS=1 cargo test -p overload-benches --test scenarios` rewrites it. Runs are
//! deterministic on one machine; another's logarithms may round differently, so that numbers only
//! have to be near.

use std::{fmt::Write, fs, path::PathBuf};

use overload_benches::sim::{Scenario, in_parallel, run, scenarios};
use tower_capacity::Limiter;

const CHOSEN: [&str; 8] = [
    "step-2x",
    "slow-dependency-60",
    "slow-database",
    "jobs-500ms",
    "two-cores-60ms",
    "microbursts-calm",
    "closed-36",
    "contention",
];

fn chosen() -> Vec<Scenario> {
    scenarios::named()
        .into_iter()
        .filter(|scenario| CHOSEN.contains(&&*scenario.name))
        .collect()
}

/// Scenario, phase, good responses a second, settled limit.
fn table() -> String {
    let reports = in_parallel(&chosen(), |scenario| {
        (scenario.name.clone(), run(scenario, Limiter::adaptive))
    });
    let mut table = String::from("scenario phase goodput limit\n");
    for (name, report) in reports {
        assert_eq!(report.leaked, 0, "{name}: every permit came back");
        for (index, phase) in report.phases.iter().enumerate() {
            let (goodput, limit) = (phase.goodput(), phase.settled_limit());
            writeln!(table, "{name} {index} {goodput:.0} {limit:.0}").expect("a string takes all");
        }
    }
    table
}

fn is_near(found: &str, expected: &str) -> bool {
    match (found.parse::<f64>(), expected.parse::<f64>()) {
        (Ok(found), Ok(expected)) => (found - expected).abs() <= 0.1 * expected + 3.0,
        _ => found == expected,
    }
}

#[test]
fn the_default_law_does_what_the_snapshot_says() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/scenarios.txt");
    let found = table();
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        return fs::write(&path, found).expect("the snapshot can be written");
    }
    let expected = fs::read_to_string(&path).expect("the snapshot can be read");
    assert_eq!(found.lines().count(), expected.lines().count(), "{found}");
    for (found, expected) in found.lines().zip(expected.lines()) {
        let mut words = found.split(' ').zip(expected.split(' '));
        assert!(
            words.all(|(found, expected)| is_near(found, expected)),
            "found `{found}`, expected about `{expected}`"
        );
    }
}

#[test]
fn half_of_the_clients_abandon_and_no_permit_is_lost() {
    let flood = scenarios::named()
        .into_iter()
        .find(|scenario| scenario.name == "cancel-flood")
        .expect("the scenario is in the table");
    let report = run(&flood, Limiter::adaptive);
    let abandoned: u64 = report.phases.iter().map(|phase| phase.abandoned).sum();
    assert!(abandoned > 500, "the scenario is what it says");
    assert_eq!(report.leaked, 0);
}

#[test]
fn a_random_scenario_is_the_same_for_the_same_seed() {
    let first = format!("{:?}", scenarios::random(7));
    assert_eq!(first, format!("{:?}", scenarios::random(7)));
    assert_ne!(first, format!("{:?}", scenarios::random(8)));
}
