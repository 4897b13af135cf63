//! The bars that the default law holds, so that a regression fails.
//!
//! What the best fixed limit reaches in each scenario is kept in `snapshots/oracle.txt`, since a
//! sweep costs a dozen runs; `UPDATE_SNAPSHOTS=1 cargo test --release -p overload-benches --test
//! bars` finds it anew. Bars lie a little below what was measured: another machine's logarithms
//! may round differently.

use std::{collections::HashMap, fmt::Write, fs, path::PathBuf, sync::OnceLock, time::Duration};

use overload_benches::sim::{
    Contender, Report, Scenario, Score, built, in_parallel, oracle_of, run, scenarios,
};
use tower_capacity::Limiter;

/// Random scenarios. No constant was chosen by them, but they were looked at.
const SEEDS: std::ops::Range<u64> = 20_001..20_041;

fn known() -> Vec<Scenario> {
    let mut all = scenarios::named();
    all.extend(scenarios::mixes());
    all.extend(SEEDS.map(scenarios::random));
    all
}

/// Goodput of the best fixed limit by phase.
fn best(scenario: &Scenario) -> Vec<f64> {
    static BEST: OnceLock<HashMap<String, Vec<f64>>> = OnceLock::new();
    BEST.get_or_init(|| {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/oracle.txt");
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            let lines = in_parallel(&known(), |scenario| {
                let mut line = scenario.name.clone();
                for best in oracle_of(scenario) {
                    write!(line, " {best:.1}").expect("a string takes all");
                }
                line + "\n"
            });
            fs::write(&path, lines.concat()).expect("the snapshot can be written");
        }
        let text = fs::read_to_string(&path).expect("the snapshot can be read");
        let line = |line: &str| {
            let (name, best) = line.split_once(' ').expect("a name and numbers");
            let best = best
                .split(' ')
                .map(|number| number.parse().expect("a number"));
            (name.to_owned(), best.collect())
        };
        text.lines().map(line).collect()
    })
    .get(&scenario.name)
    .unwrap_or_else(|| panic!("{} is not in the snapshot", scenario.name))
    .clone()
}

fn scores(scenarios: &[Scenario], contender: Contender) -> Vec<Score> {
    in_parallel(scenarios, |scenario| {
        let report = run(scenario, || contender.guard(scenario, false));
        assert_eq!(
            report.leaked, 0,
            "{}: every permit came back",
            scenario.name
        );
        Score::of(scenario, &report, &best(scenario))
    })
}

fn mean(scores: &[Score]) -> f64 {
    scores.iter().map(|score| score.share).sum::<f64>() / scores.len() as f64
}

fn named(name: &str) -> Scenario {
    known()
        .into_iter()
        .find(|scenario| scenario.name == name)
        .unwrap_or_else(|| panic!("{name} is in the table"))
}

fn ours(scenario: &Scenario) -> Report {
    run(scenario, || Contender::Ours.guard(scenario, false))
}

#[test]
fn the_named_scenarios_keep_their_goodput() {
    let all = scenarios::named();
    let scores = scores(&all, Contender::Ours);
    for (scenario, score) in all.iter().zip(&scores) {
        // The least are jobs of half a second on two cores.
        assert!(score.share > 0.78, "{}: {}", scenario.name, score.share);
    }
    assert!(mean(&scores) > 0.965, "{}", mean(&scores));
}

#[test]
fn no_peer_comes_near_on_the_named_scenarios() {
    let all = scenarios::named();
    let ours = mean(&scores(&all, Contender::Ours));
    // The best two.
    for peer in [Contender::Aimd, Contender::Envoy] {
        let theirs = mean(&scores(&all, peer));
        assert!(
            ours > theirs + 0.02,
            "{}: {theirs}, ours {ours}",
            peer.name()
        );
    }
}

#[test]
fn random_scenarios_keep_their_goodput() {
    let all: Vec<_> = SEEDS.map(scenarios::random).collect();
    let scores = scores(&all, Contender::Ours);
    assert!(mean(&scores) > 0.90, "{}", mean(&scores));
}

#[test]
fn a_service_that_is_not_overloaded_loses_nothing() {
    let scores = scores(&[named("healthy")], Contender::Ours);
    assert!(scores[0].share > 0.99, "{}", scores[0].share);
    assert!(scores[0].refused_below_capacity < 1e-9);
}

#[test]
fn light_loads_with_hiccups_are_served() {
    let services: Vec<_> = (6_001..6_081).map(scenarios::calm).collect();
    let served = |scenario: &Scenario, contender: Contender| {
        let report = run(scenario, || contender.guard(scenario, false));
        report.phases[0].good_share()
    };
    let rows = in_parallel(&services, |scenario| {
        let bare = served(scenario, Contender::Unlimited);
        (bare, served(scenario, Contender::Ours))
    });
    let (healthy, collapsed): (Vec<_>, Vec<_>) = rows.iter().partition(|(bare, _)| *bare > 0.95);
    let lost: Vec<f64> = healthy.iter().map(|(bare, ours)| bare - ours).collect();
    let mean = |shares: &[f64]| shares.iter().sum::<f64>() / shares.len() as f64;
    assert!(mean(&lost) < 0.004, "{} lost", mean(&lost));
    // Beyond a few at once these do less the more are inside: the start is above that already.
    let kept: Vec<f64> = collapsed.iter().map(|(_, ours)| *ours).collect();
    assert!(mean(&kept) > 0.68, "{} served", mean(&kept));
}

#[test]
fn a_slow_dependency_costs_less_than_a_twentieth() {
    let slow = [named("slow-dependency"), named("slow-dependency-60")];
    for score in scores(&slow, Contender::Ours) {
        assert!(score.share > 0.95, "{}", score.share);
        // While the limit follows the dependency, and never again.
        assert!(score.refused_below_capacity < 0.05);
    }
}

#[test]
fn ten_times_the_capacity_is_met_within_a_second() {
    let scores = scores(&[named("step-10x")], Contender::Ours);
    assert!(scores[0].convergence <= 1.0, "{}", scores[0].convergence);
}

#[test]
fn half_an_hour_of_overload_moves_the_limit_by_less_than_a_twentieth() {
    let report = ours(&scenarios::half_hour());
    let limits = &report.phases[0].limits;
    // Five minutes after the first, and the last five: the limit breathes with each audit.
    let mean = |limits: &[usize]| limits.iter().sum::<usize>() as f64 / limits.len() as f64;
    let (first, last) = (
        mean(&limits[600..3600]),
        mean(&limits[limits.len() - 3000..]),
    );
    println!("limit {first:.1} to {last:.1}");
    assert!((last / first - 1.0).abs() < 0.05, "{first:.1} to {last:.1}");
}

#[test]
fn what_matters_more_is_served_first() {
    let scenario = named("priority-mix");
    let report = ours(&scenario);
    let answered = |phase: usize, class: usize| {
        let class = report.phases[phase].classes[class];
        class.good as f64 / class.offered as f64
    };
    // 1.5 and 3 times the capacity, of which critical requests are a fifth.
    for phase in [1, 2] {
        assert!(answered(phase, 0) > 0.985, "{}", answered(phase, 0));
    }
    for class in 0..3 {
        assert!(answered(1, class) > answered(1, class + 1));
    }
}

#[test]
fn a_noisy_tenant_does_not_starve_the_others() {
    let report = ours(&named("noisy-tenant"));
    let answered = report.phases[0]
        .classes
        .iter()
        .map(|class| class.good as f64 / class.offered as f64);
    let answered: Vec<_> = answered.collect();
    assert!(
        answered[0] < 0.7,
        "one offers more than there is: {answered:.2?}"
    );
    assert!(
        answered[1..].iter().all(|&share| share > 0.92),
        "{answered:.2?}"
    );
}

#[test]
fn short_streams_and_fleets_keep_their_goodput() {
    let names = [
        "streams-1s",
        "fleet-turns",
        "fleet-least",
        "fleet-turns-slow",
        "fleet-least-slow",
    ];
    let all = names.map(named);
    for (scenario, score) in all.iter().zip(scores(&all, Contender::Ours)) {
        assert!(score.share > 0.93, "{}: {}", scenario.name, score.share);
    }
}

#[test]
fn a_latency_objective_is_met_and_costs_little() {
    let scenario = named("step-2x");
    let objective = Duration::from_millis(60);
    let with = run(&scenario, || {
        built(Limiter::builder().latency_objective(objective))
    });
    let without = ours(&scenario);
    let p99 = |report: &Report| report.phases[1].quantile(0.99);
    assert!(
        p99(&with) < 0.090 && p99(&with) < p99(&without),
        "{} instead of {}: 60 ms of service and the wait before it",
        p99(&with),
        p99(&without)
    );
    let lost = 1.0 - with.good() as f64 / without.good() as f64;
    assert!(lost < 0.10, "{lost}");
}
