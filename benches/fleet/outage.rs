//! One process, while Redis is paused, silent or slow: what it adds to requests.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use private_servers::Redis;
use rate_limit::{
    Limiter, Quota, SECOND,
    fleet::{FleetBackend, FleetLimiter},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::{Error, proxy::Proxy};

const REQUESTS_A_SECOND: u64 = 2_000;
const AWAY: Duration = Duration::from_secs(5);

pub(crate) fn run() -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    println!(
        "{REQUESTS_A_SECOND} requests a second to 50 keys, a deadline of 10 ms, Redis away for {AWAY:?}\n\
         {:>10} {:>9} {:>9} | {:>9} {:>9} | {:>9} {:>9} {:>9} | {:>9} {:>7}",
        "redis",
        "P50 us",
        "P99.9 us",
        "opens ms",
        "P99.9 ms",
        "P50 us",
        "P99.9 us",
        "max us",
        "back s",
        "failed"
    );
    for kind in ["paused", "silent", "slow", "killed"] {
        for _ in 0..3 {
            runtime.block_on(outage(kind))?;
        }
    }
    Ok(())
}

/// When a request was sent, and what was added to it.
type Samples = Arc<Mutex<Vec<(Instant, Duration, bool)>>>;

async fn outage(kind: &str) -> Result<(), Error> {
    let mut redis = Redis::start().await?;
    let proxy = Proxy::start(redis.port()).await?;
    let backend = FleetBackend::new(format!("redis://{}", proxy.address), "bench")?;
    // Never used up: a refusal would be a decision that needs no Redis.
    let quota = Quota::count(1_000_000).per(SECOND);
    let limiter = Limiter::builder().quota(quota).build_on(backend)?;
    let samples = Samples::default();
    let load = tokio::spawn(load(limiter.clone(), Arc::clone(&samples)));
    sleep(Duration::from_secs(2)).await;

    let gone = Instant::now();
    match kind {
        "paused" => redis.suspend(),
        "silent" => proxy.silence(),
        "slow" => proxy.slow_down(Duration::from_millis(50)),
        _ => redis.kill(),
    }
    while !limiter.is_degraded() {
        if gone.elapsed() > AWAY {
            return Err(format!("a Redis that is {kind} was not noticed").into());
        }
        sleep(Duration::from_micros(200)).await;
    }
    let opened = Instant::now();
    sleep(AWAY).await;
    let healed = Instant::now();
    match kind {
        "paused" => redis.resume(),
        "silent" | "slow" => proxy.heal(),
        _ => redis.restart().await?,
    }
    while limiter.is_degraded() && healed.elapsed() < Duration::from_secs(20) {
        sleep(Duration::from_millis(1)).await;
    }
    let back = healed.elapsed();
    sleep(Duration::from_millis(200)).await;
    load.abort();

    let samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
    let failed = samples.iter().filter(|sample| !sample.2).count();
    let during = |from: Option<Instant>, to: Instant| {
        let within = samples
            .iter()
            .filter(|(sent, ..)| from.is_none_or(|f| *sent >= f) && *sent < to);
        let mut added: Vec<_> = within.map(|sample| sample.1).collect();
        added.sort_unstable();
        added
    };
    let before = during(
        Some(gone - Duration::from_secs(1)),
        gone - Duration::from_millis(20),
    );
    let closed = during(Some(gone), opened);
    // Requests that were waiting when it opened are of the time before.
    let open = during(Some(opened + Duration::from_millis(1)), healed);
    let micros = |added: &[Duration], part: f64| {
        let index = ((added.len() as f64 * part) as usize).min(added.len().saturating_sub(1));
        added
            .get(index)
            .map_or(0.0, |added| added.as_secs_f64() * 1e6)
    };
    println!(
        "{kind:>10} {:>9.1} {:>9.1} | {:>9.1} {:>9.2} | {:>9.2} {:>9.1} {:>9.1} | {:>9.2} {failed:>7}",
        micros(&before, 0.5),
        micros(&before, 0.999),
        (opened - gone).as_secs_f64() * 1e3,
        micros(&closed, 0.999) / 1e3,
        micros(&open, 0.5),
        micros(&open, 0.999),
        micros(&open, 1.0),
        back.as_secs_f64(),
    );
    Ok(())
}

async fn load(limiter: FleetLimiter, samples: Samples) {
    let start = Instant::now();
    let mut tick = interval(Duration::from_millis(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut sent = 0u64;
    loop {
        tick.tick().await;
        let due = (start.elapsed().as_secs_f64() * REQUESTS_A_SECOND as f64) as u64;
        while sent < due {
            let (limiter, samples) = (limiter.clone(), Arc::clone(&samples));
            let key = sent % 50;
            tokio::spawn(async move {
                let asked = Instant::now();
                let admitted = limiter.check(key).await.is_ok();
                let sample = (asked, asked.elapsed(), admitted);
                samples
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(sample);
            });
            sent += 1;
        }
    }
}
