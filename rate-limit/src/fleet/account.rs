//! What a node knows of one key: what it may spend, and when asking is of no use.
//!
//! Pure: time and randomness come in as arguments, what to send to Redis comes out. All modes are
//! this one machine. A request that no lease covers joins the flight of those that cost the same;
//! one call asks for all that wait, and what is granted beyond them becomes the lease. In exact
//! mode nothing is asked for beyond them.

use std::{collections::VecDeque, sync::Arc};

use super::{
    outage::OnOutage,
    script::{Reply, Term},
};
use crate::{MAX_POLICIES, gcra::Excess};

/// Which account: a key, under a plan. Plans that share a policy share what Redis keeps of it, but
/// not what a node knows.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct AccountId {
    pub(crate) key: u64,
    pub(crate) plan: usize,
}

/// A number for each policy.
pub(crate) type Cells = [u64; MAX_POLICIES];

/// The account of a key on this node; `W` delivers verdicts to waiters.
#[derive(Debug)]
pub(crate) struct Account<W> {
    /// The policies; their `cells` mean nothing here.
    terms: Arc<[Term]>,
    /// The levels at `at`, as last heard of or, without Redis, as counted here.
    levels: Cells,
    at: u64,
    /// Whether Redis has ever replied, and the levels of its last reply, at `told_at`.
    heard: bool,
    told: Cells,
    told_at: u64,
    /// The part of them that Redis does not know of.
    borrowed: Cells,
    lease: Lease,
    /// Calls on their way, one at most for each cost.
    flights: Vec<Flight<W>>,
    /// Until when `refused` does not fit, as far as is known, and until when Redis is not asked
    /// whether it does.
    refused_until: u64,
    ask_again_at: u64,
    refused: Cells,
    /// Requests since `since`, and the smoothed rate a nanosecond.
    arrived: u32,
    since: u64,
    rate: f64,
    used: u64,
}

/// Requests that Redis has charged and that were not made yet. They all cost the same.
#[derive(Clone, Copy, Debug, Default)]
struct Lease {
    requests: u64,
    cost: Cells,
    /// For how many of them each policy was charged; fewer only in shadow mode.
    charged: Cells,
}

#[derive(Debug)]
struct Flight<W> {
    cost: Cells,
    waiting: VecDeque<W>,
}

/// Delivers a verdict to a waiter. Dropping it reports that Redis did not reply.
pub(crate) trait Tell {
    /// Delivers the verdict; `false` if the waiter is gone.
    fn tell(self, verdict: Verdict) -> bool;
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// It is within its quotas, and charged except for the policies in shadow mode marked here.
    Admitted {
        levels: Cells,
        uncharged: [bool; MAX_POLICIES],
    },
    /// It is not, and charged to none.
    Refused { levels: Cells, excess: Excess },
    /// Redis does not reply, and a policy admits nothing then.
    Closed,
}

/// What to do after a reply.
#[derive(Debug, Default)]
pub(crate) struct Next {
    /// What to give back.
    pub(crate) refund: Option<Box<[Term]>>,
    /// What was admitted without Redis, to be charged as levels.
    pub(crate) owes: Option<Box<[Term]>>,
    /// What to ask for.
    pub(crate) ask: Option<Ask>,
}

/// What to ask Redis for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Ask {
    pub(crate) n: u64,
    pub(crate) least: u64,
    pub(crate) cost: Cells,
}

/// How leases are sized.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizing {
    /// Cells that one node may lease at most; 0 for no leases.
    pub(crate) most: u64,
    /// How many nodes the quota is meant for.
    pub(crate) planned: u64,
    /// How many there are, or are meant to be if that is more.
    pub(crate) nodes: u64,
}

impl Sizing {
    /// How many cells of `burst` all nodes may hold together.
    pub(crate) fn of_fleet(&self, burst: u64) -> u64 {
        (burst / 2).min(self.most.saturating_mul(self.planned))
    }

    /// How many requests at `cost` one node may hold of an account in which `room` more would
    /// fit: its part of what comes back within [`HORIZON`], or of a quarter of the room if that is
    /// more; and never more than its part of what the fleet may. At least 1, which is no lease.
    fn requests(&self, terms: &[Term], cost: &Cells, room: u64) -> u64 {
        let charged = |&(term, &cells): &(&Term, &u64)| !term.shadow && cells > 0;
        let nodes = self.nodes.max(1);
        let most = |(term, cells): (&Term, &u64)| {
            let back = term.level.cells_in(HORIZON) / cells;
            (term.leasable / cells).min(back.max(room / 4)) / nodes
        };
        let lines = terms.iter().zip(cost).filter(charged);
        lines.map(most).min().unwrap_or(1).max(1)
    }
}

impl<W: Tell> Account<W> {
    pub(crate) fn new(terms: &Arc<[Term]>, now: u64) -> Self {
        Self {
            terms: Arc::clone(terms),
            levels: [0; MAX_POLICIES],
            at: now,
            heard: false,
            told: [0; MAX_POLICIES],
            told_at: now,
            borrowed: [0; MAX_POLICIES],
            lease: Lease::default(),
            flights: Vec::new(),
            refused_until: 0,
            ask_again_at: 0,
            refused: [0; MAX_POLICIES],
            arrived: 0,
            since: now,
            rate: 0.0,
            used: now,
        }
    }

    /// Goes by these policies from now on, unless a request waits for a reply by the old ones.
    /// Returns what is left of the lease.
    pub(crate) fn adopt(&mut self, terms: &Arc<[Term]>, now: u64) -> Option<Box<[Term]>> {
        let same = Arc::ptr_eq(&self.terms, terms) || {
            let alike = |(a, b): (&Term, &Term)| {
                *a == Term {
                    cells: a.cells,
                    ..*b
                }
            };
            self.terms.len() == terms.len() && self.terms.iter().zip(&**terms).all(alike)
        };
        if same || !self.is_idle() {
            return None;
        }
        let left = self.give_up();
        let borrowed = self.borrowed;
        // As many cells are owed as before.
        *self = Self {
            used: self.used,
            ..Self::new(terms, now)
        };
        self.borrowed = borrowed;
        left
    }

    /// Decides on a request at once, if what is known allows it.
    pub(crate) fn decide(&mut self, now: u64, cost: &Cells) -> Option<Verdict> {
        self.arrived = self.arrived.saturating_add(1);
        self.used = now;
        if cost.iter().all(|&cells| cells == 0) {
            let uncharged = [false; MAX_POLICIES];
            let levels = self.levels(now);
            return Some(Verdict::Admitted { levels, uncharged });
        }
        if let Some(verdict) = self.spend(now, cost) {
            return Some(verdict);
        }
        let too_large = |(term, &cells): (&Term, &u64)| !term.shadow && cells > term.level.burst();
        if self.terms.iter().zip(cost).any(too_large) {
            return Some(self.refusal(now, Excess::Never));
        }
        let as_large = |(cells, refused): (&u64, &u64)| cells >= refused;
        if now < self.ask_again_at && cost.iter().zip(&self.refused).all(as_large) {
            let wait = Excess::Wait(self.refused_until.saturating_sub(now).max(1));
            return Some(self.refusal(now, wait));
        }
        None
    }

    /// Lets a request wait that could not be decided at once; returns what to ask for, unless that
    /// is being asked for already.
    pub(crate) fn wait(&mut self, now: u64, cost: &Cells, tell: W, sizing: &Sizing) -> Option<Ask> {
        if let Some(flight) = self.flights.iter_mut().find(|flight| flight.cost == *cost) {
            flight.waiting.push_back(tell);
            return None;
        }
        self.age(now, sizing);
        self.flights.push(Flight {
            cost: *cost,
            waiting: VecDeque::from([tell]),
        });
        Some(self.ask(now, cost, 1, sizing))
    }

    /// What to ask for ahead of need, if the lease runs low.
    pub(crate) fn top_up(&mut self, now: u64, sizing: &Sizing) -> Option<Ask> {
        let cost = self.lease.cost;
        let low = self.lease.requests < self.sized(now, &cost, sizing) / 4;
        let idle = self.flights.is_empty() && now >= self.ask_again_at;
        if !low || !idle || self.lease.requests == 0 {
            return None;
        }
        let size = self.size(now, &cost, sizing);
        let n = size.saturating_sub(self.lease.requests);
        if n < 2 {
            return None;
        }
        self.age(now, sizing);
        self.flights.push(Flight {
            cost,
            waiting: VecDeque::new(),
        });
        // All or nothing: no request waits for a part of it.
        Some(Ask { n, least: n, cost })
    }

    fn ask(&mut self, now: u64, cost: &Cells, waiting: u64, sizing: &Sizing) -> Ask {
        // A lease of another cost is not added to.
        let size = if self.lease.requests == 0 || self.lease.cost == *cost {
            self.size(now, cost, sizing)
        } else {
            1
        };
        let n = waiting.max(size);
        // When little is left, less than a whole lease is not worth a call: the nodes of an
        // overloaded fleet would ask for every single cell that drips in.
        let least = if self.known_to_fit(now, cost) < n {
            size
        } else {
            1
        };
        Ask {
            n,
            least,
            cost: *cost,
        }
    }

    /// Handles a reply and notifies its waiters. `jitter` is uniform in 0..1. Returns
    /// what to give back, and what to ask for next.
    pub(crate) fn answered(
        &mut self,
        now: u64,
        ask: &Ask,
        reply: &Reply,
        sizing: &Sizing,
        jitter: f64,
    ) -> Next {
        let mut next = Next {
            owes: self.owes(now, sizing),
            ..Next::default()
        };
        // It is sent after this reply, and before the next.
        let mut known = reply.levels;
        for (level, owed) in known.iter_mut().zip(next.owes.iter().flatten()) {
            *level += owed.cells;
        }
        (self.levels, self.at, self.heard) = (known, now, true);
        (self.told, self.told_at) = (known, now);
        let Some(at) = self.flights.iter().position(|f| f.cost == ask.cost) else {
            return next;
        };
        let mut flight = self.flights.swap_remove(at);
        self.release_room();
        let mut granted = Lease {
            requests: reply.granted,
            cost: ask.cost,
            charged: reply.charged,
        };
        while granted.requests > 0
            && let Some(tell) = flight.waiting.pop_front()
        {
            let before = granted;
            let uncharged = granted.take_one();
            let levels = reply.levels;
            // A waiter that is gone leaves the request to the next.
            if !tell.tell(Verdict::Admitted { levels, uncharged }) {
                granted = before;
            }
        }
        if granted.requests > 0 {
            next.refund = self.add(granted);
        }
        if reply.granted < ask.n {
            self.refuse_for(now, ask, sizing, jitter);
            let excess = Excess::Wait(self.refused_until - now);
            for tell in flight.waiting.drain(..) {
                tell.tell(self.refusal(now, excess));
            }
        }
        if !flight.waiting.is_empty() {
            // They came while the call was on its way.
            next.ask = Some(self.ask(now, &ask.cost, flight.waiting.len() as u64, sizing));
            self.flights.push(flight);
        }
        next
    }

    /// Redis did not reply: the waiters decide without it.
    pub(crate) fn failed(&mut self, ask: &Ask) {
        self.flights.retain(|flight| flight.cost != ask.cost);
        self.release_room();
    }

    /// Flights are few and short, and their room would be most of what a quiet key takes.
    fn release_room(&mut self) {
        if self.flights.is_empty() {
            self.flights = Vec::new();
        }
    }

    /// Hears a level from Redis.
    #[cfg(test)]
    pub(crate) fn hear(&mut self, now: u64, level: u64) {
        (self.levels[0], self.at, self.heard) = (level, now, true);
    }

    /// Decides on a request without Redis, by each policy's [`OnOutage`].
    ///
    /// A local share is kept by counting each request as if all nodes made it: the levels go on
    /// from where Redis left them, and rise by `nodes` times the cost.
    pub(crate) fn without_redis(&mut self, now: u64, cost: &Cells, sizing: &Sizing) -> Verdict {
        self.used = now;
        self.age(now, sizing);
        let mut excess = None;
        let mut next = self.levels;
        for (index, term) in self.terms.iter().enumerate() {
            let cells = cost[index];
            if cells == 0 {
                continue;
            }
            match term.on_outage {
                _ if term.shadow => {}
                OnOutage::FailOpen => {}
                OnOutage::FailClosed => return Verdict::Closed,
                OnOutage::LocalShare { .. } => {
                    let weight = term.on_outage.weight(sizing.nodes);
                    let worth = weight
                        .saturating_mul(cells)
                        .saturating_mul(term.level.price);
                    if cells > term.level.burst() {
                        excess = Some(Excess::Never);
                    }
                    // One request is let through by an account that owes nothing, however small
                    // a share of the burst is.
                    let room = term.level.capacity.max(worth);
                    next[index] = self.levels[index].saturating_add(worth);
                    if let Some(over) = next[index].checked_sub(room + 1)
                        && excess != Some(Excess::Never)
                    {
                        let wait = term.level.nanos(over + 1);
                        excess = match excess {
                            Some(Excess::Wait(longer)) if longer > wait => excess,
                            _ => Some(Excess::Wait(wait)),
                        };
                    }
                }
            }
        }
        if let Some(excess) = excess {
            return self.refusal(now, excess);
        }
        for (index, term) in self.terms.iter().enumerate() {
            if next[index] != self.levels[index] {
                self.borrowed[index] += cost[index] * term.level.price;
            }
        }
        self.levels = next;
        Verdict::Admitted {
            levels: next,
            uncharged: [false; MAX_POLICIES],
        }
    }

    /// What Redis knew to be owed, as levels and by now: what to send it in case it has lost
    /// its data.
    pub(crate) fn remembers(&self, now: u64) -> Option<Box<[Term]>> {
        let known = self.terms(&self.remembered(now));
        (self.heard && known.iter().any(|term| term.cells > 0)).then_some(known)
    }

    fn remembered(&self, now: u64) -> Cells {
        self.drained(self.told, now.saturating_sub(self.told_at))
    }

    /// What was admitted without Redis and is not paid off yet, as levels, to be charged to it.
    pub(crate) fn owes(&mut self, now: u64, sizing: &Sizing) -> Option<Box<[Term]>> {
        if self.borrowed == [0; MAX_POLICIES] {
            return None;
        }
        self.age(now, sizing);
        let borrowed = std::mem::replace(&mut self.borrowed, [0; MAX_POLICIES]);
        self.told = self.remembered(now);
        self.told_at = now;
        for (told, borrowed) in self.told.iter_mut().zip(borrowed) {
            *told += borrowed;
        }
        let owed = self.terms(&borrowed);
        owed.iter().any(|term| term.cells > 0).then_some(owed)
    }

    /// Lets time pass for the levels.
    fn age(&mut self, now: u64, sizing: &Sizing) {
        let since = self.at;
        self.levels = self.levels(now);
        for (index, term) in self.terms.iter().enumerate() {
            // Time pays what Redis knows of first, there as well as here: no time pays twice. What
            // it is being asked for it may know of already.
            let known = self.told_at + term.level.nanos(self.told[index]);
            let elapsed = if self.flights.is_empty() {
                now.saturating_sub(since.max(known))
            } else {
                0
            };
            // Each node pays its share.
            let weight = term.on_outage.weight(sizing.nodes);
            let borrowed = &mut self.borrowed[index];
            *borrowed = term.level.after(*borrowed, elapsed / weight);
        }
        self.at = self.at.max(now);
    }

    /// Makes a request that was charged and not made after all part of the lease; `false` when
    /// there is none for it to be a part of.
    pub(crate) fn keep(&mut self, now: u64, cost: &Cells, sizing: &Sizing) -> bool {
        // Redis will have room again, or the lease does.
        self.ask_again_at = 0;
        let fits = self.lease.requests > 0
            && self.lease.cost == *cost
            && self.lease.requests < sizing.requests(&self.terms, cost, self.room(now, cost));
        if fits {
            self.used = now;
            self.lease.requests += 1;
            self.lease
                .charged
                .iter_mut()
                .for_each(|charged| *charged += 1);
        }
        fits
    }

    /// Asks Redis again, whatever it refused a moment ago.
    pub(crate) fn forget_refusal(&mut self) {
        self.ask_again_at = 0;
    }

    /// Whether no request waits and nothing is on its way.
    pub(crate) fn is_idle(&self) -> bool {
        self.flights.is_empty()
    }

    /// Whether it has not been used for `nanos` nanoseconds.
    pub(crate) fn is_unused(&self, now: u64, nanos: u64) -> bool {
        self.is_idle() && now.saturating_sub(self.used) >= nanos
    }

    /// Whether forgetting it loses nothing.
    pub(crate) fn is_blank(&self, now: u64) -> bool {
        self.is_idle()
            && self.lease.requests == 0
            && self.ask_again_at <= now
            && self.borrowed == [0; MAX_POLICIES]
            && self.debt(now) == 0
    }

    /// How long until nothing is owed, in nanoseconds.
    pub(crate) fn debt(&self, now: u64) -> u64 {
        let levels = self.terms.iter().zip(self.levels(now));
        levels
            .map(|(term, level)| term.level.nanos(level))
            .max()
            .unwrap_or(0)
    }

    /// Requests in the lease.
    pub(crate) fn leased(&self) -> u64 {
        self.lease.requests
    }

    /// Empties the lease: what is left of it, to be given back.
    pub(crate) fn give_up(&mut self) -> Option<Box<[Term]>> {
        let left = std::mem::take(&mut self.lease);
        self.worth(&left)
    }

    /// The terms of a call for requests at this cost.
    pub(crate) fn terms(&self, cost: &Cells) -> Box<[Term]> {
        let lines = self.terms.iter().zip(cost);
        lines
            .map(|(term, &cells)| Term { cells, ..*term })
            .collect()
    }

    fn worth(&self, lease: &Lease) -> Option<Box<[Term]>> {
        if lease.requests == 0 {
            return None;
        }
        let cells = std::array::from_fn(|index| lease.cost[index] * lease.charged[index]);
        Some(self.terms(&cells))
    }

    /// Adds to the lease; what does not fit is to be given back.
    fn add(&mut self, granted: Lease) -> Option<Box<[Term]>> {
        if self.lease.requests == 0 {
            self.lease = granted;
            return None;
        }
        if self.lease.cost != granted.cost {
            return self.worth(&granted);
        }
        self.lease.requests += granted.requests;
        for (charged, more) in self.lease.charged.iter_mut().zip(granted.charged) {
            *charged += more;
        }
        None
    }

    /// Takes a request out of the lease, if there is one at this cost.
    pub(crate) fn spend(&mut self, now: u64, cost: &Cells) -> Option<Verdict> {
        if *cost != self.lease.cost || self.lease.requests == 0 {
            return None;
        }
        let uncharged = self.lease.take_one();
        Some(Verdict::Admitted {
            levels: self.levels(now),
            uncharged,
        })
    }

    fn refusal(&self, now: u64, excess: Excess) -> Verdict {
        Verdict::Refused {
            levels: self.levels(now),
            excess,
        }
    }

    /// Notes until when asking again would be of no use.
    fn refuse_for(&mut self, now: u64, ask: &Ask, sizing: &Sizing, jitter: f64) {
        let leases = ask.least > 1;
        let (mut wait, mut spread) = (0, 0);
        for ((term, cells), &level) in self.terms.iter().zip(ask.cost).zip(&self.levels) {
            if term.shadow || cells == 0 {
                continue;
            }
            let cells = cells * ask.least;
            if let Some(Excess::Wait(nanos)) = term.level.excess(level, cells) {
                wait = wait.max(nanos);
            }
            if leases {
                spread = spread.max(term.level.nanos(cells * term.level.price));
            }
        }
        // The nodes would all come back at once, and all but one in vain.
        let others = sizing.nodes.saturating_sub(1);
        let spread = jitter * spread as f64 * others as f64;
        // At least 1: it did not fit, though by the levels of the reply it may.
        self.refused_until = now
            .saturating_add(wait.max(1))
            .saturating_add(spread as u64);
        // Cells may be given back elsewhere, so it is asked again within a second, at a moment that
        // is not every node's.
        let memory = MEMORY / 2 + (jitter * (MEMORY / 2) as f64) as u64;
        self.ask_again_at = self.refused_until.min(now.saturating_add(memory));
        self.refused = ask.cost;
    }

    /// How many requests to have in hand: what comes in within [`HORIZON`], and no more than one
    /// node may hold.
    fn size(&mut self, now: u64, cost: &Cells, sizing: &Sizing) -> u64 {
        let elapsed = now.saturating_sub(self.since);
        if elapsed >= RATE_WINDOW {
            let rate = f64::from(self.arrived) / elapsed as f64;
            self.rate = if elapsed > 10 * HORIZON {
                rate
            } else {
                (self.rate + rate) / 2.0
            };
            (self.arrived, self.since) = (0, now);
        }
        self.sized(now, cost, sizing)
    }

    fn sized(&self, now: u64, cost: &Cells, sizing: &Sizing) -> u64 {
        if sizing.most == 0 {
            return 1;
        }
        let wanted = (self.rate * HORIZON as f64) as u64;
        wanted.clamp(1, sizing.requests(&self.terms, cost, self.room(now, cost)))
    }

    /// How many requests at `cost` fit as far as is known here; none if nothing is.
    fn room(&self, now: u64, cost: &Cells) -> u64 {
        if self.heard {
            self.known_to_fit(now, cost)
        } else {
            0
        }
    }

    /// How many requests at `cost` fit as far as is known here; all there could be if nothing is.
    fn known_to_fit(&self, now: u64, cost: &Cells) -> u64 {
        if !self.heard {
            return u64::MAX;
        }
        let levels = self.levels(now);
        let charged = self.terms.iter().zip(cost).zip(levels);
        charged
            .filter(|((term, cells), _)| !term.shadow && **cells > 0)
            .map(|((term, cells), level)| term.level.remaining(level) / cells)
            .min()
            .unwrap_or(u64::MAX)
    }

    /// The levels by now, if no other node has charged anything.
    fn levels(&self, now: u64) -> Cells {
        self.drained(self.levels, now.saturating_sub(self.at))
    }

    /// What is left of these levels after `elapsed` nanoseconds.
    fn drained(&self, mut levels: Cells, elapsed: u64) -> Cells {
        for (level, term) in levels.iter_mut().zip(&*self.terms) {
            *level = term.level.after(*level, elapsed);
        }
        levels
    }
}

impl Lease {
    /// Takes one request out; which policies it was not charged by.
    fn take_one(&mut self) -> [bool; MAX_POLICIES] {
        self.requests -= 1;
        let mut uncharged = [false; MAX_POLICIES];
        for (uncharged, charged) in uncharged.iter_mut().zip(&mut self.charged) {
            match charged.checked_sub(1) {
                Some(left) => *charged = left,
                None => *uncharged = true,
            }
        }
        uncharged
    }
}

/// How long a lease lasts about, in nanoseconds. Longer saves calls and leaves more in the hands of
/// nodes that may not need it.
const HORIZON: u64 = 100_000_000;

/// How long a refusal is remembered at most, in nanoseconds.
const MEMORY: u64 = 1_000_000_000;

/// The rate is read off spans at least this long, in nanoseconds.
const RATE_WINDOW: u64 = 2_000_000;
