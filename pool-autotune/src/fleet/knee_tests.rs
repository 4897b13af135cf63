//! The knee, in virtual time: whole processes, their pools, and a database that has one.

use std::io;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep};

use super::fleet_tests::{Server, Session, Shared, join};
use super::knee::{Knee, REPORTED, Sums};
use super::store::Settings;
use crate::adapter::{Adapter, Checked, PutBack};
use crate::tuner::Verdict;
use crate::{Autotuned, Mode};

const SECOND: Duration = Duration::from_secs(1);

/// A pool of sessions.
#[derive(Clone)]
struct Pool {
    server: Shared,
    id: u64,
    idle: Arc<Mutex<Vec<Session>>>,
    size: Arc<AtomicUsize>,
}

impl Pool {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self, session: Session) -> Held {
        Held {
            session: Some(session),
            pool: self.clone(),
        }
    }
}

/// A session out of the pool.
struct Held {
    session: Option<Session>,
    pool: Pool,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.pool.idle().extend(self.session.take());
    }
}

impl Adapter for Pool {
    type Connection = Held;
    type Error = io::Error;

    fn max_size(&self) -> usize {
        60
    }

    fn size(&self) -> usize {
        self.size.load(Relaxed)
    }

    fn idle(&self) -> Option<usize> {
        Some(Self::idle(self).len())
    }

    async fn checkout(&self) -> Result<Checked<Held>, io::Error> {
        if let Some(held) = self.checkout_idle().await? {
            return Ok(held);
        }
        let session = Session::open(&self.server, self.id).await;
        self.size.fetch_add(1, Relaxed);
        Ok(Checked::opened(self.held(session)))
    }

    async fn checkout_idle(&self) -> Result<Option<Checked<Held>>, io::Error> {
        let idle = Self::idle(self).pop();
        Ok(idle.map(|session| Checked::reused(self.held(session))))
    }

    fn close_idle(&self, count: usize) -> PutBack {
        let mut idle = Self::idle(self);
        let count = idle.len().min(count);
        idle.drain(..count);
        self.size.fetch_sub(count, Relaxed);
        PutBack::Done
    }
}

/// What the queries share: so many can run at full speed, and each one more makes all of them slower.
#[derive(Clone, Copy, Debug)]
struct Database {
    /// Seconds of a query that runs alone, on average.
    work: f64,
    cores: f64,
    /// The part of its throughput that each query beyond the cores costs.
    contention: f64,
}

impl Database {
    /// Queries a second, with so many under way.
    fn throughput(&self, running: f64) -> f64 {
        let beyond = (running - self.cores).max(0.0);
        running.min(self.cores) / (1.0 + self.contention * beyond) / self.work
    }

    /// The part of its own speed that each query has.
    fn speed(&self, running: usize) -> f64 {
        let running = running.max(1) as f64;
        self.throughput(running) * self.work / running
    }

    /// The most queries a second with as many connections.
    fn best(&self, sizes: RangeInclusive<usize>) -> f64 {
        let each = sizes.map(|size| self.throughput(size as f64));
        each.fold(0.0, f64::max)
    }
}

/// With the best size for ten connections.
const KNEE: Database = Database {
    work: 0.01,
    cores: 8.0,
    contention: 0.01,
};

/// Each connection pays.
const NO_KNEE: Database = Database {
    work: 0.04,
    cores: f64::INFINITY,
    contention: 0.0,
};

/// What a fleet did.
#[derive(Debug)]
struct Played {
    /// Queries a second, in the second half and in all.
    late: f64,
    all: f64,
    /// Sessions in the second half, on average.
    sessions: f64,
    most: u32,
    knee: Option<usize>,
    /// How often anything became of it.
    changes: i64,
}

/// Some processes, each with more users than it may have connections, and those with one query after another.
async fn play(
    database: Database,
    processes: u32,
    total: u32,
    knee: bool,
    lasts: Duration,
) -> Played {
    play_in(Mode::Enforce, database, processes, total, knee, lasts).await
}

async fn play_in(
    mode: Mode,
    database: Database,
    processes: u32,
    total: u32,
    knee: bool,
    lasts: Duration,
) -> Played {
    let server = Shared(Arc::new(Mutex::new(Server::new(total))));
    let running = Arc::<AtomicUsize>::default();
    let done = Arc::<AtomicU64>::default();
    let mut users = Vec::new();
    let mut fleet = Vec::new();
    for id in 1..=i64::from(processes) {
        let settings = Settings {
            knee,
            ..Settings::default()
        };
        let budget = join(&server, id, settings);
        budget.set_mode(mode);
        let pool = Pool {
            server: server.clone(),
            id: id as u64,
            idle: Arc::default(),
            size: Arc::default(),
        };
        let pool = Autotuned::builder(pool).budget(&budget).bounds(1..=60);
        let pool = pool.build().expect("valid settings");
        for user in 0..(800 / processes).min(90) {
            let mut random = SmallRng::seed_from_u64(1_000 * id as u64 + u64::from(user));
            let (pool, running, done) = (pool.clone(), Arc::clone(&running), Arc::clone(&done));
            users.push(tokio::spawn(async move {
                // What a timer was late for.
                let mut ahead = 0.0;
                loop {
                    let Ok(_held) = pool.get().await else {
                        sleep(SECOND / 10).await;
                        continue;
                    };
                    let chance: f64 = random.random_range(1e-6..1.0);
                    let mut left = -chance.ln() * database.work - ahead;
                    running.fetch_add(1, Relaxed);
                    // No timer is shorter than a nanosecond.
                    while left > 1e-7 {
                        let speed = database.speed(running.load(Relaxed));
                        let begun = Instant::now();
                        sleep(Duration::from_secs_f64(left / speed).min(SECOND / 10)).await;
                        left -= begun.elapsed().as_secs_f64() * speed;
                    }
                    ahead = -left;
                    running.fetch_sub(1, Relaxed);
                    done.fetch_add(1, Relaxed);
                }
            }));
        }
        fleet.push((budget, pool));
    }
    sleep(lasts / 2).await;
    let half = done.load(Relaxed);
    let sessions = || {
        let mut server = server.lock();
        server.count();
        server.session_millis
    };
    let before = sessions();
    sleep(lasts / 2).await;
    let seconds = lasts.as_secs_f64();
    let changes = server.lock().knee.version;
    let played = Played {
        late: (done.load(Relaxed) - half) as f64 / (seconds / 2.0),
        all: done.load(Relaxed) as f64 / seconds,
        sessions: (sessions() - before) as f64 / (500.0 * seconds),
        most: server.lock().most,
        knee: fleet[0].0.snapshot().knee(),
        changes,
    };
    let at_knee = |pool: &Autotuned<Pool>| matches!(pool.verdict(), Verdict::AtKnee(_));
    if played.knee.is_some() {
        assert!(fleet.iter().any(|(_, pool)| at_knee(pool)), "{played:?}");
    }
    users.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(played.most <= total, "{played:?}");
    played
}

async fn ends_near_its_best_size(processes: u32, total: u32) {
    let lasts = 400 * SECOND;
    let without = play(KNEE, processes, total, false, lasts).await;
    let with = play(KNEE, processes, total, true, lasts).await;
    // Each process has one connection at least.
    let best = KNEE.best(processes as usize..=total as usize);
    println!(
        "{processes} processes, at best {best:.0}/s\n  without {without:?}\n  with    {with:?}"
    );
    assert_eq!(without.knee, None);
    assert!(with.late >= 0.9 * best, "{with:?}");
    assert!(with.late >= 1.1 * without.late, "{with:?} {without:?}");
    assert!(with.sessions < without.sessions, "{with:?} {without:?}");
}

#[tokio::test(start_paused = true)]
async fn a_saturated_database_ends_near_its_best_size_with_two_processes() {
    ends_near_its_best_size(2, 100).await;
}

#[tokio::test(start_paused = true)]
async fn a_saturated_database_ends_near_its_best_size_with_ten_processes() {
    ends_near_its_best_size(10, 100).await;
}

#[tokio::test(start_paused = true)]
async fn a_saturated_database_ends_near_its_best_size_with_forty_processes() {
    ends_near_its_best_size(40, 120).await;
}

#[tokio::test(start_paused = true)]
async fn a_database_without_a_knee_loses_nothing() {
    for (processes, total) in [(2, 20), (10, 30), (40, 90)] {
        let lasts = 200 * SECOND;
        let without = play(NO_KNEE, processes, total, false, lasts).await;
        let with = play(NO_KNEE, processes, total, true, lasts).await;
        println!("{processes} processes\n  without {without:?}\n  with    {with:?}");
        assert!(with.all >= 0.98 * without.all, "{with:?} {without:?}");
        assert_eq!(with.knee, None);
    }
}

#[tokio::test(start_paused = true)]
async fn processes_that_only_report_try_nothing() {
    let lasts = 120 * SECOND;
    let acts = play_in(Mode::Enforce, KNEE, 2, 200, true, lasts).await;
    assert!(acts.changes > 0, "{acts:?}");
    let reports = play_in(Mode::Recommend, KNEE, 2, 200, true, lasts).await;
    assert_eq!((reports.changes, reports.knee), (0, None), "{reports:?}");
}

/// What a generator of situations makes up: a database that changes, its noise, and what there is to share.
#[derive(Clone, Copy, Debug)]
struct Situation {
    databases: [Database; 2],
    total: usize,
    /// The standard deviation of throughput from slot to slot, as a part of it.
    noise: f64,
    /// The part of the processes, in work, that does not take part.
    absent: f64,
}

impl Situation {
    fn new(random: &mut SmallRng) -> Self {
        let work = [0.002, 0.01, 0.05][random.random_range(0..3)];
        let mut database = || Database {
            work,
            cores: [1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 1e9][random.random_range(0..7)],
            contention: [0.0, 0.002, 0.01, 0.03][random.random_range(0..4)],
        };
        Self {
            databases: [database(), database()],
            total: [10, 30, 100, 400][random.random_range(0..4)],
            noise: [0.0, 0.01, 0.03][random.random_range(0..3)],
            absent: [0.0, 0.0, 0.15, 0.5][random.random_range(0..4)],
        }
    }
}

/// What became of a situation.
#[derive(Debug)]
struct Judged {
    /// Queries served in each half, as a part of those without the knee.
    parts: [f64; 2],
    /// At the end of each half, as a part of the best.
    of_best: [f64; 2],
    caps: [i64; 2],
    /// The longest time in seconds below three quarters of what it would be without, in each half.
    below: [i64; 2],
}

/// Seconds of each half.
const HALF: i64 = 1_200;

fn plays(situation: &Situation, random: &mut SmallRng) -> Judged {
    let mut knee = Knee::default();
    let mut judged = Judged {
        parts: [0.0; 2],
        of_best: [0.0; 2],
        caps: [0; 2],
        below: [0; 2],
    };
    let mut did = [0_i64; REPORTED];
    for half in 0..2 {
        let (mut served, mut below) = (0.0, 0);
        let without = situation.databases[half].throughput(situation.total as f64);
        for second in 1..=HALF {
            let now = 1_000 * (HALF * half as i64 + second);
            let all = situation.total as f64;
            let size = knee.cap(now).map_or(all, |cap| all.min(cap as f64));
            let low = (size * knee.low as f64 / 1_000.0).round().max(1.0);
            let slot = knee.slot as f64 / 1_000.0;
            let mut noisy = |size: f64| {
                let normal: f64 = (0..12).map(|_| random.random_range(-0.5..0.5)).sum();
                situation.databases[half].throughput(size) * (1.0 + situation.noise * normal)
            };
            let runs = knee.is_open == 1 && (0..4 * knee.slot).contains(&(now - knee.trial));
            let rate = situation.databases[half].throughput(size);
            let serves = match runs {
                true => (rate + situation.databases[half].throughput(low)) / 2.0,
                false => rate,
            };
            served += serves;
            below = if serves < 0.75 * without {
                below + 1
            } else {
                0
            };
            judged.below[half] = judged.below[half].max(below);
            did[0] = (1_000.0 * size) as i64;
            (did[1], did[2]) = (did[0], (1_000.0 * rate) as i64);
            if knee.is_open == 1 && now >= knee.trial + 4 * knee.slot && did[3] != knee.trial {
                // Those that are absent are not kept back.
                let absent = size * situation.absent;
                let present = |size: f64| noisy(size + absent) * size / (size + absent);
                let sizes = [size, low].map(|size| size * (1.0 - situation.absent));
                let [x_high, x_low] = sizes.map(present).map(|x| (x * slot) as i64);
                let [b_high, b_low] = sizes.map(|size| (1_000.0 * size * slot) as i64);
                let left = (1_000.0 * (sizes[1] + absent)) as i64;
                let took_part = (did[0] as f64 * (1.0 - situation.absent)) as i64;
                did[3] = knee.trial;
                did[4..].copy_from_slice(&[x_high, x_low, b_high, b_low, left]);
                knee = next(&knee, now, did, took_part, situation.total);
            } else {
                knee = next(&knee, now, did, 0, situation.total);
            }
            assert!(
                knee.cap >= 0 && knee.cap <= situation.total as i64,
                "{knee:?}"
            );
        }
        judged.parts[half] = served / without / HALF as f64;
        judged.caps[half] = knee.cap;
        let end = knee.cap(1_000 * HALF * (half as i64 + 1));
        let size = end.map_or(situation.total, |cap| cap.min(situation.total));
        judged.of_best[half] = situation.databases[half].throughput(size as f64)
            / situation.databases[half].best(1..=situation.total);
    }
    judged
}

fn next(knee: &Knee, now: i64, did: [i64; REPORTED], took_part: i64, total: usize) -> Knee {
    let mut sums = did;
    sums[3] = took_part;
    let sums = Sums::from_numbers(&sums).expect("nine");
    knee.next(now, &sums, 10, total as i64, 6_000)
        .unwrap_or(*knee)
}

#[test]
fn in_random_situations_the_fleet_loses_nothing_and_ends_near_the_best_size() {
    const SITUATIONS: u64 = 3_000;
    let (mut near, mut far, mut resolved, mut served) = (0, 0, 0, [0.0; 2]);
    let (mut lower, mut longest) = (0, Vec::new());
    for seed in 0..SITUATIONS {
        let mut random = SmallRng::seed_from_u64(seed);
        let situation = Situation::new(&mut random);
        let judged = plays(&situation, &mut random);
        // Nothing is known at first, and nothing changes: experiments cost next to nothing.
        assert!(judged.parts[0] >= 0.97, "{seed} {situation:?} {judged:?}");
        // What was right may be wrong on the database of the second half, until it is found out.
        far += u32::from(judged.parts[1] < 0.75);
        lower += u32::from(judged.parts[1] < 0.9);
        longest.push(judged.below[1]);
        served
            .iter_mut()
            .zip(judged.parts)
            .for_each(|(sum, part)| *sum += part);
        // With throughput that tells two sizes apart, and queries that end within a slot or two.
        let at_first = situation.databases[0].throughput(situation.total as f64);
        let is_resolved = at_first >= 100.0 && situation.total as f64 / at_first <= 2.0;
        if is_resolved && situation.absent < 0.2 {
            resolved += 1;
            near += u32::from(judged.of_best[0] >= 0.85);
        }
    }
    let served = served.map(|sum| sum / SITUATIONS as f64);
    longest.sort_unstable_by(|a, b| b.cmp(a));
    println!("{near} of {resolved} near the best, served {served:?} as much");
    println!("on another database {far} below 75 %, {lower} below 90 %");
    let over = [60, 120, 180, 300, 600].map(|most| longest.iter().filter(|&&s| s > most).count());
    println!(
        "below 75 % for {} s at the longest, for 1, 2, 3, 5, 10 min: {over:?}",
        longest[0]
    );
    assert!(near * 100 >= resolved * 95, "{near} of {resolved}");
    assert!(far * 500 <= SITUATIONS as u32, "{far}");
    assert!(lower * 100 <= SITUATIONS as u32, "{lower}");
    assert!(over[1] * 50 <= SITUATIONS as usize, "{over:?}");
    assert!(served.iter().all(|&part| part >= 1.2), "{served:?}");
}

/// What ten processes report that have all of 100 connections in use, where a trial has shown that half of them
/// earn nothing.
fn useless(knee: &Knee) -> Sums {
    let trial = [100_000, 1_000, 1_000, 200_000, 100_000, 50_000];
    let mut did = [100_000, 100_000, 1_000_000, 0, 0, 0, 0, 0, 0];
    if knee.trial > 0 {
        did[3..].copy_from_slice(&trial);
    }
    Sums::from_numbers(&did).expect("nine")
}

/// Lets time pass until a trial has begun, and says when.
fn until_it_tries(knee: &mut Knee, from: i64, members: i64) -> i64 {
    let mut now = from;
    while knee.is_open == 0 {
        now += 1_000;
        assert!(now < from + 600_000, "{knee:?}");
        let sums = useless(&Knee::default());
        *knee = knee.next(now, &sums, members, 100, 6_000).unwrap_or(*knee);
    }
    now
}

#[test]
fn a_trial_in_which_processes_join_or_leave_shows_nothing() {
    for (members, is_known) in [(10, true), (9, false), (11, false), (0, false)] {
        let mut knee = Knee::default();
        let end = until_it_tries(&mut knee, 1_000_000, 10) + 60_000;
        let next = knee.next(end, &useless(&knee), members, 100, 6_000);
        let next = next.expect("the trial has ended");
        assert_eq!(next.cap > 0, is_known, "{members}");
    }
}

#[test]
fn what_a_clock_that_was_set_back_left_is_forgotten() {
    let mut knee = Knee::default();
    let end = until_it_tries(&mut knee, 1_000_000_000, 10) + 60_000;
    let open = knee;
    knee = knee
        .next(end, &useless(&knee), 10, 100, 6_000)
        .expect("it ended");
    assert!(knee.cap > 0 && knee.until > end);
    for knee in [open, knee] {
        let hour = end - 3_600_000;
        let next = knee
            .next(hour, &useless(&knee), 10, 100, 6_000)
            .expect("it is forgotten");
        assert_eq!(
            (next.version, next.cap, next.is_open),
            (knee.version + 1, 0, 0)
        );
        // And begun anew.
        let mut next = next;
        assert!(until_it_tries(&mut next, hour, 10) < hour + 120_000);
        // By a second is nothing: clocks are corrected.
        let corrected = knee.next(end - 1_000, &useless(&knee), 10, 100, 6_000);
        assert!(corrected.is_none_or(|next| next.cap == knee.cap || knee.is_open == 1));
    }
}

#[test]
fn no_numbers_that_a_store_may_hold_are_too_much() {
    let mut random = SmallRng::seed_from_u64(1);
    let mut any =
        || [i64::MIN, i64::MAX, -1, 0, 1, 500, 1_000, 1_700_000_000_000][random.random_range(0..8)];
    for _ in 0..100_000 {
        let mut numbers: Vec<i64> = (0..13).map(|_| any()).collect();
        numbers[0] = numbers[0].clamp(0, 1_000);
        let knee = Knee::from_numbers(&numbers);
        let sums = [0; REPORTED].map(|_: i64| any() / 1_000_000);
        let sums = Sums::from_numbers(&sums).expect("nine");
        let now = 1_700_000_000_000;
        if let Some(next) = knee.next(now, &sums, 10, 100, 6_000) {
            assert!(
                next.cap(now).is_none_or(|cap| cap > 0),
                "{knee:?} {sums:?} {next:?}"
            );
        }
        let _ = super::trial::Trial::announced(&knee, now, i64::MIN);
    }
}
