//! The table of scenarios on Postgres.
//!
//! Each is a row of data: what callers do, how many come, for how long, and what goes wrong. Names
//! and shapes are those of the model (`--bin pools`), parameters scaled to two cores that serve and
//! drive at once.

/// A named course of events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    /// What the command line calls it.
    pub(crate) name: &'static str,
    /// One after the other.
    pub(crate) phases: &'static [Phase],
    /// Static sizes that the oracle is chosen from.
    pub(crate) sizes: &'static [usize],
    /// How connections are made.
    pub(crate) dial: Dial,
}

/// What happens from one moment on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Phase {
    /// How long it lasts, in units of `--seconds`.
    pub(crate) lasts: f64,
    /// How many callers come.
    pub(crate) rate: Rate,
    /// Callers that come together at its start.
    pub(crate) at_once: usize,
    /// What they do.
    pub(crate) mix: &'static [Class],
    /// What goes wrong meanwhile.
    pub(crate) trouble: Trouble,
}

/// How many callers come a second, at random moments (Poisson).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rate {
    Of(f64),
    /// As a part of what this machine can do of these statements, measured before.
    OfCapacity(f64),
    /// No clock: as many callers, each of which comes back when it is served.
    Closed(usize),
}

/// One kind of caller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Class {
    /// How often, next to the others.
    pub(crate) weight: f64,
    /// What it sends; `$ROW` is one of a hundred rows, the first far more often than the last.
    pub(crate) statements: &'static str,
    /// Milliseconds that it keeps the connection for something else.
    pub(crate) holds_ms: u64,
    /// Connections that it takes, each while it has those before.
    pub(crate) takes: usize,
    /// How often it gives up while it waits or is served, from 0 to 1.
    pub(crate) cancels: f64,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Trouble {
    Nothing,
    /// As many sessions burn the processors of the database.
    Hog(usize),
    /// The server is killed (SIGKILL), and back after two seconds.
    Restart,
    /// The server becomes read-only, and its address leads to another one.
    Failover,
    /// Nothing comes through to the server for a second, and then all connections are reset.
    BlackHole,
    /// One connection is taken and never given back.
    Leak,
    /// The bounds of the tuner change between 4 and 32 every 50 ms.
    Resizes,
}

/// How connections are made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dial {
    /// Milliseconds that it takes in addition.
    pub(crate) takes_ms: u64,
    /// Milliseconds that a connection may get old.
    pub(crate) lifetime_ms: Option<u64>,
    /// Whether lifetimes differ by up to a fifth.
    pub(crate) jitter: bool,
    /// Whether it needs a password (SCRAM).
    pub(crate) scram: bool,
    /// Whether it goes through a proxy.
    pub(crate) proxied: bool,
}

const READ: Class = Class::of("SELECT v FROM items WHERE id = $ROW");
const IO_10_MS: Class = Class::of("SELECT pg_sleep(0.010)");
const CPU: Class = Class::of("SELECT sum(n) FROM generate_series(1, 20000) n");
const MIXED: Class = Class::of(
    "SELECT v FROM items WHERE id = $ROW; SELECT sum(n) FROM generate_series(1, 10000) n;
     SELECT pg_sleep(0.010)",
);
const HOT_ROW: Class =
    Class::of("BEGIN; UPDATE items SET v = v + 1 WHERE id = 1; SELECT pg_sleep(0.002); COMMIT");
const CONVOY: Class =
    Class::of("BEGIN; UPDATE items SET v = v + 1 WHERE id = $ROW; SELECT pg_sleep(0.002); COMMIT");
const INSERT: Class =
    Class::of("BEGIN; SET LOCAL synchronous_commit = on; INSERT INTO log VALUES ($ROW); COMMIT");
const UPDATE: Class =
    Class::of("UPDATE items SET v = v + 1 WHERE id = $ROW; SELECT pg_sleep(0.005)");

const IO: &[Class] = &[IO_10_MS];
const MIX: &[Class] = &[MIXED];
const APP_HOLD: &[Class] = &[IO_10_MS.weight(0.8), IO_10_MS.weight(0.2).holds_ms(50)];
const NESTED: &[Class] = &[IO_10_MS.weight(0.8), IO_10_MS.weight(0.2).takes(2)];
const CANCELS: &[Class] = &[UPDATE.cancels(0.2)];
const SLOW_3: &[Class] = &[
    IO_10_MS.weight(0.97),
    Class::of("SELECT pg_sleep(0.400)").weight(0.03),
];
const SLOW_10: &[Class] = &[
    IO_10_MS.weight(0.90),
    Class::of("SELECT pg_sleep(0.050)").weight(0.10),
];

const POINT_READ: Class = Class::of("SELECT v FROM items WHERE id = 4711");
const IO_5_MS: Class = Class::of("SELECT pg_sleep(0.005)");
const CPU_1_MS: Class = Class::of("SELECT sum(n) FROM generate_series(1, 10000) n");
const HOT_ROW_1_MS: Class =
    Class::of("BEGIN; UPDATE items SET v = v + 1 WHERE id = 1; SELECT pg_sleep(0.001); COMMIT");
const MIX_3_MS: Class = Class::of(
    "SELECT v FROM items WHERE id = 4711; SELECT pg_sleep(0.003);
     SELECT sum(n) FROM generate_series(1, 1000) n",
);

const EVERY: &[usize] = &[1, 2, 4, 8, 12, 24, 48, MAX];
const FEW: &[usize] = &[1, 2, 4, 10];
const SOME: &[usize] = &[2, 4, 10, 20];
const MANY: &[usize] = &[4, 10, 20, 40];
const MOST: &[usize] = &[10, 20, 40, MAX];

/// The largest pool there is in any scenario.
pub(crate) const MAX: usize = 96;

impl Class {
    const fn of(statements: &'static str) -> Self {
        Self {
            weight: 1.0,
            statements,
            holds_ms: 0,
            takes: 1,
            cancels: 0.0,
        }
    }

    const fn weight(self, weight: f64) -> Self {
        Self { weight, ..self }
    }

    const fn holds_ms(self, holds_ms: u64) -> Self {
        Self { holds_ms, ..self }
    }

    const fn takes(self, takes: usize) -> Self {
        Self { takes, ..self }
    }

    const fn cancels(self, cancels: f64) -> Self {
        Self { cancels, ..self }
    }
}

impl Phase {
    const fn new(rate: Rate, mix: &'static [Class]) -> Self {
        Self {
            lasts: 1.0,
            rate,
            at_once: 0,
            mix,
            trouble: Trouble::Nothing,
        }
    }

    const fn lasts(self, lasts: f64) -> Self {
        Self { lasts, ..self }
    }

    const fn at_once(self, at_once: usize) -> Self {
        Self { at_once, ..self }
    }

    const fn trouble(self, trouble: Trouble) -> Self {
        Self { trouble, ..self }
    }
}

impl Scenario {
    const fn new(name: &'static str, sizes: &'static [usize], phases: &'static [Phase]) -> Self {
        Self {
            name,
            phases,
            sizes,
            dial: Dial::NEW,
        }
    }

    const fn dial(self, dial: Dial) -> Self {
        Self { dial, ..self }
    }

    /// Whether something happens in it, so that it is judged from its start.
    pub(crate) fn is_eventful(&self) -> bool {
        self.phases.len() > 1
    }
}

impl Dial {
    const NEW: Self = Self {
        takes_ms: 0,
        lifetime_ms: None,
        jitter: false,
        scram: false,
        proxied: false,
    };

    const PROXIED: Self = Self {
        proxied: true,
        ..Self::NEW
    };

    const fn short_lived(jitter: bool) -> Self {
        Self {
            lifetime_ms: Some(2_000),
            scram: true,
            jitter,
            ..Self::NEW
        }
    }
}

/// All of them.
pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("P1 io 100/s", SOME, &[Phase::new(Rate::Of(100.0), IO)]),
    Scenario::new("P1 io 500/s", MANY, &[Phase::new(Rate::Of(500.0), IO)]),
    Scenario::new("P1 io 1000/s", MANY, &[Phase::new(Rate::Of(1_000.0), IO)]),
    Scenario::new(
        "P2 cpu 0.5",
        FEW,
        &[Phase::new(Rate::OfCapacity(0.5), &[CPU])],
    ),
    Scenario::new(
        "P2 cpu 0.85",
        FEW,
        &[Phase::new(Rate::OfCapacity(0.85), &[CPU])],
    ),
    Scenario::new(
        "P2 cpu 1.3",
        FEW,
        &[Phase::new(Rate::OfCapacity(1.3), &[CPU])],
    ),
    Scenario::new(
        "P3 mix 0.5",
        MANY,
        &[Phase::new(Rate::OfCapacity(0.5), MIX)],
    ),
    Scenario::new(
        "P3 mix 0.85",
        MOST,
        &[Phase::new(Rate::OfCapacity(0.85), MIX)],
    ),
    Scenario::new(
        "P3 mix 1.3",
        MOST,
        &[Phase::new(Rate::OfCapacity(1.3), MIX)],
    ),
    Scenario::new(
        "P4 hot row 0.8",
        FEW,
        &[Phase::new(Rate::OfCapacity(0.8), &[HOT_ROW])],
    ),
    Scenario::new(
        "P4 hot row 1.3",
        FEW,
        &[Phase::new(Rate::OfCapacity(1.3), &[HOT_ROW])],
    ),
    Scenario::new(
        "P5 lock convoy",
        SOME,
        &[Phase::new(Rate::OfCapacity(0.9), &[CONVOY])],
    ),
    Scenario::new(
        "P5 durable inserts",
        SOME,
        &[Phase::new(Rate::OfCapacity(0.8), &[INSERT])],
    ),
    Scenario::new(
        "P7 app hold",
        MANY,
        &[Phase::new(Rate::Of(400.0), APP_HOLD)],
    ),
    Scenario::new(
        "P8 step x4",
        MANY,
        &[
            Phase::new(Rate::OfCapacity(0.15), MIX),
            // Long enough that a P99 is not all of its first moments.
            Phase::new(Rate::OfCapacity(0.6), MIX).lasts(5.0),
            Phase::new(Rate::OfCapacity(0.15), MIX),
        ],
    ),
    Scenario::new(
        "P8 step x10",
        MANY,
        &[
            Phase::new(Rate::Of(80.0), IO),
            Phase::new(Rate::Of(800.0), IO).lasts(5.0),
            Phase::new(Rate::Of(80.0), IO),
        ],
    ),
    Scenario::new(
        "P10 spike",
        &[5, 10, 20, 40],
        &[
            Phase::new(Rate::Of(100.0), &[READ]),
            Phase::new(Rate::Of(100.0), &[Class::of("SELECT pg_sleep(0.002)")]).at_once(50),
            Phase::new(Rate::Of(100.0), &[Class::of("SELECT pg_sleep(0.002)")]).at_once(50),
        ],
    )
    .dial(Dial {
        takes_ms: 150,
        ..Dial::NEW
    }),
    Scenario::new(
        "P11 short-lived",
        SOME,
        &[Phase::new(Rate::Of(300.0), IO).lasts(2.0)],
    )
    .dial(Dial::short_lived(false)),
    Scenario::new(
        "P11 with jitter",
        SOME,
        &[Phase::new(Rate::Of(300.0), IO).lasts(2.0)],
    )
    .dial(Dial::short_lived(true)),
    Scenario::new(
        "P12 cpu, a neighbour",
        FEW,
        &[
            Phase::new(Rate::OfCapacity(0.6), &[CPU]),
            Phase::new(Rate::OfCapacity(0.6), &[CPU]).trouble(Trouble::Hog(2)),
            Phase::new(Rate::OfCapacity(0.6), &[CPU]),
        ],
    ),
    Scenario::new(
        "P12 mix, a neighbour",
        MANY,
        &[
            Phase::new(Rate::OfCapacity(0.6), MIX),
            Phase::new(Rate::OfCapacity(0.6), MIX).trouble(Trouble::Hog(2)),
            Phase::new(Rate::OfCapacity(0.6), MIX),
        ],
    ),
    Scenario::new(
        "P13 restart",
        SOME,
        &[
            Phase::new(Rate::Of(300.0), &[UPDATE]).lasts(0.5),
            Phase::new(Rate::Of(300.0), &[UPDATE])
                .lasts(2.0)
                .trouble(Trouble::Restart),
        ],
    )
    .dial(Dial::PROXIED),
    Scenario::new(
        "P13 read-only",
        SOME,
        &[
            Phase::new(Rate::Of(300.0), &[UPDATE]).lasts(0.5),
            Phase::new(Rate::Of(300.0), &[UPDATE])
                .lasts(2.0)
                .trouble(Trouble::Failover),
        ],
    )
    .dial(Dial::PROXIED),
    Scenario::new(
        "P13 black hole",
        SOME,
        &[
            Phase::new(Rate::Of(300.0), &[UPDATE]).lasts(0.5),
            Phase::new(Rate::Of(300.0), &[UPDATE])
                .lasts(2.0)
                .trouble(Trouble::BlackHole),
        ],
    )
    .dial(Dial::PROXIED),
    Scenario::new(
        "P14 slow 3 % 400 ms",
        MANY,
        &[
            Phase::new(Rate::Of(500.0), IO),
            Phase::new(Rate::Of(500.0), SLOW_3),
            Phase::new(Rate::Of(500.0), IO),
        ],
    ),
    Scenario::new(
        "P14 slow 10 % 50 ms",
        MANY,
        &[
            Phase::new(Rate::Of(500.0), IO),
            Phase::new(Rate::Of(500.0), SLOW_10),
            Phase::new(Rate::Of(500.0), IO),
        ],
    ),
    Scenario::new(
        "P17 nested, a leak",
        MANY,
        &[
            Phase::new(Rate::Of(200.0), NESTED),
            Phase::new(Rate::Of(200.0), NESTED).trouble(Trouble::Leak),
            Phase::new(Rate::Of(200.0), NESTED).trouble(Trouble::Leak),
        ],
    ),
    Scenario::new(
        "P18 resize torture",
        SOME,
        &[
            Phase::new(Rate::Of(300.0), CANCELS).lasts(0.5),
            Phase::new(Rate::Of(300.0), CANCELS)
                .lasts(2.0)
                .trouble(Trouble::Resizes),
        ],
    ),
    Scenario::new(
        "P19 mix shift",
        MANY,
        &[
            Phase::new(Rate::Of(400.0), &[Class::of("SELECT pg_sleep(0.001)")]),
            Phase::new(Rate::Of(400.0), &[Class::of("SELECT pg_sleep(0.020)")]),
        ],
    ),
    Scenario::new(
        "P19 quiet",
        SOME,
        &[Phase::new(Rate::Of(150.0), MIX).lasts(3.0)],
    ),
];

/// How much can be done at all: only played when asked for.
pub(crate) const CLOSED: &[Scenario] = &[
    closed("closed point read", &[Phase::new(LOOP, &[POINT_READ])]),
    closed("closed 5 ms wait", &[Phase::new(LOOP, &[IO_5_MS])]),
    closed("closed cpu 1 ms", &[Phase::new(LOOP, &[CPU_1_MS])]),
    closed("closed hot row", &[Phase::new(LOOP, &[HOT_ROW_1_MS])]),
    closed("closed mix", &[Phase::new(LOOP, &[MIX_3_MS])]),
];

const LOOP: Rate = Rate::Closed(256);

const fn closed(name: &'static str, phases: &'static [Phase]) -> Scenario {
    Scenario::new(name, EVERY, phases)
}
