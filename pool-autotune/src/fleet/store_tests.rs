//! What every store has to do, whatever keeps it: what the reference in Rust does.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::kernel::{Count, Mutant, Store, World};
use super::pod::Beat;
use super::shares::{Claim, shares};

/// A store on a real server, with a clock, an identity and sessions that the test makes up.
pub(super) trait Subject {
    /// Whether a table that is new gives no rights for one lease.
    const SETTLES: bool;
    /// Whether sessions that no row counts are looked for at every beat.
    const LOOKS: bool;
    /// What its clock shows at the moment 0, in ms.
    const EPOCH: i64;

    async fn beat(&mut self, made_up: &MadeUp<'_>, id: u64, beat: &Beat, claim: &Claim) -> Taken;
}

/// What a store is shown.
pub(super) struct MadeUp<'a> {
    pub(super) now: i64,
    pub(super) boot: u64,
    /// What the server has.
    pub(super) room: i32,
    pub(super) count: Count<'a>,
    /// What the process did, and what is to become of the knee.
    pub(super) report: &'a [i64],
    pub(super) knee: &'a [i64],
}

/// What a store made of a beat.
pub(super) struct Taken {
    pub(super) grant: u32,
    pub(super) is_late: bool,
    pub(super) total: u32,
    pub(super) reserve: u32,
    /// What the policy gives this process.
    pub(super) share: u32,
    /// Processes, the numbers of their last beats, and what is counted for them.
    pub(super) rows: Vec<(u64, u64, u32)>,
    pub(super) sum: u32,
    /// What became of the knee, and what all did.
    pub(super) knee: Vec<i64>,
    pub(super) sums: Vec<i64>,
}

pub(super) const TTL: i64 = 15_000;
pub(super) const DIALS: u32 = 2;
pub(super) const DIAL_FOR: i64 = 5_000;

struct Simulated {
    cap: u32,
    bound: u32,
    seq: u64,
    sessions: u32,
}

/// Plays beats of five processes at random, and compares each with the reference. Returns what differed
/// first, if anything did.
pub(super) async fn differs<S: Subject>(
    subject: &mut S,
    seed: u64,
    steps: usize,
) -> Option<String> {
    let mut random = SmallRng::seed_from_u64(seed);
    let (mut now, mut boot, mut swept, mut room) = (0_i64, 0_u64, i64::MIN / 2, 20_i32);
    let mut store = Store {
        total: 20,
        reserve: 2,
        boot: 0,
        epoch: 1,
        settle_until: i64::MIN,
        excess: 0,
        counted: 0,
        rows: Vec::new(),
    };
    let mut pods: HashMap<u64, Simulated> = HashMap::new();
    for step in 0..steps {
        now += [0, 300, 1_000, 1_000, 4_000, 9_000][random.random_range(0..6)];
        if random.random_ratio(1, 25) {
            boot += 1;
            // Its clock may be behind.
            now -= random.random_range(0..30_000);
            pods.values_mut().for_each(|pod| pod.sessions = 0);
        }
        if random.random_ratio(1, 20) {
            room = random.random_range(8..25);
        }
        let id = random.random_range(1..6_u64);
        let pod = pods.entry(id).or_insert(Simulated {
            cap: 0,
            bound: 0,
            seq: 0,
            sessions: 0,
        });
        // Whatever a process may send; the invariants are the model's to check.
        pod.sessions = random.random_range(0..=pod.cap.max(1));
        if random.random_ratio(1, 3) {
            pod.cap = random.random_range(0..=pod.cap);
        }
        pod.bound = pod.sessions + random.random_range(0..3);
        let seq = match random.random_ratio(1, 6) {
            true => random.random_range(0..=pod.seq),
            false => pod.seq + 1,
        };
        pod.seq = pod.seq.max(seq);
        let own = pod.sessions;
        let beat = Beat {
            seq,
            cap: pod.cap,
            bound: pod.bound,
            dialing: random.random_range(0..3),
        };
        let need = random.random_range(0..12);
        let claim = Claim {
            weight: 1000,
            floor: 1,
            need,
            want: need + random.random_range(0..5),
            held: 0,
        };
        let sessions: Vec<(u64, u32)> = pods
            .iter()
            .map(|(&id, pod)| (id, pod.sessions))
            .chain([(99, random.random_range(0..4))])
            .collect();
        let count = match S::LOOKS {
            true => Count::Of(&sessions, now),
            // Where a process counts, it does so before it beats, or cannot.
            false => match random.random_range(0..8) {
                0 => Count::Own(own),
                1 => Count::None,
                2 => Count::Of(&sessions, i64::MIN),
                _ => Count::Of(&sessions, now - random.random_range(0..3_000)),
            },
        };
        if S::SETTLES && step == 0 {
            store.settle_until = now + TTL;
            store.boot = boot;
            store.counted = now;
        }
        let made_up = MadeUp {
            now,
            boot,
            room,
            count,
            report: &[],
            knee: &[],
        };
        // Where the store does not see that the server is another, it is told what that has.
        let is_smaller = !S::LOOKS && i64::from(room) * 10 < i64::from(store.total) * 9;
        let taken = subject.beat(&made_up, id, &beat, &claim).await;
        (store.total, store.reserve) = (taken.total, taken.reserve);
        let new_server = store.boot != boot || is_smaller;
        let sweeps = now >= swept + 1_000 || new_server;
        let world = World {
            now,
            boot,
            ttl: TTL,
            count,
            sweeps,
        };
        let most = taken.share.min(claim.want);
        let reply = store.beat(id, &beat, (DIALS, DIAL_FOR), &world, |_| most, Mutant::None);
        if sweeps && !reply.is_late {
            swept = now;
        }
        let mut rows = taken.rows.clone();
        rows.sort_unstable();
        let mut wanted: Vec<(u64, u64, u32)> = (store.rows.iter())
            .map(|row| (row.id, row.seq, row.cap))
            .collect();
        wanted.sort_unstable();
        let sum: u32 = wanted.iter().map(|row| row.2).sum();
        // What was swept by others shows in the sum at the next sweep.
        let is_sum = taken.sum == sum || taken.is_late;
        if taken.grant != reply.grant || taken.is_late != reply.is_late || rows != wanted || !is_sum
        {
            return Some(format!(
                "step {step}, {id} at {now} with {beat:?} and {count:?}: {}, {}, {rows:?} (sum {}), \
                 expected {reply:?}, {wanted:?}",
                taken.grant, taken.is_late, taken.sum
            ));
        }
        if !taken.is_late
            && let Some(pod) = pods.get_mut(&id)
        {
            pod.cap = taken.grant;
        }
    }
    None
}

/// What a store keeps of the knee, and what it makes of it.
pub(super) async fn keeps_the_knee<S: Subject>(subject: &mut S) {
    /// When a new table has settled.
    const START: i64 = 2 * TTL;
    let claim = Claim {
        weight: 1000,
        floor: 1,
        need: 8,
        want: 8,
        held: 0,
    };
    let mut seqs = [0; 3];
    let mut caps = [0; 3];
    let mut beat = async |at: i64, boot: u64, id: u64, report: &[i64], knee: &[i64]| {
        let made_up = MadeUp {
            now: at,
            boot,
            room: 20,
            count: Count::Of(&[(99, 0)], at),
            report,
            knee,
        };
        let slot = id as usize;
        seqs[slot] += 1;
        let beat = Beat {
            seq: seqs[slot],
            cap: caps[slot],
            bound: caps[slot],
            dialing: 0,
        };
        let taken = subject.beat(&made_up, id, &beat, &claim).await;
        caps[slot] = taken.grant;
        taken
    };
    let did = [
        [1_000, 500, 2_000, 0, 0, 0, 0, 0, 0],
        [1_000, 500, 2_000, 555_000_000_000, 10, 20, 30, 40, 5_000],
        [100, 0, 50, 554, 1, 1, 1, 1, 1],
    ];
    let clock = |at: i64| at + S::EPOCH;
    beat(0, 0, 1, &did[0], &[]).await;
    beat(START, 0, 1, &did[0], &[]).await;
    beat(START + 100, 0, 2, &did[2], &[]).await;
    let taken = beat(START + 1_100, 0, 1, &did[0], &[]).await;
    assert_eq!(
        (taken.share, taken.knee),
        (8, vec![]),
        "all may have what they want"
    );
    assert_eq!(taken.sums[..4], [1_100, 500, 2_050, 0]);
    // Ten, as long as that holds.
    let knee = |version: i64, cap: i64| {
        let until = clock(START + 60_000);
        [
            version,
            cap,
            until,
            555_000_000_000,
            1,
            1_000,
            500,
            1,
            0,
            5_000,
            0,
        ]
    };
    let taken = beat(START + 1_200, 0, 2, &did[2], &knee(2, 3)).await;
    assert!(taken.knee.is_empty(), "it was not the next");
    let taken = beat(START + 1_300, 0, 2, &did[2], &knee(1, 10)).await;
    assert_eq!(taken.knee, knee(1, 10));
    let taken = beat(START + 1_400, 0, 1, &did[1], &knee(1, 3)).await;
    assert_eq!(taken.knee, knee(1, 10), "another was first");
    let taken = beat(START + 2_200, 0, 1, &did[1], &[]).await;
    assert_eq!((taken.share, taken.grant), (5, 5), "half of it");
    assert_eq!(taken.total, 20);
    assert_eq!(
        taken.sums,
        [1_100, 500, 2_050, 1_000, 10, 20, 30, 40, 13_000]
    );
    let taken = beat(START + 2_300, 0, 2, &did[2], &[]).await;
    assert_eq!(taken.grant, 5);
    // Both beat, and it no longer holds.
    for at in [10_000, 20_000, 30_000, 40_000, 50_000, 59_500] {
        for id in [1, 2] {
            let taken = beat(START + at, 0, id, &did[0], &[]).await;
            assert_eq!(taken.grant, 5);
        }
    }
    for id in [1, 2] {
        let taken = beat(START + 60_600, 0, id, &did[0], &[]).await;
        assert_eq!(taken.grant, 8);
        assert_eq!(taken.knee, knee(1, 10), "it is for the processes to forget");
    }
    let taken = beat(START + 62_000, 1, 1, &did[0], &[]).await;
    assert!(taken.knee.is_empty(), "the server is another");
}

/// Compares what a store gives with exact arithmetic, in 400 random cases.
pub(super) async fn gives_exact_shares(mut give: impl AsyncFnMut(u32, &[Claim]) -> Vec<u32>) {
    let mut runner = TestRunner::deterministic();
    let weight = prop_oneof![Just(1000_u32), Just(500), Just(3000), 500..3000_u32];
    let claim = (weight, 0..5_u32, 0..60_u32, 0..60_u32, 0..60_u32);
    let cases = (1..200_u32, prop::collection::vec(claim, 1..40));
    for _ in 0..400 {
        let (total, claims) = cases.new_tree(&mut runner).expect("a case").current();
        let claims: Vec<Claim> = claims
            .into_iter()
            .map(|(weight, floor, need, more, held)| Claim {
                weight,
                floor,
                need,
                want: need + more,
                held,
            })
            .collect();
        let given = give(total, &claims).await;
        let exact = shares(total, &claims);
        // Which of two gets a unit may differ where the remainders are the same to fifteen digits.
        let is_close = given.iter().zip(&exact).all(|(a, b)| a.abs_diff(*b) <= 1);
        let (sum, exact_sum): (u32, u32) = (given.iter().sum(), exact.iter().sum());
        assert!(
            is_close && given.len() == exact.len() && sum == exact_sum,
            "{total} among {claims:?}: {given:?}, exactly {exact:?}"
        );
    }
}
