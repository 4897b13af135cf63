//! The scenarios by name, and random ones.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::SmallRng};

use tower_capacity::gate::Priority;

use super::{Balance, Class, Load, Scenario, Server, Time};

/// Requests a second that [`Server::default`] can serve: eight cores, 4 ms each.
pub const CAPACITY: f64 = 2000.0;

/// The scenarios by name. Rates are in multiples of the capacity, C = 2,000/s for the usual server.
#[must_use]
pub fn named() -> Vec<Scenario> {
    const C: f64 = CAPACITY;
    let usual = Server::default();
    let half = Server {
        cores: 4.0,
        ..usual
    };
    let far = Server {
        delay: 0.094,
        ..usual
    };
    // 64 connections at 40 ms: 1,600/s.
    let slow_db = Server {
        dependency: Time::Exponential(0.040),
        ..usual
    };
    // 1.7 ms or 68 ms: 1,600/s.
    let bimodal = Server {
        cpu: Time::Bimodal {
            fast: 0.0017,
            slow: 0.068,
            share: 0.05,
        },
        ..usual
    };
    let light = Server {
        cpu: Time::Exponential(0.002),
        ..usual
    };
    // 2 ms or 40 ms: 833/s.
    let heavy = Server {
        cpu: Time::Bimodal {
            fast: 0.002,
            slow: 0.040,
            share: 0.2,
        },
        ..usual
    };
    let even = Server {
        cpu: Time::LogNormal {
            mean: 0.004,
            cv: 0.2,
        },
        dependency: Time::LogNormal {
            mean: 0.010,
            cv: 0.2,
        },
        ..usual
    };
    let constant = Server {
        cpu: Time::Fixed(0.004),
        dependency: Time::Fixed(0.010),
        ..usual
    };
    let tail = Server {
        cpu: Time::LogNormal {
            mean: 0.004,
            cv: 3.0,
        },
        ..usual
    };
    // 33/s.
    let two_cores = Server {
        cores: 2.0,
        cpu: Time::Exponential(0.060),
        ..usual
    };
    // 4/s.
    let jobs = Server {
        cores: 2.0,
        cpu: Time::Exponential(0.500),
        ..usual
    };
    let collapsing = Server {
        contention: 0.02,
        ..usual
    };
    let many_cores = Server {
        cores: 64.0,
        connections: 512,
        ..usual
    };
    // 16 connections at 10 ms: 1,600/s, with idle cores.
    let pool = Server {
        cores: 32.0,
        connections: 16,
        ..usual
    };
    // 250/s with two inside, 500 with eight and 1,000 with 32.
    let round_trips = Server {
        cores: 2.0,
        cpu: Time::Exponential(0.008),
        dependency: Time::Exponential(0.000_5),
        sharing: 0.5,
        ..usual
    };
    // The same with eight connections: 1,172/s at best.
    let eight = Server {
        connections: 8,
        cpu: Time::Exponential(0.007),
        dependency: Time::Exponential(0.001_5),
        ..round_trips
    };
    let closed = |clients| Load::Closed {
        clients,
        think: 0.005,
    };
    let bursts = |high, low, each| Load::Bursts {
        high: high * C,
        low: low * C,
        each,
    };
    let ramp = |from, to| Load::Ramp {
        from: from * C,
        to: to * C,
    };
    let secs = Duration::from_secs;
    let ms = Duration::from_millis;
    let s = |name| Scenario::new(name).objective(ms(300)).patience(secs(1));
    vec![
        s("healthy")
            .phase(20.0, 0.5 * C, usual)
            .phase(20.0, 0.7 * C, usual)
            .phase(20.0, 0.85 * C, usual),
        s("step-2x")
            .phase(10.0, 0.5 * C, usual)
            .phase(20.0, 2.0 * C, usual)
            .phase(10.0, 0.5 * C, usual),
        s("step-10x")
            .phase(10.0, 0.5 * C, usual)
            .phase(15.0, 10.0 * C, usual)
            .phase(10.0, 0.5 * C, usual),
        s("sustained-1.3x")
            .phase(10.0, 0.5 * C, usual)
            .phase(180.0, 1.3 * C, usual),
        s("capacity-halved")
            .phase(10.0, 1.25 * C, usual)
            .phase(20.0, 1.25 * C, half)
            .phase(20.0, 1.25 * C, usual),
        s("slow-dependency")
            .phase(10.0, 0.9 * C, usual)
            .phase(20.0, 0.9 * C, far)
            .phase(20.0, 0.9 * C, usual),
        s("slow-dependency-60")
            .phase(10.0, 0.6 * C, usual)
            .phase(20.0, 0.6 * C, far)
            .phase(10.0, 0.6 * C, usual),
        s("slow-dependency-2x")
            .phase(10.0, 0.5 * C, usual)
            .phase(20.0, 0.5 * C, far)
            .phase(20.0, 2.0 * C, usual),
        s("slow-database")
            .phase(10.0, 1520.0, usual)
            .phase(20.0, 1520.0, slow_db)
            .phase(20.0, 2400.0, slow_db)
            .phase(10.0, 1520.0, usual),
        s("bimodal")
            .objective(secs(1))
            .patience(secs(3))
            .phase(15.0, 1100.0, bimodal)
            .phase(30.0, 2400.0, bimodal),
        s("mix-shift")
            .phase(15.0, 1600.0, light)
            .phase(20.0, 1600.0, heavy)
            .phase(15.0, 1600.0, light),
        s("pauses")
            .phase(30.0, 0.7 * C, usual)
            .phase(30.0, 1.5 * C, usual)
            .pauses(5.0, 0.2),
        s("cold-start")
            .phase(10.0, ramp(0.3, 1.0), usual)
            .phase(10.0, ramp(1.0, 2.0), usual),
        s("start-in-overload").phase(30.0, 4.0 * C, even),
        s("thin-then-2x")
            .phase(30.0, 20.0, usual)
            .phase(20.0, 2.0 * C, usual),
        s("jobs-500ms")
            .objective(secs(5))
            .patience(secs(15))
            .phase(60.0, 2.0, jobs)
            .phase(90.0, 8.0, jobs)
            .phase(60.0, 2.0, jobs),
        s("two-cores-60ms")
            .objective(secs(1))
            .patience(secs(3))
            .phase(20.0, 20.0, two_cores)
            .phase(60.0, 100.0, two_cores),
        s("microbursts-calm").phase(30.0, bursts(1.6, 0.1, 0.05), usual),
        s("microbursts").phase(30.0, bursts(4.0, 0.2, 0.05), usual),
        s("flapping").phase(40.0, bursts(1.7, 0.5, 2.0), usual),
        s("retry-storm")
            .patience(ms(500))
            .retries(3)
            .phase(10.0, 0.8 * C, usual)
            .phase(5.0, 0.8 * C, half)
            .phase(30.0, 0.8 * C, usual),
        s("cancel-flood")
            .impatient(0.5, ms(50))
            .phase(10.0, 0.6 * C, usual)
            .phase(20.0, 1.5 * C, usual),
        s("closed-36").phase(20.0, closed(36), usual),
        s("closed-400")
            .phase(10.0, closed(36), usual)
            .phase(30.0, closed(400), usual)
            .phase(10.0, closed(36), usual),
        s("contention")
            .phase(10.0, 0.6 * C, collapsing)
            .phase(30.0, 2.0 * C, collapsing)
            .phase(10.0, 0.6 * C, collapsing),
        s("idle-then-10x")
            .phase(10.0, 0.7 * C, far)
            .phase(30.0, 0.0, usual)
            .phase(15.0, 10.0 * C, usual),
        s("heavy-tail")
            .objective(secs(1))
            .patience(secs(3))
            .phase(15.0, 0.7 * C, tail)
            .phase(30.0, 1.5 * C, tail),
        s("constant")
            .phase(10.0, 0.7 * C, constant)
            .phase(20.0, 1.5 * C, constant),
        s("cores-64")
            .phase(8.0, 8000.0, many_cores)
            .phase(12.0, 24_000.0, many_cores),
        s("pool-bound")
            .phase(10.0, 1120.0, pool)
            .phase(20.0, 3200.0, pool),
        s("round-trips")
            .phase(10.0, 100.0, round_trips)
            .phase(20.0, 3000.0, round_trips)
            .phase(20.0, 500.0, round_trips),
        s("round-trips-light")
            .phase(10.0, 1500.0, eight)
            .phase(30.0, 340.0, eight),
    ]
}

/// Scenarios in which requests differ or the service has several instances.
#[must_use]
pub fn mixes() -> Vec<Scenario> {
    const C: f64 = CAPACITY;
    let usual = Server::default();
    // An eighth of the usual server: 250/s.
    let small = Server {
        cores: 1.0,
        connections: 8,
        ..usual
    };
    let s = |name: &str| {
        Scenario::new(name)
            .objective(Duration::from_millis(300))
            .patience(Duration::from_secs(1))
    };
    let class = |priority: Priority, weight| Class {
        priority,
        ..Class::new(priority.as_str(), weight)
    };
    let priorities = s("priority-mix")
        .class(class(Priority::Critical, 0.2))
        .class(class(Priority::Default, 0.4))
        .class(class(Priority::Sheddable, 0.2))
        .class(class(Priority::Background, 0.2))
        .phase(10.0, 0.5 * C, usual)
        .phase(20.0, 1.5 * C, usual)
        .phase(20.0, 3.0 * C, usual)
        .phase(20.0, 6.0 * C, usual);
    // Ten tenants, of which nine offer 5 % of the capacity each and one twenty times as much.
    let mut tenants = s("noisy-tenant").class(Class {
        tenant: Some("noisy"),
        ..Class::new("noisy", 20.0)
    });
    for name in ["1", "2", "3", "4", "5", "6", "7", "8", "9"] {
        tenants = tenants.class(Class {
            tenant: Some(name),
            ..Class::new(name, 1.0)
        });
    }
    let tenants = tenants.phase(30.0, 1.45 * C, usual);
    let streams = |name, seconds| {
        s(name)
            .class(Class::new("unary", 0.99))
            .class(Class {
                streams: seconds,
                ..Class::new("stream", 0.01)
            })
            .phase(30.0, 0.6 * C, usual)
            .phase(30.0, 2.0 * C, usual)
    };
    let fleet = |name, slow, balance| {
        s(name)
            .fleet(8, slow, balance)
            .phase(10.0, 0.5 * C, small)
            .phase(20.0, 2.0 * C, small)
            .phase(10.0, 0.5 * C, small)
    };
    let (turns, least) = (Balance::RoundRobin, Balance::LeastOutstanding);
    vec![
        priorities,
        tenants,
        streams("streams-1s", 1.0),
        streams("streams-10s", 10.0),
        fleet("fleet-turns", 0, turns),
        fleet("fleet-least", 0, least),
        fleet("fleet-turns-slow", 2, turns),
        fleet("fleet-least-slow", 2, least),
    ]
}

/// Half an hour at 1.3 times the capacity: the test for drift.
#[must_use]
pub fn half_hour() -> Scenario {
    Scenario::new("sustained-30min")
        .objective(Duration::from_millis(300))
        .patience(Duration::from_secs(1))
        .phase(1800.0, 1.3 * CAPACITY, Server::default())
}

/// A random scenario: any server from a core to 32 and from a few to 3,000 requests a second, two
/// to four phases with changes of load, capacity and dependency, and now and then pauses or
/// retries.
#[must_use]
pub fn random(seed: u64) -> Scenario {
    let mut random = SmallRng::seed_from_u64(seed ^ 0x5CEA_1A51_5CEA_1A51);
    let r = &mut random;
    let cores = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0][r.random_range(0..6)];
    let least = (cores / 3000.0_f64).max(0.000_5);
    let cpu_mean = log_uniform(r, least, 0.05_f64.max(least));
    let dependency_mean = cpu_mean * log_uniform(r, 0.1, 5.0);
    let base = Server {
        cores,
        cpu: distribution(r, cpu_mean),
        contention: if r.random_bool(0.2) {
            log_uniform(r, 0.002, 0.05)
        } else {
            0.0
        },
        dependency: distribution(r, dependency_mean),
        delay: if r.random_bool(0.3) {
            cpu_mean * log_uniform(r, 0.3, 5.0)
        } else {
            0.0
        },
        connections: ((cores / cpu_mean * dependency_mean * log_uniform(r, 0.7, 6.0)) as usize)
            .max(2),
        ..Server::default()
    };
    // A phase lasts long enough to be told from the one before: 300 requests, 40 service times.
    let unit = (300.0 / base.capacity())
        .max(40.0 * base.alone())
        .clamp(8.0, 60.0);
    let mut slowest = base.alone();
    let mut scenario = Scenario::new(&format!("random-{seed}")).seed(seed);
    let (mut server, mut closed) = (base, r.random_bool(0.1));
    for phase in 0..r.random_range(2..=4) {
        if phase > 0 {
            match r.random_range(0..6) {
                0 => server.cores = base.cores * r.random_range(0.4..1.0),
                1 => server.delay = base.delay + base.alone() * r.random_range(0.5..6.0),
                2 => server.dependency = base.dependency.scaled(r.random_range(1.5..4.0)),
                3 => server = base,
                _ => {}
            }
        }
        slowest = slowest.max(server.alone());
        let rate = base.capacity() * log_uniform(r, 0.3, 5.0);
        let lasts = unit * r.random_range(1.0..2.0);
        let load = if closed {
            let clients = (rate * base.alone()).clamp(1.0, 2000.0) as usize + 1;
            Load::Closed {
                clients,
                think: cpu_mean,
            }
        } else {
            open_load(r, rate)
        };
        scenario = scenario.phase(lasts, load, server);
        closed = closed && r.random_bool(0.8);
    }
    if r.random_bool(0.1) {
        scenario = scenario.pauses(5.0, r.random_range(0.05..0.3));
    }
    if r.random_bool(0.15) {
        scenario = scenario.retries(r.random_range(1..=3));
    }
    let objective = Duration::from_secs_f64((slowest * r.random_range(8.0..25.0)).max(0.1));
    scenario.objective(objective).patience(3 * objective)
}

/// A scenario from a wider world than [`random`]: objectives of 3 to 25 service times, service times
/// from 0.2 ms to a second, 1 to 64 cores, contention in half of them, cores that are slower when
/// all are busy, capacity that moves by itself, clients that give up after 2 to 8 objectives and
/// may try again, hand-offs to workers, pools behind, bodies that work, and streams.
#[must_use]
pub fn wide(seed: u64) -> Scenario {
    let mut random = SmallRng::seed_from_u64(seed ^ 0x0B5E_55ED_0B5E_55ED);
    let r = &mut random;
    let base = wide_server(r);
    let mut slowest = base.alone();
    let mut scenario = Scenario::new(&format!("wide-{seed}")).seed(seed);
    let (mut server, mut closed) = (base, r.random_bool(0.1));
    for phase in 0..r.random_range(2..=4) {
        if phase > 0 {
            match r.random_range(0..6) {
                0 => server.cores = base.cores * r.random_range(0.3..1.0),
                1 => server.delay = base.delay + base.alone() * r.random_range(0.5..6.0),
                2 => server.dependency = base.dependency.scaled(r.random_range(1.5..4.0)),
                3 => server = base,
                _ => {}
            }
        }
        slowest = slowest.max(server.alone());
        let rate = base.capacity() * log_uniform(r, 0.3, 5.0);
        // Long enough to be told from the phase before: 600 requests, 60 service times.
        let unit = (600.0 / base.capacity())
            .max(60.0 * server.alone())
            .max(5.0);
        let lasts = unit * r.random_range(1.0..2.0);
        let load = if closed {
            let clients = (rate * base.alone()).clamp(1.0, 2000.0) as usize + 1;
            let think = base.alone() * log_uniform(r, 0.1, 1.0);
            Load::Closed { clients, think }
        } else {
            open_load(r, rate)
        };
        scenario = scenario.phase(lasts, load, server);
        closed = closed && r.random_bool(0.8);
    }
    match r.random_range(0..20) {
        0..=3 => {
            let depth = r.random_range(0.2..0.6);
            scenario = scenario.noise(depth, log_uniform(r, 0.1, 30.0));
        }
        4 => scenario = scenario.quota(r.random_range(0.3..0.8)),
        5 => scenario = scenario.pauses(5.0, r.random_range(0.05..0.3)),
        _ => {}
    }
    if r.random_bool(0.1) {
        let share = log_uniform(r, 0.005, 0.1);
        scenario = scenario
            .class(Class::new("short", 1.0 - share))
            .class(Class {
                streams: log_uniform(r, 1.0, 20.0),
                ..Class::new("stream", share)
            });
    }
    if r.random_bool(0.25) {
        scenario = scenario.retries(r.random_range(1..=3));
    }
    let objective = Duration::from_secs_f64(slowest * base.smt * r.random_range(3.0..25.0));
    if r.random_bool(0.05) {
        scenario = scenario.impatient(r.random_range(0.1..0.5), objective / 4);
    }
    let patience = objective.mul_f64(r.random_range(2.0..8.0));
    scenario.objective(objective).patience(patience)
}

/// A service of the wider world below 65 % of what it can do, with hiccups: short pauses, a CPU quota, busy
/// neighbours, or requests that come in bunches.
#[must_use]
pub fn calm(seed: u64) -> Scenario {
    let mut random = SmallRng::seed_from_u64(seed ^ 0xCA1A_0000_CA1A_0000);
    let r = &mut random;
    let server = wide_server(r);
    let load = server.capacity() * r.random_range(0.2..0.65);
    let scenario = Scenario::new(&format!("calm-{seed}")).seed(seed);
    let lasts = 30.0 + 60.0 * server.alone();
    let (scenario, load) = match r.random_range(0..5) {
        0 => (scenario, Load::Open(load)),
        1 => {
            let (every, lasting) = (log_uniform(r, 0.3, 5.0), log_uniform(r, 0.005, 0.1));
            (scenario.pauses(every, lasting), Load::Open(load))
        }
        2 => {
            let quota = r.random_range(0.4..0.9);
            (scenario.quota(quota), Load::Open(load * quota))
        }
        3 => {
            let depth = r.random_range(0.1..0.3);
            let scenario = scenario.noise(depth, log_uniform(r, 0.01, 3.0));
            (scenario, Load::Open(load))
        }
        _ => {
            let factor: f64 = r.random_range(1.2..2.0);
            let bunches = Load::Bursts {
                high: factor * load,
                low: (2.0 - factor) * load,
                each: log_uniform(r, 0.005, 0.1),
            };
            (scenario, bunches)
        }
    };
    let objective =
        Duration::from_secs_f64(server.alone() * server.smt * r.random_range(3.0..25.0));
    let objective = objective.max(Duration::from_millis(250));
    scenario
        .phase(lasts, load, server)
        .objective(objective)
        .patience(4 * objective)
}

/// Requests a second that no server of [`wide`] exceeds, so that a run stays short.
const WIDE_CAPACITY: f64 = 4000.0;

fn wide_server(r: &mut SmallRng) -> Server {
    let often = |r: &mut SmallRng, probability, least, most| {
        if r.random_bool(probability) {
            log_uniform(r, least, most)
        } else {
            0.0
        }
    };
    // The parts of a request alone, relative to its CPU time.
    let dependency = log_uniform(r, 0.05, 5.0);
    let delay = often(r, 0.3, 0.3, 10.0);
    let handoff = often(r, 0.2, 0.02, 0.5);
    let body = often(r, 0.1, 0.3, 3.0);
    let alone = log_uniform(r, 0.000_2, 1.0);
    let cpu = alone / (1.0 + dependency + delay + handoff + body);
    let most = (WIDE_CAPACITY * cpu * (1.0 + body)).max(1.0);
    let cores = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0][r.random_range(0..7)];
    let cores = f64::min(cores, most.floor());
    let flow = cores / (cpu * (1.0 + body));
    let connections = flow * cpu * dependency * log_uniform(r, 0.7, 6.0);
    let threads = flow * cpu * (1.0 + dependency) * log_uniform(r, 0.7, 8.0);
    Server {
        cores,
        cpu: distribution(r, cpu),
        contention: often(r, 0.5, 0.02, 1.0) / cores,
        dependency: distribution(r, cpu * dependency),
        delay: cpu * delay,
        connections: (connections as usize).max(2),
        smt: if cores > 1.0 && r.random_bool(0.3) {
            r.random_range(1.2..1.5)
        } else {
            1.0
        },
        handoff: cpu * handoff,
        threads: match r.random_range(0..8) {
            0 => (threads as usize).max(1),
            _ => usize::MAX,
        },
        body: cpu * body,
        sharing: 0.0,
    }
}

/// Open requests at a rate, in bursts up to it, or rising to it.
fn open_load(r: &mut SmallRng, rate: f64) -> Load {
    if r.random_bool(0.15) {
        Load::Bursts {
            high: rate,
            low: rate * r.random_range(0.05..0.5),
            each: log_uniform(r, 0.03, 3.0),
        }
    } else if r.random_bool(0.15) {
        Load::Ramp {
            from: 0.3 * rate,
            to: rate,
        }
    } else {
        Load::Open(rate)
    }
}

fn log_uniform(random: &mut SmallRng, least: f64, most: f64) -> f64 {
    let (least, most) = (least.ln(), most.ln());
    (least + random.random::<f64>() * (most - least)).exp()
}

fn distribution(random: &mut SmallRng, mean: f64) -> Time {
    match random.random_range(0..10) {
        0 => Time::Fixed(mean),
        1..=4 => Time::Exponential(mean),
        5..=8 => {
            let cv = log_uniform(random, 0.1, 3.0);
            Time::LogNormal { mean, cv }
        }
        _ => {
            let (share, ratio) = (
                random.random_range(0.02..0.2),
                log_uniform(random, 5.0, 40.0),
            );
            let fast = mean / (1.0 - share + share * ratio);
            Time::Bimodal {
                fast,
                slow: fast * ratio,
                share,
            }
        }
    }
}
