//! The control laws in virtual time, inside the shipped limiter.

use overload_benches::sim::{Report, Scenario, Server, Time, oracle, run};
use tower_capacity::Limiter;

const LIMITS: [usize; 12] = [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 400];

/// Capacity of [`Server::default`]: eight cores, 4 ms each.
const CAPACITY: f64 = 2000.0;

fn server() -> Server {
    Server::default()
}

fn adaptive(scenario: &Scenario) -> Report {
    run(scenario, Limiter::adaptive)
}

/// Goodput of each phase as a share of what the best fixed limit for that phase reaches.
fn shares(scenario: &Scenario, report: &Report) -> Vec<f64> {
    oracle(scenario, &LIMITS)
        .iter()
        .zip(&report.phases)
        .map(|(best, phase)| {
            if *best > 0.0 {
                phase.goodput() / best
            } else {
                1.0
            }
        })
        .collect()
}

/// Fails with everything that explains the run if a phase falls short.
fn assert_shares(scenario: &Scenario, report: &Report, least: f64) {
    let shares = shares(scenario, report);
    if shares.iter().all(|&share| share >= least) {
        return;
    }
    for (phase, share) in report.phases.iter().zip(&shares) {
        println!(
            "{:3.0} %: offered {} good {} late {} refused {} abandoned {} p99 {:.1} ms limit {:.0}",
            100.0 * share,
            phase.offered,
            phase.good,
            phase.late,
            phase.refused,
            phase.abandoned,
            1e3 * phase.quantile(0.99),
            phase.settled_limit(),
        );
    }
    println!("{}", report.changes.join("\n"));
    panic!(
        "{}: shares of the oracle {shares:.3?}, expected {least} at least",
        scenario.name
    );
}

#[test]
fn a_step_to_ten_times_the_capacity_keeps_the_goodput() {
    let scenario = Scenario::new("step-10x")
        .phase(10.0, 0.5 * CAPACITY, server())
        .phase(20.0, 10.0 * CAPACITY, server())
        .phase(10.0, 0.5 * CAPACITY, server());
    let report = adaptive(&scenario);
    assert_shares(&scenario, &report, 0.95);
    let surge = &report.good_by_tenth[100..110];
    assert!(
        f64::from(surge.iter().sum::<u32>()) > 0.8 * CAPACITY,
        "most of the capacity is used within the first second: {surge:?}"
    );
    assert_eq!(
        report.phases[0].refused, 0,
        "nothing is refused below 70 % of the capacity"
    );
    assert!(
        report.phases[1].quantile(0.99) < 0.150,
        "what is admitted is answered soon"
    );
}

#[test]
fn half_the_capacity_is_followed_down_and_up() {
    let half = Server {
        cores: 4.0,
        ..server()
    };
    let scenario = Scenario::new("capacity-halved")
        .phase(10.0, 1.25 * CAPACITY, server())
        .phase(20.0, 1.25 * CAPACITY, half)
        .phase(20.0, 1.25 * CAPACITY, server());
    let report = adaptive(&scenario);
    assert_shares(&scenario, &report, 0.90);
    let limits: Vec<_> = report
        .phases
        .iter()
        .map(|phase| phase.settled_limit())
        .collect();
    assert!(
        limits[1] < 0.8 * limits[0] && limits[1] < 0.8 * limits[2],
        "{limits:.0?}"
    );
}

#[test]
fn a_slow_dependency_without_a_loss_of_capacity_does_not_collapse_the_limit() {
    // 94 ms more for each request, and every one of them still served: by Little's law the
    // service now needs ninety requests inside more than before.
    let slow = Server {
        delay: 0.094,
        ..server()
    };
    let scenario = Scenario::new("slow-dependency")
        .phase(10.0, 0.9 * CAPACITY, server())
        .phase(20.0, 0.9 * CAPACITY, slow)
        .phase(20.0, 0.9 * CAPACITY, server())
        .phase(20.0, 1.5 * CAPACITY, server());
    let report = adaptive(&scenario);
    assert_shares(&scenario, &report, 0.93);
    let limits: Vec<_> = report
        .phases
        .iter()
        .map(|phase| phase.settled_limit())
        .collect();
    assert!(
        limits[1] > 180.0,
        "the limit follows the slow dependency up: {limits:.0?}"
    );
    assert!(
        limits[3] < 0.5 * limits[1],
        "and comes down again: {limits:.0?}"
    );
}

#[test]
fn thin_traffic_is_left_alone_and_then_protected() {
    let small = Server {
        cores: 2.0,
        cpu: Time::Exponential(0.060),
        ..server()
    };
    let scenario = Scenario::new("thin-traffic")
        .phase(60.0, 2.0, small)
        .phase(60.0, 20.0, small)
        .phase(60.0, 100.0, small);
    let report = adaptive(&scenario);
    assert_shares(&scenario, &report, 0.90);
    assert_eq!(report.phases[0].refused + report.phases[1].refused, 0);
}

#[test]
fn a_stale_baseline_is_found_out_in_the_surge_after_a_silence() {
    // Learned from a dependency that was slow then and is not any more.
    let slow = Server {
        delay: 0.094,
        ..server()
    };
    let scenario = Scenario::new("idle-then-10x")
        .phase(10.0, 0.7 * CAPACITY, slow)
        .phase(30.0, 0.0, server())
        .phase(30.0, 10.0 * CAPACITY, server());
    let report = adaptive(&scenario);
    assert_shares(&scenario, &report, 0.80);
    let limit = report.phases[2].settled_limit();
    assert!(limit < 120.0, "{limit}");
}

#[test]
fn three_minutes_of_overload_do_not_move_the_limit() {
    let scenario = Scenario::new("sustained").phase(180.0, 1.3 * CAPACITY, server());
    let limits = adaptive(&scenario).phases[0].limits.clone();
    let mean = |limits: &[usize]| limits.iter().sum::<usize>() as f64 / limits.len() as f64;
    let (first, last) = (mean(&limits[100..500]), mean(&limits[1400..]));
    assert!((last / first - 1.0).abs() < 0.10, "{first:.1} to {last:.1}");
}

#[test]
fn an_hour_without_traffic_changes_nothing() {
    let scenario = Scenario::new("silent-hour")
        .phase(10.0, 1.5 * CAPACITY, server())
        .phase(3600.0, 0.0, server())
        .phase(10.0, 1.5 * CAPACITY, server());
    let report = adaptive(&scenario);
    assert_shares(&scenario, &report, 0.90);
    let silence = &report.phases[1].limits;
    let (first, last) = (silence[10], silence[silence.len() - 1]);
    assert_eq!(first, last, "the limit is held while nobody asks");
}

#[test]
fn pauses_of_the_process_are_not_mistaken_for_overload() {
    let scenario = Scenario::new("pauses")
        .phase(60.0, 0.7 * CAPACITY, server())
        .phase(60.0, 1.5 * CAPACITY, server())
        .pauses(5.0, 0.2);
    let report = adaptive(&scenario);
    assert_shares(&scenario, &report, 0.95);
    assert!(report.phases[0].refused < report.phases[0].offered / 100);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let scenario = Scenario::new("twice").phase(5.0, 2.0 * CAPACITY, server());
    let (first, second) = (adaptive(&scenario), adaptive(&scenario));
    assert_eq!(first.changes, second.changes);
    assert_eq!(first.good(), second.good());
}
