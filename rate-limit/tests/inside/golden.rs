//! `tests/vectors.txt`, decided by one process and by every kind of server there is.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use private_servers::Redis;
use redis::{Client, Value, aio::MultiplexedConnection};

use super::{
    level::Level,
    outage::OnOutage,
    script::{self, Action, Reply, Term},
};
#[path = "../support/reference.rs"]
mod reference;

use self::reference::{Reference, Refusal};
use crate::{LimitError, Limiter, ManualClock, Policy, Quota, gcra::Excess};

const VECTORS: &str = include_str!("../vectors.txt");

/// The account script with a clock that is an argument, as second and microsecond.
fn script_by_told_time() -> String {
    let clock = "local time = redis.call('TIME')";
    assert_eq!(script::ACCOUNT.matches(clock).count(), 1);
    script::ACCOUNT.replace(clock, "local time = {KEYS[2], KEYS[3]}")
}

#[derive(Debug, Default)]
struct Vector {
    name: String,
    steps: Vec<Step>,
}

#[derive(Debug)]
enum Step {
    Policies(Vec<(String, Quota)>),
    Do {
        at: u64,
        what: String,
        cells: u64,
        line: String,
    },
}

fn parse(text: &str) -> Vec<Vector> {
    let mut vectors: Vec<Vector> = Vec::new();
    for line in text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        if let Some(name) = line.strip_prefix("vector ") {
            vectors.push(Vector {
                name: name.to_owned(),
                steps: vec![Step::Policies(Vec::new())],
            });
            continue;
        }
        let steps = &mut vectors
            .last_mut()
            .expect("a vector opens with its name")
            .steps;
        let words: Vec<_> = line.split_whitespace().collect();
        if let ["policy", name, count, "per", period, "burst", burst] = words[..] {
            let number = |text: &str| text.trim_end_matches(',').parse::<u64>().expect(line);
            let period = Duration::from_millis(number(period));
            let quota = Quota::count(number(count)).per(period).burst(number(burst));
            let Some(Step::Policies(policies)) = steps.last_mut() else {
                panic!("policies come first: {line}");
            };
            policies.push((name.to_owned(), quota));
        } else if words[1] == "policies" {
            steps.push(Step::Policies(Vec::new()));
        } else {
            steps.push(Step::Do {
                at: words[0].parse().expect(line),
                what: words[1].to_owned(),
                cells: words.get(2).and_then(|word| word.parse().ok()).unwrap_or(0),
                line: words.join(" "),
            });
        }
    }
    vectors
}

fn policies(policies: &[(String, Quota)]) -> Vec<Policy> {
    policies
        .iter()
        .map(|(name, quota)| Policy::new(&**name, *quota))
        .collect()
}

/// What is written after the deed.
fn outcome(result: Result<u64, Option<Duration>>) -> String {
    match result {
        Ok(left) => format!("ok {left}"),
        Err(Some(wait)) => format!("limited {}", wait.as_micros()),
        Err(None) => "never".to_owned(),
    }
}

fn in_one_process(vector: &Vector) -> String {
    let clock = ManualClock::new();
    let mut limiter: Option<Limiter> = None;
    let mut said = String::new();
    for step in &vector.steps {
        match (step, &limiter) {
            (Step::Policies(new), None) => {
                let mut builder = Limiter::builder().clock(clock.clone());
                for policy in policies(new) {
                    builder = builder.policy(policy);
                }
                limiter = Some(builder.build().unwrap());
            }
            (Step::Policies(new), Some(limiter)) => limiter.set_policies(policies(new)).unwrap(),
            (
                Step::Do {
                    at, what, cells, ..
                },
                Some(limiter),
            ) => {
                // A clock that never read zero.
                clock.set(Duration::from_micros(1_000_000 + at));
                let deed = match &**what {
                    "take" => outcome(
                        limiter
                            .check_n("key", *cells)
                            .map(|decision| decision.remaining())
                            .map_err(|error: LimitError| error.retry_after()),
                    ),
                    "peek" => limiter.peek("key").to_string(),
                    "refund" => {
                        limiter.refund("key", *cells);
                        String::new()
                    }
                    "charge" => {
                        limiter.penalize("key", *cells);
                        String::new()
                    }
                    other => panic!("{other}"),
                };
                say(&mut said, *at, what, *cells, &deed);
            }
            (Step::Do { .. }, None) => panic!("no policies"),
        }
    }
    said
}

fn say(said: &mut String, at: u64, what: &str, cells: u64, deed: &str) {
    let cells = if what == "peek" {
        String::new()
    } else {
        cells.to_string()
    };
    let words = format!("{at} {what} {cells} {deed}");
    writeln!(
        said,
        "{}",
        words.split_whitespace().collect::<Vec<_>>().join(" ")
    )
    .unwrap();
}

async fn on_redis(vector: &Vector, redis: &mut MultiplexedConnection, digest: &str) -> String {
    let mut terms: Vec<Term> = Vec::new();
    let mut said = String::new();
    for step in &vector.steps {
        let (at, what, cells) = match step {
            Step::Policies(new) => {
                terms = new
                    .iter()
                    .zip(0..)
                    .map(|((_, quota), id)| term(quota, id))
                    .collect();
                continue;
            }
            Step::Do {
                at, what, cells, ..
            } => (*at, &**what, *cells),
        };
        terms.iter_mut().for_each(|term| term.cells = cells);
        let action = match what {
            "take" => Action::Take { n: 1, least: 1 },
            "peek" => Action::Peek,
            "refund" => Action::Refund,
            "charge" => Action::Charge,
            other => panic!("{other}"),
        };
        let key = script::key(
            "golden",
            crate::key::Seed::Fleet(1, 2).hash_one(&vector.name),
        );
        let command = script::command(digest, &key, action, &terms);
        let now = 1_700_000_000_000_000 + at;
        let reply = call(redis, command, now, terms.len()).await;
        let left = |level: &Level, owed| level.remaining(owed);
        let lines = || terms.iter().zip(reply.levels);
        let deed = match what {
            "take" if reply.granted == 1 => outcome(Ok(lines()
                .map(|(t, owed)| left(&t.level, owed))
                .min()
                .unwrap())),
            "take" => {
                let excess = lines().filter_map(|(t, owed)| t.level.excess(owed, cells));
                let wait = excess.map(|excess| match excess {
                    Excess::Wait(nanos) => Some(Duration::from_nanos(nanos)),
                    Excess::Never => None,
                });
                let waits: Vec<_> = wait.collect();
                let never = waits.contains(&None);
                outcome(Err(if never {
                    None
                } else {
                    waits.into_iter().flatten().max()
                }))
            }
            "peek" => lines()
                .map(|(t, owed)| left(&t.level, owed))
                .min()
                .unwrap()
                .to_string(),
            _ => String::new(),
        };
        say(&mut said, at, what, cells, &deed);
    }
    said
}

fn term(quota: &Quota, id: u32) -> Term {
    Term {
        id,
        level: Level::new(quota).unwrap(),
        burst: quota.burst_size(),
        leasable: 0,
        reserved: 0,
        cells: 0,
        shadow: false,
        on_outage: OnOutage::default(),
    }
}

fn expected(vector: &Vector) -> String {
    let mut lines = String::new();
    for step in &vector.steps {
        if let Step::Do { line, .. } = step {
            writeln!(lines, "{line}").unwrap();
        }
    }
    lines
}

#[test]
fn one_process_decides_every_vector_as_written() {
    let vectors = parse(VECTORS);
    assert!(vectors.len() >= 12);
    for vector in &vectors {
        assert_eq!(
            in_one_process(vector),
            expected(vector),
            "vector {}",
            vector.name
        );
    }
}

#[tokio::test]
async fn every_kind_of_server_decides_every_vector_as_written() {
    let programs = Redis::programs();
    assert!(
        programs.contains(&"redis-server"),
        "no redis-server on this machine"
    );
    let mut decided = BTreeMap::new();
    for program in programs {
        let server = Redis::start_program(program, &[], &[]).await.unwrap();
        let client = Client::open(server.url()).unwrap();
        let mut redis = client.get_multiplexed_async_connection().await.unwrap();
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(script_by_told_time());
        let digest: String = load.query_async(&mut redis).await.unwrap();
        for vector in parse(VECTORS) {
            let said = on_redis(&vector, &mut redis, &digest).await;
            assert_eq!(
                said,
                expected(&vector),
                "vector {} on {program}",
                vector.name
            );
            *decided.entry(program).or_insert(0) += 1;
        }
    }
    assert!(
        decided.values().all(|&vectors| vectors >= 12),
        "{decided:?}"
    );
}

/// Runs a command at a given time.
async fn call(
    redis: &mut MultiplexedConnection,
    command: redis::Cmd,
    now: u64,
    policies: usize,
) -> Reply {
    // The time goes in as two more keys.
    let mut timed = redis::Cmd::new();
    for (index, arg) in command.args_iter().enumerate() {
        let redis::Arg::Simple(arg) = arg else {
            panic!("no cursors")
        };
        match index {
            2 => timed.arg(3),
            _ => timed.arg(arg),
        };
        if index == 3 {
            timed.arg(now / 1_000_000).arg(now % 1_000_000);
        }
    }
    let value: Value = timed.query_async(redis).await.unwrap();
    Reply::read(&value, policies).expect("a reply")
}

/// What the properties in `model` are proved of is what runs.
#[tokio::test]
async fn the_model_of_the_script_is_the_script() {
    use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};

    let server = Redis::start().await.unwrap();
    let client = Client::open(server.url()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let mut load = redis::cmd("SCRIPT");
    load.arg("LOAD").arg(script_by_told_time());
    let digest: String = load.query_async(&mut redis).await.unwrap();

    let policy = (1u64..1_000, 1_000u64..100_000, 1u64..100, any::<bool>());
    let action = prop_oneof![
        (1u64..20, 1u64..20).prop_map(|(n, least)| Action::Take {
            n,
            least: least.min(n)
        }),
        Just(Action::Charge),
        Just(Action::Owe),
        Just(Action::Refund),
        Just(Action::Raise),
        Just(Action::Peek),
    ];
    let step = (0u64..3_000_000, action, proptest::array::uniform3(0u64..12));
    let run = (
        proptest::collection::vec(policy, 1..=3),
        proptest::collection::vec(step, 1..40),
    );
    let mut runner = TestRunner::deterministic();
    for case in 0..100u64 {
        let (policies, steps) = run.new_tree(&mut runner).unwrap().current();
        let key = script::key("model", case);
        let mut model = super::model::Model::default();
        let mut now = 1_700_000_000_000_000;
        let mut terms: Vec<Term> = Vec::new();
        for (id, (count, millis, burst, shadow)) in (0..).zip(policies) {
            // Slow enough that nothing expires while the test runs.
            let period = Duration::from_millis(millis * 1_000);
            let quota = Quota::count(count).per(period).burst(burst);
            terms.push(Term {
                shadow,
                ..term(&quota, id)
            });
        }
        for (gap, action, cells) in steps {
            now += gap;
            for (term, cells) in terms.iter_mut().zip(cells) {
                term.cells = match action {
                    Action::Owe | Action::Raise => cells * term.level.price,
                    _ => cells,
                };
            }
            let command = script::command(&digest, &key, action, &terms);
            let reply = call(&mut redis, command, now, terms.len()).await;
            assert_eq!(
                reply,
                model.call(now, action, &terms),
                "{action:?} by {terms:?}"
            );
        }
    }
}

/// One thing that is done to a key by one or two policies, with quotas by number.
#[derive(Clone, Copy, Debug)]
struct Deed {
    after_us: u64,
    quotas: (usize, Option<usize>),
    action: Action,
    cells: u64,
}

/// Whatever quotas a key comes under and whatever is done to it, the script admits nothing that
/// exact arithmetic refuses, and refuses nothing for longer: the reference is that of one process.
#[tokio::test]
async fn no_history_on_redis_admits_more_or_refuses_longer_than_exact_arithmetic() {
    use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};

    let server = Redis::start().await.unwrap();
    let client = Client::open(server.url()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let mut load = redis::cmd("SCRIPT");
    // The server's own clock runs on, and must not let anything expire.
    let expiry = ", 'PX', string.format('%.0f', life + 1)";
    let script = script_by_told_time();
    assert_eq!(script.matches(expiry).count(), 1);
    load.arg("LOAD").arg(script.replace(expiry, ""));
    let digest: String = load.query_async(&mut redis).await.unwrap();

    // Of three quotas for each case, so that histories stay exact.
    let number = 0..3usize;
    let deed = (
        prop_oneof![3 => Just(0u64), 3 => 0u64..2_000_000, 1 => 0u64..200_000_000_000],
        (number.clone(), proptest::option::of(number)),
        prop_oneof![
            6 => Just(Action::Take { n: 1, least: 1 }),
            1 => Just(Action::Charge),
            1 => Just(Action::Refund),
            2 => Just(Action::Peek),
        ],
        prop_oneof![4 => Just(1u64), 2 => 0u64..2_000, 1 => 0u64..12_000_000],
    );
    let deed = deed.prop_map(|(after_us, quotas, action, cells)| Deed {
        after_us,
        quotas,
        action,
        cells,
    });
    let history = proptest::collection::vec(deed, 10..80);
    let mut runner = TestRunner::deterministic();
    for case in 0..5_000 {
        let deeds = history.new_tree(&mut runner).unwrap().current();
        let key = script::key("exact", case);
        let mut keys = [Reference::with_tick(1_000), Reference::with_tick(1_000)];
        let mut now = 1_700_000_000_000_000;
        for deed in deeds {
            now += deed.after_us;
            keys.iter_mut().for_each(|key| key.advance(now * 1_000));
            // Where less than a tick is left, it is not exact.
            if keys.iter().any(Reference::is_on_the_brink) {
                break;
            }
            let pick =
                |n: usize| QUOTAS[(case as usize + n * (1 + case as usize / 9)) % QUOTAS.len()];
            let quotas = [Some(deed.quotas.0), deed.quotas.1].map(|n| n.map(pick));
            let lines = || {
                (0..)
                    .zip(quotas)
                    .filter_map(|(id, quota)| Some((id, quota?)))
            };
            let terms: Vec<_> = lines()
                .map(|(id, quota)| Term {
                    cells: deed.cells,
                    ..term(&quota, id as u32)
                })
                .collect();
            let command = script::command(&digest, &key, deed.action, &terms);
            let reply = call(&mut redis, command, now, terms.len()).await;
            let context = || format!("case {case}: {deed:?} gets {reply:?}, with {keys:?}");
            match deed.action {
                Action::Take { .. } if reply.granted == 1 => {
                    for (id, quota) in lines() {
                        let decided: &Reference = &keys[id];
                        assert_eq!(decided.decide(&quota, deed.cells), None, "{}", context());
                    }
                    lines().for_each(|(id, quota)| keys[id].charge(&quota, deed.cells));
                }
                Action::Take { .. } => {
                    let mut refused = false;
                    for ((id, quota), (term, level)) in lines().zip(terms.iter().zip(reply.levels))
                    {
                        let most = keys[id].decide_cautiously(&quota, deed.cells);
                        let within = match (term.level.excess(level, deed.cells), most) {
                            (None, _) | (Some(Excess::Never), Some(Refusal::Never)) => true,
                            (Some(Excess::Wait(wait)), Some(Refusal::Wait(most))) => wait <= most,
                            _ => false,
                        };
                        assert!(within, "at most {most:?}: {}", context());
                        refused |= most.is_some();
                    }
                    assert!(refused, "{}", context());
                    if deed.cells > 0 {
                        lines().for_each(|(id, quota)| keys[id].open(&quota));
                    }
                }
                Action::Charge => {
                    lines().for_each(|(id, quota)| keys[id].charge(&quota, deed.cells));
                }
                Action::Refund => lines().for_each(|(id, _)| keys[id].refund(deed.cells)),
                _ => {
                    for ((id, quota), (term, level)) in lines().zip(terms.iter().zip(reply.levels))
                    {
                        let (most, least) = keys[id].left(&quota);
                        let left = term.level.remaining(level);
                        assert!((least..=most).contains(&left), "{}", context());
                    }
                }
            }
        }
    }
}

/// In whole microseconds a cell and not.
const QUOTAS: [Quota; 9] = [
    Quota::count(5).per(crate::HOUR),
    Quota::count(10).per(crate::SECOND).burst(3),
    Quota::count(60).per(crate::MINUTE),
    Quota::count(6_000).per(crate::MINUTE),
    Quota::count(1_000).per(crate::DAY),
    Quota::count(1_000_000).per(crate::SECOND),
    Quota::count(1 << 20).per(crate::SECOND),
    Quota::count(7_000_000).per(crate::MINUTE),
    Quota::count(300_000).per(crate::SECOND).burst(100),
];
