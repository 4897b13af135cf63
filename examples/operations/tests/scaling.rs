//! The autoscaler of `kubernetes/scaling.yaml`, simulated: what scaling by demand does to a service
//! that its pods limit, and to one that its database limits.

use std::collections::VecDeque;

/// A Horizontal Pod Autoscaler as Kubernetes documents it, run every 15 seconds: pods × ratio /
/// target, within a tolerance of a tenth; the smallest recommendation of the last minute when it
/// scales up and the largest of five when it scales down; at most doubled, and a tenth taken away,
/// within a minute.
struct Autoscaler {
    pods: f64,
    recommended: VecDeque<f64>,
    /// How many pods there were at each run in the last minute.
    before: VecDeque<f64>,
}

const EVERY: f64 = 15.0;
const TARGET: f64 = 0.7;
const TOLERANCE: f64 = 0.1;
const UP: usize = 4;
const DOWN: usize = 20;
const LEAST: f64 = 2.0;
const MOST: f64 = 20.0;

impl Autoscaler {
    fn new(pods: f64) -> Self {
        Self {
            pods,
            recommended: VecDeque::new(),
            before: VecDeque::new(),
        }
    }

    fn run(&mut self, ratio: f64) {
        let off = ratio / TARGET;
        let wanted = match (off - 1.0).abs() > TOLERANCE {
            true => (self.pods * off).ceil(),
            false => self.pods,
        };
        self.recommended.push_front(wanted);
        self.recommended.truncate(DOWN);
        self.before.push_front(self.pods);
        self.before.truncate(UP);
        let up = self
            .recommended
            .iter()
            .take(UP)
            .copied()
            .fold(f64::MAX, f64::min);
        let down = self.recommended.iter().copied().fold(0.0, f64::max);
        let a_minute_ago = self.before.back().copied().unwrap_or(self.pods);
        self.pods = if up > self.pods && self.recommended.len() >= UP {
            up.min(2.0 * a_minute_ago)
        } else if down < self.pods && self.recommended.len() >= DOWN {
            down.max((0.9 * a_minute_ago).floor())
        } else {
            self.pods
        };
        self.pods = self.pods.clamp(LEAST, MOST);
    }
}

/// Pods that serve `of_a_pod` requests a second each, in front of a database that serves `at_best`
/// over as many connections as it has processors, and less over more. Every pod has at least
/// `connections` open.
struct Service {
    of_a_pod: f64,
    connections: f64,
    processors: f64,
    at_best: f64,
}

impl Service {
    /// What the database serves to `pods` pods, as their connections hinder one another.
    fn database(&self, pods: f64) -> f64 {
        let too_many = (pods * self.connections - self.processors).max(0.0);
        self.at_best / (1.0 + 0.25 * too_many / self.processors)
    }

    /// Requests served a second, the demand ratio, and whether the pools see the knee.
    fn serve(&self, pods: f64, load: f64) -> (f64, f64, bool) {
        let (of_pods, of_database) = (pods * self.of_a_pod, self.database(pods));
        let capacity = of_pods.min(of_database);
        let at_knee = load > of_database && of_database < of_pods;
        (load.min(capacity), load / capacity, at_knee)
    }
}

/// Goodput over the last ten minutes of half an hour at `load`, and the pods at its end.
fn half_an_hour(service: &Service, load: f64, heeds_the_knee: bool) -> (f64, f64) {
    let mut autoscaler = Autoscaler::new(4.0);
    let runs = (1_800.0 / EVERY) as usize;
    let mut served = 0.0;
    for run in 0..runs {
        let (goodput, ratio, at_knee) = service.serve(autoscaler.pods, load);
        // Like `service:scaling:ratio`.
        autoscaler.run(match at_knee && heeds_the_knee {
            true => ratio.min(TARGET),
            false => ratio,
        });
        if run >= runs * 2 / 3 {
            served += goodput;
        }
    }
    (served / (runs / 3) as f64, autoscaler.pods)
}

const SHOP: Service = Service {
    of_a_pod: 250.0,
    connections: 5.0,
    processors: 16.0,
    at_best: 900.0,
};

#[test]
fn more_pods_in_front_of_a_saturated_database_only_hurt_and_are_not_added() {
    let load = 1_500.0;
    let (naive, most) = half_an_hour(&SHOP, load, false);
    let (heeding, pods) = half_an_hour(&SHOP, load, true);
    println!(
        "by demand alone: {naive:.0}/s on {most} pods; heeding the knee: {heeding:.0}/s on {pods}"
    );
    assert_eq!(most, MOST, "by demand alone it adds all there are");
    assert!(pods <= 5.0, "{pods} pods");
    assert!(heeding > 1.5 * naive, "{heeding} against {naive}");
    // Fewer pods could not have served more, whatever scaled them.
    let best = (2..=20)
        .map(|pods| SHOP.serve(f64::from(pods), load).0)
        .fold(0.0, f64::max);
    assert!(heeding >= 0.9 * best, "{heeding} of {best}");
}

#[test]
fn pods_are_added_where_pods_are_the_limit_and_taken_away_again() {
    let database = Service {
        at_best: 1e6,
        processors: 1e3,
        ..SHOP
    };
    for heeds in [false, true] {
        let (goodput, pods) = half_an_hour(&database, 1_500.0, heeds);
        assert_eq!(goodput, 1_500.0);
        assert!((8.0..=9.0).contains(&pods), "{pods} pods");
        let (_, pods) = half_an_hour(&database, 100.0, heeds);
        assert_eq!(pods, LEAST);
    }
}
