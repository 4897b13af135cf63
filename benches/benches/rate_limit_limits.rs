//! What a rate limiter does at its limits: memory for a million keys, a flood of twenty million,
//! and exactness under contention.
//!
//! `cargo bench -p overload-benches --bench rate_limit_limits`
//!
//! Memory is the growth of the resident set of a process of its own for each contender.

use std::{env, fs, num::NonZeroU32, process::Command, thread, time::Duration};

use cpu_time::ThreadTime;
use rate_limit::{HOUR, Limiter, Policy, Quota, SECOND};
use tokio::time::Instant;

const CONTENDERS: [&str; 3] = ["rate-limit", "governor", "tokio-rate-limit"];
const VICTIM: u64 = u64::MAX;

/// One decision; true when admitted.
type Check = Box<dyn Fn(u64) -> bool + Sync>;

fn main() {
    let arguments: Vec<_> = env::args().collect();
    match arguments.iter().position(|argument| argument == "--one") {
        Some(at) => one(&arguments[at + 1], &arguments[at + 2]),
        None => all(),
    }
}

fn all() {
    for question in ["memory", "flood"] {
        // At a quarter of a kilobyte a key, the flood would need 5 GB of the last one.
        let count = if question == "flood" {
            2
        } else {
            CONTENDERS.len()
        };
        for contender in &CONTENDERS[..count] {
            let status = Command::new(env::current_exe().expect("this very program"))
                .args(["--one", question, contender])
                .status();
            assert!(
                status.is_ok_and(|status| status.success()),
                "{question} {contender}"
            );
        }
    }
    accuracy();
    atomicity();
}

fn one(question: &str, contender: &str) {
    let before = resident();
    let check = contender_with(contender, 10);
    match question {
        "memory" => {
            let keys = 1_000_000;
            let spent = timed(|| (0..keys).for_each(|key| _ = check(key)));
            let bytes = (resident() - before) / keys;
            println!(
                "memory    {contender:<17} {bytes:>4} B a key at {keys} keys, {} ns to insert one",
                spent.as_nanos() as u64 / keys
            );
        }
        _ => {
            let keys = 20_000_000;
            // Resident from the start, as in a service that has been up for a while.
            (0..1_000_000).for_each(|key| _ = check(key));
            while check(VICTIM) {}
            let before = resident();
            let spent = timed(|| (1_000_000..1_000_000 + keys).for_each(|key| _ = check(key)));
            let grown = resident().saturating_sub(before) >> 20;
            let victim = if check(VICTIM) {
                "ADMITTED again"
            } else {
                "still refused"
            };
            println!(
                "flood     {contender:<17} {:>4} ns a key, +{grown} MiB, exhausted key {victim}",
                spent.as_nanos() as u64 / keys
            );
        }
    }
}

/// A limiter of `burst` an hour with room for a million keys, where room is limited at all.
fn contender_with(name: &str, burst: u32) -> Check {
    match name {
        "rate-limit" => {
            let quota = Quota::count(burst.into()).per(HOUR);
            let limiter = Limiter::builder().quota(quota).max_keys(1_000_000).build();
            let limiter = limiter.expect("a valid quota");
            Box::new(move |key| limiter.check(key).is_ok())
        }
        "governor" => {
            let quota = governor::Quota::per_hour(NonZeroU32::new(burst).expect("not zero"));
            let limiter = governor::RateLimiter::<u64, _, _>::dashmap(quota);
            Box::new(move |key| limiter.check_key(&key).is_ok())
        }
        _ => {
            let limiter = tokio_rate_limit::RateLimiter::builder()
                .requests_per_second(1)
                .burst(burst.into())
                .build()
                .expect("a valid quota");
            Box::new(move |key| limiter.check(&key.to_string()).permitted)
        }
    }
}

/// How much of `B + R·t` do threads get that ask for one key as fast as they can?
///
/// Never more, from before the first of them asks until after the last has. And all of it from
/// when the first has asked until the last is refused, if bursts outlast the time in which none of
/// the threads is scheduled: what a burst cannot hold meanwhile is lost under any limiter.
fn accuracy() {
    for rate in [1_000_000u64, 300_000, 1_000, 7] {
        let burst = (rate as f64 * BURST.as_secs_f64()).ceil() as u64;
        for threads in [1, 2, 4] {
            let quota = Quota::count(rate).per(SECOND).burst(burst);
            let limiter = Limiter::new(quota).expect("a valid quota");
            let before = Instant::now();
            assert!(limiter.check("hot").is_ok(), "a fresh key");
            let first = Instant::now();
            // Not a multiple of any interval: the last cell would be a matter of nanoseconds.
            let end = first + Duration::from_millis(2_050);
            let ask = || {
                let mut admitted = 0;
                loop {
                    let now = Instant::now();
                    if limiter.check("hot").is_ok() {
                        admitted += 1;
                    } else if now >= end {
                        return (admitted, now);
                    }
                }
            };
            let workers: Vec<_> = thread::scope(|scope| {
                let workers: Vec<_> = (0..threads).map(|_| scope.spawn(ask)).collect();
                let join = |worker: thread::ScopedJoinHandle<'_, _>| worker.join();
                let workers = workers.into_iter().map(join);
                workers.collect::<Result<_, _>>().expect("no panic")
            });
            let after = before.elapsed();
            let admitted = 1 + workers.iter().map(|(admitted, _)| admitted).sum::<u64>();
            let last = workers.iter().map(|(_, last)| *last).max();
            let asked = last.expect("some thread").duration_since(first);
            let quota = |time: Duration| (burst as f64 + rate as f64 * time.as_secs_f64()).floor();
            let (most, least) = (quota(after), quota(asked));
            assert!(admitted as f64 <= most, "{admitted} of {most} admitted");
            println!(
                "accuracy  {rate:>8}/s burst {burst:<6} {threads} threads: {admitted} of \
                 {least} = {:.3} %",
                100.0 * admitted as f64 / least
            );
        }
    }
}

/// How long a burst lasts: longer than a thread is left without a core on a busy machine.
const BURST: Duration = Duration::from_millis(500);

/// A refusal by the last of k policies leaves the others untouched.
fn atomicity() {
    for policies in 1..=8 {
        let mut builder = Limiter::builder();
        for n in 1..policies {
            builder = builder.policy(Policy::new(format!("wide{n}"), Quota::count(100).per(HOUR)));
        }
        let limiter = builder
            .policy(Policy::new("tight", Quota::count(1).per(HOUR)))
            .build();
        let limiter = limiter.expect("valid quotas");
        let admitted = (0..1_000).filter(|_| limiter.check("k").is_ok()).count();
        limiter.refund("k", 1);
        assert_eq!((admitted, limiter.peek("k")), (1, 1), "{policies} policies");
    }
    println!("atomicity 1 to 8 policies: 999 refusals by one took nothing from the others");
}

/// CPU time, so that other work on the machine does not count.
fn timed(work: impl FnOnce()) -> Duration {
    let start = ThreadTime::now();
    work();
    start.elapsed()
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("two numbers");
    pages * 4_096
}
