//! The account script in Rust, and fleets of the real [`Account`]s around it in virtual time: the
//! bounds that the module's documentation states, for whatever happens.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use proptest::{prelude::*, test_runner::FileFailurePersistence::WithSource};

use super::{
    account::{Account, Ask, Cells, Sizing, Tell, Verdict},
    level::Level,
    outage::OnOutage,
    script::{Action, Reply, Term},
};
use crate::{MAX_POLICIES, Quota, SECOND};

/// What Redis keeps of one key. Its time is in microseconds, as Redis's is.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    last: u64,
    levels: Cells,
}

impl Model {
    pub(super) fn call(&mut self, now: u64, action: Action, terms: &[Term]) -> Reply {
        let elapsed = now.saturating_sub(self.last);
        let mut granted = match action {
            Action::Take { n, .. } => n,
            _ => 0,
        };
        let n = granted;
        let mut reply = Reply {
            granted: 0,
            levels: [0; MAX_POLICIES],
            charged: [0; MAX_POLICIES],
        };
        for (index, term) in terms.iter().enumerate() {
            let Level {
                price,
                drain,
                capacity,
            } = term.level;
            let level = self.levels[index].saturating_sub(elapsed.saturating_mul(drain));
            self.levels[index] = level;
            let fits = match term.cells {
                0 => n,
                cells => n.min(capacity.saturating_sub(level) / price.saturating_mul(cells)),
            };
            reply.charged[index] = fits;
            if !term.shadow {
                granted = granted.min(fits);
            }
        }
        if let Action::Take { least, .. } = action
            && granted < least
        {
            granted = 0;
        }
        reply.granted = granted;
        for (index, term) in terms.iter().enumerate() {
            let Level {
                price, capacity, ..
            } = term.level;
            let level = &mut self.levels[index];
            let worth = price * term.cells.min(2 * term.level.burst() + 1);
            match action {
                Action::Take { .. } => {
                    reply.charged[index] = reply.charged[index].min(granted);
                    *level += reply.charged[index] * price * term.cells;
                }
                Action::Charge => *level = (*level).max((*level + worth).min(2 * capacity)),
                Action::Owe => {
                    *level = (*level).max((*level + term.cells.min(capacity)).min(2 * capacity))
                }
                Action::Refund => *level = level.saturating_sub(worth),
                Action::Raise => *level = (*level).max(term.cells.min(capacity)),
                Action::Peek => {}
            }
            reply.levels[index] = *level;
        }
        self.last = now;
        reply
    }
}

/// A waiter that counts its admissions.
#[derive(Clone, Debug)]
struct Note(Rc<RefCell<u64>>);

impl Tell for Note {
    fn tell(self, verdict: Verdict) -> bool {
        if let Verdict::Admitted { .. } = verdict {
            *self.0.borrow_mut() += 1;
        }
        true
    }
}

/// What happens next to a node, and after how many microseconds.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// Requests arrive.
    Requests(u8),
    /// Requests have waited for Redis in vain.
    Overdue(u8),
    /// Its lease is given back.
    GiveUp,
    /// It is replaced by one that knows nothing.
    Crash,
}

/// A message on its way, in either direction.
#[derive(Debug)]
enum Message {
    Ask(usize, u64, Ask),
    Answer(usize, u64, Ask, Reply),
    Refund(Box<[Term]>),
    Owe(Box<[Term]>),
}

/// Nodes, what is on its way between them and Redis, and what was admitted when.
struct Fleet {
    terms: std::sync::Arc<[Term]>,
    sizing: Sizing,
    redis: Model,
    /// With the number of its life.
    nodes: Vec<(u64, Account<Note>)>,
    travelling: BTreeMap<(u64, u64), Message>,
    sent: u64,
    admitted: Vec<Admission>,
    told: Rc<RefCell<u64>>,
    /// Granted and not given back, as Redis knows it; less what was admitted.
    unused: u64,
    most_leased: u64,
    /// How long what was admitted without Redis has been on its way to it, in all.
    debts_travelled: u64,
}

/// Requests admitted at one moment.
#[derive(Debug)]
struct Admission {
    at: u64,
    requests: u64,
    /// What was granted and not used before.
    unused: u64,
}

impl Fleet {
    /// Nodes with as many accounts of the key each as there are plans that have the policy.
    fn new(quota: Quota, nodes: usize, plans: usize, most: u64, strict: bool) -> Self {
        let sizing = Sizing {
            most,
            planned: nodes as u64,
            nodes: nodes as u64,
        };
        let level = Level::new(&quota).unwrap();
        let burst = quota.burst_size();
        let level = if strict {
            level.reserving(sizing.of_fleet(burst))
        } else {
            level
        };
        let term = Term {
            id: 1,
            level,
            burst,
            leasable: sizing.of_fleet(burst) / plans as u64,
            reserved: sizing.of_fleet(burst),
            cells: 0,
            shadow: false,
            on_outage: OnOutage::default(),
        };
        let terms = std::sync::Arc::from([term]);
        Self {
            nodes: (0..nodes * plans)
                .map(|_| (0, Account::new(&terms, 0)))
                .collect(),
            terms,
            sizing,
            redis: Model::default(),
            travelling: BTreeMap::new(),
            sent: 0,
            admitted: Vec::new(),
            told: Rc::default(),
            unused: 0,
            most_leased: 0,
            debts_travelled: 0,
        }
    }

    fn send(&mut self, now: u64, delay: u64, message: Message) {
        self.sent += 1;
        self.travelling.insert((now + delay, self.sent), message);
    }

    fn cost() -> Cells {
        let mut cost = [0; MAX_POLICIES];
        cost[0] = 1;
        cost
    }

    fn note(&mut self, now: u64) {
        let requests = std::mem::take(&mut *self.told.borrow_mut());
        if requests > 0 {
            let unused = self.unused;
            self.admitted.push(Admission {
                at: now,
                requests,
                unused,
            });
            self.unused -= requests;
        }
        let leased = self.nodes.iter().map(|(_, account)| account.leased()).sum();
        self.most_leased = self.most_leased.max(leased);
    }

    fn happen(&mut self, now: u64, node: usize, event: Event, delay: u64) {
        let sizing = self.sizing;
        let nanos = now * 1_000;
        let (life, account) = &mut self.nodes[node];
        let life = *life;
        match event {
            Event::Requests(requests) => {
                let mut asks = Vec::new();
                for _ in 0..requests {
                    match account.decide(nanos, &Self::cost()) {
                        Some(Verdict::Admitted { .. }) => {
                            *self.told.borrow_mut() += 1;
                            asks.extend(account.top_up(nanos, &sizing));
                        }
                        Some(_) => {}
                        None => {
                            let note = Note(Rc::clone(&self.told));
                            asks.extend(account.wait(nanos, &Self::cost(), note, &sizing));
                        }
                    }
                }
                for ask in asks {
                    self.send(now, delay, Message::Ask(node, life, ask));
                }
            }
            Event::Overdue(requests) => {
                for _ in 0..requests {
                    if account.spend(nanos, &Self::cost()).is_some() {
                        *self.told.borrow_mut() += 1;
                    } else if let Verdict::Admitted { .. } =
                        account.without_redis(nanos, &Self::cost(), &sizing)
                    {
                        *self.told.borrow_mut() += 1;
                        self.unused += 1;
                    }
                }
            }
            Event::GiveUp => {
                if let Some(left) = account.give_up() {
                    self.send(now, delay, Message::Refund(left));
                }
            }
            Event::Crash => self.nodes[node] = (life + 1, Account::new(&self.terms, nanos)),
        }
        self.note(now);
    }

    /// Lets everything arrive that does so until `now`.
    fn arrive(&mut self, now: u64, jitter: f64, delay: u64) {
        while let Some(entry) = self.travelling.first_entry()
            && entry.key().0 <= now
        {
            let at = entry.key().0;
            match entry.remove() {
                Message::Ask(node, life, ask) => {
                    let term = Term {
                        cells: ask.cost[0],
                        ..self.terms[0]
                    };
                    let Ask { n, least, .. } = ask;
                    let reply = self.redis.call(at, Action::Take { n, least }, &[term]);
                    self.unused += reply.granted;
                    self.send(at, delay, Message::Answer(node, life, ask, reply));
                }
                Message::Answer(node, life, ask, reply) => {
                    let (current, account) = &mut self.nodes[node];
                    if *current != life {
                        // It has crashed meanwhile: what was granted is lost.
                        continue;
                    }
                    let next = account.answered(at * 1_000, &ask, &reply, &self.sizing, jitter);
                    if let Some(owed) = next.owes {
                        self.debts_travelled += delay;
                        self.send(at, delay, Message::Owe(owed));
                    }
                    if let Some(left) = next.refund {
                        self.send(at, delay, Message::Refund(left));
                    }
                    if let Some(ask) = next.ask {
                        self.send(at, delay, Message::Ask(node, life, ask));
                    }
                    self.note(at);
                }
                Message::Refund(left) => {
                    self.redis.call(at, Action::Refund, &left);
                    self.unused -= left[0].cells;
                }
                Message::Owe(owed) => {
                    self.redis.call(at, Action::Owe, &owed);
                }
            }
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        20 => (1u8..40).prop_map(Event::Requests),
        2 => Just(Event::GiveUp),
        1 => Just(Event::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: Some(Box::new(WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    /// The theorem of the module's documentation.
    #[test]
    fn the_fleet_keeps_the_bounds_whatever_happens(
        count in 1u64..20_000,
        burst in 1u64..500,
        nodes in 1usize..6,
        plans in 1usize..4,
        most in prop_oneof![Just(0), Just(u64::MAX), 1u64..50],
        strict in any::<bool>(),
        jitter in 0.0f64..1.0,
        events in proptest::collection::vec((0u64..30_000, 0usize..18, event(), 1u64..5_000), 1..150),
    ) {
        let mut fleet = Fleet::new(Quota::count(count).per(SECOND).burst(burst), nodes, plans, most, strict);
        let mut now = 1_000_000;
        for (gap, node, event, delay) in events {
            now += gap;
            fleet.arrive(now, jitter, delay);
            fleet.happen(now, node % (nodes * plans), event, delay);
        }
        fleet.arrive(u64::MAX, jitter, 1);

        // From the start on it is B + R t, and in any window at most what was granted and not
        // used when it began comes on top.
        let capacity = fleet.terms[0].level.burst();
        for (first, begin) in fleet.admitted.iter().enumerate() {
            let mut admitted = 0;
            for end in &fleet.admitted[first..] {
                admitted += end.requests;
                let refilled = (count * (end.at - begin.at)).div_ceil(1_000_000);
                let bound = capacity + refilled + begin.unused;
                prop_assert!(
                    admitted <= bound,
                    "{admitted} admitted in {} us, bound {bound}", end.at - begin.at
                );
            }
        }
        let all: u64 = fleet.admitted.iter().map(|admission| admission.requests).sum();
        let refilled = (count * (now - 1_000_000 + 5_000)).div_ceil(1_000_000);
        prop_assert!(all <= capacity + refilled, "{all} over {capacity} + {refilled}");
        // Never more than half a burst in leases, and nothing in exact mode.
        prop_assert!(fleet.most_leased <= fleet.sizing.of_fleet(burst));
        // What strict windows hold back covers all leases.
        if strict {
            prop_assert!(burst == 1 || capacity + fleet.most_leased <= burst);
        }
    }

    /// What is admitted because Redis was slow is not forgotten, however often it is: a node pays
    /// all of it back, so that in the end the quota is kept as if Redis had always replied.
    #[test]
    fn what_is_admitted_without_redis_is_charged_in_full(
        count in 1u64..20_000,
        burst in 1u64..500,
        most in prop_oneof![Just(0), Just(u64::MAX), 1u64..50],
        events in proptest::collection::vec(
            (0u64..30_000, 1u8..40, any::<bool>(), 1u64..5_000), 1..150
        ),
    ) {
        let mut fleet = Fleet::new(Quota::count(count).per(SECOND).burst(burst), 1, 1, most, false);
        let mut now = 1_000_000;
        for (gap, requests, overdue, delay) in events {
            now += gap;
            fleet.arrive(now, 0.5, delay);
            let event = if overdue { Event::Overdue(requests) } else { Event::Requests(requests) };
            fleet.happen(now, 0, event, delay);
        }
        fleet.arrive(u64::MAX, 0.5, 1);
        now += 10_000;
        let (_, account) = &mut fleet.nodes[0];
        if let Some(owed) = account.owes(now * 1_000, &fleet.sizing) {
            fleet.redis.call(now, Action::Owe, &owed);
        }
        let level = fleet.terms[0].level;
        let known = fleet.redis.call(now, Action::Peek, &fleet.terms).levels[0];
        let all: u64 = fleet.admitted.iter().map(|admission| admission.requests).sum();
        // A debt on its way is paid off already where it comes from, and not yet where it goes.
        let paid = (now - 1_000_000 + fleet.debts_travelled) * level.drain;
        prop_assert!(all * level.price <= known + paid, "{all} admitted, {known} owed, {paid} paid");
        prop_assert!(known <= 2 * level.capacity);
    }

    /// What [`OnOutage::LocalShare`] promises: nodes that know the same of a key, and nothing of
    /// each other, admit together no more than the percentage of what Redis would have.
    #[test]
    fn shares_add_up_to_no_more_than_the_quota(
        count in 1u64..20_000,
        burst in 1u64..500,
        used in 0u64..500,
        nodes in 1usize..6,
        percent in 1u8..=100,
        requests in proptest::collection::vec((0u64..20_000, 0usize..6, 1u8..20), 1..200),
    ) {
        let quota = Quota::count(count).per(SECOND).burst(burst);
        let mut fleet = Fleet::new(quota, nodes, 1, 0, false);
        let on_outage = OnOutage::LocalShare { percent };
        fleet.terms = std::sync::Arc::from([Term { on_outage, ..fleet.terms[0] }]);
        let level = fleet.terms[0].level;
        let used = used.min(burst) * level.price;
        for (_, account) in &mut fleet.nodes {
            *account = Account::new(&fleet.terms, 0);
            account.hear(0, used);
        }
        let (mut now, mut admitted) = (0, 0u64);
        for (gap, node, requests) in requests {
            now += gap;
            let (_, account) = &mut fleet.nodes[node % nodes];
            for _ in 0..requests {
                let verdict = account.without_redis(now * 1_000, &Fleet::cost(), &fleet.sizing);
                admitted += u64::from(matches!(verdict, Verdict::Admitted { .. }));
            }
            let whole = level.capacity - used + now * level.drain;
            let share = whole as f64 * f64::from(percent) / 100.0 / level.price as f64;
            // A share of a burst that is less than one request lets one through at a time.
            let weight = on_outage.weight(nodes as u64);
            if burst >= weight {
                prop_assert!(admitted as f64 <= share + 1e-6, "{admitted} over {share}");
            } else {
                prop_assert!(admitted as f64 <= share + nodes as f64, "{admitted} over {share}");
            }
        }
    }
}
