//! Runs with a load that stays where it is, and something that happens to the servers.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use private_servers::{Postgres, Redis};
use tokio::time::{Instant, sleep_until};

use crate::processes::{Front, Process, Seen, Start, add, clear, connect, install, settle, watch};
use crate::{MAX_CONNECTIONS, Options, Scenario, TOTAL, Way};

/// Parts of a run: what happens begins, and has ended.
const BEGINS_AT: f64 = 0.3;
const ENDS_AT: f64 = 0.65;

/// What the server has in between.
const FEWER: usize = 60;

/// What is to be shared of that.
fn total(max_connections: usize) -> usize {
    max_connections - 3 - (max_connections / 20).clamp(2, 10)
}

pub(crate) async fn run(
    options: &Options,
    postgres: &mut Postgres,
    redis: &Redis,
) -> Result<(), Box<dyn Error>> {
    println!(
        "{}: {} processes, {} s each; to be shared: {TOTAL} of {MAX_CONNECTIONS} connections\n\n\
         {:14} {:>8} {:>8} {:>8} {:>6} {:>6} {:>8} {:>7}  errors before, during, after",
        options.scenario.name(),
        options.processes,
        options.seconds,
        "way",
        "before/s",
        "during/s",
        "after/s",
        "mean",
        "most",
        "over ms",
        "53300",
    );
    let ways = match (options.only, options.scenario) {
        (Some(way), _) => vec![way],
        (None, Scenario::Knee | Scenario::Contention) => vec![
            Way::Uncoordinated,
            Way::Static,
            Way::Pgbouncer,
            Way::PostgresNoKnee,
            Way::Postgres,
            Way::Redis,
        ],
        (None, _) => vec![Way::Static, Way::Postgres, Way::Redis],
    };
    for way in ways {
        play(options, postgres, redis, way).await?;
    }
    Ok(())
}

async fn play(
    options: &Options,
    postgres: &mut Postgres,
    redis: &Redis,
    way: Way,
) -> Result<(), Box<dyn Error>> {
    let front = Front::of(way, postgres).await?;
    let (url, role) = (front.url.as_str(), front.role);
    let admin = connect(&postgres.url()).await?;
    // As on a server where the table was there before the fleet.
    let settled = "update pool_autotune.installed set at = '-infinity'";
    admin.batch_execute(settled).await?;
    let redis_url = redis.url();
    if way == Way::Redis {
        settle(&redis_url, url).await?;
    }
    let start = Start {
        options,
        way,
        url,
        redis: &redis_url,
    };
    let began = Instant::now();
    let at = |part: f64| began + Duration::from_secs_f64(part * f64::from(options.seconds));
    let mut processes = Vec::new();
    for number in 0..options.processes {
        processes.push(start.process(number, began.elapsed().as_secs_f64())?);
    }
    let seen = Arc::<Seen>::default();
    let watching = tokio::spawn(watch(postgres.url(), role, Arc::clone(&seen)));
    sleep_until(at(BEGINS_AT)).await;
    let ended = happens(options, postgres, redis, way, &seen, at(ENDS_AT)).await?;
    sleep_until(at(1.0)).await;
    seen.ends.store(true, Relaxed);
    watching.await?;
    let counts = |from: Instant, to: Instant| {
        let all = processes
            .iter()
            .map(|process: &Process| process.counts(from, to));
        all.fold([0; 3], add)
    };
    let phases = [
        (at(BEGINS_AT / 2.0), at(BEGINS_AT)),
        (at(BEGINS_AT), ended),
        (ended, at(1.0)),
    ];
    let [before, during, after] =
        phases.map(|(from, to)| counts(from, to)[0] as f64 / (to - from).as_secs_f64());
    let errors =
        [(began, at(BEGINS_AT)), phases[1], phases[2]].map(|(from, to)| counts(from, to)[1]);
    println!(
        "{:14} {before:8.0} {during:8.0} {after:8.0} {:6.1} {:6} {:8} {:7}  {errors:?}",
        way.name(),
        seen.sessions.load(Relaxed) as f64 / seen.samples.load(Relaxed).max(1) as f64,
        seen.most.load(Relaxed),
        seen.over.load(Relaxed) * 10,
        counts(began, at(1.0))[2],
    );
    drop(processes);
    drop(front);
    let admin = match admin.is_closed() {
        true => connect(&postgres.url()).await?,
        false => admin,
    };
    clear(&admin, role).await?;
    Ok(())
}

/// Returns when it has ended.
async fn happens(
    options: &Options,
    postgres: &mut Postgres,
    redis: &Redis,
    way: Way,
    seen: &Seen,
    ends: Instant,
) -> Result<Instant, Box<dyn Error>> {
    match options.scenario {
        Scenario::Load | Scenario::Knee | Scenario::Contention => {}
        Scenario::Pause => {
            let longest = Duration::from_secs(60);
            let ends =
                Instant::now() + longest.min(Duration::from_secs(options.seconds.into()) / 2);
            let locks = connect(&postgres.url()).await?;
            if way == Way::Redis {
                redis.suspend();
            } else {
                let lock = "begin; lock table pool_autotune.budget";
                locks.batch_execute(lock).await?;
            }
            sleep_until(ends).await;
            if way == Way::Redis {
                redis.resume();
            }
            // What is locked is free when the connection ends.
            return Ok(Instant::now());
        }
        Scenario::Failover => {
            let admin = connect(&postgres.url()).await?;
            let gone = "drop schema pool_autotune cascade";
            admin.batch_execute(gone).await?;
            redis.ask(&["FLUSHALL"]).await?;
            postgres.restart().await?;
            let admin = connect(&postgres.url()).await?;
            install(&admin).await?;
        }
        Scenario::Resize => {
            postgres.kill();
            seen.total.store(total(FEWER), Relaxed);
            let fewer = FEWER.to_string();
            postgres
                .restart_with(&[("max_connections", &fewer)])
                .await?;
            sleep_until(ends).await;
            let most = MAX_CONNECTIONS.to_string();
            postgres.restart_with(&[("max_connections", &most)]).await?;
            seen.total.store(TOTAL, Relaxed);
            return Ok(Instant::now());
        }
    }
    sleep_until(ends).await;
    Ok(Instant::now())
}
