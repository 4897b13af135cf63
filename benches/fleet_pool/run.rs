//! The runs.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use private_servers::{Postgres, Redis};
use tokio::time::{Instant, sleep_until};
use tokio_postgres::Client;

use crate::node::{CONTENTION, busy};
use crate::processes::{Front, Seen, Start, add, clear, connect, install, settle, watch};
use crate::{
    KILLS_AT, MAX_CONNECTIONS, MOVES_AT, Options, ROLLS_OUT_AT, Scenario, TOTAL, Way, faults, rules,
};

pub(crate) fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let most = MAX_CONNECTIONS.to_string();
        let mut postgres = Postgres::start_with(&[("max_connections", &most)]).await?;
        let admin = connect(&postgres.url()).await?;
        admin.batch_execute("create role app login").await?;
        admin.batch_execute(rules::TABLE).await?;
        admin.batch_execute(CONTENTION).await?;
        install(&admin).await?;
        // As on a server where it was there before the fleet.
        let settled = "update pool_autotune.installed set at = '-infinity'";
        admin.batch_execute(settled).await?;
        let redis = Redis::start().await?;
        if options.scenario != Scenario::Load {
            drop(admin);
            return faults::run(options, &mut postgres, &redis).await;
        }
        println!(
            "{} processes, {} s each; to be shared: {TOTAL} of {MAX_CONNECTIONS} connections\n\n\
             {:14} {:>8} {:>8} {:>8} {:>6} {:>7} {:>8} {:>7} {:>8}",
            options.processes,
            options.seconds,
            "way",
            "done/s",
            "skewed",
            "moved",
            "Jain",
            "most",
            "over ms",
            "53300",
            "errors"
        );
        let ways = options
            .only
            .map_or_else(|| Way::ALL.to_vec(), |way| vec![way]);
        for way in ways {
            play(options, &postgres, &redis, &admin, way).await?;
        }
        Ok(())
    })
}

async fn play(
    options: &Options,
    postgres: &Postgres,
    redis: &Redis,
    admin: &Client,
    way: Way,
) -> Result<(), Box<dyn Error>> {
    let front = Front::of(way, postgres).await?;
    let (url, role) = (front.url.as_str(), front.role);
    let redis_url = redis.url();
    if way == Way::Redis {
        // A hash that is new grants nothing for one lease. One process makes it, and has gone by then.
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
    sleep_until(at(ROLLS_OUT_AT)).await;
    for number in 0..(options.processes / 4).max(1) {
        let number = options.processes + number;
        processes.push(start.process(number, began.elapsed().as_secs_f64())?);
    }
    sleep_until(at(KILLS_AT)).await;
    let busy = usize::from(busy(options.processes));
    for process in processes[busy..]
        .iter_mut()
        .take((usize::from(options.processes) / 10).max(1))
    {
        process.kill()?;
    }
    sleep_until(at(1.0)).await;
    seen.ends.store(true, Relaxed);
    watching.await?;
    let rate = |from: f64, to: f64| {
        let done: u64 = processes
            .iter()
            .map(|p| p.counts(at(from), at(to))[0])
            .sum();
        done as f64 / ((to - from) * f64::from(options.seconds))
    };
    // The second half of a phase, for those that are alike in it.
    let of_each: Vec<f64> = processes[busy..2 * busy]
        .iter()
        .map(|p| p.counts(at(0.5), at(KILLS_AT))[0] as f64)
        .collect();
    let jain = of_each.iter().sum::<f64>().powi(2)
        / (of_each.len() as f64 * of_each.iter().map(|x| x * x).sum::<f64>()).max(1.0);
    let all = (processes.iter()).map(|process| process.counts(began, Instant::now()));
    let [_, other, full] = all.fold([0; 3], add);
    println!(
        "{:14} {:8.0} {:8.0} {:8.0} {:6.3} {:7} {:8} {:7} {:8}",
        way.name(),
        rate(0.0, 1.0),
        rate(MOVES_AT / 3.0, MOVES_AT),
        rate(MOVES_AT, ROLLS_OUT_AT),
        jain,
        seen.most.load(Relaxed),
        seen.over.load(Relaxed) * 10,
        full,
        other
    );
    drop(processes);
    drop(front);
    clear(admin, role).await?;
    Ok(())
}
