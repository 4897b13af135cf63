//! The tuner in front of a pool in virtual time.

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::Bounds;

const TICK: Duration = Duration::from_millis(250);

/// A pool in virtual time, in the mean: open-loop arrivals, and a database whose use time is a
/// function of how many connections are busy.
struct Model {
    tuner: Tuner,
    now: Instant,
    limit: usize,
    queue: f64,
    resizes: Vec<Decision>,
    /// Completions per second of the last run.
    served: f64,
    /// How busy the application is, 0 to 1.
    app: f64,
}

enum Load {
    Open(f64),
    Closed(f64),
}

impl Model {
    fn new(bounds: RangeInclusive<usize>, start: usize) -> Self {
        let now = Instant::now();
        let bounds = Bounds::new(bounds).expect("valid bounds");
        let tuner = Tuner::new(TunerConfig::default(), bounds, start, now);
        Self {
            limit: tuner.target(),
            tuner,
            now,
            queue: 0.0,
            resizes: Vec::new(),
            served: 0.0,
            app: 0.0,
        }
    }

    /// Runs for `duration` with `rate` arrivals per second, each holding a connection for
    /// `use_time(busy)` seconds.
    fn run(&mut self, duration: Duration, rate: f64, use_time: impl Fn(f64) -> f64) {
        self.serve(duration, Load::Open(rate), use_time);
    }

    /// Runs for `duration` with `tasks` that take a connection again as soon as they gave it back.
    fn run_closed(&mut self, duration: Duration, tasks: f64, use_time: impl Fn(f64) -> f64) {
        self.serve(duration, Load::Closed(tasks), use_time);
    }

    fn serve(&mut self, duration: Duration, load: Load, use_time: impl Fn(f64) -> f64) {
        self.served = 0.0;
        let ticks = (duration.as_secs_f64() / TICK.as_secs_f64()) as usize;
        for _ in 0..ticks {
            let dt = TICK.as_secs_f64();
            let rate = match load {
                Load::Open(rate) => rate,
                // A caller that is done comes back at once.
                Load::Closed(tasks) => {
                    self.queue = (tasks - self.limit as f64).max(0.0);
                    self.limit.min(tasks as usize) as f64 / use_time(tasks.min(self.limit as f64))
                }
            };
            let offered = rate * dt + self.queue;
            let limit = self.limit as f64;
            // With a backlog all connections are busy; without one, as many as Little's law says.
            let full = use_time(limit);
            let capacity = limit / full * dt;
            let (done, busy, seconds) = if offered > capacity {
                (capacity, limit, full)
            } else {
                let mut busy = 0.0;
                for _ in 0..50 {
                    busy = 0.5 * busy + 0.5 * (offered / dt * use_time(busy)).min(limit);
                }
                (offered, busy, use_time(busy))
            };
            let queue = (offered - done).min(10_000.0);
            self.served += done / duration.as_secs_f64();
            let waited = if queue >= 1.0 { (rate * dt) as u64 } else { 0 };
            let window = PoolWindow {
                duration: TICK,
                arrivals: (rate * dt).round() as u64,
                completions: done.round() as u64,
                slow_waits: if queue / limit * full > 0.02 {
                    waited
                } else {
                    0
                },
                use_time: Duration::from_secs_f64(done.round() * seconds),
                use_time_squared: done.round() * seconds * seconds * 2.0,
                busy: Duration::from_secs_f64(busy * dt),
                queueing: Duration::from_secs_f64((self.queue + queue) / 2.0 * dt),
                capacity: Duration::from_secs_f64(limit * dt),
                limit: self.limit,
                queued: queue as usize,
                app_busy: Duration::from_secs_f64(self.app * dt),
                ..PoolWindow::default()
            };
            self.queue = queue;
            self.now += TICK;
            let decision = self.tuner.on_window(self.now, &window);
            self.limit = self.tuner.admitted();
            if decision.is_resize() {
                self.resizes.push(decision);
            }
        }
    }
}

use std::ops::RangeInclusive;

const MINUTE: Duration = Duration::from_secs(60);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_step_in_traffic_is_met_within_250_ms_and_needs_no_second_look() {
    let mut model = Model::new(2..=100, 4);
    model.run(seconds(30), 100.0, |_| 0.010);
    assert!(model.resizes.is_empty(), "one busy connection of four");

    let step = model.now;
    model.run(seconds(10), 2_000.0, |_| 0.010);
    let first = &model.resizes[0];
    assert_eq!(first.reason(), Reason::Backlog);
    assert_eq!(first.at() - step, TICK);
    assert!(
        (26..=40).contains(&model.limit),
        "20 busy plus slack: {}",
        model.limit
    );
    assert!(model.resizes.len() <= 2, "{:?}", model.resizes);
    assert_eq!(model.queue, 0.0);
}

#[test]
fn what_only_a_backlog_needed_is_given_back_once_it_is_worked_off() {
    let mut model = Model::new(2..=100, 4);
    model.run(seconds(3), 2_000.0, |_| 0.010);
    assert!(model.limit > 40, "20 busy and a backlog: {}", model.limit);
    model.run(seconds(10), 2_000.0, |_| 0.010);
    assert!(
        (20..=32).contains(&model.limit),
        "20 busy plus slack: {}",
        model.limit
    );
    let last = model.resizes.last().expect("it shrank");
    assert_eq!(last.reason(), Reason::Drained);
    model.run(5 * MINUTE, 2_000.0, |_| 0.010);
    assert_eq!(model.queue, 0.0);
}

#[test]
fn at_the_knee_of_an_application_that_has_no_time_the_application_is_named() {
    for (app, cause) in [(0.5, Cause::Unknown), (0.97, Cause::AppHold)] {
        let mut model = Model::new(2..=100, 4);
        model.app = app;
        // Whatever the cause, two connections do all that can be done.
        let use_time = |busy: f64| 0.010 * (busy / 2.0).max(1.0);
        model.run(seconds(60), 300.0, use_time);
        assert_eq!(model.tuner.verdict(), Verdict::AtKnee(cause));
    }
}

#[test]
fn of_a_jump_past_the_knee_only_what_pays_is_kept() {
    let mut model = Model::new(2..=100, 4);
    // Twenty-four connections do all that the database can do.
    let use_time = |busy: f64| 0.010 * (busy / 24.0).max(1.0);
    model.run(seconds(5), 4_000.0, use_time);
    let jump = model.resizes.iter().map(Decision::to).max();
    assert!(jump >= Some(60), "a backlog as large asks for it: {jump:?}");
    model.run(seconds(5), 4_000.0, use_time);
    let is_part = |decision: &&Decision| decision.reason() == Reason::Overshot;
    let kept = model
        .resizes
        .iter()
        .find(is_part)
        .expect("it shrank")
        .clone();
    assert!((24..=40).contains(&kept.to()), "{kept}");
    // And the backlog, which is the database's, does not bring the jump back.
    model.run(seconds(60), 4_000.0, use_time);
    let later = model
        .resizes
        .iter()
        .skip_while(|decision| decision.at() <= kept.at());
    for decision in later {
        assert!(decision.to() <= 56, "{decision}");
    }
    assert!((20..=40).contains(&model.limit), "{}", model.limit);
}

#[test]
fn a_jump_in_the_middle_of_a_trial_is_measured_from_where_the_trial_began() {
    let mut model = Model::new(2..=100, 4);
    // Two processors: no connection beyond the first two earns anything.
    let use_time = |busy: f64| 0.010 * (busy / 2.0).max(1.0);
    model.run(seconds(1), 400.0, use_time);
    model.run(seconds(1), 1_000.0, |_| 0.010);
    let grown: Vec<usize> = model.resizes.iter().map(Decision::to).collect();
    assert!(grown.len() >= 2, "a trial, and a jump: {grown:?}");
    model.run(seconds(5), 1_000.0, use_time);
    let back = model
        .resizes
        .iter()
        .find(|decision| decision.to() < decision.from());
    let back = back.expect("none of it paid");
    assert!(back.to() <= 8, "{back}");
}

#[test]
fn growth_whose_load_then_comes_in_bursts_is_not_judged_by_throughput() {
    let mut now = Instant::now();
    let bounds = Bounds::new(1..=40).expect("valid bounds");
    let mut tuner = Tuner::new(TunerConfig::default(), bounds, 4, now);
    // Part of the time in which 1,000 a second come and all connections are in use for 4 ms each.
    let mut window = |tuner: &mut Tuner, part: f64| {
        now += TICK;
        let limit = tuner.target();
        let count = (250.0 * part) as u64;
        let capacity = TICK * limit as u32;
        let full = PoolWindow {
            duration: TICK,
            arrivals: count,
            completions: count,
            wait_time: Duration::from_millis(25) * count as u32,
            slow_waits: count,
            use_time: Duration::from_millis(4) * count as u32,
            use_time_squared: 2.0 * 16e-6 * count as f64,
            busy: capacity.mul_f64(part),
            queueing: (TICK * 25).mul_f64(part),
            capacity,
            limit,
            ..PoolWindow::default()
        };
        tuner.on_window(now, &full)
    };
    let grown = (0..8).map(|_| window(&mut tuner, 1.0));
    let grown = grown.filter(Decision::is_resize).collect::<Vec<_>>();
    assert_eq!((grown.len(), grown[0].from()), (1, 4), "{grown:?}");
    assert!(!tuner.knee.is_idle(), "on trial");
    for _ in 0..20 {
        let decision = window(&mut tuner, 0.2);
        assert_ne!(decision.reason(), Reason::NoGain, "{decision}");
    }
    assert_eq!(tuner.target(), grown[0].to());
}

#[test]
fn what_a_burst_was_given_on_trial_is_given_back_after_it() {
    let mut model = Model::new(2..=100, 4);
    let use_time = |_| 0.010;
    model.run(seconds(30), 300.0, use_time);
    let before = model.limit;
    // Use times far above their base: not a matter of demand, but of a trial.
    model.run(seconds(3), 300.0, |_| 0.030);
    assert!(model.limit > before, "{}", model.limit);
    model.run(seconds(20), 300.0, use_time);
    let demand = model.tuner.peak_demand().expect("it was seen");
    assert!(
        model.limit <= demand.max(before) + 1,
        "{} for {demand}",
        model.limit
    );
}

#[test]
fn a_failover_forgets_what_was_learned_and_keeps_the_size() {
    let mut model = Model::new(1..=100, 4);
    model.run(seconds(30), 300.0, |_| 0.010);
    assert_eq!(model.limit, 4);
    let failover = model.tuner.failover(model.now);
    assert_eq!((failover.from(), failover.to()), (4, 4));
    assert_eq!(model.tuner.peak_demand(), None);
    model.run(seconds(5), 300.0, |_| 0.010);
    assert_eq!(model.limit, 4);
    assert_eq!(model.queue, 0.0);
}

#[test]
fn the_first_jump_is_bounded() {
    let mut model = Model::new(2..=1_000, 2);
    model.run(seconds(30), 10.0, |_| 0.010);
    model.run(TICK, 100_000.0, |_| 0.010);
    assert_eq!(model.limit, 8 * 2 + 8);
}

#[test]
fn a_slower_database_does_not_raise_demand_but_an_experiment_that_pays_does() {
    let mut model = Model::new(2..=100, 10);
    model.run(MINUTE, 500.0, |_| 0.005);
    let before = model.limit;
    let slower = model.now;
    // Ten times slower by itself, whatever we do: 500/s keep 25 connections busy.
    model.run(2 * MINUTE, 500.0, |_| 0.050);
    let first = model
        .resizes
        .iter()
        .find(|resize| resize.at() > slower)
        .expect("it grew");
    assert_eq!(
        first.reason(),
        Reason::Trial,
        "demand alone asks for no more: {first}"
    );
    let demand = first.inputs().demand.expect("use times are known");
    assert!(demand <= before, "{demand}");
    assert!(model.limit >= 25, "{:?}", model.resizes);
    model.run(MINUTE, 500.0, |_| 0.050);
    assert!(model.queue < 100.0, "{}", model.queue);
}

/// The database of the model's tests: two cores, `contention` that grows with the square of those
/// at work.
fn cores(cores: f64, contention: f64) -> impl Fn(f64) -> f64 {
    move |busy: f64| 0.002 * (busy / cores).max(1.0) * (1.0 + contention * busy)
}

/// The best throughput a static size reaches, and the size.
fn best(use_time: impl Fn(f64) -> f64) -> (f64, usize) {
    let throughput = |size: usize| size as f64 / use_time(size as f64);
    let best = (1..=100).max_by(|&a, &b| throughput(a).total_cmp(&throughput(b)));
    let best = best.expect("a hundred sizes");
    (throughput(best), best)
}

#[test]
fn waiting_for_io_grows_to_as_many_as_there_are_takers() {
    let mut model = Model::new(2..=100, 4);
    model.run_closed(seconds(12), 64.0, |_| 0.005);
    assert_eq!(model.limit, 64, "{:?}", model.resizes);
}

#[test]
fn a_hot_row_ends_at_fewer_connections_than_it_started_with() {
    let hot = |busy: f64| 0.001 * busy * (1.0 + 0.05 * busy);
    let mut model = Model::new(1..=100, 16);
    model.run_closed(2 * MINUTE, 64.0, hot);
    assert!(model.limit < 16, "{:?}", model.resizes);
    assert!(model.tuner.knee().is_some());
    model.run_closed(5 * MINUTE, 64.0, hot);
    let (throughput, size) = best(hot);
    assert!(
        model.served > 0.9 * throughput,
        "{} of {throughput} at {size}",
        model.served
    );
    assert!(model.limit <= 4, "{} where {size} is best", model.limit);
}

#[test]
fn a_hot_row_is_found_however_long_it_is_held() {
    for held in [0.001, 0.003, 0.01, 0.03] {
        let hot = |busy: f64| held * busy.max(1.0);
        let mut model = Model::new(1..=100, 4);
        model.run_closed(seconds(10), 4.0, hot);
        model.run_closed(5 * MINUTE, 64.0, hot);
        assert!(model.limit <= 4, "{held} s: {:?}", model.resizes);
    }
}

#[test]
fn steady_overload_of_a_processor_is_served_as_by_the_best_static_size() {
    let cpu = cores(2.0, 0.002);
    let (throughput, _) = best(&cpu);
    let mut model = Model::new(2..=100, 4);
    model.run(MINUTE, 0.5 * throughput, &cpu);
    model.run(MINUTE, 1.3 * throughput, &cpu);
    model.resizes.clear();
    model.run(60 * MINUTE, 1.3 * throughput, &cpu);
    assert!(
        model.served > 0.95 * throughput,
        "{} of {throughput}",
        model.served
    );
    assert!(model.limit <= 6, "two cores: {}", model.limit);
    assert!(
        model.resizes.len() <= 30,
        "{} in an hour",
        model.resizes.len()
    );
}

#[test]
fn a_recovered_database_is_used_again() {
    let mut model = Model::new(2..=100, 4);
    model.run_closed(5 * MINUTE, 64.0, cores(2.0, 0.01));
    let before = model.limit;
    assert!(before <= 6, "{before}");
    let (throughput, _) = best(cores(16.0, 0.01));
    model.run_closed(5 * MINUTE, 64.0, cores(16.0, 0.01));
    model.run_closed(MINUTE, 64.0, cores(16.0, 0.01));
    assert!(
        model.served > 0.9 * throughput,
        "{} of {throughput}",
        model.served
    );
}

#[test]
fn the_knee_is_forgotten_after_a_calm_while() {
    let mut model = Model::new(2..=100, 4);
    model.run_closed(5 * MINUTE, 64.0, cores(2.0, 0.01));
    assert!(model.tuner.knee().is_some());
    model.run(seconds(25), 100.0, cores(2.0, 0.01));
    assert_eq!(model.tuner.knee(), None);
}

#[test]
fn no_experiment_is_made_where_it_could_not_be_resolved() {
    let mut model = Model::new(2..=100, 2);
    // Four a second are too few to tell one throughput from another.
    model.run_closed(5 * MINUTE, 20.0, |_| 0.5);
    let reasons: Vec<_> = model.resizes.iter().map(Decision::reason).collect();
    assert!(!reasons.contains(&Reason::Trial), "{reasons:?}");
}

#[test]
fn a_database_that_more_connections_make_slower_is_not_given_more() {
    // Two cores: beyond two busy connections, use time grows with each.
    let cpu = |busy: f64| 0.002 * (busy / 2.0).max(1.0) * (1.0 + 0.01 * busy);
    let mut model = Model::new(2..=100, 4);
    model.run(MINUTE, 400.0, cpu);
    model.run(10 * MINUTE, 1_300.0, cpu);
    assert!(
        model.limit <= 8,
        "demand at the base use time is 2.6 + slack: {}",
        model.limit
    );
}

#[test]
fn shrinks_after_300_s_of_lower_demand_by_at_most_a_fifth_a_minute() {
    let mut model = Model::new(2..=100, 28);
    model.run(10 * MINUTE, 2_000.0, |_| 0.010);
    assert!(
        model.resizes.is_empty(),
        "20 busy plus slack: {:?}",
        model.resizes
    );
    let fell = model.now;
    model.run(20 * MINUTE, 100.0, |_| 0.010);

    let first = &model.resizes[0];
    assert_eq!(first.reason(), Reason::Surplus);
    let after = first.at() - fell;
    assert!(
        (seconds(299)..seconds(305)).contains(&after),
        "first shrink after {after:?}"
    );
    for shrink in &model.resizes {
        let step = shrink.from() - shrink.to();
        assert!(step <= (shrink.from() / 5).max(1), "{shrink}");
    }
    for pair in model.resizes.windows(2) {
        assert!(pair[1].at() - pair[0].at() >= MINUTE);
    }
    assert!(
        model.limit <= 4,
        "one busy connection plus slack: {}",
        model.limit
    );
}

#[test]
fn a_target_within_the_dead_band_stays() {
    let mut model = Model::new(2..=100, 27);
    model.run(10 * MINUTE, 2_000.0, |_| 0.010);
    // Demand falls from 26 to 24: 27 is less than 15 % above it.
    model.run(20 * MINUTE, 1_800.0, |_| 0.010);
    assert!(model.resizes.is_empty(), "{:?}", model.resizes);
}

#[test]
fn thirty_quiet_minutes_see_at_most_two_resizes() {
    let mut model = Model::new(2..=100, 8);
    model.run(30 * MINUTE, 200.0, |_| 0.020);
    assert!(model.resizes.len() <= 2, "{:?}", model.resizes);
}

#[test]
fn an_hour_without_traffic_ends_at_the_minimum_and_a_burst_is_met_at_once() {
    let mut model = Model::new(3..=100, 4);
    model.run(MINUTE, 1_000.0, |_| 0.010);
    model.run(60 * MINUTE, 0.0, |_| 0.010);
    assert_eq!(model.limit, 3);
    model.run(seconds(1), 1_000.0, |_| 0.010);
    assert!(model.limit >= 14, "{}", model.limit);
}

#[test]
fn saturation_at_the_maximum_says_so() {
    let config = TunerConfig {
        experiments: false,
        ..TunerConfig::default()
    };
    let now = Instant::now();
    let bounds = Bounds::new(2..=8).expect("valid bounds");
    let mut tuner = Tuner::new(config, bounds, 8, now);
    let window = PoolWindow {
        duration: seconds(1),
        arrivals: 2_000,
        completions: 800,
        timeouts: 5,
        use_time: seconds(8),
        limit: 8,
        ..PoolWindow::default()
    };
    let decision = tuner.on_window(now + seconds(1), &window);
    assert_eq!(decision.reason(), Reason::AtMaximum);
    assert!(!decision.to_string().contains('\n'));
}

#[test]
fn faster_queries_lower_the_base_at_once_and_slower_ones_only_when_calm() {
    let mut model = Model::new(2..=100, 10);
    model.run(MINUTE, 500.0, |_| 0.010);
    let base = |model: &Model| model.tuner.base.get().expect("traffic was seen");
    assert!((base(&model) - 0.010).abs() < 1e-6);
    model.run(MINUTE, 500.0, |_| 0.012);
    assert!(
        (base(&model) - 0.012).abs() < 1e-4,
        "the pool is not saturated: {}",
        base(&model)
    );
    // Saturated, and no experiment pays: the slowness is our doing.
    model.run(5 * MINUTE, 500.0, |busy| 0.010 * busy.max(1.0));
    assert!(base(&model) < 0.020, "{}", base(&model));
}

#[test]
fn new_bounds_move_the_target_into_them() {
    let now = Instant::now();
    let bounds = |range| Bounds::new(range).expect("valid bounds");
    let mut tuner = Tuner::new(TunerConfig::default(), bounds(2..=50), 20, now);
    let decision = tuner.set_bounds(now, bounds(2..=8));
    assert_eq!((decision.from(), decision.to()), (20, 8));
    assert_eq!(
        decision.to_string(),
        "shrink 20 -> 8: the bounds were changed"
    );
    assert_eq!(tuner.set_bounds(now, bounds(12..=50)).to(), 12);
}

fn any_window() -> impl Strategy<Value = PoolWindow> {
    let counts = (
        0..100_000u64,
        0..100_000u64,
        0..100u64,
        0..1_000u64,
        0..100_000u64,
    );
    let times = (
        0..20_000u64,
        0..10_000_000u64,
        0..10_000_000u64,
        0..10_000_000u64,
    );
    (counts, times, -1.0..1e12f64, 0..5_000usize, 0..5_000usize).prop_map(
        |(counts, times, use_time_squared, limit, queued)| PoolWindow {
            duration: Duration::from_millis(times.0),
            arrivals: counts.0,
            completions: counts.1,
            timeouts: counts.2,
            shed: counts.3,
            slow_waits: counts.4,
            use_time: Duration::from_millis(times.1),
            use_time_squared,
            busy: Duration::from_millis(times.2),
            queueing: Duration::from_millis(times.3),
            capacity: Duration::from_millis(times.1),
            limit,
            queued,
            ..PoolWindow::default()
        },
    )
}

proptest! {
    #[test]
    fn target_stays_within_bounds_and_inputs_are_numbers(
        min in 1..50usize,
        width in 0..500usize,
        start in 0..1_000usize,
        windows in prop::collection::vec((any_window(), 0..400_000u64), 1..60),
    ) {
        let mut now = Instant::now();
        let bounds = Bounds::new(min..=min + width).expect("valid bounds");
        let mut tuner = Tuner::new(TunerConfig::default(), bounds, start, now);
        for (window, later) in windows {
            now += Duration::from_millis(later);
            let before = tuner.target();
            let decision = tuner.on_window(now, &window);
            prop_assert_eq!(decision.from(), before);
            prop_assert_eq!(decision.to(), tuner.target());
            prop_assert!((bounds.min()..=bounds.max()).contains(&decision.to()));
            prop_assert!(decision.to() <= 8 * before + 8);
            prop_assert!((1..=decision.to()).contains(&tuner.admitted()));
            if decision.reason() == Reason::Surplus {
                prop_assert!(decision.to() >= before - (before / 5).max(1));
            }
            let inputs = decision.inputs();
            for number in [
                inputs.arrival_rate,
                inputs.throughput,
                inputs.mean_wait_time,
                inputs.use_time_variation,
                inputs.utilisation,
                inputs.mean_queue,
                inputs.mean_use_time.unwrap_or(0.0),
                inputs.base_use_time.unwrap_or(0.0),
            ] {
                prop_assert!(number.is_finite(), "{:?}", decision);
            }
            prop_assert!(!decision.to_string().contains("NaN"));
        }
    }
}
