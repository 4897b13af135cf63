//! The contenders.

use std::{str::FromStr, time::Duration};

use tower_capacity::{Limiter, LimiterBuilder, limit::Fixed};

use super::{Guard, Scenario, peers};

/// A limiter to compare, with its own defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// The default of this workspace.
    Ours,
    /// The same, and waiters keep their order and are never shed from the queue.
    NoCodel,
    /// The same without a waiting room.
    NoRoom,
    /// The same with an objective of a third of the scenario's for the service time of 99 %.
    Objective,
    /// Netflix `VegasLimit`.
    Vegas,
    /// Netflix `Gradient2Limit` in windows of a second.
    Gradient2,
    /// Netflix `AIMDLimit`.
    Aimd,
    /// Envoy's gradient controller.
    Envoy,
    /// kratos' BBR.
    Bbr,
    /// little-loadshedder, with half the objective as its target.
    Little,
    /// failsafe-go's adaptive limiter.
    Failsafe,
    /// An earlier law of this project.
    Prototype,
    /// No limit.
    Unlimited,
}

impl Contender {
    /// All of them, ours first.
    pub const ALL: [Self; 10] = [
        Self::Ours,
        Self::Prototype,
        Self::Envoy,
        Self::Little,
        Self::Gradient2,
        Self::Vegas,
        Self::Aimd,
        Self::Failsafe,
        Self::Bbr,
        Self::Unlimited,
    ];

    /// Ours with another choice of one part, to see what it is worth.
    pub const VARIANTS: [Self; 3] = [Self::NoCodel, Self::NoRoom, Self::Objective];

    /// Name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::NoCodel => "no-codel",
            Self::NoRoom => "no-room",
            Self::Objective => "objective",
            Self::Vegas => "vegas",
            Self::Gradient2 => "gradient2",
            Self::Aimd => "aimd",
            Self::Envoy => "envoy",
            Self::Bbr => "bbr",
            Self::Little => "little",
            Self::Failsafe => "failsafe",
            Self::Prototype => "prototype",
            Self::Unlimited => "unlimited",
        }
    }

    /// Creates it for a scenario, of which it learns nothing but, if it must have one, the
    /// objective. `room` gives a peer without a waiting room the one that ours has.
    #[must_use]
    pub fn guard(self, scenario: &Scenario, room: bool) -> Guard {
        match self {
            Self::Ours => built(Limiter::builder()).into(),
            Self::NoCodel => built(Limiter::builder().codel(None)).into(),
            Self::NoRoom => built(Limiter::builder().max_queue(0)).into(),
            Self::Objective => {
                built(Limiter::builder().latency_objective(scenario.objective / 3)).into()
            }
            Self::Vegas => peer(peers::Vegas::default(), room),
            Self::Gradient2 => peer(peers::Gradient2::default(), room),
            Self::Aimd => peer(peers::Aimd::default(), room),
            Self::Envoy => peer(peers::Envoy::default(), room),
            Self::Bbr => peer(peers::Bbr::default(), room),
            Self::Little => peer(
                peers::Little::new(0.5 * scenario.objective.as_secs_f64()),
                false,
            ),
            Self::Failsafe => peer(peers::Failsafe::default(), room),
            Self::Prototype => peer(peers::Prototype::default(), room),
            Self::Unlimited => fixed(16_384).into(),
        }
    }
}

impl FromStr for Contender {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let all = || Self::ALL.into_iter().chain(Self::VARIANTS);
        all()
            .find(|contender| contender.name() == name)
            .ok_or_else(|| {
                let names: Vec<_> = all().map(Self::name).collect();
                let names = names.join(", ");
                format!("no contender is called `{name}`: expected one of {names}")
            })
    }
}

/// The shipped limiter that `builder` describes.
#[must_use]
pub fn built(builder: LimiterBuilder) -> Limiter {
    builder
        .build()
        .expect("the shipped laws start within the default bounds")
}

/// The shipped limiter with a limit that never moves.
#[must_use]
pub fn fixed(limit: usize) -> Limiter {
    built(Limiter::builder().law(Fixed::new(limit)))
}

/// A limit that never moves, with a queue of this length; `None` is the shipped one.
pub(super) fn fixed_with_queue(limit: usize, queue: Option<usize>) -> Limiter {
    let mut builder = Limiter::builder().law(Fixed::new(limit));
    if let Some(queue) = queue {
        builder = builder.max_queue(queue);
    }
    built(builder)
}

fn peer(peer: impl peers::Peer + 'static, room: bool) -> Guard {
    let limiter = fixed(peer.initial());
    if !room {
        limiter.set_waiting(Some(peer.queue()), Duration::from_secs(3600));
    }
    Guard {
        limiter,
        peer: Some(Box::new(peer)),
        room,
    }
}
