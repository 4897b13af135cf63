//! A fleet in virtual time: what runs in each process, against the reference of the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::beats;
use super::budget::{Budget, Inner, Kind};
use super::jitter::jitter;
use super::kernel::{self, Count, Mutant, World};
use super::knee::{Knee, REPORTED, Sums};
use super::pod::{Pod, Terms};
use super::shares::{Claim, shares};
use super::store::{Ask, Reply, Settings, Store};
use super::{BudgetError, Member};
use crate::Mode;

/// The server: its sessions, and the table.
pub(super) struct Server {
    start: Instant,
    table: kernel::Store,
    claims: HashMap<u64, Claim>,
    shares: HashMap<u64, u32>,
    is_stale: bool,
    swept: i64,
    sessions: HashMap<u64, u32>,
    open: u32,
    pub(super) most: u32,
    /// Summed up over milliseconds since the start.
    pub(super) session_millis: u64,
    changed: Instant,
    pub(super) knee: Knee,
    reports: HashMap<u64, [i64; REPORTED]>,
    pub(super) beats: u64,
    refreshes: u64,
    /// Beats in each second.
    each_second: Vec<u64>,
    listeners: HashMap<u64, Weak<Inner>>,
    wakes: u64,
}

impl Server {
    pub(super) fn new(total: u32) -> Self {
        Self {
            start: Instant::now(),
            table: kernel::Store {
                total,
                reserve: (total / 32).max(2),
                boot: 0,
                epoch: 1,
                settle_until: 0,
                excess: 0,
                counted: 0,
                rows: Vec::new(),
            },
            claims: HashMap::new(),
            shares: HashMap::new(),
            is_stale: true,
            swept: -1_000,
            sessions: HashMap::new(),
            open: 0,
            most: 0,
            session_millis: 0,
            changed: Instant::now(),
            knee: Knee::default(),
            reports: HashMap::new(),
            beats: 0,
            refreshes: 0,
            each_second: Vec::new(),
            listeners: HashMap::new(),
            wakes: 0,
        }
    }

    pub(super) fn count(&mut self) {
        let passed = std::mem::replace(&mut self.changed, Instant::now()).elapsed();
        self.session_millis += u64::from(self.open) * passed.as_millis() as u64;
    }

    fn opened(&mut self, id: u64) {
        self.count();
        *self.sessions.entry(id).or_default() += 1;
        self.open += 1;
        self.most = self.most.max(self.open);
    }

    fn closed(&mut self, id: u64) {
        self.count();
        *self.sessions.entry(id).or_default() -= 1;
        self.open -= 1;
    }

    fn for_shares(&self) -> u32 {
        let kept = self.table.reserve.max(self.table.excess);
        let all = self.table.total.saturating_sub(kept);
        let knee = self.knee.cap(self.now());
        knee.map_or(all, |knee| all.min(knee as u32))
    }

    fn now(&self) -> i64 {
        (Instant::now() - self.start).as_millis() as i64
    }

    /// What all report.
    fn sums(&self, now: i64) -> Option<Sums> {
        let mut sums = [0; REPORTED];
        for row in self.table.rows.iter() {
            let report = self.reports.get(&row.id).filter(|_| row.expires >= now);
            let did = report.copied().unwrap_or_default();
            let is_of_trial = report.is_some() && did[3] == self.knee.trial;
            (0..3).for_each(|i| sums[i] += did[i]);
            if is_of_trial {
                sums[3] += did[0];
                (4..REPORTED).for_each(|i| sums[i] += did[i]);
            } else {
                sums[REPORTED - 1] += i64::from(row.cap) * 1_000;
            }
        }
        Sums::from_numbers(&sums)
    }

    /// Makes the shares anew, also for `me`, which may have no row yet.
    fn refresh(&mut self, me: u64, now: i64) {
        let rows = self.table.rows.iter();
        let others = rows.filter(|row| row.expires >= now && row.id != me);
        let ids: Vec<u64> = others.map(|row| row.id).chain([me]).collect();
        let claims: Vec<Claim> = ids.iter().map(|id| self.claims[id]).collect();
        let given = shares(self.for_shares(), &claims);
        self.shares = ids.into_iter().zip(given).collect();
        self.is_stale = false;
        self.refreshes += 1;
    }

    /// Wakes those that hold more than their shares, as many as it takes to give the others theirs.
    fn wake(&mut self, me: u64, now: i64) {
        let rows = self.table.rows.iter().filter(|row| row.expires >= now);
        let mut holders = Vec::new();
        let counted: u32 = self.table.rows.iter().map(|row| row.cap).sum();
        let mut owed = i64::from(counted) - i64::from(self.for_shares());
        for row in rows {
            let share = self.shares.get(&row.id).copied().unwrap_or(row.cap);
            let over = i64::from(row.cap) - i64::from(share);
            owed += (-over).max(0);
            if over > 0 && row.id != me {
                holders.push((over, row.id));
            }
        }
        holders.sort_unstable_by(|a, b| b.cmp(a));
        for (over, id) in holders.into_iter().take(100) {
            if owed <= 0 {
                break;
            }
            owed -= over;
            self.wakes += 1;
            if let Some(budget) = self.listeners.get(&id).and_then(Weak::upgrade) {
                budget.hurry.notify_one();
            }
        }
    }

    fn beat(&mut self, id: u64, ask: &Ask<'_>) -> Reply {
        self.beats += 1;
        let now = self.now();
        let second = (now / 1_000) as usize;
        self.each_second
            .resize(self.each_second.len().max(second + 1), 0);
        self.each_second[second] += 1;
        let sweeps = now >= self.swept + 1_000;
        let sessions: Vec<(u64, u32)> = match sweeps {
            true => self.sessions.iter().map(|(&id, &n)| (id, n)).collect(),
            false => vec![(id, self.sessions.get(&id).copied().unwrap_or(0))],
        };
        let held = self.table.rows.iter().find(|row| row.id == id);
        let claim = Claim {
            weight: (ask.settings.weight * 1000.0) as u32,
            floor: ask.demand.floor as u32,
            need: ask.demand.need as u32,
            want: ask.demand.want as u32,
            held: held.map_or(0, |row| row.cap),
        };
        let is_new = self.claims.insert(id, claim) != Some(claim);
        self.is_stale |= is_new;
        self.reports.insert(id, ask.report);
        if let Some(knee) = ask
            .knee
            .filter(|next| next.version == self.knee.version + 1)
        {
            self.knee = knee;
            self.is_stale = true;
        }
        if sweeps {
            self.swept = now;
            if self.is_stale {
                self.refresh(id, now);
            }
            self.wake(id, now);
        }
        let sums = sweeps.then(|| self.sums(now));
        let share = self.shares.get(&id).copied().unwrap_or(claim.floor);
        let share = share.min(claim.want);
        let world = World {
            now,
            boot: 0,
            ttl: ask.terms.ttl.as_millis() as i64,
            count: Count::Of(&sessions, now),
            sweeps,
        };
        let terms = (ask.terms.dials, ask.terms.dial_for.as_millis() as i64);
        let taken = self
            .table
            .beat(id, &ask.beat, terms, &world, |_| share, Mutant::None);
        Reply {
            grant: taken.grant,
            seen: taken.seen,
            is_late: taken.is_late,
            is_settling: taken.is_settling,
            total: self.table.total as usize,
            reserve: self.table.reserve as usize,
            members: self.table.rows.len(),
            floors: 0,
            counted: self.table.rows.iter().map(|row| row.cap as usize).sum(),
            now,
            knee: self.knee,
            sums: sums.flatten(),
        }
    }
}

#[derive(Clone)]
pub(super) struct Shared(pub(super) Arc<Mutex<Server>>);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Server> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection, which the server shows a little longer.
pub(super) struct Session {
    server: Shared,
    id: u64,
}

impl Session {
    pub(super) async fn open(server: &Shared, id: u64) -> Self {
        sleep(Duration::from_millis(5).mul_f64(0.5 + jitter())).await;
        server.lock().opened(id);
        let server = server.clone();
        Self { server, id }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let (server, id) = (self.server.clone(), self.id);
        tokio::spawn(async move {
            sleep(Duration::from_millis(10).mul_f64(jitter())).await;
            server.lock().closed(id);
        });
    }
}

impl Store for Shared {
    type Session = Session;

    const IS_DIVIDED: bool = true;

    async fn open(&self, budget: &Arc<Inner>) -> Result<Session, BudgetError> {
        let id = budget.id as u64;
        let listener = Arc::downgrade(budget);
        self.lock().listeners.insert(id, listener);
        Ok(Session::open(self, id).await)
    }

    fn is_closed(_: &Session) -> bool {
        false
    }

    async fn beat(&self, session: &mut Session, ask: &Ask<'_>) -> Result<Reply, BudgetError> {
        let way = || sleep(Duration::from_millis(4).mul_f64(jitter()));
        way().await;
        let reply = self.lock().beat(session.id, ask);
        way().await;
        Ok(reply)
    }
}

/// One process, with a pool that opens what it may and needs.
struct Process {
    budget: Budget,
    need: Arc<Mutex<(usize, usize)>>,
    pool: JoinHandle<()>,
}

/// The budget of a process of the fleet.
pub(super) fn join(server: &Shared, id: i64, settings: Settings) -> Budget {
    let ttl = Duration::from_secs(15);
    let terms = Terms {
        ttl,
        dial_for: ttl / 3,
        dials: 4,
    };
    let pod = Pod::new(terms);
    let own = Kind::Leased { own: 1 };
    let inner = Arc::new(Inner::new(id, own, pod, Mode::Enforce, 0, 0));
    tokio::spawn(beats::run(Arc::downgrade(&inner), server.clone(), settings));
    Budget::from_inner(inner)
}

impl Process {
    fn start(server: &Shared, id: i64) -> Self {
        let budget = join(server, id, Settings::default());
        let news = Arc::new(Notify::new());
        let member = Arc::new(budget.join(Arc::clone(&news)));
        let need = Arc::new(Mutex::new((0, 3)));
        let pool = pool(server.clone(), id as u64, member, Arc::clone(&need), news);
        Self {
            budget,
            need,
            pool: tokio::spawn(pool),
        }
    }

    fn needs(&self, need: usize, want: usize) {
        *self.need.lock().unwrap_or_else(PoisonError::into_inner) = (need, want);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.pool.abort();
    }
}

async fn pool(
    server: Shared,
    id: u64,
    member: Arc<Member>,
    needs: Arc<Mutex<(usize, usize)>>,
    news: Arc<Notify>,
) {
    let mut open: Vec<Session> = Vec::new();
    loop {
        let (need, want) = *needs.lock().unwrap_or_else(PoisonError::into_inner);
        let share = member.follow(need, want, || open.len());
        // Every connection that is needed, as far as it may.
        let target = share.min(need.max(1));
        open.truncate(target.max(1));
        while open.len() < target
            && let Some(right) = member.try_take()
        {
            open.push(Session::open(&server, id).await);
            drop(right);
            member.follow(need, want, || open.len());
        }
        let _ = tokio::time::timeout(Duration::from_millis(250), news.notified()).await;
    }
}

/// What each of `processes` should have, where those from `first` on need much.
fn ideal(server: &Shared, processes: usize, hot: usize, first: usize) -> Vec<u32> {
    let claims: Vec<Claim> = (0..processes)
        .map(|number| {
            let is_hot = (first..first + hot).contains(&number);
            let need = if is_hot { HOT } else { IDLE };
            Claim {
                weight: 1000,
                floor: 2,
                need: need as u32 + 1,
                want: need as u32 + 1,
                held: 0,
            }
        })
        .collect();
    shares(server.lock().for_shares(), &claims)
}

const HOT: usize = 60;
const IDLE: usize = 1;

/// Moves the load to the processes from `first` on; returns how long it takes until each has its part.
async fn converges(server: &Shared, fleet: &[Process], hot: usize, first: usize) -> Duration {
    let start = Instant::now();
    for (number, process) in fleet.iter().enumerate() {
        let need = match (first..first + hot).contains(&number) {
            true => HOT,
            false => IDLE,
        };
        process.needs(need, need);
    }
    let has_its_part = |ideal: &[u32]| {
        let open = |process: &Process| process.budget.snapshot().open() as u32;
        let mut pairs = fleet.iter().map(open).zip(ideal);
        pairs.all(|(open, &ideal)| open.abs_diff(ideal) <= 1)
    };
    loop {
        sleep(Duration::from_millis(100)).await;
        let ideal = ideal(server, fleet.len(), hot, first);
        if has_its_part(&ideal) {
            return start.elapsed();
        }
        if start.elapsed() >= Duration::from_secs(60) {
            let open: Vec<usize> = fleet.iter().map(|p| p.budget.snapshot().open()).collect();
            panic!("{open:?}, not {ideal:?}");
        }
    }
}

/// A tenth of the processes needs more than its part; then another tenth does.
async fn a_fleet_of(processes: usize) {
    /// Three beats, of 4 to 6 s.
    const THREE_BEATS: Duration = Duration::from_secs(15);
    let total = processes as u32 * 5;
    let server = Shared(Arc::new(Mutex::new(Server::new(total))));
    let fleet: Vec<Process> = (1..=processes as i64)
        .map(|id| Process::start(&server, id))
        .collect();
    let hot = processes / 10;
    let started = converges(&server, &fleet, hot, 0).await;
    assert!(started <= THREE_BEATS, "{started:?} after the start");
    sleep(Duration::from_secs(30)).await;
    let moved = converges(&server, &fleet, hot, processes / 2).await;
    assert!(moved <= THREE_BEATS, "{moved:?} after the load moved");
    sleep(Duration::from_secs(30)).await;
    // Where nothing moves, all beat slowly, and shares are not made anew.
    let (beats, refreshes) = {
        let server = server.lock();
        (server.beats, server.refreshes)
    };
    sleep(Duration::from_secs(50)).await;
    let most = server.lock().most;
    let (beats, refreshes) = {
        let server = server.lock();
        (server.beats - beats, server.refreshes - refreshes)
    };
    println!(
        "{processes} processes: {started:?} after the start, {moved:?} after the load moved; at most {most} \
         of {total}; in 50 s of rest {beats} beats, {refreshes} refreshes"
    );
    assert!(most <= total, "{most} of {total}");
    assert!(refreshes <= 2, "{refreshes}");
    some_join(&server, &fleet).await;
    let server = server.lock();
    assert!(server.most <= total, "{} of {total}", server.most);
    // No storm, except that all begin at the same moment.
    let busiest = server.each_second[5..].iter().max().copied();
    println!("at most {busiest:?} beats a second");
    assert!(busiest <= Some(processes as u64), "{busiest:?}");
}

/// Processes join at the same moment, as many as the reserve lets in, where the others hold all.
async fn some_join(server: &Shared, fleet: &[Process]) {
    /// Two beats of a process that has too few.
    const SOON: Duration = Duration::from_secs(3);
    const NEED: usize = 3;
    let start = Instant::now();
    let before = server.lock().wakes;
    let joiners: Vec<Process> = (1..=fleet.len() as i64 / 40)
        .map(|id| Process::start(server, fleet.len() as i64 + id))
        .collect();
    joiners.iter().for_each(|process| process.needs(NEED, NEED));
    // With the connection that beats.
    let is_served = |process: &Process| process.budget.snapshot().open() > NEED;
    while !joiners.iter().all(is_served) {
        assert!(start.elapsed() < Duration::from_secs(60));
        sleep(Duration::from_millis(50)).await;
    }
    let took = start.elapsed();
    sleep(Duration::from_secs(10)).await;
    let woken = server.lock().wakes - before;
    println!("{} join: {took:?}, {woken} woken", joiners.len());
    assert!(took <= SOON, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn forty_processes_have_their_parts_within_three_beats() {
    a_fleet_of(40).await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_processes_have_their_parts_within_three_beats() {
    a_fleet_of(1_000).await;
}
