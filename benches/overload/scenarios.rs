//! What happens to the service.

use std::time::Duration;

/// A response after this is worth nothing.
pub(crate) const OBJECTIVE: Duration = Duration::from_millis(200);

/// A name, and what happens in turn.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) over_http: bool,
    pub(crate) phases: Vec<Phase>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Phase {
    pub(crate) lasts: Duration,
    /// Offered, as a multiple of the full capacity.
    pub(crate) load: f64,
    /// Of the full capacity.
    pub(crate) capacity: f64,
    /// How long each request waits for a dependency, without use of capacity.
    pub(crate) dependency: Duration,
    /// Whether it counts.
    pub(crate) counts: bool,
}

const fn phase(seconds: u64, load: f64) -> Phase {
    Phase {
        lasts: Duration::from_secs(seconds),
        load,
        capacity: 1.0,
        dependency: Duration::ZERO,
        counts: true,
    }
}

/// Some quiet seconds first, which do not count.
fn steady(name: &'static str, load: f64, over_http: bool) -> Scenario {
    let warm = Phase {
        counts: false,
        ..phase(3, 0.5)
    };
    Scenario {
        name,
        over_http,
        phases: vec![warm, phase(8, load)],
    }
}

/// An overload of a service on shared cores, after quiet seconds that do not count.
pub(crate) fn overload(load: f64, lasts: Duration) -> Scenario {
    let warm = Phase {
        counts: false,
        ..phase(3, 0.5)
    };
    Scenario {
        name: "overload",
        over_http: false,
        phases: vec![
            warm,
            Phase {
                lasts,
                ..phase(0, load)
            },
        ],
    }
}

pub(crate) fn all() -> Vec<Scenario> {
    let lost = |phase: Phase| Phase {
        capacity: 0.5,
        ..phase
    };
    let slow = |phase: Phase| Phase {
        dependency: Duration::from_millis(60),
        ..phase
    };
    vec![
        steady("load-0.5x", 0.5, false),
        steady("load-1x", 1.0, false),
        steady("load-2x", 2.0, true),
        steady("load-5x", 5.0, false),
        steady("load-10x", 10.0, true),
        Scenario {
            name: "surge",
            over_http: true,
            phases: vec![phase(4, 0.5), phase(4, 10.0), phase(4, 0.5)],
        },
        Scenario {
            name: "capacity-drop",
            over_http: true,
            phases: vec![phase(5, 1.2), lost(phase(6, 1.2)), phase(6, 1.2)],
        },
        Scenario {
            name: "slow-dependency",
            over_http: false,
            phases: vec![phase(4, 0.7), slow(phase(6, 0.7)), phase(4, 0.7)],
        },
        Scenario {
            name: "cold-start",
            over_http: false,
            phases: vec![phase(8, 3.0)],
        },
    ]
}
