//! Which pool size serves the most, and who finds it?
//!
//! ```text
//! cargo run --release -p overload-benches --bin pool_strategies -- [--seconds N] [--workload NAME]
//!     [--policy NAME] [--json PATH]
//! ```
//!
//! A private Postgres, 256 tasks in a closed loop, five workloads whose best static sizes are far
//! apart. Every contender runs behind the same gate on the same deadpool, so only the policy
//! differs, but for one row on a deadpool without a gate; throughput is counted after a warm-up. The
//! oracle is the best of the static sizes. The rules are those of the model (`--bin pools`). In
//! recommend mode the pool keeps deadpool's default size, and says what it should be.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use deadpool_postgres::{Manager, Pool};
use overload_benches::pools::{Contender, Rule, Seen};
use pool_autotune::tuner::TunerConfig;
use pool_autotune::{Autotuned, Mode};
use private_servers::Postgres;
use tokio::time::{Instant, sleep};
use tokio_postgres::NoTls;

type Error = Box<dyn std::error::Error + Send + Sync>;

const TASKS: usize = 256;
const MAX: usize = 96;
/// Connections that the rules start with, as the tuner does.
const START: usize = 4;
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

#[derive(Clone, Copy, PartialEq)]
enum Policy {
    /// Of the sweep that the oracle is chosen from.
    Static(usize),
    /// A default, a formula, a published rule or, last but not least, the tuner.
    Contender(Contender),
    /// deadpool's default size, and a tuner that only reports.
    Recommend,
    /// deadpool's default size, without a gate.
    Raw,
}

impl Policy {
    fn name(self) -> String {
        match (self, self.rule()) {
            (Self::Static(size), _) => format!("static {size}"),
            (Self::Contender(Contender::Ours), _) => "pool-autotune".to_owned(),
            (Self::Contender(Contender::Deadpool), Some(Rule::Static(size))) => {
                format!("deadpool default {size}")
            }
            (Self::Contender(Contender::Bb8Sqlx), Some(Rule::Static(size))) => {
                format!("bb8, sqlx default {size}")
            }
            (Self::Contender(Contender::Hikari), Some(Rule::Static(size))) => {
                format!("HikariCP formula {size}")
            }
            (Self::Contender(contender), _) => contender.name().to_owned(),
            (Self::Recommend, _) => "recommend mode".to_owned(),
            (Self::Raw, _) => format!("no gate, deadpool {}", default_size()),
        }
    }

    fn rule(self) -> Option<Rule> {
        match self {
            Self::Static(size) => Some(Rule::Static(size)),
            Self::Contender(contender) => contender.rule(cores()),
            Self::Recommend | Self::Raw => None,
        }
    }
}

fn policies() -> impl Iterator<Item = Policy> {
    let fixed = SIZES.map(Policy::Static);
    let contenders = Contender::ALL.map(Policy::Contender);
    let others = [Policy::Recommend, Policy::Raw];
    fixed.into_iter().chain(contenders).chain(others)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// deadpool's: two connections for each core.
fn default_size() -> usize {
    2 * cores()
}

/// Where a task gets its connections.
#[derive(Clone)]
enum Source {
    Gated(Autotuned<Pool>),
    Raw(Pool),
}

impl Source {
    async fn transact(&self, statements: &str) -> Result<(), Error> {
        match self {
            Self::Gated(pool) => pool.get().await?.batch_execute(statements).await?,
            Self::Raw(pool) => pool.get().await?.batch_execute(statements).await?,
        }
        Ok(())
    }

    fn size(&self) -> usize {
        match self {
            Self::Gated(pool) => pool.snapshot().size(),
            Self::Raw(pool) => pool.status().size,
        }
    }
}

struct Outcome {
    policy: Policy,
    throughput: f64,
    size: usize,
    /// Mean number of connections while throughput was counted.
    mean_size: f64,
    /// Decisions, or the report, of the tuner.
    said: Vec<String>,
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
    /// Only policies whose name contains this.
    policy: Option<String>,
    json: Option<String>,
}

impl Arguments {
    fn parse() -> Result<Self, Error> {
        let mut parsed = Self {
            measure: Duration::from_secs(20),
            workload: None,
            policy: None,
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
                "--policy" => {
                    let value = value()?;
                    let names: Vec<String> = policies().map(Policy::name).collect();
                    if !names.iter().any(|name| name.contains(&value)) {
                        let names = names.join("`, `");
                        return Err(
                            format!("--policy is {value}: expected a part of `{names}`").into()
                        );
                    }
                    parsed.policy = Some(value);
                }
                "--json" => parsed.json = Some(value()?),
                _ => {
                    let expected = "--seconds N, --workload NAME, --policy NAME or --json PATH";
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
        policy: wanted,
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
        let wanted = |policy: &Policy| {
            let wanted = wanted.as_deref();
            wanted.is_none_or(|part| policy.name().contains(part))
        };
        for policy in policies().filter(wanted) {
            let outcome = contend(&postgres, workload, policy, measure).await?;
            println!(
                "  {:<20} {:>9.0}/s  {:>5.1} connections, {} at the end",
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
    let keeps_default = matches!(policy, Policy::Recommend | Policy::Raw);
    let max_size = if keeps_default { default_size() } else { MAX };
    let inner = Pool::builder(manager).max_size(max_size).build()?;
    let gated = |inner| Autotuned::builder(inner).wait_timeout(Duration::from_secs(60));
    let source = match (policy, policy.rule()) {
        (Policy::Raw, _) => Source::Raw(inner),
        (Policy::Recommend, _) => Source::Gated(gated(inner).mode(Mode::Recommend).build()?),
        (_, None) => Source::Gated(gated(inner).bounds(1..=MAX).build()?),
        (_, Some(rule)) => {
            let start = match rule {
                Rule::Static(size) => size,
                _ => START,
            };
            let pool = gated(inner).bounds(start..=start).tuner(still());
            Source::Gated(pool.build()?)
        }
    };

    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let (source, stop, done) = (source.clone(), Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                while !stop.load(Relaxed) {
                    source.transact(workload.statements).await?;
                    done.fetch_add(1, Relaxed);
                }
                Ok::<_, Error>(())
            })
        })
        .collect();
    let is_fixed = matches!(policy.rule(), Some(Rule::Static(_))) || policy == Policy::Raw;
    let follower = match (&source, policy.rule()) {
        (Source::Gated(pool), Some(rule)) if !is_fixed => {
            Some(tokio::spawn(follow(rule, pool.clone(), Arc::clone(&done))))
        }
        _ => None,
    };

    // A static size needs its connections, a policy its decisions.
    let warm_up = if is_fixed { 4 } else { 30 };
    sleep(Duration::from_secs(warm_up)).await;
    let (before, start) = (done.load(Relaxed), Instant::now());
    let (mut sizes, mut looks) = (0.0, 0.0);
    while start.elapsed() < measure {
        sleep(Duration::from_millis(100)).await;
        sizes += source.size() as f64;
        looks += 1.0;
    }
    let throughput = (done.load(Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
    // While there is traffic to report on.
    let report = match (&source, policy) {
        (Source::Gated(pool), Policy::Recommend) => Some(pool.report().to_string()),
        _ => None,
    };

    stop.store(true, Relaxed);
    if let Some(follower) = follower {
        follower.abort();
    }
    for task in tasks {
        task.await??;
    }
    Ok(Outcome {
        policy,
        throughput,
        size: source.size(),
        mean_size: sizes / looks,
        said: match (&source, policy) {
            (Source::Gated(pool), Policy::Contender(Contender::Ours)) => {
                pool.decisions().iter().map(ToString::to_string).collect()
            }
            _ => report.into_iter().collect(),
        },
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

/// Plays a rule that is not the tuner's.
async fn follow(mut rule: Rule, pool: Autotuned<Pool>, done: Arc<AtomicU64>) {
    let (mut size, mut looked, mut before) = (START, Instant::now(), done.load(Relaxed));
    loop {
        sleep(Duration::from_millis(250)).await;
        let (now, total) = (pool.snapshot(), done.load(Relaxed));
        let slow = now.wait_p95() > Duration::from_millis(20);
        let seen = Seen {
            utilisation: now.in_use() as f64 / now.limit().max(1) as f64,
            // How many is not known to those who look from outside: one a look.
            slow_waits: u64::from(slow),
            slow,
            // Tasks in a closed loop wait for 60 s before they give up, and that fails the run.
            timeouts: 0,
            completions: total - before,
            seconds: looked.elapsed().as_secs_f64(),
        };
        (looked, before) = (Instant::now(), total);
        size = rule.next(size, MAX, &seen);
        if pool.set_bounds(size..=size).is_err() {
            return;
        }
    }
}

fn summarise(workload: Workload, outcomes: &[Outcome], report: &mut String) -> Result<(), Error> {
    let fixed = || {
        let is_fixed = |outcome: &&Outcome| matches!(outcome.policy, Policy::Static(_));
        outcomes.iter().filter(is_fixed)
    };
    let most = fixed()
        .map(|outcome| outcome.throughput)
        .fold(0.0, f64::max);
    // Some of the sizes say nothing about the best of all.
    let best = (fixed().count() == SIZES.len()).then_some(most);
    // A smaller size within 2 % of the best is the better one.
    if let Some(best) = best
        && let Some(oracle) = fixed().find(|outcome| outcome.throughput >= 0.98 * best)
    {
        println!("  oracle: {}", oracle.policy.name());
    }
    for outcome in outcomes {
        let part = best.map(|best| 100.0 * outcome.throughput / best);
        if let Some(part) = part
            && !matches!(outcome.policy, Policy::Static(_))
        {
            println!(
                "  {:<20} {part:>5.0} % of the oracle",
                outcome.policy.name()
            );
        }
        write!(
            report,
            "{{\"workload\":\"{}\",\"policy\":\"{}\",\"per_second\":{:.0},\"percent_of_oracle\":\
             {},\"mean_connections\":{:.1}}},",
            workload.name,
            outcome.policy.name(),
            outcome.throughput,
            part.map_or_else(|| "null".to_owned(), |part| format!("{part:.1}")),
            outcome.mean_size,
        )?;
        for line in &outcome.said {
            println!("      {line}");
        }
    }
    Ok(())
}
