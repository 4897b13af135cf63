//! Redis: exclusive connections of every size, the tuner, and connections that are shared.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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
/// In a closed loop nobody is turned away.
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

pub(crate) async fn play(redis: &Redis, workload: &Workload, times: Times) -> Result<Value, Error> {
    let command = workload.command;
    let pool = |size: usize| -> Result<Pool, Error> {
        let builder = Config::from_url(redis.url()).builder()?;
        Ok(builder.max_size(size).runtime(Runtime::Tokio1).build()?)
    };
    let through = |pool: Autotuned<Pool>| {
        move || {
            let pool = pool.clone();
            async move {
                let mut connection = pool.get().await?;
                command.send(&mut connection).await
            }
        }
    };
    println!("{} ({TASKS} tasks in a closed loop)", workload.name);
    let mut exclusive = Vec::new();
    for size in SIZES {
        let fixed = Autotuned::builder(pool(size)?)
            .bounds(size..=size)
            .wait_timeout(PATIENCE)
            .tuner(still());
        let rate = rate(through(fixed.build()?), times.connecting, times.unit).await?;
        println!("  exclusive {size:>2} {rate:>10.0}/s");
        exclusive.push((size, rate));
    }
    let most = exclusive.iter().map(|&(_, rate)| rate).fold(0.0, f64::max);
    let ours = Autotuned::builder(pool(MAX)?)
        .wait_timeout(PATIENCE)
        .build()?;
    let tuned = rate(through(ours.clone()), times.learning, times.unit).await?;
    let best = exclusive.iter().find(|(_, rate)| *rate >= 0.98 * most);
    println!(
        "  pool-autotune {tuned:>7.0}/s, {:.0} % of the best, {} connections to {}: {}",
        100.0 * tuned / most,
        ours.snapshot().size(),
        best.map_or(0, |&(size, _)| size),
        ours.verdict(),
    );
    let mut shared = Vec::new();
    // A connection that blocks for one task blocks for all.
    for size in SHARED.into_iter().filter(|_| command != Command::Blpop) {
        let client = Client::open(redis.url())?;
        let mut connections = Vec::new();
        for _ in 0..size {
            connections.push(client.get_multiplexed_async_connection().await?);
        }
        let next = Arc::new(AtomicU64::new(0));
        let send = move || {
            let turn = next.fetch_add(1, Relaxed) as usize % connections.len();
            let mut connection = connections[turn].clone();
            async move { command.send(&mut connection).await }
        };
        let rate = rate(send, times.connecting, times.unit).await?;
        println!("  shared {size:>5} {rate:>10.0}/s");
        shared.push((size, rate));
    }
    Ok(json!({
        "scenario": workload.name,
        "exclusive_per_second": exclusive,
        "shared_per_second": shared,
        "ours_per_second": tuned,
        "ours_of_best_exclusive": tuned / most,
        "ours_connections": ours.snapshot().size(),
        "verdict": ours.verdict().to_string(),
    }))
}

/// Rounds a second of all tasks together.
async fn rate<F, S>(send: S, warm_up: f64, seconds: f64) -> Result<f64, Error>
where
    S: Fn() -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<(), Error>> + Send,
{
    let end = Instant::now() + Duration::from_secs_f64(warm_up + seconds);
    let done = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (send, done) = (send.clone(), Arc::clone(&done));
        tasks.spawn(async move {
            while Instant::now() < end {
                send().await?;
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
