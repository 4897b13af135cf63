//! Redis: exclusive connections of every size, the tuner, and connections that are shared, in turns.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use deadpool_redis::redis::{AsyncCommands, Client, aio::MultiplexedConnection, cmd, pipe};
use deadpool_redis::{Config, Pool, Runtime};
use pool_autotune::Autotuned;
use private_servers::Redis;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::Error;
use crate::play::Times;
use crate::policy::still;

const TASKS: usize = 200;
const SIZES: [usize; 6] = [1, 2, 4, 8, 16, 48];
const MAX: usize = 48;
const SHARED: [usize; 3] = [1, 2, 4];
/// In a closed loop no caller is refused.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a task does, over and over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Command {
    /// SET and GET of 64 bytes.
    GetSet,
    /// BLPOP of a list that stays empty, for as short as Redis ends it (a tenth of a second): nobody
    /// else can use the connection meanwhile.
    Blpop,
    /// MULTI, three INCR, EXEC.
    Multi,
}

pub(crate) const ALL: &[Workload] = &[
    Workload {
        name: "R1 GET/SET",
        command: Command::GetSet,
    },
    Workload {
        name: "R2 BLPOP",
        command: Command::Blpop,
    },
    Workload {
        name: "R3 MULTI",
        command: Command::Multi,
    },
];

impl Command {
    async fn send(self, to: &mut MultiplexedConnection) -> Result<(), Error> {
        match self {
            Self::GetSet => {
                let () = to.set("key", [b'x'; 64].as_slice()).await?;
                let _: Vec<u8> = to.get("key").await?;
            }
            Self::Blpop => {
                let mut blpop = cmd("BLPOP");
                let _: Option<(String, String)> =
                    blpop.arg("nothing").arg(0.01).query_async(to).await?;
            }
            Self::Multi => {
                let mut pipe = pipe();
                pipe.atomic().incr("a", 1).incr("b", 1).incr("c", 1);
                let _: Vec<i64> = pipe.query_async(to).await?;
            }
        }
        Ok(())
    }
}

/// The senders of the commands.
#[derive(Clone)]
enum Contender {
    Exclusive(usize, Autotuned<Pool>),
    Ours(Autotuned<Pool>),
    Shared(Vec<MultiplexedConnection>, Arc<AtomicUsize>),
}

impl Contender {
    fn name(&self) -> String {
        match self {
            Self::Exclusive(size, _) => format!("exclusive {size}"),
            Self::Ours(_) => "pool-autotune".to_owned(),
            Self::Shared(connections, _) => format!("shared {}", connections.len()),
        }
    }

    async fn send(&self, command: Command) -> Result<(), Error> {
        match self {
            Self::Exclusive(_, pool) | Self::Ours(pool) => {
                command.send(&mut *pool.get().await?).await
            }
            Self::Shared(connections, next) => {
                let turn = next.fetch_add(1, Relaxed) % connections.len();
                command.send(&mut connections[turn].clone()).await
            }
        }
    }
}

fn pool(redis: &Redis, size: usize) -> Result<Pool, Error> {
    let builder = Config::from_url(redis.url()).builder()?;
    Ok(builder.max_size(size).runtime(Runtime::Tokio1).build()?)
}

/// The first of them is ours.
async fn contenders(
    redis: &Redis,
    command: Command,
    ours: Autotuned<Pool>,
) -> Result<Vec<Contender>, Error> {
    let mut contenders = vec![Contender::Ours(ours)];
    for size in SIZES {
        let fixed = Autotuned::builder(pool(redis, size)?)
            .bounds(size..=size)
            .wait_timeout(PATIENCE)
            .tuner(still());
        contenders.push(Contender::Exclusive(size, fixed.build()?));
    }
    // A connection that blocks for one task blocks for all.
    for size in SHARED.into_iter().filter(|_| command != Command::Blpop) {
        let client = Client::open(redis.url())?;
        let mut connections = Vec::new();
        for _ in 0..size {
            connections.push(client.get_multiplexed_async_connection().await?);
        }
        contenders.push(Contender::Shared(connections, Arc::default()));
    }
    Ok(contenders)
}

/// How often each is measured, one after the other. The rate of one and the same pool differs
/// by a quarter from one second to the next: whether both cores work on the same side of the
/// connection is a matter of chance.
const ROUNDS: usize = 9;

/// Seconds that a row takes, roughly.
pub(crate) fn takes(times: Times) -> f64 {
    let contenders = (1 + SIZES.len() + SHARED.len()) as f64;
    times.learning + ROUNDS as f64 * contenders * (times.connecting / 4.0 + times.unit / 2.0)
}

pub(crate) async fn play(
    redis: &Redis,
    workload: &Workload,
    times: Times,
    explain: bool,
) -> Result<Value, Error> {
    let command = workload.command;
    println!("{} ({TASKS} tasks in a closed loop)", workload.name);
    let ours = Autotuned::builder(pool(redis, MAX)?)
        .wait_timeout(PATIENCE)
        .build()?;
    let contenders = contenders(redis, command, ours.clone()).await?;
    let warm_up = times.connecting / 4.0;
    rate(&contenders[0], command, 0.0, times.learning).await?;
    let verdict = ours.verdict();
    let mut rates = vec![Vec::new(); contenders.len()];
    for _ in 0..ROUNDS {
        for (contender, rates) in contenders.iter().zip(&mut rates) {
            rates.push(rate(contender, command, warm_up, times.unit / 2.0).await?);
        }
    }
    let mut medians = Vec::new();
    for (contender, rates) in contenders.iter().zip(&mut rates) {
        rates.sort_by(f64::total_cmp);
        let (least, median, most) = (rates[0], rates[ROUNDS / 2], rates[ROUNDS - 1]);
        medians.push(median);
        let name = contender.name();
        println!("  {name:<14}{median:>9.0}/s  ({least:.0} to {most:.0})");
    }
    let best = contenders
        .iter()
        .zip(&medians)
        .filter(|(contender, _)| matches!(contender, Contender::Exclusive(..)))
        .map(|(_, &median)| median)
        .fold(0.0, f64::max);
    let part = medians[0] / best;
    let size = ours.snapshot().size();
    println!(
        "  {:.0} % of the best exclusive with {size} connections: {verdict}",
        100.0 * part
    );
    for decision in ours.decisions().iter().filter(|_| explain) {
        println!("      {decision}");
    }
    let names = contenders.iter().map(Contender::name);
    Ok(json!({
        "scenario": workload.name,
        "per_second": names.zip(rates).collect::<BTreeMap<_, _>>(),
        "ours_of_best_exclusive": part,
        "ours_connections": size,
        "verdict": verdict.to_string(),
    }))
}

/// Commands a second of all tasks together.
async fn rate(
    contender: &Contender,
    command: Command,
    warm_up: f64,
    seconds: f64,
) -> Result<f64, Error> {
    let end = Instant::now() + Duration::from_secs_f64(warm_up + seconds);
    let done = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (contender, done) = (contender.clone(), Arc::clone(&done));
        tasks.spawn(async move {
            while Instant::now() < end {
                contender.send(command).await?;
                done.fetch_add(1, Relaxed);
            }
            Ok::<_, Error>(())
        });
    }
    sleep(Duration::from_secs_f64(warm_up)).await;
    let (before, start) = (done.load(Relaxed), Instant::now());
    sleep(Duration::from_secs_f64(seconds)).await;
    let rate = (done.load(Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
    while let Some(joined) = tasks.join_next().await {
        joined??;
    }
    Ok(rate)
}
