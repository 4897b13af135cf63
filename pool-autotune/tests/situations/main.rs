//! Random situations, each played against a bare pool and against the same pool tuned.
//!
//! The tuned pool must serve what the bare one serves, within the callers' patience, less 2 %. Both
//! play the same callers against the same server, in virtual time; the bare pool dials within the
//! same budget, since a storm of dials is nothing to be measured against.
//!
//! ```text
//! cargo test -p pool-autotune --all-features --test situations
//! SITUATIONS=10000 SEED=7 cargo test --release -p pool-autotune --all-features --test situations
//! SITUATION=4711 cargo test -p pool-autotune --all-features --test situations -- --nocapture
//! ```

mod generate;
mod judge;
mod play;

use std::env;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use generate::Situation;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// One for each kind: dials that wait for one another after a kill, a server without free slots, dials that
/// take as long as callers wait, bursts, a lowered maximum, overloads of a few use times, callers with less
/// patience than a pool waits before it dials, a growth that a lull and another load follow, and a probe in
/// which the queries change.
#[test]
fn what_was_mended_stays_mended() {
    for seed in [
        930, 256, 191, 783, 425, 673, 559, 130, 755, 80, 791, 4_512, 20_000_594, 30_000_401,
        30_000_678, 50_000_874, 50_000_127, 50_000_694,
    ] {
        if let Err(why) = judge::judge(&Situation::random(seed)) {
            panic!("SITUATION={seed}: {why}");
        }
    }
}

#[test]
fn a_tuned_pool_serves_what_the_bare_one_serves_in_any_situation() {
    const DEFAULT: u64 = 1_000;
    /// Of a thousand situations, those in which the tuned pool is still worse. To be lowered with each
    /// that is mended, never raised.
    const STILL_WORSE: u64 = 2;
    let one = number("SITUATION");
    let first = one.or_else(|| number("SEED")).unwrap_or(1);
    let count = one.map_or_else(|| number("SITUATIONS").unwrap_or(DEFAULT), |_| 1);
    println!("{count} situations from seed {first}");
    let next = AtomicU64::new(first);
    let failed: Mutex<Vec<(u64, Situation, String)>> = Mutex::default();
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    let situation = Situation::random(seed);
                    if let Err(why) = judge::judge(&situation) {
                        failed.lock().unwrap().push((seed, situation, why));
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap();
    failed.sort_by_key(|(seed, ..)| *seed);
    if number("LIST").is_some() {
        for (seed, _, why) in &failed {
            println!("{seed}: {why}");
        }
    }
    let worse = failed.len() as u64;
    println!("{worse} of {count} fail");
    let allowed = if one.is_some() {
        0
    } else {
        (count * STILL_WORSE).div_ceil(1_000)
    };
    if worse > allowed
        && let Some((seed, situation, why)) = failed.first()
    {
        let (smallest, smallest_why) = judge::shrink(situation);
        panic!(
            "{} of {count} situations fail from seed {first}; SITUATION={seed}: {why}\n{situation:#?}\n\
             the smallest that fails: {smallest_why}\n{smallest:#?}\n{}",
            failed.len(),
            judge::explain(&smallest)
        );
    }
}
