//! A search through every interleaving of up to three processes, the store and the server.
//!
//! What is searched is [`Pod`], as it runs in production, against the store of [`kernel`](super::kernel),
//! whose grants are chosen in every possible way: what holds here holds for any policy. A state is bad
//! if the server has more sessions than the total allows.
//!
//! Time is told by events: a lease ends, on either side, when the search says so, but not before the
//! dials begun under it have ended, which rule 1 sees to. All other orders are tried.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::Instant;

use super::kernel::{Count, Mutant, Row, Store, World};
use super::pod::{Beat, Pod, Terms};

const PODS: usize = 3;

/// A rule of the process left out.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum PodMutant {
    #[default]
    None,
    /// A connection that is closed here counts as closed there.
    OwnCloseCounts,
    /// Past its lease a process beats with the cap that it had.
    KeepsCap,
    /// The reply to an earlier beat counts.
    AnyReply,
    /// A process joins although the reserve is in use.
    JoinsFreely,
}

/// What may happen in a search, and how often.
#[derive(Clone, Copy, Debug)]
struct Setup {
    pods: usize,
    /// Those that are members at the start, with one connection each.
    members: usize,
    /// What each of them was granted.
    granted: u32,
    total: u32,
    reserve: u32,
    dials: u32,
    crashes: u8,
    pauses: u8,
    failovers: u8,
    shrinks: u8,
    /// Beats whose reply is not waited for: it is lost, or late, or the beat itself is late.
    lost: u8,
    joins: u8,
    /// Whether the server's sessions are counted when a beat is sent, not when it is taken.
    counts_before: bool,
    /// Members, too, may open the connection that beats anew, at any time.
    reopens: bool,
    mutant: Mutant,
    pod_mutant: PodMutant,
}

const SETUP: Setup = Setup {
    pods: 2,
    members: 2,
    granted: 1,
    total: 3,
    reserve: 0,
    dials: 1,
    crashes: 0,
    pauses: 0,
    failovers: 0,
    shrinks: 0,
    lost: 0,
    joins: 0,
    counts_before: false,
    reopens: false,
    mutant: Mutant::None,
    pod_mutant: PodMutant::None,
};

#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
enum Status {
    #[default]
    Absent,
    Runs,
    Paused,
    Dead,
}

/// Where the latest beat is.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
enum Flight {
    #[default]
    None,
    Sent(Sent),
    /// The reply is on its way; `in_time` until the lease it gives has ended on the server.
    Replied {
        grant: u32,
        seen: u32,
        in_time: bool,
    },
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Sent(Beat);

/// Sessions of each process at one moment, and how far its row was.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Counted {
    sessions: [u8; PODS],
    expires: [i8; PODS],
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Node {
    pod: Pod,
    status: Status,
    /// Connections that the process has.
    open: u32,
    /// Sessions that the server shows although the process has closed them.
    lingering: u32,
    flight: Flight,
    /// An earlier beat that is still under way.
    earlier: Option<Beat>,
    /// What was counted before each of the two was sent.
    counts: [Option<Counted>; 2],
    row: Option<Row>,
    /// It beat on the server there is.
    registered: bool,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct State {
    nodes: [Node; PODS],
    total: u32,
    /// What may be there until a lower total is reached.
    allowed: u32,
    is_settling: bool,
    crashes: u8,
    pauses: u8,
    failovers: u8,
    shrinks: u8,
    lost: u8,
    joins: u8,
}

// The times of the store: a row is live, has just lapsed, or lapsed a dial's lifetime ago.
const NOW: i64 = 0;
const TTL: i64 = 1;
const DIAL_FOR: i64 = 1;
const LAPSED: i64 = -1;
const GONE: i64 = -9;

// Of the counts of a process.
const LATEST: usize = 0;
const EARLIER: usize = 1;

/// The only time at which a process acts. Its lease ends when it is shown [`later`].
fn now() -> Instant {
    static NOW: OnceLock<Instant> = OnceLock::new();
    *NOW.get_or_init(Instant::now)
}

fn later() -> Instant {
    now() + Duration::from_secs(60)
}

fn terms(dials: u32) -> Terms {
    Terms {
        ttl: Duration::from_secs(15),
        dial_for: Duration::from_secs(5),
        dials,
    }
}

impl Node {
    fn sessions(&self) -> u32 {
        self.open + self.lingering
    }

    fn is_valid(&self) -> bool {
        self.pod.lease_end().is_some()
    }

    /// What is counted for it, by the store or by itself.
    fn rights(&self, is_settling: bool) -> u32 {
        let row = self.row.filter(|_| !is_settling || self.registered);
        row.map_or(0, |row| row.cap).max(self.pod.cap())
    }

    /// Drops what no longer matters, so that states that behave alike are alike.
    fn tidy(&mut self) {
        if self.status == Status::Dead {
            let dialing = self.pod.dialing();
            self.pod = Pod::new(terms(1));
            for _ in 0..dialing {
                self.pod.join();
            }
            if matches!(self.flight, Flight::Replied { .. }) {
                self.flight = Flight::None;
            }
        }
        if matches!(self.flight, Flight::None) {
            self.pod.give_up_waiting();
        }
        if !matches!(self.flight, Flight::Sent(_)) {
            self.counts[LATEST] = None;
        }
        if self.earlier.is_none() {
            self.counts[EARLIER] = None;
        }
        // Only the order of the numbers matters.
        let latest = self.pod.seq();
        let earlier = self.earlier.map(|beat| beat.seq);
        if let Some(row) = &mut self.row {
            row.seq = match (row.seq, earlier) {
                (seq, _) if seq >= latest && latest > 0 => 2,
                (seq, Some(earlier)) if seq >= earlier => 1,
                _ => 0,
            };
        }
        if let Flight::Sent(Sent(beat)) = &mut self.flight {
            beat.seq = 2;
        }
        if let Some(beat) = &mut self.earlier {
            beat.seq = 1;
        }
        if latest > 0 {
            self.pod.renumber(2);
        }
    }
}

impl State {
    fn new(setup: &Setup) -> Self {
        let absent = Node {
            pod: Pod::new(terms(setup.dials)),
            status: Status::Absent,
            open: 0,
            lingering: 0,
            flight: Flight::None,
            earlier: None,
            counts: [None; 2],
            row: None,
            registered: false,
        };
        let mut nodes = [absent; PODS];
        for (id, node) in nodes.iter_mut().enumerate().take(setup.members) {
            node.pod.join();
            node.pod.dial_ended();
            let beat = node.pod.send(now());
            node.pod.reply(now(), beat.seq, setup.granted, Some(1), 1);
            node.status = Status::Runs;
            node.open = 1;
            node.row = Some(Row {
                id: id as u64,
                seq: beat.seq,
                cap: setup.granted,
                expires: NOW + TTL,
                epoch: 0,
                dials: setup.dials,
                dial_for: DIAL_FOR,
            });
        }
        let mut state = Self {
            nodes,
            total: setup.total,
            allowed: setup.total,
            is_settling: false,
            crashes: setup.crashes,
            pauses: setup.pauses,
            failovers: setup.failovers,
            shrinks: setup.shrinks,
            lost: setup.lost,
            joins: setup.joins,
        };
        state.tidy(setup);
        state
    }

    fn sessions(&self) -> u32 {
        self.nodes.iter().map(Node::sessions).sum()
    }

    /// Sessions, and dials that may become some, that nothing counts.
    fn strangers(&self) -> u32 {
        self.nodes
            .iter()
            .map(|node| {
                let may_be = node.sessions() + node.pod.dialing();
                may_be.saturating_sub(node.rights(self.is_settling))
            })
            .sum()
    }

    fn tidy(&mut self, setup: &Setup) {
        for node in &mut self.nodes {
            node.tidy();
            if !self.is_settling {
                node.registered = false;
            }
        }
        let rights: u32 = (self.nodes.iter())
            .map(|node| node.rights(self.is_settling))
            .sum();
        let counted = rights + self.strangers().max(setup.reserve);
        self.allowed = self.total.max(self.allowed.min(counted));
        // Which process is which does not matter.
        let rows = |nodes: &mut [Node; PODS], id_of: fn(usize) -> u64| {
            for (index, node) in nodes.iter_mut().enumerate() {
                if let Some(row) = &mut node.row {
                    row.id = id_of(index);
                }
            }
        };
        rows(&mut self.nodes, |_| 0);
        let mut order: [usize; PODS] = std::array::from_fn(|index| index);
        order[..setup.pods].sort_by_cached_key(|&index| fingerprint(&self.nodes[index]));
        self.nodes = order.map(|index| self.nodes[index]);
        for counted in self
            .nodes
            .iter_mut()
            .flat_map(|node| node.counts.iter_mut().flatten())
        {
            counted.sessions = order.map(|index| counted.sessions[index]);
            counted.expires = order.map(|index| counted.expires[index]);
        }
        rows(&mut self.nodes, |index| index as u64);
    }

    /// Everything that may happen next.
    fn next(&self, setup: &Setup, to: &mut Vec<(Self, Event)>) {
        for id in 0..setup.pods {
            self.next_of(setup, id, to);
        }
        if self.is_settling && self.nodes.iter().all(Node::may_be_settled) {
            let mut next = *self;
            next.is_settling = false;
            for node in &mut next.nodes {
                if let Flight::Replied { in_time, .. } = &mut node.flight {
                    *in_time &= node.registered;
                }
                if let Some(row) = &mut node.row
                    && !node.registered
                {
                    // The store does this at the next sweep.
                    row.epoch = u32::MAX;
                    row.expires = LAPSED;
                }
            }
            to.push((next, Event::new("the server has settled", 0)));
        }
        if self.shrinks > 0 && self.total > setup.reserve + 1 {
            let mut next = *self;
            next.shrinks -= 1;
            next.total -= 1;
            to.push((next, Event::new("the total falls", 0)));
        }
        let frozen = |node: &Node| node.status == Status::Paused && node.pod.dialing() > 0;
        if self.failovers > 0 && !self.nodes.iter().any(frozen) {
            self.fail_over(setup, to);
        }
    }

    fn next_of(&self, setup: &Setup, id: usize, to: &mut Vec<(Self, Event)>) {
        let node = self.nodes[id];
        let mut add = |name, change: &dyn Fn(&mut Self)| {
            let mut next = *self;
            change(&mut next);
            to.push((next, Event::new(name, id)));
        };
        let runs = node.status == Status::Runs;
        let paused = node.status == Status::Paused;
        // The connection that beats is opened, from the reserve where need be.
        let reopens = runs && setup.reopens;
        let returns = runs
            && node.open == 0
            && !node.is_valid()
            && node.pod.dialing() == 0
            && matches!(node.flight, Flight::None);
        let is_counted = node.sessions() + node.pod.dialing() < node.rights(self.is_settling);
        let may_join = is_counted
            || self.strangers() < setup.reserve
            || setup.pod_mutant == PodMutant::JoinsFreely;
        if self.joins > 0 && (node.status == Status::Absent || returns || reopens) && may_join {
            add("joins", &|next| {
                next.joins -= 1;
                let node = &mut next.nodes[id];
                node.status = Status::Runs;
                if node.pod.bound() < 15 {
                    node.pod.join();
                    node.pod.dial_ended();
                }
                node.open += 1;
            });
        }
        if runs && node.open > 0 {
            self.send(setup, id, to);
        }
        if let Flight::Sent(Sent(beat)) = node.flight {
            self.apply(setup, id, beat, true, to);
            if node.status == Status::Dead {
                let mut next = *self;
                next.nodes[id].flight = Flight::None;
                to.push((next, Event::new("its beat is lost", id)));
            }
        }
        if let Some(beat) = node.earlier {
            self.apply(setup, id, beat, false, to);
            let mut next = *self;
            next.nodes[id].earlier = None;
            to.push((next, Event::new("its earlier beat is lost", id)));
        }
        let mut add = |name, change: &dyn Fn(&mut Self)| {
            let mut next = *self;
            change(&mut next);
            to.push((next, Event::new(name, id)));
        };
        if let Flight::Replied {
            grant,
            seen,
            in_time,
        } = node.flight
            && runs
        {
            add("gets its reply", &|next| {
                let node = &mut next.nodes[id];
                let at = if in_time { now() } else { later() };
                let seq = node.pod.seq();
                node.pod.reply(at, seq, grant, Some(seen), node.open);
                node.flight = Flight::None;
            });
        }
        if runs && node.pod.may_dial(now()) > 0 {
            add("begins a dial", &|next| {
                assert!(next.nodes[id].pod.dial(now()));
            });
        }
        if node.pod.dialing() > 0 {
            add("has a dial become a session", &|next| {
                let node = &mut next.nodes[id];
                node.pod.dial_ended();
                match node.status {
                    Status::Dead => node.lingering += 1,
                    _ => node.open += 1,
                }
            });
            add("has a dial fail", &|next| {
                next.nodes[id].pod.dial_ended();
            });
        }
        let is_last = node.open == 1 && node.pod.dialing() > 0;
        let is_cut_off = node.open == 1 && matches!(node.flight, Flight::Sent(_));
        if runs && node.open > 0 && !is_last && !(is_cut_off && node.earlier.is_some()) {
            add("closes a connection", &|next| {
                let node = &mut next.nodes[id];
                node.open -= 1;
                node.lingering += 1;
                if setup.pod_mutant == PodMutant::OwnCloseCounts {
                    let open = node.open + node.pod.dialing();
                    forget_closed(&mut node.pod, open);
                }
                if node.open == 0 {
                    if let Flight::Sent(Sent(beat)) = node.flight {
                        node.earlier = Some(beat);
                    }
                    node.flight = Flight::None;
                    // Numbers stay apart although nothing is waited for.
                    node.pod.renumber(node.pod.seq() + 1);
                }
            });
        }
        if node.lingering > 0 {
            add("is seen to have closed one", &|next| {
                next.nodes[id].lingering -= 1;
            });
        }
        if (runs || paused) && self.crashes > 0 {
            add("crashes", &|next| {
                next.crashes -= 1;
                let node = &mut next.nodes[id];
                node.status = Status::Dead;
                node.lingering += std::mem::take(&mut node.open);
            });
        }
        if runs && self.pauses > 0 && (node.pod.dialing() == 0 || node.open > 0) {
            add("is stopped", &|next| {
                next.pauses -= 1;
                next.nodes[id].status = Status::Paused;
            });
        }
        if paused {
            add("wakes", &|next| next.nodes[id].status = Status::Runs);
        }
        // A stopped process has its dial land later than its lease ends.
        let dials_are_done = paused || node.pod.dialing() == 0;
        if node.is_valid() && dials_are_done {
            add("loses its lease", &|next| {
                let node = &mut next.nodes[id];
                if setup.pod_mutant == PodMutant::KeepsCap {
                    return keep_cap(node);
                }
                node.pod.lapse(later());
            });
        }
        let is_live = node.row.is_some_and(|row| row.expires >= NOW);
        if is_live && !node.is_valid() && dials_are_done {
            add("has its row lapse", &|next| {
                let node = &mut next.nodes[id];
                if let Some(row) = &mut node.row {
                    row.expires = LAPSED;
                }
                if let Flight::Replied { in_time, .. } = &mut node.flight {
                    *in_time = false;
                }
            });
        }
        let has_lapsed = node.row.is_some_and(|row| row.expires == LAPSED);
        if has_lapsed && node.sessions() == 0 && (node.pod.dialing() == 0 || paused) {
            add("has had no session for as long as a dial takes", &|next| {
                if let Some(row) = &mut next.nodes[id].row {
                    row.expires = GONE;
                }
            });
        }
    }

    fn send(&self, setup: &Setup, id: usize, to: &mut Vec<(Self, Event)>) {
        let node = self.nodes[id];
        let abandons = !matches!(node.flight, Flight::None);
        if abandons && (self.lost == 0 || node.earlier.is_some()) {
            return;
        }
        let counted = setup.counts_before.then(|| self.count());
        let mut next = *self;
        next.lost -= u8::from(abandons);
        let node = &mut next.nodes[id];
        if let Flight::Sent(Sent(beat)) = node.flight {
            node.earlier = Some(beat);
            node.counts[EARLIER] = node.counts[LATEST];
        }
        let beat = node.pod.send(now());
        node.flight = Flight::Sent(Sent(beat));
        node.counts[LATEST] = counted;
        let name = match abandons {
            true => "waits no longer and beats again",
            false => "beats",
        };
        to.push((next, Event::new(name, id)));
    }

    fn count(&self) -> Counted {
        let expires = |node: &Node| node.row.map_or(NOW + TTL, |row| row.expires);
        Counted {
            sessions: std::array::from_fn(|id| self.nodes[id].sessions() as u8),
            expires: std::array::from_fn(|id| expires(&self.nodes[id]) as i8),
        }
    }

    /// A beat reaches the store, which grants whatever it may.
    fn apply(
        &self,
        setup: &Setup,
        id: usize,
        beat: Beat,
        is_latest: bool,
        to: &mut Vec<(Self, Event)>,
    ) {
        let counted = match is_latest {
            true => self.nodes[id].counts[LATEST],
            false => self.nodes[id].counts[EARLIER],
        };
        let counted = counted.unwrap_or_else(|| self.count());
        let sessions = counted.sessions;
        let sessions: [(u64, u32); PODS] =
            std::array::from_fn(|id| (id as u64, sessions[id].into()));
        // A count says nothing of what lapsed after it: the row is as it was then, as far as the store looks.
        let as_counted = |row: Row| {
            let then = counted.expires[row.id as usize].into();
            let expires = match setup.mutant {
                Mutant::OldCounts => row.expires,
                _ => row.expires.max(then),
            };
            Row { expires, ..row }
        };
        let world = World {
            now: NOW,
            boot: 0,
            ttl: TTL,
            count: Count::Of(&sessions, NOW),
            sweeps: true,
        };
        let store = || Store {
            total: self.total,
            reserve: setup.reserve,
            boot: 0,
            epoch: 0,
            settle_until: NOW + i64::from(self.is_settling),
            excess: 0,
            counted: NOW,
            rows: (self.nodes.iter())
                .filter_map(|node| node.row.map(as_counted))
                .collect(),
        };
        let most = std::cell::Cell::new(0);
        let mut grant = 0;
        loop {
            let mut store = store();
            let dials = (setup.dials, DIAL_FOR);
            let share = |limit| {
                most.set(limit);
                grant
            };
            let reply = store.beat(id as u64, &beat, dials, &world, share, setup.mutant);
            let mut next = *self;
            for (id, node) in next.nodes.iter_mut().enumerate() {
                let row = store.rows.iter().find(|row| row.id == id as u64).copied();
                // What it did not look at is as it was.
                node.row = match (row, node.row) {
                    (Some(row), Some(old)) if row == as_counted(old) => Some(old),
                    _ => row,
                };
            }
            let node = &mut next.nodes[id];
            if !reply.is_late {
                node.registered = true;
            }
            let takes_any = setup.pod_mutant == PodMutant::AnyReply && node.earlier.is_some();
            if is_latest {
                node.flight = Flight::Replied {
                    grant: reply.grant,
                    seen: reply.seen.unwrap_or(0),
                    in_time: !reply.is_late,
                };
                if reply.is_late {
                    // Its number was overtaken: nothing is replied that counts.
                    node.flight = Flight::None;
                }
            } else {
                node.earlier = None;
                if takes_any && node.status == Status::Runs {
                    if let Flight::Sent(Sent(latest)) = node.flight {
                        node.earlier = Some(latest);
                    }
                    node.flight = Flight::None;
                    let seq = node.pod.seq();
                    node.pod
                        .reply(now(), seq, reply.grant, reply.seen, node.open);
                    node.pod.renumber(seq + 1);
                }
            }
            let name = match is_latest {
                true => "has its beat taken",
                false => "has an earlier beat taken",
            };
            to.push((next, Event::granted(name, id, reply.grant)));
            grant += 1;
            if grant > most.get() || reply.is_late {
                return;
            }
        }
    }

    /// All sessions end, and the table is empty or an old one.
    fn fail_over(&self, setup: &Setup, to: &mut Vec<(Self, Event)>) {
        let old = [None, Some(0), Some(1), Some(setup.total)];
        for combination in 0..old.len().pow(setup.pods as u32) {
            let mut next = *self;
            next.failovers -= 1;
            next.is_settling = true;
            let (mut rest, mut sum) = (combination, 0);
            for (id, node) in next.nodes.iter_mut().enumerate().take(setup.pods) {
                let cap = old[rest % old.len()];
                rest /= old.len();
                sum += cap.unwrap_or(0);
                node.open = 0;
                node.lingering = 0;
                if matches!(node.flight, Flight::Sent(_)) {
                    node.flight = Flight::None;
                }
                node.earlier = None;
                node.registered = false;
                node.row = cap.map(|cap| Row {
                    id: id as u64,
                    seq: 0,
                    cap,
                    expires: LAPSED,
                    epoch: 0,
                    dials: setup.dials,
                    dial_for: DIAL_FOR,
                });
            }
            // The old table was right once.
            if sum <= setup.total {
                to.push((next, Event::new("the server fails over", combination)));
            }
        }
    }
}

impl Node {
    /// Whether one lease's time may have passed since the server is new.
    fn may_be_settled(&self) -> bool {
        self.registered || (!self.is_valid() && self.pod.dialing() == 0)
    }
}

/// As a process would that believes its own closes.
fn forget_closed(pod: &mut Pod, open: u32) {
    let seq = pod.seq();
    let cap = pod.cap();
    let mut other = *pod;
    let beat = other.send(now());
    other.reply(now(), beat.seq, cap, Some(open), open);
    other.renumber(seq);
    if pod.lease_end().is_some() && !pod.is_waiting() {
        *pod = other;
    }
}

/// As a process would that does not look at the time before it beats.
fn keep_cap(node: &mut Node) {
    let cap = node.pod.cap();
    node.pod.lapse(later());
    if node.status == Status::Runs && node.open > 0 && matches!(node.flight, Flight::None) {
        let mut beat = node.pod.send(now());
        beat.cap = cap;
        node.flight = Flight::Sent(Sent(beat));
    }
}

#[derive(Clone, Copy)]
struct Event {
    name: &'static str,
    id: usize,
    grant: Option<u32>,
}

impl Event {
    fn new(name: &'static str, id: usize) -> Self {
        let grant = None;
        Self { name, id, grant }
    }

    fn granted(name: &'static str, id: usize, grant: u32) -> Self {
        let grant = Some(grant);
        Self { name, id, grant }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.id, self.name)?;
        self.grant
            .map_or(Ok(()), |grant| write!(f, ", granted {grant}"))
    }
}

/// Two multiplications a word, 128 bits: with 10⁸ states two share one once in 10²² searches.
#[derive(Clone, Copy)]
struct Mix(u64, u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ self.1.rotate_left(32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        self.0 ^= self.0 >> 32;
        self.1 = (self.1.rotate_left(13) ^ word).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        self.1 ^= self.1 >> 29;
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}

fn fingerprint(value: &impl std::hash::Hash) -> u128 {
    let mut mix = Mix(0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f);
    value.hash(&mut mix);
    u128::from(mix.0) << 64 | u128::from(mix.1)
}

/// The fingerprints are mixed already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for (to, from) in self.0.to_ne_bytes().iter_mut().zip(bytes) {
            *to ^= from;
        }
    }

    fn write_u128(&mut self, word: u128) {
        self.0 = word as u64;
    }
}

/// What a search came to.
#[derive(Debug)]
enum Found {
    /// Every state was seen; how many there are.
    Safe(usize),
    /// Events up to a state with more sessions than are allowed.
    Over(Vec<String>),
}

fn search(setup: &Setup) -> Found {
    /// The traces of a search for which there is memory.
    const TRACED: usize = 3_000_000;
    let start = State::new(setup);
    let mut seen: HashSet<u128, BuildHasherDefault<AsIs>> = HashSet::default();
    let mut parents: Vec<(u32, Event)> = vec![(0, Event::new("start", 0))];
    let mut queue = VecDeque::from([(start, 0_u32)]);
    seen.insert(fingerprint(&start));
    let mut to = Vec::new();
    while let Some((state, parent)) = queue.pop_front() {
        state.next(setup, &mut to);
        for (mut next, event) in to.drain(..) {
            next.tidy(setup);
            if !seen.insert(fingerprint(&next)) {
                continue;
            }
            let id = parents.len();
            if id < TRACED {
                parents.push((parent, event));
            }
            if next.sessions() > next.allowed {
                let mut trace = vec![event.to_string()];
                let mut at = parent as usize;
                while at != 0 {
                    trace.push(parents[at].1.to_string());
                    at = parents[at].0 as usize;
                }
                trace.reverse();
                return Found::Over(trace);
            }
            queue.push_back((next, id.min(TRACED) as u32));
        }
    }
    Found::Safe(seen.len())
}

fn assert_safe(setup: Setup) {
    match search(&setup) {
        Found::Safe(states) => println!("{states} states"),
        Found::Over(trace) => panic!("over the total:\n{}", trace.join("\n")),
    }
}

fn assert_caught(setup: Setup) {
    match search(&setup) {
        Found::Over(trace) => println!("{}", trace.join("\n")),
        Found::Safe(states) => panic!("not found in all {states} states"),
    }
}

/// Every fault once, in small fleets: half a million states, which an unoptimised build sees in half a minute.
mod small {
    use super::*;

    const TWO: Setup = Setup { total: 2, ..SETUP };

    #[test]
    fn lost_and_late_beats_never_exceed_the_total() {
        assert_safe(Setup { lost: 2, ..TWO });
    }

    #[test]
    fn crashes_never_exceed_the_total() {
        assert_safe(Setup {
            crashes: 1,
            lost: 1,
            ..TWO
        });
    }

    #[test]
    fn stopped_processes_never_exceed_the_total() {
        assert_safe(Setup {
            pauses: 1,
            crashes: 1,
            ..TWO
        });
    }

    #[test]
    fn failovers_to_any_table_never_exceed_the_total() {
        assert_safe(Setup {
            failovers: 1,
            ..TWO
        });
    }

    #[test]
    fn sessions_counted_before_a_beat_is_taken_never_exceed_the_total() {
        assert_safe(Setup {
            counts_before: true,
            crashes: 1,
            pauses: 1,
            ..TWO
        });
    }

    #[test]
    fn processes_that_join_never_exceed_the_total() {
        assert_safe(Setup {
            reserve: 1,
            members: 1,
            joins: 1,
            crashes: 1,
            total: 3,
            ..SETUP
        });
    }

    #[test]
    fn members_that_open_the_connection_that_beats_anew_never_exceed_the_total() {
        assert_safe(Setup {
            reserve: 1,
            joins: 1,
            reopens: true,
            total: 3,
            ..SETUP
        });
    }

    #[test]
    fn a_total_that_falls_is_never_exceeded_again_once_it_was_reached() {
        assert_safe(Setup { shrinks: 1, ..TWO });
    }
}

/// More of everything. Run to the end, one at a time, with
/// `cargo test --release -p pool-autotune --features fleet fleet::model::large -- --ignored --nocapture --test-threads 1`
mod large {
    use super::*;

    #[test]
    #[ignore = "minutes"]
    fn lost_and_late_beats_of_two_processes() {
        assert_safe(Setup { lost: 2, ..SETUP });
    }

    #[test]
    #[ignore = "minutes"]
    fn pauses_and_crashes_of_two_processes() {
        assert_safe(Setup {
            pauses: 1,
            crashes: 1,
            lost: 1,
            ..SETUP
        });
    }

    #[test]
    #[ignore = "minutes"]
    fn failovers_of_two_processes() {
        assert_safe(Setup {
            failovers: 1,
            lost: 1,
            ..SETUP
        });
    }

    #[test]
    #[ignore = "minutes"]
    fn failovers_and_joins_of_two_processes() {
        assert_safe(Setup {
            failovers: 1,
            joins: 1,
            reserve: 1,
            ..SETUP
        });
    }

    #[test]
    #[ignore = "minutes"]
    fn three_processes() {
        assert_safe(Setup {
            pods: 3,
            members: 3,
            total: 4,
            ..SETUP
        });
    }

    #[test]
    #[ignore = "minutes"]
    fn a_process_that_claims_its_cap_past_its_lease_is_found() {
        assert_caught(Setup {
            pauses: 1,
            failovers: 1,
            joins: 1,
            pod_mutant: PodMutant::KeepsCap,
            ..SETUP
        });
    }

    #[test]
    #[ignore = "hours, and 30 GB of memory"]
    fn three_processes_with_two_dials_and_every_fault() {
        assert_safe(Setup {
            pods: 3,
            members: 2,
            total: 5,
            reserve: 1,
            dials: 2,
            crashes: 1,
            pauses: 1,
            failovers: 1,
            shrinks: 1,
            lost: 1,
            joins: 1,
            ..SETUP
        });
    }
}

/// Without one of the rules, there is an order of events that exceeds the total.
mod mutants {
    use super::*;

    #[test]
    fn a_late_beat_that_counts_is_found() {
        assert_caught(Setup {
            lost: 1,
            mutant: Mutant::NoSeq,
            ..SETUP
        });
    }

    #[test]
    fn a_cut_that_counts_when_it_is_granted_is_found() {
        assert_caught(Setup {
            mutant: Mutant::GrantCounts,
            ..SETUP
        });
    }

    #[test]
    fn raises_right_after_a_failover_are_found() {
        assert_caught(Setup {
            failovers: 1,
            joins: 1,
            members: 1,
            granted: 3,
            total: 4,
            reserve: 1,
            mutant: Mutant::NoSettle,
            ..SETUP
        });
    }

    #[test]
    fn a_row_that_goes_with_its_lease_is_found() {
        assert_caught(Setup {
            crashes: 1,
            mutant: Mutant::TtlOnly,
            ..SETUP
        });
    }

    #[test]
    fn a_lapsed_process_counted_without_its_dials_is_found() {
        assert_caught(Setup {
            pauses: 1,
            mutant: Mutant::NoDials,
            ..SETUP
        });
    }

    #[test]
    fn a_count_that_is_older_than_the_end_of_a_lease_is_found() {
        assert_caught(Setup {
            counts_before: true,
            crashes: 1,
            mutant: Mutant::OldCounts,
            ..SETUP
        });
    }

    #[test]
    fn raises_from_nothing_are_found() {
        assert_caught(Setup {
            mutant: Mutant::NoLimit,
            ..SETUP
        });
    }

    #[test]
    fn a_process_that_believes_its_own_closes_is_found() {
        assert_caught(Setup {
            pod_mutant: PodMutant::OwnCloseCounts,
            ..SETUP
        });
    }

    #[test]
    fn a_process_that_takes_any_reply_is_found() {
        assert_caught(Setup {
            lost: 1,
            pod_mutant: PodMutant::AnyReply,
            ..SETUP
        });
    }

    #[test]
    fn joining_without_a_reserve_is_found() {
        assert_caught(Setup {
            members: 1,
            joins: 1,
            pod_mutant: PodMutant::JoinsFreely,
            ..SETUP
        });
    }
}
