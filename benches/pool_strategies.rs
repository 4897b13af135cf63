//! Which pool size serves the most, and who finds it?
//!
//! ```text
//! cargo run --release -p overload-benches --bin pool_strategies -- [--seconds N] [--workload NAME]
//!     [--json PATH]
//! ```
//!
//! A private Postgres, 256 tasks in a closed loop, five workloads whose best static sizes are far
//! apart. Every contender runs behind the same gate on the same deadpool, so only the policy
//! differs; throughput is counted after a warm-up that is the same for all. The oracle is the best
//! of the static sizes.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use deadpool_postgres::{Manager, Pool};
use pool_autotune::Autotuned;
use pool_autotune::tuner::TunerConfig;
use private_servers::Postgres;
use tokio::time::{Instant, sleep};
use tokio_postgres::NoTls;

type Error = Box<dyn std::error::Error + Send + Sync>;

const TASKS: usize = 256;
const MAX: usize = 96;
const SIZES: [usize; 8] = [1, 2, 4, 8, 12, 24, 48, 96];

/// Statements of one transaction.
#[derive(Clone, Copy)]
struct Workload {
    name: &'static str,
    statements: &'static str,
}

const WORKLOADS: [Workload; 5] = [
    Workload {
        name: "point read",
        statements: "SELECT v FROM items WHERE id = 4711",
    },
    Workload {
        name: "5 ms wait",
        statements: "SELECT pg_sleep(0.005)",
    },
    Workload {
        name: "cpu 1 ms",
        statements: "SELECT sum(n) FROM generate_series(1, 10000) n",
    },
    Workload {
        name: "hot row",
        statements: "BEGIN; UPDATE items SET v = v + 1 WHERE id = 1; SELECT pg_sleep(0.001); COMMIT",
    },
    Workload {
        name: "mix",
        statements: "SELECT v FROM items WHERE id = 4711; SELECT pg_sleep(0.003);
                     SELECT sum(n) FROM generate_series(1, 1000) n",
    },
];

#[derive(Clone, Copy)]
enum Policy {
    Static(usize),
    /// One more whenever checkouts wait: FlexyPool's `IncrementPoolOnTimeout`, at 20 ms.
    FlexyPool,
    /// A tenth more above 70 % in use, a tenth less below 50 %.
    Utilisation,
    Tuned,
}

impl Policy {
    fn name(self) -> String {
        match self {
            Self::Static(size) => format!("static {size}"),
            Self::FlexyPool => "FlexyPool rule".to_owned(),
            Self::Utilisation => "utilisation 70 %".to_owned(),
            Self::Tuned => "pool-autotune".to_owned(),
        }
    }
}

struct Outcome {
    policy: Policy,
    throughput: f64,
    size: usize,
    /// Mean number of connections while throughput was counted.
    mean_size: f64,
    decisions: Vec<String>,
}

fn main() -> Result<(), Error> {
    let arguments = Arguments::parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(arguments))
}

struct Arguments {
    measure: Duration,
    workload: Option<String>,
    json: Option<String>,
}

impl Arguments {
    fn parse() -> Result<Self, Error> {
        let mut parsed = Self {
            measure: Duration::from_secs(20),
            workload: None,
            json: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .ok_or_else(|| format!("{argument} needs a value"))
            };
            match argument.as_str() {
                "--seconds" => {
                    let value = value()?;
                    let seconds = value
                        .parse()
                        .ok()
                        .filter(|seconds| (1..=600).contains(seconds));
                    parsed.measure = Duration::from_secs(seconds.ok_or_else(|| {
                        format!("--seconds is {value}: expected a number from 1 to 600")
                    })?);
                }
                "--workload" => {
                    let value = value()?;
                    if !WORKLOADS.iter().any(|workload| workload.name == value) {
                        let names = WORKLOADS.map(|workload| workload.name).join("`, `");
                        return Err(format!("--workload is {value}: expected `{names}`").into());
                    }
                    parsed.workload = Some(value);
                }
                "--json" => parsed.json = Some(value()?),
                _ => {
                    let expected = "--seconds N, --workload NAME or --json PATH";
                    return Err(format!("{argument}: expected {expected}").into());
                }
            }
        }
        Ok(parsed)
    }
}

async fn run(arguments: Arguments) -> Result<(), Error> {
    let Arguments {
        measure,
        workload: only,
        json,
    } = arguments;
    let settings = [("max_connections", "120")];
    let postgres = Postgres::start_with(&settings).await?;
    prepare(&postgres).await?;
    let mut report = String::new();
    let asked = |workload: &Workload| only.as_deref().is_none_or(|only| only == workload.name);
    for workload in WORKLOADS.into_iter().filter(asked) {
        println!("{} ({TASKS} tasks in a closed loop)", workload.name);
        let mut outcomes = Vec::new();
        let fixed = SIZES.map(Policy::Static);
        let others = [Policy::Tuned, Policy::FlexyPool, Policy::Utilisation];
        for policy in fixed.into_iter().chain(others) {
            let outcome = contend(&postgres, workload, policy, measure).await?;
            println!(
                "  {:<17} {:>9.0}/s  {:>5.1} connections, {} at the end",
                outcome.policy.name(),
                outcome.throughput,
                outcome.mean_size,
                outcome.size
            );
            outcomes.push(outcome);
        }
        summarise(workload, &outcomes, &mut report)?;
    }
    if let Some(path) = json {
        std::fs::write(&path, format!("[{}]\n", report.trim_end_matches(',')))
            .map_err(|error| format!("--json {path}: {error}"))?;
    }
    Ok(())
}

async fn prepare(postgres: &Postgres) -> Result<(), Error> {
    let (client, connection) = tokio_postgres::connect(&postgres.url(), NoTls).await?;
    tokio::spawn(connection);
    client
        .batch_execute(
            "CREATE TABLE items (id int PRIMARY KEY, v int) WITH (fillfactor = 50);
             INSERT INTO items SELECT n, 0 FROM generate_series(1, 10000) n;
             ANALYZE items",
        )
        .await?;
    Ok(())
}

async fn contend(
    postgres: &Postgres,
    workload: Workload,
    policy: Policy,
    measure: Duration,
) -> Result<Outcome, Error> {
    let manager = Manager::new(postgres.url().parse()?, NoTls);
    let inner = Pool::builder(manager).max_size(MAX).build()?;
    let builder = Autotuned::builder(inner).wait_timeout(Duration::from_secs(60));
    let pool = match policy {
        Policy::Tuned => builder.bounds(1..=MAX),
        Policy::Static(size) => builder.bounds(size..=size).tuner(still()),
        Policy::FlexyPool | Policy::Utilisation => builder.bounds(4..=4).tuner(still()),
    }
    .build()?;

    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let (pool, stop, done) = (pool.clone(), Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                while !stop.load(Relaxed) {
                    let connection = pool.get().await?;
                    connection.batch_execute(workload.statements).await?;
                    drop(connection);
                    done.fetch_add(1, Relaxed);
                }
                Ok::<_, Error>(())
            })
        })
        .collect();
    let policies = tokio::spawn(follow(policy, pool.clone()));

    // A static size needs its connections, a policy its decisions.
    let warm_up = if matches!(policy, Policy::Static(_)) {
        4
    } else {
        30
    };
    sleep(Duration::from_secs(warm_up)).await;
    let (before, start) = (done.load(Relaxed), Instant::now());
    let (mut sizes, mut looks) = (0.0, 0.0);
    while start.elapsed() < measure {
        sleep(Duration::from_millis(100)).await;
        sizes += pool.snapshot().size() as f64;
        looks += 1.0;
    }
    let throughput = (done.load(Relaxed) - before) as f64 / start.elapsed().as_secs_f64();

    stop.store(true, Relaxed);
    policies.abort();
    for task in tasks {
        task.await??;
    }
    Ok(Outcome {
        policy,
        throughput,
        size: pool.snapshot().size(),
        mean_size: sizes / looks,
        decisions: pool.decisions().iter().map(ToString::to_string).collect(),
    })
}

/// Opens connections at once, and decides nothing.
fn still() -> TunerConfig {
    let mut config = TunerConfig::default();
    config.experiments = false;
    config.dial.per_second = 1e6;
    config.dial.burst = 1e6;
    config
}

/// Plays a policy that is not the tuner's.
async fn follow(policy: Policy, pool: Autotuned<Pool>) {
    let mut size: usize = 4;
    loop {
        sleep(Duration::from_millis(250)).await;
        let now = pool.snapshot();
        let used = now.in_use() as f64 / now.limit().max(1) as f64;
        size = match policy {
            Policy::FlexyPool if now.wait_p95() > Duration::from_millis(20) => size + 1,
            Policy::Utilisation if used > 0.7 => size + size.div_ceil(10),
            Policy::Utilisation if used < 0.5 => size - size.div_ceil(10),
            Policy::FlexyPool | Policy::Utilisation => size,
            Policy::Static(_) | Policy::Tuned => return,
        }
        .clamp(1, MAX);
        if pool.set_bounds(size..=size).is_err() {
            return;
        }
    }
}

fn summarise(workload: Workload, outcomes: &[Outcome], report: &mut String) -> Result<(), Error> {
    let of = |policy: fn(&Policy) -> bool| outcomes.iter().filter(move |o| policy(&o.policy));
    let fixed = of(|policy| matches!(policy, Policy::Static(_)));
    let best = fixed.map(|outcome| outcome.throughput).fold(0.0, f64::max);
    // A smaller size within 2 % of the best is the better one.
    let oracle = of(|policy| matches!(policy, Policy::Static(_)))
        .find(|outcome| outcome.throughput >= 0.98 * best)
        .ok_or("no static size was measured")?;
    println!("  oracle: {}", oracle.policy.name());
    for outcome in outcomes {
        let part = 100.0 * outcome.throughput / best;
        if !matches!(outcome.policy, Policy::Static(_)) {
            println!(
                "  {:<17} {part:>5.0} % of the oracle",
                outcome.policy.name()
            );
        }
        write!(
            report,
            "{{\"workload\":\"{}\",\"policy\":\"{}\",\"per_second\":{:.0},\"percent_of_oracle\":\
             {part:.1},\"mean_connections\":{:.1}}},",
            workload.name,
            outcome.policy.name(),
            outcome.throughput,
            outcome.mean_size,
        )?;
        for decision in &outcome.decisions {
            if matches!(outcome.policy, Policy::Tuned) {
                println!("      {decision}");
            }
        }
    }
    Ok(())
}
